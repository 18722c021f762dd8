// Matmuls of 17 rows of x and more on Hopper, 16-bit weights: y[m][n] = sum over k of w[n][k] x[m][k], by wgmma with W's rows as
// rows of the tile and x's as its columns. wide_args.h says how the work is cut.
//
//   wide_<dtype>_<rows>   up to so many rows of x, 256 any number
//   wide_finish           adds up the pieces of tiles that were cut, and does what the op asks for
//
// Up to 128 rows such a matmul waits for W: what counts is that every block streams without a stop. One warp loads W and x by tensor copies
// into a ring of stages. It asks for W before the kernels ahead of this one have ended, for x when they have; neither the
// next tile nor the way out of sums stops it. Two warpgroups each take half of x's rows: both halves of the tile's 128 rows of
// W, which for ffn_in are gate and up of the same columns, so that a thread has both.
//
// Bits: a piece's sum is one chain of wgmmas over k, which depends on its own row of x alone; pieces are added by the leaf
// tree, in their order. Pieces do not end at leaves (ops.h), so ranks that share k give other bits than one rank alone, as with
// cuBLASLt.
//
// Shared memory: for each stage W [128][64] and x [rows][64], swizzled (prefill_flash.cu), then barriers.
#include "backend/cuda/kern/prefill.cuh"
#include "backend/cuda/kern/prefill_flash_ptx.cuh"
#include "backend/cuda/kern/wide_args.h"

using namespace prefill;

#if PREFILL_HAS_WGMMA
extern __shared__ __align__(1024) uint8_t flash_shared[];

enum { K_BYTES = WIDE_K * 2, HALF = WIDE_TILE / 2, COMPUTING_WARPS = 8 };

template <int N> struct wide_memory {
    static constexpr int STAGES = WIDE_STAGES(N), STAGE = WIDE_STAGE_BYTES(N);

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
};

struct wide_piece {
    int tile, k_first, k_end; // blocks of k
    int of_w, of_x;           // which of W's tiles and of x's it is
    int index, count;         // among the tile's pieces
};

// What this block does in its turn `turn`: first its stretch of the line, then tiles of its own. False: no more.
static __device__ bool find_piece(wide_piece *p, const wide_work &w, int turn) {
    const int block = blockIdx.x;
    int n_pieces = 0;
    if (block < w.n_stream) {
        const int begin = wide_border(&w, block), end = wide_border(&w, block + 1), first = begin / w.n_k;
        n_pieces = end > begin ? (end - 1) / w.n_k - first + 1 : 0;
        if (turn < n_pieces) {
            const int i = first + turn, at = i * w.n_k;
            p->tile = w.n_whole + i;
            p->k_first = max(begin - at, 0);
            p->k_end = min(end - at, w.n_k);
            p->index = block - wide_owner(&w, at);
            p->count = wide_pieces(&w, i);
            p->of_w = p->tile / w.n_across;
            p->of_x = p->tile % w.n_across;
            return true;
        }
    }
    p->tile = (turn - n_pieces) * gridDim.x + block;
    p->k_first = 0;
    p->k_end = w.n_k;
    p->index = 0;
    p->count = 1;
    p->of_w = p->tile / w.n_across;
    p->of_x = p->tile % w.n_across;
    return p->tile < w.n_whole;
}

// Where a tile's rows are: half `half` begins at row `row` of matrix `which`.
struct wide_place {
    int which, row;

    __device__ wide_place(const wide_out &o, int tile, int half) {
        const bool is_pair = o.kind == WIDE_FFN_IN;
        which = is_pair ? half : (tile >= o.matrix[1].first_tile) + (tile >= o.matrix[2].first_tile);
        row = is_pair ? tile * HALF : (tile - o.matrix[which].first_tile) * WIDE_TILE + half * HALF;
    }
};

// ---- Loading: one thread ----

template <int N> static __device__ void load_pieces(const wide_args &a) {
    using memory = wide_memory<N>;
    wide_piece p;
    for (int with_x = 0; with_x < 2; with_x++) { // first what fits of W, then all the rest
        int n = 0;
        if (with_x) {
            prefetch_map(&a.x_map);
            wait_for_earlier_kernels();
        }
        for (int turn = 0; (with_x || n < memory::STAGES) && find_piece(&p, a.out.work, turn); turn++) {
            const wide_place low(a.out, p.of_w, 0), high(a.out, p.of_w, 1);
            for (int k = p.k_first; k < p.k_end && (with_x || n < memory::STAGES); k++, n++) {
                const int stage = n % memory::STAGES;
                uint64_t *full = memory::full(stage);
                if (!with_x || n >= memory::STAGES) {
                    barrier_wait(memory::empty(stage), n / memory::STAGES % 2 ^ 1);
                    barrier_expect(full, memory::STAGE);
                    copy_box(memory::w(stage), &a.w_map[low.which], k * WIDE_K, low.row, full);
                    copy_box(memory::w(stage) + HALF * K_BYTES, &a.w_map[high.which], k * WIDE_K, high.row, full);
                }
                if (with_x) {
                    copy_box(memory::x(stage), &a.x_map, k * WIDE_K, p.of_x * N, full);
                }
            }
        }
    }
}

