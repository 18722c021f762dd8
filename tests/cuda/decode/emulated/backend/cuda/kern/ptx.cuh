/* In place of kern/ptx.cuh where kernels run on the CPU: see tests/cuda/decode/decode_emulate.cpp. */
#ifndef LS_BACKEND_CUDA_PTX_CUH
#define LS_BACKEND_CUDA_PTX_CUH

#include <string.h>

#include "backend/cuda/kern/decode_args.h"

#define DEVICE static inline
#define DEVICE_MEMBER inline

DEVICE void wait_for_earlier_kernels() {}

DEVICE void let_next_kernel_start() {}

DEVICE void prefetch_to_l2(const void *address) {
    volatile char touched = *static_cast<const char *>(address);
    (void)touched;
}

DEVICE uint4 load_weight(const void *address, bool wanted) {
    uint4 v = {0, 0, 0, 0};
    if (wanted) {
        emulate_check(((uintptr_t)address) % 16 == 0, "a 16-byte load is not aligned");
        memcpy(&v, address, sizeof v);
    }
    return v;
}

DEVICE uint4 load_shared_by_rows(const void *address, bool wanted) {
    return load_weight(address, wanted);
}

DEVICE uint4 load_from_anywhere(const void *address, bool wanted) {
    return load_shared_by_rows(address, wanted);
}

DEVICE void copy_async(void *to, const void *from, bool wanted) {
    emulate_check((uintptr_t)to % 16 == 0 && (uintptr_t)from % 16 == 0, "an asynchronous copy is not aligned");
    emulate_copy(to, from, wanted);
}

DEVICE void copy_once(void *to, const void *from, bool wanted) {
    copy_async(to, from, wanted);
}

DEVICE void end_copy_group() {
    emulate_copy(NULL, NULL, false);
}

template <int PENDING> DEVICE void wait_for_copies() {
    emulate_copies_until(PENDING);
}

DEVICE void wait_for_copies_but(int pending) {
    emulate_copies_until(pending);
}

DEVICE void wait_for_copies_but_few(int pending) {
    emulate_copies_until(pending);
}

DEVICE void meet_at(int place, int threads) {
    emulate_meet((unsigned)place, (unsigned)threads);
}

DEVICE uint4 emulate_matrices(const void *row, bool turned) {
    const void *all[32];
    emulate_check((uintptr_t)row % 16 == 0, "a row of a matrix is not aligned");
    emulate_all_gather(&row, sizeof row, all);
    const int i = threadIdx.x % 32 / 4, j = threadIdx.x % 4 * 2;
    uint32_t out[4];
    for (int m = 0; m < 4; m++) {
        const uint16_t *const *of = reinterpret_cast<const uint16_t *const *>(all + 8 * m);
        out[m] = (turned ? of[j][i] : of[i][j]) | (uint32_t)(turned ? of[j + 1][i] : of[i][j + 1]) << 16;
    }
    return {out[0], out[1], out[2], out[3]};
}

DEVICE uint4 load_matrices(const void *row) {
    return emulate_matrices(row, false);
}

DEVICE uint4 load_transposed(const void *row) {
    return emulate_matrices(row, true);
}

DEVICE uint32_t transposed(uint32_t matrix) {
    uint32_t all[32];
    emulate_all_gather(&matrix, sizeof matrix, all);
    const int i = threadIdx.x % 32 / 4, j = threadIdx.x % 4 * 2;
    const uint32_t first = all[j * 4 + i / 2] >> i % 2 * 16, second = all[(j + 1) * 4 + i / 2] >> i % 2 * 16;
    return (first & 0xffff) | second << 16;
}

/* Sums as the hardware's may be: both products of a pair, in any order; in double precision here. */
template <int DTYPE>
DEVICE void mma(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    struct fragment {
        uint32_t a[4], b[2];
    } mine = {{a0, a1, a2, a3}, {b0, b1}}, all[32];
    emulate_all_gather(&mine, sizeof mine, all);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
        const int row = g + i / 2 * 8, column = 2 * t + i % 2;
        double sum = acc[i];
        for (int k = 0; k < 16; k++) {
            const int slot = k % 8 / 2, upper = k / 8, odd = k % 2;
            const uint32_t a = all[row % 8 * 4 + slot].a[row / 8 + 2 * upper];
            const uint32_t b = all[column * 4 + slot].b[upper];
            sum += (double)emulate_half<DTYPE>(a >> 16 * odd) * (double)emulate_half<DTYPE>(b >> 16 * odd);
        }
        acc[i] = (float)sum;
    }
}

#endif
