/*
 * The device of decode_check whose kernels decode_emulate.cpp runs. Each buffer is an allocation of its own. With
 * LS_EMULATE_SMALL set it is one SM of little shared memory: blocks then have several items of attention each.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "decode_device.h"

const void *decode_emulate_kernel(const char *name);
void decode_emulate_launch(const void *kernel, const unsigned grid[3], unsigned block, unsigned shared_bytes,
                           const void *args, bool backwards);
void persist_emulate_launch(const void *kernel, const unsigned grid[2], unsigned block, unsigned shared_bytes,
                            const void *args, bool backwards);
void persist_emulate_wait(void);
void time_all(device *dev);

enum { MAX_TAKEN = 4096, MAX_KERNELS = 64 };

struct device {
    void *taken[MAX_TAKEN];
    int n_taken, mark;
    CUfunction fn[MAX_KERNELS];
    cuda_rank rank;
};

ls_status cuda_check(const cuda_rank *rank, CUresult rc, const char *what, ls_error *err) {
    (void)rank;
    return rc == CUDA_SUCCESS ? LS_OK : error_set(err, LS_EABORTED, "%s", what);
}

ls_status cuda_launch(cuda_rank *rank, CUfunction fn, const char *name, unsigned grid_x, unsigned grid_y,
                      unsigned grid_z, unsigned block, unsigned shared_bytes, void **args, ls_error *err) {
    (void)rank, (void)name, (void)err;
    decode_emulate_launch(fn, (unsigned[]){grid_x, grid_y, grid_z}, block, shared_bytes, args[0],
                          getenv("LS_EMULATE_BACKWARDS") != NULL);
    return LS_OK;
}

ls_status cuda_launch_overlapping(cuda_rank *rank, CUfunction fn, const char *name, unsigned grid_x, unsigned grid_y,
                                  unsigned grid_z, unsigned block, unsigned shared_bytes, void **args, ls_error *err) {
    return cuda_launch(rank, fn, name, grid_x, grid_y, grid_z, block, shared_bytes, args, err);
}

ls_status cuda_launch_together(cuda_rank *rank, CUfunction fn, const char *name, unsigned grid_x, unsigned grid_y,
                               unsigned block, unsigned shared_bytes, void **args, ls_error *err) {
    (void)rank, (void)name, (void)err;
    persist_emulate_launch(fn, (unsigned[]){grid_x, grid_y}, block, shared_bytes, args[0],
                           getenv("LS_EMULATE_BACKWARDS") != NULL);
    return LS_OK;
}

ls_status cuda_rank_kernel(const cuda_rank *rank, const char *name, CUfunction *out, ls_error *err) {
    (void)rank;
    *out = (CUfunction)(uintptr_t)decode_emulate_kernel(name);
    return *out != NULL ? LS_OK : error_set(err, LS_EINTERNAL, "no kernel %s", name);
}

/* All that persist.c asks of the driver. */
static CUresult set_attribute(CUfunction fn, CUfunction_attribute what, int value) {
    (void)fn, (void)what, (void)value;
    return CUDA_SUCCESS;
}

static CUresult one_block(int *out, CUfunction fn, int threads, size_t shared_bytes) {
    (void)fn, (void)threads;
    *out = shared_bytes <= 227 << 10;
    return CUDA_SUCCESS;
}

static CUresult to_device(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    (void)stream;
    memcpy((void *)to, from, bytes);
    return CUDA_SUCCESS;
}

static CUresult synchronize(CUstream stream) {
    (void)stream;
    return CUDA_SUCCESS;
}

