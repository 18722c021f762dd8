/*
 * What a GPU can do, measured on an open rank: the limits that runs are compared with, and what doctor tells.
 *
 * Each function waits for its own work on rank->stream and leaves nothing behind. Memory is the caller's; what is written
 * there is of no use. Figures are the best and the median of several passes.
 */
#ifndef LS_BACKEND_CUDA_MEASURE_H
#define LS_BACKEND_CUDA_MEASURE_H

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/cuda.h"

/* Bytes/s of reading memory (kern/read.cu), of the best of several numbers of blocks. bytes: a multiple of 16; sink: 4. */
ls_status cuda_measure_read(cuda_rank *rank, CUdeviceptr data, int64_t bytes, CUdeviceptr sink, ls_rate *out,
                            ls_error *err);
/* Bytes/s read plus bytes/s written by a copy of the first half of data to the second one. */
ls_status cuda_measure_copy(cuda_rank *rank, CUdeviceptr data, int64_t bytes, ls_rate *out, ls_error *err);
/* Bytes/s of copies from pinned memory and back. */
ls_status cuda_measure_copies(cuda_rank *rank, CUdeviceptr data, void *pinned, int64_t bytes, ls_rate *to_device,
                              ls_rate *to_host, ls_error *err);
/* Microseconds from kernel to kernel in a graph of a chain of small ones; overlap: with programmatic dependent launch.
 * count: 4 bytes, by which it is checked that all have run in turn (LS_EINTERNAL). */
ls_status cuda_measure_chain(cuda_rank *rank, bool overlap, CUdeviceptr count, ls_rate *out_us, ls_error *err);
/* FLOP/s of a matmul of n x n x n with f32 sums, by cuBLASLt. w, x: n * n elements of dtype each, w of random values; y: n * n
 * floats; workspace: CUBLASLT_WORKSPACE_BYTES. meanwhile(arg), if any, is called while the GPU is at it. LS_EUNSUPPORTED
 * where the library refuses. */
typedef struct cuda_gemm {
    ls_dtype dtype;
    int n;
    CUdeviceptr w, x, y, workspace;
    void (*meanwhile)(void *arg);
    void *arg;
} cuda_gemm;
ls_status cuda_measure_gemm(cuda_rank *rank, cublaslt *lt, const cuda_gemm *gemm, ls_rate *out, ls_error *err);
/* n bf16 elements of random values at `out` (kern/load.cu), so that a matmul's power is that of real ones. */
ls_status cuda_measure_fill(cuda_rank *rank, CUdeviceptr out, int64_t n, ls_error *err);

#endif
