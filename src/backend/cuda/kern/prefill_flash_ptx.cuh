// What Hopper's attention and matmuls need PTX for: wgmma, named barriers and, by barrier_ptx.cuh, tensor copies; sm_90a alone
// has all of it.
// tests/cuda/prefill has plain C++ in its place, which reads the same descriptors and swizzle.
#pragma once

#include "backend/cuda/kern/barrier_ptx.cuh"
#include "backend/cuda/kern/prefill_ptx.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PREFILL_HAS_WGMMA 1
#else
#define PREFILL_HAS_WGMMA 0
#endif

#if PREFILL_HAS_WGMMA
namespace prefill {

// `threads` meet at one of 16 places, of which __syncthreads is 0; or are expected there and do not wait.
__device__ inline void meet_at(int place, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(place), "r"(threads) : "memory");
}
__device__ inline void expected_at(int place, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(place), "r"(threads) : "memory");
}

// The same value in all lanes, and the compiler knows it.
__device__ inline int uniform(int value) {
    return __shfl_sync(0xffffffff, value, 0);
}

// ---- Registers of a warpgroup ----

template <int N> __device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ inline void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- wgmma: 64 rows by N columns, 16 of k at a time, by a warpgroup; goes on by itself until it is waited for ----

// An operand in shared memory, 128-byte swizzle. `group`: bytes from 8 rows of the tile to the next 8; `panel`: bytes from
// 64 columns to the next 64, where the columns are not k.
__device__ inline uint64_t operand(const void *p, int panel, int group) {
    return (uint64_t)(shared_address(p) >> 4 & 0x3fff) | (uint64_t)(panel >> 4) << 16 | (uint64_t)(group >> 4) << 32 |
           (uint64_t)1 << 62;
}
// The same operand, that many bytes on.
__device__ inline uint64_t further(uint64_t operand, int bytes) {
    return operand + (uint64_t)(bytes >> 4);
}

// Before the first of some, when their registers were written otherwise.
__device__ inline void wgmma_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void wgmma_end_group() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until all but the last PENDING groups are done. hold() follows for the sums.
template <int PENDING> __device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving reads and writes of sums across.
template <int N> __device__ inline void hold(float (&sums)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        asm volatile("" : "+f"(sums[i])::"memory");
    }
}

// clang-format off
#define R8(x, i) "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3]), \
    "+f"(x[i + 4]), "+f"(x[i + 5]), "+f"(x[i + 6]), "+f"(x[i + 7])
#define R16(x, i) R8(x, i), R8(x, i + 8)
#define R32(x, i) R16(x, i), R16(x, i + 16)
#define R48(x, i) R32(x, i), R16(x, i + 32)
#define R64(x, i) R32(x, i), R32(x, i + 32)
#define R80(x, i) R64(x, i), R16(x, i + 64)
#define R120(x, i) R80(x, i), R32(x, i + 80), R8(x, i + 112)
#define R128(x, i) R64(x, i), R64(x, i + 64)
#define TEXT8 \
    "%0, %1, %2, %3, %4, %5, %6, %7"
#define TEXT16 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define TEXT32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TEXT48 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define TEXT64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TEXT80 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define TEXT120 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119"
#define TEXT128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// x[64][N] = or += a[64][16] b[N][16]^T, both in shared memory, rows of k: scores, and all of wide.cu and gemm.cu.
#define SCORES(type, n, regs, a, b, add) \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " add ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" TEXT##regs "}, " a ", " b \
                 ", add, 1, 1, 0, 0;\n}\n" \
                 : R##regs(x, 0) : "l"(a_), "l"(b_), "r"(add_))
// x[64][N] += a[64][16] b[16][N], a in registers (of a thread as mma.m16n8k16 has them), b in shared memory, rows of columns.
#define VALUES(type, n, regs, a0, a1, a2, a3, b) \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" TEXT##regs "}, {" \
                 a0 ", " a1 ", " a2 ", " a3 "}, " b ", 1, 1, 1, 1;\n" \
                 : R##regs((x + FIRST), 0) : "r"(a_[0]), "r"(a_[1]), "r"(a_[2]), "r"(a_[3]), "l"(b_))
// clang-format on

