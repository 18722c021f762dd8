/* See nccl.h. */
#include "backend/cuda/nccl.h"

#include <dlfcn.h>
#include <glob.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/threads.h"

#define NCCL_MAP(X)                                                                                                    \
    X(ncclGetUniqueId)                                                                                                 \
    X(ncclCommInitRankConfig)                                                                                          \
    X(ncclCommAbort)                                                                                                   \
    X(ncclCommGetAsyncError)                                                                                           \
    X(ncclGetErrorString)                                                                                              \
    X(ncclGetLastError)                                                                                                \
    X(ncclAllReduce)                                                                                                   \
    X(ncclAllGather)

/* Ends a communicator, which has no deadline of its own: on a thread that may be left behind. */
typedef struct nccl_end {
    __typeof__(&ncclCommAbort) end_comm;
    ncclComm_t comm;
    atomic_int parties; /* that may still look at it: the thread, and who waits for it */
    atomic_bool ended;
} nccl_end;

struct cuda_nccl {
    void *library;
    nccl_members members;
    ncclComm_t comm[LS_MAX_RANKS]; /* of the ranks of this process */
    int device[LS_MAX_RANKS];      /* their GPUs */
    atomic_bool begun[LS_MAX_RANKS], failed;
    bool left_behind;     /* a thread that ends a communicator */
    pthread_mutex_t lock; /* of why: the first failure of a rank that joins is the one told */
    ls_error why;
#define X(name) __typeof__(&(name)) name;
    NCCL_MAP(X)
#undef X
};

/* ---- Opening ---- */

/* The loader's way, then where pip puts it. */
static ls_status open_library(void **out, ls_error *err) {
    *out = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (*out == NULL) { /* the text of dlerror must outlive the tries below */
        glob_t found;
        error_set(err, LS_ENOTFOUND, "NCCL: %s", dlerror());
        if (glob("/usr/{local/,}lib/python3*/{site,dist}-packages/nvidia/nccl/lib/libnccl.so.2", GLOB_BRACE, NULL,
                 &found) == 0) {
            for (size_t i = 0; i < found.gl_pathc && *out == NULL; i++) {
                *out = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
            }
        }
        globfree(&found);
    }
    return *out != NULL ? LS_OK : LS_ENOTFOUND;
}

