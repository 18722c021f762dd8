/*
 * Specs: every family's config.json in its older and newer form, the published files of known models, every value that
 * is refused (the text must name its key), rotary frequencies against transformers' (tests/golden/rope.json), and
 * generation_config.json.
 */
#include "model/spec.h"

#include <glob.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/family.h"

#define CONFIGS "../shared/data/configs"
#define SMALL                                                                                                          \
    "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":4,\"num_attention_heads\":4,"                   \
    "\"num_key_value_heads\":2,\"vocab_size\":100,\"max_position_embeddings\":512"
#define SIZES SMALL ",\"head_dim\":32"

static void assert_has(const char *text, const char *part) {
    if (strstr(text, part) == NULL) {
        fail_msg("expected \"%s\" in \"%s\"", part, text);
    }
}

static ls_status parse(ls_spec *spec, const char *text, ls_error *err) {
    json_doc doc;
    ls_status st = json_doc_parse(&doc, "x/config.json", text, strlen(text), err);
    if (st != LS_OK) {
        fail_msg("%s in %s", err->text, text);
    }
    st = spec_from_json(spec, &doc, err);
    json_doc_deinit(&doc);
    return st;
}

static ls_spec parse_good(const char *text) {
    ls_error err = {0};
    ls_spec spec;
    memset(&spec, 0xff, sizeof spec);
    if (parse(&spec, text, &err) != LS_OK) {
        fail_msg("%s for %s", err.text, text);
    }
    return spec;
}

/* Everything but the name. */
static void assert_same(const ls_spec *a, const ls_spec *b) {
    assert_ptr_equal(a->family, b->family);
#define SAME(field) assert_int_equal(a->field, b->field)
#define SAME_REAL(field) assert_true(a->field == b->field)
    SAME(n_layers);
    SAME(d_model);
    SAME(d_ffn);
    SAME(n_heads);
    SAME(n_kv_heads);
    SAME(d_head);
    SAME(n_vocab);
    SAME(max_position_tokens);
    SAME_REAL(norm_eps);
    SAME(tied);
    SAME(qk_norm);
    SAME(qkv_bias);
    SAME(out_bias);
    SAME(mlp_bias);
    SAME(window_tokens);
    assert_memory_equal(a->layer_windowed, b->layer_windowed, sizeof a->layer_windowed);
    SAME(rope.type);
    SAME_REAL(rope.theta);
    SAME_REAL(rope.factor);
    SAME_REAL(rope.low_freq_factor);
    SAME_REAL(rope.high_freq_factor);
    SAME_REAL(rope.beta_fast);
    SAME_REAL(rope.beta_slow);
    SAME_REAL(rope.attention_factor);
    SAME_REAL(rope.mscale);
    SAME_REAL(rope.mscale_all_dim);
    SAME(rope.truncate);
    SAME(rope.original_max_position);
    SAME(dtype);
    SAME(n_eos);
    assert_memory_equal(a->eos, b->eos, sizeof a->eos);
}

static void assert_same_text(const char *a_text, const char *b_text) {
    ls_spec a = parse_good(a_text);
    ls_spec b = parse_good(b_text);
    assert_same(&a, &b);
}

static int n_windowed(const ls_spec *spec) {
    int n = 0;
    for (int i = 0; i < SPEC_MAX_LAYERS; i++) {
        n += spec->layer_windowed[i];
    }
    return n;
}

/* ---- Families ---------------------------------------------------------------------------------------------------- */

static void qwen3(void **state) {
    (void)state;
    ls_spec s = parse_good("{\"model_type\":\"qwen3\"," SIZES ",\"rope_theta\":1000000,\"tie_word_embeddings\":true,"
                           "\"torch_dtype\":\"bfloat16\",\"eos_token_id\":7,\"use_sliding_window\":false,"
                           "\"sliding_window\":32,\"max_window_layers\":2,\"hidden_act\":\"silu\"}");
    assert_string_equal(s.family->model_type, "qwen3");
    assert_ptr_equal(s.family, family_find("qwen3"));
    assert_int_equal(s.n_layers, 4);
    assert_int_equal(s.d_model, 64);
    assert_int_equal(s.d_ffn, 96);
    assert_int_equal(s.n_heads, 4);
    assert_int_equal(s.n_kv_heads, 2);
    assert_int_equal(s.d_head, 32);
    assert_int_equal(s.n_vocab, 100);
    assert_int_equal(s.max_position_tokens, 512);
    assert_true(s.norm_eps == 1e-6);
    assert_true(s.rope.theta == 1e6);
    assert_int_equal(s.rope.type, ROPE_DEFAULT);
    assert_true(s.tied && s.qk_norm && !s.qkv_bias && !s.out_bias && !s.mlp_bias);
    assert_int_equal(s.dtype, LS_BF16);
    assert_int_equal(s.n_eos, 1);
    assert_int_equal(s.eos[0], 7);
    assert_int_equal(s.window_tokens, 0);
    s = parse_good("{\"model_type\":\"qwen3\"," SIZES ",\"attention_bias\":true}");
    assert_true(s.qkv_bias && s.out_bias && !s.mlp_bias);
    assert_int_equal(s.n_eos, 0);
    s = parse_good("{\"model_type\":\"qwen3\"," SMALL "}");
    assert_int_equal(s.d_head, 128); /* the class default, not D / H */
    s = parse_good("{\"model_type\":\"qwen3\"," SMALL ",\"head_dim\":null}");
    assert_int_equal(s.d_head, 16);
}

