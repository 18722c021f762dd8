/*
 * The CUDA back end: ranks on GPUs. The driver API by dlopen, kernels as embedded cubins, everything loaded before the
 * first step.
 *
 *   driver.[ch]     libcuda.so.1 by dlopen: a struct of function pointers                    knows nothing of models
 *   cuda_rank.c     context, stream, module, functions, pinned step buffers of one rank
 *   decode.c        launches the ops of a decode step, M <= 16 rows; kern/decode_*.cu
 *   persist.[ch]    the same step as one kernel, on chips that can; kern/persist*.cu[h]
 *   prefill.c       launches the ops of any other step, decode-only steps of more rows among them; kern/prefill_*.cu, matmuls by decode's kernels (few rows) or
 *                   cuBLASLt (cublaslt.c), attention on Hopper by flash.c
 *   wide.c          launches matmuls of 17 rows and more on Hopper; kern/wide.cu
 *   gemm.c          launches matmuls of many rows on Hopper; kern/gemm.cu
 *   exchange.[ch]   launches what joins ranks; kern/exchange.cu
 *   load.c          launches what converts weights, or makes them up; kern/load.cu
 *   measure.[ch]    what the device can do: reads, copies, launches, matmuls; nvml.[ch] its clocks and health
 *
 * Memory: ls_bind's pointers are device addresses. Activations (act in ops.h) lie in the run dtype; h, parts and logits are
 * f32. BUF_PART has room for CUDA_NODES nodes a slot: [2][CUDA_NODES][M_max][D]. A row matmul may leave its sum as 1, 2, 4
 * or 8 nodes of the leaf tree (op_row's leaves in order), so that more blocks than D / 16 can work on it; the exchange that
 * follows adds up the rest of the tree. Which count is used is fixed for a shape: it decides no bits.
 *
 * A launcher runs the ops from `first` on and says how many it took: consecutive ops may be one kernel (exchange and the
 * norm of the op behind it; qkv's RoPE and KV append and attn). Launches go to rank->stream and do not block; the only
 * errors are those of launching. Everything that differs from step to step is read from the cuda_step in device memory, so
 * that a decode launch sequence can be captured once for a bucket of rows and replayed.
 */
#ifndef LS_BACKEND_CUDA_CUDA_H
#define LS_BACKEND_CUDA_CUDA_H

#include <cuda.h>

#include "backend/cuda/driver.h"
#include "backend/cuda/kern/load.h"
#include "backend/cuda/kern/step.h"
#include "backend/ops.h"

enum { CUDA_NODES = 8, CUDA_NOTED = 8 };

/* Every kernel: extern "C" __global__ functions of kern/ *.cu, found by name when the rank is opened. decode.c and prefill.c
 * each have their list. */
typedef struct cuda_facts {
    char name[96];
    int device; /* ordinal */
    int sm_count, cc_major, cc_minor;
    int shared_bytes_per_block; /* opt-in maximum */
    size_t memory_bytes, l2_bytes;
} cuda_facts;

/* Who runs a kind of matmul of more than few rows: who is faster; or, for tests and benches, one wherever it can, else the library. */
typedef enum cuda_matmul_by { CUDA_BY_CHOICE, CUDA_BY_LIBRARY, CUDA_BY_WIDE, CUDA_BY_GEMM } cuda_matmul_by;

typedef struct cuda_rank {
    const cuda_driver *driver;
    CUdevice device;
    CUcontext context;
    CUstream stream;
    CUmodule *module; /* [n_modules]: one for each file of kern/ */
    int n_modules;
    int64_t jit_us; /* of PTX that the driver compiled, 0 where the binary has the chip's own code */
    cuda_facts facts;
    ls_bind bind;      /* device addresses */
    CUdeviceptr step;  /* a cuda_step and its arrays */
    size_t step_bytes; /* its room */
    CUdeviceptr
        counters;      /* u32 [CUDA_COUNTERS], zero at the start: "last block" counters, left at zero by their users */
    CUdeviceptr drawn; /* int32 [n_out_max] tokens drawn on the device, -1 where the host draws; the next step may start
                          from them */
    CUdeviceptr workspace; /* attention's partial results, cuBLASLt's scratch: decode_workspace, prefill_workspace */
    size_t workspace_bytes;
    struct cublaslt *cublaslt; /* NULL: not there; prefill then runs its own matmul kernel */
    int few_rows,
        few_out;         /* the largest steps that decode's matmuls are faster for, layers and head: prefill_prepare */
    CUdeviceptr sums;    /* in workspace: prefill.c's f32 sums */
    CUdeviceptr widened; /* in workspace: a weight that is int8, in the run dtype; 0: no room for it */
    bool wide;           /* wide.c serves, with its kernels */
    CUfunction *wide_fn;
    cuda_matmul_by matmul_by[OP_KINDS];
    bool gemm;            /* gemm.c serves, with its kernels */
    int gemm_passed_over; /* cheaper choices of tiles and nodes, for benches: 0 */
    CUfunction *gemm_fn;
    bool flash; /* flash.c serves: its maps of the K and of the V cache (CUtensorMap) */
    uint64_t flash_map[2][16];
    int attn_warps; /* of a block of decode's attention, at most, so that its bits are persist.cu's: PERSIST_WARPS; or 0 */
    int attn_chains; /* decode's attention by chains: 0 in steps of more than CUDA_MAX_DECODE rows; for tests and benches 1
                        wherever they can, -1 nowhere */
    int attn_tokens; /* of a split of decode's attention, at least: 0 for DECODE_ATTN_TOKENS; for benches another number */
    bool
        overlap; /* kernels that know how begin while the one before them ends (programmatic dependent launch); only with the
                     chip's own code for sm_90 and later: PTX for older chips does not wait */
    CUfunction *decode_fn, *prefill_fn;
    bool borrowed;                    /* context, stream and modules are another rank's: cuda_rank_open_beside */
    const char *launched[CUDA_NOTED]; /* names of the first kernels since n_launched was set to 0, for verify */
    int n_launched;
} cuda_rank;

