/*
 * Models known by name, for --load-format dummy and plans without a checkpoint. The values are those of the published
 * config.json files; tests/unit/test_spec.c compares them.
 */
#include <stdio.h>
#include <string.h>

#include "model/family.h"

typedef struct shape {
    const char *organisation, *name;
    const ls_family *family;
    int n_layers, d_model, d_ffn, n_heads, n_kv_heads, n_vocab, max_position_tokens;
    int window_tokens; /* on every layer */
    double theta;
    bool tied;
} shape;

#define QWEN3(name, n_layers, d_model, d_ffn, n_heads, tied)                                                           \
    { "Qwen", name, &family_qwen3, n_layers, d_model, d_ffn, n_heads, 8, 151936, 40960, 0, 1e6, tied }
#define MISTRAL_7B(name, n_vocab, window_tokens, theta)                                                                \
    { "mistralai", name, &family_mistral, 32, 4096, 14336, 32, 8, n_vocab, 32768, window_tokens, theta, false }

static const shape SHAPES[] = {
    /*                    L   D     F      H  tied */
    QWEN3("Qwen3-0.6B", 28, 1024, 3072, 16, true),
    QWEN3("Qwen3-1.7B", 28, 2048, 6144, 16, true),
    QWEN3("Qwen3-4B", 36, 2560, 9728, 32, true),
    QWEN3("Qwen3-8B", 36, 4096, 12288, 32, false),
    QWEN3("Qwen3-14B", 40, 5120, 17408, 40, false),
    QWEN3("Qwen3-32B", 64, 5120, 25600, 64, false),
    /*                                      V      W     theta */
    MISTRAL_7B("Mistral-7B", 32000, 4096, 1e4), /* plain: v0.1 */
    MISTRAL_7B("Mistral-7B-v0.1", 32000, 4096, 1e4),
    MISTRAL_7B("Mistral-7B-Instruct-v0.2", 32000, 0, 1e6),
    MISTRAL_7B("Mistral-7B-Instruct-v0.3", 32768, 0, 1e6),
};

#define N_SHAPES (sizeof SHAPES / sizeof SHAPES[0])
#define D_HEAD 128 /* of all of them */
#define QWEN3_EOS 151645
#define MISTRAL_EOS 2

static const shape *find_shape(const char *name) {
    for (size_t i = 0; i < N_SHAPES; i++) {
        const shape *s = &SHAPES[i];
        size_t n = strlen(s->organisation);
        bool qualified = strncmp(name, s->organisation, n) == 0 && name[n] == '/';
        if (strcmp(qualified ? name + n + 1 : name, s->name) == 0) {
            return s;
        }
    }
    return NULL;
}

static ls_status unknown_name(const char *name, ls_error *err) {
    char known[256];
    size_t used = 0;
    for (size_t i = 0; i < N_SHAPES && used < sizeof known; i++) {
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", SHAPES[i].name);
    }
    return error_set(err, LS_ENOTFOUND, "'%.120s' is no model known by name; known: %s", name, known);
}

ls_status spec_by_name(ls_spec *spec, const char *name, ls_error *err) {
    const shape *s = find_shape(name);
    if (s == NULL) {
        return unknown_name(name, err);
    }
    bool is_qwen3 = s->family == &family_qwen3;
    ls_spec fresh = {
        .family = s->family,
        .n_layers = s->n_layers,
        .d_model = s->d_model,
        .d_ffn = s->d_ffn,
        .n_heads = s->n_heads,
        .n_kv_heads = s->n_kv_heads,
        .d_head = D_HEAD,
        .n_vocab = s->n_vocab,
        .max_position_tokens = s->max_position_tokens,
        .norm_eps = is_qwen3 ? 1e-6 : 1e-5,
        .tied = s->tied,
        .qk_norm = is_qwen3,
        .window_tokens = s->window_tokens,
        .rope = {.type = ROPE_DEFAULT, .theta = s->theta},
        .dtype = LS_BF16,
        .n_eos = 1,
        .eos = {is_qwen3 ? QWEN3_EOS : MISTRAL_EOS},
    };
    snprintf(fresh.name, sizeof fresh.name, "%s", s->name);
    for (int i = 0; i < fresh.n_layers; i++) {
        fresh.layer_windowed[i] = fresh.window_tokens > 0;
    }
    *spec = fresh;
    return LS_OK;
}