static void qwen2(void **state) {
    (void)state;
    ls_spec s = parse_good("{\"model_type\":\"qwen2\"," SMALL "}");
    assert_true(!s.tied && !s.qk_norm && s.qkv_bias && !s.out_bias && !s.mlp_bias);
    assert_int_equal(s.d_head, 16);
    assert_int_equal(s.window_tokens, 0);
    s = parse_good("{\"model_type\":\"qwen2\"," SMALL ",\"use_sliding_window\":true,\"sliding_window\":32,"
                   "\"max_window_layers\":3}");
    assert_int_equal(s.window_tokens, 32);
    assert_int_equal(n_windowed(&s), 1);
    assert_true(s.layer_windowed[3]);
    s = parse_good("{\"model_type\":\"qwen2\"," SMALL ",\"use_sliding_window\":true,\"max_window_layers\":0}");
    assert_int_equal(s.window_tokens, 4096); /* the class default */
    assert_int_equal(n_windowed(&s), 4);
    s = parse_good("{\"model_type\":\"qwen2\"," SMALL ",\"use_sliding_window\":true,\"sliding_window\":null}");
    assert_int_equal(s.window_tokens, 0);
    s = parse_good("{\"model_type\":\"qwen2\"," SMALL ",\"use_sliding_window\":true,\"max_window_layers\":4}");
    assert_int_equal(s.window_tokens, 0); /* no layer left for it */
}

static void mistral(void **state) {
    (void)state;
    ls_spec s = parse_good("{\"model_type\":\"mistral\"," SMALL ",\"sliding_window\":128}");
    assert_true(!s.tied && !s.qk_norm && !s.qkv_bias && !s.out_bias && !s.mlp_bias);
    assert_int_equal(s.d_head, 16);
    assert_int_equal(s.window_tokens, 128);
    assert_int_equal(n_windowed(&s), 4);
    assert_int_equal(s.n_eos, 1);
    assert_int_equal(s.eos[0], 2); /* the class default */
    s = parse_good("{\"model_type\":\"mistral\"," SMALL ",\"sliding_window\":null,\"eos_token_id\":null}");
    assert_int_equal(s.window_tokens, 0);
    assert_int_equal(n_windowed(&s), 0);
    assert_int_equal(s.n_eos, 0);
    s = parse_good("{\"model_type\":\"mistral\"," SMALL "}");
    assert_int_equal(s.window_tokens, 4096);
    s = parse_good("{\"model_type\":\"mistral\"," SMALL ",\"sliding_window\":8,\"layer_types\":[\"full_attention\","
                   "\"sliding_attention\",\"full_attention\",\"sliding_attention\"]}");
    assert_int_equal(s.window_tokens, 8);
    assert_int_equal(n_windowed(&s), 2);
    assert_true(s.layer_windowed[1] && s.layer_windowed[3]);
    s = parse_good("{\"model_type\":\"mistral\",\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":1,"
                   "\"num_attention_heads\":16,\"vocab_size\":100,\"max_position_embeddings\":512,\"head_dim\":16}");
    assert_int_equal(s.n_kv_heads, 8); /* the class default */
    assert_int_equal(s.d_head, 16);    /* not D / H = 4 */
}

static void llama(void **state) {
    (void)state;
    ls_spec s = parse_good("{\"model_type\":\"llama\"," SMALL ",\"attention_bias\":true,\"mlp_bias\":true,"
                           "\"pretraining_tp\":1,\"partial_rotary_factor\":1.0,\"eos_token_id\":[3,5,7],"
                           "\"architectures\":[\"LlamaForCausalLM\"]}");
    assert_true(s.qkv_bias && s.out_bias && s.mlp_bias && !s.qk_norm && !s.tied);
    assert_int_equal(s.window_tokens, 0);
    assert_int_equal(s.n_eos, 3);
    assert_int_equal(s.eos[2], 7);
    assert_int_equal(s.dtype, LS_F32);
    s = parse_good("{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":1,"
                   "\"num_attention_heads\":4,\"vocab_size\":100,\"max_position_embeddings\":512}");
    assert_int_equal(s.n_kv_heads, 4);
    s = parse_good("{\"model_type\":\"llama\"," SMALL ",\"eos_token_id\":[]}");
    assert_int_equal(s.n_eos, 0);
    s = parse_good("{\"model_type\":\"llama\"," SMALL ",\"layer_types\":[\"full_attention\",\"full_attention\","
                   "\"full_attention\",\"full_attention\"],\"sliding_window\":null,\"torch_dtype\":\"float16\"}");
    assert_int_equal(s.dtype, LS_F16);
}

