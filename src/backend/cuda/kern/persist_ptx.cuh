/*
 * What the persistent decode kernel needs besides that is written in PTX. tests/cuda has plain C++ in its place.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_PTX_CUH
#define LS_BACKEND_CUDA_PERSIST_PTX_CUH

#include "backend/cuda/kern/barrier_ptx.cuh"
#include "backend/cuda/kern/exchange_ptx.cuh"

/* Words as exchange_ptx.cuh has them, that stay on this GPU. */
DEVICE void store_word(uint64_t *to, uint64_t word) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

DEVICE ulonglong2 load_words(const uint64_t *from) {
    ulonglong2 words;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(words.x), "=l"(words.y) : "l"(from) : "memory");
    return words;
}

DEVICE void store_words(uint64_t *to, uint64_t first, uint64_t second) {
    asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(first), "l"(second) : "memory");
}

/* A word in shared memory that another warp may change at any time. */
DEVICE uint32_t load_shared_flag(const uint32_t *from) {
    uint32_t word;
    asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(word) : "r"(shared_address(from)) : "memory");
    return word;
}

DEVICE void store_shared_flag(uint32_t *to, uint32_t word) {
    asm volatile("st.volatile.shared.u32 [%0], %1;" ::"r"(shared_address(to)), "r"(word) : "memory");
}

#endif
