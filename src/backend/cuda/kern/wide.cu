// Matmuls of 17 to 128 rows of x on Hopper, 16-bit weights: y[m][n] = sum over k of w[n][k] x[m][k], by wgmma with W's rows as
// rows of the tile and x's as its columns. wide_args.h says how the work is cut.
//
//   wide_<dtype>_<rows>        up to so many rows of x
//   wide_<dtype>_<rows>_long   with a long ring, where there are no more pieces than multiprocessors
//
// Such a matmul waits for W: what counts is that memory never stands still, within an op and from one to the next. One warp
// loads W and x by tensor copies into a ring of stages, short enough for two blocks on a multiprocessor, or long. (W brought to L2 before
// that takes longer: measured.) It asks for W before the kernels ahead of this one have ended, for x when they have; neither
// the next piece nor the way out of sums stops it. When it has asked for the last of W it lets the next kernel start, which then
// asks for its own: not before, or that would only come in place of this one's. So the last blocks' arithmetic, the way out, and
// the small kernels between two matmuls cost no time of the memory's as long as what the next one asks for fits shared memory.
//
// Two warpgroups each take half of x's rows: both halves of the tile's 128 rows of W, which for ffn_in are gate and up of the
// same columns, so that a thread has both. Blocks share the memory alike, two of one multiprocessor as well, so more tiles than
// multiprocessors need not be cut.
//
// Bits: a piece's sum is one chain of wgmmas over k, which depends on its own row of x alone; pieces are added by the leaf
// tree, in their order: a counter picks the block that does it, never the order. Pieces do not end at leaves (ops.h), so
// ranks that share k give other bits than one rank alone, as with cuBLASLt.
//
// Shared memory: for each stage W [128][64] and x [rows][64], swizzled (prefill_flash.cu), then barriers, then a word.
#include "backend/cuda/kern/prefill.cuh"
#include "backend/cuda/kern/prefill_flash_ptx.cuh"
#include "backend/cuda/kern/wide_args.h"

using namespace prefill;

#if PREFILL_HAS_WGMMA
extern __shared__ __align__(1024) uint8_t flash_shared[];

enum { K_BYTES = WIDE_K * 2, HALF = WIDE_TILE / 2, COMPUTING_THREADS = 256 };

template <int N, bool LONG> struct wide_memory {
    static constexpr int STAGES = WIDE_STAGES(N, LONG), STAGE = WIDE_STAGE_BYTES(N);

    static __device__ uint8_t *w(int stage) {
        return flash_shared + stage * STAGE;
    }
    static __device__ uint8_t *x(int stage) {
        return w(stage) + WIDE_TILE * K_BYTES;
    }
    static __device__ uint64_t *full(int stage) {
        return (uint64_t *)(flash_shared + STAGES * STAGE) + stage;
    }
    static __device__ uint64_t *empty(int stage) {
        return full(STAGES + stage);
    }
    static __device__ uint32_t *word() {
        return (uint32_t *)full(2 * STAGES);
    }
};

// What a block does one after another: one piece, or whole tiles in turns; and their blocks of k.
struct wide_walk {
    int tile, index; // of the tile's pieces
    int k, k_first, k_end;

    __device__ void begin(const wide_work &w) {
        take(w, blockIdx.x);
    }
    __device__ void take(const wide_work &w, int piece) {
        tile = piece / w.n_pieces;
        index = piece % w.n_pieces;
        k = k_first = w.n_k * index / w.n_pieces;
        k_end = w.n_k * (index + 1) / w.n_pieces;
    }
    __device__ bool has_ended(const wide_work &w) const {
        return tile >= w.n_tiles;
    }
    __device__ void next(const wide_work &w) {
        if (++k == k_end) {
            take(w, tile * w.n_pieces + index + gridDim.x);
        }
    }
};

// Where a tile's rows are: half `half` begins at row `row` of matrix `which`.
struct wide_place {
    int which, row;

    __device__ wide_place(const wide_args &a, int tile, int half) {
        const bool is_pair = a.kind == WIDE_FFN_IN;
        which = is_pair ? half : (tile >= a.matrix[1].first_tile) + (tile >= a.matrix[2].first_tile);
        row = is_pair ? tile * HALF : (tile - a.matrix[which].first_tile) * WIDE_TILE + half * HALF;
    }
};

