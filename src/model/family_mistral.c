/* Mistral: no biases; a sliding window on every layer, unless sliding_window is null or layer_types says otherwise
 * (transformers' own Mistral class ignores layer_types with a warning; Ministral's class honours it as we do). */
#include "model/family.h"
#include "model/spec_read.h"

#define DEFAULT_KV_HEADS 8
#define DEFAULT_WINDOW 4096

static ls_status read_config(ls_spec *spec, const json_doc *doc, ls_error *err) {
    if (key_absent(doc, "eos_token_id") && spec->n_vocab > 2) {
        spec->eos[0] = 2;
        spec->n_eos = 1;
    }
    if (key_absent(doc, "num_key_value_heads")) {
        spec->n_kv_heads = DEFAULT_KV_HEADS;
    }
    TRY(refuse_true(doc, "attention_bias", "mistral", err));
    TRY(refuse_true(doc, "mlp_bias", "mistral", err));
    int64_t window_tokens = key_absent(doc, "sliding_window") ? DEFAULT_WINDOW : 0;
    TRY(json_find_int(doc, doc->root, "sliding_window", 1, INT32_MAX, &window_tokens, err));
    return read_windows(spec, doc, window_tokens, 0, err);
}

static ls_status layer(program_builder *builder, int i_layer, ls_error *err) {
    const ls_spec *spec = builder_spec(builder);
    int window = spec->layer_windowed[i_layer] ? spec->window_tokens : 0;
    TRY(build_qkv(builder, i_layer, false, false, err));
    TRY(build_attn(builder, i_layer, window, err));
    TRY(build_out(builder, i_layer, false, err));
    TRY(build_ffn_in(builder, i_layer, false, err));
    return build_ffn_out(builder, i_layer, false, err);
}

const ls_family family_mistral = {
    .model_type = "mistral",
    .architecture = "MistralForCausalLM",
    .read_config = read_config,
    .layer = layer,
};
