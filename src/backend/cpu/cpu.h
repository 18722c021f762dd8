/*
 * The CPU back end: the reference ops (the oracle, ref_*.c), over inner loops that are chosen for the machine.
 *
 * The inner loops are isa_tmpl.c, one C source compiled once for each instruction set. They give the same bits by
 * construction: every version keeps the 16 accumulators of the contract and fuses where it says fma.
 */
#ifndef LS_BACKEND_CPU_H
#define LS_BACKEND_CPU_H

#include "backend/ops.h"
#include "base/numeric.h"

/* Where K is cut: leaves [border[i], border[i + 1]) of a row, in elements of this rank. */
typedef struct cpu_leaves {
    int count; /* a power of two */
    int64_t border[LS_LEAVES + 1];
} cpu_leaves;

/* w8a8: a row of BUF_XQ, which a matmul's input is quantised into. */
typedef struct cpu_xq {
    float scale[LS_LEAVES];
    int32_t sum[LS_LEAVES]; /* of q, by leaf */
    int8_t q[];             /* [cols] */
} cpu_xq;

static inline size_t xq_row_bytes(int64_t cols) {
    return sizeof(cpu_xq) + (size_t)(cols + 63) / 64 * 64;
}
static inline cpu_xq *xq_row(void *xq, int64_t cols, int64_t row) {
    return (cpu_xq *)((uint8_t *)xq + (size_t)row * xq_row_bytes(cols));
}

/* y[m][n - first] = leaf tree of w[n] . x[m], for rows [first, last) of w and all n_x rows of x. */
typedef struct cpu_matmul {
    const ls_weight *w;
    cpu_leaves leaves;
    int64_t first, last;
    const float *x;
    int64_t x_stride;
    int64_t n_x;
    float *y;
    int64_t y_stride;
    void *xq; /* w8a8: x, quantised; NULL: the weights alone are, if at all */
} cpu_matmul;

/* Indexed by ls_dtype of w; LS_AUTO's entry is NULL. */
enum { CPU_DTYPES = LS_F16 + 1 };

typedef struct cpu_isa {
    const char *name; /* "ref", "avx2", "avx512" */
    void (*matmul)(const cpu_matmul *a);
    /* Sum of w[i] x[i] over n elements: one leaf, in the contract's order. */
    float (*dot[CPU_DTYPES])(const void *w, const float *x, int64_t n);
    /* Rows of floats; each is the arithmetic of base/numeric.h. x is of any length and alignment. */
    void (*norm)(const float *h, const float *w, float scale, int64_t n, ls_dtype dtype, float *out);
    /* out = round(silu(gate) * up). */
    void (*silu)(const float *gate, const float *up, int64_t n, ls_dtype dtype, float *out);
    bool (*finite)(const float *x, int64_t n);
    /* q = x / scale to nearest even, within -127 .. 127; returns scale = max|x| / 127. Where that is 0 or no number, q is
     * 0. */
    float (*quantize)(const float *x, int64_t n, int8_t *q);
    /* Loading: copies n elements, or converts them; false if one is infinite or NaN afterwards. */
    bool (*copy)(ls_dtype dtype, const void *from, int64_t n, void *to);
    void (*widen)(ls_dtype dtype, const void *from, int64_t n, float *to);
    bool (*narrow)(ls_dtype dtype, const float *from, int64_t n, void *to);
    /* round(offset + scale * (2 u - 1)), u = mix(hash + (first + i + 1) * golden) >> 40 in units of 2^-24: see
     * model/weights.h. */
    void (*dummy)(uint64_t hash, int64_t first, float offset, float scale, ls_dtype dtype, int64_t n, float *to);
    /* y[i] = fma(a[j], w[j][i], y[i]), j = 0 .. n_rows - 1 in turn; n is a head size. */
    void (*axpy[CPU_DTYPES])(float *y, const void *w, const float *a, int64_t n_rows, int64_t n);
    /* s[j] = exp(s[j] scale - m) with m the largest s[j] scale, which is returned. */
    float (*softmax)(float *s, float scale, int64_t n);
    /* out = exp(x / by - max). */
    void (*exps)(const float *x, float by, float max, int64_t n, float *out);
    /* out = round(x / by). */
    void (*divide)(const float *x, float by, int64_t n, ls_dtype dtype, float *out);
    /* Reads every byte and does next to nothing with it: for measuring memory. */
    uint64_t (*read)(const void *data, size_t bytes);
} cpu_isa;

