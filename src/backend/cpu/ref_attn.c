/* Reference: attention over paged KV in splits of 256 tokens. Formulas and order in ops.h. */
#include "backend/cpu/cpu.h"

typedef struct attn_node {
    float m, l;
    float o[LS_MAX_HEAD];
} attn_node;

/* One query head against tokens [first, last) of one KV head, all within one split. */
static void attend_split(const ls_bind *bind, const op_attn *a, int layer, int kv_head, const int32_t *page,
                         const float *q, int first, int last, attn_node *node) {
    const cpu_isa *isa = bind_isa(bind);
    const size_t token_bytes = (size_t)a->d_head * kv_bytes(bind);
    float e[LS_SPLIT_TOKENS];
    float m = -INFINITY;
    for (int j = first; j < last; j++) {
        const uint8_t *k =
            kv_page(bind, bind->k_cache, layer, page[j / LS_PAGE_TOKENS], kv_head, a->n_kv_loc, a->d_head);
        float s = isa->dot[bind->kv_dtype](k + (size_t)(j % LS_PAGE_TOKENS) * token_bytes, q, a->d_head) * a->scale;
        e[j - first] = s;
        m = s > m ? s : m;
    }
    float l = 0.0F;
    memset(node->o, 0, (size_t)a->d_head * sizeof *node->o);
    for (int j = first; j < last; j++) {
        const uint8_t *v =
            kv_page(bind, bind->v_cache, layer, page[j / LS_PAGE_TOKENS], kv_head, a->n_kv_loc, a->d_head);
        float p = ls_exp(e[j - first] - m);
        l += p;
        isa->axpy[bind->kv_dtype](node->o, v + (size_t)(j % LS_PAGE_TOKENS) * token_bytes, p, a->d_head);
    }
    node->m = m;
    node->l = l;
}

static void combine(attn_node *all, const attn_node *next, int d_head) {
    float m = next->m > all->m ? next->m : all->m;
    float a = ls_exp(all->m - m);
    float b = ls_exp(next->m - m);
    all->m = m;
    all->l = all->l * a + next->l * b;
    for (int i = 0; i < d_head; i++) {
        all->o[i] = all->o[i] * a + next->o[i] * b;
    }
}

void ref_attn(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    (void)index;
    const op_attn *a = &op->attn;
    const int64_t q_stride = (int64_t)(a->n_heads_loc + 2 * a->n_kv_loc) * a->d_head;
    const int64_t out_stride = (int64_t)a->n_heads_loc * a->d_head;
    const int heads_per_kv = a->n_heads_loc / a->n_kv_loc;
    const float *qkv = bind->buf[BUF_QKV];
    float *out = bind->buf[BUF_ATT];
    int64_t first, last;
    team_range(team, (int64_t)step->n_rows * a->n_heads_loc, 1, &first, &last);
    for (int64_t item = first; item < last; item++) {
        int64_t row = item / a->n_heads_loc;
        int head = (int)(item % a->n_heads_loc);
        const float *q = qkv + row * q_stride + (int64_t)head * a->d_head;
        const int32_t *page = step->seq[step->seq_of[row]].page;
        int end = step->pos[row] + 1;
        int lo = a->window_tokens > 0 && end > a->window_tokens ? end - a->window_tokens : 0;
        attn_node all, next;
        for (int split = lo / LS_SPLIT_TOKENS; split * LS_SPLIT_TOKENS < end; split++) {
            int from = split * LS_SPLIT_TOKENS > lo ? split * LS_SPLIT_TOKENS : lo;
            int to = (split + 1) * LS_SPLIT_TOKENS < end ? (split + 1) * LS_SPLIT_TOKENS : end;
            bool is_first = split == lo / LS_SPLIT_TOKENS;
            attend_split(bind, a, op->layer, head / heads_per_kv, page, q, from, to, is_first ? &all : &next);
            if (!is_first) {
                combine(&all, &next, a->d_head);
            }
        }
        for (int i = 0; i < a->d_head; i++) {
            out[row * out_stride + (int64_t)head * a->d_head + i] = round_to(bind->dtype, all.o[i] / all.l);
        }
    }
}
