/*
 * See link.h: MPI, whose launcher (mpirun, srun) has started the processes and connects them. Open MPI's library is opened
 * with dlopen, so the program runs without it; its ABI is the one that is known here (libmpi.so.40: Open MPI 3 to 5,
 * Debian's libopenmpi3). MPICH has another.
 *
 * Only calls that return at once are made: MPI_Isend, MPI_Irecv, MPI_Test. The two that may wait for others for ever,
 * MPI_Init_thread and MPI_Finalize, run on a thread that is left alone when its time is up. A run that failed is not
 * finalized, which the launcher takes for what it is.
 *
 * One call at a time is made, under a lock, which asks less of MPI than MPI_THREAD_MULTIPLE.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "rank/link.h"

static const int64_t MS = 1000000;

/* Handles of Open MPI are pointers, MPI_STATUS_IGNORE is NULL, and MPI_SUCCESS 0. */
enum { MPI_THREAD_SERIALIZED = 2, MPI_THREAD_MULTIPLE = 3, NAME_BYTES = 256 };

typedef struct mpi_calls {
    int (*MPI_Init_thread)(int *argc, char ***argv, int required, int *provided);
    int (*MPI_Finalize)(void);
    int (*MPI_Comm_rank)(void *comm, int *rank);
    int (*MPI_Comm_size)(void *comm, int *size);
    int (*MPI_Comm_set_errhandler)(void *comm, void *handler);
    int (*MPI_Get_processor_name)(char *name, int *length);
    int (*MPI_Isend)(const void *data, int count, void *type, int to, int tag, void *comm, void **request);
    int (*MPI_Irecv)(void *data, int count, void *type, int from, int tag, void *comm, void **request);
    int (*MPI_Test)(void **request, int *done, void *status);
    int (*MPI_Cancel)(void **request);
    void *world, *byte, *errors_return; /* ompi_mpi_... */
} mpi_calls;

typedef struct link_mpi {
    host_link base;
    mpi_calls mpi;
    pthread_mutex_t lock;
    bool dead; /* something that was given up could not be taken back, and MPI writes or reads it when it is called */
    char name[1 + HOSTS_MAX][NAME_BYTES]; /* of the hosts' machines, and ours again */
    int n_rests;                          /* of the data channel, since something moved */
    int64_t moved_ns;
} link_mpi;

/* ---- Calls that may wait for ever ---- */

enum { CALL_RUNS, CALL_DONE, CALL_LEFT };

typedef struct long_call {
    const mpi_calls *mpi;
    bool ends; /* MPI_Finalize; else MPI_Init_thread */
    int rc, level;
    atomic_int state;
} long_call;

static void *call_main(void *arg) {
    long_call *call = arg;
    call->rc = call->ends ? call->mpi->MPI_Finalize()
                          : call->mpi->MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &call->level);
    if (atomic_exchange(&call->state, CALL_DONE) == CALL_LEFT) {
        free(call);
    }
    return NULL;
}

/* False if it did not return by then. */
static bool call_until(const mpi_calls *mpi, bool ends, int64_t until_ns, int *rc, int *level) {
    long_call *call = calloc(1, sizeof *call);
    pthread_t thread;
    if (call == NULL) {
        return false;
    }
    *call = (long_call){.mpi = mpi, .ends = ends};
    if (thread_start(&thread, call_main, call) != 0) {
        free(call);
        return false;
    }
    while (atomic_load(&call->state) == CALL_RUNS && clock_ns() < until_ns) {
        nanosleep(&(struct timespec){.tv_nsec = 2 * MS}, NULL);
    }
    int runs = CALL_RUNS;
    if (atomic_compare_exchange_strong(&call->state, &runs, CALL_LEFT)) {
        pthread_detach(thread);
        return false;
    }
    pthread_join(thread, NULL);
    *rc = call->rc;
    *level = call->level;
    free(call);
    return true;
}

/* ---- Moving bytes ---- */

/* Starts the next piece of a transfer; counts are int. */
static int begin(link_mpi *link, int tag, host_transfer *t, int count) {
    void *at = (char *)t->data + t->done;
    const mpi_calls *mpi = &link->mpi;
    return t->sends ? mpi->MPI_Isend(at, count, mpi->byte, t->host, tag, mpi->world, &t->request)
                    : mpi->MPI_Irecv(at, count, mpi->byte, t->host, tag, mpi->world, &t->request);
}

