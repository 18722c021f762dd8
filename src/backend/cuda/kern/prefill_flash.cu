// Prefill's attention on Hopper: tiles of 128 pairs (prefill_tile.cuh), keys in blocks of 128 (64 where d = 256), by wgmma.
//
//   prefill_flash_<dtype>_<d>   KV in the run dtype
//
// A block of 384 threads lives as long as the kernel and takes tiles from the step's list, longest first, in turns that
// reverse (0 1 2, 5 4 3, 6 7 8), so that all blocks end at about the same time. Its first warpgroup loads: a thread brings
// pages of K and V by tensor copies, three warps bring q. The other two compute, 64 pairs each, and take turns at the tensor
// cores: while one's matrix products run, the other has its softmax. Each begins the next block's scores before this
// block's values, so that its own softmax of the next block runs beside these.
//
// Keys pass in order from the page of the first key that the tile attends to, so a pair's sums depend on its own sequence's
// positions and on where the chunk of rows begins. Sums are f32; probabilities round to the run dtype before they multiply V.
//
// Shared memory: q [panel][128 pairs][64], then for each stage K [panel][KEYS][64] and V the same, then barriers. Panels
// begin on borders of 1024 bytes, and 16-byte piece c of row r lies at c ^ r % 8: what the swizzle of operands means.
#include "backend/cuda/kern/prefill_flash_ptx.cuh"
#include "backend/cuda/kern/prefill_tile.cuh"

using namespace prefill;

#if PREFILL_HAS_WGMMA
extern __shared__ __align__(1024) uint8_t flash_shared[];

enum {
    PAIRS = PREFILL_FLASH_PAIRS,
    STAGES = PREFILL_FLASH_STAGES,
    GROUP = 128,       // threads of a warpgroup
    ROW_BYTES = 128,   // of a panel
    LOADERS_OF_Q = 96, // threads
    WARPS_AT_WORK = 8, // of the two warpgroups that compute
    TURN_PLACE = 1,    // named barriers: whose turn it is, [2]; a warpgroup's own, [2]
    GROUP_PLACE = 3
};

struct flash_barriers {
    uint64_t q_full, q_empty, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
};
static_assert(sizeof(flash_barriers) == 8 * PREFILL_FLASH_BARRIERS, "the host counts them");

template <int D> struct flash_memory {
    static constexpr int KEYS = PREFILL_FLASH_KEYS(D), PANELS = PREFILL_FLASH_PANELS(D);
    static constexpr int Q_PANEL = PAIRS * ROW_BYTES, PANEL = KEYS * ROW_BYTES, PAGE = CUDA_PAGE_TOKENS * ROW_BYTES;

    static __device__ uint8_t *q() {
        return flash_shared;
    }
    static __device__ uint8_t *k(int stage) {
        return flash_shared + PANELS * (Q_PANEL + 2 * stage * PANEL);
    }
    static __device__ uint8_t *v(int stage) {
        return k(stage) + PANELS * PANEL;
    }
    static __device__ flash_barriers *barriers() {
        return (flash_barriers *)k(STAGES);
    }
};

struct flash_work {
    attn_tile t;
    int kv_head;
    int first_key, n_blocks;
};

// What this block does in its turn `turn`; false: no more.
static __device__ bool find_work(flash_work *w, const prefill_flash_args &a, int turn, int keys) {
    const int place = turn % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x, at = turn * gridDim.x + place;
    if (at >= a.n_tiles * a.n_kv) {
        return false;
    }
    const cuda_tile *tile = of_step<cuda_tile>(a.step, a.step->tile) + at / a.n_kv;
    const cuda_seq *seq = of_step<cuda_seq>(a.step, a.step->seq) + tile->seq;
    w->t = tile_of(a.step, seq, tile->index, a.n_heads / a.n_kv, PAIRS, a.window);
    w->kv_head = at % a.n_kv;
    w->first_key = w->t.lo / CUDA_PAGE_TOKENS * CUDA_PAGE_TOKENS;
    w->n_blocks = (w->t.pos_last - w->first_key) / keys + 1;
    return true;
}

// ---- Loading ----

// Pages of a block of K or V: those that the tile has keys of.
template <int D>
static __device__ void load_block(uint8_t *to, const prefill_map *map, const prefill_flash_args &a, const flash_work &w,
                                  int block, uint64_t *full) {
    using memory = flash_memory<D>;
    const int first = w.first_key + block * memory::KEYS;
    const int n_pages = min(memory::KEYS / CUDA_PAGE_TOKENS, (w.t.pos_last - first) / CUDA_PAGE_TOKENS + 1);
    barrier_expect(full, n_pages * memory::PANELS * memory::PAGE);
    for (int i = 0; i < n_pages; i++) {
        const int page = a.layer * a.n_pages + w.t.page[first / CUDA_PAGE_TOKENS + i];
        const int row = (page * a.n_kv + w.kv_head) * CUDA_PAGE_TOKENS;
        for (int panel = 0; panel < memory::PANELS; panel++) {
            copy_box(to + panel * memory::PANEL + i * memory::PAGE, map, panel * 64, row, full);
        }
    }
}

