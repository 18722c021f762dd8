/*
 * NCCL between the GPUs of ranks, one a rank: sums and gathers on the ranks' streams. libnccl.so.2 is opened when it is asked
 * for.
 *
 * Each GPU's calls come from a thread of its own, so no groups are needed, neither to begin with nor in a step; and what a
 * thread captures is its own GPU's part, whose graph it launches too: a graph that waits for another GPU's may block its
 * launch. The caller's program keeps NVLS off (NCCL_NVLS_ENABLE=0): the switch adds in an order of its own, and needs rights
 * that containers often lack.
 */
#ifndef LS_BACKEND_CUDA_NCCL_H
#define LS_BACKEND_CUDA_NCCL_H

#include "backend/cuda/cuda.h"
#include "backend/cuda/nccl_abi.h"

typedef struct cuda_nccl cuda_nccl;

/* LS_ENOTFOUND: no library, or one that lacks a function, and where it was looked for. */
ls_status nccl_open(cuda_nccl **out, ls_error *err);
/* A new group's name, which all its ranks join by. */
ls_status nccl_new_id(const cuda_nccl *nccl, ncclUniqueId *out, ls_error *err);
/* Rank `number` of n joins, with the GPU of `rank`, whose context is the thread's; returns when all have. Sums of several sizes
 * follow, so that what NCCL sets up at first use is there before anything is captured, and before memory is measured. */
ls_status nccl_join(cuda_nccl *nccl, const ncclUniqueId *id, const cuda_rank *rank, int number, int n, ls_error *err);
/* data [count] = the sum of all ranks'. */
ls_status nccl_sum(const cuda_nccl *nccl, const cuda_rank *rank, int number, float *data, size_t count, ls_error *err);
/* to [n_ranks][bytes] = each rank's `from`. */
ls_status nccl_gather(const cuda_nccl *nccl, const cuda_rank *rank, int number, const void *from, void *to,
                      size_t bytes, ls_error *err);
/* LS_EABORTED: a rank of this process has failed meanwhile, and why. */
ls_status nccl_check(const cuda_nccl *nccl, ls_error *err);
/* Ends what is under way on the GPUs of this process; nothing goes after it. */
void nccl_abort(cuda_nccl *nccl);
void nccl_close(cuda_nccl **nccl); /* accepts NULL inside; sets it to NULL */

#endif
