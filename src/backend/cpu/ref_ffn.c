/* Reference: norm, gate and up projections, SiLU (ffn_in), and the head. Formulas in ops.h. */
#include "backend/cpu/cpu.h"

static float dot_bias(const ls_bind *bind, int i_weight, int i_bias, int64_t n, const float *x) {
    const ls_weight *w = &bind->weight[i_weight];
    const uint8_t *row = (const uint8_t *)w->data + (size_t)(n * w->cols) * ls_dtype_bytes(w->format);
    float sum = bind_isa(bind)->dot[w->format](row, x, w->cols);
    return i_bias < 0 ? sum : sum + ((const float *)bind->weight[i_bias].data)[n];
}

void ref_ffn_in(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    (void)index;
    const op_ffn_in *a = &op->ffn_in;
    const int64_t d = bind->d_model;
    const float *x = bind->buf[BUF_X];
    float *act = bind->buf[BUF_ACT];
    ref_norm_rows(bind, team, a->norm, a->eps, NULL, step->n_rows);
    int64_t first, last;
    team_range(team, a->d_ffn_loc, 1, &first, &last);
    for (int64_t m0 = 0; m0 < step->n_rows; m0 += CPU_ROW_TILE) {
        for (int64_t n = first; n < last; n++) {
            for (int64_t m = m0; m < m0 + CPU_ROW_TILE && m < step->n_rows; m++) {
                float gate = dot_bias(bind, a->gate, a->gate_bias, n, x + m * d);
                float up = dot_bias(bind, a->up, a->up_bias, n, x + m * d);
                act[m * a->d_ffn_loc + n] = round_to(bind->dtype, gate / (1.0F + ls_exp(-gate)) * up);
            }
        }
    }
}

void ref_head(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    const op_head *a = &op->head;
    float *logits = bind->buf[BUF_LOGITS];
    ref_norm_rows(bind, team, a->norm, a->eps, step->out_row, step->n_out);
    ref_matmul(bind, team, a->weight, -1, bind->buf[BUF_X], bind->d_model, step->n_out, logits, a->vocab_count);
    team_wait(team);
    int64_t first, last;
    team_range(team, (int64_t)step->n_out * a->vocab_count, LS_LEAF_ALIGN, &first, &last);
    for (int64_t i = first; i < last; i++) {
        if (!isfinite(logits[i])) {
            ref_fault(bind, step->out_row[i / a->vocab_count], index);
        }
    }
}
