/*
 * The op harness: every implementation of every op against an independent oracle, against the reference, and against
 * itself at other numbers of ranks and threads, in other company, and with a poisoned neighbour.
 *
 *   kern_case      sizes and dtypes of one op                              a row of a table in test_ops.c
 *   kern_problem   a case with numbers: global weights, inputs, sequences  problem.c
 *   oracle_run     the op's formula in double precision, whole sums        oracle.c
 *   kern_memory    a problem cut for R ranks, in guarded buffers           harness.c
 *   kern_execute   runs it on R teams of t threads, gathers the outputs    harness.c
 *   kern_check     all comparisons of one case                             check.c
 *
 * Guards: each buffer has exactly the size that the contract gives it and lies between two zones. Zones, unused rows,
 * unused KV slots and outputs before the run are bytes 0xFF: NaN as f32, bf16 and f16, and -1 as an index. So what is
 * read there shows in the result, and what is written there shows in the zone. Buffers that an op has no business with
 * are NULL.
 *
 * To test another back end, add a row to kern_impls() in harness.c.
 */
#ifndef LS_TESTS_KERN_HARNESS_H
#define LS_TESTS_KERN_HARNESS_H

#include "backend/ops.h"
#include "rank/rank.h"
#include "rank/shard.h"

/* ---- Implementations ---- */

typedef struct kern_impl {
    const char *name;
    const ls_op_table *table;
    const char *isa; /* goes into bind->isa */
    bool exact; /* promises the bits of the first row, and the same at any R, team and batch; else: tolerance only */
} kern_impl;

enum { KERN_MAX_IMPLS = 8 };

/* Those that this machine runs; the first is the reference. */
int kern_impls(kern_impl impl[KERN_MAX_IMPLS]);

/* ---- Cases ---- */

enum { KERN_MAX_SEQS = 8, KERN_MAX_ROWS = 64 };

typedef struct kern_span {
    int seq, first, n; /* rows [first, first + n) of a sequence's rows */
} kern_span;

typedef struct kern_seq {
    int n_past, n_rows;
} kern_seq;

typedef struct kern_case {
    ls_op_kind kind;
    ls_dtype dtype, kv_dtype;
    ls_quantization quantization; /* of the matrices */
    const char *model;            /* whose per-rank sizes these are; NULL: nobody's */
    int d_model;
    int n; /* F of ffn_in, V of embed, head and sample, K of out and ffn_out */
    int n_heads, n_kv, d_head, window;
    bool bias; /* qkv, ffn_in, exchange */
    bool qk_norm;
    bool init;                   /* exchange */
    kern_seq seq[KERN_MAX_SEQS]; /* up to the first with no rows; decode rows first */
} kern_case;

/* "attn bf16/f16 D 97 ...": for messages. */
const char *kern_case_text(const kern_case *c, char text[256]);

/* ---- Problems ---- */

typedef enum kern_weight {
    KW_TABLE,
    KW_NORM,
    KW_Q,
    KW_K,
    KW_V,
    KW_Q_BIAS,
    KW_K_BIAS,
    KW_V_BIAS,
    KW_Q_NORM,
    KW_K_NORM,
    KW_ROW,
    KW_ROW_BIAS,
    KW_GATE,
    KW_UP,
    KW_GATE_BIAS,
    KW_UP_BIAS,
    KW_HEAD,
    KW_COUNT
} kern_weight;

/* A global weight. Values are representable in `format`. rows = 0: the case has none; 1-D weights have one row. */
typedef struct kern_tensor {
    int rows, cols;
    bool is_vector;
    ls_dtype format;
    shard_rule rule;
    float *value;
    int8_t *q;    /* int8: [rows][cols] */
    float *scale; /* int8: [rows][8 leaves] */
} kern_tensor;

/* Edits and allowed ids of some of sample's rows. */
enum { KERN_EDITS = 40 };

typedef struct kern_problem {
    const kern_case *c;
    kern_tensor weight[KW_COUNT];
    int n_seqs, n_rows, n_pages, in_cols;
    int row_seq[KERN_MAX_ROWS], row_pos[KERN_MAX_ROWS];
    int seq_first[KERN_MAX_SEQS]; /* a sequence's first row */
    int32_t token[KERN_MAX_ROWS]; /* -1 - i: row i of input_rows */
    bool is_out[KERN_MAX_ROWS];   /* head and sample: has logits */
    ls_sample_params sample[KERN_MAX_ROWS];
    ls_logit_edit edit[KERN_EDITS];
    int32_t allowed[KERN_EDITS];
    float *in;                                  /* [n_rows][in_cols]: h, q, att, act or logits, what the op reads */
    float *input_rows;                          /* [n_rows][D] */
    float *leaf;                                /* exchange: [8][n_rows][D] */
    float *rope;                                /* [positions][d/2][2] */
    float *k[KERN_MAX_SEQS], *v[KERN_MAX_SEQS]; /* attn: [n_past + n_rows][K d] */
    int32_t *page[KERN_MAX_SEQS];
} kern_problem;

