/*
 * The kernels that load weights on the CPU: load.cu as C++, where there is no GPU. A warp's lanes are contexts that run in
 * turn until each waits for the others; warps run one after another, since none waits for another one.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <cuda_fp16.h>

struct index3 {
    unsigned x, y, z;
};
static index3 threadIdx, blockIdx, gridDim;

enum { LANES = 32, STACK_BYTES = 128 << 10 };

static ucontext_t lanes[LANES], scheduler;
static uint32_t gathered[2][LANES];
static bool is_done[LANES];
static unsigned turn[LANES];

/* Hands on a value and waits until all lanes have; those that are through with the kernel never come. */
static const uint32_t *gather(uint32_t value) {
    const unsigned lane = threadIdx.x % LANES;
    uint32_t *all = gathered[turn[lane]++ % 2];
    all[lane] = value;
    swapcontext(&lanes[lane], &scheduler);
    return all;
}

static void __syncwarp() {
    gather(0);
}
static uint32_t __shfl_xor_sync(unsigned, uint32_t value, int distance) {
    const unsigned lane = threadIdx.x % LANES;
    return gather(value)[lane ^ (unsigned)distance];
}
static float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static float __fadd_rn(float a, float b) {
    return a + b;
}
static float __fmul_rn(float a, float b) {
    return a * b;
}
static float __fdiv_rn(float a, float b) {
    return a / b;
}
static int __float2int_rn(float a) {
    return (int)__builtin_nearbyintf(a);
}
static uint32_t max(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

#undef __shared__
#undef __global__
#undef __device__
#undef __forceinline__
#undef __launch_bounds__
#define __shared__ static
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

#include "backend/cuda/kern/load.cu"

static void (*kernel)(load_args);
static const load_args *kernel_args;

static void run_lane() {
    const unsigned lane = threadIdx.x % LANES;
    kernel(*kernel_args);
    is_done[lane] = true;
    swapcontext(&lanes[lane], &scheduler);
}

static void run_warp(unsigned first_thread) {
    static char *stack;
    stack = stack != NULL ? stack : (char *)malloc(LANES * STACK_BYTES);
    for (unsigned i = 0; i < LANES; i++) {
        getcontext(&lanes[i]);
        lanes[i].uc_stack.ss_sp = stack + i * STACK_BYTES;
        lanes[i].uc_stack.ss_size = STACK_BYTES;
        lanes[i].uc_link = NULL;
        makecontext(&lanes[i], run_lane, 0);
        is_done[i] = false;
        turn[i] = 0;
    }
    for (unsigned n_done = 0; n_done < LANES;) {
        n_done = 0;
        for (unsigned i = 0; i < LANES; i++) {
            threadIdx = {first_thread + i, 0, 0};
            swapcontext(&scheduler, &lanes[i]);
            n_done += is_done[i];
        }
        if (n_done != 0 && n_done != LANES) {
            printf("FATAL lanes of a warp wait for those that are through\n");
            abort();
        }
    }
}

extern "C" bool emulate_launch(const char *name, unsigned grid, unsigned block, const void *args) {
    kernel = strcmp(name, "load_rows") == 0 ? load_rows : strcmp(name, "load_int8") == 0 ? load_int8 : NULL;
    kernel_args = (const load_args *)args;
    gridDim = {grid, 1, 1};
    for (unsigned i = 0; kernel != NULL && i < grid; i++) {
        blockIdx = {i, 0, 0};
        for (unsigned thread = 0; thread < block; thread += LANES) {
            run_warp(thread);
        }
    }
    return kernel != NULL && grid > 0 && block % LANES == 0;
}
