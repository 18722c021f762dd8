/* Llama: optional biases on all projections (attention_bias, mlp_bias), rope scaling, no window. */
#include "model/family.h"
#include "model/spec_read.h"

static ls_status read_config(ls_spec *spec, const json_doc *doc, ls_error *err) {
    if (key_absent(doc, "eos_token_id") && spec->n_vocab > 2) {
        spec->eos[0] = 2;
        spec->n_eos = 1;
    }
    bool attention_bias = false;
    TRY(json_find_bool(doc, doc->root, "attention_bias", &attention_bias, err));
    spec->qkv_bias = attention_bias;
    spec->out_bias = attention_bias;
    TRY(json_find_bool(doc, doc->root, "mlp_bias", &spec->mlp_bias, err));
    if (key_given(doc, "sliding_window")) {
        /* transformers ignores it, others do not: whoever wrote it meant something. */
        return REFUSE(doc, "sliding_window", "%s", "llama models have none; null is expected");
    }
    return read_windows(spec, doc, 0, 0, err);
}

static ls_status layer(program_builder *builder, int i_layer, ls_error *err) {
    const ls_spec *spec = builder_spec(builder);
    TRY(build_qkv(builder, i_layer, spec->qkv_bias, false, err));
    TRY(build_attn(builder, i_layer, 0, err));
    TRY(build_out(builder, i_layer, spec->out_bias, err));
    TRY(build_ffn_in(builder, i_layer, spec->mlp_bias, err));
    return build_ffn_out(builder, i_layer, spec->mlp_bias, err);
}

const ls_family family_llama = {
    .model_type = "llama",
    .architecture = "LlamaForCausalLM",
    .read_config = read_config,
    .layer = layer,
};