// One thread.
template <int D> static __device__ void load_keys(const prefill_flash_args &a) {
    using memory = flash_memory<D>;
    flash_barriers *bar = memory::barriers();
    flash_work w;
    int n = 0; // blocks so far
    for (int turn = 0; find_work(&w, a, turn, memory::KEYS); turn++) {
        for (int block = 0; block < w.n_blocks; block++, n++) {
            const int stage = n % STAGES, parity = n / STAGES % 2;
            barrier_wait(&bar->k_empty[stage], parity ^ 1);
            load_block<D>(memory::k(stage), &a.k_map, a, w, block, &bar->k_full[stage]);
            barrier_wait(&bar->v_empty[stage], parity ^ 1);
            load_block<D>(memory::v(stage), &a.v_map, a, w, block, &bar->v_full[stage]);
        }
    }
}

// The pairs' q, zeros behind the last: three warps.
template <int D> static __device__ void load_q(const prefill_flash_args &a) {
    using memory = flash_memory<D>;
    constexpr int PIECES = D / 8;
    flash_barriers *bar = memory::barriers();
    const int64_t row_length = (int64_t)(a.n_heads + 2 * a.n_kv) * D;
    flash_work w;
    for (int turn = 0; find_work(&w, a, turn, memory::KEYS); turn++) {
        barrier_wait(&bar->q_empty, turn % 2 ^ 1);
        for (int i = threadIdx.x - 32; i < PAIRS * PIECES; i += LOADERS_OF_Q) {
            const int pair = i / PIECES, piece = i % PIECES;
            const bool wanted = pair < w.t.n;
            const int known = wanted ? pair : 0;
            const int64_t head = (int64_t)w.kv_head * w.t.group + w.t.head(known);
            const uint16_t *from =
                (const uint16_t *)a.q + (w.t.first_row + w.t.row(known)) * row_length + head * D + piece * 8;
            copy_async(memory::q() + piece / 8 * memory::Q_PANEL + pair * ROW_BYTES + (piece % 8 ^ pair % 8) * 16, from,
                       wanted);
        }
        copy_commit();
        copy_wait<0>();
        show_to_async();
        barrier_arrive(&bar->q_full);
    }
}

// ---- Computing ----

// What a thread of a computing warpgroup holds: of two pairs (index 0: row lane / 4 of its warp's 16, index 1: eight on).
template <int D> struct flash_rows {
    static constexpr int KEYS = flash_memory<D>::KEYS;
    float s[KEYS / 2]; // scores, then probabilities: 4 for each 8 keys, as mma lays them out
    float o[D / 2];
    uint32_t p[KEYS / 16][4]; // probabilities in the run dtype: operands of 16 keys each
    float max[2], sum[2];     // sum: of this thread's keys alone
    float shrink[2];          // what a new maximum makes of sums so far
    int pos[2];
};

template <class T, int D> static __device__ void begin_scores(flash_rows<D> &x, int group, int stage) {
    using memory = flash_memory<D>;
    const uint64_t q = operand(memory::q() + group * 64 * ROW_BYTES, 0, 8 * ROW_BYTES);
    const uint64_t k = operand(memory::k(stage), 0, 8 * ROW_BYTES);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        wgmma_scores<T, memory::KEYS>(x.s, further(q, i / 4 * memory::Q_PANEL + i % 4 * 32),
                                      further(k, i / 4 * memory::PANEL + i % 4 * 32), i > 0);
    }
    wgmma_end_group();
}

template <class T, int D> static __device__ void begin_values(flash_rows<D> &x, int stage) {
    using memory = flash_memory<D>;
    constexpr int N = D == 80 || D == 96 ? 64 : D; // and the rest of these
    const uint64_t v = operand(memory::v(stage), memory::PANEL, 8 * ROW_BYTES);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < memory::KEYS / 16; i++) {
        wgmma_values<T, 0, N>(x.o, x.p[i], further(v, i * 16 * ROW_BYTES));
        if constexpr (N < D) {
            wgmma_values<T, N / 2, D - N>(x.o, x.p[i], further(v, memory::PANEL + i * 16 * ROW_BYTES));
        }
    }
    wgmma_end_group();
}