// ---- Loading: one thread ----

// Block n of k of this block's.
template <int N, bool LONG> static __device__ void load_w(const wide_args &a, const wide_walk &at, int n) {
    using memory = wide_memory<N, LONG>;
    const int stage = n % memory::STAGES;
    const wide_place low(a, at.tile, 0), high(a, at.tile, 1);
    uint64_t *full = memory::full(stage);
    barrier_wait(memory::empty(stage), n / memory::STAGES % 2 ^ 1);
    barrier_expect(full, memory::STAGE);
    copy_box_once(memory::w(stage), &a.w_map[low.which], at.k * WIDE_K, low.row, full);
    copy_box_once(memory::w(stage) + HALF * K_BYTES, &a.w_map[high.which], at.k * WIDE_K, high.row, full);
}

template <int N, bool LONG> static __device__ void load_pieces(const wide_args &a) {
    using memory = wide_memory<N, LONG>;
    const wide_work &w = a.work;
    wide_walk at, next; // next: of W, to be asked for
    next.begin(w);
    for (int n = 0; n < memory::STAGES && !next.has_ended(w); n++, next.next(w)) {
        load_w<N, LONG>(a, next, n);
    }
    if (next.has_ended(w)) {
        let_next_kernel_start();
    }
    prefetch_map(&a.x_map);
    wait_for_earlier_kernels();
    at.begin(w);
    for (int n = 0; !at.has_ended(w); n++, at.next(w)) {
        if (n >= memory::STAGES) {
            load_w<N, LONG>(a, next, n);
            next.next(w);
            if (next.has_ended(w)) {
                let_next_kernel_start();
            }
        }
        const int stage = n % memory::STAGES;
        copy_box(memory::x(stage), &a.x_map, at.k * WIDE_K, 0, memory::full(stage));
    }
}

// ---- The way out ----
//
// A thread's sums, in fours: of rows 8 i + 2 (lane % 4) and the next one of its warpgroup's part of x, and of W's row
// 16 (warp % 4) + lane / 4 of the tile and the one eight on; `low` of the tile's first 64 rows of W, `high` of the others.

static __device__ float4 added(const float4 &x, const float4 &y) {
    return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
}

// The leaf tree over COUNT pieces, `stride` apart.
template <int COUNT> static __device__ float4 tree_of(const float4 *from, int stride) {
    if constexpr (COUNT == 1) {
        return __ldcg(from);
    } else {
        return added(tree_of<COUNT / 2>(from, stride), tree_of<COUNT / 2>(from + COUNT / 2 * stride, stride));
    }
}

// Calls put(m, row of the tile, sum, sum of the other half) for every pair of sums of this thread: x's row m, W's row in
// [0, 64). get(i, &low, &high) has four of each. ABREAST: how many of them it may take registers for, all where it has them.
template <int ROWS, int ABREAST, class G, class F> static __device__ void for_sums(int n_rows, G get, F put) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4, first = threadIdx.x / 128 * ROWS;
    const int n = ABREAST == ROWS / 8 ? ROWS / 8 : min(ROWS / 8, (n_rows - first + 7) / 8); // else ptxas unrolls it all
#pragma unroll ABREAST
    for (int i = 0; i < n; i++) {
        if (first + i * 8 < n_rows) {
            float4 low, high;
            get(i, low, high);
            const float x[] = {low.x, low.y, low.z, low.w}, z[] = {high.x, high.y, high.z, high.w};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int m = first + i * 8 + lane % 4 * 2 + e % 2;
                if (m < n_rows) {
                    put(m, row + e / 2 * 8, x[e], z[e]);
                }
            }
        }
    }
}

