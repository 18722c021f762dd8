/* See weights.h. */
#include "model/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"

static ls_status find_tensor(const weight_slot *slot, const weight_source *source, const ls_tensor **out,
                             ls_error *err) {
    int64_t shape[2] = {slot->rows, slot->cols};
    TRY(checkpoint_get(source->checkpoint, slot->name, slot->n_dims, slot->n_dims == 2 ? shape : shape + 1, out, err));
    tensor_dtype dtype = (*out)->dtype;
    if (dtype != TENSOR_F32 && dtype != TENSOR_BF16 && dtype != TENSOR_F16) {
        return error_set(err, LS_EUNSUPPORTED, "%s: %s: dtype %s; weights may be F32, BF16 or F16", (*out)->file,
                         slot->name, tensor_dtype_name(dtype));
    }
    return LS_OK;
}

ls_status weights_check(const ls_program *program, const weight_source *source, ls_error *err) {
    if (source->checkpoint == NULL) {
        return LS_OK;
    }
    for (int i = 0; i < program->n_weights; i++) {
        const ls_tensor *tensor;
        TRY(find_tensor(&program->weight[i], source, &tensor, err));
    }
    return LS_OK;
}

ls_status weights_place(const ls_program *program, ls_arena *arena, int tag, ls_weight *weight, ls_error *err) {
    for (int i = 0; i < program->n_weights; i++) {
        const weight_slot *slot = &program->weight[i];
        ls_weight placed = {.format = slot->format,
                            .layout = LAYOUT_ROW_MAJOR,
                            .rows = (int)slot->row.count,
                            .cols = (int)slot->col.count};
        TRY(arena_take(arena, tag, (size_t)(slot_bytes(slot) - slot_scale_bytes(slot)), &placed.data, err));
        if (slot->n_leaves > 0) {
            TRY(arena_take(arena, tag, (size_t)slot_scale_bytes(slot), &placed.scale, err));
        }
        if (weight != NULL) {
            weight[i] = placed;
        }
    }
    return LS_OK;
}

/* ---- From a checkpoint ---- */

/* Tensors lie at any byte offset, so elements are copied out before they are looked at. */
static float element(tensor_dtype dtype, const uint8_t *data, int64_t i) {
    if (dtype == TENSOR_F32) {
        float value;
        memcpy(&value, data + 4 * i, sizeof value);
        return value;
    }
    uint16_t half;
    memcpy(&half, data + 2 * i, sizeof half);
    return dtype == TENSOR_BF16 ? f32_from_bf16(half) : f32_from_f16(half);
}

static ls_dtype dtype_of(tensor_dtype dtype) {
    return dtype == TENSOR_F32 ? LS_F32 : dtype == TENSOR_BF16 ? LS_BF16 : LS_F16;
}

ls_status weight_raw_find(const ls_program *program, const weight_source *source, int i_weight, weight_raw *out,
                          ls_error *err) {
    weight_raw raw = {.dtype = source->dummy_dtype};
    if (source->checkpoint != NULL) {
        TRY(find_tensor(&program->weight[i_weight], source, &raw.tensor, err));
        raw.dtype = dtype_of(raw.tensor->dtype);
    }
    *out = raw;
    return LS_OK;
}

void weight_raw_copy(const weight_slot *slot, const weight_raw *raw, int64_t first_row, int64_t last_row, void *to) {
    const size_t element = ls_dtype_bytes(raw->dtype), row_bytes = (size_t)slot->col.count * element;
    const bool whole = slot->col.count == slot->cols;
    const int64_t n_pieces = whole ? 1 : last_row - first_row;
    const size_t bytes = whole ? (size_t)(last_row - first_row) * row_bytes : row_bytes;
    for (int64_t i = 0; i < n_pieces; i++) {
        int64_t first = (slot->row.first + first_row + i) * slot->cols + slot->col.first;
        memcpy((uint8_t *)to + (size_t)i * bytes, raw->tensor->data + (size_t)first * element, bytes);
    }
}

/* Says which of n elements from `first` of the tensor on is infinite, NaN or too large for the format. */
static ls_status bad_element(const weight_slot *slot, const ls_tensor *tensor, int64_t first, ls_error *err) {
    const int64_t element_bytes = tensor->dtype == TENSOR_F32 ? 4 : 2;
    const ls_dtype format = slot->format == LS_INT8 ? LS_F32 : slot->format;
    int64_t bad = first;
    while (isfinite(round_to(format, element(tensor->dtype, tensor->data + bad * element_bytes, 0)))) {
        bad++;
    }
    float value = element(tensor->dtype, tensor->data, bad);
    char why[64] = "";
    if (isfinite(value)) {
        snprintf(why, sizeof why, ", too large for %s: use --dtype %s", ls_dtype_name(format),
                 format == LS_F16 ? "bf16 or f32" : "f32");
    }
    return error_set(err, LS_ENUMERIC, "%s: %s: element %lld is %g%s", tensor->file, slot->name, (long long)bad,
                     (double)value, why);
}

/* ---- Dummy ---- */

static const uint64_t GOLDEN = 0x9E3779B97F4A7C15;

