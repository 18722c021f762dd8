/*
 * Weights: dummy elements equal tests/golden/dummy_weights.json (made by tools/dummy_weights.py) in whatever shard they
 * lie; tensors of a checkpoint arrive in the right shard, converted with the right rounding, from any byte offset; what
 * is missing, misshapen or of another kind is refused by name.
 */
#include "model/weights.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/numeric.h"

/* A program of one weight. */
typedef struct one_weight {
    ls_program program;
    weight_slot slot;
} one_weight;

static void set_slot(one_weight *w, const char *name, int n_dims, int64_t rows, int64_t cols, ls_dtype format) {
    *w = (one_weight){
        .slot = {.n_dims = n_dims, .rows = rows, .cols = cols, .row = {0, rows}, .col = {0, cols}, .format = format}};
    snprintf(w->slot.name, sizeof w->slot.name, "%s", name);
    w->program.n_weights = 1;
    w->program.weight = &w->slot;
}

/* The same part unconverted: converted here, it is what was loaded. */
static void check_raw(const one_weight *w, const weight_source *source, const void *loaded) {
    const size_t n = (size_t)(w->slot.row.count * w->slot.col.count), bytes = n * ls_dtype_bytes(w->slot.format);
    weight_raw raw;
    assert_int_equal(weight_raw_find(&w->program, source, 0, &raw, NULL), LS_OK);
    if (raw.tensor == NULL) {
        assert_int_equal(raw.dtype, source->dummy_dtype);
        return;
    }
    uint8_t *part = malloc(n * ls_dtype_bytes(raw.dtype) + 1), *converted = malloc(bytes + 1);
    assert_true(part != NULL && converted != NULL);
    part[n * ls_dtype_bytes(raw.dtype)] = 0xa5;
    weight_raw_copy(&w->slot, &raw, 0, w->slot.row.count, part);
    assert_int_equal(part[n * ls_dtype_bytes(raw.dtype)], 0xa5);
    for (size_t i = 0; i < n; i++) {
        store_as(w->slot.format, converted, (int64_t)i, load_as(raw.dtype, part, (int64_t)i));
    }
    assert_memory_equal(converted, loaded, bytes);
    free(part);
    free(converted);
}

/* Loads the slot's part into memory that is as large as slot_bytes says; the caller's. */
static ls_status load(one_weight *w, const weight_source *source, void **out, ls_error *err) {
    size_t n = (size_t)slot_bytes(&w->slot);
    ls_weight weight = {.format = w->slot.format, .rows = (int)w->slot.row.count, .cols = (int)w->slot.col.count};
    *out = malloc(n + 1);
    assert_non_null(*out);
    memset(*out, 0xa5, n + 1);
    weight.data = *out;
    ls_status st = weight_load(&w->program, source, 0, &weight, 0, weight.rows, err);
    assert_int_equal(((uint8_t *)*out)[n], 0xa5); /* nothing behind its part */
    if (st == LS_OK && w->slot.n_leaves == 0) {
        check_raw(w, source, *out);
    }
    return st;
}

/* ---- Dummy weights ---- */

typedef struct dummy_tensor {
    const char *name;
    int n_dims;
    int64_t rows, cols;
    ls_dtype dtype;
    uint64_t seed;
    size_t n;
    const json_t *index, *bits;
} dummy_tensor;

static dummy_tensor read_dummy(const json_t *item) {
    const json_t *shape = json_object_get(item, "shape");
    const char *dtype = json_string_value(json_object_get(item, "dtype"));
    dummy_tensor t = {.name = json_string_value(json_object_get(item, "name")),
                      .n_dims = (int)json_array_size(shape),
                      .seed = strtoull(json_string_value(json_object_get(item, "seed")), NULL, 10),
                      .index = json_object_get(item, "index"),
                      .bits = json_object_get(item, "f32_bits")};
    t.dtype = strcmp(dtype, "float32") == 0 ? LS_F32 : strcmp(dtype, "float16") == 0 ? LS_F16 : LS_BF16;
    t.rows = t.n_dims == 2 ? json_integer_value(json_array_get(shape, 0)) : 1;
    t.cols = json_integer_value(json_array_get(shape, (size_t)t.n_dims - 1));
    t.n = json_array_size(t.index);
    assert_true(t.n > 0 && t.n == json_array_size(t.bits));
    return t;
}

static uint32_t bits_at(const dummy_tensor *t, size_t i) {
    return (uint32_t)strtoul(json_string_value(json_array_get(t->bits, i)), NULL, 16);
}

