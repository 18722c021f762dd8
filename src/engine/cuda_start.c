/*
 * Opens a GPU's driver and primary context, a quarter of a second, while files are read. See engine.h.
 *
 * cuBLASLt is read into memory beside the context, not beside the driver: both hold the dynamic linker's lock, and the
 * driver is what everything waits for.
 */
#include <stdlib.h>

#include "base/clock.h"
#include "engine/cuda_engine.h"

struct cuda_start {
    pthread_t opens, reads_lt, reads_files;
    bool is_opening, is_reading_lt, is_reading_files; /* threads that are not joined yet */
    const ls_checkpoint *checkpoint;
    pthread_mutex_t lock; /* of is_opening and of all that follows */
    int ordinal;
    cuda_driver *driver;
    CUdevice device;
    bool has_context;
    int64_t driver_us, context_us;
};

static void *read_lt(void *arg) {
    (void)arg;
    cublaslt_preload();
    return NULL;
}

static void *read_files(void *arg) {
    const cuda_start *start = arg;
    checkpoint_read_ahead(start->checkpoint);
    return NULL;
}

static void *open_context(void *arg) {
    cuda_start *start = arg;
    CUcontext context;
    int64_t begin = clock_ns();
    if (cuda_driver_open(&start->driver, NULL) != LS_OK) {
        return NULL;
    }
    int64_t opened = clock_ns();
    start->is_reading_lt = thread_start(&start->reads_lt, read_lt, NULL) == 0;
    start->has_context = start->driver->cuDeviceGet(&start->device, start->ordinal) == CUDA_SUCCESS &&
                         start->driver->cuDevicePrimaryCtxRetain(&context, start->device) == CUDA_SUCCESS;
    if (start->has_context) {
        start->driver_us = (opened - begin) / 1000;
        start->context_us = (clock_ns() - opened) / 1000;
    }
    return NULL;
}

cuda_start *cuda_start_begin(int ordinal) {
    cuda_start *start = calloc(1, sizeof *start);
    if (start == NULL) {
        return NULL;
    }
    start->ordinal = ordinal;
    pthread_mutex_init(&start->lock, NULL);
    start->is_opening = thread_start(&start->opens, open_context, start) == 0;
    return start;
}

void cuda_start_read_ahead(cuda_start *start, const ls_checkpoint *checkpoint) {
    start->checkpoint = checkpoint;
    start->is_reading_files = thread_start(&start->reads_files, read_files, start) == 0;
}

void cuda_start_wait(cuda_start *start, int64_t *driver_us, int64_t *context_us) {
    pthread_mutex_lock(&start->lock);
    if (start->is_opening) {
        pthread_join(start->opens, NULL);
        start->is_opening = false;
    }
    *driver_us = start->driver_us;
    *context_us = start->context_us;
    pthread_mutex_unlock(&start->lock);
}

void cuda_start_release(cuda_start *start) {
    int64_t unused[2];
    cuda_start_wait(start, &unused[0], &unused[1]);
    pthread_mutex_lock(&start->lock);
    if (start->has_context) {
        start->driver->cuDevicePrimaryCtxRelease(start->device);
        start->has_context = false;
    }
    cuda_driver_close(&start->driver);
    pthread_mutex_unlock(&start->lock);
}

void cuda_start_end(cuda_start **out) {
    cuda_start *start = *out;
    if (start == NULL) {
        return;
    }
    cuda_start_release(start);
    if (start->is_reading_lt) {
        pthread_join(start->reads_lt, NULL);
    }
    if (start->is_reading_files) {
        pthread_join(start->reads_files, NULL);
    }
    pthread_mutex_destroy(&start->lock);
    free(start);
    *out = NULL;
}
