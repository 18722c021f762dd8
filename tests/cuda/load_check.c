/*
 * The kernels that load weights against the CPU's loader, bit for bit: every dtype into every format, odd shapes and
 * alignments, leaves of any length, ties, subnormals and zeros, dummy values of whole tensors and of shards; and that what
 * is infinite or NaN once it is stored leaves a mark, and nothing else does.
 *
 * One line for each failure; exits 1 if there was one. tests/cuda/load/build runs it without a GPU.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cuda/cuda.h"
#include "base/numeric.h"

enum { MAX_ELEMENTS = 1 << 16, ZONE = 64, UNTOUCHED = 0xa5, MARK = 77 };

typedef struct check {
    cuda_driver *driver;
    cuda_rank rank;
    cuda_load_kernels kernels;
    CUdeviceptr in, out, scale, fault;
    uint64_t random;
    int n_checks, n_failures;
} check;

typedef struct load_case {
    ls_dtype dtype, format;
    int64_t rows, cols;
    int in_offset, out_offset; /* elements off a border of 64 bytes */
    int leaf_first, n_leaves;  /* int8 */
    int64_t k_total;           /* that the leaves are eighths of */
    bool dummy;
    int64_t first_row, first_col, all_cols; /* dummy */
} load_case;

static uint64_t next_random(check *c) {
    c->random += 0x9E3779B97F4A7C15;
    uint64_t x = c->random;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
}

static void must(bool good, const char *what) {
    if (!good) {
        printf("FATAL %s\n", what);
        exit(2);
    }
}

static void must_ok(ls_status st, const ls_error *err) {
    must(st == LS_OK, err->text);
}

/* ---- Elements ---- */

static void put(ls_dtype dtype, void *array, int64_t i, uint32_t bits) {
    if (dtype == LS_F32) {
        memcpy((uint8_t *)array + 4 * i, &bits, 4);
    } else {
        memcpy((uint8_t *)array + 2 * i, &bits, 2);
    }
}

/* Bits of a number that is finite in the format too: mostly the size of weights, some of any size, zeros, ties. */
static uint32_t good_bits(check *c, ls_dtype dtype, ls_dtype format) {
    for (;;) {
        uint64_t r = next_random(c);
        float value = ((float)(r >> 40) * 0x1p-23F - 1.0F) * 0.1F;
        uint32_t bits = dtype == LS_F32    ? f32_bits(value)
                        : dtype == LS_BF16 ? bf16_from_f32(value)
                                           : f16_from_f32(value);
        switch (r % 16) {
        case 0: /* any bits */
            bits = (uint32_t)(r >> 20) & (dtype == LS_F32 ? 0xffffffff : 0xffff);
            break;
        case 1: /* halfway between two numbers of 16 bits, in f32 */
            bits = dtype == LS_F32 ? (bits & 0xffffe000) | (r & 1 << 20 ? 0x8000 : 0x1000) : 0;
            break;
        case 2:
            bits = r & 1 << 20 ? 0 : dtype == LS_F32 ? 0x80000000 : 0x8000;
            break;
        default:
            break;
        }
        uint32_t element = bits;
        float as = dtype == LS_F32 ? f32_from_bits(bits) : load_as(dtype, &element, 0);
        if (isfinite(as) && (format == LS_INT8 || isfinite(round_to(format, as)))) {
            return bits;
        }
    }
}

/* ---- The CPU's ---- */