static void assert_element(const dummy_tensor *t, size_t i, ls_dtype format, const void *data, int64_t at) {
    uint32_t found = f32_bits(load_as(format, data, at));
    if (found != bits_at(t, i)) {
        fail_msg("%s, element %lld: %08x instead of %08x", t->name,
                 (long long)json_integer_value(json_array_get(t->index, i)), found, bits_at(t, i));
    }
}

/* Each element by itself, as a shard of one: tensors may be larger than memory. */
static void check_alone(const dummy_tensor *t) {
    weight_source source = {.dummy_seed = t->seed, .dummy_dtype = t->dtype};
    for (size_t i = 0; i < t->n; i++) {
        int64_t index = json_integer_value(json_array_get(t->index, i));
        one_weight w;
        void *data;
        set_slot(&w, t->name, t->n_dims, t->rows, t->cols, i % 2 == 0 ? t->dtype : LS_F32);
        w.slot.row = (shard_range){index / t->cols, 1};
        w.slot.col = (shard_range){index % t->cols, 1};
        assert_int_equal(load(&w, &source, &data, NULL), LS_OK);
        assert_element(t, i, w.slot.format, data, 0);
        free(data);
    }
}

/* Cut by rows and by columns for R ranks, at leaf borders as the program does it. */
static void check_sharded(const dummy_tensor *t, int size, bool by_row) {
    weight_source source = {.dummy_seed = t->seed, .dummy_dtype = t->dtype};
    size_t n_found = 0;
    for (int rank = 0; rank < size; rank++) {
        one_weight w;
        void *data;
        set_slot(&w, t->name, t->n_dims, t->rows, t->cols, t->dtype);
        shard_range *cut = by_row ? &w.slot.row : &w.slot.col;
        *cut = shard_leaves(cut->count, (ls_group){rank, size});
        assert_int_equal(load(&w, &source, &data, NULL), LS_OK);
        for (size_t i = 0; i < t->n; i++) {
            int64_t index = json_integer_value(json_array_get(t->index, i));
            int64_t row = index / t->cols - w.slot.row.first, col = index % t->cols - w.slot.col.first;
            if (row >= 0 && row < w.slot.row.count && col >= 0 && col < w.slot.col.count) {
                assert_element(t, i, t->dtype, data, row * w.slot.col.count + col);
                n_found++;
            }
        }
        free(data);
    }
    assert_int_equal(n_found, t->n);
}

static void dummy_weights_equal_the_golden_ones(void **state) {
    (void)state;
    json_error_t why;
    json_t *root = json_load_file("tests/golden/dummy_weights.json", 0, &why);
    assert_non_null(root);
    const json_t *tensors = json_object_get(root, "tensors");
    assert_int_equal(json_array_size(tensors), 11);
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        dummy_tensor t = read_dummy(json_array_get(tensors, i));
        check_alone(&t);
        for (int size = 1; size <= 8 && t.rows * t.cols < 10000; size *= 2) {
            check_sharded(&t, size, true);
            check_sharded(&t, size, false);
        }
    }
    json_decref(root);
}

/* A dummy checkpoint of 16 bits run in f32 holds the rounded values; seeds and names change them. */
static void dummy_weights_depend_on_seed_name_and_dtype(void **state) {
    (void)state;
    enum { N = 64 };
    static const struct {
        const char *name;
        uint64_t seed;
        ls_dtype dtype;
    } variants[] = {
        {"a.weight", 0, LS_F32}, {"a.weight", 1, LS_F32}, {"b.weight", 0, LS_F32}, {"a.weight", 0, LS_BF16}};
    float *value[4];
    double squares = 0;
    for (int v = 0; v < 4; v++) {
        one_weight w;
        void *data;
        weight_source source = {.dummy_seed = variants[v].seed, .dummy_dtype = variants[v].dtype};
        set_slot(&w, variants[v].name, 2, N, N, LS_F32);
        assert_int_equal(load(&w, &source, &data, NULL), LS_OK);
        value[v] = data;
    }
    for (int i = 0; i < N * N; i++) {
        squares += (double)value[0][i] * (double)value[0][i];
        assert_true(value[0][i] != value[1][i] && value[0][i] != value[2][i]);
        assert_true(value[3][i] == round_to(LS_BF16, value[0][i]));
    }
    assert_true(fabs(squares / (N * N) * N - 1) < 0.1); /* variance 1 / cols */
    for (int v = 0; v < 4; v++) {
        free(value[v]);
    }
}

/* ---- Checkpoints ---- */