/* The best this machine runs, or the one named; NULL if it is unknown or the machine lacks it. */
const cpu_isa *cpu_isa_best(void);
const cpu_isa *cpu_isa_find(const char *name);
/* The one named, or the best for NULL. LS_EINVAL says what this machine has. */
ls_status cpu_isa_choose(const cpu_isa **out, const char *name, ls_error *err);

extern const ls_op_table cpu_ref_ops;

/* ---- Shared by the reference ops ---- */

static inline const cpu_isa *bind_isa(const ls_bind *bind) {
    return bind->isa;
}

static inline size_t kv_bytes(const ls_bind *bind) {
    return ls_dtype_bytes(bind->kv_dtype);
}

/* Address of K or V of (layer, page, head): contiguous [P][d]. */
static inline uint8_t *kv_page(const ls_bind *bind, void *cache, int layer, int page, int head, int n_kv_loc,
                               int d_head) {
    int64_t index = ((int64_t)layer * bind->n_pages + page) * n_kv_loc + head;
    return (uint8_t *)cache + (size_t)(index * LS_PAGE_TOKENS * d_head) * kv_bytes(bind);
}

/* out = act(norm(h) * w), see qkv in ops.h; dtype LS_F32 leaves it unrounded. out may be h. */
void ref_norm(const cpu_isa *isa, const float *h, const float *w, float eps, int n, ls_dtype dtype, float *out);

/* BUF_X row i = act(norm(h row row[i])), or of h row i where row is NULL, shared by the team; ends in team_wait. */
void ref_norm_rows(const ls_bind *bind, const ls_team *team, int i_norm, float eps, const int32_t *row, int n_rows);

enum { ROWS_UNIT = 4 }; /* rows of w are shared by the team in fours, as the inner loops take them */

/* Leaves [leaf_first, leaf_first + leaf_count) of k_total elements. */
cpu_leaves leaves_of(int64_t k_total, int leaf_first, int leaf_count);
/* How COLUMN and VOCAB matmuls take K: as one leaf, or in eight where each has its scale. */
cpu_leaves column_leaves(const ls_weight *w);
/* w8a8: quantises leaf `leaf` of a row of x into its row of BUF_XQ. */
void ref_quantize(const cpu_isa *isa, const float *x, const cpu_leaves *leaves, int leaf, cpu_xq *out);

/* y[m][n] = w[n] . x[m] (+ bias[n]) for this thread's part of the rows of w, K as one leaf. */
void ref_matmul(const ls_bind *bind, const ls_team *team, int i_weight, int i_bias, const float *x, int64_t x_stride,
                int n_rows, float *y, int64_t y_stride);

/* Sum over `count` neighbouring leaves, a power of two, by the fixed tree; leaf[] is overwritten. */
static inline float leaf_tree(float *leaf, int count) {
    for (; count > 1; count /= 2) {
        for (int i = 0; i < count / 2; i++) {
            leaf[i] = leaf[2 * i] + leaf[2 * i + 1];
        }
    }
    return leaf[0];
}

/* Notes that row m went bad in op `index`, unless it was bad before. */
void ref_fault(const ls_bind *bind, int row, int index);

void ref_embed(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team);
void ref_qkv(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team);
void ref_attn(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team);
void ref_row(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team);
void ref_exchange(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team);
void ref_ffn_in(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team);
void ref_head(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team);
void ref_sample(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team);

#endif