template <class T, int ROWS, int ABREAST, class G>
static __device__ void store_tile(const wide_args &a, const wide_walk &at, G get) {
    const wide_place where(a, at.tile, 0);
    const wide_matrix &matrix = a.matrix[where.which];
    const int left = matrix.rows - where.row; // rows of W from the tile's first on
    const float *bias = matrix.bias == nullptr ? nullptr : matrix.bias + where.row;
    if (a.kind == WIDE_FFN_IN) {
        const float *up_bias = a.matrix[1].bias == nullptr ? nullptr : a.matrix[1].bias + where.row;
        uint16_t *act = (uint16_t *)a.y + where.row;
        for_sums<ROWS, ABREAST>(a.n_rows, get, [&](int m, int r, float gate, float up) {
            if (r < left) {
                gate = bias == nullptr ? gate : gate + bias[r];
                up = up_bias == nullptr ? up : up + up_bias[r];
                act[m * a.y_stride + r] = T::store(gate / (1.0F + expf(-gate)) * up);
            }
        });
        return;
    }
    float *y = (float *)a.y + (a.has_nodes ? at.index * a.node_stride : 0) + matrix.y_first + where.row;
    for_sums<ROWS, ABREAST>(a.n_rows, get, [&](int m, int r, float x, float z) {
        float *to = y + m * a.y_stride + r;
        if (r < left) {
            to[0] = bias == nullptr ? x : x + bias[r];
        }
        if (r + HALF < left) {
            to[HALF] = bias == nullptr ? z : z + bias[r + HALF];
        }
        if (a.kind == WIDE_HEAD && ((r < left && !is_finite(x)) || (r + HALF < left && !is_finite(z)))) {
            note_fault(a.fault, of_step<int32_t>(a.step, a.step->out_row)[m], a.op_index);
        }
    });
}

// Of COUNT pieces, which lie at `from` as the threads had them.
template <class T, int N, int COUNT>
static __device__ void store_added(const wide_args &a, const wide_walk &at, const float4 *from) {
    constexpr int PIECE = N / 8 * COMPUTING_THREADS;
    store_tile<T, N / 2, 8 / COUNT>(a, at, [&](int i, float4 &low, float4 &high) {
        low = tree_of<COUNT>(from + 2 * i * COMPUTING_THREADS, PIECE);
        high = tree_of<COUNT>(from + (2 * i + 1) * COMPUTING_THREADS, PIECE);
    });
}

// A piece's sums go to memory; the block whose piece is the tile's last one to get there adds them all up.
template <class T, int N, bool LONG>
static __device__ void store_piece(const wide_args &a, const wide_walk &at, const float (&low)[N / 4],
                                   const float (&high)[N / 4]) {
    constexpr int PIECE = N / 8 * COMPUTING_THREADS; // in fours
    static_assert(WIDE_PARTS == 8, "2, 4 or 8 pieces");
    const int n_pieces = a.work.n_pieces, first = threadIdx.x / 128 * (N / 2);
    uint32_t *ended = wide_memory<N, LONG>::word();
    float4 *all = (float4 *)a.part + (int64_t)at.tile * n_pieces * PIECE + threadIdx.x;
#pragma unroll
    for (int i = 0; i < N / 16; i++) {
        if (first + i * 8 < a.n_rows) {
            float4 *to = all + at.index * PIECE + 2 * i * COMPUTING_THREADS;
            to[0] = make_float4(low[4 * i], low[4 * i + 1], low[4 * i + 2], low[4 * i + 3]);
            to[COMPUTING_THREADS] = make_float4(high[4 * i], high[4 * i + 1], high[4 * i + 2], high[4 * i + 3]);
        }
    }
    __threadfence();
    meet_at(1, COMPUTING_THREADS);
    if (threadIdx.x == 0) {
        *ended = atomicAdd(&a.counter[at.tile], 1U) + 1;
        if (*ended == (uint32_t)n_pieces) {
            a.counter[at.tile] = 0; // for the next launch
        }
    }
    meet_at(1, COMPUTING_THREADS);
    if (*ended != (uint32_t)n_pieces) {
        return;
    }
    __threadfence();
    if (n_pieces == 2) {
        store_added<T, N, 2>(a, at, all);
    } else if (n_pieces == 4) {
        store_added<T, N, 4>(a, at, all);
    } else {
        store_added<T, N, 8>(a, at, all);
    }
}

// ---- Computing: two warpgroups ----

static __device__ void release_stage(uint64_t *empty) {
    if (threadIdx.x % 32 == 0) {
        barrier_arrive(empty);
    }
}

