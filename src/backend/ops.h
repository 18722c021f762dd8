/*
 * THE CONTRACT: what every op computes, in which layout, with which roundings and in which order of additions.
 *
 * A CUDA kernel, a CPU function and a stretch of the persistent kernel are all implementations of an op here; a back end
 * may run consecutive ops as one kernel. The oracle is backend/cpu/ref_*.c, and tests/kern checks every implementation
 * against it.
 *
 * Shape letters: M rows of a step, D model width, F FFN width, H query heads, K key/value heads, d head size, V
 * vocabulary, P page, L layers, R ranks, W window. `_loc` on a size means per rank.
 *
 * 1. Values. The residual stream h is f32 in every dtype. An ACTIVATION (below: act) is a value rounded to the run
 *    dtype, to nearest even. A back end may store it wider: the CPU keeps f32 words whose values are representable in
 *    the run dtype; a GPU keeps the dtype itself. Everything not said to be an act is f32 and is not rounded.
 *    Matrices (2-D weights) are in the run dtype, or int8 with scales; 1-D weights (norms, biases) are f32.
 *
 * 2. Sums. A matmul y[n] = sum over k < K of w[n][k] x[k] adds in f32 up a tree of 8 LEAVES of K. Leaf i is
 *    [leaf_border(K, i), leaf_border(K, i + 1)), borders rounded up to 16 elements, possibly empty (sum 0):
 *
 *        ((leaf0 + leaf1) + (leaf2 + leaf3)) + ((leaf4 + leaf5) + (leaf6 + leaf7))
 *
 *    A kernel may split K at leaf borders only, so R decides only where a leaf is computed: R = 1, 2, 4, 8 give the same
 *    bits. Inside a leaf the CPU keeps 16 accumulators, acc[i % 16] = fma(w[i], x[i], acc[i % 16]) for i counted from
 *    the leaf's first element in rising order, and adds them acc[j] += acc[j + 8], then + 4, + 2, + 1. COLUMN and VOCAB
 *    matmuls on the CPU take all of K as one leaf, since no CPU rank splits it. CPU and GPU agree within the tolerance,
 *    not bit for bit.
 *
 *    int8. A matrix [N][K] is stored as q with one f32 scale for each (row, leaf of K), COLUMN and VOCAB matrices too:
 *
 *        scale = max|w| / 127;  q = w / scale to nearest even, within -127 .. 127 (0 where the scale is 0)
 *
 *    over the leaf's elements as the checkpoint has them. So a rank can compute both from its own part.
 *      w8a16: leaf i is scale[n][i] * (the leaf's sum as above, over q as f32 and x), then the tree over all 8 leaves.
 *      w8a8:  x is quantised in the same way, one scale for each (row of x, leaf): sx, xq. Leaf i is
 *             f32(sum of q xq, exact) * (scale[n][i] * sx[m][i]), the sum rounded once, then the tree. A scale that is no
 *             finite number makes the leaf NaN.
 *    An embedding is q * scale. Norms, biases and all of attention are as without.
 *
 * 3. Rows. Row m of any output depends on row m of the inputs (and, in attn, on its own sequence's pages) alone. So a
 *    token's bits do not depend on the batch, on chunk borders or on cache hits.
 *
 * 4. Tolerance. max|a - b| / max|b| per row against the oracle: f32 1e-5 per op (1e-4 for whole models), f16 2e-3,
 *    bf16 2e-2, int8 5e-2.
 *
 * 5. Faults. An infinity or NaN in the residual stream or in the logits is noted for its row (bind->fault) with the op
 *    that first showed it; the row's request fails, its neighbours do not.
 *
 * 6. Threads. A rank's op is called by every thread of its team at once; they share the work by team_range and may meet
 *    in team_wait. All threads have left an op before any enters the next (the plan sees to it). Ops do not allocate,
 *    block on anything else, or fail.
 */
#ifndef LS_BACKEND_OPS_H
#define LS_BACKEND_OPS_H

#include "base/error.h"
#include "base/threads.h"

enum {
    LS_PAGE_TOKENS = 64,   /* P */
    LS_SPLIT_TOKENS = 256, /* the unit of split-KV attention: it decides bits */
    LS_LEAVES = 8,
    LS_LEAF_ALIGN = 16,
    LS_MAX_RANKS = 8,
    LS_MAX_HEAD = 256,
    LS_SAMPLE_BEST = 256, /* candidates each rank offers for a row at most */
    LS_SAMPLE_TOP = 20    /* most likely tokens it reports */
};

