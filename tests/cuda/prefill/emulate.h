/*
 * CUDA C as plain C++, enough for the prefill kernels: a block's threads are fibers of one thread, which switch where the
 * block or a warp meets. `thread_local` is what both a function's shared array and an extern one may be.
 */
#ifndef LS_TESTS_CUDA_PREFILL_EMULATE_H
#define LS_TESTS_CUDA_PREFILL_EMULATE_H

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#define __device__
#define __global__
#define __grid_constant__
#define __shared__ thread_local
#define __noinline__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct emulated_index {
    unsigned x, y, z;
};
extern emulated_index threadIdx, blockIdx, gridDim;

struct uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
static inline float2 make_float2(float x, float y) {
    return {x, y};
}
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    return {x, y, z, w};
}
static inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
static inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline int min(int a, int b) {
    return a < b ? a : b;
}
static inline int max(int a, int b) {
    return a > b ? a : b;
}
static inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
    uint64_t both = x | (uint64_t)y << 32;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        out |= (uint32_t)(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    }
    return out;
}
static inline int atomicCAS(int *at, int expected, int wanted) {
    int old = *at;
    *at = old == expected ? wanted : old;
    return old;
}

static inline uint32_t atomicAdd(uint32_t *at, uint32_t value) {
    const uint32_t old = *at;
    *at += value;
    return old;
}
static inline void __threadfence() {}
static inline float4 __ldcg(const float4 *at) {
    return *at;
}

/* The running thread's place, what its warp shares, and its copies that have not landed; to = NULL: a commit. */
struct emulated_copy {
    void *to;
    uint8_t data[16];
};
int emulated_lane();
void *emulated_warp_memory(); /* 1 KB */
void emulated_warp_meet();
std::deque<emulated_copy> &emulated_copies();
void __syncthreads();
int emulated_block_of_cluster(); /* the running thread's */
void emulated_meet_cluster();
void emulated_yield();
void emulated_meet_at(int place, int threads, bool waits); /* a named barrier */

static inline float __shfl_xor_sync(uint32_t, float value, int lanes) {
    float *all = (float *)emulated_warp_memory();
    all[emulated_lane()] = value;
    emulated_warp_meet();
    float other = all[emulated_lane() ^ lanes];
    emulated_warp_meet();
    return other;
}

template <class T> static inline T __shfl_sync(uint32_t, T value, int lane) {
    T *all = (T *)emulated_warp_memory();
    all[emulated_lane()] = value;
    emulated_warp_meet();
    const T other = all[lane];
    emulated_warp_meet();
    return other;
}
static inline void __syncwarp() {
    emulated_warp_meet();
}

#endif
