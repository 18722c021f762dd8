// In place of src/backend/cuda/kern/prefill_ptx.cuh: the same functions on emulated warps. A copy lands when it is waited
// for, and its place holds rubbish until then; addresses are checked as the hardware would.
#pragma once

#include "backend/cuda/kern/prefill_args.h"
#include "emulate.h"

namespace prefill {

enum dtype { F32 = 1, BF16 = 2, F16 = 3, INT8 = 4 };

inline void wait_for_earlier_kernels() {}
inline void let_next_kernel_start() {}

inline void check_alignment(const void *address, const char *what) {
    if ((uintptr_t)address % 16 != 0) {
        printf("FATAL %s: an address that is no multiple of 16\n", what);
        abort();
    }
}

struct operands {
    uint32_t a[4], b[2];
};

// Fragments as PTX's manual lays out m16n8k16: lane l holds row or column l / 4 and, of k, 2 (l % 4) and the next.
template <class T> inline void emulated_mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    operands *all = (operands *)emulated_warp_memory();
    const int lane = emulated_lane();
    all[lane] = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    emulated_warp_meet();
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            uint32_t pair_a = all[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
            uint32_t pair_b = all[col * 4 + k % 8 / 2].b[k / 8];
            c[i] += T::load((uint16_t)(pair_a >> k % 2 * 16)) * T::load((uint16_t)(pair_b >> k % 2 * 16));
        }
    }
    emulated_warp_meet();
}

struct bf16 {
    static constexpr int DTYPE = BF16;
    static float load(uint16_t h) {
        return __uint_as_float((uint32_t)h << 16);
    }
    static uint16_t store(float x) {
        uint32_t bits = __float_as_uint(x);
        return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    static uint32_t pack(float low, float high) {
        return store(low) | (uint32_t)store(high) << 16;
    }
    static uint32_t unpack(uint32_t two) {
        return pack((float)(int8_t)(two & 0xff), (float)(int8_t)(two >> 8));
    }
    static void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
        emulated_mma<bf16>(c, a, b0, b1);
    }
};

struct f16 {
    static constexpr int DTYPE = F16;
    static float load(uint16_t h) {
        _Float16 value;
        memcpy(&value, &h, sizeof value);
        return (float)value;
    }
    static uint16_t store(float x) {
        _Float16 value = (_Float16)x;
        uint16_t h;
        memcpy(&h, &value, sizeof h);
        return h;
    }
    static uint32_t pack(float low, float high) {
        return store(low) | (uint32_t)store(high) << 16;
    }
    static uint32_t unpack(uint32_t two) {
        return pack((float)(int8_t)(two & 0xff), (float)(int8_t)(two >> 8));
    }
    static void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
        emulated_mma<f16>(c, a, b0, b1);
    }
};

inline void emulated_ldmatrix(uint32_t out[4], const uint16_t *row, bool transposed) {
    const uint16_t **all = (const uint16_t **)emulated_warp_memory();
    const int lane = emulated_lane(), i = lane / 4, j = lane % 4 * 2;
    check_alignment(row, "ldmatrix");
    all[lane] = row;
    emulated_warp_meet();
    for (int m = 0; m < 4; m++) {
        const uint16_t **of = all + 8 * m;
        uint16_t low = transposed ? of[j][i] : of[i][j], high = transposed ? of[j + 1][i] : of[i][j + 1];
        out[m] = low | (uint32_t)high << 16;
    }
    emulated_warp_meet();
}
inline void ldmatrix(uint32_t out[4], const uint16_t *row) {
    emulated_ldmatrix(out, row, false);
}
inline void ldmatrix_transposed(uint32_t out[4], const uint16_t *row) {
    emulated_ldmatrix(out, row, true);
}

inline void copy_async(void *to, const void *from, bool wanted) {
    emulated_copy copy = {to, {0}};
    check_alignment(to, "cp.async");
    if (wanted) {
        check_alignment(from, "cp.async");
        memcpy(copy.data, from, sizeof copy.data);
    }
    memset(to, 0xee, sizeof copy.data);
    emulated_copies().push_back(copy);
}
inline void copy_commit() {
    emulated_copies().push_back({nullptr, {0}});
}
template <int PENDING> inline void copy_wait() {
    std::deque<emulated_copy> &copies = emulated_copies();
    int groups = 0;
    for (const emulated_copy &copy : copies) {
        groups += copy.to == nullptr;
    }
    while (groups > PENDING) {
        emulated_copy copy = copies.front();
        copies.pop_front();
        if (copy.to == nullptr) {
            groups--;
        } else {
            memcpy(copy.to, copy.data, sizeof copy.data);
        }
    }
}

} // namespace prefill
