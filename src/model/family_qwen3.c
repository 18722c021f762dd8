/* Qwen3: an RMS norm on each head of q and k; attention_bias puts a bias on q, k, v and the output projection. */
#include "model/family.h"
#include "model/spec_read.h"

#define DEFAULT_KV_HEADS 32
#define DEFAULT_D_HEAD 128

static ls_status read_config(ls_spec *spec, const json_doc *doc, ls_error *err) {
    if (key_absent(doc, "num_key_value_heads")) {
        spec->n_kv_heads = DEFAULT_KV_HEADS;
    }
    if (key_absent(doc, "head_dim")) {
        spec->d_head = DEFAULT_D_HEAD;
    }
    bool attention_bias = false;
    TRY(json_find_bool(doc, doc->root, "attention_bias", &attention_bias, err));
    spec->qkv_bias = attention_bias;
    spec->out_bias = attention_bias;
    TRY(refuse_true(doc, "mlp_bias", "qwen3", err));
    spec->qk_norm = true;
    return read_qwen_windows(spec, doc, err);
}

static ls_status layer(program_builder *builder, int i_layer, ls_error *err) {
    const ls_spec *spec = builder_spec(builder);
    int window = spec->layer_windowed[i_layer] ? spec->window_tokens : 0;
    TRY(build_qkv(builder, i_layer, spec->qkv_bias, true, err));
    TRY(build_attn(builder, i_layer, window, err));
    TRY(build_out(builder, i_layer, spec->out_bias, err));
    TRY(build_ffn_in(builder, i_layer, false, err));
    return build_ffn_out(builder, i_layer, false, err);
}

const ls_family family_qwen3 = {
    .model_type = "qwen3",
    .architecture = "Qwen3ForCausalLM",
    .read_config = read_config,
    .layer = layer,
};
