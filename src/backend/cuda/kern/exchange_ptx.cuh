/*
 * What exchanges need that is written in PTX. Beside ptx.cuh; tests/cuda has plain C++ in its place.
 */
#ifndef LS_BACKEND_CUDA_EXCHANGE_PTX_CUH
#define LS_BACKEND_CUDA_EXCHANGE_PTX_CUH

#include "backend/cuda/kern/ptx.cuh"

/* Words of 8 bytes to and from other GPUs: each whole, no order among them. */
DEVICE void store_peer_word(uint64_t *to, uint64_t word) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

DEVICE uint64_t load_peer_word(const uint64_t *from) {
    uint64_t word;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
    return word;
}

/* Two neighbours, from a multiple of 16 bytes on; each is whole, not both together. */
DEVICE void store_peer_words(uint64_t *to, uint64_t first, uint64_t second) {
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(first), "l"(second) : "memory");
}

DEVICE ulonglong2 load_peer_words(const uint64_t *from) {
    ulonglong2 words;
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(words.x), "=l"(words.y) : "l"(from) : "memory");
    return words;
}

DEVICE uint32_t load_flag(const uint32_t *from) {
    uint32_t value;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

DEVICE void store_flag(uint32_t *to, uint32_t value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

/* What this GPU's kernels wrote before comes first. */
DEVICE void store_flag_behind_all(uint32_t *to, uint32_t value) {
    asm volatile("fence.acq_rel.sys;\n"
                 "st.release.sys.global.u32 [%0], %1;" ::"l"(to),
                 "r"(value)
                 : "memory");
}

/* What comes after sees all that whoever stored the flag had written before. */
DEVICE uint32_t load_flag_before_all(const uint32_t *from) {
    uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

/* Nanoseconds; how fine it counts is the chip's business, a microsecond or so. */
DEVICE uint64_t global_time() {
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

/* Between two looks. */
DEVICE void between_looks() {}

#endif
