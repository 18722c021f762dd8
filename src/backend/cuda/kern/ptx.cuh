/*
 * All that is written in PTX: loads with hints, mma, programmatic dependent launch. tests/cuda has plain C++ in its place, to
 * run kernels where there is no GPU.
 */
#ifndef LS_BACKEND_CUDA_PTX_CUH
#define LS_BACKEND_CUDA_PTX_CUH

#include "backend/cuda/kern/decode_args.h"
#include "backend/cuda/kern/l2_policy.h"

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__

/* ---- Programmatic dependent launch: no-ops unless the launch asks for it ---- */

/* Before anything is read that an earlier kernel writes, and before anything is written. Weights, the step and what earlier
 * steps wrote may be read before. Some block of every kernel must wait, so that a kernel ends after those before it. */
DEVICE void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* ---- Loads ---- */

DEVICE void prefetch_to_l2(const void *address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

/* 16 bytes of a weight, which is read once: not into L1. Zeros where !wanted. (Not ld.global.nc, which ptxas would move
 * behind wait_for_earlier_kernels.) */
DEVICE uint4 load_weight(const void *address, bool wanted) {
    uint4 v;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %5, 0;\n"
                 "mov.b32 %0, 0;\n"
                 "mov.b32 %1, 0;\n"
                 "mov.b32 %2, 0;\n"
                 "mov.b32 %3, 0;\n"
                 "@p ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 "}\n"
                 : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
                 : "l"(address), "r"((int)wanted));
    return v;
}

/* 16 bytes that an earlier kernel wrote, or this block before a barrier. */
DEVICE uint4 load_shared_by_rows(const void *address, bool wanted) {
    uint4 v;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %5, 0;\n"
                 "mov.b32 %0, 0;\n"
                 "mov.b32 %1, 0;\n"
                 "mov.b32 %2, 0;\n"
                 "mov.b32 %3, 0;\n"
                 "@p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 "}\n"
                 : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
                 : "l"(address), "r"((int)wanted)
                 : "memory");
    return v;
}

/* The same from shared memory or global memory, whichever the address means. */
DEVICE uint4 load_from_anywhere(const void *address, bool wanted) {
    uint4 v;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %5, 0;\n"
                 "mov.b32 %0, 0;\n"
                 "mov.b32 %1, 0;\n"
                 "mov.b32 %2, 0;\n"
                 "mov.b32 %3, 0;\n"
                 "@p ld.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 "}\n"
                 : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
                 : "l"(address), "r"((int)wanted)
                 : "memory");
    return v;
}

/* ---- Copies to shared memory that go on by themselves ---- */

/* 16 bytes, or zeros where !wanted (nothing is read). Both addresses are multiples of 16. */
DEVICE void copy_async(void *to, const void *from, bool wanted) {
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(wanted ? 16 : 0) : "memory");
}

/* The same for weights, keys and values, which a step reads once and whose neighbours it wants soon. L2 gives them up first, so that
 * what kernels leave for one another stays there. */
DEVICE void copy_once(void *to, const void *from, bool wanted) {
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::256B [%0], [%1], 16, %2, %3;" ::"r"(at), "l"(from),
                 "r"(wanted ? 16 : 0), "l"(L2_EVICT_FIRST)
                 : "memory");
}

/* What this thread copies from here on belongs to a new group. */
DEVICE void end_copy_group() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until all but the last PENDING of this thread's groups are there; others see them after a barrier. */
template <int PENDING> DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* The same for a number known at run time: 3, 4, 5 or 7. */
DEVICE void wait_for_copies_but(int pending) {
    asm volatile("{\n"
                 ".reg .pred p<4>;\n"
                 "setp.lt.s32 p0, %0, 4;\n"
                 "setp.eq.s32 p1, %0, 4;\n"
                 "setp.eq.s32 p2, %0, 5;\n"
                 "setp.gt.s32 p3, %0, 5;\n"
                 "@p0 cp.async.wait_group 3;\n"
                 "@p1 cp.async.wait_group 4;\n"
                 "@p2 cp.async.wait_group 5;\n"
                 "@p3 cp.async.wait_group 7;\n"
                 "}\n" ::"r"(pending)
                 : "memory");
}

/* ... : 0, 1 or 2. */
DEVICE void wait_for_copies_but_few(int pending) {
    asm volatile("{\n"
                 ".reg .pred p<3>;\n"
                 "setp.eq.s32 p0, %0, 0;\n"
                 "setp.eq.s32 p1, %0, 1;\n"
                 "setp.gt.s32 p2, %0, 1;\n"
                 "@p0 cp.async.wait_group 0;\n"
                 "@p1 cp.async.wait_group 1;\n"
                 "@p2 cp.async.wait_group 2;\n"
                 "}\n" ::"r"(pending)
                 : "memory");
}

/* ---- Some of a block's warps ---- */

/* `threads` of the block, whole warps, meet at one of 16 places, of which __syncthreads is 0. */
DEVICE void meet_at(int place, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(place), "r"(threads) : "memory");
}

/* ---- Matrices of 8 x 8 16-bit elements: lane l holds elements 2 (l % 4) and the next of row l / 4 ---- */

/* Four of them from shared memory: lane l names row l % 8 of matrix l / 8. */
DEVICE uint4 load_matrices(const void *row) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
    return v;
}

/* ... each transposed. */
DEVICE uint4 load_transposed(const void *row) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
    return v;
}

DEVICE uint32_t transposed(uint32_t matrix) {
    uint32_t out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(matrix));
    return out;
}

/* ---- mma.m16n8k16: acc[16][8] += a[16][16] b[16][8], f32 sums ---- */

template <int DTYPE>
DEVICE void mma(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    if (DTYPE == KERN_BF16) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
}

#endif