/* Four tensors, of which the second begins at an odd offset. */
static const char HEADER[] = "{\"odd\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                             "\"f32\":{\"dtype\":\"F32\",\"shape\":[2,8],\"data_offsets\":[1,65]},"
                             "\"bf16\":{\"dtype\":\"BF16\",\"shape\":[2,8],\"data_offsets\":[65,97]},"
                             "\"f16\":{\"dtype\":\"F16\",\"shape\":[2,8],\"data_offsets\":[97,129]},"
                             "\"vector\":{\"dtype\":\"BF16\",\"shape\":[8],\"data_offsets\":[129,145]},"
                             "\"ints\":{\"dtype\":\"I32\",\"shape\":[2,8],\"data_offsets\":[145,209]}}";

/* f32 bits and what they are in bf16 and f16: ties to even, both ways, subnormals, the largest, signed zero. */
static const struct {
    uint32_t f32;
    uint16_t bf16, f16;
} ROUNDED[16] = {
    {0x00000000, 0x0000, 0x0000}, {0x80000000, 0x8000, 0x8000}, {0x3f800000, 0x3f80, 0x3c00},
    {0xbf800000, 0xbf80, 0xbc00}, {0x3f808000, 0x3f80, 0x3c04}, {0x3f818000, 0x3f82, 0x3c0c},
    {0x3f808001, 0x3f81, 0x3c04}, {0x3f801000, 0x3f80, 0x3c00}, {0x3f803000, 0x3f80, 0x3c02},
    {0x3f801001, 0x3f80, 0x3c01}, {0x477fe000, 0x4780, 0x7bff}, {0x477fefff, 0x4780, 0x7bff},
    {0x33800000, 0x3380, 0x0001}, {0x33000000, 0x3300, 0x0000}, {0x33000001, 0x3300, 0x0001},
    {0x387fc000, 0x3880, 0x03ff},
};

static int write_checkpoint(void **state) {
    char *path = strdup("/tmp/lockstep-weights-XXXXXX");
    int fd = mkstemp(path);
    uint8_t bytes[1024] = {0};
    uint64_t n = sizeof HEADER - 1;
    memcpy(bytes, &n, 8);
    memcpy(bytes + 8, HEADER, n);
    uint8_t *data = bytes + 8 + n;
    for (int i = 0; i < 16; i++) {
        memcpy(data + 1 + 4 * i, &ROUNDED[i].f32, 4);
        memcpy(data + 65 + 2 * i, &ROUNDED[i].bf16, 2);
        memcpy(data + 97 + 2 * i, &ROUNDED[i].f16, 2);
        memcpy(data + 129 + 2 * (i % 8), &ROUNDED[i % 8].bf16, 2);
    }
    assert_int_equal(write(fd, bytes, 8 + n + 209), 8 + n + 209);
    close(fd);
    *state = path;
    return 0;
}

static int remove_checkpoint(void **state) {
    unlink(*state);
    free(*state);
    return 0;
}

static ls_checkpoint *open_checkpoint(void **state) {
    ls_checkpoint *checkpoint = NULL;
    ls_error err = {0};
    if (checkpoint_open_file(&checkpoint, *state, &err) != LS_OK) {
        fail_msg("%s", err.text);
    }
    return checkpoint;
}

/* Element i of tensor `name` as it should be in `format`, as the bits of the format. */
static uint32_t expected_bits(const char *name, int i, ls_dtype format) {
    if (strcmp(name, "f32") == 0) {
        return format == LS_F32 ? ROUNDED[i].f32 : format == LS_BF16 ? ROUNDED[i].bf16 : ROUNDED[i].f16;
    }
    bool bf16 = strcmp(name, "bf16") == 0;
    if (format == (bf16 ? LS_BF16 : LS_F16)) {
        return bf16 ? ROUNDED[i].bf16 : ROUNDED[i].f16;
    }
    float value = bf16 ? f32_from_bf16(ROUNDED[i].bf16) : f32_from_f16(ROUNDED[i].f16);
    if (format == LS_F32) {
        return f32_bits(value);
    }
    return format == LS_BF16 ? bf16_from_f32(value) : f16_from_f32(value);
}