enum {
    CUDA_COUNTERS = 1 << 16,
    CUDA_SAMPLE_ROWS = 1 << 13 /* output rows of a step, at most: sample has a counter for each */
};

/* ---- decode.c: kern/decode_*.cu ---- */

/* Names of its kernels, for cuda_rank.c to look up; rank->decode_fn is in this order. */
extern const char *const decode_kernel_names[];
extern const int n_decode_kernels;
/* Scratch that attention needs for m_max rows of at most max_len tokens, which lie in n_pages pages. */
size_t decode_workspace(const ls_op *attn, int m_max, int max_len, int n_pages);
/* Sets function attributes (shared memory) once. */
ls_status decode_prepare(cuda_rank *rank, ls_error *err);
/* Launches ops from op[first] on for a step of at most `m_bucket` decode rows (1, 2, 4, 8 or 16; the step's own count is in
 * device memory). *n_taken: how many ops of the program that was. */
ls_status decode_launch(cuda_rank *rank, const ls_op *op, int n_ops, int first, int m_bucket, int *n_taken,
                        ls_error *err);

/* What prefill.c runs of it: any op but attn and sample, for any number of rows. */
typedef struct decode_how {
    int n_rows, n_out;
    int n_nodes; /* of the leaf tree: out and ffn_out leave so many; an exchange finds so many */
    bool alone;  /* the op leaves all that ops.h says and does no other's work: neighbours are launched otherwise */
    float *qkv;  /* qkv leaves its sums here, [n_rows][(H + 2 K) d] */
} decode_how;
ls_status decode_launch_rows(cuda_rank *rank, const ls_op *op, int n_ops, int first, const decode_how *how,
                             ls_error *err);
/* Attention of n_rows rows, each the last of its sequence. Where the op before it is qkv, its sums are in BUF_QKV, f32; with_bias:
 * its biases are not in them yet. */
ls_status decode_launch_attn(cuda_rank *rank, const ls_op *op, int first, bool with_bias, int n_rows, ls_error *err);
/* The norm alone of an op that begins with one. */
ls_status decode_launch_norm(cuda_rank *rank, const ls_op *op, int first, int n_rows, ls_error *err);
/* Warps of a block of attention, which decide bits; bytes of shared memory for a row of K or V, and for a warp. */
int decode_attn_warps(const cuda_rank *rank, int d_head, int *row_bytes, int *warp_bytes);
/* How many nodes of the leaf tree decode's out and ffn_out leave of n_rows rows. */
int decode_row_nodes(const cuda_rank *rank, const ls_op *op, int n_rows);
/* How many offers `sample` leaves for each output row in the workspace (decode_sample_part, ids within the rank's
 * vocabulary), beside the drawn token. */
int decode_sample_slices(const ls_op *op);
/* Scratch that `sample` needs for n_out output rows; decode_workspace is enough for CUDA_MAX_WIDE. */
size_t decode_sample_workspace(const ls_op *op, int n_out);

/* ---- prefill.c: kern/prefill_*.cu ---- */

extern const char *const prefill_kernel_names[];
extern const int n_prefill_kernels;
size_t prefill_workspace(const ls_op *op, int n_ops, const ls_bind *bind, int max_len);
/* After the bind, the workspace and the addresses of the weights are there. With rank->cublaslt (which the caller opens,
 * unless --kernels generic, and closes) it chooses and tries the algorithms of the program's matmuls. */
ls_status prefill_prepare(cuda_rank *rank, const ls_op *op, int n_ops, ls_error *err);
/* The same for steps with any number of rows; `step` (host memory) says how many. `alone`: as in decode_how. */
ls_status prefill_launch(cuda_rank *rank, const ls_op *op, int n_ops, int first, const ls_step *step, bool alone,
                         int *n_taken, ls_error *err);
