/* Where decode_check's kernels run: a GPU (decode_device.c), or threads made of fibers on the CPU (decode_emulate.cpp). */
#ifndef LS_TESTS_CUDA_DECODE_DEVICE_H
#define LS_TESTS_CUDA_DECODE_DEVICE_H

#include "backend/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct device device;

device *device_open(void); /* NULL after a message */
void device_close(device *dev);
/* Memory is given back all at once, down to the last mark. */
void device_mark(device *dev);
void device_release(device *dev);
void *device_take(device *dev, size_t bytes);
void *device_copy(device *dev, const void *from, size_t bytes);
void device_write(device *dev, void *to, const void *from, size_t bytes);
void device_read(device *dev, void *to, const void *from, size_t bytes);
void device_fill(device *dev, void *to, int byte, size_t bytes);
/* n bytes, the first n_from of which are there: again and again. */
void device_repeat(device *dev, void *to, size_t n_from, size_t n);
bool device_wait(device *dev, const char *what); /* false after a message */
/* The rank, with this bind, and room for a step, counters, drawn tokens and a workspace. */
cuda_rank *device_rank(device *dev, const ls_bind *bind, size_t workspace_bytes);
/* Blocks that a grid may have that is there all at once; emulated: `emulated`. 0: this chip or these kernels know no such. */
int device_blocks(device *dev, int emulated);
bool device_is_slow(device *dev); /* emulated */
/* Kernels may begin while those before them end; false where they cannot. */
bool device_overlap(device *dev, bool on);
/* Microseconds of one of n times `enqueue`, back to back: the median of 5 such runs. */
double device_time_many(device *dev, void (*enqueue)(void *context), void *context, int n);
/* Microseconds of `enqueue`, captured in a graph and replayed: the median of 7 replays. */
double device_time(device *dev, void (*enqueue)(void *context), void *context);

#ifdef __cplusplus
}
#endif
#endif
