/*
 * The inner loops, compiled once for each instruction set: CPU_ISA is ref, avx2 or avx512 (see the Makefile).
 *
 * The 16 accumulators of ops.h section 2 are one or two vectors of the compiler's own vector extension (vec_tmpl.h), so
 * all versions are bit-equal by construction (tests/kern checks it).
 */
#include "backend/cpu/matmul_tmpl.h"
#include "backend/cpu/rows_tmpl.h"
#include "backend/cpu/vec_tmpl.h"

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define TEXT2(a) #a
#define TEXT(a) TEXT2(a)

#define DEFINE_LOOPS(suffix, type)                                                                                     \
    static float dot_##suffix(const void *data, const float *x, int64_t n) {                                           \
        const type *w = data;                                                                                          \
        f32v acc[REGISTERS] = {{0}};                                                                                   \
        for (int64_t i = 0; i < n; i += LANES) {                                                                       \
            type w_tail[LANES] = {0};                                                                                  \
            float x_tail[LANES] = {0};                                                                                 \
            const type *a = w + i;                                                                                     \
            const float *b = x + i;                                                                                    \
            if (n - i < LANES) {                                                                                       \
                a = memcpy(w_tail, a, (size_t)(n - i) * sizeof *a);                                                    \
                b = memcpy(x_tail, b, (size_t)(n - i) * sizeof *b);                                                    \
            }                                                                                                          \
            for (int r = 0; r < REGISTERS; r++) {                                                                      \
                acc[r] = fma_v(load_##suffix(a + r * WIDTH), load_f32(b + r * WIDTH), acc[r]);                         \
            }                                                                                                          \
        }                                                                                                              \
        return sum_lanes(acc);                                                                                         \
    }                                                                                                                  \
    /* n is a multiple of 16; four vectors of y at a time stay in registers. */                                        \
    static void axpy_##suffix(float *y, const void *data, const float *scale, int64_t n_rows, int64_t n) {             \
        enum { HELD = 4 };                                                                                             \
        const type *w = data;                                                                                          \
        int64_t i = 0;                                                                                                 \
        for (; i + HELD * WIDTH <= n; i += HELD * WIDTH) {                                                             \
            f32v acc[HELD];                                                                                            \
            memcpy(acc, y + i, sizeof acc);                                                                            \
            for (int64_t j = 0; j < n_rows; j++) {                                                                     \
                for (int k = 0; k < HELD; k++) {                                                                       \
                    acc[k] = fma_v(load_##suffix(w + j * n + i + k * WIDTH), splat(scale[j]), acc[k]);                 \
                }                                                                                                      \
            }                                                                                                          \
            memcpy(y + i, acc, sizeof acc);                                                                            \
        }                                                                                                              \
        for (; i < n; i += WIDTH) {                                                                                    \
            f32v acc = load_f32(y + i);                                                                                \
            for (int64_t j = 0; j < n_rows; j++) {                                                                     \
                acc = fma_v(load_##suffix(w + j * n + i), splat(scale[j]), acc);                                       \
            }                                                                                                          \
            store_f32(y + i, acc);                                                                                     \
        }                                                                                                              \
    }

DEFINE_LOOPS(f32, float)
DEFINE_LOOPS(bf16, uint16_t)
DEFINE_LOOPS(f16, uint16_t)

static float softmax(float *s, float scale, int64_t n) {
    f32v most = splat(-INFINITY);
    for (int64_t i = 0; i < n; i += WIDTH) {
        f32v value = load_some(s + i, n - i) * scale;
        store_some(s + i, n - i, value);
        value = n - i < WIDTH ? splat(-INFINITY) : value; /* the rest is looked at below */
        most = select_v(value > most, value, most);
    }
    float m = -INFINITY;
    for (int i = 0; i < WIDTH; i++) {
        m = most[i] > m ? most[i] : m;
    }
    for (int64_t i = n / WIDTH * WIDTH; i < n; i++) {
        m = s[i] > m ? s[i] : m;
    }
    for (int64_t i = 0; i < n; i += WIDTH) {
        store_some(s + i, n - i, exp_v(load_some(s + i, n - i) - m));
    }
    return m;
}

static void exps(const float *x, float by, float max, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += WIDTH) {
        store_some(out + i, n - i, exp_v(load_some(x + i, n - i) / by - max));
    }
}

static void divide(const float *x, float by, int64_t n, ls_dtype dtype, float *out) {
    for (int64_t i = 0; i < n; i += WIDTH) {
        store_some(out + i, n - i, round_v(dtype, load_some(x + i, n - i) / by));
    }
}

static uint64_t read_all(const void *data, size_t bytes) {
    enum { STREAMS = 4 };
    const uint8_t *byte = data;
    u32v acc[STREAMS] = {{0}};
    for (size_t i = 0; i + sizeof acc <= bytes; i += sizeof acc) {
        for (int j = 0; j < STREAMS; j++) {
            u32v block;
            memcpy(&block, byte + i + (size_t)j * sizeof block, sizeof block);
            acc[j] ^= block;
        }
    }
    acc[0] ^= acc[1] ^ acc[2] ^ acc[3];
    uint64_t all = 0;
    for (int j = 0; j < WIDTH; j++) {
        all ^= acc[0][j];
    }
    return all;
}

extern const cpu_isa JOIN(cpu_isa, CPU_ISA);
const cpu_isa JOIN(cpu_isa, CPU_ISA) = {
    .name = TEXT(CPU_ISA),
    .matmul = matmul,
    .norm = norm,
    .silu = silu,
    .finite = all_finite,
    .quantize = quantize,
    .copy = copy,
    .widen = widen,
    .narrow = narrow,
    .dummy = dummy,
    .dot = {[LS_F32] = dot_f32, [LS_BF16] = dot_bf16, [LS_F16] = dot_f16},
    .axpy = {[LS_F32] = axpy_f32, [LS_BF16] = axpy_bf16, [LS_F16] = axpy_f16},
    .softmax = softmax,
    .exps = exps,
    .divide = divide,
    .read = read_all,
};
