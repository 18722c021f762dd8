/* See nccl.h. */
#include "backend/cuda/nccl.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdlib.h>

#define NCCL_MAP(X)                                                                                                    \
    X(ncclGetUniqueId)                                                                                                 \
    X(ncclCommInitRank)                                                                                                \
    X(ncclCommAbort)                                                                                                   \
    X(ncclCommGetAsyncError)                                                                                           \
    X(ncclGetErrorString)                                                                                              \
    X(ncclGetLastError)                                                                                                \
    X(ncclAllReduce)                                                                                                   \
    X(ncclAllGather)

struct cuda_nccl {
    void *library;
    ncclComm_t comm[LS_MAX_RANKS]; /* of the ranks of this process */
    int device[LS_MAX_RANKS];      /* their GPUs */
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

ls_status nccl_open(cuda_nccl **out, ls_error *err) {
    cuda_nccl *nccl = calloc(1, sizeof *nccl);
    if (nccl == NULL) {
        return error_set(err, LS_ENOMEM, "NCCL: out of memory");
    }
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

/* Sums of all sizes that are set up differently. */
static ls_status warm_up(const cuda_nccl *nccl, const cuda_rank *rank, int number, ls_error *err) {
    enum { LEAST = 1 << 10, MOST = 4 << 20 };
    const cuda_driver *api = rank->driver;
    CUdeviceptr memory;
    TRY(cuda_check(rank, api->cuMemAlloc(&memory, (size_t)MOST * sizeof(float)), "reserving memory for NCCL", err));
    ls_status st = cuda_check(rank, api->cuMemsetD8Async(memory, 0, (size_t)MOST * sizeof(float), rank->stream),
                              "clearing memory", err);
    for (size_t n = LEAST; n <= MOST && st == LS_OK; n *= 4) {
        st = nccl_sum(nccl, rank, number, (float *)(uintptr_t)memory, n, err);
    }
    st = st == LS_OK ? cuda_rank_wait(rank, "NCCL's first sums", 30, err) : st;
    api->cuMemFree(memory);
    return st;
}

ls_status nccl_join(cuda_nccl *nccl, const ncclUniqueId *id, const cuda_rank *rank, int number, int n, ls_error *err) {
    nccl->device[number] = rank->facts.device;
    TRY(check(nccl, number, nccl->ncclCommInitRank(&nccl->comm[number], n, *id, number), "joining the others", err));
    return warm_up(nccl, rank, number, err);
}

ls_status nccl_sum(const cuda_nccl *nccl, const cuda_rank *rank, int number, float *data, size_t count, ls_error *err) {
    const int rc = nccl->ncclAllReduce(data, data, count, NCCL_FLOAT32, NCCL_SUM, nccl->comm[number], rank->stream);
    return check(nccl, number, rc, "adding up", err);
}

ls_status nccl_gather(const cuda_nccl *nccl, const cuda_rank *rank, int number, const void *from, void *to,
                      size_t bytes, ls_error *err) {
    return check(nccl, number, nccl->ncclAllGather(from, to, bytes, NCCL_INT8, nccl->comm[number], rank->stream),
                 "gathering", err);
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

void nccl_abort(cuda_nccl *nccl) {
    for (int r = 0; r < LS_MAX_RANKS; r++) {
        if (nccl->comm[r] != NULL) {
            nccl->ncclCommAbort(nccl->comm[r]);
            nccl->comm[r] = NULL;
        }
    }
}

void nccl_close(cuda_nccl **nccl) {
    if (*nccl == NULL) {
        return;
    }
    nccl_abort(*nccl);
    if ((*nccl)->library != NULL) {
        dlclose((*nccl)->library); /* it stays */
    }
    free(*nccl);
    *nccl = NULL;
}
