/* In place of kern/barrier_ptx.cuh where kernels run on the CPU: see tests/cuda/decode/decode_emulate.cpp. A barrier: bit 63 the
 * phase, 48 .. the arrivals of a phase, 32 .. those to come, 0 .. bytes to come, signed. Copies come in when somebody looks at a
 * barrier. */
#ifndef LS_BACKEND_CUDA_BARRIER_PTX_CUH
#define LS_BACKEND_CUDA_BARRIER_PTX_CUH

#include "backend/cuda/kern/ptx.cuh"

static void emulate_barrier_add(uint64_t *barrier, int arrivals, int32_t bytes) {
    uint64_t phase = *barrier >> 63, wanted = *barrier >> 48 & 0x7fff, left = (*barrier >> 32 & 0xffff) - arrivals;
    const int32_t pending = (int32_t)(uint32_t)*barrier + bytes;
    emulate_check(left <= wanted, "more arrivals at a barrier than a phase has");
    if (left == 0 && pending == 0) {
        phase ^= 1;
        left = wanted;
    }
    *barrier = phase << 63 | wanted << 48 | left << 32 | (uint32_t)pending;
}
DEVICE void barrier_init(uint64_t *barrier, int n) {
    *barrier = (uint64_t)n << 48 | (uint64_t)n << 32;
}
DEVICE void barriers_are_set() {}
DEVICE void barrier_expect(uint64_t *barrier, uint32_t bytes) {
    emulate_barrier_add(barrier, 0, (int32_t)bytes);
    emulate_barrier_add(barrier, 1, 0);
}
DEVICE void barrier_arrive(uint64_t *barrier) {
    emulate_barrier_add(barrier, 1, 0);
}
DEVICE bool barrier_passed(uint64_t *barrier, uint32_t parity) {
    emulate_some_bulk();
    return *barrier >> 63 != parity;
}
DEVICE void copy_box(void *to, const void *map, int column, int row, uint64_t *barrier) {
    bulk b = {static_cast<char *>(to), {}, column, row, barrier};
    memcpy(&b.map, map, sizeof b.map);
    const size_t at = b.to - reinterpret_cast<char *>(persist_room);
    emulate_check(at % (b.map.swizzled ? 1024 : 128) == 0 && at + b.bytes() <= sizeof persist_room, "a box out of line");
    memset(to, 0xff, b.bytes());
    bulks.push_back(b);
}
DEVICE void copy_box_once(void *to, const void *map, int column, int row, uint64_t *barrier) {
    copy_box(to, map, column, row, barrier);
}
DEVICE void prefetch_map(const void *) {}
DEVICE void renew_map(const void *) {}
static void emulate_some_bulk() {
    static thread_local uint32_t random = 1;
    random = random * 1664525u + 1013904223u;
    if (!bulks.empty() && random >> 30 != 0) { /* any of the first ones: they come in no order */
        const size_t i = (random >> 8) % (bulks.size() < 24 ? bulks.size() : 24);
        const bulk b = bulks[i];
        bulks.erase(bulks.begin() + i);
        b.land();
        emulate_barrier_add(b.barrier, 0, -(int32_t)b.bytes());
    }
}
DEVICE void show_to_async() {}

#endif
