/*
 * What two GPUs can do together, measured on open ranks: access, copies, words, patterns, and the exchange as an engine of two
 * ranks runs it.
 *
 * Every function waits for its own work on both ranks' streams, and leaves the first rank's context current. Memory is theirs.
 */
#ifndef LS_BACKEND_CUDA_PAIRS_H
#define LS_BACKEND_CUDA_PAIRS_H

#include "backend/cuda/exchange.h"

typedef struct cuda_pair {
    cuda_rank *rank[2];
    CUdeviceptr buffer[2]; /* PAIR_BYTES each */
    cuda_nccl *nccl;       /* once joined */
} cuda_pair;

/* Ways to exchange: stores to one another's memory, pinned memory, NCCL. */
typedef enum pair_way { PAIR_FUSED, PAIR_HOST, PAIR_NCCL } pair_way;

enum { PAIR_BYTES = 96 << 20 };

/* *can: each can store to the other's memory, and may from now on. If not, *why says which cannot. */
ls_status cuda_pair_enable(const cuda_pair *pair, bool *can, ls_error *why, ls_error *err);
ls_status cuda_pair_open(cuda_pair *out, cuda_rank *a, cuda_rank *b, ls_error *err);
void cuda_pair_close(cuda_pair *pair); /* accepts a zeroed one */

/* Bytes/s of copies from rank[0] to rank[1], and back. */
ls_status cuda_pair_copies(const cuda_pair *pair, ls_rate *there, ls_rate *back, ls_error *err);
/* Patterns by copies and, if they reach each other, by stores, both ways. LS_EABORTED: what came is not what was sent, and where. */
ls_status cuda_pair_patterns(const cuda_pair *pair, bool stores, ls_error *err);
/* Microseconds of a word's way, half of there and back. LS_EABORTED: none came. */
ls_status cuda_pair_ping(const cuda_pair *pair, double *out_us, ls_error *err);
/* NCCL's group of the two, for PAIR_NCCL. LS_ENOTFOUND: there is no library. */
ls_status cuda_pair_join(cuda_pair *pair, ls_error *err);
/* Microseconds of an exchange of `bytes` of f32 sums in graphs of several: rows of PAIR_ROW bytes, PAIR_MOST_EXCHANGED in all at most;
 * or one row, of a multiple of 64 bytes up to PAIR_ONE_ROW. LS_EINVAL: another size. */
enum { PAIR_ROW = 4096, PAIR_ONE_ROW = 32 << 10, PAIR_MOST_EXCHANGED = 4 << 20 };
ls_status cuda_pair_exchange(const cuda_pair *pair, int bytes, pair_way way, double *out_us, ls_error *err);

#endif
