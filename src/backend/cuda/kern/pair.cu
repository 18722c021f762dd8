/*
 * What tells whether two GPUs reach each other: words one after the other, patterns. For doctor.
 */
#include "backend/cuda/kern/exchange_ptx.cuh"
#include "backend/cuda/kern/pair_args.h"

DEVICE uint32_t pattern_at(int64_t i, uint32_t seed) {
    uint32_t x = (uint32_t)i * 2654435761u ^ seed;
    x ^= x >> 15;
    return x * 2246822519u ^ (uint32_t)(i >> 32);
}

/* To memory of any GPU, by plain stores. */
extern "C" __global__ void pair_fill(const __grid_constant__ pair_pattern_args a) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.n; i += stride) {
        a.data[i] = pattern_at(i, a.seed);
    }
}

/* *first_bad: the least index of a word that is another, left alone where there is none. */
extern "C" __global__ void pair_check(const __grid_constant__ pair_pattern_args a) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.n; i += stride) {
        if (a.data[i] != pattern_at(i, a.seed)) {
            atomicMin(a.first_bad, (unsigned long long)i);
        }
    }
}

/* One thread: there and back, n times. Gives up, with *lost = 1, when nothing has come for as long as it is patient. */
extern "C" __global__ void pair_ping(const __grid_constant__ pair_ping_args a) {
    const uint64_t begin = global_time();
    uint32_t looks = 0;
    for (uint32_t i = 1; i <= a.n; i++) {
        if (a.begins) {
            store_flag(a.there, i);
        }
        while (load_flag(a.here) != i) {
            if (++looks % 256 == 0 && global_time() - begin > a.patience_ns) {
                *a.lost = 1;
                return;
            }
        }
        if (!a.begins) {
            store_flag(a.there, i);
        }
    }
}