static void family_table(void **state) {
    (void)state;
    int n = 0;
    for (; ls_families[n] != NULL; n++) {
        assert_ptr_equal(family_find(ls_families[n]->model_type), ls_families[n]);
        assert_non_null(ls_families[n]->read_config);
    }
    assert_int_equal(n, 4);
    assert_null(family_find("gpt2"));
}

static void older_and_newer_form(void **state) {
    (void)state;
    assert_same_text("{\"model_type\":\"qwen3\"," SIZES ",\"rope_theta\":1000000,\"torch_dtype\":\"bfloat16\","
                     "\"rope_scaling\":null,\"use_sliding_window\":true,\"sliding_window\":64,"
                     "\"max_window_layers\":3}",
                     "{\"model_type\":\"qwen3\"," SIZES ",\"dtype\":\"bfloat16\","
                     "\"rope_parameters\":{\"rope_theta\":1000000.0,\"rope_type\":\"default\"},"
                     "\"use_sliding_window\":true,\"sliding_window\":64,\"layer_types\":[\"full_attention\","
                     "\"full_attention\",\"full_attention\",\"sliding_attention\"]}");
    assert_same_text("{\"model_type\":\"llama\"," SIZES ",\"rope_theta\":500000.0,\"torch_dtype\":\"float16\","
                     "\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
                     "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":128}}",
                     "{\"model_type\":\"llama\"," SIZES ",\"dtype\":\"float16\",\"rope_parameters\":{"
                     "\"rope_type\":\"llama3\",\"rope_theta\":500000.0,\"factor\":8.0,\"low_freq_factor\":1.0,"
                     "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":128}}");
    assert_same_text("{\"model_type\":\"qwen2\"," SIZES ",\"rope_theta\":10000.0,"
                     "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":128}}",
                     "{\"model_type\":\"qwen2\"," SIZES ",\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4.0,"
                     "\"beta_fast\":32.0,\"beta_slow\":1.0,\"truncate\":true,"
                     "\"original_max_position_embeddings\":128}}");
    assert_same_text("{\"model_type\":\"mistral\"," SIZES ",\"rope_theta\":10000.0,\"sliding_window\":null,"
                     "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0}}",
                     "{\"model_type\":\"mistral\"," SIZES ",\"sliding_window\":null,"
                     "\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2,\"rope_theta\":10000}}");
    /* dtype wins over torch_dtype, rope_scaling over rope_parameters, an empty rope_scaling over nothing. */
    assert_same_text("{\"model_type\":\"llama\"," SIZES ",\"dtype\":\"float16\",\"torch_dtype\":\"bfloat16\","
                     "\"rope_scaling\":{},\"rope_parameters\":{\"rope_theta\":50}}",
                     "{\"model_type\":\"llama\"," SIZES ",\"dtype\":null,\"torch_dtype\":\"float16\","
                     "\"rope_scaling\":{\"rope_theta\":50,\"rope_type\":\"default\"},"
                     "\"rope_parameters\":{\"rope_theta\":60,\"rope_type\":\"dynamic\"}}");
}

/* ---- Published files --------------------------------------------------------------------------------------------- */

static void published(void **state) {
    (void)state;
    glob_t found;
    if (glob(CONFIGS "/*/*/config.json", 0, NULL, &found) != 0) {
        print_message(CONFIGS " is absent: skipped\n");
        skip();
    }
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char folder[256];
        snprintf(folder, sizeof folder, "%.*s", (int)strlen(found.gl_pathv[i]) - 12, found.gl_pathv[i]);
        ls_error err = {0};
        ls_spec spec;
        ls_status st = spec_read(&spec, folder, &err);
        if (strstr(folder, "A3B") != NULL) {
            assert_int_equal(st, LS_EUNSUPPORTED);
            assert_has(err.text, "config.json: model_type: 'qwen3_moe' is a mixture of experts");
            continue;
        }
        if (st != LS_OK) {
            fail_msg("%s", err.text);
        }
        assert_string_equal(spec.name, strrchr(folder, '/') + 1);
    }
    globfree(&found);
}

