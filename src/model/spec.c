/*
 * Reading config.json: the keys that all families share. See spec.h.
 *
 * Order: the family is found by model_type; shared keys are read; the family reads its own (and puts its class
 * defaults where a shared key is absent); finish() derives what is still 0 and checks how the sizes fit together. All
 * of it happens in a local spec, which is copied out only when it is good.
 *
 * The maxima below keep heads times head size inside int32, and the product of any two sizes of a layer, or of a size
 * and the rows of a step, far inside int64.
 */
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "model/family.h"
#include "model/spec_read.h"

#define MAX_D_MODEL (1 << 16)
#define MAX_D_FFN (1 << 18)
#define MAX_HEADS 1024
#define MAX_D_HEAD 256
#define D_HEAD_MULTIPLE 16
#define MAX_VOCAB (1 << 20)
#define PATH_BYTES 4096

bool key_absent(const json_doc *doc, const char *key) {
    return json_object_get(doc->root, key) == NULL;
}

bool key_given(const json_doc *doc, const char *key) {
    const json_t *value = json_object_get(doc->root, key);
    return value != NULL && !json_is_null(value);
}

ls_status refuse_true(const json_doc *doc, const char *key, const char *model_type, ls_error *err) {
    bool value = false;
    TRY(json_find_bool(doc, doc->root, key, &value, err));
    return value ? REFUSE(doc, key, "%s models with it are not supported", model_type) : LS_OK;
}

/* ---- The family -------------------------------------------------------------------------------------------------- */

static void list_families(char *text, size_t text_bytes) {
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; ls_families[i] != NULL && used < text_bytes; i++) {
        used += (size_t)snprintf(text + used, text_bytes - used, "%s%s", i ? ", " : "", ls_families[i]->model_type);
    }
}

/* "architectures" says which head sits on the model: a classifier or an embedder has no logits to sample from. */
static ls_status check_architecture(const ls_family *family, const json_doc *doc, ls_error *err) {
    json_t *list = NULL;
    TRY(json_find_array(doc, doc->root, "architectures", &list, err));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (name != NULL && strcmp(name, family->architecture) == 0) {
            return LS_OK;
        }
    }
    if (json_array_size(list) == 0) {
        return LS_OK;
    }
    const char *first = json_string_value(json_array_get(list, 0));
    return REFUSE(doc, "architectures", "'%.60s' is not supported, only '%s' is for model_type '%s'",
                  first ? first : "(no string)", family->architecture, family->model_type);
}

static ls_status read_family(const ls_family **family, const json_doc *doc, ls_error *err) {
    const char *model_type = NULL;
    char known[128];
    list_families(known, sizeof known);
    TRY(json_find_string(doc, doc->root, "model_type", &model_type, err));
    if (model_type == NULL) {
        return error_set(err, LS_EFORMAT, "%s: model_type: missing; supported: %s", doc->name, known);
    }
    const ls_family *found = family_find(model_type);
    if (found == NULL) {
        bool is_moe = strstr(model_type, "moe") != NULL || strcmp(model_type, "mixtral") == 0;
        return REFUSE(doc, "model_type", "'%.60s' %s; supported: %s", model_type,
                      is_moe ? "is a mixture of experts, which is not supported" : "is not supported", known);
    }
    TRY(check_architecture(found, doc, err));
    *family = found;
    return LS_OK;
}

/* ---- Shared keys ------------------------------------------------------------------------------------------------- */

/* What changes the formulas in a way that no op here knows. */
static ls_status refuse_foreign(const json_doc *doc, ls_error *err) {
    static const char *const expert_keys[] = {"num_experts", "num_local_experts", "n_routed_experts"};
    for (size_t i = 0; i < sizeof expert_keys / sizeof expert_keys[0]; i++) {
        const json_t *value = json_object_get(doc->root, expert_keys[i]);
        if (key_given(doc, expert_keys[i]) && !(json_is_integer(value) && json_integer_value(value) == 0)) {
            return REFUSE(doc, expert_keys[i], "%s", "a mixture of experts is not supported");
        }
    }
    static const char *const object_keys[] = {"quantization_config", "compression_config", "per_layer_config"};
    for (size_t i = 0; i < sizeof object_keys / sizeof object_keys[0]; i++) {
        if (key_given(doc, object_keys[i])) {
            const json_t *value = json_object_get(doc->root, object_keys[i]);
            const char *method = json_string_value(json_object_get(value, "quant_method"));
            return REFUSE(doc, object_keys[i], "not supported%s%.60s", method ? ": " : "", method ? method : "");
        }
    }
    const char *act = "silu";
    TRY(json_find_string(doc, doc->root, "hidden_act", &act, err));
    if (strcmp(act, "silu") != 0) {
        return REFUSE(doc, "hidden_act", "'%.60s' is not supported, only 'silu' is", act);
    }
    int64_t pretraining_tp = 1;
    TRY(json_find_int(doc, doc->root, "pretraining_tp", INT64_MIN, INT64_MAX, &pretraining_tp, err));
    if (pretraining_tp != 1) {
        return REFUSE(doc, "pretraining_tp", "%lld is not supported, only 1 is", (long long)pretraining_tp);
    }
    bool is_causal = true;
    TRY(json_find_bool(doc, doc->root, "is_causal", &is_causal, err));
    return is_causal ? LS_OK : REFUSE(doc, "is_causal", "%s", "false is not supported");
}

