/* See weights.h. */
#include "model/weights.h"

#include <stdio.h>
#include <string.h>

#include "base/numeric.h"

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
        TRY(arena_take(arena, tag, (size_t)slot_bytes(slot), &placed.data, err));
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

static tensor_dtype tensor_of(ls_dtype format) {
    return format == LS_F32 ? TENSOR_F32 : format == LS_BF16 ? TENSOR_BF16 : TENSOR_F16;
}

/* Whether all n elements are finite: no exponent is all ones. One pass without branches. */
static bool all_finite(ls_dtype format, const void *data, int64_t n) {
    bool good = true;
    if (format == LS_F32) {
        const uint32_t *word = data;
        for (int64_t i = 0; i < n; i++) {
            good &= (word[i] & 0x7f800000) != 0x7f800000;
        }
    } else {
        const uint16_t *word = data;
        const uint16_t exponent = format == LS_BF16 ? 0x7f80 : 0x7c00;
        for (int64_t i = 0; i < n; i++) {
            good &= (word[i] & exponent) != exponent;
        }
    }
    return good;
}

/* Copies or converts n elements into out. The index of the first that is infinite, NaN or overflows the format, or -1. */
static int64_t convert(ls_dtype format, uint8_t *out, tensor_dtype dtype, const uint8_t *data, int64_t n) {
    if (dtype == tensor_of(format)) {
        memcpy(out, data, (size_t)n * ls_dtype_bytes(format));
    } else {
        for (int64_t i = 0; i < n; i++) {
            store_as(format, out, i, element(dtype, data, i));
        }
    }
    if (all_finite(format, out, n)) {
        return -1;
    }
    int64_t bad = 0;
    while (isfinite(load_as(format, out, bad))) {
        bad++;
    }
    return bad;
}

static ls_status load_tensor(const weight_slot *slot, const weight_source *source, int64_t first_row, int64_t last_row,
                             uint8_t *data, ls_error *err) {
    const ls_tensor *tensor;
    TRY(find_tensor(slot, source, &tensor, err));
    const int64_t element_bytes = tensor->dtype == TENSOR_F32 ? 4 : 2;
    for (int64_t row = first_row; row < last_row; row++) {
        int64_t first = (slot->row.first + row) * slot->cols + slot->col.first;
        uint8_t *out = data + (size_t)((row - first_row) * slot->col.count) * ls_dtype_bytes(slot->format);
        int64_t bad = convert(slot->format, out, tensor->dtype, tensor->data + first * element_bytes, slot->col.count);
        if (bad >= 0) {
            float value = element(tensor->dtype, tensor->data, first + bad);
            char why[64] = "";
            if (isfinite(value)) {
                snprintf(why, sizeof why, ", too large for %s: use --dtype %s", ls_dtype_name(slot->format),
                         slot->format == LS_F16 ? "bf16 or f32" : "f32");
            }
            return error_set(err, LS_ENUMERIC, "%s: %s: element %lld is %g%s", tensor->file, slot->name,
                             (long long)(first + bad), (double)value, why);
        }
    }
    return LS_OK;
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

static float dummy_unit(uint64_t hash, int64_t index) {
    uint64_t x = hash + (uint64_t)(index + 1) * GOLDEN;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    x ^= x >> 31;
    return 2.0F * ((float)(x >> 40) * 0x1p-24F) - 1.0F;
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

dummy_formula weight_dummy(const weight_slot *slot, uint64_t seed) {
    bool norm = slot->n_dims == 1 && ends_with(slot->name, "norm.weight");
    return (dummy_formula){.hash = hash_name(slot->name, seed),
                           .offset = norm ? 1.0F : 0.0F,
                           .scale = slot->n_dims == 2 ? sqrtf(3.0F / (float)slot->cols)
                                    : norm            ? 0.1F
                                                      : 0.5F};
}

static void load_dummy(const weight_slot *slot, const weight_source *source, int64_t first_row, int64_t last_row,
                       void *data) {
    dummy_formula formula = weight_dummy(slot, source->dummy_seed);
    for (int64_t row = first_row; row < last_row; row++) {
        int64_t first = (slot->row.first + row) * slot->cols + slot->col.first;
        for (int64_t i = 0; i < slot->col.count; i++) {
            float value = formula.offset + formula.scale * dummy_unit(formula.hash, first + i);
            store_as(slot->format, data, (row - first_row) * slot->col.count + i, round_to(source->dummy_dtype, value));
        }
    }
}

ls_status weight_load_rows(const ls_program *program, const weight_source *source, int i_weight, int64_t first_row,
                           int64_t last_row, void *data, float *scale, ls_error *err) {
    (void)scale;
    const weight_slot *slot = &program->weight[i_weight];
    if (source->checkpoint != NULL) {
        return load_tensor(slot, source, first_row, last_row, data, err);
    }
    load_dummy(slot, source, first_row, last_row, data);
    return LS_OK;
}

ls_status weight_load(const ls_program *program, const weight_source *source, int i_weight, const ls_weight *weight,
                      ls_error *err) {
    int64_t n_rows = program->weight[i_weight].row.count;
    return weight_load_rows(program, source, i_weight, 0, n_rows, (void *)weight->data, (float *)weight->scale, err);
}