static bool reference(const load_case *k, const void *in, uint64_t hash, uint8_t *out, float *scale) {
    const cpu_isa *isa = cpu_isa_best();
    const cpu_leaves leaves = leaves_of(k->k_total, k->leaf_first, k->n_leaves);
    const size_t out_row = (size_t)k->cols * ls_dtype_bytes(k->format);
    float *row = malloc((size_t)(k->cols + 64) * sizeof *row);
    bool good = true;
    must(row != NULL, "out of memory");
    for (int64_t i = 0; i < k->rows; i++) {
        const uint8_t *from = (const uint8_t *)in + (size_t)(i * k->cols) * ls_dtype_bytes(k->dtype);
        if (k->dummy) {
            isa->dummy(hash, (k->first_row + i) * k->all_cols + k->first_col, 1.0F, 0.1F, k->dtype, k->cols, row);
        } else {
            isa->widen(k->dtype, from, k->cols, row);
        }
        if (k->format != LS_INT8) {
            good = (k->dtype == k->format && !k->dummy
                        ? isa->copy(k->format, from, k->cols, out + (size_t)i * out_row)
                        : isa->narrow(k->format, row, k->cols, out + (size_t)i * out_row)) &&
                   good;
            continue;
        }
        for (int leaf = 0; leaf < k->n_leaves; leaf++) {
            int64_t at = leaves.border[leaf], n = leaves.border[leaf + 1] - at;
            float s = isa->quantize(row + at, n, (int8_t *)out + (size_t)i * out_row + at);
            scale[i * k->n_leaves + leaf] = s;
            good = isfinite(s) && good;
        }
    }
    free(row);
    return good;
}

/* ---- One case ---- */

/* In the stream: a plain copy may still be on its way when it returns, and the stream does not wait for it. */
static void to_device(check *c, CUdeviceptr to, const void *from, size_t n) {
    ls_error err;
    must_ok(cuda_check(&c->rank, c->driver->cuMemcpyHtoDAsync(to, from, n, c->rank.stream), "copy", &err), &err);
}

static void from_device(check *c, void *to, CUdeviceptr from, size_t n) {
    ls_error err;
    must_ok(cuda_check(&c->rank, c->driver->cuMemcpyDtoH(to, from, n), "copy", &err), &err);
}

static void fail(check *c, const load_case *k, const char *what) {
    c->n_failures++;
    printf("FAILED %s: %s%s to %s, [%lld][%lld], leaves %d from %d of %lld, offsets %d %d\n", what,
           k->dummy ? "dummy " : "", ls_dtype_name(k->dtype), ls_dtype_name(k->format), (long long)k->rows,
           (long long)k->cols, k->n_leaves, k->leaf_first, (long long)k->k_total, k->in_offset, k->out_offset);
}

static void run_case(check *c, const load_case *k, const void *in, bool expect_good) {
    enum { BYTES = MAX_ELEMENTS * 4 + 4 * ZONE };
    static const uint64_t hash = 0x123456789abcdef;
    const size_t e_in = ls_dtype_bytes(k->dtype), e_out = ls_dtype_bytes(k->format);
    const size_t n = (size_t)(k->rows * k->cols), in_at = (size_t)k->in_offset * e_in;
    const size_t out_at = ZONE + (size_t)k->out_offset * e_out, n_scales = (size_t)(k->rows * k->n_leaves);
    uint8_t *wanted = malloc(BYTES), *found = malloc(BYTES);
    float *scale = malloc((n_scales + 1) * 2 * sizeof *scale);
    const cpu_leaves leaves = leaves_of(k->k_total, k->leaf_first, k->n_leaves);
    ls_error err;
    uint32_t fault = 0;
    must(wanted != NULL && found != NULL && scale != NULL && n <= MAX_ELEMENTS, "a case that is too large");
    memset(wanted, UNTOUCHED, BYTES);
    to_device(c, c->out, wanted, BYTES);
    to_device(c, c->fault, &fault, sizeof fault);
    if (!k->dummy) {
        to_device(c, c->in + in_at, in, n * e_in);
    }
    load_args args = {.in = k->dummy ? 0 : c->in + in_at,
                      .out = c->out + out_at,
                      .scale = c->scale,
                      .fault = c->fault,
                      .rows = k->rows,
                      .cols = k->cols,
                      .dtype = (int32_t)k->dtype,
                      .format = (int32_t)k->format,
                      .mark = MARK,
                      .n_leaves = k->n_leaves,
                      .offset = 1.0F,
                      .factor = 0.1F,
                      .hash = hash,
                      .first_row = k->first_row,
                      .first_col = k->first_col,
                      .all_cols = k->all_cols};
    for (int i = 0; i <= k->n_leaves && k->n_leaves > 0; i++) {
        args.border[i] = (int32_t)leaves.border[i];
    }
    must_ok(cuda_load_rows(&c->rank, &c->kernels, c->rank.stream, &args, &err), &err);
    must_ok(cuda_rank_wait(&c->rank, "loading", 20, &err), &err);
    from_device(c, found, c->out, BYTES);
    from_device(c, &fault, c->fault, sizeof fault);
    bool good = reference(k, in, hash, wanted + out_at, scale);
    must(good == expect_good, "a case that the CPU takes for another kind");
    c->n_checks++;
    if (fault != (good ? 0 : MARK)) {
        fail(c, k, good ? "a mark on good rows" : "no mark");
    } else if (good && memcmp(found, wanted, BYTES) != 0) {
        fail(c, k, "other bits");
    } else if (good && n_scales > 0) {
        from_device(c, scale + n_scales, c->scale, n_scales * sizeof *scale);
        if (memcmp(scale, scale + n_scales, n_scales * sizeof *scale) != 0) {
            fail(c, k, "other scales");
        }
    }
    free(wanted);
    free(found);
    free(scale);
}