static uint64_t hash_name(const char *name, uint64_t seed) {
    uint64_t hash = 0xcbf29ce484222325;
    for (; *name != '\0'; name++) {
        hash = (hash ^ (uint8_t)*name) * 0x100000001b3;
    }
    return hash ^ (seed * GOLDEN);
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

dummy_formula weight_dummy(const weight_slot *slot, uint64_t seed) {
    const bool norm = slot->n_dims == 1 && ends_with(slot->name, "norm.weight");
    const float narrow = norm ? 0.1F : 0.5F;
    return (dummy_formula){.hash = hash_name(slot->name, seed),
                           .offset = norm ? 1.0F : 0.0F,
                           .scale = slot->n_dims == 2 ? sqrtf(3.0F / (float)slot->cols) : narrow};
}

/* ---- Rows ---- */

/* Where the elements of a weight come from. */
typedef struct row_reader {
    const cpu_isa *isa;      /* all give the same bits */
    const ls_tensor *tensor; /* NULL: dummy */
    cpu_leaves leaves;       /* int8: of this rank's columns */
    ls_dtype dtype;          /* of the tensor, or what dummy values are rounded to */
    dummy_formula dummy;
} row_reader;

static const uint8_t *tensor_at(const row_reader *in, int64_t first) {
    return in->tensor->data + first * (int64_t)ls_dtype_bytes(in->dtype);
}

/* to[i] = element first + i of the whole tensor. */
static void read_some(const row_reader *in, int64_t first, int64_t n, float *to) {
    if (in->tensor != NULL) {
        in->isa->widen(in->dtype, tensor_at(in, first), n, to);
        return;
    }
    in->isa->dummy(in->dummy.hash, first, in->dummy.offset, in->dummy.scale, in->dtype, n, to);
}

/* n elements into place; false if one is not finite there. */
static bool read_row(const row_reader *in, ls_dtype format, int64_t first, int64_t n, uint8_t *out) {
    enum { CHUNK = 1024 };
    if (in->tensor != NULL && in->dtype == format) {
        return in->isa->copy(format, tensor_at(in, first), n, out);
    }
    float some[CHUNK];
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t count = n - i < CHUNK ? n - i : CHUNK;
        read_some(in, first + i, count, some);
        if (!in->isa->narrow(format, some, count, out + (size_t)i * ls_dtype_bytes(format))) {
            return false;
        }
    }
    return true;
}

/* As read_row, leaf by leaf; leaf[] has room for the longest. */
static bool read_row_int8(const row_reader *in, int64_t first, int8_t *out, float *scale, float *leaf) {
    for (int i = 0; i < in->leaves.count; i++) {
        int64_t from = in->leaves.border[i], n = in->leaves.border[i + 1] - from;
        read_some(in, first + from, n, leaf);
        scale[i] = in->isa->quantize(leaf, n, out + from);
        if (!isfinite(scale[i])) {
            return false;
        }
    }
    return true;
}

static ls_status start_reading(row_reader *in, const ls_program *program, int i_weight, const weight_source *source,
                               ls_error *err) {
    const weight_slot *slot = &program->weight[i_weight];
    const int leaf_first = slot->rule == SHARD_ROW ? shard_leaf_first(program->group) : 0;
    weight_raw raw;
    TRY(weight_raw_find(program, source, i_weight, &raw, err));
    *in = (row_reader){.isa = cpu_isa_best(),
                       .tensor = raw.tensor,
                       .leaves = leaves_of(slot->cols, leaf_first, slot->n_leaves),
                       .dtype = raw.dtype,
                       .dummy = weight_dummy(slot, source->dummy_seed)};
    return LS_OK;
}

ls_status weight_load_rows(const ls_program *program, const weight_source *source, int i_weight, int64_t first_row,
                           int64_t last_row, void *data, float *scale, ls_error *err) {
    const weight_slot *slot = &program->weight[i_weight];
    const size_t row_bytes = (size_t)slot->col.count * ls_dtype_bytes(slot->format);
    row_reader in;
    TRY(start_reading(&in, program, i_weight, source, err));
    float *leaf = slot->n_leaves > 0 ? malloc((size_t)(slot->cols + 1) * sizeof *leaf) : NULL;
    if (slot->n_leaves > 0 && leaf == NULL) {
        return error_set(err, LS_ENOMEM, "%s: out of memory", slot->name);
    }
    ls_status st = LS_OK;
    for (int64_t row = first_row; row < last_row && st == LS_OK; row++) {
        int64_t first = (slot->row.first + row) * slot->cols + slot->col.first;
        uint8_t *out = (uint8_t *)data + (size_t)(row - first_row) * row_bytes;
        bool good = slot->n_leaves > 0
                        ? read_row_int8(&in, first, (int8_t *)out, scale + (row - first_row) * slot->n_leaves, leaf)
                        : read_row(&in, slot->format, first, slot->col.count, out);
        if (!good) {
            st = bad_element(slot, in.tensor, first, err);
        }
    }
    free(leaf);
    return st;
}

ls_status weight_load(const ls_program *program, const weight_source *source, int i_weight, const ls_weight *weight,
                      int64_t first_row, int64_t last_row, ls_error *err) {
    const weight_slot *slot = &program->weight[i_weight];
    const int64_t row_bytes = slot->col.count * (int64_t)ls_dtype_bytes(slot->format);
    uint8_t *data = (uint8_t *)weight->data + first_row * row_bytes;
    float *scale = slot->n_leaves > 0 ? (float *)weight->scale + first_row * slot->n_leaves : NULL;
    return weight_load_rows(program, source, i_weight, first_row, last_row, data, scale, err);
}
