/* In place of kern/exchange_ptx.cuh where kernels run on the CPU: see tests/cuda/exchange/emulate.cpp. */
#ifndef LS_BACKEND_CUDA_EXCHANGE_PTX_CUH
#define LS_BACKEND_CUDA_EXCHANGE_PTX_CUH

#include "backend/cuda/kern/ptx.cuh"

DEVICE void store_peer_word(uint64_t *to, uint64_t word) {
    *to = word;
}

DEVICE uint64_t load_peer_word(const uint64_t *from) {
    return *from;
}

DEVICE void store_peer_words(uint64_t *to, uint64_t first, uint64_t second) {
    emulate_check((uintptr_t)to % 16 == 0, "a pair of words is not aligned");
    to[0] = first;
    to[1] = second;
}

DEVICE ulonglong2 load_peer_words(const uint64_t *from) {
    emulate_check((uintptr_t)from % 16 == 0, "a pair of words is not aligned");
    return {from[0], from[1]};
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

DEVICE uint64_t exchange_time() {
    return emulate_time();
}

DEVICE void between_looks() {
    emulate_look_again();
}

#endif
