/* In place of kern/persist_ptx.cuh where kernels run on the CPU: see tests/cuda/decode/decode_emulate.cpp. */
#ifndef LS_BACKEND_CUDA_PERSIST_PTX_CUH
#define LS_BACKEND_CUDA_PERSIST_PTX_CUH

#include "backend/cuda/kern/barrier_ptx.cuh"
#include "backend/cuda/kern/exchange_ptx.cuh"

DEVICE void store_word(uint64_t *to, uint64_t word) {
    store_peer_word(to, word);
}
DEVICE ulonglong2 load_words(const uint64_t *from) {
    return load_peer_words(from);
}
DEVICE void store_words(uint64_t *to, uint64_t first, uint64_t second) {
    store_peer_words(to, first, second);
}
DEVICE uint32_t load_shared_flag(const uint32_t *from) {
    return *from;
}
DEVICE void store_shared_flag(uint32_t *to, uint32_t word) {
    *to = word;
}

#endif
