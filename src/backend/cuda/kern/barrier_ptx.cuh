/*
 * Tensor copies and the barriers in shared memory that they report to, for kernels of sm_90 and later alone. Beside ptx.cuh and
 * prefill_ptx.cuh; tests/cuda has plain C++ in its place.
 */
#ifndef LS_BACKEND_CUDA_BARRIER_PTX_CUH
#define LS_BACKEND_CUDA_BARRIER_PTX_CUH

#include <stdint.h>

#include "backend/cuda/kern/l2_policy.h"

__device__ inline uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- Barriers: a phase ends when all have arrived and all bytes that were announced are there ---- */

__device__ inline void barrier_init(uint64_t *barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

/* After all of them, by the thread that did it; __syncthreads follows. */
__device__ inline void barriers_are_set() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void barrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/* Arrives, and announces bytes. */
__device__ inline void barrier_expect(uint64_t *barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

/* Whether the phase of this parity has ended; may wait for it a while. The one before the first has. */
__device__ inline bool barrier_passed(uint64_t *barrier, uint32_t parity) {
    uint32_t passed;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}\n"
                 : "=r"(passed)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    return passed != 0;
}

/* Until it has. */
__device__ inline void barrier_wait(uint64_t *barrier, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}\n" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

/* What this thread wrote to shared memory becomes visible to tensor copies and wgmma, after a barrier to those of others. */
__device__ inline void show_to_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- Copies ---- */

/* A box of a CUtensorMap's matrix from (column, row) on; its bytes count for the barrier, and what lies outside of the matrix is
 * 0. */
__device__ inline void copy_box(void *to, const void *map, int column, int row, uint64_t *barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
        "[%4];" ::"r"(shared_address(to)),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
        : "memory");
}

/* The same of what a step reads once: L2 gives it up first. */
__device__ inline void copy_box_once(void *to, const void *map, int column, int row, uint64_t *barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
        "[%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "l"(L2_EVICT_FIRST)
        : "memory");
}

/* The map lies in global memory, where the host wrote it: what an SM may remember of another one there is forgotten. By a thread
 * of the block, before the block's first copy by it. */
__device__ inline void renew_map(const void *map) {
    asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
}

/* The map itself comes to where copies look for it. */
__device__ inline void prefetch_map(const void *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

#endif
