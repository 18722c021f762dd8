/* A device for load_check that runs kernels by emulate.cpp: stands in for driver.c and cuda_rank.c. Its memory is the
 * process's own, and small, so that grids go round more than once. */
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/cuda.h"

bool emulate_launch(const char *name, unsigned grid, unsigned block, const void *args);

static CUresult mem_alloc(CUdeviceptr *out, size_t bytes) {
    *out = (CUdeviceptr)aligned_alloc(256, (bytes + 255) / 256 * 256);
    return *out == 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}
static CUresult mem_free(CUdeviceptr at) {
    free((void *)at);
    return CUDA_SUCCESS;
}
static CUresult to_device(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    (void)stream;
    memcpy((void *)to, from, bytes);
    return CUDA_SUCCESS;
}
static CUresult from_device(void *to, CUdeviceptr from, size_t bytes) {
    memcpy(to, (const void *)from, bytes);
    return CUDA_SUCCESS;
}
static CUresult launch(CUfunction fn, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void **args,
                       void **extra) {
    (void)shared_bytes, (void)stream, (void)extra;
    return grid_y * grid_z * block_y * block_z == 1 && emulate_launch((const char *)fn, grid_x, block_x, args[0])
               ? CUDA_SUCCESS
               : CUDA_ERROR_INVALID_VALUE;
}

ls_status cuda_driver_open(cuda_driver **out, ls_error *err) {
    cuda_driver *driver = calloc(1, sizeof *driver);
    if (driver == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory");
    }
    driver->cuMemAlloc = mem_alloc;
    driver->cuMemFree = mem_free;
    driver->cuMemcpyHtoDAsync = to_device;
    driver->cuMemcpyDtoH = from_device;
    driver->cuLaunchKernel = launch;
    *out = driver;
    return LS_OK;
}

void cuda_driver_close(cuda_driver **driver) {
    free(*driver);
    *driver = NULL;
}

ls_status cuda_rank_open(cuda_rank *rank, const cuda_driver *driver, int ordinal, bool generic, ls_error *err) {
    (void)ordinal, (void)generic, (void)err;
    *rank = (cuda_rank){.driver = driver, .facts = {.name = "emulated", .sm_count = 1}};
    return LS_OK;
}

void cuda_rank_close(cuda_rank *rank) {
    (void)rank;
}

ls_status cuda_rank_kernel(const cuda_rank *rank, const char *name, CUfunction *out, ls_error *err) {
    (void)rank, (void)err;
    memcpy(out, &name, sizeof *out); /* a kernel is its name here */
    return LS_OK;
}

ls_status cuda_rank_wait(const cuda_rank *rank, const char *what, int timeout_s, ls_error *err) {
    (void)rank, (void)what, (void)timeout_s, (void)err;
    return LS_OK;
}

ls_status cuda_check(const cuda_rank *rank, CUresult rc, const char *what, ls_error *err) {
    (void)rank;
    return rc == CUDA_SUCCESS ? LS_OK : error_set(err, LS_EABORTED, "%s: error %d", what, (int)rc);
}
