/* See wrong.h. */
#include "wrong.h"

#include <math.h>
#include <stdlib.h>

#include "backend/cpu/cpu.h"

#define ALL_OPS ((1u << OP_KINDS) - 1)
#define ROW_OPS (1u << OP_OUT | 1u << OP_FFN_OUT)
#define ACT_OPS (1u << OP_QKV | 1u << OP_ATTN | 1u << OP_FFN_IN)

const wrong_info wrong_infos[WRONG_KINDS] = {
    [WRONG_NOTHING] = {"nothing", false, NULL, ALL_OPS},
    [WRONG_VALUE] = {"value", false, "oracle", ALL_OPS},
    [WRONG_BITS] = {"bits", false, "not the reference", ALL_OPS},
    [WRONG_TEAM] = {"team", false, "other team R=1 t=3", ALL_OPS},
    [WRONG_RANKS] = {"ranks", false, "other ranks R=8", ALL_OPS},
    [WRONG_COMPANY] = {"company", false, "row alone", ALL_OPS},
    [WRONG_LEAVES] = {"leaves", false, "not the reference", ROW_OPS},
    [WRONG_SCALES] = {"scales", false, "oracle",
                      ROW_OPS | 1u << OP_EMBED | 1u << OP_QKV | 1u << OP_FFN_IN | 1u << OP_HEAD},
    [WRONG_X_SCALE] = {"x scale", false, "oracle", ROW_OPS},
    [WRONG_ROUNDING] = {"rounding", false, "not representable", ACT_OPS},
    [WRONG_UNUSED_ROW] = {"unused row", false, "where nothing of its output lies", ALL_OPS},
    [WRONG_BEHIND] = {"behind", false, "wrote behind", ALL_OPS},
    [WRONG_BEFORE] = {"before", false, "wrote before", ALL_OPS},
    [WRONG_INPUT] = {"input", false, "where nothing of its output lies",
                     ALL_OPS & ~(1u << OP_EMBED | 1u << OP_EXCHANGE)},
    [WRONG_READ] = {"read", false, "oracle", ALL_OPS},
    [WRONG_CACHE_WRITE] = {"cache write", false, "the K cache", 1u << OP_QKV},
    [WRONG_CACHE_READ] = {"cache read", false, "oracle", 1u << OP_ATTN},
    [WRONG_SILENT] = {"silent", true, "fault", 1u << OP_EXCHANGE | 1u << OP_HEAD},
    [WRONG_NOISY] = {"noisy", true, "fault", ALL_OPS},
    [WRONG_FORGETFUL] = {"forgetful", true, "fault", 1u << OP_EXCHANGE | 1u << OP_HEAD},
    [WRONG_CONTAGIOUS] = {"contagious", true, "beside a poisoned row", ALL_OPS & ~(1u << OP_SAMPLE)},
};

static wrong_kind active;
static ls_op_kind active_kind;

void wrong_set(wrong_kind wrong, ls_op_kind kind) {
    active = wrong;
    active_kind = kind;
}

/* Where row `row` of the op's output begins and how much of it there is. sample: one number of the row's offer. */
static float *output_row(const ls_op *op, const ls_bind *bind, int64_t row, int64_t *n) {
    const int64_t d = bind->d_model;
    switch (op->kind) {
    case OP_QKV:
        *n = (int64_t)op->qkv.n_heads_loc * op->qkv.d_head;
        return (float *)bind->buf[BUF_QKV] + row * (*n + 2 * op->qkv.n_kv_loc * op->qkv.d_head);
    case OP_ATTN:
        *n = (int64_t)op->attn.n_heads_loc * op->attn.d_head;
        return (float *)bind->buf[BUF_ATT] + row * *n;
    case OP_EXCHANGE:
        *n = d;
        return (float *)bind->buf[BUF_H] + row * d;
    case OP_FFN_IN:
        *n = op->ffn_in.d_ffn_loc;
        return (float *)bind->buf[BUF_ACT] + row * *n;
    case OP_HEAD:
        *n = op->head.vocab_count;
        return (float *)bind->buf[BUF_LOGITS] + row * *n;
    case OP_SAMPLE: {
        ls_sample_part *part = (ls_sample_part *)bind->buf[BUF_SAMPLE] + row;
        *n = 1;
        return part->n_best == 1 ? &part->best[0].z : part->n_best > 1 ? &part->sum : &part->max;
    }
    default:
        *n = d;
        return (float *)bind->buf[BUF_PART] +
               ((op->kind == OP_EMBED ? op->embed.slot : op->row.slot) * bind->m_max + row) * d;
    }
}

