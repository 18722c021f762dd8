/* See edit.h. */
#include "edit.h"

#include <jansson.h>

golden_case *open_copy(golden_list *list, const char *name) {
    golden_open(list);
    for (size_t i = 0; i < list->n; i++) {
        if (strcmp(list->item[i].name, name) == 0) {
            return &list->item[i];
        }
    }
    fail_msg("no golden case %s", name);
    return NULL;
}

uint8_t *tensor_data(const opened_file *file, const char *tensor) {
    uint64_t header;
    memcpy(&header, file->bytes, sizeof header);
    json_t *root = json_loadb((const char *)file->bytes + 8, (size_t)header, 0, NULL);
    assert_non_null(root);
    const json_t *offsets = json_object_get(json_object_get(root, tensor), "data_offsets");
    assert_non_null(offsets);
    size_t first = (size_t)json_integer_value(json_array_get(offsets, 0));
    json_decref(root);
    return file->bytes + 8 + header + first;
}

enum { AXIS = 9 }; /* that only the hot token's embedding has */

void make_hot(const golden_case *c) {
    const struct {
        const char *tensor;
        int first, step, n;
        float value;
    } edit[] = {
        {"model.embed_tokens.weight", AXIS, 32, 67, 0.0F},
        {"model.embed_tokens.weight", HOT * 32 + AXIS, 1, 1, 100.0F},
        {"model.layers.0.self_attn.o_proj.weight", AXIS * 64, 1, 64, 0.0F}, /* attention puts nothing there */
        {"model.layers.0.mlp.gate_proj.weight", AXIS, 32, 48, 300.0F},
        {"model.layers.0.mlp.up_proj.weight", AXIS, 32, 48, 300.0F},
    };
    opened_file file;
    file.bytes = file_read(c->folder, "model.safetensors", &file.n);
    for (size_t i = 0; i < COUNT(edit); i++) {
        uint8_t *data = tensor_data(&file, edit[i].tensor);
        for (int k = 0; k < edit[i].n; k++) {
            memcpy(data + 4 * (edit[i].first + k * edit[i].step), &edit[i].value, sizeof(float));
        }
    }
    file_write(c->folder, "model.safetensors", file.bytes, file.n);
    free(file.bytes);
}