/* Good rows, then the same with one element that is infinite, NaN or (where there is such) too large for the format. */
static void run_both(check *c, const load_case *k) {
    static const uint32_t bad_f32[] = {0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 0xffffffff};
    static const uint32_t bad_bf16[] = {0x7f80, 0xff80, 0x7fc0, 0x7f81, 0xffff};
    static const uint32_t bad_f16[] = {0x7c00, 0xfc00, 0x7e00, 0x7c01, 0xffff};
    const int64_t n = k->rows * k->cols;
    uint8_t *in = malloc((size_t)n * 4 + 64);
    must(in != NULL, "out of memory");
    for (int64_t i = 0; i < n; i++) {
        put(k->dtype, in, i, good_bits(c, k->dtype, k->format));
    }
    run_case(c, k, in, true);
    for (int i = 0; i < 6; i++) {
        const uint32_t *list = k->dtype == LS_F32 ? bad_f32 : k->dtype == LS_BF16 ? bad_bf16 : bad_f16;
        uint32_t bits = i < 5 ? list[i] : 0;
        if (i == 5 && k->format == LS_F16 && k->dtype != LS_F16) {
            bits = k->dtype == LS_F32 ? f32_bits(65520.0F) : bf16_from_f32(-65536.0F);
        } else if (i == 5 && k->format == LS_BF16 && k->dtype == LS_F32) {
            bits = 0x7f7fffff;
        } else if (i == 5) {
            break;
        }
        int64_t at = i < 2 ? (i == 0 ? 0 : n - 1) : (int64_t)(next_random(c) % (uint64_t)n);
        uint32_t before = 0;
        memcpy(&before, in + (size_t)at * ls_dtype_bytes(k->dtype), ls_dtype_bytes(k->dtype));
        put(k->dtype, in, at, bits);
        run_case(c, k, in, false);
        put(k->dtype, in, at, before);
    }
    free(in);
}

/* ---- All cases ---- */

static const ls_dtype DTYPES[] = {LS_F32, LS_BF16, LS_F16};

static void check_formats(check *c) {
    static const struct {
        int64_t rows, cols;
    } shapes[] = {{1, 1}, {1, 8}, {3, 5}, {2, 64}, {17, 100}, {5, 1023}, {3, 4096}, {1, 40000}};
    for (int d = 0; d < 3; d++) {
        for (int f = 0; f < 3; f++) {
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
                for (int offset = 0; offset < 4; offset++) {
                    run_both(c, &(load_case){.dtype = DTYPES[d],
                                             .format = DTYPES[f],
                                             .rows = shapes[s].rows,
                                             .cols = shapes[s].cols,
                                             .in_offset = offset % 2,
                                             .out_offset = offset / 2 * 3});
                }
            }
        }
    }
}