static void known_by_name(void **state) {
    (void)state;
    static const char *const names[] = {
        "Qwen/Qwen3-0.6B",
        "Qwen/Qwen3-1.7B",
        "Qwen/Qwen3-4B",
        "Qwen/Qwen3-8B",
        "Qwen/Qwen3-14B",
        "Qwen/Qwen3-32B",
        "mistralai/Mistral-7B-v0.1",
        "mistralai/Mistral-7B-Instruct-v0.2",
        "mistralai/Mistral-7B-Instruct-v0.3",
    };
    bool any = false;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        ls_error err = {0};
        ls_spec full;
        ls_spec plain;
        assert_int_equal(spec_by_name(&full, names[i], &err), LS_OK);
        assert_int_equal(spec_by_name(&plain, strchr(names[i], '/') + 1, &err), LS_OK);
        assert_same(&full, &plain);
        assert_string_equal(full.name, strchr(names[i], '/') + 1);
        char folder[256];
        snprintf(folder, sizeof folder, CONFIGS "/%s", names[i]);
        if (access(folder, R_OK) == 0) {
            ls_spec read;
            assert_int_equal(spec_read(&read, folder, &err), LS_OK);
            assert_same(&full, &read);
            any = true;
        }
    }
    if (!any) {
        print_message(CONFIGS " is absent: values not compared\n");
    }
    ls_error err = {0};
    ls_spec a;
    ls_spec b;
    assert_int_equal(spec_by_name(&a, "Mistral-7B", &err), LS_OK);
    assert_int_equal(spec_by_name(&b, "Mistral-7B-v0.1", &err), LS_OK);
    assert_same(&a, &b);
    ls_spec untouched = a;
    static const char *const strangers[] = {"Qwen3-5B", "mistralai/Qwen3-4B", "Qwen/Qwen/Qwen3-4B", "", "Qwen/"};
    for (size_t i = 0; i < sizeof strangers / sizeof strangers[0]; i++) {
        assert_int_equal(spec_by_name(&a, strangers[i], &err), LS_ENOTFOUND);
        assert_has(err.text, "Qwen3-0.6B");
        assert_has(err.text, "Mistral-7B-Instruct-v0.3");
    }
    assert_memory_equal(&a, &untouched, sizeof a);
}

static void llama_3_1(void **state) {
    (void)state;
    ls_error err = {0};
    ls_spec s;
    if (access(CONFIGS "/meta-llama/Meta-Llama-3.1-8B", R_OK) != 0) {
        print_message(CONFIGS " is absent: skipped\n");
        skip();
    }
    assert_int_equal(spec_read(&s, CONFIGS "/meta-llama/Meta-Llama-3.1-8B//", &err), LS_OK);
    assert_string_equal(s.name, "Meta-Llama-3.1-8B");
    assert_int_equal(s.rope.type, ROPE_LLAMA3);
    assert_int_equal(s.rope.original_max_position, 8192);
    assert_int_equal(s.d_head, 128);
    assert_int_equal(spec_read(&s, CONFIGS "/mistralai/Mistral-Nemo-Instruct-2407", &err), LS_OK);
    assert_int_equal(s.d_head, 128);
    assert_int_equal(s.d_model / s.n_heads, 160);
}

/* Checkpoints that the golden tests and the demo run on. */
static void our_own(void **state) {
    (void)state;
    ls_error err = {0};
    ls_spec spec;
    if (access("demo/config.json", R_OK) == 0 && spec_read(&spec, "demo", &err) != LS_OK) {
        fail_msg("%s", err.text);
    }
    glob_t found;
    if (glob("tests/golden/*/config.json", 0, NULL, &found) != 0) {
        return;
    }
    for (size_t i = 0; i < found.gl_pathc; i++) {
        json_doc doc;
        assert_int_equal(json_doc_read(&doc, found.gl_pathv[i], 1 << 20, &err), LS_OK);
        if (spec_from_json(&spec, &doc, &err) != LS_OK) {
            fail_msg("%s", err.text);
        }
        json_doc_deinit(&doc);
    }
    globfree(&found);
}

/* ---- Refusals ---------------------------------------------------------------------------------------------------- */

/* A good document with one more key, or one key replaced: the text must name `part`. */
typedef struct refusal {
    const char *model_type;
    const char *key, *value; /* JSON; NULL: without the key */
    ls_status status;
    const char *part;
} refusal;