template <class T, int N, bool LONG> static __device__ void compute_pieces(const wide_args &a, int group) {
    using memory = wide_memory<N, LONG>;
    constexpr int ROWS = N / 2; // of x
    float low[ROWS / 2], high[ROWS / 2];
    int n = 0; // blocks of k so far
    wait_for_earlier_kernels();
    for (int piece = blockIdx.x; piece < a.work.n_tiles * a.work.n_pieces; piece += gridDim.x) {
        wide_walk at;
        at.take(a.work, piece);
        for (int k = at.k_first; k < at.k_end; k++, n++) {
            const int stage = n % memory::STAGES;
            barrier_wait(memory::full(stage), n / memory::STAGES % 2);
            const uint64_t w = operand(memory::w(stage), 0, 8 * K_BYTES);
            const uint64_t x = operand(memory::x(stage) + group * ROWS * K_BYTES, 0, 8 * K_BYTES);
            wgmma_begin();
#pragma unroll
            for (int i = 0; i < WIDE_K / 16; i++) {
                const bool add = k > at.k_first || i > 0;
                wgmma_scores<T, ROWS>(low, further(w, i * 32), further(x, i * 32), add);
                wgmma_scores<T, ROWS>(high, further(w, HALF * K_BYTES + i * 32), further(x, i * 32), add);
            }
            wgmma_end_group();
            if (k > at.k_first) {
                wgmma_wait<1>();
                release_stage(memory::empty((n - 1) % memory::STAGES));
            }
        }
        wgmma_wait<0>();
        hold(low);
        hold(high);
        release_stage(memory::empty((n - 1) % memory::STAGES));
        if (a.work.n_pieces > 1 && !a.has_nodes) {
            store_piece<T, N, LONG>(a, at, low, high);
            return; // its only one: and so none of the sums is kept over the way out
        }
        store_tile<T, ROWS, ROWS / 8>(a, at, [&](int i, float4 &x, float4 &z) {
            x = make_float4(low[4 * i], low[4 * i + 1], low[4 * i + 2], low[4 * i + 3]);
            z = make_float4(high[4 * i], high[4 * i + 1], high[4 * i + 2], high[4 * i + 3]);
        });
    }
}

template <class T, int N, bool LONG> static __device__ void wide(const wide_args &a) {
    using memory = wide_memory<N, LONG>;
    static_assert(memory::STAGES * (memory::STAGE + 16) + 16 == WIDE_SHARED_BYTES(N, LONG), "as the host counts");
    static_assert((LONG ? 1 : WIDE_BLOCKS) * (WIDE_SHARED_BYTES(N, LONG) + 1024) <= 228 << 10,
                  "blocks of a multiprocessor");
    if (threadIdx.x == 0) {
        for (int i = 0; i < memory::STAGES; i++) {
            barrier_init(memory::full(i), 1);
            barrier_init(memory::empty(i), COMPUTING_THREADS / 32);
        }
        barriers_are_set();
    }
    __syncthreads();
    const int role = uniform(threadIdx.x / 128);
    if (role < 2) {
        compute_pieces<T, N, LONG>(a, role);
    } else if (threadIdx.x % 32 == 0) {
        load_pieces<N, LONG>(a);
    }
}
#define WIDE_BODY(type, n, is_long) wide<type, n, is_long>(a)
#else
#define WIDE_BODY(type, n, is_long) (void)a // other chips: prefill.c
#endif

// Registers: a block of the exchange has room beside one of these, and up to 64 rows beside two.
#define WIDE(name, type, n, is_long)                                                                                   \
    extern "C" __global__ void __launch_bounds__(WIDE_THREADS, WIDE_BLOCKS + (n <= 64 && !is_long))                    \
        wide_##name(const __grid_constant__ wide_args a) {                                                             \
        WIDE_BODY(type, n, is_long);                                                                                   \
    }
WIDE(bf16_32, bf16, 32, false)
WIDE(bf16_64, bf16, 64, false)
WIDE(bf16_128, bf16, 128, false)
WIDE(bf16_32_long, bf16, 32, true)
WIDE(bf16_64_long, bf16, 64, true)
WIDE(f16_32, f16, 32, false)
WIDE(f16_64, f16, 64, false)
WIDE(f16_128, f16, 128, false)
WIDE(f16_32_long, f16, 32, true)
WIDE(f16_64_long, f16, 64, true)
