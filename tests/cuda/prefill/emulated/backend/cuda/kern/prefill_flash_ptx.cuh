// In place of src/backend/cuda/kern/prefill_flash_ptx.cuh: the same functions on emulated threads. Copies land when somebody
// waits for their barrier, wgmma runs when it is waited for, on what its operands then are; until then their results are
// rubbish. Operands are read by their descriptors as the PTX manual defines them: layout, strides and the 128-byte swizzle.
#pragma once

#include "backend/cuda/kern/prefill_ptx.cuh"

#define PREFILL_HAS_WGMMA 1

extern thread_local uint8_t flash_shared[];

// This block's part of it: a cluster's blocks lie side by side.
enum { EMULATED_SHARED = 1 << 18 };
static inline uint8_t *emulated_shared() {
    return flash_shared + emulated_block_of_cluster() * EMULATED_SHARED;
}

namespace prefill {

[[noreturn]] inline void flash_fatal(const char *what) {
    printf("FATAL %s\n", what);
    abort();
}

// ---- Barriers ----

struct emulated_box {
    uint8_t *to;
    std::vector<uint8_t> data; // of rows of 128 bytes, not yet swizzled
};
struct emulated_barrier {
    int expected, pending, phase;
    long bytes; // announced and not there
    std::vector<emulated_box> boxes;
};
extern std::map<void *, emulated_barrier> emulated_barriers;

inline emulated_barrier &barrier_at(uint64_t *barrier) {
    auto found = emulated_barriers.find(barrier);
    if (found == emulated_barriers.end()) {
        flash_fatal("mbarrier: not initialised");
    }
    return found->second;
}
inline void barrier_settle(emulated_barrier &b) {
    if (b.pending == 0 && b.bytes == 0) {
        b.phase ^= 1;
        b.pending = b.expected;
    }
}
inline void barrier_init(uint64_t *barrier, int arrivals) {
    check_alignment((void *)((uintptr_t)barrier * 2), "mbarrier");
    *barrier = 1;
    emulated_barriers[barrier] = {arrivals, arrivals, 0, 0, {}};
}
inline void barriers_are_set() {}
inline void barrier_arrive(uint64_t *barrier) {
    emulated_barrier &b = barrier_at(barrier);
    if (b.pending-- == 0) {
        flash_fatal("mbarrier: more arrivals than it expects");
    }
    barrier_settle(b);
}
inline void barrier_expect(uint64_t *barrier, int bytes) {
    barrier_at(barrier).bytes += bytes;
    barrier_arrive(barrier);
}

inline uint8_t *swizzled(uint32_t at) {
    return emulated_shared() + (at ^ (at >> 7 & 7) << 4);
}
inline void land_boxes(emulated_barrier &b) {
    for (const emulated_box &box : b.boxes) {
        for (size_t i = 0; i < box.data.size(); i++) {
            *swizzled((uint32_t)(box.to - emulated_shared() + i)) = box.data[i];
        }
        b.bytes -= (long)box.data.size();
    }
    b.boxes.clear();
    if (b.bytes < 0 && b.pending == 0) { // a cluster's other block may be ahead of who announces
        flash_fatal("mbarrier: more bytes than were announced");
    }
    barrier_settle(b);
}
inline void barrier_wait(uint64_t *barrier, int parity) {
    for (int i = 0;; i++) {
        emulated_barrier &b = barrier_at(barrier);
        if (!b.boxes.empty()) {
            land_boxes(b);
        }
        if (b.phase != parity) {
            return;
        }
        if (i == 1 << 20) {
            flash_fatal("mbarrier: waited for in vain");
        }
        emulated_yield();
    }
}
inline void meet_at(int place, int threads) {
    emulated_meet_at(place, threads, true);
}
inline void expected_at(int place, int threads) {
    emulated_meet_at(place, threads, false);
}
inline void show_to_async() {}

// ---- Copies ----

// What emulate_device.c's cuTensorMapEncodeTiled leaves in the map.
struct emulated_map {
    const uint8_t *base;
    uint64_t columns, rows, row_bytes;
    uint32_t box_columns, box_rows;
};

inline emulated_box box_of(void *to, const prefill_map *map, int column, int row) {
    emulated_map m;
    memcpy(&m, map, sizeof m);
    const uint32_t at = (uint32_t)((uint8_t *)to - emulated_shared());
    if (at % 1024 != 0 || m.box_columns * 2 != 128) {
        flash_fatal("a tensor copy: shared memory out of line with the swizzle");
    }
    emulated_box box = {(uint8_t *)to, std::vector<uint8_t>(m.box_rows * 128)};
    for (uint32_t r = 0; r < m.box_rows; r++) {
        for (uint32_t c = 0; c < m.box_columns; c++) {
            const bool inside = row >= 0 && column >= 0 && row + r < m.rows && column + c < m.columns;
            if (inside) {
                memcpy(&box.data[r * 128 + 2 * c], m.base + (row + r) * m.row_bytes + 2 * (column + c), 2);
            }
        }
    }
    return box;
}
inline void send_box(const emulated_box &box, uint64_t *barrier) {
    memset(box.to, 0xee, box.data.size());
    barrier_at(barrier).boxes.push_back(box);
}
inline void copy_box(void *to, const prefill_map *map, int column, int row, uint64_t *barrier) {
    send_box(box_of(to, map, column, row), barrier);
}
inline void copy_box_once(void *to, const prefill_map *map, int column, int row, uint64_t *barrier) {
    copy_box(to, map, column, row, barrier);
}

inline void prefetch_map(const prefill_map *) {}
inline int uniform(int value) {
    int *all = (int *)emulated_warp_memory();
    all[emulated_lane()] = value;
    emulated_warp_meet();
    const int first = all[0];
    emulated_warp_meet();
    return first;
}
template <int N> inline void take_registers() {}
template <int N> inline void give_registers() {}
inline float exp2_fast(float x) {
    return exp2f(x);
}

// ---- wgmma ----

inline uint64_t operand(const void *p, int panel, int group) {
    return (uint64_t)(((const uint8_t *)p - emulated_shared()) >> 4 & 0x3fff) | (uint64_t)(panel >> 4) << 16 |
           (uint64_t)(group >> 4) << 32 | (uint64_t)1 << 62;
}
inline uint64_t further(uint64_t operand, int bytes) {
    return operand + (uint64_t)(bytes >> 4);
}

struct operand_fields {
    uint32_t start, panel, group;
    explicit operand_fields(uint64_t d)
        : start((uint32_t)(d & 0x3fff) << 4), panel((uint32_t)(d >> 16 & 0x3fff) << 4),
          group((uint32_t)(d >> 32 & 0x3fff) << 4) {
        if (d >> 62 != 1 || (d >> 49 & 7) != 0) {
            flash_fatal("wgmma: an operand without the 128-byte swizzle");
        }
    }
    // Row i of a tile whose rows are k, 16 elements from `start` on.
    uint16_t by_rows_of_k(int i, int k) const {
        return *(const uint16_t *)swizzled(start + i / 8 * group + i % 8 * 128 + k * 2);
    }
    // Column i of a tile whose rows are columns, k from `start` on.
    uint16_t by_columns(int i, int k) const {
        return *(const uint16_t *)swizzled(start + i / 64 * panel + k / 8 * group + k % 8 * 128 + i % 64 * 2);
    }
};

struct emulated_wgmma {
    float *sums;
    int n;
    bool is_f16, of_registers, add;
    uint64_t a, b;
    uint32_t rows[2][8]; // of_registers: pairs of this thread's two rows of a
};
struct emulated_sums {
    float *at;
    std::vector<float> value;
};
struct emulated_group {
    std::vector<emulated_wgmma> wgmma;
    std::vector<emulated_sums> before;
};
extern std::deque<emulated_group> &emulated_groups(); // of this thread, the last one open

inline void wgmma_begin() {}
inline void wgmma_end_group() {
    emulated_groups().push_back({});
}

inline void note_wgmma(const emulated_wgmma &w) {
    std::deque<emulated_group> &groups = emulated_groups();
    if (groups.empty()) {
        groups.push_back({});
    }
    bool known = false;
    for (const emulated_group &g : groups) {
        for (const emulated_wgmma &other : g.wgmma) { // in flight: it goes on from those
            known = known || other.sums == w.sums;
        }
    }
    if (!known) {
        groups.back().before.push_back({w.sums, std::vector<float>(w.sums, w.sums + w.n / 2)});
        for (int i = 0; i < w.n / 2; i++) {
            w.sums[i] = NAN;
        }
    }
    groups.back().wgmma.push_back(w);
}

inline float half_of(bool is_f16, uint16_t h) {
    return is_f16 ? f16::load(h) : bf16::load(h);
}

inline void run_wgmma(const emulated_wgmma &w) {
    const int lane = threadIdx.x % 32, first_row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    float a[2][16];
    for (int r = 0; r < 2; r++) {
        for (int k = 0; k < 16; k++) {
            const uint16_t h = w.of_registers ? (uint16_t)(w.rows[r][k / 2] >> k % 2 * 16)
                                              : operand_fields(w.a).by_rows_of_k(first_row + 8 * r, k);
            a[r][k] = half_of(w.is_f16, h);
        }
    }
    const operand_fields b(w.b);
    for (int i = 0; i < w.n / 8; i++) {
        for (int c = 0; c < 2; c++) {
            const int column = i * 8 + lane % 4 * 2 + c;
            float x[16];
            for (int k = 0; k < 16; k++) {
                x[k] = half_of(w.is_f16, w.of_registers ? b.by_columns(column, k) : b.by_rows_of_k(column, k));
            }
            for (int r = 0; r < 2; r++) {
                float sum = w.add ? w.sums[4 * i + 2 * r + c] : 0;
                for (int k = 0; k < 16; k++) {
                    sum += a[r][k] * x[k];
                }
                w.sums[4 * i + 2 * r + c] = sum;
            }
        }
    }
}

template <int PENDING> inline void wgmma_wait() {
    std::deque<emulated_group> &groups = emulated_groups();
    while (groups.size() > PENDING + 1) { // the last one is open
        for (const emulated_sums &s : groups.front().before) {
            memcpy(s.at, s.value.data(), s.value.size() * sizeof(float));
        }
        for (const emulated_wgmma &w : groups.front().wgmma) {
            run_wgmma(w);
        }
        groups.pop_front();
    }
}
template <int N> inline void hold(float (&)[N]) {}

template <class T, int KEYS> inline void wgmma_scores(float (&x)[KEYS / 2], uint64_t a, uint64_t b, bool add) {
    note_wgmma({x, KEYS, T::DTYPE == F16, false, add, a, b, {}});
}

template <class T, int FIRST, int N, int SUMS>
inline void wgmma_values(float (&x)[SUMS], const uint32_t (&a)[4], uint64_t b) {
    static_assert(FIRST + N / 2 <= SUMS, "sums there are");
    emulated_wgmma w = {x + FIRST, N, T::DTYPE == F16, true, true, 0, b, {}};
    uint32_t(*all)[4] = (uint32_t(*)[4])emulated_warp_memory();
    const int lane = emulated_lane();
    memcpy(all[lane], a, sizeof a);
    emulated_warp_meet();
    for (int i = 0; i < 8; i++) { // pair i of k: lane i % 4 of the four that share the rows has it
        for (int r = 0; r < 2; r++) {
            w.rows[r][i] = all[lane / 4 * 4 + i % 4][r + i / 4 * 2];
        }
    }
    emulated_warp_meet();
    note_wgmma(w);
}

} // namespace prefill