/* In place of a token: LS_TOKEN_DRAWN + i, i < 2^30, is the one that the step before drew for its output row i. Only on
 * devices, which start that step before the host has read the token; ops of the CPU never see it. */
enum { LS_TOKEN_DRAWN = INT32_MIN };

static inline bool token_is_drawn(int32_t token) {
    return token < LS_TOKEN_DRAWN / 2;
}

typedef struct ls_group {
    int rank, size;
} ls_group;

/* First element of leaf `leaf` of n; leaf 8 gives n. */
static inline int64_t leaf_border(int64_t n, int leaf) {
    int64_t border = (n * leaf + LS_LEAVES * LS_LEAF_ALIGN - 1) / (LS_LEAVES * LS_LEAF_ALIGN) * LS_LEAF_ALIGN;
    return border < n ? border : n;
}

/* ---- Weights ---------------------------------------------------------------------------------------------------- */

typedef enum weight_layout { LAYOUT_ROW_MAJOR } weight_layout; /* room for a repacked form */

/* One rank's part of one weight, [rows][cols]. Borrowed from the rank's arena. */
typedef struct ls_weight {
    ls_dtype format;
    weight_layout layout;
    const void *data;
    const float *scale; /* int8: [rows][leaves of its columns]; NULL otherwise */
    int rows, cols;     /* a 1-D weight has rows = 1 */
} ls_weight;

/* ---- Buffers ---------------------------------------------------------------------------------------------------- */

typedef enum ls_buf {
    BUF_H,      /* f32 [M][D]: residual stream, one copy a rank */
    BUF_X,      /* act [M][D]: scratch of ops that begin with a norm */
    BUF_QKV,    /* [M][(H_loc + 2 K_loc) d]: after qkv the first H_loc d of a row are q (act); the rest is scratch */
    BUF_ATT,    /* act [M][H_loc d] */
    BUF_ACT,    /* act [M][F_loc] */
    BUF_PART,   /* f32 [2][M_max][D]: this rank's node of the leaf tree; slots alternate by exchange */
    BUF_XQ,     /* w8a8: the input of a matmul, quantised; the CPU's layout is cpu_xq; NULL without */
    BUF_LOGITS, /* f32 [n_out][V_loc] */
    BUF_SAMPLE, /* ls_sample_part [n_out] */
    BUF_EDITED, /* f32 [threads][V_loc]: scratch of sample */
    BUF_SLICE,  /* ls_sample_part [threads]: the same */
    BUF_COUNT
} ls_buf;

/* ---- A step's input: the same memory for all ranks --------------------------------------------------------------- */

/* A sequence that has rows in this step. Its rows follow one another. */
typedef struct ls_step_seq {
    int32_t first_row, n_rows; /* q_len; 1 in decode */
    int32_t n_past;            /* tokens in the cache before this step: row i is at position n_past + i */
    const int32_t *page;       /* page numbers for positions 0 .. n_past + n_rows - 1 */
} ls_step_seq;

/* A change to one logit before a token is drawn: x = logit + bias; then x < 0 ? x * penalty : x / penalty; then x + offset.
 * transformers: SequenceBiasLogitsProcessor, RepetitionPenaltyLogitsProcessor; offset is OpenAI's presence and frequency
 * penalty, or -infinity for what is forbidden. */
typedef struct ls_logit_edit {
    int32_t id;
    float bias, penalty, offset;
} ls_logit_edit;

/* How one output row is sampled. Filters apply in this order: edits, allowed ids, temperature, top-k, top-p, min-p. */
typedef struct ls_sample_params {
    float temperature; /* 0: greedy, the filters behind it are ignored */
    int32_t top_k;     /* 0: off */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    uint64_t seed;
    uint32_t choice;  /* Philox counts by these two */
    int32_t position; /* of the token that is drawn */
    int32_t n_edits, n_allowed;
    const ls_logit_edit *edit; /* [n_edits], an id at most once */
    const int32_t *allowed;    /* [n_allowed], rising; NULL: all ids */
    int32_t n_top; /* most likely tokens reported, at most LS_SAMPLE_TOP; -1: no log probabilities are wanted */
} ls_sample_params;

