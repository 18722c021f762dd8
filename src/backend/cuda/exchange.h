/*
 * The exchange between ranks on GPUs, launched: kern/exchange.cu, whose protocol is kern/exchange_args.h's.
 *
 * The ranks of a GPU share its stream, and an op is launched for all of them before the next one; an exchange is one launch
 * for all. So ranks on one GPU need not run side by side, and ranks on several wait for nothing that their own GPU has yet to
 * begin. Steps of up to EXCHANGE_ROWS rows send their nodes as words; in others each rank adds up the rows it owns, for all.
 * Where the group is `staged` (there is no peer access) those meet, and then read each other's BUF_PART by decode_exchange, from
 * copies of it in pinned memory (bind.peer_part).
 *
 * With a library (group->nccl; a rank a GPU) NCCL moves the sums, and each rank goes on as if it were alone. Of steps of up to
 * EXCHANGE_ROWS rows each rank gathers all ranks' nodes and adds them up itself: the bits of the other ways. Of more rows NCCL adds
 * up, in f32: two ranks have one order, more ranks that of NCCL's rings or trees, which sizes and machines decide.
 *
 * Else the order of the sums is the leaf tree's in all cases. Words are f32, so that the bits are those of one rank; what is sent
 * of more rows is bf16 where that is the run dtype. (f16 would overflow where sums do not: they go as f32.)
 */
#ifndef LS_BACKEND_CUDA_EXCHANGE_H
#define LS_BACKEND_CUDA_EXCHANGE_H

#include "backend/cuda/cuda.h"
#include "backend/cuda/kern/exchange_args.h"
#include "backend/cuda/nccl.h"

/* What the ranks of an engine share. */
typedef struct exchange_group {
    exchange_group_args args;
    volatile uint64_t *stuck; /* [n_ranks] in pinned memory: exchange_args.h */
    void *x[EXCHANGE_RANKS];  /* every rank's BUF_X */
    bool staged;
    cuda_nccl *nccl; /* NULL: own kernels move the data */
} exchange_group;

/* A rank's own. `rank` and `group` outlive it. */
typedef struct cuda_exchange {
    cuda_rank *rank;
    const exchange_group *group;
    CUfunction rows, push, take, meet, offers, sum, offer, draw;
    CUdeviceptr epochs; /* exchange_epochs() u32, zero at the start */
} cuda_exchange;

/* Looks the kernels up; refuses a chip that does not hold all ranks' blocks at a time (n_here: ranks on this GPU). */
ls_status exchange_open(cuda_exchange *out, cuda_rank *rank, const exchange_group *group, CUdeviceptr epochs,
                        int n_here, ls_error *err);

/* Op `first`, an exchange, on the n ranks of a GPU, and the norm of the op behind it; op[i] is the program of rank i.
 * how->n_nodes: how many each rank has in its BUF_PART. */
ls_status exchange_launch(cuda_exchange *const *here, int n, const ls_op *const *op, int n_ops, int first,
                          const decode_how *how, ls_error *err);
/* Behind `sample` of all of them, which left its offers in their workspaces: tokens of at most n_out rows. n_rows: of the
 * step; where a staged group's exchanges meet, the ranks meet once more, so that no part is written while another reads it. */
ls_status exchange_launch_offers(cuda_exchange *const *here, int n, const ls_op *const *op, int index, int n_rows,
                                 int n_out, ls_error *err);
/* LS_OK, or who waited for whom, and in which op of its program. */
ls_status exchange_check(const exchange_group *group, const ls_op *op, int n_ops, ls_error *err);

#endif
