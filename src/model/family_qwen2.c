/* Qwen2 and Qwen2.5: biases on q, k and v always, never on the output projection. */
#include "model/family.h"
#include "model/spec_read.h"

#define DEFAULT_KV_HEADS 32
#define DEFAULT_WINDOW 4096
#define DEFAULT_MAX_WINDOW_LAYERS 28

ls_status read_qwen_windows(ls_spec *spec, const json_doc *doc, ls_error *err) {
    bool use_sliding_window = false;
    int64_t window_tokens = key_absent(doc, "sliding_window") ? DEFAULT_WINDOW : 0;
    int64_t first_layer = DEFAULT_MAX_WINDOW_LAYERS;
    TRY(json_find_bool(doc, doc->root, "use_sliding_window", &use_sliding_window, err));
    TRY(json_find_int(doc, doc->root, "sliding_window", 1, INT32_MAX, &window_tokens, err));
    TRY(json_find_int(doc, doc->root, "max_window_layers", 0, INT32_MAX, &first_layer, err));
    return read_windows(spec, doc, use_sliding_window ? window_tokens : 0, first_layer, err);
}

static ls_status read_config(ls_spec *spec, const json_doc *doc, ls_error *err) {
    if (key_absent(doc, "num_key_value_heads")) {
        spec->n_kv_heads = DEFAULT_KV_HEADS;
    }
    TRY(refuse_true(doc, "mlp_bias", "qwen2", err));
    spec->qkv_bias = true;
    return read_qwen_windows(spec, doc, err);
}

static ls_status layer(program_builder *builder, int i_layer, ls_error *err) {
    const ls_spec *spec = builder_spec(builder);
    int window = spec->layer_windowed[i_layer] ? spec->window_tokens : 0;
    TRY(build_qkv(builder, i_layer, true, false, err));
    TRY(build_attn(builder, i_layer, window, err));
    TRY(build_out(builder, i_layer, false, err));
    TRY(build_ffn_in(builder, i_layer, false, err));
    return build_ffn_out(builder, i_layer, false, err);
}

const ls_family family_qwen2 = {
    .model_type = "qwen2",
    .architecture = "Qwen2ForCausalLM",
    .read_config = read_config,
    .layer = layer,
};
