/* Reference: norm, gate and up projections, SiLU (ffn_in), and the head. Formulas in ops.h. */
#include "backend/cpu/cpu.h"

/* Gate and up of a block of rows and columns are in hand at a time: few columns of many rows, so that x stays in the cache,
 * or many of few, so that the weights come in long streams. */
enum { FFN_ROWS = 96, FFN_COLS = 32, FFN_BLOCK = FFN_ROWS * FFN_COLS };

static int64_t block_cols(int64_t n_x) {
    return n_x > FFN_ROWS / 2 ? FFN_COLS : FFN_BLOCK / n_x / FFN_COLS * FFN_COLS;
}

/* out[m * stride + n - first] = w[n] . x[m0 + m] + bias[n] */
static void project(const ls_bind *bind, int i_weight, int i_bias, int64_t first, int64_t last, int64_t m0, int64_t n_x,
                    float *out, int64_t stride) {
    const ls_weight *w = &bind->weight[i_weight];
    const int64_t d = bind->d_model;
    const float *x = (const float *)bind->buf[BUF_X] + m0 * d;
    void *xq = bind->buf[BUF_XQ] == NULL ? NULL : xq_row(bind->buf[BUF_XQ], d, m0);
    const cpu_matmul a = {w, column_leaves(w), first, last, x, d, n_x, out, stride, xq};
    bind_isa(bind)->matmul(&a);
    for (int64_t m = 0; m < n_x && i_bias >= 0; m++) {
        for (int64_t n = first; n < last; n++) {
            out[m * stride + n - first] += ((const float *)bind->weight[i_bias].data)[n];
        }
    }
}

void ref_ffn_in(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    (void)index;
    const op_ffn_in *a = &op->ffn_in;
    float *act = bind->buf[BUF_ACT];
    float gate[FFN_BLOCK], up[FFN_BLOCK];
    ref_norm_rows(bind, team, a->norm, a->eps, NULL, step->n_rows);
    int64_t first, last;
    team_range(team, a->d_ffn_loc, ROWS_UNIT, &first, &last);
    for (int64_t m0 = 0; m0 < step->n_rows; m0 += FFN_ROWS) {
        const int64_t n_x = step->n_rows - m0 < FFN_ROWS ? step->n_rows - m0 : FFN_ROWS;
        const int64_t cols = block_cols(n_x);
        for (int64_t n0 = first; n0 < last; n0 += cols) {
            const int64_t n1 = last - n0 < cols ? last : n0 + cols;
            project(bind, a->gate, a->gate_bias, n0, n1, m0, n_x, gate, cols);
            project(bind, a->up, a->up_bias, n0, n1, m0, n_x, up, cols);
            for (int64_t m = 0; m < n_x; m++) {
                float *out = act + (m0 + m) * a->d_ffn_loc;
                bind_isa(bind)->silu(gate + m * cols, up + m * cols, n1 - n0, bind->dtype, out + n0);
            }
        }
    }
}

void ref_head(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    const op_head *a = &op->head;
    float *logits = bind->buf[BUF_LOGITS];
    ref_norm_rows(bind, team, a->norm, a->eps, step->out_row, step->n_out);
    ref_matmul(bind, team, a->weight, -1, bind->buf[BUF_X], bind->d_model, step->n_out, logits, a->vocab_count);
    int64_t first, last; /* the same part as in ref_matmul */
    team_range(team, a->vocab_count, ROWS_UNIT, &first, &last);
    for (int64_t m = 0; m < step->n_out; m++) {
        if (!bind_isa(bind)->finite(logits + m * a->vocab_count + first, last - first)) {
            ref_fault(bind, step->out_row[m], index);
        }
    }
}
