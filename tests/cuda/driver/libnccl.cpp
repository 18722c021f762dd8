/*
 * A libnccl.so.2 for the emulated GPUs of libcuda.cpp: ranks meet in a file of /dev/shm that the group's id names, also those of
 * several processes; the last that joins removes it. Sums go from rank 0 to the last, in f32.
 *
 *   LS_EMULATE_NCCL_FAILS=N    the N-th sum or gather of rank 1 never ends, and its communicator tells of an error
 *   LS_EMULATE_NCCL_ABSENT=R   rank R's joining never ends, so that nobody's does
 *   LS_EMULATE_NCCL_STUCK=1    ncclCommAbort does not come back
 */
#include <cuda.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

extern "C" void emulate_give(CUstream stream, std::function<void()> *task); /* libcuda.cpp */

enum { RANKS = 8, PIECE = 1 << 16 };

struct meeting {
    std::atomic<int> joined;
    std::atomic<uint64_t> turn[RANKS]; /* pieces that a rank has put there, and taken */
    char piece[RANKS][PIECE];
};
struct id {
    char name[128];
};
struct ncclComm {
    meeting *at;
    int rank, n;
    std::string name;
    uint64_t turn = 0;
    long sums = 0; /* and gathers */
    std::atomic<bool> aborted{false};
    std::atomic<int> error{0};
};

/* All have come as far; false: it was ended. */
static bool meet(ncclComm *c) {
    c->at->turn[c->rank] = ++c->turn;
    for (int r = 0; r < c->n; r++) {
        while (c->at->turn[r] < c->turn) {
            if (c->aborted) {
                return false;
            }
            std::this_thread::yield();
        }
    }
    return true;
}

static bool fails(ncclComm *c) {
    const char *at = getenv("LS_EMULATE_NCCL_FAILS");
    if (at == NULL || c->rank != 1 || ++c->sums != atol(at)) {
        return false;
    }
    fprintf(stderr, "emulated: LS_EMULATE_NCCL_FAILS=%s\n", at);
    c->error = 6;
    while (!c->aborted) {
        std::this_thread::yield();
    }
    return true;
}

static void all_reduce(ncclComm *c, const float *from, float *to, size_t count) {
    for (size_t i = 0; i < count && !c->aborted; i += PIECE / 4) {
        const size_t n = count - i < PIECE / 4 ? count - i : PIECE / 4;
        memcpy(c->at->piece[c->rank], from + i, n * 4);
        if (!meet(c)) {
            return;
        }
        for (size_t k = 0; k < n; k++) {
            float sum = reinterpret_cast<float *>(c->at->piece[0])[k];
            for (int r = 1; r < c->n; r++) {
                sum += reinterpret_cast<float *>(c->at->piece[r])[k];
            }
            to[i + k] = sum;
        }
        if (!meet(c)) {
            return;
        }
    }
}

static void all_gather(ncclComm *c, const char *from, char *to, size_t count) {
    for (size_t i = 0; i < count && !c->aborted; i += PIECE) {
        const size_t n = std::min(count - i, (size_t)PIECE);
        memcpy(c->at->piece[c->rank], from + i, n);
        if (!meet(c)) {
            return;
        }
        for (int r = 0; r < c->n; r++) {
            memcpy(to + r * count + i, c->at->piece[r], n);
        }
        if (!meet(c)) {
            return;
        }
    }
}

extern "C" {
int ncclGetUniqueId(id *out) {
    static std::atomic<int> n;
    snprintf(out->name, sizeof out->name, "/dev/shm/emulated-nccl-%d-%d", (int)getpid(), n++);
    return 0;
}
struct config {
    size_t size;
    unsigned magic, version;
    int blocking;
};
int ncclCommInitRankConfig(ncclComm **out, int n, id group, int rank, const config *how) {
    const char *absent = getenv("LS_EMULATE_NCCL_ABSENT");
    if (how->size < 20 || how->magic != 0xcafebeef || how->version < 21400 || how->blocking != 0) {
        return 4;
    }
    int fd = open(group.name, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(meeting)) != 0) {
        return 2;
    }
    void *p = mmap(NULL, sizeof(meeting), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    ncclComm *c = new ncclComm{static_cast<meeting *>(p), rank, n, group.name};
    *out = c;
    if (absent != NULL && atoi(absent) == rank) {
        fprintf(stderr, "emulated: LS_EMULATE_NCCL_ABSENT=%s\n", absent);
    } else if (++c->at->joined == n) {
        unlink(group.name);
    }
    return 7;
}
int ncclCommAbort(ncclComm *c) { /* what is under way may look at it still */
    c->aborted = true;
    if (c->at->joined < c->n) {
        unlink(c->name.c_str());
    }
    while (getenv("LS_EMULATE_NCCL_STUCK") != NULL) {
        std::this_thread::yield();
    }
    return 0;
}
int ncclCommGetAsyncError(ncclComm *c, int *out) {
    *out = c->at->joined < c->n ? 7 : c->error.load();
    return 0;
}
const char *ncclGetErrorString(int) {
    return "emulated NCCL failure";
}
const char *ncclGetLastError(ncclComm *) {
    return "";
}
int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, ncclComm *c, CUstream stream) {
    if (type != 7 || op != 0) {
        return 4;
    }
    emulate_give(stream, new std::function<void()>([=] {
                     if (!fails(c)) {
                         all_reduce(c, static_cast<const float *>(from), static_cast<float *>(to), count);
                     }
                 }));
    return 0;
}
int ncclAllGather(const void *from, void *to, size_t count, int type, ncclComm *c, CUstream stream) {
    if (type != 0) {
        return 4;
    }
    emulate_give(stream, new std::function<void()>([=] {
                     if (!fails(c)) {
                         all_gather(c, static_cast<const char *>(from), static_cast<char *>(to), count);
                     }
                 }));
    return 0;
}
}
