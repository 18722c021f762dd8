// In place of src/backend/cuda/kern/gemm_ptx.cuh: the same functions on emulated clusters, whose blocks' shared memory lies side
// by side. A box that goes to several blocks lands in each when somebody there waits for it.
#pragma once

#include "backend/cuda/kern/prefill_flash_ptx.cuh"

#define PREFILL_CLUSTER(n)

namespace prefill {

inline uint8_t *shared_memory() {
    return emulated_shared();
}
inline void meet_cluster() {
    emulated_meet_cluster();
}

// The same place in another block of the cluster.
template <class T> inline T *place_in(int block, T *p) {
    return (T *)((uint8_t *)p + (block - emulated_block_of_cluster()) * EMULATED_SHARED);
}
inline void barrier_arrive_at(uint64_t *barrier, int block) {
    barrier_arrive(place_in(block, barrier));
}
inline void copy_box_to(int blocks, void *to, const prefill_map *map, int column, int row, uint64_t *barrier) {
    emulated_box box = box_of(to, map, column, row);
    for (int i = 0; blocks >> i != 0; i++) {
        if (blocks >> i & 1) {
            box.to = place_in(i, (uint8_t *)to);
            send_box(box, place_in(i, barrier));
        }
    }
}

inline void store_matrices(void *row, const uint32_t (&x)[4]) {
    struct all {
        uint8_t *row[32];
    };
    all *of = (all *)emulated_warp_memory();
    const int lane = emulated_lane();
    check_alignment(row, "stmatrix");
    of->row[lane] = (uint8_t *)row;
    emulated_warp_meet();
    for (int m = 0; m < 4; m++) {
        memcpy(of->row[m * 8 + lane / 4] + lane % 4 * 4, &x[m], 4);
    }
    emulated_warp_meet();
}
inline float reciprocal(float x) {
    return 1.0F / x;
}

} // namespace prefill
