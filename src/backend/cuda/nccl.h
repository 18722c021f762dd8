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

/* Whose ranks are in this process: [first, first + count) of the group. is_lost(arg), if there is one, is asked while ranks wait
 * for each other: true ends the waiting, for somebody else knows why. */
typedef struct nccl_members {
    int first, count;
    bool (*is_lost)(const void *arg);
    const void *arg;
} nccl_members;

/* LS_ENOTFOUND: no library, or one that lacks a function, and where it was looked for. */
ls_status nccl_open(cuda_nccl **out, const nccl_members *members, ls_error *err);
/* A new group's name, which all its ranks join by. */
ls_status nccl_new_id(const cuda_nccl *nccl, ncclUniqueId *out, ls_error *err);
/* Rank `number` of n joins, with the GPU of `rank`, whose context is the thread's; returns when all have. Sums of several sizes
 * follow, so that what NCCL sets up at first use is there before anything is captured, and before memory is measured.
 * LS_EABORTED: a rank of this process did not come within seconds, and which; or one failed, and why; or not all of the group
 * have joined in NCCL_JOIN_S. */
enum { NCCL_ABSENT_S = 2, NCCL_JOIN_S = 20 };
ls_status nccl_join(cuda_nccl *nccl, const ncclUniqueId *id, const cuda_rank *rank, int number, int n, ls_error *err);
/* In place of nccl_join where that cannot be: the others of this process give up, and tell this. */
void nccl_stay_away(cuda_nccl *nccl, const ls_error *why);
/* data [count] = the sum of all ranks'. */
ls_status nccl_sum(cuda_nccl *nccl, const cuda_rank *rank, int number, float *data, size_t count, ls_error *err);
/* to [n_ranks][bytes] = each rank's `from`. */
ls_status nccl_gather(cuda_nccl *nccl, const cuda_rank *rank, int number, const void *from, void *to, size_t bytes,
                      ls_error *err);
/* LS_EABORTED: a rank of this process has failed meanwhile, and why. */
ls_status nccl_check(const cuda_nccl *nccl, ls_error *err);
/* Ends what is under way on the GPUs of this process; nothing goes after it. False: NCCL did not come back from it within
 * seconds. It is at it still, and GPUs and memory must be left as they are. */
bool nccl_abort(cuda_nccl *nccl);
void nccl_close(cuda_nccl **nccl); /* accepts NULL inside; sets it to NULL */

#endif