// ---- Computing: two warpgroups ----

// Calls put(m, row of the tile, sum) for every sum of this thread: x's row m, W's row in [0, 128).
template <int ROWS, class F>
static __device__ void for_sums(const float (&low)[ROWS / 2], const float (&high)[ROWS / 2], int n_rows, F put) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    const int first = threadIdx.x / 128 * ROWS + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < ROWS / 2; i++) {
        const int m = first + i / 4 * 8 + i % 2, r = row + i % 4 / 2 * 8;
        if (m < n_rows) {
            put(m, r, low[i], high[i]);
        }
    }
}

template <class T, int ROWS>
static __device__ void store_piece(const wide_out &o, const wide_piece &p, const float (&low)[ROWS / 2],
                                   const float (&high)[ROWS / 2]) {
    if (p.count > 1 && o.n_nodes == 0) {
        const int64_t cols = (int64_t)(o.work.n_tiles - o.work.n_whole) * WIDE_TILE;
        float *to = o.part + p.index * o.part_rows * cols + (p.tile - o.work.n_whole) * WIDE_TILE;
        for_sums<ROWS>(low, high, o.part_rows, [&](int m, int r, float x, float z) {
            to[m * cols + r] = x;
            to[m * cols + r + HALF] = z;
        });
        return;
    }
    const wide_place where(o, p.of_w, 0);
    const wide_matrix &matrix = o.matrix[where.which];
    const int left = matrix.rows - where.row; // rows of W from the tile's first on
    const int first_m = p.of_x * ROWS * 2;
    const int64_t above = (int64_t)first_m * o.y_stride; // elements of y
    const int n_rows = o.n_rows - first_m;
    const float *bias = matrix.bias == nullptr ? nullptr : matrix.bias + where.row;
    if (o.kind == WIDE_FFN_IN) {
        const float *up_bias = o.matrix[1].bias == nullptr ? nullptr : o.matrix[1].bias + where.row;
        uint16_t *act = (uint16_t *)o.y + above + where.row;
        for_sums<ROWS>(low, high, n_rows, [&](int m, int r, float gate, float up) {
            if (r < left) {
                gate = bias == nullptr ? gate : gate + bias[r];
                up = up_bias == nullptr ? up : up + up_bias[r];
                act[(int64_t)m * o.y_stride + r] = T::store(gate / (1.0F + expf(-gate)) * up);
            }
        });
        return;
    }
    float *y = (float *)o.y + above + p.index * o.node_stride + matrix.y_first + where.row;
    for_sums<ROWS>(low, high, n_rows, [&](int m, int r, float x, float z) {
        float *to = y + (int64_t)m * o.y_stride + r;
        if (r < left) {
            to[0] = bias == nullptr ? x : x + bias[r];
        }
        if (r + HALF < left) {
            to[HALF] = bias == nullptr ? z : z + bias[r + HALF];
        }
        if (o.kind == WIDE_HEAD && ((r < left && !is_finite(x)) || (r + HALF < left && !is_finite(z)))) {
            note_fault(o.fault, of_step<int32_t>(o.step, o.step->out_row)[first_m + m], o.op_index);
        }
    });
    for (int node = p.count; node < o.n_nodes && p.index == p.count - 1; node++) { // nobody else's
        y += o.node_stride;
        for_sums<ROWS>(low, high, n_rows, [&](int m, int r, float, float) {
            float *to = y + (int64_t)m * o.y_stride + r;
            if (r < left) {
                to[0] = 0;
            }
            if (r + HALF < left) {
                to[HALF] = 0;
            }
        });
    }
}

static __device__ void release_stage(uint64_t *empty) {
    if (threadIdx.x % 32 == 0) {
        barrier_arrive(empty);
    }
}

template <class T, int N> static __device__ void compute_pieces(const wide_args &a, int group) {
    using memory = wide_memory<N>;
    constexpr int ROWS = N / 2; // of x
    wide_piece p;
    float low[ROWS / 2], high[ROWS / 2];
    int n = 0; // blocks of k so far
    wait_for_earlier_kernels();
    for (int turn = 0; find_piece(&p, a.out.work, turn); turn++) {
        for (int k = p.k_first; k < p.k_end; k++, n++) {
            const int stage = n % memory::STAGES;
            barrier_wait(memory::full(stage), n / memory::STAGES % 2);
            const uint64_t w = operand(memory::w(stage), 0, 8 * K_BYTES);
            const uint64_t x = operand(memory::x(stage) + group * ROWS * K_BYTES, 0, 8 * K_BYTES);
            wgmma_begin();
#pragma unroll
            for (int i = 0; i < WIDE_K / 16; i++) {
                const bool add = k > p.k_first || i > 0;
                wgmma_scores<T, ROWS>(low, further(w, i * 32), further(x, i * 32), add);
                wgmma_scores<T, ROWS>(high, further(w, HALF * K_BYTES + i * 32), further(x, i * 32), add);
            }
            wgmma_end_group();
            if (k > p.k_first) {
                wgmma_wait<1>();
                release_stage(memory::empty((n - 1) % memory::STAGES));
            }
        }
        wgmma_wait<0>();
        hold(low);
        hold(high);
        release_stage(memory::empty((n - 1) % memory::STAGES));
        store_piece<T, ROWS>(a.out, p, low, high);
    }
}