static const refusal REFUSALS[] = {
    /* sizes */
    {"qwen3", "num_hidden_layers", NULL, LS_EFORMAT, "num_hidden_layers: missing"},
    {"qwen3", "num_hidden_layers", "0", LS_EFORMAT, "num_hidden_layers: 0"},
    {"qwen3", "num_hidden_layers", "257", LS_EFORMAT, "num_hidden_layers: 257 is outside 1..256"},
    {"qwen3", "num_hidden_layers", "4.0", LS_EFORMAT, "num_hidden_layers: expected an integer"},
    {"qwen3", "hidden_size", NULL, LS_EFORMAT, "hidden_size: missing"},
    {"qwen3", "hidden_size", "-64", LS_EFORMAT, "hidden_size: -64"},
    {"qwen3", "hidden_size", "4294967296", LS_EFORMAT, "hidden_size: 4294967296"},
    {"qwen3", "hidden_size", "\"64\"", LS_EFORMAT, "hidden_size: expected an integer"},
    {"qwen3", "intermediate_size", NULL, LS_EFORMAT, "intermediate_size: missing"},
    {"qwen3", "intermediate_size", "2147483648", LS_EFORMAT, "intermediate_size: 2147483648"},
    {"qwen3", "num_attention_heads", NULL, LS_EFORMAT, "num_attention_heads: missing"},
    {"qwen3", "num_attention_heads", "1025", LS_EFORMAT, "num_attention_heads: 1025"},
    {"qwen3", "num_key_value_heads", "0", LS_EFORMAT, "num_key_value_heads: 0"},
    {"qwen3", "num_key_value_heads", "3", LS_EFORMAT, "num_key_value_heads: 3 does not divide num_attention_heads = 4"},
    {"qwen3", "num_key_value_heads", "8", LS_EFORMAT, "num_key_value_heads: 8 does not divide"},
    {"qwen3", "num_key_value_heads", NULL, LS_EFORMAT, "num_key_value_heads: 32 does not divide"},
    {"qwen3", "vocab_size", NULL, LS_EFORMAT, "vocab_size: missing"},
    {"qwen3", "vocab_size", "1048577", LS_EFORMAT, "vocab_size: 1048577"},
    {"qwen3", "max_position_embeddings", NULL, LS_EFORMAT, "max_position_embeddings: missing"},
    {"qwen3", "max_position_embeddings", "16777217", LS_EFORMAT, "max_position_embeddings: 16777217"},
    {"qwen3", "head_dim", "0", LS_EFORMAT, "head_dim: 0"},
    {"qwen3", "head_dim", "24", LS_EUNSUPPORTED, "head_dim: 24 is not supported, only multiples of 16 up to 256"},
    {"qwen3", "head_dim", "272", LS_EUNSUPPORTED, "head_dim: 272"},
    {"llama", "hidden_size", "65", LS_EFORMAT, "head_dim: absent, and num_attention_heads = 4 does not divide"},
    {"llama", "hidden_size", "96", LS_EUNSUPPORTED, "head_dim: 24 (hidden_size / num_attention_heads)"},
    {"qwen3", "rms_norm_eps", "0", LS_EFORMAT, "rms_norm_eps: 0"},
    {"qwen3", "rms_norm_eps", "-1e-6", LS_EFORMAT, "rms_norm_eps: -1e-06"},
    {"qwen3", "rms_norm_eps", "\"1e-6\"", LS_EFORMAT, "rms_norm_eps: expected a number"},
    /* what the model is */
    {"gpt2", "x", "0", LS_EUNSUPPORTED, "model_type: 'gpt2' is not supported; supported: qwen3, mistral, llama, qwen2"},
    {"mixtral", "x", "0", LS_EUNSUPPORTED, "model_type: 'mixtral' is a mixture of experts"},
    {"qwen3_moe", "x", "0", LS_EUNSUPPORTED, "model_type: 'qwen3_moe' is a mixture of experts"},
    {"llama", "model_type", NULL, LS_EFORMAT, "model_type: missing"},
    {"llama", "architectures", "[\"LlamaForSequenceClassification\"]", LS_EUNSUPPORTED,
     "architectures: 'LlamaForSequenceClassification'"},
    {"llama", "architectures", "[7]", LS_EUNSUPPORTED, "architectures: '(no string)'"},
    {"llama", "architectures", "\"LlamaForCausalLM\"", LS_EFORMAT, "architectures: expected an array"},
    {"llama", "num_local_experts", "8", LS_EUNSUPPORTED, "num_local_experts: a mixture of experts"},
    {"llama", "num_experts", "128", LS_EUNSUPPORTED, "num_experts: "},
    {"llama", "n_routed_experts", "64", LS_EUNSUPPORTED, "n_routed_experts: "},
    {"llama", "quantization_config", "{\"quant_method\":\"awq\",\"bits\":4}", LS_EUNSUPPORTED,
     "quantization_config: not supported: awq"},
    {"llama", "quantization_config", "[]", LS_EUNSUPPORTED, "quantization_config: not supported"},
    {"llama", "compression_config", "{}", LS_EUNSUPPORTED, "compression_config: "},
    {"llama", "per_layer_config", "{}", LS_EUNSUPPORTED, "per_layer_config: "},
    {"llama", "hidden_act", "\"gelu\"", LS_EUNSUPPORTED, "hidden_act: 'gelu'"},
    {"llama", "hidden_act", "1", LS_EFORMAT, "hidden_act: expected a string"},
    {"llama", "pretraining_tp", "2", LS_EUNSUPPORTED, "pretraining_tp: 2"},
    {"llama", "is_causal", "false", LS_EUNSUPPORTED, "is_causal: false"},
    {"llama", "tie_word_embeddings", "1", LS_EFORMAT, "tie_word_embeddings: expected true or false"},
    {"llama", "dtype", "\"float64\"", LS_EUNSUPPORTED, " dtype: 'float64'"},
    {"llama", "torch_dtype", "\"float8_e4m3fn\"", LS_EUNSUPPORTED, "torch_dtype: 'float8_e4m3fn'"},
    {"llama", "torch_dtype", "16", LS_EFORMAT, "torch_dtype: expected a string"},
    {"mistral", "attention_bias", "true", LS_EUNSUPPORTED, "attention_bias: mistral"},
    {"mistral", "mlp_bias", "true", LS_EUNSUPPORTED, "mlp_bias: mistral"},
    {"qwen2", "mlp_bias", "true", LS_EUNSUPPORTED, "mlp_bias: qwen2"},
    {"qwen3", "mlp_bias", "true", LS_EUNSUPPORTED, "mlp_bias: qwen3"},
    {"qwen3", "attention_bias", "0", LS_EFORMAT, "attention_bias: expected true or false"},
    /* end of sequence */
    {"llama", "eos_token_id", "100", LS_EFORMAT, "eos_token_id: 100 is no token of a vocabulary of 100"},
    {"llama", "eos_token_id", "-1", LS_EFORMAT, "eos_token_id: -1"},
    {"llama", "eos_token_id", "\"</s>\"", LS_EFORMAT, "eos_token_id: expected a token id"},
    {"llama", "eos_token_id", "[1,null]", LS_EFORMAT, "eos_token_id: expected a token id"},
    {"llama", "eos_token_id", "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]", LS_EUNSUPPORTED,
     "eos_token_id: 17 ids, more than 16"},
    /* windows */
    {"mistral", "sliding_window", "0", LS_EFORMAT, "sliding_window: 0"},
    {"mistral", "sliding_window", "\"all\"", LS_EFORMAT, "sliding_window: expected an integer"},
    {"llama", "sliding_window", "4096", LS_EUNSUPPORTED, "sliding_window: llama"},
    {"qwen3", "max_window_layers", "-1", LS_EFORMAT, "max_window_layers: -1"},
    {"qwen3", "use_sliding_window", "1", LS_EFORMAT, "use_sliding_window: expected true or false"},
    {"qwen3", "layer_types", "[\"full_attention\"]", LS_EFORMAT,
     "layer_types: 1 entries, expected num_hidden_layers = 4"},
    {"qwen3", "layer_types", "[1,2,3,4]", LS_EFORMAT, "layer_types: entry 0: expected a string"},
    {"qwen3", "layer_types", "{}", LS_EFORMAT, "layer_types: expected an array"},
    {"qwen3", "layer_types", "[\"full_attention\",\"full_attention\",\"chunked_attention\",\"full_attention\"]",
     LS_EUNSUPPORTED, "layer_types: entry 2: 'chunked_attention'"},
    {"qwen3", "layer_types", "[\"full_attention\",\"sliding_attention\",\"full_attention\",\"full_attention\"]",
     LS_EUNSUPPORTED, "layer_types: entry 1: sliding_attention, but qwen3 has no sliding_window"},
    {"llama", "layer_types",
     "[\"sliding_attention\",\"sliding_attention\",\"sliding_attention\",\"sliding_attention\"]", LS_EUNSUPPORTED,
     "layer_types: entry 0: sliding_attention, but llama"},
    /* rope */
    {"llama", "rope_theta", "0", LS_EFORMAT, "rope_theta: 0"},
    {"llama", "rope_theta", "1e40", LS_EFORMAT, "rope_theta: 1e+40"},
    {"llama", "rope_theta", "\"1e4\"", LS_EFORMAT, "rope_theta: expected a number"},
    {"llama", "partial_rotary_factor", "0.5", LS_EUNSUPPORTED, "partial_rotary_factor: 0.5"},
    {"llama", "rope_parameters", "{\"partial_rotary_factor\":0.25}", LS_EUNSUPPORTED, "partial_rotary_factor: 0.25"},
    {"llama", "rope_parameters", "[]", LS_EFORMAT, "rope_parameters: expected an object"},
    {"llama", "rope_parameters", "{\"full_attention\":{\"rope_theta\":1e4}}", LS_EUNSUPPORTED, "rope_parameters: "},
    {"llama", "rope_scaling", "\"linear\"", LS_EFORMAT, "rope_scaling: expected an object"},
    {"llama", "rope_scaling", "{\"type\":\"dynamic\",\"factor\":2}", LS_EUNSUPPORTED, " type: rope type 'dynamic'"},
    {"llama", "rope_scaling", "{\"rope_type\":\"longrope\",\"factor\":2}", LS_EUNSUPPORTED,
     "rope_type: rope type 'longrope'"},
    {"llama", "rope_scaling", "{\"type\":\"mrope\"}", LS_EUNSUPPORTED, " type: rope type 'mrope'"},
    {"llama", "rope_scaling", "{\"rope_type\":5}", LS_EFORMAT, "rope_type: expected a string"},
    {"llama", "rope_scaling", "{\"type\":\"linear\"}", LS_EFORMAT, " factor: missing"},
    {"llama", "rope_scaling", "{\"type\":\"linear\",\"factor\":0}", LS_EFORMAT, " factor: 0 is outside"},
    {"llama", "rope_scaling", "{\"type\":\"linear\",\"factor\":-2}", LS_EFORMAT, " factor: -2 is outside"},
    {"llama", "rope_scaling", "{\"type\":\"llama3\",\"factor\":8,\"high_freq_factor\":4}", LS_EFORMAT,
     "low_freq_factor: missing"},
    {"llama", "rope_scaling", "{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1}", LS_EFORMAT,
     "high_freq_factor: missing"},
    {"llama", "rope_scaling", "{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4}",
     LS_EFORMAT, "high_freq_factor: 4, expected more than low_freq_factor = 4"},
    {"llama", "rope_scaling", "{\"type\":\"yarn\",\"factor\":8,\"original_max_position_embeddings\":0}", LS_EFORMAT,
     "original_max_position_embeddings: 0"},
    {"llama", "rope_scaling", "{\"type\":\"yarn\",\"factor\":8,\"beta_fast\":1,\"beta_slow\":2}", LS_EFORMAT,
     "beta_fast: 1, expected at least beta_slow = 2"},
    {"llama", "rope_scaling", "{\"type\":\"yarn\",\"factor\":8,\"attention_factor\":0}", LS_EFORMAT,
     "attention_factor: 0 is outside"},
    {"llama", "rope_scaling", "{\"type\":\"yarn\",\"factor\":8,\"mscale\":-1}", LS_EFORMAT, "mscale"},
    {"llama", "rope_scaling", "{\"type\":\"yarn\",\"factor\":8,\"truncate\":1}", LS_EFORMAT,
     "truncate: expected true or false"},
};

