/*
 * The persistent decode kernel's plan: a program as an op table, the words that cross SMs, and how shared memory is cut. See
 * kern/persist.cu. A plan belongs to one rank and is launched by one thread at a time.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_H
#define LS_BACKEND_CUDA_PERSIST_H

#include "backend/cuda/cuda.h"
#include "backend/cuda/kern/persist_args.h"

enum { PERSIST_MAX_OPS = 1024 };

/* What a plan is made for. */
typedef struct persist_options {
    int rows;         /* of a step, at most: 1 .. 16 */
    int max_len;      /* tokens of a sequence, at most */
    int blocks;       /* at most as many as the GPU has SMs, all of which must be free for it; the same on all ranks */
    int here;         /* ranks on this GPU, which one launch serves: persist_launch; each has `blocks`. 0: one */
    int window_bytes; /* of weights on their way to each SM; 0: PERSIST_WINDOW */
    int chunk_bytes;  /* that are asked for at a time, at most, where units allow; 0: PERSIST_CHUNK */
    int ring_bytes;   /* of shared memory for them, at most; 0: all that is left */
    int norm_apart;   /* norms are ops of their own: 0 as suits the rows, 1 always, -1 never */
    int parts;        /* blocks that share the leaves of a row of out and ffn_out: 1, 2, 4, 8; 0 as suits the rows */
} persist_options;

enum { PERSIST_WINDOW = 48 << 10, PERSIST_CHUNK = 24 << 10 };

typedef struct persist_plan {
    persist_args args;
    persist_op op[PERSIST_MAX_OPS]; /* as it shall lie at args.op */
    size_t room_bytes;              /* of device memory: the table, maps, words and scratch, zeroed once */
    unsigned grid, shared_bytes;
    int rows, here;
    const char *kernel;
} persist_plan;

/* All kernels; a plan's is one of them. */
extern const char *const persist_kernel_names[];
extern const int n_persist_kernels;

/* Makes the plan of a decode program. Its addresses begin at `room`, which may be 0 to learn room_bytes; the caller zeroes the
 * room. With several ranks the caller then sets args.node[] to every
 * rank's own (args.node[rank], which their GPUs must be able to store to), and all ranks launch as often. A plan with fewer rows leaves
 * more shared memory to the ring.
 * LS_EUNSUPPORTED: a program, dtype, shape or chip it does not run; the other plan does. */
ls_status persist_plan_build(persist_plan *out, const cuda_rank *rank, const ls_op *op, int n_ops,
                             const persist_options *how, CUdeviceptr room, ls_error *err);

/* Once, before its first launch and once the room is zeroed: fills in the table and maps there. LS_EUNSUPPORTED if the GPU
 * cannot hold all blocks at once, those of the other ranks on it too. */
ls_status persist_prepare(cuda_rank *rank, const persist_plan *plan, CUfunction fn, ls_error *err);
/* Enqueues a step of the ranks of a GPU, whose plans are plan[n] (options.here = n), on the stream of one: each reads its step, leaves
 * tokens in its rank->drawn, faults in bind.fault, logits of rows that the host draws for in BUF_LOGITS, K and V in the cache. With several
 * ranks all leave the same tokens. May be captured. */
ls_status persist_launch(cuda_rank *rank, const persist_plan *const *plan, int n, CUfunction fn, ls_error *err);
/* After a step, with what all ranks left in *args.stuck (or told): LS_EABORTED with the op, the layer and the rank that another waited for
 * in vain, for timeout_ns; or, where a rank waited for itself, the block. Rooms must be made anew before the next launch. */
ls_status persist_check(const persist_stuck *stuck, int n_ranks, const ls_op *op, int64_t timeout_ns, ls_error *err);

#endif