typedef struct ls_step {
    int32_t n_rows; /* M = n_dec + n_pre; decode rows come first */
    int32_t n_dec, n_pre;
    int32_t n_seqs;
    int32_t n_out;         /* rows that get logits */
    const int32_t *token;  /* [M] id; or -1 - i: row i of input_rows in place of an embedding; or LS_TOKEN_DRAWN + i */
    const int32_t *pos;    /* [M] */
    const int32_t *seq_of; /* [M] index into seq */
    const ls_step_seq *seq;
    const int32_t *out_row;         /* [n_out] rising */
    const ls_sample_params *sample; /* [n_out] */
    const float *input_rows;        /* [.][D] or NULL */
    const int32_t *adapter;         /* [M] LoRA index; must be NULL until an op reads it */
    const int32_t *expert;          /* [M] MoE index; must be NULL until an op reads it */
} ls_step;

/* ---- Ops: kinds and arguments. Weight fields are indices into bind->weight, -1 where the model has none. ---------- */

typedef enum ls_op_kind {
    OP_EMBED,
    OP_QKV,
    OP_ATTN,
    OP_OUT,
    OP_EXCHANGE,
    OP_FFN_IN,
    OP_FFN_OUT,
    OP_HEAD,
    OP_SAMPLE,
    OP_KINDS
} ls_op_kind;

/* embed: part[m] = table[token[m] - vocab_first] in f32 if this rank holds the row (or rank 0 and an input row), else 0.
 * The exchange that follows makes h of it. transformers: Embedding. */
typedef struct op_embed {
    int table; /* [vocab_count][D], shared with the head where tied */
    int vocab_first, vocab_count;
    int slot;
} op_embed;

/* qkv: x = act(norm(h)), norm(h) = h * (1 / sqrt(sum(h h) / D + eps)) * w, the sum taken as one leaf;
 *      y = x Wq^T + bq and so on, in f32;
 *      q, k: with QK norm, each head is normed as above over d with its own w; then RoPE:
 *            (a, b) = (y[i], y[i + d/2]);  (a cos - b sin, b cos + a sin), angle pos * inv_freq[i];
 *      q is left in BUF_QKV as act; k and v are rounded to the KV dtype and stored at the row's position.
 * The cache of one rank is [L][n_pages][K_loc][P][d] for K, the same again for V: K and V of one (layer, page, head) are
 * contiguous [P][d]. transformers: Qwen3Attention, apply_rotary_pos_emb, RMSNorm. */
typedef struct op_qkv {
    int norm, q, k, v;
    int q_bias, k_bias, v_bias;
    int q_norm, k_norm;
    int n_heads_loc, n_kv_loc, d_head;
    float eps;
} op_qkv;

/* attn: for a row at position p and each query head g, with k, v of KV head g / (H / K), over j in [lo, p]:
 *       lo = max(0, p - W + 1) with a window, else 0;  s_j = (q . k_j) * scale.
 * Splits are [256 i, 256 i + 256) of absolute positions. In each split that meets [lo, p]:
 *       m = max s_j;  e_j = exp(s_j - m);  l = sum e_j;  o = sum e_j v_j, j rising, o by fma, l by plain addition.
 * Splits are combined in index order, the first as it is: m' = max(m, m_i), a = exp(m - m'), b = exp(m_i - m');
 *       l = l a + l_i b;  o = o a + o_i b.   Result: act(o / l).
 * Workers may take (sequence, KV head, split) items in any order; the combination's order is fixed.
 * transformers: eager_attention_forward (softmax in f32). Flash-decoding splits: Dao et al. 2023. */
typedef struct op_attn {
    int n_heads_loc, n_kv_loc, d_head;
    int window_tokens; /* W; 0: none */
    float scale;
} op_attn;

/* out and ffn_out: part[m] = this rank's node of the leaf tree of sum over k of w[n][k] x[m][k], x = BUF_ATT or BUF_ACT.
 * The rank holds the columns of leaves [leaf_first, leaf_first + leaf_count) of k_total. */
typedef struct op_row {
    int weight; /* [D][columns of this rank] */
    int k_total;
    int leaf_first, leaf_count;
    int slot;
} op_row;

/* exchange: h[m] = (init ? 0 : h[m]) + (tree over ranks of part[m] + bias). The ranks' nodes are the upper levels of the
 * leaf tree (those of the ranks of one host may have been summed up before), so the sum is the whole tree's. Before it runs, every rank's part of this slot must be visible to all
 * (rank/exchange.h). Notes faults of h. */
typedef struct op_exchange {
    bool init;
    int bias;
    int slot;
} op_exchange;

/* ffn_in: x = act(norm(h)); a = act(silu(g) * u), g = x Wgate^T + b, u = x Wup^T + b, silu(g) = g / (1 + exp(-g)).
 * transformers: Qwen3MLP. */
typedef struct op_ffn_in {
    int norm, gate, up;
    int gate_bias, up_bias;
    int d_ffn_loc;
    float eps;
} op_ffn_in;

