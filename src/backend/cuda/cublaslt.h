/*
 * libcublasLt.so.13 by dlopen: matmuls of prefill. Optional: without it, and for shapes that it refuses, prefill.c runs a
 * kernel of its own.
 *
 * Algorithms are chosen by the library's heuristic before the first step, one for each cublaslt_shape and bucket
 * of rows (up to 16, 32, 64, ...), without split-K: the same sums in every run. Each has run once, so that its kernel is
 * loaded. One object a rank; calls from one thread at a time, in the rank's context.
 */
#ifndef LS_BACKEND_CUDA_CUBLASLT_H
#define LS_BACKEND_CUDA_CUBLASLT_H

#include <cuda.h>

#include "base/error.h"

typedef struct cublaslt cublaslt;

/* Of w, x and y; of the workspace: with one that lies on a lesser border the library's fastest algorithms are refused. */
enum { CUBLASLT_WORKSPACE_BYTES = 32 << 20, CUBLASLT_ALIGN = 16, CUBLASLT_WORKSPACE_ALIGN = 256 };

/* y[m][n] = x[m][k] w[n][k]^T: x and w row-major in dtype (f32, bf16, f16), y f32 with rows y_stride floats apart. f32 is
 * true f32. `parts` sums over equal parts of k lie part_stride floats apart; 1: all of k. */
typedef struct cublaslt_shape {
    ls_dtype dtype;
    int64_t n, k, y_stride;
    int parts;
    int64_t part_stride;
} cublaslt_shape;

/* LS_ENOTFOUND without the library, with the reason. *out is the caller's. */
/* Reads the library into memory, 500 MB of it, so that opening it takes less. Without it nothing happens. */
void cublaslt_preload(void);
ls_status cublaslt_open(cublaslt **out, ls_error *err);
void cublaslt_close(cublaslt **lt); /* accepts NULL inside; sets it to NULL */

/* Chooses algorithms for up to m_max rows, and runs each on one row: w is a weight of the shape, y has room for a row's n floats,
 * workspace for CUBLASLT_WORKSPACE_BYTES. A shape that is known, or that the library refuses, is no error. */
ls_status cublaslt_plan(cublaslt *lt, cublaslt_shape shape, int m_max, CUdeviceptr w, CUdeviceptr y,
                        CUdeviceptr workspace, CUstream stream, ls_error *err);

/* What cublaslt_plan takes from then on: the heuristic's best but `passed` of those without split-K, or its last. For benches. */
void cublaslt_pass_over(cublaslt *lt, int passed);

/* Whether there is an algorithm for m rows. */
bool cublaslt_has(cublaslt *lt, cublaslt_shape shape, int m);

/* Enqueues a matmul of m rows. False: this shape, m or alignment was not planned, or the library failed: nothing was done. */
bool cublaslt_matmul(cublaslt *lt, cublaslt_shape shape, int m, CUdeviceptr x, CUdeviceptr w, CUdeviceptr y,
                     CUdeviceptr workspace, CUstream stream);

#endif
