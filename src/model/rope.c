/*
 * Rotary embedding: reading its parameters, and its frequencies.
 *
 * Formulas and their rounding follow transformers' modeling_rope_utils.py, which works in f32 tensors with Python
 * (double) scalars: a scalar rounds to f32 where it meets a tensor. The order of operations below is theirs, so that
 * frequencies agree to an ulp and long contexts see the same angles.
 */
#include <math.h>
#include <string.h>

#include "model/spec_read.h"

#define MAX_D_HEAD 256 /* as spec.c checks */
#define MIN_FACTOR 1e-6
#define MAX_FACTOR 1e9

/* ---- Reading ----------------------------------------------------------------------------------------------------- */

/* Leaves *out alone where the key is absent or null. The bounds keep every formula below finite in f32. */
static ls_status find_positive(const json_doc *doc, const json_t *object, const char *key, double *out, ls_error *err) {
    double value = 1;
    TRY(json_find_real(doc, object, key, &value, err));
    if (value < MIN_FACTOR || value > MAX_FACTOR) {
        return error_set(err, LS_EFORMAT, "%s: %s: %g is outside %g..%g", doc->name, key, value, MIN_FACTOR,
                         MAX_FACTOR);
    }
    TRY(json_find_real(doc, object, key, out, err));
    return LS_OK;
}

static ls_status get_positive(const json_doc *doc, const json_t *object, const char *key, double *out, ls_error *err) {
    double value = 0;
    TRY(find_positive(doc, object, key, &value, err));
    if (value == 0) {
        return error_set(err, LS_EFORMAT, "%s: %s: missing, but the rope type needs it", doc->name, key);
    }
    *out = value;
    return LS_OK;
}

static ls_status refuse_partial(const json_doc *doc, const json_t *object, ls_error *err) {
    double factor = 1;
    TRY(json_find_real(doc, object, "partial_rotary_factor", &factor, err));
    return factor == 1 ? LS_OK : REFUSE(doc, "partial_rotary_factor", "%g is not supported, only 1 is", factor);
}

/* "rope_type", or the older "type". */
static ls_status read_type(rope_type *type, const json_doc *doc, const json_t *object, ls_error *err) {
    static const char *const names[] = {
        [ROPE_DEFAULT] = "default", [ROPE_LINEAR] = "linear", [ROPE_LLAMA3] = "llama3", [ROPE_YARN] = "yarn"};
    const char *key = json_object_get(object, "rope_type") ? "rope_type" : "type";
    const char *name = "default";
    TRY(json_find_string(doc, object, key, &name, err));
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(name, names[i]) == 0) {
            *type = (rope_type)i;
            return LS_OK;
        }
    }
    return REFUSE(doc, key, "rope type '%.60s' is not supported, only default, linear, llama3 and yarn are", name);
}

static ls_status read_original_max(ls_rope *rope, const json_doc *doc, const json_t *object, int max_position_tokens,
                                   ls_error *err) {
    const char *key = "original_max_position_embeddings";
    rope->original_max_position = max_position_tokens;
    TRY(json_find_int(doc, object, key, 1, SPEC_MAX_POSITIONS, &rope->original_max_position, err));
    return json_find_int(doc, doc->root, key, 1, SPEC_MAX_POSITIONS, &rope->original_max_position, err);
}

static ls_status read_llama3(ls_rope *rope, const json_doc *doc, const json_t *object, ls_error *err) {
    TRY(get_positive(doc, object, "factor", &rope->factor, err));
    TRY(get_positive(doc, object, "low_freq_factor", &rope->low_freq_factor, err));
    TRY(get_positive(doc, object, "high_freq_factor", &rope->high_freq_factor, err));
    if (rope->high_freq_factor <= rope->low_freq_factor) {
        return error_set(err, LS_EFORMAT, "%s: high_freq_factor: %g, expected more than low_freq_factor = %g",
                         doc->name, rope->high_freq_factor, rope->low_freq_factor);
    }
    return LS_OK;
}

static ls_status read_yarn(ls_rope *rope, const json_doc *doc, const json_t *object, ls_error *err) {
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    rope->truncate = true;
    TRY(find_positive(doc, object, "factor", &rope->factor, err));
    TRY(find_positive(doc, object, "beta_fast", &rope->beta_fast, err));
    TRY(find_positive(doc, object, "beta_slow", &rope->beta_slow, err));
    if (rope->beta_fast < rope->beta_slow) {
        return error_set(err, LS_EFORMAT, "%s: beta_fast: %g, expected at least beta_slow = %g", doc->name,
                         rope->beta_fast, rope->beta_slow);
    }
    TRY(find_positive(doc, object, "attention_factor", &rope->attention_factor, err));
    TRY(json_find_real(doc, object, "mscale", &rope->mscale, err));
    TRY(json_find_real(doc, object, "mscale_all_dim", &rope->mscale_all_dim, err));
    if (fmin(rope->mscale, rope->mscale_all_dim) < 0 || fmax(rope->mscale, rope->mscale_all_dim) > MAX_FACTOR) {
        return error_set(err, LS_EFORMAT, "%s: mscale, mscale_all_dim: %g and %g, expected 0..%g", doc->name,
                         rope->mscale, rope->mscale_all_dim, MAX_FACTOR);
    }
    return json_find_bool(doc, object, "truncate", &rope->truncate, err);
}

/* transformers 5 keeps one set of parameters per layer type in some models; ours have one for all layers. */
static ls_status refuse_per_layer(const json_doc *doc, const json_t *object, const char *key, ls_error *err) {
    if (json_object_get(object, "full_attention") != NULL || json_object_get(object, "sliding_attention") != NULL) {
        return REFUSE(doc, key, "%s", "a rotary embedding for each layer type is not supported");
    }
    return LS_OK;
}

