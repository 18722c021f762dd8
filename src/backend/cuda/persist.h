/*
 * The persistent decode kernel's plan: a program as an op table, the words that cross SMs, and how shared memory is cut. See
 * kern/persist.cu. A plan belongs to one rank and is launched by one thread at a time.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_H
#define LS_BACKEND_CUDA_PERSIST_H

#include "backend/cuda/cuda.h"
#include "backend/cuda/kern/persist_args.h"

enum { PERSIST_MAX_OPS = 1024 };

typedef struct persist_plan {
    persist_args args;
    persist_op op[PERSIST_MAX_OPS]; /* as it shall lie at args.op */
    size_t table_bytes, room_bytes; /* of device memory: the table; the table, words and scratch, zeroed once */
    unsigned grid, shared_bytes;
    int columns; /* 8 or 16: rows that it takes, at most */
    const char *kernel;
} persist_plan;

extern const char *const persist_kernel_names[];
extern const int n_persist_kernels;

/* Makes the plan of a decode program for at most `columns` rows (8 or 16) and `max_len` tokens; `blocks`: at most as many as
 * the GPU has SMs, all of which must be free for it. The plan's addresses begin at `room`, which may be 0 to learn room_bytes; the
 * caller copies plan->op to `room` and zeroes the rest. window_bytes: in flight on each SM.
 * LS_EUNSUPPORTED: a program, dtype, shape or chip it does not run; the other plan does. */
ls_status persist_plan_build(persist_plan *out, const cuda_rank *rank, const ls_op *op, int n_ops, int columns,
                             int max_len, int blocks, int window_bytes, CUdeviceptr room, ls_error *err);

#endif