static ls_status get_size(const json_doc *doc, const char *key, int max, int *out, ls_error *err) {
    int64_t size = 0;
    TRY(json_get_int(doc, doc->root, key, 1, max, &size, err));
    *out = (int)size;
    return LS_OK;
}

/* Optional sizes stay 0 where they are absent or null. */
static ls_status find_size(const json_doc *doc, const char *key, int max, int *out, ls_error *err) {
    int64_t size = 0;
    TRY(json_find_int(doc, doc->root, key, 1, max, &size, err));
    *out = (int)size;
    return LS_OK;
}

static ls_status read_sizes(ls_spec *spec, const json_doc *doc, ls_error *err) {
    TRY(get_size(doc, "num_hidden_layers", SPEC_MAX_LAYERS, &spec->n_layers, err));
    TRY(get_size(doc, "hidden_size", MAX_D_MODEL, &spec->d_model, err));
    TRY(get_size(doc, "intermediate_size", MAX_D_FFN, &spec->d_ffn, err));
    TRY(get_size(doc, "num_attention_heads", MAX_HEADS, &spec->n_heads, err));
    TRY(find_size(doc, "num_key_value_heads", MAX_HEADS, &spec->n_kv_heads, err));
    TRY(find_size(doc, "head_dim", MAX_D_MODEL, &spec->d_head, err));
    TRY(get_size(doc, "vocab_size", MAX_VOCAB, &spec->n_vocab, err));
    return get_size(doc, "max_position_embeddings", SPEC_MAX_POSITIONS, &spec->max_position_tokens, err);
}

/* "dtype" is the newer name and wins, as in transformers. */
static ls_status read_dtype(ls_dtype *dtype, const json_doc *doc, ls_error *err) {
    static const struct {
        const char *name;
        ls_dtype dtype;
    } known[] = {{"float32", LS_F32}, {"bfloat16", LS_BF16}, {"float16", LS_F16}};
    const char *key = key_given(doc, "dtype") ? "dtype" : "torch_dtype";
    const char *name = "float32";
    TRY(json_find_string(doc, doc->root, key, &name, err));
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(name, known[i].name) == 0) {
            *dtype = known[i].dtype;
            return LS_OK;
        }
    }
    return REFUSE(doc, key, "'%.60s' is not supported, only float32, bfloat16 and float16 are", name);
}

static ls_status read_token(const json_doc *doc, const json_t *value, int n_vocab, int32_t *token, ls_error *err) {
    if (!json_is_integer(value)) {
        return error_set(err, LS_EFORMAT, "%s: eos_token_id: expected a token id or a list of them", doc->name);
    }
    int64_t id = json_integer_value(value);
    if (id < 0 || id >= n_vocab) {
        return error_set(err, LS_EFORMAT, "%s: eos_token_id: %lld is no token of a vocabulary of %d", doc->name,
                         (long long)id, n_vocab);
    }
    *token = (int32_t)id;
    return LS_OK;
}

ls_status read_eos(const json_doc *doc, int n_vocab, int32_t eos[SPEC_MAX_EOS], int *n_eos, ls_error *err) {
    if (!key_given(doc, "eos_token_id")) {
        return LS_OK;
    }
    const json_t *value = json_object_get(doc->root, "eos_token_id");
    int32_t ids[SPEC_MAX_EOS] = {0};
    size_t n = 1;
    if (json_is_array(value)) {
        n = json_array_size(value);
        if (n > SPEC_MAX_EOS) {
            return REFUSE(doc, "eos_token_id", "%zu ids, more than %d", n, SPEC_MAX_EOS);
        }
        for (size_t i = 0; i < n; i++) {
            TRY(read_token(doc, json_array_get(value, i), n_vocab, &ids[i], err));
        }
    } else {
        TRY(read_token(doc, value, n_vocab, &ids[0], err));
    }
    memcpy(eos, ids, sizeof ids);
    *n_eos = (int)n;
    return LS_OK;
}

static ls_status read_shared(ls_spec *spec, const json_doc *doc, ls_error *err) {
    TRY(refuse_foreign(doc, err));
    TRY(read_sizes(spec, doc, err));
    TRY(read_dtype(&spec->dtype, doc, err));
    TRY(rope_read(&spec->rope, doc, spec->max_position_tokens, err));
    TRY(json_find_bool(doc, doc->root, "tie_word_embeddings", &spec->tied, err)); /* false in all four classes */
    spec->norm_eps = 1e-6;                                                        /* likewise */
    TRY(json_find_real(doc, doc->root, "rms_norm_eps", &spec->norm_eps, err));
    if (spec->norm_eps <= 0 || spec->norm_eps > 1) {
        return error_set(err, LS_EFORMAT, "%s: rms_norm_eps: %g is outside 0..1", doc->name, spec->norm_eps);
    }
    return read_eos(doc, spec->n_vocab, spec->eos, &spec->n_eos, err);
}