// Rows [n, KEYS) of V are no keys of the tile and may hold anything, which must not meet even a zero. Both warpgroups do it,
// each for its own products.
template <int D> static __device__ void clear_values(int stage, int n, int group) {
    using memory = flash_memory<D>;
    for (int i = threadIdx.x % GROUP; i < (memory::KEYS - n) * 8; i += GROUP) {
#pragma unroll
        for (int panel = 0; panel < memory::PANELS; panel++) {
            *(uint4 *)(memory::v(stage) + panel * memory::PANEL + n * ROW_BYTES + i * 16) = make_uint4(0, 0, 0, 0);
        }
    }
    show_to_async();
    meet_at(GROUP_PLACE + group, GROUP);
}

// Of scores of keys [first, first + KEYS): probabilities relative to the maximum so far.
template <int D> static __device__ void softmax(flash_rows<D> &x, const flash_work &w, int first, float scale) {
    constexpr int KEYS = flash_rows<D>::KEYS;
    const attn_tile &t = w.t;
    if (first + KEYS - 1 > t.pos(0) || (t.window > 0 && first <= t.pos_last - t.window)) {
        const int mine = first + threadIdx.x % 4 * 2;
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
            if (!t.attends(x.pos[i % 4 / 2], mine + i / 4 * 8 + i % 2)) {
                x.s[i] = -INFINITY;
            }
        }
    }
    float max[4], sum[4] = {}, base[2];
#pragma unroll
    for (int c = 0; c < 4; c++) {
        max[c] = x.s[c];
    }
#pragma unroll
    for (int i = 4; i < KEYS / 2; i++) {
        max[i % 4] = fmaxf(max[i % 4], x.s[i]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = fmaxf(x.max[r], fmaxf(max[2 * r], max[2 * r + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 2));
        base[r] = most == -INFINITY ? 0 : most * scale; // nothing attended to yet
        x.shrink[r] = exp2_fast(x.max[r] * scale - base[r]);
        x.max[r] = most;
    }
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        x.s[i] = exp2_fast(fmaf(x.s[i], scale, -base[i % 4 / 2]));
        sum[i % 4] += x.s[i];
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        x.sum[r] = x.sum[r] * x.shrink[r] + (sum[2 * r] + sum[2 * r + 1]);
    }
}

// Probabilities become operands; sums so far shrink to the new maximum.
template <class T, int D> static __device__ void end_block(flash_rows<D> &x) {
#pragma unroll
    for (int i = 0; i < D / 2; i++) {
        x.o[i] *= x.shrink[i % 4 / 2];
    }
#pragma unroll
    for (int i = 0; i < flash_rows<D>::KEYS / 2; i += 2) {
        x.p[i / 8][i / 2 % 4] = T::pack(x.s[i], x.s[i + 1]);
    }
}

template <class T, int D>
static __device__ void store(const prefill_flash_args &a, const flash_work &w, flash_rows<D> &x, const int pair[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = x.sum[r];
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        const float by = 1.0F / sum;
        if (pair[r] < w.t.n) {
            const int64_t row = w.t.first_row + w.t.row(pair[r]),
                          head = (int64_t)w.kv_head * w.t.group + w.t.head(pair[r]);
            uint32_t *out = (uint32_t *)((uint16_t *)a.out + (row * a.n_heads + head) * D) + threadIdx.x % 4;
#pragma unroll
            for (int i = 0; i < D / 8; i++) {
                out[i * 4] = T::pack(x.o[4 * i + 2 * r] * by, x.o[4 * i + 2 * r + 1] * by);
            }
        }
    }
}

// Every warp of the two warpgroups says so once.
static __device__ void release(uint64_t *empty) {
    if (threadIdx.x % 32 == 0) {
        barrier_arrive(empty);
    }
}

