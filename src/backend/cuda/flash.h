/*
 * Prefill's attention on Hopper (kern/prefill_flash.cu): where it serves, what it needs before the first step, its list of
 * work and its launch. Elsewhere prefill.c launches kern/prefill_attn.cu.
 */
#ifndef LS_BACKEND_CUDA_FLASH_H
#define LS_BACKEND_CUDA_FLASH_H

#include "backend/cuda/cuda.h"

/* The rule: chips with wgmma and code of their own for it, KV and rows in the same 16-bit dtype, a head size that has a
 * kernel, groups of heads that fit a tile. */
bool flash_serves(const cuda_rank *rank, const op_attn *a);

/* Sets rank->flash, and what launches need: the maps of the caches (bind is there) and shared memory for the kernels, which
 * lie in fn[] as flash_kernel counts them. */
ls_status flash_prepare(cuda_rank *rank, const ls_op *op, int n_ops, const CUfunction *fn, ls_error *err);

/* A kernel's place among prefill_flash_<dtype>_<d>, bf16 before f16, by head size; -1: there is none. */
int flash_kernel(ls_dtype dtype, int d_head);

/* The tiles of a step, those with the most keys first; out has room for step->n_rows, or is NULL. Returns how many. */
int flash_tiles(const op_attn *a, const ls_step *step, cuda_tile *out);

/* The kernel for a step whose cuda_step has its tiles. */
ls_status flash_attn(cuda_rank *rank, CUfunction fn, const char *name, const op_attn *a, int layer, const ls_step *step,
                     ls_error *err);

#endif