/* How many nodes of the leaf tree out or ffn_out (op) leaves for the exchange in such a step. */
int prefill_row_nodes(const cuda_rank *rank, const ls_op *op, const ls_step *step);
/* The same for steps of at most n_rows (up to CUDA_MAX_WIDE) rows, each the last of its sequence, and n_out output rows: as
 * decode_launch's, these launches read the step's own counts in device memory and can be captured. */
ls_status prefill_launch_decode(cuda_rank *rank, const ls_op *op, int n_ops, int first, int n_rows, int n_out,
                                int *n_taken, ls_error *err);

/* ---- load.c: kern/load.cu ---- */

typedef struct cuda_load_kernels {
    CUfunction rows, int8;
} cuda_load_kernels;

ls_status cuda_load_open(cuda_load_kernels *out, const cuda_rank *rank, ls_error *err);
/* Enqueues the conversion of args->rows rows on `stream`. From several threads at once, each with its stream. */
ls_status cuda_load_rows(const cuda_rank *rank, const cuda_load_kernels *kernels, CUstream stream, load_args *args,
                         ls_error *err);

/* ---- cuda_rank.c ---- */

/* What device `ordinal` is, without a context on it; the rank holds nothing to close. LS_ENOTFOUND: no such device. */
ls_status cuda_rank_facts(cuda_rank *rank, const cuda_driver *driver, int ordinal, ls_error *err);
/* Opens device `ordinal`: primary context (current on the calling thread from then on), stream, modules for its chip, all
 * kernels. `generic`: the kernels that unknown chips run, which the driver compiles. The driver is borrowed. *rank may be
 * closed whatever came of it. LS_ENOTFOUND: no such device; LS_EUNSUPPORTED: no kernels for its chip. */
ls_status cuda_rank_open(cuda_rank *rank, const cuda_driver *driver, int ordinal, bool generic, ls_error *err);
/* Another rank on the device of `first`, which outlives it: context, stream and kernels are the same. */
void cuda_rank_open_beside(cuda_rank *rank, const cuda_rank *first);
void cuda_rank_close(cuda_rank *rank); /* accepts a zeroed one */
/* Makes the rank's context the calling thread's. */
ls_status cuda_rank_enter(const cuda_rank *rank, ls_error *err);
/* A kernel of any module, loaded; LS_EINTERNAL if there is none of that name. */
ls_status cuda_rank_kernel(const cuda_rank *rank, const char *name, CUfunction *out, ls_error *err);
/* Waits until the stream has done all its work, or (an event that is not NULL) what it was given before that; in vain for at most timeout_s
 * (LS_EABORTED). */
ls_status cuda_rank_wait(const cuda_rank *rank, const char *what, int timeout_s, ls_error *err);
ls_status cuda_rank_wait_event(const cuda_rank *rank, CUevent event, const char *what, int timeout_s, ls_error *err);
/* Bytes of the device that are free, and all. */
ls_status cuda_rank_memory(const cuda_rank *rank, size_t *free_bytes, size_t *total_bytes, ls_error *err);

/* Notes the name of a kernel that is launched by other means than cuda_launch. */
static inline void cuda_note_launch(cuda_rank *rank, const char *name) {
    if (rank->n_launched < CUDA_NOTED) {
        rank->launched[rank->n_launched++] = name;
    }
}
/* Enqueues a kernel on rank->stream; args as cuLaunchKernel takes them. Errors carry the kernel's name and CUDA's. */
ls_status cuda_launch(cuda_rank *rank, CUfunction fn, const char *name, unsigned grid_x, unsigned grid_y,
                      unsigned grid_z, unsigned block, unsigned shared_bytes, void **args, ls_error *err);
/* The same for a kernel that waits for those before it (ptx.cuh), so that it may begin while they end: rank->overlap. */
ls_status cuda_launch_overlapping(cuda_rank *rank, CUfunction fn, const char *name, unsigned grid_x, unsigned grid_y,
                                  unsigned grid_z, unsigned block, unsigned shared_bytes, void **args, ls_error *err);
/* ... all of whose blocks run at the same time: a cooperative launch, which fails where the chip does not hold them all. */
ls_status cuda_launch_together(cuda_rank *rank, CUfunction fn, const char *name, unsigned grid_x, unsigned grid_y,
                               unsigned block, unsigned shared_bytes, void **args, ls_error *err);
/* LS_OK, or an error with what, the rank and CUDA's name and text for rc. */
ls_status cuda_check(const cuda_rank *rank, CUresult rc, const char *what, ls_error *err);

/* The kernel runs with as much shared memory and as little L1 as a multiprocessor can have, as those beside it do: that is not
 * changed while blocks run there. */
static inline ls_status cuda_share_most(cuda_rank *rank, CUfunction fn, ls_error *err) {
    return cuda_check(
        rank,
        rank->driver->cuFuncSetAttribute(fn, CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100 /* percent */),
        "a kernel's part of shared memory", err);
}

#endif