static ls_status load(cuda_nccl *nccl, ls_error *err) {
    TRY(open_library(&nccl->library, err));
#define X(name)                                                                                                        \
    *(void **)&nccl->name = dlsym(nccl->library, #name);                                                               \
    if (nccl->name == NULL) {                                                                                          \
        return error_set(err, LS_ENOTFOUND, "NCCL: libnccl.so.2 has no %s", #name);                                    \
    }
    NCCL_MAP(X)
#undef X
    return LS_OK;
}

ls_status nccl_open(cuda_nccl **out, const nccl_members *members, ls_error *err) {
    cuda_nccl *nccl = calloc(1, sizeof *nccl);
    if (nccl == NULL) {
        return error_set(err, LS_ENOMEM, "NCCL: out of memory");
    }
    nccl->members = *members;
    pthread_mutex_init(&nccl->lock, NULL);
    ls_status st = load(nccl, err);
    if (st != LS_OK) {
        nccl_close(&nccl);
    }
    *out = nccl;
    return st;
}

/* ---- Calls ---- */

static ls_status check(const cuda_nccl *nccl, int number, int rc, const char *what, ls_error *err) {
    if (rc == NCCL_SUCCESS) {
        return LS_OK;
    }
    const char *last = nccl->ncclGetLastError(nccl->comm[number]);
    return error_set(err, LS_EABORTED, "rank %d (device %d): NCCL: %s: %s%s%s", number, nccl->device[number], what,
                     nccl->ncclGetErrorString(rc), last != NULL && last[0] != '\0' ? ": " : "",
                     last != NULL ? last : "");
}

ls_status nccl_new_id(const cuda_nccl *nccl, ncclUniqueId *out, ls_error *err) {
    return check(nccl, 0, nccl->ncclGetUniqueId(out), "naming the group", err);
}

void nccl_stay_away(cuda_nccl *nccl, const ls_error *why) {
    pthread_mutex_lock(&nccl->lock);
    if (!atomic_load(&nccl->failed)) {
        nccl->why = *why;
        atomic_store(&nccl->failed, true);
    }
    pthread_mutex_unlock(&nccl->lock);
}

static ls_status why_not(cuda_nccl *nccl, ls_error *err) {
    pthread_mutex_lock(&nccl->lock);
    ls_status st = error_set(err, nccl->why.status, "%s", nccl->why.text);
    pthread_mutex_unlock(&nccl->lock);
    return st;
}

/* Why a rank waits no longer, if so: who is not there, who failed, or that it has been long. */
static ls_status check_waiting(cuda_nccl *nccl, int number, double waited_s, const char *what, ls_error *err) {
    const nccl_members *here = &nccl->members;
    if (atomic_load(&nccl->failed)) {
        return why_not(nccl, err);
    }
    if (here->is_lost != NULL && here->is_lost(here->arg)) {
        return error_set(err, LS_EABORTED, "rank %d (device %d): NCCL: %s: another host was lost", number,
                         nccl->device[number], what);
    }
    for (int r = here->first; r < here->first + here->count && waited_s > NCCL_ABSENT_S; r++) {
        if (!atomic_load(&nccl->begun[r])) {
            return error_set(err, LS_EABORTED,
                             "rank %d (device %d) waited %.1f s in NCCL for rank %d, whose thread has not come to join",
                             number, nccl->device[number], waited_s, r);
        }
    }
    if (waited_s > NCCL_JOIN_S) {
        return error_set(err, LS_EABORTED,
                         "rank %d (device %d): NCCL: %s: no end after %d s, though ranks %d to %d are there; with "
                         "NCCL_DEBUG=INFO it tells what it waits for",
                         number, nccl->device[number], what, NCCL_JOIN_S, here->first, here->first + here->count - 1);
    }
    return LS_OK;
}

/* Groups are joined without blocking, so any call may answer that it is under way; which ends within a step's time but for
 * the first ones. */
static ls_status settle(cuda_nccl *nccl, int number, int rc, const char *what, ls_error *err) {
    const int64_t begin = rc == NCCL_IN_PROGRESS ? clock_ns() : 0, busy_ns = 1000000;
    while (rc == NCCL_IN_PROGRESS) {
        TRY(check_waiting(nccl, number, (double)(clock_ns() - begin) / 1e9, what, err));
        if (clock_ns() - begin > busy_ns) {
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
        }
        const int asked = nccl->ncclCommGetAsyncError(nccl->comm[number], &rc);
        TRY(check(nccl, number, asked, what, err));
    }
    return check(nccl, number, rc, what, err);
}

/* Until the stream is idle, or a rank has failed without which it never will be. */
static ls_status wait_for_sums(cuda_nccl *nccl, const cuda_rank *rank, int number, ls_error *err) {
    static const char what[] = "the first sums";
    const int64_t begin = clock_ns();
    CUresult rc;
    while ((rc = rank->driver->cuStreamQuery(rank->stream)) == CUDA_ERROR_NOT_READY) {
        TRY(check_waiting(nccl, number, (double)(clock_ns() - begin) / 1e9, what, err));
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
    return cuda_check(rank, rc, what, err);
}

/* Sums of all sizes that are set up differently. Memory that a sum may still wait for is not freed: that would wait too. */
static ls_status warm_up(cuda_nccl *nccl, const cuda_rank *rank, int number, ls_error *err) {
    enum { LEAST = 1 << 10, MOST = 4 << 20 };
    const cuda_driver *api = rank->driver;
    CUdeviceptr memory;
    TRY(cuda_check(rank, api->cuMemAlloc(&memory, (size_t)MOST * sizeof(float)), "reserving memory for NCCL", err));
    ls_status st = cuda_check(rank, api->cuMemsetD8Async(memory, 0, (size_t)MOST * sizeof(float), rank->stream),
                              "clearing memory", err);
    for (size_t n = LEAST; n <= MOST && st == LS_OK; n *= 4) {
        st = nccl_sum(nccl, rank, number, (float *)(uintptr_t)memory, n, err);
    }
    TRY(st == LS_OK ? wait_for_sums(nccl, rank, number, err) : st);
    return cuda_check(rank, api->cuMemFree(memory), "freeing memory", err);
}

static ls_status join(cuda_nccl *nccl, const ncclUniqueId *id, const cuda_rank *rank, int number, int n,
                      ls_error *err) {
    ncclConfig config = {sizeof config, (unsigned)NCCL_CONFIG_MAGIC, NCCL_CONFIG_VERSION, 0, NCCL_CONFIG_UNDEFINED};
    const int rc = nccl->ncclCommInitRankConfig(&nccl->comm[number], n, *id, number, &config);
    TRY(settle(nccl, number, rc, "joining the others", err));
    return warm_up(nccl, rank, number, err);
}

ls_status nccl_join(cuda_nccl *nccl, const ncclUniqueId *id, const cuda_rank *rank, int number, int n, ls_error *err) {
    ls_error why = {0};
    nccl->device[number] = rank->facts.device;
    atomic_store(&nccl->begun[number], true);
    ls_status st = join(nccl, id, rank, number, n, &why);
    if (st == LS_OK) {
        return LS_OK;
    }
    nccl_stay_away(nccl, &why);
    return why_not(nccl, err);
}

ls_status nccl_sum(cuda_nccl *nccl, const cuda_rank *rank, int number, float *data, size_t count, ls_error *err) {
    const int rc = nccl->ncclAllReduce(data, data, count, NCCL_FLOAT32, NCCL_SUM, nccl->comm[number], rank->stream);
    return settle(nccl, number, rc, "adding up", err);
}

ls_status nccl_gather(cuda_nccl *nccl, const cuda_rank *rank, int number, const void *from, void *to, size_t bytes,
                      ls_error *err) {
    const int rc = nccl->ncclAllGather(from, to, bytes, NCCL_INT8, nccl->comm[number], rank->stream);
    return settle(nccl, number, rc, "gathering", err);
}

ls_status nccl_check(const cuda_nccl *nccl, ls_error *err) {
    for (int r = 0; r < LS_MAX_RANKS; r++) {
        int rc = NCCL_SUCCESS;
        if (nccl->comm[r] != NULL) {
            TRY(check(nccl, r, nccl->ncclCommGetAsyncError(nccl->comm[r], &rc), "asking for errors", err));
            TRY(check(nccl, r, rc == NCCL_IN_PROGRESS ? NCCL_SUCCESS : rc, "a step", err));
        }
    }
    return LS_OK;
}

/* ---- Ending ---- */

static void leave(nccl_end *end) {
    if (atomic_fetch_sub(&end->parties, 1) == 1) {
        free(end);
    }
}

static void *end_thread(void *arg) {
    nccl_end *end = arg;
    end->end_comm(end->comm);
    atomic_store(&end->ended, true);
    leave(end);
    return NULL;
}

/* NULL: it has ended, for want of a thread here and now. */
static nccl_end *begin_end(const cuda_nccl *nccl, ncclComm_t comm) {
    nccl_end *end = malloc(sizeof *end);
    pthread_t thread;
    if (end != NULL) {
        *end = (nccl_end){.end_comm = nccl->ncclCommAbort, .comm = comm};
        atomic_init(&end->parties, 2);
        if (thread_start(&thread, end_thread, end) == 0) {
            pthread_detach(thread);
            return end;
        }
    }
    free(end);
    nccl->ncclCommAbort(comm);
    return NULL;
}

/* All at the same time: ending one may wait for the others. */
bool nccl_abort(cuda_nccl *nccl) {
    const int64_t until = clock_ns() + (int64_t)NCCL_ABSENT_S * 1000000000;
    nccl_end *end[LS_MAX_RANKS] = {NULL};
    for (int r = 0; r < LS_MAX_RANKS; r++) {
        end[r] = nccl->comm[r] != NULL ? begin_end(nccl, nccl->comm[r]) : NULL;
        nccl->comm[r] = NULL;
    }
    for (int r = 0; r < LS_MAX_RANKS; r++) {
        while (end[r] != NULL && !atomic_load(&end[r]->ended) && clock_ns() < until) {
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        }
        if (end[r] != NULL) {
            nccl->left_behind = nccl->left_behind || !atomic_load(&end[r]->ended);
            leave(end[r]);
        }
    }
    return !nccl->left_behind;
}

void nccl_close(cuda_nccl **nccl) {
    if (*nccl == NULL) {
        return;
    }
    nccl_abort(*nccl);
    if ((*nccl)->library != NULL) {
        dlclose((*nccl)->library); /* it stays */
    }
    pthread_mutex_destroy(&(*nccl)->lock);
    free(*nccl);
    *nccl = NULL;
}