template <class T, int D> static __device__ void compute(const prefill_flash_args &a, int group) {
    using memory = flash_memory<D>;
    flash_barriers *bar = memory::barriers();
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int pair[2] = {group * 64 + warp * 16 + lane / 4, group * 64 + warp * 16 + lane / 4 + 8};
    const float scale = a.scale * 1.44269504F; // exponentials to base 2
    flash_work w;
    int n = 0; // blocks of earlier tiles
    if (group == 1) {
        expected_at(TURN_PLACE, 2 * GROUP); // the first turn is the other's
    }
    for (int turn = 0; find_work(&w, a, turn, memory::KEYS); n += w.n_blocks, turn++) {
        const bool both = w.t.n > 64; // else only the first has pairs
        barrier_wait(&bar->q_full, turn % 2);
        if (group == 1 && !both) {
            for (int i = n; i < n + w.n_blocks; i++) {
                barrier_wait(&bar->k_full[i % STAGES], i / STAGES % 2);
                release(&bar->k_empty[i % STAGES]);
                barrier_wait(&bar->v_full[i % STAGES], i / STAGES % 2);
                release(&bar->v_empty[i % STAGES]);
            }
            release(&bar->q_empty);
            continue;
        }
        flash_rows<D> x;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            x.pos[r] = w.t.pos(min(pair[r], w.t.n - 1));
            x.max[r] = -INFINITY;
            x.sum[r] = 0;
        }
#pragma unroll
        for (int i = 0; i < D / 2; i++) {
            x.o[i] = 0;
        }
        barrier_wait(&bar->k_full[n % STAGES], n / STAGES % 2);
        begin_scores<T, D>(x, group, n % STAGES);
        wgmma_wait<0>();
        hold(x.s);
        release(&bar->k_empty[n % STAGES]);
        softmax<D>(x, w, w.first_key, scale);
        end_block<T, D>(x);
        for (int block = 1; block < w.n_blocks; block++) {
            const int next = n + block, last = next - 1;
            barrier_wait(&bar->k_full[next % STAGES], next / STAGES % 2);
            if (both) {
                meet_at(TURN_PLACE + group, 2 * GROUP);
            }
            hold(x.o);
            begin_scores<T, D>(x, group, next % STAGES);
            barrier_wait(&bar->v_full[last % STAGES], last / STAGES % 2);
            begin_values<T, D>(x, last % STAGES);
            if (both) {
                expected_at(TURN_PLACE + 1 - group, 2 * GROUP);
            }
            wgmma_wait<1>();
            hold(x.s);
            release(&bar->k_empty[next % STAGES]);
            softmax<D>(x, w, w.first_key + block * memory::KEYS, scale);
            wgmma_wait<0>();
            hold(x.o);
            release(&bar->v_empty[last % STAGES]);
            end_block<T, D>(x);
        }
        release(&bar->q_empty);
        const int last = n + w.n_blocks - 1;
        const int n_keys = w.t.pos_last + 1 - w.first_key - (w.n_blocks - 1) * memory::KEYS;
        barrier_wait(&bar->v_full[last % STAGES], last / STAGES % 2);
        if (n_keys < memory::KEYS) {
            clear_values<D>(last % STAGES, n_keys, group);
        }
        hold(x.o);
        begin_values<T, D>(x, last % STAGES);
        wgmma_wait<0>();
        hold(x.o);
        release(&bar->v_empty[last % STAGES]);
        store<T, D>(a, w, x, pair);
    }
}

template <class T, int D> static __device__ void flash(const prefill_flash_args &a) {
    using memory = flash_memory<D>;
    static_assert(memory::PANELS * (memory::Q_PANEL + 2 * STAGES * memory::PANEL) + sizeof(flash_barriers) ==
                      PREFILL_FLASH_SHARED_BYTES(D),
                  "as the host counts");
    flash_barriers *bar = memory::barriers();
    let_next_kernel_start();
    if (threadIdx.x == 0) {
        barrier_init(&bar->q_full, LOADERS_OF_Q);
        barrier_init(&bar->q_empty, WARPS_AT_WORK);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&bar->k_full[i], 1);
            barrier_init(&bar->k_empty[i], WARPS_AT_WORK);
            barrier_init(&bar->v_full[i], 1);
            barrier_init(&bar->v_empty[i], WARPS_AT_WORK);
        }
        barriers_are_set();
    }
    __syncthreads();
    wait_for_earlier_kernels();
    const int role = uniform(threadIdx.x / GROUP);
    if (role == 0) {
        give_registers<40>();
        if (threadIdx.x >= 32) {
            load_q<D>(a);
        } else if (threadIdx.x == 0) {
            load_keys<D>(a);
        }
    } else {
        take_registers<232>();
        compute<T, D>(a, role - 1);
    }
}
#define BODY(type, d) flash<type, d>(a)
#else
#define BODY(type, d) (void)a // other chips run prefill_attn.cu
#endif

#define FLASH(type, d)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(PREFILL_FLASH_THREADS, 1)                                             \
        prefill_flash_##type##_##d(const __grid_constant__ prefill_flash_args a) {                                     \
        BODY(type, d);                                                                                                 \
    }
FLASH(bf16, 64)
FLASH(bf16, 80)
FLASH(bf16, 96)
FLASH(bf16, 128)
FLASH(bf16, 256)
FLASH(f16, 64)
FLASH(f16, 80)
FLASH(f16, 96)
FLASH(f16, 128)
FLASH(f16, 256)
