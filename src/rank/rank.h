/*
 * The rank group of one process: R ranks, each a team of threads, that run the same job at the same time and sleep
 * between jobs. SPMD: a job is one function, called on every thread with its rank and its place in the team.
 */
#ifndef LS_RANK_RANK_H
#define LS_RANK_RANK_H

#include "backend/ops.h"

typedef struct rank_group rank_group;

typedef void (*rank_job)(void *arg, int rank, const ls_team *team);

/* threads_per_rank >= 1. The calling thread is none of them. */
ls_status rank_group_create(rank_group **out, int n_ranks, int threads_per_rank, ls_error *err);
void rank_group_destroy(rank_group **group); /* joins all threads; accepts NULL inside */

/* Runs job on all threads and returns when all are done. One job at a time, from one thread. */
void rank_group_run(rank_group *group, rank_job job, void *arg);

int rank_group_size(const rank_group *group);
int rank_group_threads(const rank_group *group); /* a rank's */

/* Meets all threads of all ranks; for exchanges within a job. */
ls_barrier *rank_group_barrier(rank_group *group);

#endif
