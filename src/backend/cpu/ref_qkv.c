/* Reference: norm, QKV projections, bias, QK norm, RoPE, append to the KV cache. Formulas in ops.h. */
#include "backend/cpu/cpu.h"

/* y[d] of one head, in place, at one position. */
static void rotate(float *y, int d_head, const float *cos_sin) {
    int half = d_head / 2;
    for (int i = 0; i < half; i++) {
        float c = cos_sin[2 * i];
        float s = cos_sin[2 * i + 1];
        float a = y[i];
        float b = y[i + half];
        y[i] = a * c - b * s;
        y[i + half] = b * c + a * s;
    }
}

static void append(const ls_bind *bind, void *cache, int layer, const ls_step *step, int row, int head, const op_qkv *a,
                   const float *y) {
    int pos = step->pos[row];
    int page = step->seq[step->seq_of[row]].page[pos / LS_PAGE_TOKENS];
    uint8_t *base = kv_page(bind, cache, layer, page, head, a->n_kv_loc, a->d_head);
    int64_t offset = (int64_t)(pos % LS_PAGE_TOKENS) * a->d_head;
    for (int i = 0; i < a->d_head; i++) {
        store_as(bind->kv_dtype, base, offset + i, y[i]);
    }
}

void ref_qkv(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    (void)index;
    const op_qkv *a = &op->qkv;
    const int64_t d_model = bind->d_model;
    const int64_t n_heads = a->n_heads_loc + 2 * a->n_kv_loc;
    const int64_t stride = n_heads * a->d_head;
    const float *x = bind->buf[BUF_X];
    float *y = bind->buf[BUF_QKV];
    ref_norm_rows(bind, team, a->norm, a->eps, NULL, step->n_rows);

    int64_t k_first = (int64_t)a->n_heads_loc * a->d_head;
    int64_t v_first = k_first + (int64_t)a->n_kv_loc * a->d_head;
    ref_matmul(bind, team, a->q, a->q_bias, x, d_model, step->n_rows, y, stride);
    ref_matmul(bind, team, a->k, a->k_bias, x, d_model, step->n_rows, y + k_first, stride);
    ref_matmul(bind, team, a->v, a->v_bias, x, d_model, step->n_rows, y + v_first, stride);
    team_wait(team);

    int64_t first, last;
    team_range(team, step->n_rows * n_heads, 1, &first, &last);
    for (int64_t item = first; item < last; item++) {
        int row = (int)(item / n_heads);
        int head = (int)(item % n_heads);
        float *part = y + row * stride + (int64_t)head * a->d_head;
        int kv_head = head - a->n_heads_loc;
        if (kv_head >= a->n_kv_loc) {
            append(bind, bind->v_cache, op->layer, step, row, kv_head - a->n_kv_loc, a, part);
            continue;
        }
        int norm = kv_head < 0 ? a->q_norm : a->k_norm;
        if (norm >= 0) {
            ref_norm(bind_isa(bind), part, bind->weight[norm].data, a->eps, a->d_head, LS_F32, part);
        }
        rotate(part, a->d_head, bind->rope + (int64_t)step->pos[row] * a->d_head);
        if (kv_head >= 0) {
            append(bind, bind->k_cache, op->layer, step, row, kv_head, a, part);
        } else {
            for (int i = 0; i < a->d_head; i++) {
                part[i] = round_to(bind->dtype, part[i]);
            }
        }
    }
}
