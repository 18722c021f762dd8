/*
 * Matmuls of many rows on Hopper (kern/gemm.cu): where they serve, what they need before the first step, their launches.
 * Which steps they run is prefill.c's to say.
 */
#ifndef LS_BACKEND_CUDA_GEMM_H
#define LS_BACKEND_CUDA_GEMM_H

#include "backend/cuda/cuda.h"

enum { GEMM_KERNELS = 7 }; /* of each dtype, bf16 before f16: gemm.c has their order */

/* Sets rank->gemm: chips with wgmma and code of their own for it, a 16-bit dtype. fn: all kernels. */
ls_status gemm_prepare(cuda_rank *rank, CUfunction *fn, ls_error *err);

/* The rule for an op: its weights in the run dtype, rows and buffers on 16-byte borders. */
bool gemm_serves(const cuda_rank *rank, const ls_op *op);

/* ... and for what follows qkv's sums: heads of 64 or 128, a cache of the run dtype. */
bool gemm_finishes(const cuda_rank *rank, const op_qkv *a);

/* Nodes of the leaf tree that out and ffn_out leave in BUF_PART; alone: 1. */
int gemm_row_nodes(const cuda_rank *rank, const ls_op *op, int n_rows, bool alone);

/* qkv, out, ffn_in, ffn_out or head without the norm, and the head without its faults. sums: where qkv leaves f32 sums, biases added, [n_rows][(H + 2 K) d]; NULL: all of
 * qkv, if gemm_finishes says so. */
ls_status gemm_matmul(cuda_rank *rank, const ls_op *op, int n_rows, bool alone, float *sums, ls_error *err);

#endif