static ls_status mpi_advance(host_link *base, host_channel channel, host_transfer *t, ls_error *err) {
    link_mpi *link = (link_mpi *)base;
    const size_t most = (size_t)1 << 30;
    pthread_mutex_lock(&link->lock);
    int rc = link->dead ? -1 : 0, done = 1;
    while (rc == 0 && done && t->done < t->bytes) {
        const size_t left = t->bytes - t->done, piece = left < most ? left : most;
        if (t->request == NULL) {
            rc = begin(link, (int)channel, t, (int)piece);
        }
        rc = rc != 0 ? rc : link->mpi.MPI_Test(&t->request, &done, NULL);
        if (rc == 0 && done) {
            t->request = NULL;
            t->done += piece;
        }
    }
    pthread_mutex_unlock(&link->lock);
    if (channel == CHANNEL_DATA && done) {
        link->n_rests = 0;
        link->moved_ns = clock_ns();
    }
    return rc == 0 ? LS_OK : error_set(err, LS_EABORTED, "%s is gone: MPI error %d", base->label[t->host], rc);
}

static void mpi_drop(host_link *base, host_transfer *t) {
    enum { TRIES = 50 };
    link_mpi *link = (link_mpi *)base;
    int done = 0;
    pthread_mutex_lock(&link->lock);
    if (t->request != NULL && !link->dead) {
        link->mpi.MPI_Cancel(&t->request);
        for (int i = 0; i < TRIES && !done; i++) {
            if (link->mpi.MPI_Test(&t->request, &done, NULL) != 0) {
                break;
            }
            nanosleep(&(struct timespec){.tv_nsec = done ? 0 : MS}, NULL);
        }
        link->dead = !done;
    }
    pthread_mutex_unlock(&link->lock);
}

/* MPI has nothing to sleep on. Polls at once while an exchange is due, and less and less often where none is. */
static void mpi_rest(host_link *base, host_channel channel, host_transfer *const *pending, int n, int64_t timeout_ns) {
    enum { POLLS = 2000 };
    link_mpi *link = (link_mpi *)base;
    (void)pending;
    int64_t pause_ns = 20 * MS;
    if (channel == CHANNEL_DATA && n > 0) {
        if (link->n_rests++ < POLLS) {
            sched_yield();
            return;
        }
        pause_ns = clock_ns() - link->moved_ns < 1000 * MS ? MS / 20 : MS;
    }
    nanosleep(&(struct timespec){.tv_nsec = pause_ns < timeout_ns ? pause_ns : timeout_ns}, NULL);
}

static void mpi_close(host_link *base, bool in_order) {
    link_mpi *link = (link_mpi *)base;
    const int64_t patience_ms = 3000;
    int rc, level;
    /* What is under way without an end, and a thread that was left in MPI, keep their memory until the process ends. */
    if (in_order && call_until(&link->mpi, true, clock_ns() + patience_ms * MS, &rc, &level)) {
        pthread_mutex_destroy(&link->lock);
        free(link);
    }
}

/* ---- Opening ---- */

static ls_status find_calls(mpi_calls *mpi, ls_error *err) {
    static const char library[] = "libmpi.so.40";
    void *lib = dlopen(library, RTLD_NOW | RTLD_GLOBAL); /* its plug-ins look for its symbols */
    if (lib == NULL) {
        return error_set(err, LS_EUNSUPPORTED,
                         "no MPI: %s; install Open MPI's library (Debian: libopenmpi3), or set MASTER_ADDR and "
                         "MASTER_PORT, where process 0 is to be found by TCP",
                         dlerror());
    }
    const struct {
        const char *name;
        void *to;
    } want[] = {{"MPI_Init_thread", &mpi->MPI_Init_thread},
                {"MPI_Finalize", &mpi->MPI_Finalize},
                {"MPI_Comm_rank", &mpi->MPI_Comm_rank},
                {"MPI_Comm_size", &mpi->MPI_Comm_size},
                {"MPI_Comm_set_errhandler", &mpi->MPI_Comm_set_errhandler},
                {"MPI_Get_processor_name", &mpi->MPI_Get_processor_name},
                {"MPI_Isend", &mpi->MPI_Isend},
                {"MPI_Irecv", &mpi->MPI_Irecv},
                {"MPI_Test", &mpi->MPI_Test},
                {"MPI_Cancel", &mpi->MPI_Cancel},
                {"ompi_mpi_comm_world", &mpi->world},
                {"ompi_mpi_byte", &mpi->byte},
                {"ompi_mpi_errors_return", &mpi->errors_return}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        void *symbol = dlsym(lib, want[i].name);
        if (symbol == NULL) {
            return error_set(err, LS_EUNSUPPORTED, "%s has no %s: it is not Open MPI's", library, want[i].name);
        }
        memcpy(want[i].to, &symbol, sizeof symbol);
    }
    return LS_OK;
}

