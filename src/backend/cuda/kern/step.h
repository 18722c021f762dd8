/*
 * What kernels and launchers agree on: the step's input as it lies in device memory, and the arguments of kernels.
 * Included by C (launchers) and by CUDA C (kernels); plain data, no pointers that only one side could follow.
 *
 * One `cuda_step` lies at a fixed address in each rank's device memory and is overwritten before each step (one copy from
 * pinned memory), so that captured graphs need no updates: everything that changes from step to step is read from it.
 */
#ifndef LS_BACKEND_CUDA_STEP_H
#define LS_BACKEND_CUDA_STEP_H

#include <stdint.h>

enum {
    CUDA_MAX_DECODE = 16,        /* rows of steps that decode's kernels run alone: two tiles of mma's N = 8 */
    CUDA_MAX_WIDE = 256,         /* rows of other decode-only steps that are captured as graphs */
    CUDA_PAGE_TOKENS = 64,       /* = LS_PAGE_TOKENS of ops.h; launchers assert it */
    CUDA_TOKEN_DRAWN = INT32_MIN /* = LS_TOKEN_DRAWN */
};

/* A sequence of the step: its rows follow one another (ops.h: ls_step_seq). */
typedef struct cuda_seq {
    int32_t first_row, n_rows, n_past;
    int32_t page_first; /* its page numbers: page[page_first ...] */
} cuda_seq;

/* Some query rows of a sequence, all that one block of prefill's attention takes: see prefill_tile.cuh. */
typedef struct cuda_tile {
    int32_t seq, index;
    int32_t keys; /* how much it is: what the list is ordered by */
} cuda_tile;

/* How a row is drawn on the device: greedy, or Gumbel-max over what filters leave of the vocabulary. Rows with edits or log
 * probabilities are drawn on the host, from their logits. */
typedef struct cuda_draw {
    float temperature; /* 0: greedy */
    int32_t position;
    uint32_t choice, on_host;
    uint64_t seed;
    uint32_t is_filtered; /* what follows counts; by decode_sample.cu alone */
    int32_t top_k;        /* less than the vocabulary; 0: all */
    float top_p, min_p;
} cuda_draw;

/* Offsets in bytes from the struct's own address lead to the arrays behind it. */
typedef struct cuda_step {
    int32_t n_rows, n_dec, n_pre, n_seqs, n_out;
    uint32_t epoch;     /* counts steps: what counters in device memory are compared with */
    int64_t token;      /* int32_t [M]; below CUDA_TOKEN_DRAWN / 2: CUDA_TOKEN_DRAWN + index into drawn */
    int64_t pos;        /* int32_t [M] */
    int64_t seq_of;     /* int32_t [M] */
    int64_t out_row;    /* int32_t [n_out] */
    int64_t seq;        /* cuda_seq [n_seqs] */
    int64_t page;       /* int32_t [all pages of all sequences] */
    int64_t draw;       /* cuda_draw [n_out] */
    int64_t tile;       /* cuda_tile [at most M]: all there are, those with the most keys first; see flash.h */
    int64_t input_rows; /* float [.][D]; 0: there are none */
    int64_t drawn; /* int32_t [.]: tokens that the step before drew for its output rows; embed reads them before this
                           step's `sample` writes its own there */
} cuda_step;

#endif