static void check_int8(check *c) {
    static const struct {
        int64_t rows, k_total;
        int leaf_first, n_leaves;
    } shapes[] = {{1, 1, 0, 8},    {3, 5, 0, 8},    {2, 16, 0, 8},    {9, 128, 0, 8},  {5, 200, 0, 8}, {3, 1000, 0, 8},
                  {2, 1003, 0, 8}, {2, 9000, 0, 8}, {1, 20480, 0, 8}, {4, 1000, 4, 4}, {3, 999, 2, 2}, {3, 260, 7, 1}};
    for (int d = 0; d < 3; d++) {
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            const cpu_leaves leaves = leaves_of(shapes[s].k_total, shapes[s].leaf_first, shapes[s].n_leaves);
            for (int offset = 0; offset < 4 && leaves.border[leaves.count] > 0; offset++) {
                run_both(c, &(load_case){.dtype = DTYPES[d],
                                         .format = LS_INT8,
                                         .rows = shapes[s].rows,
                                         .cols = leaves.border[leaves.count],
                                         .in_offset = offset % 2,
                                         .out_offset = offset / 2 * 3,
                                         .leaf_first = shapes[s].leaf_first,
                                         .n_leaves = shapes[s].n_leaves,
                                         .k_total = shapes[s].k_total});
            }
        }
    }
}

/* Leaves whose largest is nothing, too small to be divided by 127, or the largest number there is. */
static void check_odd_scales(check *c) {
    static const uint32_t bits[] = {0, 0x80000000, 1, 0x40, 0x00800000, 0x7f7fffff, 0xff7fffff};
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
        uint32_t row[256] = {0};
        for (int at = 0; at < 256; at += 3) {
            row[at] = at % 2 == 0 ? bits[i] : bits[i] & 0x80000000;
        }
        run_case(c, &(load_case){LS_F32, LS_INT8, .rows = 1, .cols = 256, .n_leaves = 8, .k_total = 256}, row, true);
    }
}

static void check_dummies(check *c) {
    static const ls_dtype formats[] = {LS_F32, LS_BF16, LS_F16, LS_INT8};
    for (int d = 0; d < 3; d++) {
        for (int f = 0; f < 4; f++) {
            for (int sliced = 0; sliced < 3; sliced++) {
                const int64_t cols = sliced == 2 ? 129 : 512, all = sliced == 0 ? cols : 1024;
                const bool int8 = formats[f] == LS_INT8;
                run_case(c,
                         &(load_case){.dtype = DTYPES[d],
                                      .format = formats[f],
                                      .rows = 11,
                                      .cols = cols,
                                      .n_leaves = int8 ? 8 : 0,
                                      .k_total = int8 ? cols : 0,
                                      .dummy = true,
                                      .first_row = 1000000,
                                      .first_col = sliced == 0 ? 0 : 256,
                                      .all_cols = all},
                         NULL, true);
            }
        }
    }
}

static CUdeviceptr reserve(check *c, size_t bytes) {
    CUdeviceptr at;
    ls_error err;
    must_ok(cuda_check(&c->rank, c->driver->cuMemAlloc(&at, bytes), "memory", &err), &err);
    return at;
}

int main(void) {
    check c = {.random = 1};
    ls_error err;
    must_ok(cuda_driver_open(&c.driver, &err), &err);
    must_ok(cuda_rank_open(&c.rank, c.driver, 0, getenv("LS_KERNELS") != NULL, &err), &err);
    must_ok(cuda_load_open(&c.kernels, &c.rank, &err), &err);
    c.in = reserve(&c, MAX_ELEMENTS * 4 + 4 * ZONE);
    c.out = reserve(&c, MAX_ELEMENTS * 4 + 4 * ZONE);
    c.scale = reserve(&c, MAX_ELEMENTS * 4);
    c.fault = reserve(&c, 256);
    check_formats(&c);
    check_int8(&c);
    check_odd_scales(&c);
    check_dummies(&c);
    CUdeviceptr all[] = {c.in, c.out, c.scale, c.fault};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        c.driver->cuMemFree(all[i]);
    }
    cuda_rank_close(&c.rank);
    cuda_driver_close(&c.driver);
    printf("load_check: against the CPU's loader\n%d passed, %d failed\n",
           c.n_failures < c.n_checks ? c.n_checks - c.n_failures : 0, c.n_failures);
    return c.n_failures > 0 || c.n_checks < 1000;
}