/* ---- Windows ----------------------------------------------------------------------------------------------------- */

static ls_status read_layer_types(ls_spec *spec, const json_doc *doc, const json_t *types, int64_t window_tokens,
                                  ls_error *err) {
    if (json_array_size(types) != (size_t)spec->n_layers) {
        return error_set(err, LS_EFORMAT, "%s: layer_types: %zu entries, expected num_hidden_layers = %d", doc->name,
                         json_array_size(types), spec->n_layers);
    }
    for (int i = 0; i < spec->n_layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        if (type == NULL) {
            return error_set(err, LS_EFORMAT, "%s: layer_types: entry %d: expected a string", doc->name, i);
        }
        bool windowed = strcmp(type, "sliding_attention") == 0;
        if (!windowed && strcmp(type, "full_attention") != 0) {
            return REFUSE(doc, "layer_types",
                          "entry %d: '%.60s' is not supported, only full_attention and "
                          "sliding_attention are",
                          i, type);
        }
        if (windowed && window_tokens == 0) {
            return REFUSE(doc, "layer_types", "entry %d: sliding_attention, but %s has no sliding_window here", i,
                          spec->family->model_type);
        }
        spec->layer_windowed[i] = windowed;
    }
    return LS_OK;
}

ls_status read_windows(ls_spec *spec, const json_doc *doc, int64_t window_tokens, int64_t first_layer, ls_error *err) {
    json_t *types = NULL;
    TRY(json_find_array(doc, doc->root, "layer_types", &types, err));
    if (types != NULL) {
        TRY(read_layer_types(spec, doc, types, window_tokens, err));
    } else {
        for (int i = 0; i < spec->n_layers; i++) {
            spec->layer_windowed[i] = window_tokens > 0 && i >= first_layer;
        }
    }
    /* A window that no layer uses is no window: one meaning, one spec. */
    spec->window_tokens = 0;
    for (int i = 0; i < spec->n_layers; i++) {
        if (spec->layer_windowed[i]) {
            spec->window_tokens = (int)window_tokens;
        }
    }
    return LS_OK;
}

/* ---- The whole --------------------------------------------------------------------------------------------------- */

/* Derived sizes, and how the sizes fit together. */
static ls_status finish(ls_spec *spec, const json_doc *doc, ls_error *err) {
    if (spec->n_kv_heads == 0) {
        spec->n_kv_heads = spec->n_heads;
    }
    if (spec->n_heads % spec->n_kv_heads != 0) {
        return error_set(err, LS_EFORMAT, "%s: num_key_value_heads: %d does not divide num_attention_heads = %d",
                         doc->name, spec->n_kv_heads, spec->n_heads);
    }
    const char *origin = "";
    if (spec->d_head == 0) {
        if (spec->d_model % spec->n_heads != 0) {
            return error_set(err, LS_EFORMAT,
                             "%s: head_dim: absent, and num_attention_heads = %d does not divide "
                             "hidden_size = %d",
                             doc->name, spec->n_heads, spec->d_model);
        }
        spec->d_head = spec->d_model / spec->n_heads;
        origin = " (hidden_size / num_attention_heads)";
    }
    if (spec->d_head % D_HEAD_MULTIPLE != 0 || spec->d_head > MAX_D_HEAD) {
        return REFUSE(doc, "head_dim", "%d%s is not supported, only multiples of %d up to %d are", spec->d_head, origin,
                      D_HEAD_MULTIPLE, MAX_D_HEAD);
    }
    return LS_OK;
}

/* The last part of a path, without slashes behind it. */
static void name_of(char *name, size_t name_bytes, const char *path) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') {
        end--;
    }
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') {
        begin--;
    }
    snprintf(name, name_bytes, "%.*s", (int)(end - begin < name_bytes ? end - begin : name_bytes), path + begin);
}

ls_status spec_from_json(ls_spec *spec, const json_doc *doc, ls_error *err) {
    if (!json_is_object(doc->root)) {
        return error_set(err, LS_EFORMAT, "%s: expected a JSON object", doc->name);
    }
    ls_spec fresh = {0};
    name_of(fresh.name, sizeof fresh.name, doc->name);
    TRY(read_family(&fresh.family, doc, err));
    TRY(read_shared(&fresh, doc, err));
    TRY(fresh.family->read_config(&fresh, doc, err));
    TRY(finish(&fresh, doc, err));
    *spec = fresh;
    return LS_OK;
}

ls_status spec_read(ls_spec *spec, const char *folder, ls_error *err) {
    char path[PATH_BYTES];
    TRY(path_join(path, sizeof path, folder, "config.json", err));
    json_doc doc;
    TRY(json_doc_read(&doc, path, CONFIG_MAX_BYTES, err));
    ls_status st = spec_from_json(spec, &doc, err);
    json_doc_deinit(&doc);
    TRY(st);
    name_of(spec->name, sizeof spec->name, folder);
    return LS_OK;
}