/* head: for each output row, x = act(norm(h[out_row])), logits = x W^T in f32, this rank's vocabulary only. Notes faults
 * of the logits. */
typedef struct op_head {
    int norm, weight;
    int vocab_first, vocab_count;
    float eps;
} op_head;

/* sample: this rank's offer for each output row (see ls_sample_part). x = the edited logit, -infinity where it is forbidden
 * or not allowed; z = x / temperature, f32 (greedy: 1).
 * V is cut into 8 leaves like K: per leaf max m and sum of exp(z - m), id rising; nodes are combined up the leaf tree by
 * the rule of attn's splits, so that the whole row's sum has the same bits at any R (an empty leaf changes nothing).
 * Gumbel-max: the drawn token is the argmax of z + g(seed, choice, position, id) over the filtered set, the lowest id at a
 * tie; g = -log(-log(u)), u = (x + 0.5) / 2^32 (rounded to double), x the first word of Philox4x32-10 with counter (id,
 * position, choice, 0) and key = seed. Philox: Salmon et al. 2011.
 * Offered: greedy, the best one; filtered (top-k, top-p or min-p on), the node and the best 256, or the best top_k where that
 * is fewer; neither, the drawn token. A GPU that has the whole vocabulary draws filtered rows too: kern/decode_filter.cuh says where
 * its sums are not these.
 * For log probabilities, in addition: the node of the logits as they came (no edits, temperature 1) and the best n_top. */
typedef struct op_sample {
    int vocab_first, vocab_count;
    int n_vocab;
    int leaf_first, leaf_count;
} op_sample;

typedef struct ls_candidate {
    float z;
    int32_t id;
} ls_candidate;

typedef struct ls_sample_part {
    float max, sum;     /* this rank's node of the (max, sum of exp) tree; sum 0 if the rank has no vocabulary */
    double drawn_value; /* best z + g over all of this rank's ids; -inf if it has none */
    int32_t drawn_id;
    int32_t n_best;                    /* at most vocab_count */
    ls_candidate best[LS_SAMPLE_BEST]; /* by z falling, then id rising; forbidden ones are left out */
    float raw_max, raw_sum;            /* the node of the logits as they came, where n_top >= 0 */
    int32_t n_top;
    ls_candidate top[LS_SAMPLE_TOP]; /* of those, in the same order */
} ls_sample_part;

/* One line of a program. Costs are this rank's: what `bench` and the timeline divide by. */
typedef struct ls_op {
    ls_op_kind kind;
    int layer;                      /* -1 outside the layers */
    uint32_t reads, writes;         /* 1 << ls_buf */
    int64_t weight_bytes;           /* read once a step */
    int64_t flops_per_row;          /* 2 for each multiply-add of a matmul; attn: 4 d H_loc for each token attended */
    int64_t exchange_bytes_per_row; /* f32 words this rank publishes */
    union {
        op_embed embed;
        op_qkv qkv;
        op_attn attn;
        op_row row;
        op_exchange exchange;
        op_ffn_in ffn_in;
        op_head head;
        op_sample sample;
    };
} ls_op;

/* ---- What the indices of a program mean on one rank -------------------------------------------------------------- */

typedef struct ls_bind {
    ls_group group;
    ls_dtype dtype, kv_dtype; /* run dtype; KV cache dtype */
    int d_model;
    int m_max; /* rows the buffers have room for */
    const ls_weight *weight;
    void *buf[BUF_COUNT];
    const float *rope;       /* f32 [positions][d/2][2]: cos, sin */
    void *k_cache, *v_cache; /* KV dtype [L][n_pages][K_loc][P][d] */
    int n_pages;
    const float *peer_part[LS_MAX_RANKS]; /* every rank's BUF_PART, or each host's sum of them */
    int n_parts;                          /* how many these are */
    atomic_int *fault; /* [M_max] this rank's: 0, or 1 + index of the op that first showed inf or NaN */
    const void *isa;   /* CPU: const cpu_isa * (backend/cpu/cpu.h) */
} ls_bind;

/* Runs on every thread of the rank's team. `index` is the op's place in the program, for faults. */
typedef void (*ls_op_fn)(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team);

/* A back end's implementation of every op. */
typedef struct ls_op_table {
    const char *name;
    ls_op_fn fn[OP_KINDS];
} ls_op_table;

/* "embed", "qkv", ...: names for messages, profiles and `make kcheck K=`. */
const char *op_kind_name(ls_op_kind kind);

#endif