/* Every process gives every other its machine's name. */
static ls_status swap_names(link_mpi *link, int64_t until_ns, ls_error *err) {
    char(*name)[NAME_BYTES] = link->name;
    int length = 0, n = 0, n_done = 0;
    host_transfer transfer[2 * HOSTS_MAX];
    char ours[1024] = "";
    link->mpi.MPI_Get_processor_name(ours, &length);
    snprintf(name[HOSTS_MAX], NAME_BYTES, "%.255s", ours);
    snprintf(name[link->base.self], NAME_BYTES, "%.255s", ours);
    for (int host = 0; host < link->base.count; host++) {
        snprintf(link->base.label[host], HOST_LABEL, "host %d", host);
        if (host != link->base.self) {
            transfer[n++] = (host_transfer){.host = host, .sends = true, .data = name[HOSTS_MAX], .bytes = NAME_BYTES};
            transfer[n++] = (host_transfer){.host = host, .data = name[host], .bytes = NAME_BYTES};
        }
    }
    while (n_done < n) {
        n_done = 0;
        for (int i = 0; i < n; i++) {
            TRY(mpi_advance(&link->base, CHANNEL_DATA, &transfer[i], err));
            n_done += transfer[i].done == transfer[i].bytes;
        }
        if (n_done < n && clock_ns() > until_ns) {
            return error_set(err, LS_EABORTED, "joining: %d of %d messages to and from other hosts did not get through",
                             n - n_done, n);
        }
        mpi_rest(&link->base, CHANNEL_DATA, NULL, n - n_done, MS);
    }
    for (int host = 0; host < link->base.count; host++) {
        name[host][NAME_BYTES - 1] = '\0';
        snprintf(link->base.label[host], HOST_LABEL, "host %d (%.70s)", host, name[host]);
    }
    return LS_OK;
}

static ls_status meet(link_mpi *link, int64_t until_ns, ls_error *err) {
    mpi_calls *mpi = &link->mpi;
    int rc = 0, level = 0;
    if (!call_until(mpi, false, until_ns, &rc, &level)) {
        return error_set(err, LS_EABORTED, "joining: MPI did not bring all hosts together in time (--join-timeout)");
    }
    rc = rc != 0 ? rc : mpi->MPI_Comm_set_errhandler(mpi->world, mpi->errors_return);
    rc = rc != 0 ? rc : mpi->MPI_Comm_rank(mpi->world, &link->base.self);
    rc = rc != 0 ? rc : mpi->MPI_Comm_size(mpi->world, &link->base.count);
    if (rc != 0 || level < MPI_THREAD_SERIALIZED) {
        return error_set(err, LS_EABORTED, "joining: MPI_Init_thread: error %d, thread level %d", rc, level);
    }
    if (link->base.count == 1 || link->base.count > HOSTS_MAX) {
        return error_set(err, LS_EINVAL, "MPI counts %d processes, of which 2, 4 or 8 are wanted%s", link->base.count,
                         link->base.count == 1 ? ": is the launcher Open MPI's mpirun, or srun --mpi=pmix?" : "");
    }
    return swap_names(link, until_ns, err);
}

ls_status link_mpi_open(host_link **out, int64_t until_ns, ls_error *err) {
    link_mpi *link = calloc(1, sizeof *link);
    ls_status st = LS_OK;
    if (link == NULL) {
        return error_set(err, LS_ENOMEM, "hosts: out of memory");
    }
    link->base = (host_link){.advance = mpi_advance, .rest = mpi_rest, .drop = mpi_drop, .close = mpi_close};
    st = find_calls(&link->mpi, err);
    if (st != LS_OK) {
        free(link);
        return st;
    }
    pthread_mutex_init(&link->lock, NULL);
    TRY(meet(link, until_ns, err)); /* a thread may be in MPI still, so the link stays */
    *out = &link->base;
    return LS_OK;
}
