/* Reference: the ops that begin and renew the residual stream (embed, exchange), and faults. Formulas in ops.h. */
#include "backend/cpu/cpu.h"

void ref_fault(const ls_bind *bind, int row, int index) {
    int none = 0;
    atomic_compare_exchange_strong_explicit(&bind->fault[row], &none, index + 1, memory_order_relaxed,
                                            memory_order_relaxed);
}

static void embed_row(const cpu_isa *isa, const ls_weight *table, int64_t row, float *out) {
    const cpu_leaves leaves = column_leaves(table);
    isa->widen(table->format,
               (const uint8_t *)table->data + (size_t)(row * table->cols) * ls_dtype_bytes(table->format), table->cols,
               out);
    for (int leaf = 0; leaf < leaves.count && table->scale != NULL; leaf++) {
        for (int64_t i = leaves.border[leaf]; i < leaves.border[leaf + 1]; i++) {
            out[i] *= table->scale[row * leaves.count + leaf];
        }
    }
}

void ref_embed(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    (void)index;
    const op_embed *a = &op->embed;
    const ls_weight *table = &bind->weight[a->table];
    const int64_t d = bind->d_model;
    float *part = (float *)bind->buf[BUF_PART] + (int64_t)a->slot * bind->m_max * d;
    int64_t first, last;
    team_range(team, step->n_rows, 1, &first, &last);
    for (int64_t m = first; m < last; m++) {
        int64_t row = (int64_t)step->token[m] - a->vocab_first;
        float *out = part + m * d;
        if (step->token[m] < 0 && bind->group.rank == 0) {
            memcpy(out, step->input_rows + (-1 - (int64_t)step->token[m]) * d, (size_t)d * sizeof *out);
        } else if (step->token[m] >= 0 && row >= 0 && row < a->vocab_count) {
            embed_row(bind_isa(bind), table, row, out);
        } else {
            memset(out, 0, (size_t)d * sizeof *out);
        }
    }
}

void ref_exchange(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    const op_exchange *a = &op->exchange;
    const int64_t d = bind->d_model;
    const int n_parts = bind->n_parts;
    const float *bias = a->bias < 0 ? NULL : bind->weight[a->bias].data;
    float *h = bind->buf[BUF_H];
    int64_t first, last;
    team_range(team, step->n_rows * d, LS_LEAF_ALIGN, &first, &last);
    for (int64_t i = first, end; i < last; i = end) { /* row by row */
        const int64_t row = i / d;
        end = (row + 1) * d < last ? (row + 1) * d : last;
        const float *part[LS_MAX_RANKS];
        for (int r = 0; r < n_parts; r++) {
            part[r] = bind->peer_part[r] + (int64_t)a->slot * bind->m_max * d;
        }
        for (int64_t j = i; j < end; j++) {
            float node[LS_MAX_RANKS];
            for (int r = 0; r < n_parts; r++) {
                node[r] = part[r][j];
            }
            float sum = leaf_tree(node, n_parts);
            if (bias != NULL) {
                sum += bias[j - row * d];
            }
            h[j] = (a->init ? 0.0F : h[j]) + sum;
        }
        if (!bind_isa(bind)->finite(h + i, end - i)) {
            ref_fault(bind, (int)row, index);
        }
    }
}