/* The buffer that the op writes, and how many bytes of it there are. */
static uint8_t *output_buffer(const ls_op *op, const ls_bind *bind, const ls_step *step, size_t *bytes) {
    const size_t m_max = (size_t)bind->m_max, n_out = (size_t)step->n_out + 1, word = sizeof(float);
    int64_t n;
    output_row(op, bind, 0, &n);
    switch (op->kind) {
    case OP_SAMPLE:
        *bytes = n_out * sizeof(ls_sample_part);
        return bind->buf[BUF_SAMPLE];
    case OP_HEAD:
        *bytes = n_out * (size_t)n * word;
        return bind->buf[BUF_LOGITS];
    case OP_EMBED:
    case OP_OUT:
    case OP_FFN_OUT:
        *bytes = 2 * m_max * (size_t)n * word;
        return bind->buf[BUF_PART];
    case OP_QKV:
        *bytes = m_max * (size_t)((op->qkv.n_heads_loc + 2 * op->qkv.n_kv_loc) * op->qkv.d_head) * word;
        return bind->buf[BUF_QKV];
    default:
        *bytes = m_max * (size_t)n * word;
        return (uint8_t *)output_row(op, bind, 0, &n);
    }
}

static void *input_buffer(const ls_op *op, const ls_bind *bind) {
    static const ls_buf read[OP_KINDS] = {
        [OP_QKV] = BUF_H,       [OP_ATTN] = BUF_QKV, [OP_OUT] = BUF_ATT,      [OP_FFN_IN] = BUF_H,
        [OP_FFN_OUT] = BUF_ACT, [OP_HEAD] = BUF_H,   [OP_SAMPLE] = BUF_LOGITS};
    return bind->buf[read[op->kind]];
}

/* Not watched by AddressSanitizer, which would end the test: the harness has to find it by itself. */
__attribute__((no_sanitize("address"))) static void write_byte(uint8_t *at) {
    *(volatile uint8_t *)at = 0;
}

static void scale_row(const ls_op *op, const ls_bind *bind, int row, float factor) {
    int64_t n;
    float *value = output_row(op, bind, row, &n);
    for (int64_t i = 0; i < n; i++) {
        value[i] *= factor;
    }
}

/* The last row learns of any poison in the others. */
static void infect(const ls_op *op, const ls_bind *bind, int n_rows) {
    for (int row = 0; row < n_rows - 1; row++) {
        int64_t n;
        const float *value = output_row(op, bind, row, &n);
        for (int64_t i = 0; i < n; i++) {
            if (!isfinite(value[i])) {
                scale_row(op, bind, n_rows - 1, 1.5F);
                return;
            }
        }
    }
}

static void spoil_cache(const ls_op *op, const ls_bind *bind, const ls_step *step) {
    const int32_t *page = step->seq[0].page;
    if (op->kind == OP_QKV) { /* the position before the first row's */
        int pos = step->pos[0] > 0 ? step->pos[0] - 1 : LS_PAGE_TOKENS - 1;
        uint8_t *at =
            kv_page(bind, bind->k_cache, op->layer, page[pos / LS_PAGE_TOKENS], 0, op->qkv.n_kv_loc, op->qkv.d_head);
        write_byte(at + (size_t)(pos % LS_PAGE_TOKENS * op->qkv.d_head) * kv_bytes(bind));
    } else { /* the position behind the last row of the last sequence */
        const ls_step_seq *seq = &step->seq[step->n_seqs - 1];
        int last = seq->n_past + seq->n_rows - 1;
        const uint8_t *at = kv_page(bind, bind->v_cache, op->layer, seq->page[last / LS_PAGE_TOKENS], 0,
                                    op->attn.n_kv_loc, op->attn.d_head);
        int next = (last + 1) % LS_PAGE_TOKENS * op->attn.d_head;
        int64_t n;
        output_row(op, bind, step->n_rows - 1, &n)[0] += 0 * load_as(bind->kv_dtype, at, next);
    }
}

static void spoil_fault(int index, const ls_bind *bind, int n_rows) {
    for (int row = 0; row < n_rows; row++) {
        int noted = atomic_load(&bind->fault[row]);
        if (noted != 0) {
            atomic_store(&bind->fault[active == WRONG_NOISY ? 0 : row], active == WRONG_SILENT ? 0 : index + 1);
        }
    }
    if (active == WRONG_NOISY) {
        atomic_store(&bind->fault[0], index + 1);
    }
}

