/*
 * What a step could at best reach on this device: reading memory and doing next to nothing with it, and launches that do
 * nothing but follow one another.
 *
 * read_all: blocks take chunks of 16-byte words in turn; each thread has UNROLL loads in flight. The sum is written only if it has a
 * value that it hardly ever has, so the loads stay and nothing else does.
 */
#include "backend/cuda/kern/ptx.cuh"

enum { UNROLL = 8 };

static __device__ __forceinline__ uint4 load_stream(const uint4 *at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}

extern "C" __global__ void read_all(const uint4 *data, int64_t n_words, uint32_t *sink) {
    const int64_t chunk = (int64_t)blockDim.x * UNROLL;
    uint32_t sum = 0;
    for (int64_t first = blockIdx.x * chunk; first < n_words; first += gridDim.x * chunk) {
        uint4 v[UNROLL];
        if (first + chunk <= n_words) {
#pragma unroll
            for (int i = 0; i < UNROLL; i++) {
                v[i] = load_stream(data + first + i * (int64_t)blockDim.x + threadIdx.x);
            }
#pragma unroll
            for (int i = 0; i < UNROLL; i++) {
                sum += v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
            }
        } else {
            for (int64_t at = first + threadIdx.x; at < n_words; at += blockDim.x) {
                uint4 w = load_stream(data + at);
                sum += w.x ^ w.y ^ w.z ^ w.w;
            }
        }
    }
    if (sum == 0x5eed5eed) {
        *sink = sum;
    }
}

/* One of a chain of launches, each of which has to see what the one before it wrote. One block. */
extern "C" __global__ void count_launch(uint32_t *count) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    if (threadIdx.x == 0) {
        *count += 1;
    }
}
