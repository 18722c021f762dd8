/* Opens a GPU's driver and primary context, a quarter of a second, while files are read. See engine.h. */
#include <stdlib.h>

#include "base/clock.h"
#include "engine/cuda_engine.h"

struct cuda_start {
    pthread_t opens, reads_lt;
    bool is_opening, is_reading_lt;
    pthread_mutex_t lock; /* of all that follows, and of the two above */
    int ordinal;
    cuda_driver *driver;
    CUdevice device;
    bool has_context;
    int64_t driver_us, context_us;
};

static void *open_context(void *arg) {
    cuda_start *start = arg;
    CUcontext context;
    int64_t begin = clock_ns();
    if (cuda_driver_open(&start->driver, NULL) != LS_OK) {
        return NULL;
    }
    int64_t opened = clock_ns();
    start->has_context = start->driver->cuDeviceGet(&start->device, start->ordinal) == CUDA_SUCCESS &&
                         start->driver->cuDevicePrimaryCtxRetain(&context, start->device) == CUDA_SUCCESS;
    if (start->has_context) {
        start->driver_us = (opened - begin) / 1000;
        start->context_us = (clock_ns() - opened) / 1000;
    }
    return NULL;
}

static void *read_lt(void *arg) {
    (void)arg;
    cublaslt_preload();
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
    start->is_reading_lt = thread_start(&start->reads_lt, read_lt, NULL) == 0;
    return start;
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
    pthread_mutex_destroy(&start->lock);
    free(start);
    *out = NULL;
}