ls_status rope_read(ls_rope *rope, const json_doc *doc, int max_position_tokens, ls_error *err) {
    /* rope_scaling wins where both are there, as in transformers. No object at all reads as an empty one. */
    const char *key = "rope_scaling";
    json_t *object = NULL;
    TRY(json_find_object(doc, doc->root, key, &object, err));
    if (json_object_size(object) == 0) {
        key = "rope_parameters";
        TRY(json_find_object(doc, doc->root, key, &object, err));
    }
    TRY(refuse_per_layer(doc, object, key, err));
    TRY(refuse_partial(doc, doc->root, err));
    TRY(refuse_partial(doc, object, err));
    ls_rope fresh = {.theta = 10000};
    TRY(json_find_real(doc, doc->root, "rope_theta", &fresh.theta, err));
    TRY(json_find_real(doc, object, "rope_theta", &fresh.theta, err));
    if (fresh.theta <= 1 || fresh.theta > 1e30) { /* yarn divides by its logarithm; f32 must hold it */
        return error_set(err, LS_EFORMAT, "%s: rope_theta: %g is outside 1..1e30", doc->name, fresh.theta);
    }
    TRY(read_type(&fresh.type, doc, object, err));
    switch (fresh.type) {
    case ROPE_DEFAULT:
        break;
    case ROPE_LINEAR:
        TRY(get_positive(doc, object, "factor", &fresh.factor, err));
        break;
    case ROPE_LLAMA3:
        TRY(read_llama3(&fresh, doc, object, err));
        TRY(read_original_max(&fresh, doc, object, max_position_tokens, err));
        break;
    case ROPE_YARN:
        TRY(read_yarn(&fresh, doc, object, err));
        TRY(read_original_max(&fresh, doc, object, max_position_tokens, err));
        break;
    }
    *rope = fresh;
    return LS_OK;
}

/* ---- Frequencies ------------------------------------------------------------------------------------------------- */

static void scale_llama3(const ls_rope *rope, int n, float *inv_freq) {
    float original = (float)rope->original_max_position;
    float low_wavelen = (float)((double)rope->original_max_position / rope->low_freq_factor);
    float high_wavelen = (float)((double)rope->original_max_position / rope->high_freq_factor);
    float low = (float)rope->low_freq_factor;
    float span = (float)(rope->high_freq_factor - rope->low_freq_factor);
    float factor = (float)rope->factor;
    for (int i = 0; i < n; i++) {
        float wavelen = (float)(2 * M_PI) / inv_freq[i];
        if (wavelen > low_wavelen) {
            inv_freq[i] = inv_freq[i] / factor;
        } else if (wavelen >= high_wavelen) {
            float smooth = (original / wavelen - low) / span;
            inv_freq[i] = (1.0f - smooth) * inv_freq[i] / factor + smooth * inv_freq[i];
        }
    }
}

static double yarn_mscale(double scale, double mscale) {
    return scale <= 1 ? 1.0 : 0.1 * mscale * log(scale) + 1.0;
}

/* The dimension that turns n_rotations times over the original context. */
static double yarn_correction_dim(const ls_rope *rope, double n_rotations, int d_head) {
    return d_head * log((double)rope->original_max_position / (n_rotations * 2 * M_PI)) / (2 * log(rope->theta));
}

static void scale_yarn(const ls_rope *rope, double factor, int d_head, const float *pos_freq, float *inv_freq) {
    double low = yarn_correction_dim(rope, rope->beta_fast, d_head);
    double high = yarn_correction_dim(rope, rope->beta_slow, d_head);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, d_head - 1);
    if (low == high) {
        high += 0.001;
    }
    for (int i = 0; i < d_head / 2; i++) {
        float ramp = ((float)i - (float)low) / (float)(high - low);
        float keep = 1.0f - fminf(fmaxf(ramp, 0.0f), 1.0f);
        float interpolated = 1.0f / ((float)factor * pos_freq[i]);
        inv_freq[i] = interpolated * (1.0f - keep) + 1.0f / pos_freq[i] * keep;
    }
}

static double yarn_attention_factor(const ls_rope *rope, double factor) {
    if (rope->attention_factor > 0) {
        return rope->attention_factor;
    }
    if (rope->mscale > 0 && rope->mscale_all_dim > 0) {
        return yarn_mscale(factor, rope->mscale) / yarn_mscale(factor, rope->mscale_all_dim);
    }
    return yarn_mscale(factor, 1);
}

void rope_frequencies(const ls_rope *rope, int d_head, int max_position_tokens, float *inv_freq,
                      float *attention_factor) {
    float pos_freq[MAX_D_HEAD / 2];
    int n = d_head / 2;
    for (int i = 0; i < n; i++) {
        /* Through double: the nearest f32 to the exact power of the f32 operands. */
        float exponent = (float)(2 * i) / (float)d_head;
        pos_freq[i] = (float)pow((float)rope->theta, exponent);
        inv_freq[i] = 1.0f / pos_freq[i];
    }
    *attention_factor = 1.0f;
    switch (rope->type) {
    case ROPE_DEFAULT:
        break;
    case ROPE_LINEAR:
        for (int i = 0; i < n; i++) {
            inv_freq[i] = inv_freq[i] / (float)rope->factor;
        }
        break;
    case ROPE_LLAMA3:
        scale_llama3(rope, n, inv_freq);
        break;
    case ROPE_YARN: {
        double ratio = (double)max_position_tokens / (double)rope->original_max_position;
        double factor = rope->factor > 0 ? rope->factor : ratio;
        scale_yarn(rope, factor, d_head, pos_freq, inv_freq);
        *attention_factor = (float)yarn_attention_factor(rope, factor);
        break;
    }
    }
}
