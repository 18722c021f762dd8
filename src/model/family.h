/*
 * A family: what differs between model architectures, in one small file each (family_*.c). A family reads the keys of
 * config.json that only it has, and lays down the ops of one layer; everything else is shared.
 */
#ifndef LS_MODEL_FAMILY_H
#define LS_MODEL_FAMILY_H

#include "model/program.h"
#include "model/spec.h"

typedef struct ls_family {
    const char *model_type;   /* config.json's model_type: "qwen3" */
    const char *architecture; /* config.json's architectures[0]: "Qwen3ForCausalLM" */
    /* Keys of this family alone, after the shared ones were read. Refuses by name what it cannot honour. */
    ls_status (*read_config)(ls_spec *spec, const json_doc *doc, ls_error *err);
    /* Appends the ops of layer i_layer. */
    ls_status (*layer)(program_builder *builder, int i_layer, ls_error *err);
} ls_family;

extern const ls_family family_llama, family_mistral, family_qwen2, family_qwen3;

/* NULL-terminated. */
extern const ls_family *const ls_families[];
const ls_family *family_find(const char *model_type); /* NULL if unknown */

#endif