static void spoil(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    const int n_rows = op->kind == OP_HEAD || op->kind == OP_SAMPLE ? step->n_out : step->n_rows;
    const int last = n_rows - 1;
    size_t bytes;
    int64_t n;
    uint8_t *buffer = output_buffer(op, bind, step, &bytes);
    switch (active) {
    case WRONG_VALUE:
        scale_row(op, bind, last, 1.001F);
        break;
    case WRONG_BITS:
        scale_row(op, bind, last, 1.000004F);
        break;
    case WRONG_TEAM:
        scale_row(op, bind, last, team->n_threads == 3 ? 1.000004F : 1);
        break;
    case WRONG_RANKS:
        scale_row(op, bind, last, bind->group.size == 8 ? 1.000004F : 1);
        break;
    case WRONG_COMPANY:
        scale_row(op, bind, last, step->n_rows == 1 ? 1.000004F : 1);
        break;
    case WRONG_ROUNDING:
        scale_row(op, bind, last, 1.0002F);
        break;
    case WRONG_UNUSED_ROW: {
        float *unused = output_row(op, bind, n_rows, &n);
        unused[0] = 0;
        break;
    }
    case WRONG_BEHIND:
        write_byte(buffer + bytes);
        break;
    case WRONG_BEFORE:
        write_byte(buffer - 1);
        break;
    case WRONG_INPUT:
        *(float *)input_buffer(op, bind) = 0.125F;
        break;
    case WRONG_READ: {
        const float *unused = output_row(op, bind, n_rows, &n);
        output_row(op, bind, last, &n)[0] += 0 * *unused;
        break;
    }
    case WRONG_CACHE_WRITE:
    case WRONG_CACHE_READ:
        spoil_cache(op, bind, step);
        break;
    case WRONG_CONTAGIOUS:
        infect(op, bind, n_rows);
        break;
    case WRONG_SILENT:
    case WRONG_NOISY:
    case WRONG_FORGETFUL:
        spoil_fault(index, bind, step->n_rows);
        break;
    default:
        break;
    }
}

/* As ref_row, with leaves 1 and 2 swapped: ((0 + 2) + (1 + 3)) + ... */
static void row_with_swapped_leaves(const ls_op *op, const ls_bind *bind, const ls_step *step) {
    const op_row *a = &op->row;
    const ls_weight *w = &bind->weight[a->weight];
    const float *x = bind->buf[op->kind == OP_OUT ? BUF_ATT : BUF_ACT];
    const int64_t start = leaf_border(a->k_total, a->leaf_first);
    int64_t d;
    for (int m = 0; m < step->n_rows; m++) {
        float *out = output_row(op, bind, m, &d);
        for (int64_t n = 0; n < d; n++) {
            float leaf[LS_LEAVES] = {0};
            for (int i = 0; i < a->leaf_count; i++) {
                int64_t from = leaf_border(a->k_total, a->leaf_first + i) - start;
                int64_t to = leaf_border(a->k_total, a->leaf_first + i + 1) - start;
                const uint8_t *row =
                    (const uint8_t *)w->data + (size_t)(n * w->cols + from) * ls_dtype_bytes(w->format);
                leaf[i] = bind_isa(bind)->dot[w->format](row, x + (int64_t)m * w->cols + from, to - from);
            }
            if (a->leaf_count >= 4) {
                float t = leaf[1];
                leaf[1] = leaf[2];
                leaf[2] = t;
            }
            out[n] = leaf_tree(leaf, a->leaf_count);
        }
    }
}

/* The op on one thread, with the first two scales of each row swapped, or with x as it is. */
static void quantized_wrong(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    ls_bind other = *bind;
    ls_weight weight[KW_COUNT];
    memcpy(weight, bind->weight, sizeof weight);
    other.weight = weight;
    other.buf[BUF_XQ] = active == WRONG_X_SCALE ? NULL : bind->buf[BUF_XQ];
    for (int i = 0; i < KW_COUNT && active == WRONG_SCALES; i++) {
        const int count = weight[i].scale == NULL                        ? 0
                          : op->kind == OP_OUT || op->kind == OP_FFN_OUT ? op->row.leaf_count
                                                                         : LS_LEAVES;
        float *scale = malloc((size_t)(weight[i].rows * count + 1) * sizeof *scale);
        for (int j = 0; j < weight[i].rows * count; j++) {
            scale[j] = weight[i].scale[count > 1 && j % count < 2 ? j ^ 1 : j];
        }
        weight[i].scale = scale;
        if (count == 0) {
            free(scale);
            weight[i].scale = NULL;
        }
    }
    cpu_ref_ops.fn[op->kind](op, index, &other, step, team);
    for (int i = 0; i < KW_COUNT && active == WRONG_SCALES; i++) {
        free((void *)weight[i].scale);
    }
}

static void wrong_op(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    if (op->kind == active_kind && (active == WRONG_SCALES || active == WRONG_X_SCALE)) {
        quantized_wrong(op, index, bind, step, team);
        return;
    }
    cpu_ref_ops.fn[op->kind](op, index, bind, step, team);
    team_wait(team);
    int64_t n;
    output_row(op, bind, 0, &n);
    if (team->thread != 0 || op->kind != active_kind || n == 0 || (op->kind == OP_HEAD && step->n_out == 0)) {
        return;
    }
    if (active == WRONG_LEAVES) {
        row_with_swapped_leaves(op, bind, step);
    } else {
        spoil(op, index, bind, step, team);
    }
}

const ls_op_table wrong_ops = {.name = "wrong",
                               .fn = {[OP_EMBED] = wrong_op,
                                      [OP_QKV] = wrong_op,
                                      [OP_ATTN] = wrong_op,
                                      [OP_OUT] = wrong_op,
                                      [OP_EXCHANGE] = wrong_op,
                                      [OP_FFN_IN] = wrong_op,
                                      [OP_FFN_OUT] = wrong_op,
                                      [OP_HEAD] = wrong_op,
                                      [OP_SAMPLE] = wrong_op}};
