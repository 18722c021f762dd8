/*
 * libcuda.so.1 by dlopen: the same binary runs on machines without it. The struct is the only way to the driver; there is no
 * global state.
 */
#ifndef LS_BACKEND_CUDA_DRIVER_H
#define LS_BACKEND_CUDA_DRIVER_H

#include <cuda.h>

#include "base/error.h"

/* Functions by their names in cuda.h, which maps some to versioned symbols; driver.c follows the same map. */
#define CUDA_DRIVER_MAP(X)                                                                                             \
    X(cuInit)                                                                                                          \
    X(cuDriverGetVersion)                                                                                              \
    X(cuGetErrorName)                                                                                                  \
    X(cuGetErrorString)                                                                                                \
    X(cuDeviceGetCount)                                                                                                \
    X(cuDeviceGet)                                                                                                     \
    X(cuDeviceGetName)                                                                                                 \
    X(cuDeviceGetAttribute)                                                                                            \
    X(cuDeviceTotalMem)                                                                                                \
    X(cuDeviceGetPCIBusId)                                                                                             \
    X(cuDeviceCanAccessPeer)                                                                                           \
    X(cuDevicePrimaryCtxRetain)                                                                                        \
    X(cuDevicePrimaryCtxRelease)                                                                                       \
    X(cuCtxSetCurrent)                                                                                                 \
    X(cuMemGetInfo)                                                                                                    \
    X(cuMemAlloc)                                                                                                      \
    X(cuMemFree)                                                                                                       \
    X(cuMemHostAlloc)                                                                                                  \
    X(cuMemFreeHost)                                                                                                   \
    X(cuMemHostRegister)                                                                                               \
    X(cuMemHostUnregister)                                                                                             \
    X(cuMemHostGetDevicePointer)                                                                                       \
    X(cuMemcpyHtoD)                                                                                                    \
    X(cuMemcpyDtoH)                                                                                                    \
    X(cuMemcpyHtoDAsync)                                                                                               \
    X(cuMemcpyDtoHAsync)                                                                                               \
    X(cuMemcpyDtoDAsync)                                                                                               \
    X(cuMemsetD8Async)                                                                                                 \
    X(cuMemsetD2D32Async)                                                                                              \
    X(cuStreamCreate)                                                                                                  \
    X(cuStreamDestroy)                                                                                                 \
    X(cuStreamSynchronize)                                                                                             \
    X(cuStreamQuery)                                                                                                   \
    X(cuStreamWaitEvent)                                                                                               \
    X(cuStreamBeginCapture)                                                                                            \
    X(cuStreamEndCapture)                                                                                              \
    X(cuGraphInstantiate)                                                                                              \
    X(cuGraphUpload)                                                                                                   \
    X(cuGraphLaunch)                                                                                                   \
    X(cuGraphExecDestroy)                                                                                              \
    X(cuGraphDestroy)                                                                                                  \
    X(cuEventCreate)                                                                                                   \
    X(cuEventDestroy)                                                                                                  \
    X(cuEventRecord)                                                                                                   \
    X(cuEventQuery)                                                                                                    \
    X(cuEventSynchronize)                                                                                              \
    X(cuEventElapsedTime)                                                                                              \
    X(cuModuleLoadData)                                                                                                \
    X(cuModuleUnload)                                                                                                  \
    X(cuModuleGetFunction)                                                                                             \
    X(cuFuncLoad)                                                                                                      \
    X(cuFuncSetAttribute)                                                                                              \
    X(cuOccupancyMaxActiveBlocksPerMultiprocessor)                                                                     \
    X(cuLaunchKernel)                                                                                                  \
    X(cuLaunchKernelEx)                                                                                                \
    X(cuTensorMapEncodeTiled)

typedef struct cuda_driver {
    void *library;
#define X(name) __typeof__(&(name)) name;
    CUDA_DRIVER_MAP(X)
#undef X
} cuda_driver;

/* Opens the driver and calls cuInit. LS_ENOTFOUND without one or without a GPU, LS_EUNSUPPORTED if it is older than the
 * CUDA that this program was built with, with the reason. *out is the caller's. */
ls_status cuda_driver_open(cuda_driver **out, ls_error *err);
void cuda_driver_close(cuda_driver **driver); /* accepts NULL inside; sets it to NULL */

/* CUDA's own words for an error. Never NULL. */
const char *cuda_error_name(const cuda_driver *driver, CUresult rc);
const char *cuda_error_text(const cuda_driver *driver, CUresult rc);

#endif
