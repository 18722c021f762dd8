/*
 * Offers for a drawn token, and the noise of Gumbel-max: the same as backend/sample_math.h. Definitions in ops.h (op_sample).
 */
#ifndef LS_BACKEND_CUDA_DECODE_SAMPLE_CUH
#define LS_BACKEND_CUDA_DECODE_SAMPLE_CUH

#include "backend/cuda/kern/common.cuh"

/* First word of Philox4x32-10 with counter (c0, c1, c2, 0). */
DEVICE uint32_t philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32), c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t n0 = __umulhi(0xCD9E8D57u, c2) ^ c1 ^ k0, n1 = 0xCD9E8D57u * c2;
        const uint32_t n2 = __umulhi(0xD2511F53u, c0) ^ c3 ^ k1, n3 = 0xD2511F53u * c0;
        c0 = n0;
        c1 = n1;
        c2 = n2;
        c3 = n3;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}

DEVICE double gumbel_of(uint32_t x) {
    const double u = ((double)x + 0.5) * 2.3283064365386963e-10; /* 2^-32 */
    return -log(-log(u));
}

/* At least gumbel_of(x), without a logarithm. */
DEVICE double gumbel_bound(uint32_t x) {
    return (1 + __clz((int)~x)) * 0.69314718056;
}

static constexpr double GUMBEL_MAX = 22.88; /* of any x */

/* Higher values first, then lower ids. */
struct offer {
    double value;
    int32_t id; /* -1: none */
};

DEVICE offer better(offer a, offer b) {
    const bool second = b.id >= 0 && (a.id < 0 || b.value > a.value || (b.value == a.value && b.id < a.id));
    return second ? b : a;
}

/* The best of a warp's lanes, on all of them. */
DEVICE offer warp_best(offer mine) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        offer other;
        other.value = __shfl_xor_sync(0xffffffffu, mine.value, lanes);
        other.id = __shfl_xor_sync(0xffffffffu, mine.id, lanes);
        mine = better(mine, other);
    }
    return mine;
}

/* The best of all threads of a block of decode_sample, on all threads; room[i] is left as the best of warp i. Ends with a
 * barrier to come before room's next use. */
DEVICE offer block_best(offer mine, offer *room) {
    mine = warp_best(mine);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        room[threadIdx.x / 32] = mine;
    }
    __syncthreads();
    offer best = room[0];
    for (int i = 1; i < DECODE_SAMPLE_THREADS / 32; i++) {
        best = better(best, room[i]);
    }
    return best;
}

#endif
