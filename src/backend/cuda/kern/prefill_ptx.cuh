// What the prefill kernels need PTX for: conversions, mma, ldmatrix, cp.async. All of it runs on sm_80 and later.
// tests/cuda/prefill has plain C++ in its place, to run the kernels where there is no GPU.
#pragma once

#include "backend/cuda/kern/prefill_args.h"

namespace prefill {

enum dtype { F32 = 1, BF16 = 2, F16 = 3, INT8 = 4 }; // ls_dtype

// ptx.cuh says what these two are for.
__device__ inline void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

struct bf16 {
    static constexpr int DTYPE = BF16;
    static __device__ float load(uint16_t h) {
        return __uint_as_float((uint32_t)h << 16);
    }
    static __device__ uint16_t store(float x) {
        uint16_t h;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x));
        return h;
    }
    static __device__ uint32_t pack(float low, float high) {
        uint32_t pair;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
        return pair;
    }
    // Two int8 of a 16-bit word, exactly. Bits 0x4b0000uu are 2^23 + u; u = q + 128; eight bits fit the upper half.
    static __device__ uint32_t unpack(uint32_t two) {
        uint32_t u = two ^ 0x8080;
        float low = __uint_as_float(0x4b000000 | (u & 0xff)) - 8388736.0F;
        float high = __uint_as_float(0x4b000000 | (u >> 8 & 0xff)) - 8388736.0F;
        return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
    }
    // c += a b: a 16 x 16 by row, b 16 x 8 by column.
    static __device__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

struct f16 {
    static constexpr int DTYPE = F16;
    static __device__ float load(uint16_t h) {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
        return x;
    }
    static __device__ uint16_t store(float x) {
        uint16_t h;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
        return h;
    }
    static __device__ uint32_t pack(float low, float high) {
        uint32_t pair;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
        return pair;
    }
    // As above: 0x64uu is 1024 + u; subtracting 1152 leaves q.
    static __device__ uint32_t unpack(uint32_t two) {
        uint32_t pair = __byte_perm(two ^ 0x8080, 0x64646464, 0x5140), bias = 0x64806480, out;
        asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(pair), "r"(bias));
        return out;
    }
    static __device__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

// Four 8 x 8 matrices of 16-bit values from shared memory; lane l names row l % 8 of matrix l / 8.
__device__ inline void ldmatrix(uint32_t out[4], const uint16_t *row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}
__device__ inline void ldmatrix_transposed(uint32_t out[4], const uint16_t *row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}

// 16 bytes to shared memory, or zeros; `from` is not read where !wanted.
__device__ inline void copy_async(void *to, const void *from, bool wanted) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(wanted ? 16 : 0) : "memory");
}
__device__ inline void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int PENDING> __device__ inline void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

} // namespace prefill
