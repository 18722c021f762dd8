/*
 * lockstep over several hosts: processes, as a rule one a host, that share the ranks of one engine. Part of lockstep.h,
 * which includes it.
 *
 * Every process joins, opens the same model, and opens an engine with ls_engine_params.hosts: the ranks are spread over
 * the processes in order, the same number for each. Host 0 is the one that takes requests and steps; the others call
 * ls_engine_follow. Then each closes its engine and leaves.
 *
 * The processes watch each other all the time. One that ends, is stopped or cannot be reached is the end of all: every
 * call that waits for it returns LS_EABORTED with a text that names the host and what it was doing.
 */
#ifndef LOCKSTEP_HOSTS_H
#define LOCKSTEP_HOSTS_H

typedef struct ls_hosts ls_hosts;

/* Zero means the default everywhere but in host. */
typedef struct ls_hosts_params {
    size_t struct_size;
    int n_hosts;         /* processes: 2, 4 or 8 */
    int host;            /* this one's number, from 0 */
    const char *address; /* of host 0, "NAME:PORT": where the others find it, over TCP; NULL: MPI says who and where all
                          * are, n_hosts and host may be 0 */
    int join_timeout_ms; /* until all are there; default 60000 */
    int lost_timeout_ms; /* without a sign of life a host counts as lost; default 5000 */
    /* Told if a host was lost and this process has not left two seconds later: for programs that may be waiting for
     * something else. Called once, by a thread of its own. */
    void (*on_lost)(void *user, const ls_error *why);
    void *user;
} ls_hosts_params;
#define LS_HOSTS_PARAMS_INIT LS_SIZED(ls_hosts_params)

/* Meets the other processes. Nothing that they send is protected: for networks that are trusted. Errors: LS_EINVAL;
 * LS_EUNSUPPORTED without an MPI library; LS_EABORTED names who is missing. *out is the caller's, to leave after its
 * engines are closed. */
LS_API ls_status ls_hosts_join(const ls_hosts_params *params, ls_hosts **out, ls_error *err);
/* Tells the others that this process is through; or, with an error, why it gives up, which then ends them too. Accepts
 * NULL inside; sets it to NULL. */
LS_API void ls_hosts_leave(ls_hosts **hosts, const ls_error *why);
LS_API int ls_hosts_self(const ls_hosts *hosts); /* this process's number; 0 for NULL */
/* What this process is doing, for messages: "host 1 (name, address), in step 12". From any thread. */
LS_API void ls_hosts_describe(const ls_hosts *hosts, char *out, size_t out_bytes);

/* On hosts other than 0: runs the steps of host 0's engine until that is closed. */
LS_API ls_status ls_engine_follow(ls_engine *engine, ls_error *err);

#endif