static void refusals(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof REFUSALS / sizeof REFUSALS[0]; i++) {
        const refusal *r = &REFUSALS[i];
        char base[1024];
        snprintf(base, sizeof base, "{\"model_type\":\"%s\",%s}", r->model_type,
                 strcmp(r->model_type, "llama") == 0 ? SMALL : SIZES);
        json_doc doc;
        ls_error err = {0};
        assert_int_equal(json_doc_parse(&doc, "x/config.json", base, strlen(base), &err), LS_OK);
        json_object_del(doc.root, r->key);
        if (r->value != NULL) {
            json_t *value = json_loads(r->value, JSON_DECODE_ANY, NULL);
            assert_non_null(value);
            json_object_set_new(doc.root, r->key, value);
        }
        ls_spec spec;
        ls_spec untouched;
        memset(&spec, 0x5a, sizeof spec);
        memset(&untouched, 0x5a, sizeof untouched);
        ls_status st = spec_from_json(&spec, &doc, &err);
        if (st != r->status) {
            fail_msg("%s %s %s: expected %s, found %s: %s", r->model_type, r->key, r->value ? r->value : "(none)",
                     ls_status_name(r->status), ls_status_name(st), err.text);
        }
        assert_has(err.text, "config.json: ");
        assert_has(err.text, r->part);
        assert_memory_equal(&spec, &untouched, sizeof spec);
        assert_int_equal(spec_from_json(&spec, &doc, NULL), r->status);
        json_doc_deinit(&doc);
    }
}