static void check_part(const weight_source *source, const char *name, ls_dtype format, shard_range row,
                       shard_range col) {
    one_weight w;
    void *data;
    ls_error err = {0};
    set_slot(&w, name, 2, 2, 8, format);
    w.slot.row = row;
    w.slot.col = col;
    ls_status st = load(&w, source, &data, &err);
    bool overflows = strcmp(name, "bf16") == 0 && format == LS_F16; /* elements 10 and 11 are 65536 */
    if (overflows && row.first + row.count > 1 && col.first <= 3 && col.first + col.count > 2) {
        assert_int_equal(st, LS_ENUMERIC);
        const char *words =
            col.first <= 2 ? "bf16: element 10 is 65536, too large for f16" : "bf16: element 11 is 65536";
        assert_non_null(strstr(err.text, words));
        free(data);
        return;
    }
    assert_int_equal(st, LS_OK);
    for (int64_t i = 0; i < row.count * col.count; i++) {
        int whole = (int)((row.first + i / col.count) * 8 + col.first + i % col.count);
        uint32_t found = 0;
        memcpy(&found, (uint8_t *)data + (size_t)i * ls_dtype_bytes(format), ls_dtype_bytes(format));
        if (found != expected_bits(name, whole, format)) {
            fail_msg("%s as %s, element %d: %08x instead of %08x", name, ls_dtype_name(format), whole, found,
                     expected_bits(name, whole, format));
        }
    }
    free(data);
}

static void parts_and_conversions(void **state) {
    ls_checkpoint *checkpoint = open_checkpoint(state);
    weight_source source = {.checkpoint = checkpoint};
    static const char *const names[] = {"f32", "bf16", "f16"};
    for (int n = 0; n < 3; n++) {
        for (int format = LS_F32; format <= LS_F16; format++) {
            for (int64_t row = 0; row < 2; row++) {
                for (int64_t col = 0; col < 8; col++) {
                    check_part(&source, names[n], (ls_dtype)format, (shard_range){row, 2 - row},
                               (shard_range){col, 8 - col});
                    check_part(&source, names[n], (ls_dtype)format, (shard_range){0, row + 1},
                               (shard_range){0, col + 1});
                    check_part(&source, names[n], (ls_dtype)format, (shard_range){row, 1}, (shard_range){col, 1});
                    check_part(&source, names[n], (ls_dtype)format, (shard_range){row, 0}, (shard_range){col, 0});
                }
            }
        }
    }
    one_weight w;
    void *data;
    set_slot(&w, "vector", 1, 1, 8, LS_F32);
    assert_int_equal(load(&w, &source, &data, NULL), LS_OK);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(f32_bits(((float *)data)[i]), (uint32_t)ROUNDED[i].bf16 << 16);
    }
    free(data);
    checkpoint_close(&checkpoint);
}

static void wrong_tensors_are_refused(void **state) {
    static const struct {
        const char *name;
        int n_dims;
        int64_t rows, cols;
        ls_status status;
        const char *word;
    } bad[] = {
        {"none", 2, 2, 8, LS_ENOTFOUND, "none"},      {"f32", 2, 8, 2, LS_EFORMAT, "expected [8, 2], found [2, 8]"},
        {"f32", 2, 2, 9, LS_EFORMAT, "[2, 9]"},       {"f32", 1, 1, 16, LS_EFORMAT, "expected [16]"},
        {"vector", 2, 1, 8, LS_EFORMAT, "found [8]"}, {"ints", 2, 2, 8, LS_EUNSUPPORTED, "ints: dtype I32"}};
    ls_checkpoint *checkpoint = open_checkpoint(state);
    weight_source source = {.checkpoint = checkpoint};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        one_weight w;
        ls_error err = {0};
        set_slot(&w, bad[i].name, bad[i].n_dims, bad[i].rows, bad[i].cols, LS_F32);
        assert_int_equal(weights_check(&w.program, &source, &err), bad[i].status);
        if (strstr(err.text, bad[i].word) == NULL || strstr(err.text, "lockstep-weights-") == NULL) {
            fail_msg("%s", err.text);
        }
        weight_source dummy = {0};
        assert_int_equal(weights_check(&w.program, &dummy, &err), LS_OK);
    }
    one_weight w;
    set_slot(&w, "f32", 2, 2, 8, LS_F32);
    assert_int_equal(weights_check(&w.program, &source, NULL), LS_OK);
    checkpoint_close(&checkpoint);
}

