/* Reference: norms, matmuls, and the ops that are one matmul (out, ffn_out). Formulas in ops.h. */
#include "backend/cpu/cpu.h"

cpu_leaves leaves_of(int64_t k_total, int leaf_first, int leaf_count) {
    cpu_leaves leaves = {.count = leaf_count};
    for (int i = 0; i <= leaf_count; i++) {
        leaves.border[i] = leaf_border(k_total, leaf_first + i) - leaf_border(k_total, leaf_first);
    }
    return leaves;
}

cpu_leaves column_leaves(const ls_weight *w) {
    return w->scale != NULL ? leaves_of(w->cols, 0, LS_LEAVES) : (cpu_leaves){.count = 1, .border = {0, w->cols}};
}

void ref_quantize(const cpu_isa *isa, const float *x, const cpu_leaves *leaves, int leaf, cpu_xq *out) {
    const int64_t from = leaves->border[leaf], n = leaves->border[leaf + 1] - from;
    out->scale[leaf] = isa->quantize(x + from, n, out->q + from);
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += out->q[from + i];
    }
    out->sum[leaf] = sum;
}

void ref_norm(const cpu_isa *isa, const float *h, const float *w, float eps, int n, ls_dtype dtype, float *out) {
    float scale = 1.0F / sqrtf(isa->dot[LS_F32](h, h, n) / (float)n + eps);
    isa->norm(h, w, scale, n, dtype, out);
}

void ref_norm_rows(const ls_bind *bind, const ls_team *team, int i_norm, float eps, const int32_t *row, int n_rows) {
    const int64_t d = bind->d_model;
    const float *h = bind->buf[BUF_H];
    float *x = bind->buf[BUF_X];
    int64_t first, last;
    team_range(team, n_rows, 1, &first, &last);
    for (int64_t i = first; i < last; i++) {
        ref_norm(bind_isa(bind), h + (row == NULL ? i : row[i]) * d, bind->weight[i_norm].data, eps, (int)d,
                 bind->dtype, x + i * d);
        const cpu_leaves leaves = leaves_of(d, 0, LS_LEAVES);
        for (int leaf = 0; leaf < LS_LEAVES && bind->buf[BUF_XQ] != NULL; leaf++) {
            ref_quantize(bind_isa(bind), x + i * d, &leaves, leaf, xq_row(bind->buf[BUF_XQ], d, i));
        }
    }
    team_wait(team);
}

void ref_matmul(const ls_bind *bind, const ls_team *team, int i_weight, int i_bias, const float *x, int64_t x_stride,
                int n_rows, float *y, int64_t y_stride) {
    const ls_weight *w = &bind->weight[i_weight];
    int64_t first, last;
    team_range(team, w->rows, ROWS_UNIT, &first, &last);
    const cpu_matmul a = {w,        column_leaves(w), first,     last,     x,
                          x_stride, n_rows,           y + first, y_stride, bind->buf[BUF_XQ]};
    bind_isa(bind)->matmul(&a);
    for (int64_t m = 0; m < n_rows && i_bias >= 0; m++) {
        const float *bias = bind->weight[i_bias].data;
        for (int64_t n = first; n < last; n++) {
            y[m * y_stride + n] += bias[n];
        }
    }
}

void ref_row(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    (void)index;
    const op_row *a = &op->row;
    const ls_weight *w = &bind->weight[a->weight];
    const float *x = bind->buf[op->kind == OP_OUT ? BUF_ATT : BUF_ACT];
    float *part = (float *)bind->buf[BUF_PART] + (int64_t)a->slot * bind->m_max * bind->d_model;
    const cpu_leaves leaves = leaves_of(a->k_total, a->leaf_first, a->leaf_count);
    int64_t first, last;
    if (bind->buf[BUF_XQ] != NULL) {
        team_range(team, (int64_t)step->n_rows * leaves.count, 1, &first, &last);
        for (int64_t i = first; i < last; i++) {
            const int64_t row = i / leaves.count;
            ref_quantize(bind_isa(bind), x + row * w->cols, &leaves, (int)(i % leaves.count),
                         xq_row(bind->buf[BUF_XQ], w->cols, row));
        }
        team_wait(team);
    }
    team_range(team, w->rows, ROWS_UNIT, &first, &last);
    const cpu_matmul job = {w,       leaves,       first,        last,          x,
                            w->cols, step->n_rows, part + first, bind->d_model, bind->buf[BUF_XQ]};
    bind_isa(bind)->matmul(&job);
}
