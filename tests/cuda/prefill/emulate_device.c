/* A device for prefill_check that runs kernels by emulate.cpp, decode's by tests/cuda/decode/decode_emulate.cpp: stands in for driver.c and cuda_rank.c. Its memory is the
 * process's own. SMS=n: how many multiprocessors it pretends to have, which decides the tiles of matmuls. */
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/cuda.h"

bool emulate_launch(const char *name, unsigned grid_x, unsigned grid_y, unsigned threads, unsigned shared_bytes,
                    void **args);

const void *decode_emulate_kernel(const char *name);
void decode_emulate_launch(const void *kernel, const unsigned grid[3], unsigned block, unsigned shared_bytes,
                           const void *args, bool backwards);

enum { SHARED_BYTES = 232448, SOME_KERNELS = 256 };

static CUresult mem_alloc(CUdeviceptr *out, size_t bytes) {
    *out = (CUdeviceptr)aligned_alloc(256, bytes);
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
static CUresult set_bytes(CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream) {
    (void)stream;
    memset((void *)at, value, bytes);
    return CUDA_SUCCESS;
}
static CUresult synchronize(CUstream stream) {
    (void)stream;
    return CUDA_SUCCESS;
}
static CUresult set_attribute(CUfunction fn, CUfunction_attribute attribute, int value) {
    (void)fn;
    (void)attribute;
    return value > SHARED_BYTES ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

/* What emulated/.../prefill_flash_ptx.cuh reads (emulated_map); refuses what a driver would. */
static CUresult encode_map(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *base,
                           const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
                           const cuuint32_t *element_stride, CUtensorMapInterleave interleave,
                           CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    struct {
        void *base;
        uint64_t columns, rows, row_bytes;
        uint32_t box_columns, box_rows;
    } of = {base, size[0], size[1], stride[0], box[0], box[1]};
    (void)promotion;
    if ((uintptr_t)map % 64 != 0 ||
        (type != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 && type != CU_TENSOR_MAP_DATA_TYPE_FLOAT16) || rank != 2 ||
        (uintptr_t)base % 16 != 0 || stride[0] % 16 != 0 || size[0] == 0 || size[1] == 0 || size[1] >> 32 != 0 ||
        box[0] * 2 > 128 || box[1] > 256 || element_stride[0] != 1 || element_stride[1] != 1 ||
        interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || swizzle != CU_TENSOR_MAP_SWIZZLE_128B ||
        fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    memcpy(map, &of, sizeof of);
    return CUDA_SUCCESS;
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
    driver->cuMemsetD8Async = set_bytes;
    driver->cuStreamSynchronize = synchronize;
    driver->cuFuncSetAttribute = set_attribute;
    driver->cuTensorMapEncodeTiled = encode_map;
    *out = driver;
    return LS_OK;
}

void cuda_driver_close(cuda_driver **driver) {
    free(*driver);
    *driver = NULL;
}

ls_status cuda_rank_open(cuda_rank *rank, const cuda_driver *driver, int ordinal, bool generic, ls_error *err) {
    const char *sms = getenv("SMS");
    (void)ordinal;
    (void)generic;
    *rank = (cuda_rank){.driver = driver,
                        .prefill_fn = calloc(SOME_KERNELS, sizeof(CUfunction)),
                        .decode_fn = calloc(SOME_KERNELS, sizeof(CUfunction))};
    rank->facts = (cuda_facts){.name = "emulated",
                               .cc_major = 9,
                               .sm_count = sms != NULL ? atoi(sms) : 2,
                               .shared_bytes_per_block = SHARED_BYTES};
    rank->overlap = true;
    return rank->prefill_fn == NULL || rank->decode_fn == NULL ? error_set(err, LS_ENOMEM, "out of memory") : LS_OK;
}

void cuda_rank_close(cuda_rank *rank) {
    free(rank->prefill_fn);
    free(rank->decode_fn);
}

ls_status cuda_launch(cuda_rank *rank, CUfunction fn, const char *name, unsigned grid_x, unsigned grid_y,
                      unsigned grid_z, unsigned block, unsigned shared_bytes, void **args, ls_error *err) {
    (void)rank;
    (void)fn;
    const void *of_decode = decode_emulate_kernel(name);
    if (of_decode != NULL) {
        decode_emulate_launch(of_decode, (unsigned[]){grid_x, grid_y, grid_z}, block, shared_bytes, args[0], false);
        return LS_OK;
    }
    return grid_z == 1 && emulate_launch(name, grid_x, grid_y, block, shared_bytes, args)
               ? LS_OK
               : error_set(err, LS_EABORTED, "%s: a launch that a GPU would refuse", name);
}

ls_status cuda_launch_overlapping(cuda_rank *rank, CUfunction fn, const char *name, unsigned grid_x, unsigned grid_y,
                                  unsigned grid_z, unsigned block, unsigned shared_bytes, void **args, ls_error *err) {
    return cuda_launch(rank, fn, name, grid_x, grid_y, grid_z, block, shared_bytes, args, err);
}

ls_status cuda_check(const cuda_rank *rank, CUresult rc, const char *what, ls_error *err) {
    (void)rank;
    return rc == CUDA_SUCCESS ? LS_OK : error_set(err, LS_EABORTED, "%s: error %d", what, (int)rc);
}
