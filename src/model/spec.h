/*
 * The spec: what the model is. Read from config.json (Hugging Face), in the older form (rope_theta, rope_scaling,
 * torch_dtype) and the newer one (rope_parameters, dtype), or known by name for --load-format dummy.
 *
 * Formulas: transformers' modeling_qwen3.py, modeling_mistral.py, modeling_llama.py, modeling_qwen2.py and
 * modeling_rope_utils.py. A value that we cannot honour is an error that names the key, never a silent default.
 */
#ifndef LS_MODEL_SPEC_H
#define LS_MODEL_SPEC_H

#include "base/error.h"
#include "base/json.h"

#define SPEC_MAX_LAYERS 256
#define SPEC_MAX_EOS 16

typedef enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN } rope_type;

/* Rotary embedding. Keys of HF's rope_parameters/rope_scaling; unused ones are 0. */
typedef struct ls_rope {
    rope_type type;
    double theta;
    double factor;                 /* linear, llama3, yarn; yarn 0: max_position / original_max_position */
    double low_freq_factor;        /* llama3 */
    double high_freq_factor;       /* llama3 */
    double beta_fast, beta_slow;   /* yarn */
    double attention_factor;       /* yarn; 0: computed from factor, mscale and mscale_all_dim as HF does */
    double mscale, mscale_all_dim; /* yarn */
    bool truncate;                 /* yarn: round the correction range to integers (HF's default: true) */
    int64_t original_max_position; /* llama3, yarn */
} ls_rope;

typedef struct ls_spec {
    const struct ls_family *family; /* never NULL in a spec that was read */
    char name[96];                  /* folder or model name, for messages */
    int n_layers;                   /* L */
    int d_model;                    /* D */
    int d_ffn;                      /* F */
    int n_heads;                    /* H: query heads */
    int n_kv_heads;                 /* K */
    int d_head;                     /* d: head_dim, or D / H where the key is absent (qwen3: 128, HF's default) */
    int n_vocab;                    /* V */
    int max_position_tokens;        /* max_position_embeddings */
    double norm_eps;
    bool tied;               /* tie_word_embeddings: the head is the embedding */
    bool qk_norm;            /* qwen3 */
    bool qkv_bias, out_bias; /* qwen2: qkv; llama attention_bias: all four */
    bool mlp_bias;           /* llama */
    int window_tokens;       /* sliding window W: a token sees itself and the W-1 before; 0: no layer has one */
    bool layer_windowed[SPEC_MAX_LAYERS]; /* which layers use it */
    ls_rope rope;
    ls_dtype dtype; /* the checkpoint's own; LS_F32 when config.json does not say */
    int n_eos;
    int32_t eos[SPEC_MAX_EOS]; /* config.json's eos_token_id; generation_config.json may replace them */
} ls_spec;

/* From <folder>/config.json; the folder names the model. A malformed or contradictory value is LS_EFORMAT, one that is
 * well-formed but that we cannot honour LS_EUNSUPPORTED; both name the key. */
ls_status spec_read(ls_spec *spec, const char *folder, ls_error *err);
/* From a parsed document (tests, fuzzing). */
ls_status spec_from_json(ls_spec *spec, const json_doc *doc, ls_error *err);

/* Shapes known by name, with or without the organisation ("Qwen/Qwen3-4B", "Qwen3-4B", "mistralai/Mistral-7B-v0.1").
 * LS_ENOTFOUND lists the known names. */
ls_status spec_by_name(ls_spec *spec, const char *name, ls_error *err);

/* Frequencies of the rotary embedding: inv_freq[d_head / 2] in f32 as HF computes them, and the factor that
 * multiplies cos and sin (1 except for yarn). d_head is that of a spec, so at most 256. */
void rope_frequencies(const ls_rope *rope, int d_head, int max_position_tokens, float *inv_freq,
                      float *attention_factor);

/* Defaults that generation_config.json asks for; a value counts only where its has_ is true. "do_sample": false asks
 * for greedy sampling and reads as temperature 0; penalties hold there too. */
typedef struct ls_generation_defaults {
    bool has_temperature, has_top_k, has_top_p, has_min_p, has_repetition_penalty;
    double temperature;
    int64_t top_k;             /* 0: no limit */
    double top_p;              /* in (0, 1] */
    double min_p;              /* in [0, 1] */
    double repetition_penalty; /* in [0.01, 100] */
    int n_eos;                 /* 0: the file does not say, use the spec's */
    int32_t eos[SPEC_MAX_EOS];
} ls_generation_defaults;

/* <folder>/generation_config.json; an absent file gives zeroed defaults. */
ls_status generation_defaults_read(ls_generation_defaults *out, const char *folder, int n_vocab, ls_error *err);

#endif
