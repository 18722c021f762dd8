/*
 * Matmuls of isa_tmpl.c: y[m][n] = leaf tree over k of w[n][k] x[m][k].
 *
 * Four rows of w pass at a time. For one row of x they are read where they lie, four chains of fma at once, one from each
 * quarter of the thread's part: four streams from end to end, which the machine's prefetchers follow better than rows that
 * lie side by side (97 against 90 % of a plain read's rate). For more rows of x four neighbours are turned into f32 once, a
 * leaf at a time, and meet TILE_M rows of x at a time, with all sums in registers. Each sum's order is the contract's
 * either way.
 */
#ifndef LS_BACKEND_CPU_MATMUL_TMPL_H
#define LS_BACKEND_CPU_MATMUL_TMPL_H

#include "backend/cpu/vec_tmpl.h"

enum {
    TILE_N = 4,
    TILE_X8 = 4, /* rows of quantised x at a time */
    TILE_M = WIDTH == 16 ? 6 : 3,
    BLOCK_M = 96,          /* most rows of x that stay in the cache while all rows of w pass */
    BLOCK_BYTES = 1 << 19, /* and their bytes */
    PANEL_COLS = 8192,     /* a longer leaf is done for one row of x at a time */
    LINE = 64,
    AHEAD_BYTES = 1024 /* of prefetching in one stream */
};

