// What gemm.cu needs PTX for beside prefill_flash_ptx.cuh: clusters of blocks, copies that land in all of them, matrices to shared
// memory. tests/cuda/prefill has plain C++ in its place.
#pragma once

#include "backend/cuda/kern/prefill_flash_ptx.cuh"

#if PREFILL_HAS_WGMMA
extern __shared__ __align__(1024) uint8_t flash_shared[];

#define PREFILL_CLUSTER(n) __cluster_dims__(n, 1, 1)

namespace prefill {

__device__ inline uint8_t *shared_memory() {
    return flash_shared;
}

// ---- Blocks of a cluster ----

// All threads of all its blocks.
__device__ inline void meet_cluster() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;\n" ::
                     : "memory");
}

// At the barrier that lies at the same place in block `block`. No release of the cluster's scope: its fence (MEMBAR.GPU) would hold a warp up
// in each block of k, and there is nothing to publish: what was read was read by wgmmas that are done.
__device__ inline void barrier_arrive_at(uint64_t *barrier, int block) {
    asm volatile("{\n"
                 ".reg .b32 at;\n"
                 "mapa.shared::cluster.u32 at, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [at];\n"
                 "}\n" ::"r"(shared_address(barrier)),
                 "r"(block)
                 : "memory");
}

// copy_box to the same place in all blocks of the mask; each block's own barrier counts the bytes.
__device__ inline void copy_box_to(int blocks, void *to, const prefill_map *map, int column, int row,
                                   uint64_t *barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"((uint16_t)blocks)
        : "memory");
}

// ---- The way out ----

// Four 8 x 8 matrices of 16-bit values to shared memory, as mma lays out sums; lane l names row l % 8 of matrix l / 8.
__device__ inline void store_matrices(void *row, const uint32_t (&x)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
}

// To a few units in the last place; x = 2^126 and more: 0.
__device__ inline float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

} // namespace prefill
#else
#define PREFILL_CLUSTER(n)
#endif
