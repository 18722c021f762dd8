/* Reference: norms, matmuls, and the ops that are one matmul (out, ffn_out). Formulas in ops.h. */
#include "backend/cpu/cpu.h"

static inline int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

void ref_norm(const cpu_isa *isa, const float *h, const float *w, float eps, int n, ls_dtype dtype, float *out) {
    float scale = 1.0F / sqrtf(isa->dot[LS_F32](h, h, n) / (float)n + eps);
    for (int i = 0; i < n; i++) {
        out[i] = round_to(dtype, h[i] * scale * w[i]);
    }
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
    }
    team_wait(team);
}

void ref_matmul(const ls_bind *bind, const ls_team *team, int i_weight, int i_bias, const float *x, int64_t x_stride,
                int n_rows, float *y, int64_t y_stride) {
    const ls_weight *w = &bind->weight[i_weight];
    const float *bias = i_bias < 0 ? NULL : bind->weight[i_bias].data;
    const size_t row_bytes = (size_t)w->cols * ls_dtype_bytes(w->format);
    int64_t first, last;
    team_range(team, w->rows, 1, &first, &last);
    for (int64_t m0 = 0; m0 < n_rows; m0 += CPU_ROW_TILE) {
        int64_t m1 = min64(m0 + CPU_ROW_TILE, n_rows);
        for (int64_t n = first; n < last; n++) {
            const uint8_t *row = (const uint8_t *)w->data + (size_t)n * row_bytes;
            for (int64_t m = m0; m < m1; m++) {
                float sum = bind_isa(bind)->dot[w->format](row, x + m * x_stride, w->cols);
                y[m * y_stride + n] = bias == NULL ? sum : sum + bias[n];
            }
        }
    }
}

void ref_row(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    (void)index;
    const op_row *a = &op->row;
    const ls_weight *w = &bind->weight[a->weight];
    const size_t element = ls_dtype_bytes(w->format);
    const float *x = bind->buf[op->kind == OP_OUT ? BUF_ATT : BUF_ACT];
    float *part = (float *)bind->buf[BUF_PART] + (int64_t)a->slot * bind->m_max * bind->d_model;
    int64_t border[LS_LEAVES + 1];
    for (int i = 0; i <= a->leaf_count; i++) {
        border[i] = leaf_border(a->k_total, a->leaf_first + i) - leaf_border(a->k_total, a->leaf_first);
    }
    int64_t first, last;
    team_range(team, w->rows, 1, &first, &last);
    for (int64_t m0 = 0; m0 < step->n_rows; m0 += CPU_ROW_TILE) {
        int64_t m1 = min64(m0 + CPU_ROW_TILE, step->n_rows);
        for (int64_t n = first; n < last; n++) {
            const uint8_t *row = (const uint8_t *)w->data + (size_t)n * (size_t)w->cols * element;
            for (int64_t m = m0; m < m1; m++) {
                float leaf[LS_LEAVES] = {0};
                for (int i = 0; i < a->leaf_count; i++) {
                    leaf[i] = bind_isa(bind)->dot[w->format](row + (size_t)border[i] * element,
                                                             x + m * w->cols + border[i], border[i + 1] - border[i]);
                }
                part[m * bind->d_model + n] = leaf_tree(leaf, a->leaf_count);
            }
        }
    }
}