kern_problem *problem_create(const kern_case *c);
void problem_destroy(kern_problem *p);
static inline int kern_positions(const kern_case *c, int seq) {
    return c->seq[seq].n_past + c->seq[seq].n_rows;
}

/* ---- Runs ---- */

enum {
    KERN_OP_INDEX = 40, /* the op's index in a pretended program; an exchange that follows has the next */
    KERN_FAILED_BEFORE = 6,
    KERN_MAX_OUTPUTS = 4
};

typedef struct kern_run {
    const kern_impl *impl;
    int n_ranks, n_threads;
    const kern_span *span; /* NULL: all rows in order */
    int n_spans;
    const int *failed_row; /* this row of the problem has failed before, in op KERN_FAILED_BEFORE; NULL: none has */
} kern_run;

typedef struct kern_output {
    const char *name;
    int rows, cols;
    float *value;
    bool per_rank;    /* rows of all ranks: not the same thing at another R */
    ls_dtype rounded; /* values must be representable in it */
    ls_dtype tolerance;
} kern_output;

typedef struct kern_result {
    int n_ranks, n_rows, n_outputs;
    int row[KERN_MAX_ROWS]; /* which of the problem's rows an output row is; head and sample have fewer */
    kern_output out[KERN_MAX_OUTPUTS];
    int fault[LS_MAX_RANKS][KERN_MAX_ROWS]; /* by the problem's rows; 0 also for those that were not in the step */
    bool has_vocab[LS_MAX_RANKS];           /* head: the rank has any logits */
} kern_result;

typedef struct kern_report {
    char text[640]; /* empty: nothing wrong so far */
} kern_report;

/* Notes what is wrong, if nothing was before; returns false. */
bool kern_fail(kern_report *report, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* One run's memory: also for timings. */
typedef struct kern_memory kern_memory;
typedef struct kern_rank {
    ls_bind bind;
    ls_weight weight[KW_COUNT];
    ls_op op[2];
    int n_ops;
} kern_rank;

kern_memory *memory_create(const kern_problem *p, const kern_run *run);
void memory_destroy(kern_memory *memory);
kern_rank *memory_rank(kern_memory *memory, int rank);
const ls_step *memory_step(const kern_memory *memory);

/* False: a guard was hurt, replicas differ, ... (report says). The result is the caller's. */
bool kern_execute(const kern_problem *p, const kern_run *run, kern_result *out, kern_report *report);
void result_deinit(kern_result *result);

/* A group of R teams of t threads, made once and kept until kern_groups_destroy. */
rank_group *kern_group(int n_ranks, int n_threads);
void kern_groups_destroy(void);

/* ---- The oracle ---- */

/* Quantises n numbers, by ops.h section 2, without src's code. Returns the scale. */
float oracle_quantize(const double *value, int64_t n, int8_t *q);

/* Rounded to nearest even in dtype; arithmetic on doubles only. */
double oracle_round(ls_dtype dtype, double value);

/* Compares a result of all rows with the formulas of ops.h; *worst is the largest error. `exact`: also that values are
 * rounded where ops.h says so and nowhere else, which the tolerance alone would not show. */
bool oracle_check(const kern_problem *p, const kern_result *result, bool exact, double *worst, kern_report *report);

/* ---- Checks ---- */

/* What has been checked with every comparison passed. */
typedef enum kern_class { KERN_ODD, KERN_ONE, KERN_PER_RANK, KERN_CLASSES } kern_class;
typedef struct kern_coverage {
    int n[KERN_MAX_IMPLS][OP_KINDS][KERN_CLASSES];
    double worst[OP_KINDS][4]; /* largest error against the oracle, by dtype */
    int n_quantized[KERN_MAX_IMPLS][OP_KINDS];
} kern_coverage;

/* True if nothing is wrong with any implementation; coverage may be NULL. impl[0] need not be the reference. */
bool kern_check(const kern_case *c, const kern_impl *impl, int n_impls, kern_coverage *coverage, kern_report *report);
/* Faults and poisoned neighbours. The case needs three rows. */
bool kern_check_faults(const kern_case *c, const kern_impl *impl, kern_report *report);

/* A sanitizer is at work: do less. ThreadSanitizer: do much less. */
bool kern_sanitized(void);
bool kern_thread_sanitized(void);

/* ---- Timings ---- */

void kern_bench(const char *only);

#endif
