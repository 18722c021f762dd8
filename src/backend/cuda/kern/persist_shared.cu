/*
 * The persistent decode kernel for ranks that share a GPU: one cooperative launch, of which blockIdx.y is the rank. Blocks of all of
 * them wait for one another, and that launch is the proof that all are there at once: the driver refuses what does not fit. A
 * block's registers leave no room for another on its SM, so that ranks have SMs of their own. Else it is persist.cu; that arguments lie in
 * an array costs some instructions, which a rank with a GPU of its own shall not pay.
 */
#include "backend/cuda/kern/persist_step.cuh"

#define DEFINE_PERSIST(name, act, int8, columns, kv)                                                                   \
    extern "C" __global__ void __launch_bounds__(PERSIST_ALL_THREADS, 1)                                               \
        persist_shared_##name(const __grid_constant__ persist_shared_args all) {                                       \
        PERSIST_BODY(act, int8, columns, kv, all.member[blockIdx.y]);                                                  \
    }

DEFINE_PERSISTS(DEFINE_PERSIST)