/* What decode_emulate.cpp's copies read (emulated_map); refuses what a driver would. */
static CUresult encode_map(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *base,
                           const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
                           const cuuint32_t *element_stride, CUtensorMapInterleave interleave,
                           CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    struct {
        void *base;
        uint64_t columns, rows, row_bytes;
        uint32_t box_columns, box_rows, element, swizzled;
    } of = {base, size[0], size[1], stride[0], box[0], box[1], 8, swizzle == CU_TENSOR_MAP_SWIZZLE_128B};
    (void)promotion;
    if ((uintptr_t)map % 64 != 0 || type != CU_TENSOR_MAP_DATA_TYPE_UINT64 || rank != 2 || (uintptr_t)base % 16 != 0 ||
        stride[0] % 16 != 0 || size[0] == 0 || size[1] == 0 || size[1] >> 32 != 0 || box[0] == 0 || box[0] > 256 ||
        box[0] % 2 != 0 || box[1] == 0 || box[1] > 256 || (of.swizzled && box[0] * 8 > 128) || element_stride[0] != 1 ||
        element_stride[1] != 1 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
        (!of.swizzled && swizzle != CU_TENSOR_MAP_SWIZZLE_NONE) || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    memcpy(map, &of, sizeof of);
    return CUDA_SUCCESS;
}

static const cuda_driver driver = {.cuFuncSetAttribute = set_attribute,
                                   .cuOccupancyMaxActiveBlocksPerMultiprocessor = one_block,
                                   .cuMemcpyHtoDAsync = to_device,
                                   .cuStreamSynchronize = synchronize,
                                   .cuTensorMapEncodeTiled = encode_map};

device *device_open(void) {
    device *dev = calloc(1, sizeof *dev);
    for (int i = 0; i < n_decode_kernels; i++) {
        dev->fn[i] = (CUfunction)(uintptr_t)decode_emulate_kernel(decode_kernel_names[i]);
        if (dev->fn[i] == NULL) {
            fprintf(stderr, "no kernel %s\n", decode_kernel_names[i]);
            return NULL;
        }
    }
    return dev;
}

void device_close(device *dev) {
    free(dev);
}

void device_mark(device *dev) {
    dev->mark = dev->n_taken;
}

void device_release(device *dev) {
    while (dev->n_taken > dev->mark) {
        free(dev->taken[--dev->n_taken]);
    }
}

void *device_take(device *dev, size_t bytes) {
    void *p = NULL;
    if (dev->n_taken == MAX_TAKEN || posix_memalign(&p, 256, bytes) != 0) {
        abort();
    }
    memset(p, 0, bytes);
    return dev->taken[dev->n_taken++] = p;
}

void *device_copy(device *dev, const void *from, size_t bytes) {
    return memcpy(device_take(dev, bytes), from, bytes);
}

void device_write(device *dev, void *to, const void *from, size_t bytes) {
    (void)dev;
    memcpy(to, from, bytes);
}

void device_read(device *dev, void *to, const void *from, size_t bytes) {
    (void)dev;
    memcpy(to, from, bytes);
}

void device_fill(device *dev, void *to, int byte, size_t bytes) {
    (void)dev;
    memset(to, byte, bytes);
}

void device_repeat(device *dev, void *to, size_t n_from, size_t n) {
    (void)dev;
    for (size_t i = n_from; i < n; i++) {
        ((uint8_t *)to)[i] = ((uint8_t *)to)[i - n_from];
    }
}

bool device_wait(device *dev, const char *what) {
    (void)dev, (void)what;
    persist_emulate_wait();
    return true;
}

cuda_rank *device_rank(device *dev, const ls_bind *bind, size_t workspace_bytes) {
    const bool small = getenv("LS_EMULATE_SMALL") != NULL;
    dev->rank = (cuda_rank){
        .driver = &driver,
        .bind = *bind,
        .facts = {.sm_count = small ? 1 : 132, .shared_bytes_per_block = (small ? 99 : 227) << 10, .cc_major = 9},
        .step = (uintptr_t)device_take(dev, 1 << 16),
        .counters = (uintptr_t)device_take(dev, CUDA_COUNTERS * sizeof(uint32_t)),
        .drawn = (uintptr_t)device_take(dev, (size_t)bind->m_max * sizeof(int32_t)),
        .workspace = (uintptr_t)device_take(dev, workspace_bytes),
        .workspace_bytes = workspace_bytes,
        .decode_fn = dev->fn};
    return &dev->rank;
}

int device_blocks(device *dev, int emulated) {
    (void)dev;
    return emulated;
}

bool device_is_slow(device *dev) {
    (void)dev;
    return true;
}

bool device_overlap(device *dev, bool on) {
    (void)dev;
    return !on;
}

/* Once, for what it does; how long that took means nothing. */
double device_time_many(device *dev, void (*enqueue)(void *context), void *context, int n) {
    (void)dev, (void)n;
    enqueue(context);
    persist_emulate_wait();
    return 1;
}

double device_time(device *dev, void (*enqueue)(void *context), void *context) {
    (void)dev, (void)enqueue, (void)context;
    return 0;
}

void time_all(device *dev) {
    (void)dev;
}
