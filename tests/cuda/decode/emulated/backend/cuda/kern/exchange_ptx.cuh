/* In place of kern/exchange_ptx.cuh where kernels run on the CPU: see tests/cuda/fibers.h. */
#ifndef LS_BACKEND_CUDA_EXCHANGE_PTX_CUH
#define LS_BACKEND_CUDA_EXCHANGE_PTX_CUH

#include "backend/cuda/kern/ptx.cuh"

DEVICE void store_peer_word(uint64_t *to, uint64_t word) {
    __atomic_store_n(to, word, __ATOMIC_RELAXED);
}

DEVICE uint64_t load_peer_word(const uint64_t *from) {
    return __atomic_load_n(from, __ATOMIC_RELAXED);
}

DEVICE void store_peer_words(uint64_t *to, uint64_t first, uint64_t second) {
    emulate_check((uintptr_t)to % 16 == 0, "a pair of words is not aligned");
    store_peer_word(to, first);
    store_peer_word(to + 1, second);
}

DEVICE ulonglong2 load_peer_words(const uint64_t *from) {
    emulate_check((uintptr_t)from % 16 == 0, "a pair of words is not aligned");
    return {load_peer_word(from), load_peer_word(from + 1)};
}

DEVICE uint32_t load_flag(const uint32_t *from) {
    return *from;
}

DEVICE void store_flag(uint32_t *to, uint32_t value) {
    *to = value;
}

DEVICE void store_flag_behind_all(uint32_t *to, uint32_t value) {
    *to = value;
}

DEVICE uint32_t load_flag_before_all(const uint32_t *from) {
    return *from;
}

DEVICE uint64_t global_time() {
    return emulate_time();
}

DEVICE void between_looks() {
    emulate_look_again();
}

#endif