/* Places are in order, apart, of the slot's size, and counted the same without memory. */
static void places(void **state) {
    (void)state;
    weight_slot slots[] = {{.n_dims = 2, .row = {4, 3}, .col = {0, 7}, .format = LS_BF16},
                           {.n_dims = 1, .row = {0, 1}, .col = {2, 17}, .format = LS_F32},
                           {.n_dims = 2, .row = {0, 0}, .col = {0, 9}, .format = LS_F16},
                           {.n_dims = 2, .row = {1, 5}, .col = {1, 5}, .format = LS_F32}};
    const size_t offsets[] = {0, 64, 192, 192};
    ls_program program = {.n_weights = 4, .weight = slots};
    ls_weight weight[4];
    ls_arena counted, arena;
    ls_error err = {0};
    arena_init_counting(&counted);
    assert_int_equal(weights_place(&program, &counted, 2, NULL, &err), LS_OK);
    assert_int_equal(counted.by_tag[2], 192 + 128);
    assert_int_equal(arena_init(&arena, counted.used, &err), LS_OK);
    assert_int_equal(weights_place(&program, &arena, 2, weight, &err), LS_OK);
    for (int i = 0; i < 4; i++) {
        assert_ptr_equal(weight[i].data, arena.base + offsets[i]);
        assert_true(weight[i].rows == slots[i].row.count && weight[i].cols == slots[i].col.count);
        assert_true(weight[i].format == slots[i].format && weight[i].layout == LAYOUT_ROW_MAJOR);
        assert_null(weight[i].scale);
    }
    arena_deinit(&arena);
}

/* ---- int8 ---- */

enum { INT8_ROWS = 5, INT8_COLS = 300 };

static void load_int8(ls_group group, int8_t *q, float *scale) {
    weight_source source = {.dummy_seed = 3, .dummy_dtype = LS_BF16};
    one_weight w;
    set_slot(&w, "model.layers.0.mlp.down_proj.weight", 2, INT8_ROWS, INT8_COLS, LS_INT8);
    w.program.group = group;
    w.slot.rule = SHARD_ROW;
    w.slot.col = shard_leaves(INT8_COLS, group);
    w.slot.n_leaves = shard_leaf_count(group);
    ls_weight weight = {.format = LS_INT8, .data = q, .scale = scale, .rows = INT8_ROWS, .cols = (int)w.slot.col.count};
    assert_int_equal(slot_bytes(&w.slot), INT8_ROWS * (w.slot.col.count + 4 * w.slot.n_leaves));
    for (int64_t row = INT8_ROWS; row-- > 0;) { /* rows may come in any order */
        assert_int_equal(weight_load(&w.program, &source, 0, &weight, row, row + 1, NULL), LS_OK);
    }
}

/* Each rank's numbers and scales are its columns of the whole's, and each number is within half a step. */
static void int8_shards(void **state) {
    (void)state;
    static int8_t whole[INT8_ROWS * INT8_COLS], part[INT8_ROWS * INT8_COLS];
    float scale[INT8_ROWS * 8], part_scale[INT8_ROWS * 8];
    load_int8((ls_group){0, 1}, whole, scale);
    for (int size = 2; size <= 8; size *= 2) {
        for (int rank = 0; rank < size; rank++) {
            const ls_group group = {rank, size};
            const shard_range cols = shard_leaves(INT8_COLS, group);
            const int count = shard_leaf_count(group), first = shard_leaf_first(group);
            load_int8(group, part, part_scale);
            for (int row = 0; row < INT8_ROWS; row++) {
                assert_memory_equal(part + row * cols.count, whole + row * INT8_COLS + cols.first, (size_t)cols.count);
                assert_memory_equal(part_scale + row * count, scale + row * 8 + first, (size_t)count * sizeof *scale);
            }
        }
    }
    weight_source source = {.dummy_seed = 3, .dummy_dtype = LS_BF16};
    one_weight w;
    void *data;
    set_slot(&w, "model.layers.0.mlp.down_proj.weight", 2, INT8_ROWS, INT8_COLS, LS_F32);
    assert_int_equal(load(&w, &source, &data, NULL), LS_OK);
    for (int row = 0; row < INT8_ROWS; row++) {
        for (int leaf = 0; leaf < 8; leaf++) {
            int largest = 0;
            for (int64_t k = leaf_border(INT8_COLS, leaf); k < leaf_border(INT8_COLS, leaf + 1); k++) {
                const int q = whole[row * INT8_COLS + k];
                const double step = scale[row * 8 + leaf];
                assert_true(fabs(q * step - (double)((float *)data)[row * INT8_COLS + k]) <= 0.5001 * step);
                largest = abs(q) > largest ? abs(q) : largest;
            }
            assert_int_equal(largest, leaf_border(INT8_COLS, leaf) < INT8_COLS ? 127 : 0);
        }
    }
    free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(int8_shards),
        cmocka_unit_test(dummy_weights_equal_the_golden_ones),
        cmocka_unit_test(dummy_weights_depend_on_seed_name_and_dtype),
        cmocka_unit_test(parts_and_conversions),
        cmocka_unit_test(wrong_tensors_are_refused),
        cmocka_unit_test(places),
    };
    return cmocka_run_group_tests(tests, write_checkpoint, remove_checkpoint);
}