template <class T, int N> static __device__ void wide(const wide_args &a) {
    using memory = wide_memory<N>;
    static_assert(memory::STAGES * (memory::STAGE + 16) == WIDE_SHARED_BYTES(N), "as the host counts");
    let_next_kernel_start();
    if (threadIdx.x == 0) {
        for (int i = 0; i < memory::STAGES; i++) {
            barrier_init(memory::full(i), 1);
            barrier_init(memory::empty(i), COMPUTING_WARPS);
        }
        barriers_are_set();
    }
    __syncthreads();
    const int role = uniform(threadIdx.x / 128);
    if (role < 2) {
        compute_pieces<T, N>(a, role);
    } else if (threadIdx.x % 32 == 0) {
        load_pieces<N>(a);
    }
}
#define WIDE_BODY(type, n) wide<type, n>(a)
#else
#define WIDE_BODY(type, n) (void)a // other chips: prefill.c
#endif

#define WIDE(type, n)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WIDE_THREADS, 1)                                                      \
        wide_##type##_##n(const __grid_constant__ wide_args a) {                                                       \
        WIDE_BODY(type, n);                                                                                            \
    }
WIDE(bf16, 32)
WIDE(bf16, 64)
WIDE(bf16, 128)
WIDE(bf16, 256)
WIDE(f16, 32)
WIDE(f16, 64)
WIDE(f16, 128)
WIDE(f16, 256)

// ---- Tiles that were cut ----

struct four {
    float v[4];
};

// Up the leaf tree.
static __device__ four add_pieces(const float *at, int64_t stride, int n) {
    four node[WIDE_PARTS];
#pragma unroll
    for (int i = 0; i < WIDE_PARTS; i++) {
        float4 x = make_float4(0, 0, 0, 0);
        if (i < n) {
            x = *(const float4 *)(at + i * stride);
        }
        node[i] = {x.x, x.y, x.z, x.w};
    }
#pragma unroll
    for (int width = WIDE_PARTS / 2; width > 0; width /= 2) {
#pragma unroll
        for (int i = 0; i < width; i++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                node[i].v[e] = node[2 * i].v[e] + node[2 * i + 1].v[e];
            }
        }
    }
    return node[0];
}

static __device__ float with_bias(const wide_matrix &matrix, int row, float x) {
    return matrix.bias == nullptr ? x : x + matrix.bias[row];
}

// Four columns a thread. Grid: blocks along the columns of all tiles that were cut; rows of x.
extern "C" __global__ void __launch_bounds__(WIDE_FINISH_THREADS) wide_finish(const __grid_constant__ wide_out o) {
    const bool is_pair = o.kind == WIDE_FFN_IN;
    const int of_tile = (is_pair ? WIDE_TILE / 2 : WIDE_TILE) / 4;
    const int item = blockIdx.x * WIDE_FINISH_THREADS + threadIdx.x, i = item / of_tile, r = item % of_tile * 4;
    const int n_cut = o.work.n_tiles - o.work.n_whole, of_w = (o.work.n_whole + i) / o.work.n_across;
    const int m = (o.work.n_whole + i) % o.work.n_across * WIDE_ROWS + blockIdx.y;
    let_next_kernel_start();
    wait_for_earlier_kernels();
    if (i >= n_cut || m >= o.n_rows) {
        return;
    }
    const int64_t cols = (int64_t)n_cut * WIDE_TILE, stride = o.part_rows * cols;
    const float *at = o.part + blockIdx.y * cols + (int64_t)i * WIDE_TILE + r;
    const int n = wide_pieces(&o.work, i);
    const int which = is_pair ? 0 : (of_w >= o.matrix[1].first_tile) + (of_w >= o.matrix[2].first_tile);
    const wide_matrix &matrix = o.matrix[which];
    const int row = is_pair ? of_w * (WIDE_TILE / 2) + r : (of_w - matrix.first_tile) * WIDE_TILE + r;
    if (n == 1) { // that tile's sums went their way
        return;
    }
    const four sum = add_pieces(at, stride, n);
    four up = sum;
    if (is_pair) {
        up = add_pieces(at + WIDE_TILE / 2, stride, n);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        if (row + e < matrix.rows) {
            const int64_t to = (int64_t)m * o.y_stride + matrix.y_first + row + e;
            const float x = with_bias(matrix, row + e, sum.v[e]);
            if (is_pair) {
                store_as(o.dtype, o.y, to, x / (1.0F + expf(-x)) * with_bias(o.matrix[1], row + e, up.v[e]));
            } else {
                ((float *)o.y)[to] = x;
            }
            if (o.kind == WIDE_HEAD && !is_finite(x)) {
                note_fault(o.fault, of_step<int32_t>(o.step, o.step->out_row)[m], o.op_index);
            }
        }
    }
}
