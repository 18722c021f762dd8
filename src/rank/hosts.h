/*
 * The processes of a run (include/lockstep_hosts.h), as engines see them: bytes from one to another with a deadline, and
 * an end that comes to all.
 *
 * A thread of each process sends every other one a note four times a second with what it is doing, and notices when such
 * notes stay out, or a link breaks. From then on every transfer fails with that reason. So a step may take as long as it
 * needs while all are alive, and nobody waits for a process that is not.
 */
#ifndef LS_RANK_HOSTS_H
#define LS_RANK_HOSTS_H

#include "rank/link.h"

/* What a process is doing: the others name it if they lose it. */
typedef enum host_phase {
    PHASE_OPENING,   /* the model */
    PHASE_COMPARING, /* with the others, whether all run the same */
    PHASE_LOADING,   /* weights */
    PHASE_IDLE,
    PHASE_STEP,
    PHASES
} host_phase;

int hosts_count(const ls_hosts *hosts); /* 1 for NULL */
const char *hosts_label(const ls_hosts *hosts, int host);
/* number: of the step, or the one that is waited for, counted from 1; else 0. */
void hosts_set_phase(ls_hosts *hosts, host_phase phase, int64_t number);

/* Moves all of them, those of one host and direction in their order. From one thread at a time. timeout_ns: the longest it
 * may take although all hosts are alive; 0: for ever. Nothing can be moved after a failure. */
ls_status hosts_transfer(ls_hosts *hosts, host_transfer *transfer, int n, int64_t timeout_ns, ls_error *err);

/* all[hosts_count][bytes] = what each process has in `mine`; as long as that takes while all are alive. */
ls_status hosts_swap(ls_hosts *hosts, const void *mine, void *all, size_t bytes, ls_error *err);

/* Whether a host was lost; why. NULL hosts are never lost. From any thread. */
bool hosts_lost(const ls_hosts *hosts);
ls_status hosts_why(ls_hosts *hosts, ls_error *err);

#endif
