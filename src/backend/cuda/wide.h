/*
 * Matmuls of 17 to 128 rows on Hopper (kern/wide.cu): where they serve, what they need before the first step, their launches.
 * Which steps they run is prefill.c's to say.
 */
#ifndef LS_BACKEND_CUDA_WIDE_H
#define LS_BACKEND_CUDA_WIDE_H

#include "backend/cuda/cuda.h"
#include "backend/cuda/kern/prefill_args.h"

enum { WIDE_KERNELS = 5 }; /* wide_<dtype>_<32_long, 32, 64_long, 64, 128>, of each dtype, bf16 before f16 */

/* Scratch, on any chip; 0: none of the ops needs it. */
size_t wide_workspace(const ls_op *op, int n_ops, const ls_bind *bind);

/* Sets rank->wide: chips with wgmma and code of their own for it, a 16-bit dtype. fn: all kernels. */
ls_status wide_prepare(cuda_rank *rank, CUfunction *fn, ls_error *err);

/* The rule for an op: rows that a tile holds, its weights in the run dtype, rows and buffers on 16-byte borders. */
bool wide_serves(const cuda_rank *rank, const ls_op *op, int n_rows);

/* Nodes of the leaf tree that out and ffn_out leave in BUF_PART; alone: 1. */
int wide_row_nodes(const cuda_rank *rank, const ls_op *op, bool alone);

/* qkv, out, ffn_in, ffn_out or head (index: its place in the program) without the norm. y: where qkv leaves its sums, biases
 * added. part: wide_workspace bytes of scratch. */
ls_status wide_matmul(cuda_rank *rank, const ls_op *op, int index, int n_rows, bool alone, float *y, CUdeviceptr part,
                      ls_error *err);

/* A matrix [rows][cols] of the run dtype, in boxes of box_rows rows and 64 columns. */
ls_status wide_map(cuda_rank *rank, const void *data, int rows, int cols, int box_rows, prefill_map *out,
                   ls_error *err);

#endif