/* 16-lane sums of w[0..3] with x over n elements; `ahead` elements on lies what will be read next. */
#define DEFINE_DOT(suffix, type)                                                                                       \
    INLINE void madd_##suffix(f32v lanes[TILE_N][REGISTERS], const type *const w[TILE_N], const float *x, int64_t i) { \
        for (int r = 0; r < REGISTERS; r++) {                                                                          \
            f32v b = load_f32(x + i + r * WIDTH);                                                                      \
            for (int j = 0; j < TILE_N; j++) {                                                                         \
                lanes[j][r] = fma_v(load_##suffix(w[j] + i + r * WIDTH), b, lanes[j][r]);                              \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static f32x4 dot4_##suffix(const type *const w[TILE_N], const float *x, int64_t n, int64_t ahead) {                \
        enum { STEP = LINE / sizeof(type) };                                                                           \
        f32v lanes[TILE_N][REGISTERS] = {{{0}}};                                                                       \
        int64_t i = 0;                                                                                                 \
        for (; i + STEP <= n; i += STEP) {                                                                             \
            for (int j = 0; j < TILE_N; j++) {                                                                         \
                __builtin_prefetch(w[j] + i + ahead);                                                                  \
            }                                                                                                          \
            for (int k = 0; k < STEP; k += LANES) {                                                                    \
                madd_##suffix(lanes, w, x, i + k);                                                                     \
            }                                                                                                          \
        }                                                                                                              \
        for (; i + LANES <= n; i += LANES) {                                                                           \
            madd_##suffix(lanes, w, x, i);                                                                             \
        }                                                                                                              \
        if (i < n) { /* padded with zeros: fma(0, 0, acc) is acc, but for a zero's sign, which no sum can show */      \
            type w_tail[TILE_N][LANES] = {{0}};                                                                        \
            float x_tail[LANES] = {0};                                                                                 \
            const type *const rows[TILE_N] = {w_tail[0], w_tail[1], w_tail[2], w_tail[3]};                             \
            for (int j = 0; j < TILE_N; j++) {                                                                         \
                memcpy(w_tail[j], w[j] + i, (size_t)(n - i) * sizeof(type));                                           \
            }                                                                                                          \
            memcpy(x_tail, x + i, (size_t)(n - i) * sizeof *x);                                                        \
            madd_##suffix(lanes, rows, x_tail, 0);                                                                     \
        }                                                                                                              \
        return sum_lanes_4(lanes);                                                                                     \
    }                                                                                                                  \
    /* to[j][i] = w[j][i] in f32, padded with zeros to whole lanes. */                                                 \
    static void widen_##suffix(float *to, int64_t stride, const type *const w[TILE_N], int64_t n, int64_t ahead) {     \
        for (int j = 0; j < TILE_N; j++) {                                                                             \
            int64_t i = 0;                                                                                             \
            for (; i + LANES <= n; i += LANES) {                                                                       \
                __builtin_prefetch(w[j] + i + ahead);                                                                  \
                for (int r = 0; r < LANES; r += WIDTH) {                                                               \
                    store_f32(to + j * stride + i + r, load_##suffix(w[j] + i + r));                                   \
                }                                                                                                      \
            }                                                                                                          \
            if (i < n) {                                                                                               \
                type tail[LANES] = {0};                                                                                \
                memcpy(tail, w[j] + i, (size_t)(n - i) * sizeof(type));                                                \
                for (int r = 0; r < LANES; r += WIDTH) {                                                               \
                    store_f32(to + j * stride + i + r, load_##suffix(tail + r));                                       \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

/* Sums of TILE_N rows of w (padded) with n_x rows of x, a constant, over n elements. */
INLINE void tile_sums(const float *w, int64_t w_stride, const float *x, int64_t x_stride, int64_t n, int n_x,
                      f32x4 *out, int64_t out_stride) {
    f32v lanes[TILE_M][TILE_N][REGISTERS];
    int64_t whole = n / LANES * LANES;
    float x_tail[TILE_M][LANES] = {{0}};
    for (int m = 0; m < n_x && whole < n; m++) {
        memcpy(x_tail[m], x + m * x_stride + whole, (size_t)(n - whole) * sizeof *x);
    }
    for (int r = 0; r < REGISTERS; r++) {
        f32v acc[TILE_M][TILE_N] = {{{0}}};
        for (int64_t i = r * WIDTH; i < whole; i += LANES) {
            f32v a[TILE_N];
#pragma GCC unroll 4
            for (int j = 0; j < TILE_N; j++) {
                a[j] = load_f32(w + j * w_stride + i);
            }
#pragma GCC unroll 6
            for (int m = 0; m < n_x; m++) {
                f32v b = load_f32(x + m * x_stride + i);
#pragma GCC unroll 4
                for (int j = 0; j < TILE_N; j++) {
                    acc[m][j] = fma_v(a[j], b, acc[m][j]);
                }
            }
        }
        for (int m = 0; m < n_x; m++) {
            for (int j = 0; j < TILE_N; j++) {
                if (whole < n) {
                    f32v a = load_f32(w + j * w_stride + whole + r * WIDTH);
                    acc[m][j] = fma_v(a, load_f32(x_tail[m] + r * WIDTH), acc[m][j]);
                }
                lanes[m][j][r] = acc[m][j];
            }
        }
    }
    for (int m = 0; m < n_x; m++) {
        out[m * out_stride] = sum_lanes_4(lanes[m]);
    }
}

/* ThreadSanitizer would spend two thirds of its time on tile's reads: of rows of x, again for every four rows of w, and of a
 * copy of w that is the thread's own. It is shown one read of each row of x instead. */
#if defined(__SANITIZE_THREAD__)
#define UNWATCHED __attribute__((no_sanitize("thread")))
void __tsan_read_range(void *from, unsigned long n_bytes);
INLINE void show_reads(const cpu_matmul *a, int64_t m0, int64_t n_x) {
    for (int64_t m = m0; m < m0 + n_x; m++) {
        __tsan_read_range((void *)(a->x + m * a->x_stride), (unsigned long)a->w->cols * sizeof *a->x);
    }
}
#else
#define UNWATCHED
INLINE void show_reads(const cpu_matmul *a, int64_t m0, int64_t n_x) {
    (void)a, (void)m0, (void)n_x;
}
#endif

UNWATCHED
static void tile(const float *w, int64_t w_stride, const float *x, int64_t x_stride, int64_t n, int n_x, f32x4 *out,
                 int64_t out_stride) {
    switch (n_x) {
#define TILE_CASE(count)                                                                                               \
    case count:                                                                                                        \
        tile_sums(w, w_stride, x, x_stride, n, (count) < TILE_M ? (count) : TILE_M, out, out_stride);                  \
        break;
        TILE_CASE(1)
        TILE_CASE(2)
        TILE_CASE(3)
        TILE_CASE(4)
        TILE_CASE(5)
        TILE_CASE(6)
    default:
        break;
    }
}

INLINE f32x4 leaf_tree_4(f32x4 *leaf, int count) {
    for (; count > 1; count /= 2) {
        for (int i = 0; i < count / 2; i++) {
            leaf[i] = leaf[2 * i] + leaf[2 * i + 1];
        }
    }
    return leaf[0];
}

/* The scales of four rows for one leaf; 1 without scales would change no bit, but there is nothing to read. */
INLINE f32x4 leaf_scale(const cpu_matmul *a, const int64_t row[TILE_N], int leaf) {
    f32x4 scale;
    for (int j = 0; j < TILE_N; j++) {
        scale[j] = a->w->scale[row[j] * a->leaves.count + leaf];
    }
    return scale;
}

/* Rows of x from m0 on that are taken together. */
INLINE int64_t block_rows(const cpu_matmul *a, int64_t m0) {
    int64_t fit = BLOCK_BYTES / (int64_t)sizeof(float) / (a->w->cols + 1) / TILE_M * TILE_M;
    fit = fit < TILE_M ? TILE_M : fit > BLOCK_M ? BLOCK_M : fit;
    for (int i = 0; i < a->leaves.count; i++) {
        fit = a->leaves.border[i + 1] - a->leaves.border[i] > PANEL_COLS ? 1 : fit;
    }
    return a->n_x - m0 < fit ? a->n_x - m0 : fit;
}

#define DEFINE_PANEL(suffix, type)                                                                                     \
    DEFINE_DOT(suffix, type)                                                                                           \
    /* Rows [m0, m0 + n_x) of x with four rows of w. sum[m][leaf] */                                                   \
    INLINE void panel_##suffix(const cpu_matmul *a, const int64_t row[TILE_N], const type *const w[TILE_N],            \
                               int64_t m0, int64_t n_x, f32x4(*sum)[LS_LEAVES]) {                                      \
        float wide[n_x > 1 ? TILE_N * PANEL_COLS : 1];                                                                 \
        const int64_t ahead = n_x == 1 ? AHEAD_BYTES / (int64_t)sizeof(type) : (int64_t)TILE_N * a->w->cols;           \
        for (int leaf = 0; leaf < a->leaves.count; leaf++) {                                                           \
            const int64_t from = a->leaves.border[leaf], n = a->leaves.border[leaf + 1] - from;                        \
            const int64_t stride = (n + LANES - 1) / LANES * LANES;                                                    \
            const type *const part[TILE_N] = {w[0] + from, w[1] + from, w[2] + from, w[3] + from};                     \
            const float *x = a->x + m0 * a->x_stride + from;                                                           \
            if (n_x == 1) {                                                                                            \
                sum[0][leaf] = dot4_##suffix(part, x, n, ahead);                                                       \
            } else {                                                                                                   \
                widen_##suffix(wide, stride, part, n, ahead);                                                          \
            }                                                                                                          \
            for (int64_t m = 0; m < n_x && n_x > 1; m += TILE_M) {                                                     \
                int count = (int)(n_x - m < TILE_M ? n_x - m : TILE_M);                                                \
                tile(wide, stride, x + m * a->x_stride, a->x_stride, n, count, &sum[m][leaf], LS_LEAVES);              \
            }                                                                                                          \
            if (a->w->scale != NULL) {                                                                                 \
                const f32x4 scale = leaf_scale(a, row, leaf);                                                          \
                for (int64_t m = 0; m < n_x; m++) {                                                                    \
                    sum[m][leaf] *= scale;                                                                             \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

/* One row of x. */
#define DEFINE_STREAM(suffix, type)                                                                                    \
    static void stream_##suffix(const cpu_matmul *a) {                                                                 \
        const type *data = a->w->data;                                                                                 \
        const int64_t quarter = (a->last - a->first + TILE_N - 1) / TILE_N;                                            \
        for (int64_t t = 0; t < quarter; t++) {                                                                        \
            int64_t row[TILE_N];                                                                                       \
            const type *w[TILE_N];                                                                                     \
            f32x4 sum[1][LS_LEAVES];                                                                                   \
            for (int j = 0; j < TILE_N; j++) { /* a short last quarter does its last row again */                      \
                row[j] = a->first + j * quarter + t < a->last ? a->first + j * quarter + t : a->last - 1;              \
                w[j] = data + row[j] * a->w->cols;                                                                     \
            }                                                                                                          \
            panel_##suffix(a, row, w, 0, 1, sum);                                                                      \
            const f32x4 all = leaf_tree_4(sum[0], a->leaves.count);                                                    \
            for (int j = 0; j < TILE_N; j++) {                                                                         \
                a->y[row[j] - a->first] = all[j];                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

#define DEFINE_ROWS(suffix, type)                                                                                      \
    DEFINE_STREAM(suffix, type)                                                                                        \
    static void matmul_##suffix(const cpu_matmul *a) {                                                                 \
        if (a->n_x == 1) {                                                                                             \
            stream_##suffix(a);                                                                                        \
            return;                                                                                                    \
        }                                                                                                              \
        const type *data = a->w->data;                                                                                 \
        f32x4 sum[BLOCK_M][LS_LEAVES];                                                                                 \
        for (int64_t m0 = 0, n_x; m0 < a->n_x; m0 += n_x) {                                                            \
            n_x = block_rows(a, m0);                                                                                   \
            show_reads(a, m0, n_x);                                                                                    \
            for (int64_t n0 = a->first; n0 < a->last; n0 += TILE_N) {                                                  \
                /* Where fewer than four rows are left, the last one is done again. */                                 \
                const int64_t end = a->last - 1;                                                                       \
                const int64_t row[TILE_N] = {n0, n0 + 1 < end ? n0 + 1 : end, n0 + 2 < end ? n0 + 2 : end,             \
                                             n0 + 3 < end ? n0 + 3 : end};                                             \
                const type *const w[TILE_N] = {data + row[0] * a->w->cols, data + row[1] * a->w->cols,                 \
                                               data + row[2] * a->w->cols, data + row[3] * a->w->cols};                \
                panel_##suffix(a, row, w, m0, n_x, sum);                                                               \
                for (int64_t m = 0; m < n_x; m++) {                                                                    \
                    f32x4 all = leaf_tree_4(sum[m], a->leaves.count);                                                  \
                    memcpy(a->y + (m0 + m) * a->y_stride + (n0 - a->first), &all,                                      \
                           (size_t)(a->last - n0 < TILE_N ? a->last - n0 : TILE_N) * sizeof *a->y);                    \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

DEFINE_PANEL(f32, float)
DEFINE_ROWS(f32, float)
DEFINE_PANEL(bf16, uint16_t)
DEFINE_ROWS(bf16, uint16_t)
DEFINE_PANEL(f16, uint16_t)
DEFINE_ROWS(f16, uint16_t)
DEFINE_PANEL(int8, int8_t)
DEFINE_ROWS(int8, int8_t)

/* ---- w8a8 ---- */

typedef int32_t i32x4 __attribute__((vector_size(16)));

#if defined(__AVX512VNNI__)
/* As sum_lanes_4. */
INLINE i32x4 sum_ints_4(const __m512i acc[TILE_N]) {
    const __m512i ab =
        _mm512_add_epi32(_mm512_shuffle_i32x4(acc[0], acc[1], 0x44), _mm512_shuffle_i32x4(acc[0], acc[1], 0xee));
    const __m512i cd =
        _mm512_add_epi32(_mm512_shuffle_i32x4(acc[2], acc[3], 0x44), _mm512_shuffle_i32x4(acc[2], acc[3], 0xee));
    __m512i all = _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xdd));
    all = _mm512_add_epi32(all, _mm512_shuffle_epi32(all, 0x4e));
    all = _mm512_add_epi32(all, _mm512_shuffle_epi32(all, 0xb1));
    const __m512i firsts = _mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12));
    return (i32x4)_mm512_castsi512_si128(_mm512_permutexvar_epi32(firsts, all));
}

/* VNNI multiplies unsigned with signed: w is offset by 128, and the sum of x takes that off again. */
INLINE void dots_w8a8(const int8_t *const w[TILE_N], const cpu_xq *const *x, int n_x, int leaf, int64_t from, int64_t n,
                      i32x4 *out) {
    const __m512i offset = _mm512_set1_epi8((char)0x80);
    __m512i acc[TILE_X8][TILE_N] = {{{0}}};
    for (int64_t i = 0; i < n; i += LINE) {
        const __mmask64 mask = n - i < LINE ? ((__mmask64)1 << (n - i)) - 1 : ~(__mmask64)0;
        __m512i a[TILE_N];
#pragma GCC unroll 4
        for (int j = 0; j < TILE_N; j++) {
            a[j] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, w[j] + i), offset);
        }
#pragma GCC unroll 4
        for (int m = 0; m < n_x; m++) {
            const __m512i b = _mm512_maskz_loadu_epi8(mask, x[m]->q + from + i);
#pragma GCC unroll 4
            for (int j = 0; j < TILE_N; j++) {
                acc[m][j] = _mm512_dpbusd_epi32(acc[m][j], a[j], b);
            }
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < n_x; m++) {
        out[m] = sum_ints_4(acc[m]) - 128 * x[m]->sum[leaf];
    }
}
#else
/* AVX2 multiplies |w| with x under w's sign: two products of at most 127 * 127 fit 16 bits. */
INLINE void dots_w8a8(const int8_t *const w[TILE_N], const cpu_xq *const *x, int n_x, int leaf, int64_t from, int64_t n,
                      i32x4 *out) {
    (void)leaf;
    for (int m = 0; m < n_x; m++) {
        for (int j = 0; j < TILE_N; j++) {
            int64_t i = 0;
            int32_t all = 0;
#if defined(__AVX2__)
            __m256i acc = _mm256_setzero_si256();
            for (; i + 32 <= n; i += 32) {
                const __m256i a = _mm256_loadu_si256((const __m256i *)(w[j] + i));
                const __m256i b = _mm256_loadu_si256((const __m256i *)(x[m]->q + from + i));
                const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
                acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
            for (int k = 0; k < 8; k++) {
                all += ((i32v)acc)[k];
            }
#endif
            for (; i < n; i++) {
                all += (int32_t)w[j][i] * x[m]->q[from + i];
            }
            out[m][j] = all;
        }
    }
}
#endif

/* Scaled leaves, unlike the other panels': a row of x has its scales where it has its numbers. */
INLINE void panel_w8a8(const cpu_matmul *a, const int64_t row[TILE_N], const int8_t *const w[TILE_N], int64_t m0,
                       int64_t n_x, f32x4 (*sum)[LS_LEAVES]) {
    f32x4 scale[LS_LEAVES];
    for (int leaf = 0; leaf < a->leaves.count; leaf++) {
        scale[leaf] = leaf_scale(a, row, leaf);
    }
    for (int64_t m = 0; m < n_x; m += TILE_X8) {
        const int count = (int)(n_x - m < TILE_X8 ? n_x - m : TILE_X8);
        const cpu_xq *x[TILE_X8];
        for (int i = 0; i < TILE_X8; i++) {
            x[i] = xq_row(a->xq, a->w->cols, m0 + m + (i < count ? i : 0));
        }
        for (int leaf = 0; leaf < a->leaves.count; leaf++) {
            const int64_t from = a->leaves.border[leaf], n = a->leaves.border[leaf + 1] - from;
            const int8_t *const part[TILE_N] = {w[0] + from, w[1] + from, w[2] + from, w[3] + from};
            i32x4 dot[TILE_X8];
            for (int64_t i = 0; i < n && m == 0; i += LINE) {
                for (int k = 0; k < TILE_N; k++) {
                    __builtin_prefetch(part[k] + i + (n_x == 1 ? AHEAD_BYTES : (int64_t)TILE_N * a->w->cols));
                }
            }
            if (count > 1) {
                dots_w8a8(part, x, TILE_X8, leaf, from, n, dot);
            } else {
                dots_w8a8(part, x, 1, leaf, from, n, dot);
            }
            for (int i = 0; i < count; i++) {
                sum[m + i][leaf] = __builtin_convertvector(dot[i], f32x4) * (scale[leaf] * x[i]->scale[leaf]);
            }
        }
    }
}

DEFINE_ROWS(w8a8, int8_t)

static void matmul(const cpu_matmul *a) {
    switch (a->w->format) {
    case LS_F32:
        matmul_f32(a);
        break;
    case LS_BF16:
        matmul_bf16(a);
        break;
    case LS_F16:
        matmul_f16(a);
        break;
    default:
        (a->xq != NULL ? matmul_w8a8 : matmul_int8)(a);
        break;
    }
}

#endif
