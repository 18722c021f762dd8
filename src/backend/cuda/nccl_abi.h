/*
 * What of NCCL's C interface (libnccl.so.2) is used, declared anew: its header need not be there. All of it has been so since
 * NCCL 2.14, which brought groups that are joined without blocking, and NCCL keeps it for the library's version 2.
 */
#ifndef LS_BACKEND_CUDA_NCCL_ABI_H
#define LS_BACKEND_CUDA_NCCL_ABI_H

#include <cuda.h>
#include <stddef.h>

typedef struct ncclComm *ncclComm_t;
typedef struct ncclUniqueId {
    char internal[128];
} ncclUniqueId;

/* ncclConfig_t as it was in 2.14: later libraries take its size and version for what they are, and their own defaults for what
 * came since. */
typedef struct ncclConfig {
    size_t size;
    unsigned magic, version;
    int blocking;
    int undefined; /* padding then; a setting that is not made now */
} ncclConfig;
enum { NCCL_CONFIG_MAGIC = (int)0xcafebeef, NCCL_CONFIG_VERSION = 21400, NCCL_CONFIG_UNDEFINED = (int)0x80000000 };

/* ncclResult_t, ncclDataType_t and ncclRedOp_t are int-sized enums; these are their values. */
enum { NCCL_SUCCESS = 0, NCCL_IN_PROGRESS = 7 };
enum { NCCL_INT8 = 0, NCCL_FLOAT32 = 7 };
enum { NCCL_SUM = 0 };

int ncclGetVersion(int *version);
int ncclGetUniqueId(ncclUniqueId *id);
int ncclCommInitRankConfig(ncclComm_t *comm, int n_ranks, ncclUniqueId id, int rank, ncclConfig *config);
int ncclCommAbort(ncclComm_t comm);
int ncclCommGetAsyncError(ncclComm_t comm, int *result);
const char *ncclGetErrorString(int result);
const char *ncclGetLastError(ncclComm_t comm);
int ncclGroupStart(void);
int ncclGroupEnd(void);
int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, ncclComm_t comm, CUstream stream);
int ncclAllGather(const void *from, void *to, size_t count, int type, ncclComm_t comm, CUstream stream);

#endif