static void bad_files(void **state) {
    (void)state;
    ls_error err = {0};
    ls_spec spec;
    assert_int_equal(parse(&spec, "[]", &err), LS_EFORMAT);
    assert_has(err.text, "config.json: expected a JSON object");
    assert_int_equal(parse(&spec, "{}", &err), LS_EFORMAT);
    assert_has(err.text, "model_type: missing");
    assert_int_equal(spec_read(&spec, "/nonexistent", &err), LS_ENOTFOUND);
    assert_has(err.text, "/nonexistent/config.json");
}

/* ---- Rotary frequencies ------------------------------------------------------------------------------------------ */

/* As near as two f32 roundings of the same value: 1 ulp, or 1e-7 of it. */
static void assert_near(const char *name, int i, float found, float expected) {
    bool near = found == expected || nextafterf(expected, found) == found;
    if (!near && !(fabsf(found - expected) <= 1e-7f * fabsf(expected))) {
        fail_msg("%s[%d]: expected %.9g, found %.9g", name, i, expected, found);
    }
}

static void rope_golden(void **state) {
    (void)state;
    ls_error err = {0};
    json_doc golden;
    if (json_doc_read(&golden, "tests/golden/rope.json", 1 << 20, &err) != LS_OK) {
        fail_msg("%s", err.text);
    }
    assert_true(json_array_size(golden.root) >= 10);
    unsigned types_seen = 0;
    for (size_t i = 0; i < json_array_size(golden.root); i++) {
        const json_t *item = json_array_get(golden.root, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        const json_t *expected = json_object_get(item, "inv_freq");
        json_doc config = {.root = json_object_get(item, "config"), .name = "rope.json"};
        ls_spec spec;
        if (spec_from_json(&spec, &config, &err) != LS_OK) {
            fail_msg("%s: %s", name, err.text);
        }
        types_seen |= 1u << spec.rope.type;
        float inv_freq[128];
        float factor = 0;
        assert_int_equal(json_array_size(expected), spec.d_head / 2);
        rope_frequencies(&spec.rope, spec.d_head, spec.max_position_tokens, inv_freq, &factor);
        for (int j = 0; j < spec.d_head / 2; j++) {
            assert_near(name, j, inv_freq[j], (float)json_real_value(json_array_get(expected, (size_t)j)));
        }
        assert_near(name, -1, factor, (float)json_real_value(json_object_get(item, "attention_factor")));
    }
    assert_int_equal(types_seen, 15);
    json_doc_deinit(&golden);
}

/* ---- generation_config.json -------------------------------------------------------------------------------------- */

static ls_status read_generation(ls_generation_defaults *out, const char *text, ls_error *err) {
    char folder[] = "/tmp/lockstep-spec-XXXXXX";
    assert_non_null(mkdtemp(folder));
    char path[64];
    snprintf(path, sizeof path, "%s/generation_config.json", folder);
    if (text != NULL) {
        FILE *file = fopen(path, "wb");
        assert_non_null(file);
        assert_true(fputs(text, file) >= 0);
        assert_int_equal(fclose(file), 0);
    }
    ls_status st = generation_defaults_read(out, folder, 100, err);
    unlink(path);
    rmdir(folder);
    return st;
}

static void generation_good(void **state) {
    (void)state;
    ls_error err = {0};
    ls_generation_defaults d;
    memset(&d, 0xff, sizeof d);
    assert_int_equal(read_generation(&d, NULL, &err), LS_OK);
    assert_true(!d.has_temperature && !d.has_top_k && !d.has_top_p && d.n_eos == 0);
    assert_string_equal(err.text, "");
    assert_int_equal(read_generation(&d,
                                     "{\"do_sample\":true,\"temperature\":0.6,\"top_k\":20,\"top_p\":0.95,"
                                     "\"eos_token_id\":[45,43]}",
                                     &err),
                     LS_OK);
    assert_true(d.has_temperature && d.has_top_k && d.has_top_p);
    assert_true(d.temperature == 0.6 && d.top_k == 20 && d.top_p == 0.95);
    assert_int_equal(d.n_eos, 2);
    assert_int_equal(d.eos[1], 43);
    assert_int_equal(read_generation(&d, "{\"temperature\":null,\"top_k\":-1,\"eos_token_id\":7}", &err), LS_OK);
    assert_true(!d.has_temperature && d.has_top_k && d.top_k == 0 && !d.has_top_p && d.n_eos == 1);
    assert_int_equal(read_generation(&d, "{\"do_sample\":false,\"temperature\":0.6,\"top_k\":20}", &err), LS_OK);
    assert_true(d.has_temperature && d.temperature == 0 && !d.has_top_k);
    assert_int_equal(read_generation(&d,
                                     "{\"do_sample\":false,\"min_p\":0.1,\"top_p\":0.5,"
                                     "\"repetition_penalty\":1.05}",
                                     &err),
                     LS_OK);
    assert_true(d.temperature == 0 && !d.has_min_p && d.has_repetition_penalty && d.repetition_penalty == 1.05);
    assert_int_equal(read_generation(&d, "{\"min_p\":0.1}", &err), LS_OK);
    assert_true(d.has_min_p && d.min_p == 0.1 && !d.has_repetition_penalty);
}

static void generation_bad(void **state) {
    (void)state;
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"", "JSON"},
        {"[]", "expected a JSON object"},
        {"{\"temperature\":-1}", "temperature: -1"},
        {"{\"temperature\":\"hot\"}", "temperature: expected a number"},
        {"{\"top_p\":0}", "top_p: 0"},
        {"{\"top_p\":1.5}", "top_p: 1.5"},
        {"{\"top_k\":-2}", "top_k: -2"},
        {"{\"top_k\":2.5}", "top_k: expected an integer"},
        {"{\"min_p\":1.5}", "min_p: 1.5"},
        {"{\"repetition_penalty\":0}", "repetition_penalty: 0"},
        {"{\"do_sample\":1}", "do_sample: expected true or false"},
        {"{\"eos_token_id\":[100]}", "eos_token_id: 100"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ls_error err = {0};
        ls_generation_defaults d;
        ls_generation_defaults untouched;
        memset(&d, 0x5a, sizeof d);
        memset(&untouched, 0x5a, sizeof untouched);
        assert_int_equal(read_generation(&d, cases[i].text, &err), LS_EFORMAT);
        assert_has(err.text, "generation_config.json");
        assert_has(err.text, cases[i].part);
        assert_memory_equal(&d, &untouched, sizeof d);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qwen3),       cmocka_unit_test(qwen2),           cmocka_unit_test(mistral),
        cmocka_unit_test(llama),       cmocka_unit_test(family_table),    cmocka_unit_test(older_and_newer_form),
        cmocka_unit_test(published),   cmocka_unit_test(known_by_name),   cmocka_unit_test(llama_3_1),
        cmocka_unit_test(our_own),     cmocka_unit_test(refusals),        cmocka_unit_test(bad_files),
        cmocka_unit_test(rope_golden), cmocka_unit_test(generation_good), cmocka_unit_test(generation_bad),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