template <class T, int KEYS>
__device__ inline void wgmma_scores(float (&x)[KEYS / 2], uint64_t a_, uint64_t b_, bool add) {
    static_assert(KEYS == 16 || KEYS == 32 || KEYS == 64 || KEYS == 96 || KEYS == 128 || KEYS == 160 || KEYS == 240 ||
                      KEYS == 256,
                  "the tiles there are");
    const int add_ = add;
    if constexpr (T::DTYPE == BF16) {
        if constexpr (KEYS == 16) {
            SCORES("bf16", 16, 8, "%8", "%9", "%10");
        }
        if constexpr (KEYS == 32) {
            SCORES("bf16", 32, 16, "%16", "%17", "%18");
        }
        if constexpr (KEYS == 64) {
            SCORES("bf16", 64, 32, "%32", "%33", "%34");
        }
        if constexpr (KEYS == 96) {
            SCORES("bf16", 96, 48, "%48", "%49", "%50");
        }
        if constexpr (KEYS == 128) {
            SCORES("bf16", 128, 64, "%64", "%65", "%66");
        }
        if constexpr (KEYS == 160) {
            SCORES("bf16", 160, 80, "%80", "%81", "%82");
        }
        if constexpr (KEYS == 240) {
            SCORES("bf16", 240, 120, "%120", "%121", "%122");
        }
        if constexpr (KEYS == 256) {
            SCORES("bf16", 256, 128, "%128", "%129", "%130");
        }
    } else {
        if constexpr (KEYS == 16) {
            SCORES("f16", 16, 8, "%8", "%9", "%10");
        }
        if constexpr (KEYS == 32) {
            SCORES("f16", 32, 16, "%16", "%17", "%18");
        }
        if constexpr (KEYS == 64) {
            SCORES("f16", 64, 32, "%32", "%33", "%34");
        }
        if constexpr (KEYS == 96) {
            SCORES("f16", 96, 48, "%48", "%49", "%50");
        }
        if constexpr (KEYS == 128) {
            SCORES("f16", 128, 64, "%64", "%65", "%66");
        }
        if constexpr (KEYS == 160) {
            SCORES("f16", 160, 80, "%80", "%81", "%82");
        }
        if constexpr (KEYS == 240) {
            SCORES("f16", 240, 120, "%120", "%121", "%122");
        }
        if constexpr (KEYS == 256) {
            SCORES("f16", 256, 128, "%128", "%129", "%130");
        }
    }
}

// Columns [2 FIRST, 2 FIRST + N) of the tile whose sums are x.
template <class T, int FIRST, int N, int SUMS>
__device__ inline void wgmma_values(float (&x)[SUMS], const uint32_t (&a_)[4], uint64_t b_) {
    static_assert(N == 16 || N == 32 || N == 64 || N == 128 || N == 256, "the tiles there are");
    if constexpr (T::DTYPE == BF16) {
        if constexpr (N == 16) {
            VALUES("bf16", 16, 8, "%8", "%9", "%10", "%11", "%12");
        }
        if constexpr (N == 32) {
            VALUES("bf16", 32, 16, "%16", "%17", "%18", "%19", "%20");
        }
        if constexpr (N == 64) {
            VALUES("bf16", 64, 32, "%32", "%33", "%34", "%35", "%36");
        }
        if constexpr (N == 128) {
            VALUES("bf16", 128, 64, "%64", "%65", "%66", "%67", "%68");
        }
        if constexpr (N == 256) {
            VALUES("bf16", 256, 128, "%128", "%129", "%130", "%131", "%132");
        }
    } else {
        if constexpr (N == 16) {
            VALUES("f16", 16, 8, "%8", "%9", "%10", "%11", "%12");
        }
        if constexpr (N == 32) {
            VALUES("f16", 32, 16, "%16", "%17", "%18", "%19", "%20");
        }
        if constexpr (N == 64) {
            VALUES("f16", 64, 32, "%32", "%33", "%34", "%35", "%36");
        }
        if constexpr (N == 128) {
            VALUES("f16", 128, 64, "%64", "%65", "%66", "%67", "%68");
        }
        if constexpr (N == 256) {
            VALUES("f16", 256, 128, "%128", "%129", "%130", "%131", "%132");
        }
    }
}

#undef SCORES
#undef VALUES
#undef TEXT8
#undef R8
#undef TEXT16
#undef R16
#undef TEXT32
#undef R32
#undef TEXT48
#undef R48
#undef TEXT64
#undef R64
#undef TEXT80
#undef R80
#undef TEXT120
#undef R120
#undef TEXT128
#undef R128

} // namespace prefill
#endif
