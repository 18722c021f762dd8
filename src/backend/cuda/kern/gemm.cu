// Matmuls of many rows of x on Hopper, 16-bit weights, with what their ops do to the sums: y[m][n] = sum over k of
// x[m][k] w[n][k], by wgmma, x's rows as rows of the tile. gemm_args.h says what a tile is.
//
//   gemm_<dtype>_qkv_256             bias, QK norm, RoPE; q to BUF_QKV, k and v to the cache: prefill_qkv's formulas
//   gemm_<dtype>_silu_{256,240,160}  act = silu(gate) * up
//   gemm_<dtype>_rows_{256,160,96}      f32, bias; or nodes of the leaf tree
//
// Two blocks of a cluster have the same columns: each loads its own x and half of W's tile, which goes to both. So a
// block's k step of 128 x 256 x 64 asks L2 for 32 KB, where 48 would hold the tensor cores up. Blocks live as long as the
// kernel. One warp loads into a ring of stages, W before the kernels ahead of this one have ended, x when they have; it
// runs into the next tile while sums of this one go out. Two warpgroups compute, 64 rows by N columns each; a stage is free
// when both of both blocks have read it. Nothing makes them meet, so one has the tensor cores while the other's sums go out.
//
// Bits: a sum is one chain of wgmmas over k (of its node), whatever the tile: rows, other rows and N do not matter.
//
// Reckoned for Qwen3-4B on an H100 (660 TFLOP/s, 7 TB/s of L2), cuBLASLt and a kernel behind it before: 2048 rows qkv 100 us
// (162), ffn_in 300 (383; ten turns of 66 clusters); 256 rows qkv 25 (54), ffn_in 50 (81).
//
// Shared memory: for each stage x [128][64] and W [N][64], swizzled (prefill_flash.cu), then barriers, then a warp's results
// on their way out, swizzled in the same way. N = 256: 4 stages, 197 KB + 16; 160: 5, 184 + 16; 96: 8, 229. No spills in
// 232 registers.
#include "backend/cuda/kern/gemm_args.h"
#include "backend/cuda/kern/gemm_ptx.cuh"
#include "backend/cuda/kern/prefill.cuh"

using namespace prefill;

#if PREFILL_HAS_WGMMA
enum { STEP_BYTES = GEMM_K * 2, GEMM_WARPS = 8, GEMM_WARP_STORE = GEMM_STORE_BYTES / GEMM_WARPS };
enum gemm_kind { QKV, SILU, ROWS };

template <int N> struct gemm_memory {
    static constexpr int STAGES = GEMM_STAGES(N), STAGE = GEMM_STAGE_BYTES(N), HALF = N / 2;

    static __device__ uint8_t *x(int stage) {
        return shared_memory() + stage * STAGE;
    }
    static __device__ uint8_t *w(int stage) {
        return x(stage) + GEMM_ROWS * STEP_BYTES;
    }
    static __device__ uint64_t *full(int stage) {
        return (uint64_t *)x(STAGES) + stage;
    }
    static __device__ uint64_t *empty(int stage) {
        return full(STAGES + stage);
    }
    // This warp's: 16 rows of 64 results.
    static __device__ uint8_t *store() {
        return (uint8_t *)full(2 * STAGES) + threadIdx.x / 32 * GEMM_WARP_STORE;
    }
};

struct gemm_tile {
    int row, across, node; // this block's first row
};

// Down first: tiles with the same columns are in work at the same time.
static __device__ bool find_tile(gemm_tile *t, const gemm_args &a, int turn) {
    const int at = turn * (gridDim.x / GEMM_CLUSTER) + blockIdx.x / GEMM_CLUSTER;
    const int of_group = GEMM_ABREAST * a.n_across * a.n_nodes, group = at / of_group;
    const int abreast = min(a.n_down - group * GEMM_ABREAST, GEMM_ABREAST), left = at % of_group;
    if (at >= a.n_tiles) {
        return false;
    }
    const int down = group * GEMM_ABREAST + left % abreast;
    t->row = (down * GEMM_CLUSTER + blockIdx.x % GEMM_CLUSTER) * GEMM_ROWS;
    t->across = left / abreast % a.n_across;
    t->node = left / abreast / a.n_across;
    return true;
}

// Where a half's rows of W are.
struct gemm_place {
    int which, row;

    __device__ gemm_place(const gemm_args &a, bool is_pair, int half_rows, int across, int half) {
        const int i = across * 2 + half;
        which = is_pair ? half : (i >= a.matrix[1].first_half) + (i >= a.matrix[2].first_half);
        row = (is_pair ? across : i - a.matrix[which].first_half) * half_rows;
    }
};

// ---- Loading: one thread ----

template <int N> static __device__ void load_tiles(const gemm_args &a, bool is_pair) {
    using memory = gemm_memory<N>;
    const int mine = blockIdx.x % GEMM_CLUSTER; // of W's halves
    gemm_tile t;
    for (int with_x = 0; with_x < 2; with_x++) { // first what fits of W, then all the rest
        int n = 0;
        if (with_x) {
            prefetch_map(&a.x_map);
            wait_for_earlier_kernels();
        }
        for (int turn = 0; (with_x || n < memory::STAGES) && find_tile(&t, a, turn); turn++) {
            const gemm_place place(a, is_pair, memory::HALF, t.across, mine);
            for (int k = 0; k < a.n_k && (with_x || n < memory::STAGES); k++, n++) {
                const int stage = n % memory::STAGES, column = (t.node * a.n_k + k) * GEMM_K;
                uint64_t *full = memory::full(stage);
                if (!with_x || n >= memory::STAGES) {
                    barrier_wait(memory::empty(stage), n / memory::STAGES % 2 ^ 1);
                    barrier_expect(full, memory::STAGE);
                    copy_box_to(3, memory::w(stage) + mine * memory::HALF * STEP_BYTES, &a.w_map[place.which], column,
                                place.row, full);
                }
                if (with_x) {
                    copy_box(memory::x(stage), &a.x_map, column, t.row, full);
                }
            }
        }
    }
}

// ---- The way out: a warp has 16 rows; a thread two of them (lane / 4 and eight on), of 8 columns the two from lane % 4 * 2 ----

// Calls put(row of the warp, 16-byte piece, its eight values) for 8 * GROUPS columns, pieces of a row side by side.
template <class T, int GROUPS, class F> static __device__ void store_panel(uint8_t *store, const float *sum, F put) {
    static_assert(GROUPS <= 8, "a panel");
    const int lane = threadIdx.x % 32, row = lane % 16;
#pragma unroll
    for (int i = 0; i < GROUPS; i += 2) { // rows 0-7 and 8-15, of the next group again
        const float *s = sum + 4 * i;
        uint32_t x[4] = {T::pack(s[0], s[1]), T::pack(s[2], s[3])};
        if (i + 1 < GROUPS) { // else to where nobody looks
            x[2] = T::pack(s[4], s[5]);
            x[3] = T::pack(s[6], s[7]);
        }
        store_matrices(store + row * 128 + ((i + lane / 16) ^ row % 8) * 16, x);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * GROUPS; i += 32) {
        const int at = (i + lane) / GROUPS, piece = (i + lane) % GROUPS;
        if (16 * GROUPS % 32 == 0 || at < 16) {
            put(at, piece, *(const uint4 *)(store + at * 128 + (piece ^ at % 8) * 16));
        }
    }
    __syncwarp();
}

// Of row lane % 16 of the warp: its position, and where its KV head 0 is in the cache, in elements.
struct gemm_row {
    int pos;
    int64_t slot;

    __device__ void find(const gemm_args &a, int row) {
        const int m = min(row + (int)threadIdx.x % 16, a.n_rows - 1);
        pos = of_step<int32_t>(a.step, a.step->pos)[m];
        const cuda_seq *seq = of_step<cuda_seq>(a.step, a.step->seq) + of_step<int32_t>(a.step, a.step->seq_of)[m];
        const int page = of_step<int32_t>(a.step, a.step->page)[seq->page_first + pos / CUDA_PAGE_TOKENS];
        slot = (((int64_t)a.layer * a.n_pages + page) * a.n_kv * CUDA_PAGE_TOKENS + pos % CUDA_PAGE_TOKENS) * a.d_head;
    }
};

static __device__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// A head's sums: bias, norm, RoPE. `row`: its first in the matrix.
template <int D>
static __device__ void finish_head(float *sum, const gemm_args &a, const gemm_place &place, int row, const int pos[2]) {
    const gemm_matrix &matrix = a.matrix[place.which];
    const float *norm = place.which == 0 ? a.q_norm : place.which == 1 ? a.k_norm : nullptr;
    const int mine = threadIdx.x % 4 * 2;
    if (matrix.bias != nullptr) {
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const float2 b = *(const float2 *)(matrix.bias + row + 8 * j + mine);
            sum[4 * j] += b.x;
            sum[4 * j + 1] += b.y;
            sum[4 * j + 2] += b.x;
            sum[4 * j + 3] += b.y;
        }
    }
    if (norm != nullptr) {
        float squares[2] = {}, scale[2];
#pragma unroll
        for (int i = 0; i < D / 2; i++) {
            squares[i % 4 / 2] = fmaf(sum[i], sum[i], squares[i % 4 / 2]);
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            scale[r] = 1.0F / sqrtf(quad_sum(squares[r]) / (float)D + a.eps);
        }
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const float2 w = *(const float2 *)(norm + 8 * j + mine);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                sum[4 * j + 2 * r] = sum[4 * j + 2 * r] * scale[r] * w.x;
                sum[4 * j + 2 * r + 1] = sum[4 * j + 2 * r + 1] * scale[r] * w.y;
            }
        }
    }
    if (place.which == 2) {
        return;
    }
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float4 turn = *(const float4 *)(a.rope + (int64_t)pos[r] * D + 2 * (8 * j + mine)); // two angles'
            float *low = sum + 4 * j + 2 * r, *high = low + D / 4;
            const float x = low[0] * turn.x - high[0] * turn.y, y = low[1] * turn.z - high[1] * turn.w;
            high[0] = high[0] * turn.x + low[0] * turn.y;
            high[1] = high[1] * turn.z + low[1] * turn.w;
            low[0] = x;
            low[1] = y;
        }
    }
}

// A half: 128 columns of q, k or v. `row`: the warp's first.
template <class T, int D>
static __device__ void finish_heads(float *sum, const gemm_args &a, const gemm_place &place, int row,
                                    const gemm_row &mine, uint8_t *store) {
    const int lane = threadIdx.x % 32, width = a.matrix[place.which].rows;
    const int pos[2] = {__shfl_sync(0xffffffff, mine.pos, lane / 4), __shfl_sync(0xffffffff, mine.pos, lane / 4 + 8)};
#pragma unroll
    for (int i = 0; i < 128; i += D) {
        if (place.row + i < width) {
            finish_head<D>(sum + i / 2, a, place, place.row + i, pos);
        }
    }
#pragma unroll
    for (int i = 0; i < 128; i += 64) {
        const int column = place.row + i;
        if (column >= width) {
            continue;
        }
        uint16_t *cache = (uint16_t *)(place.which == 1 ? a.k_cache : a.v_cache) +
                          (int64_t)(column / D) * CUDA_PAGE_TOKENS * D + column % D;
        uint16_t *q = (uint16_t *)a.q + (int64_t)row * (a.n_heads + 2 * a.n_kv) * D + column;
        store_panel<T, 8>(store, sum + i / 2, [&](int m, int piece, uint4 values) {
            const int64_t slot = __shfl_sync(0xffffffff, mine.slot, m);
            uint16_t *to = place.which == 0 ? q + (int64_t)m * (a.n_heads + 2 * a.n_kv) * D : cache + slot;
            if (row + m < a.n_rows) {
                *(uint4 *)(to + piece * 8) = values;
            }
        });
    }
}

static __device__ float silu_fast(float x) {
    return x * reciprocal(1.0F + exp2_fast(x * -1.44269504F));
}

static __device__ float bias_at(const gemm_matrix &matrix, int row) {
    return matrix.bias != nullptr && row < matrix.rows ? matrix.bias[row] : 0;
}

// Sums of gate's columns, then of up's.
template <class T, int N>
static __device__ void finish_pair(float (&sum)[N / 2], const gemm_args &a, int first, int row, uint8_t *store) {
    constexpr int HALF = N / 2, REST = HALF % 64;
    const int lane = threadIdx.x % 32, width = a.matrix[0].rows;
    if (a.matrix[0].bias != nullptr || a.matrix[1].bias != nullptr) {
#pragma unroll
        for (int i = 0; i < HALF / 2; i++) {
            const int column = first + i / 4 * 8 + lane % 4 * 2 + i % 2;
            sum[i] += bias_at(a.matrix[0], column);
            sum[HALF / 2 + i] += bias_at(a.matrix[1], column);
        }
    }
#pragma unroll
    for (int i = 0; i < HALF / 2; i++) {
        sum[i] = silu_fast(sum[i]) * sum[HALF / 2 + i];
    }
    uint16_t *act = (uint16_t *)a.y + (int64_t)row * a.y_stride + first;
    if (a.y_stride % 8 != 0) { // rows begin anywhere
#pragma unroll
        for (int i = 0; i < HALF / 2; i++) {
            const int m = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            if (row + m < a.n_rows && first + column < width) {
                act[(int64_t)m * a.y_stride + column] = T::store(sum[i]);
            }
        }
        return;
    }
    auto put = [&](int m, int column, uint4 values) {
        if (row + m < a.n_rows && first + column < width) {
            *(uint4 *)(act + (int64_t)m * a.y_stride + column) = values;
        }
    };
#pragma unroll
    for (int i = 0; i + 64 <= HALF; i += 64) {
        store_panel<T, 8>(store, sum + i / 2, [&](int m, int piece, uint4 v) { put(m, i + piece * 8, v); });
    }
    if constexpr (REST > 0) {
        store_panel<T, REST / 8>(store, sum + (HALF - REST) / 2,
                                 [&](int m, int piece, uint4 v) { put(m, HALF - REST + piece * 8, v); });
    }
}

// A half of f32 sums, SUMS a thread.
template <int SUMS>
static __device__ void store_rows(const float *sum, const gemm_args &a, const gemm_place &place, int row, int node) {
    const gemm_matrix &matrix = a.matrix[place.which];
    const int lane = threadIdx.x % 32, left = matrix.rows - place.row;
    const bool in_pairs = ((matrix.y_first | a.y_stride | left) & 1) == 0;
#pragma unroll
    for (int i = 0; i < SUMS; i += 2) {
        const int m = row + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2;
        float *to = (float *)a.y + node * a.node_stride + (int64_t)m * a.y_stride + matrix.y_first + place.row + column;
        const float x = sum[i] + bias_at(matrix, place.row + column);
        const float y = sum[i + 1] + bias_at(matrix, place.row + column + 1);
        if (m < a.n_rows && column < left) {
            if (in_pairs) {
                *(float2 *)to = make_float2(x, y);
                continue;
            }
            to[0] = x;
            if (column + 1 < left) {
                to[1] = y;
            }
        }
    }
}

// ---- Computing: two warpgroups ----

// In both blocks of the cluster.
static __device__ void release_to_both(uint64_t *empty) {
    if (threadIdx.x % 32 < GEMM_CLUSTER) {
        barrier_arrive_at(empty, threadIdx.x % 32);
    }
}

template <class T, int KIND, int N> static __device__ void compute_tiles(const gemm_args &a, int group) {
    using memory = gemm_memory<N>;
    const int mine = group * 64 + threadIdx.x / 32 % 4 * 16; // the warp's first row of the block's
    gemm_tile t;
    gemm_row at;
    float sum[N / 2];
    int n = 0; // blocks of k so far
    wait_for_earlier_kernels();
    for (int turn = 0; find_tile(&t, a, turn); turn++) {
        for (int k = 0; k < a.n_k; k++, n++) {
            const int stage = n % memory::STAGES;
            barrier_wait(memory::full(stage), n / memory::STAGES % 2);
            const uint64_t x = operand(memory::x(stage) + group * 64 * STEP_BYTES, 0, 8 * STEP_BYTES);
            const uint64_t w = operand(memory::w(stage), 0, 8 * STEP_BYTES);
            wgmma_begin();
#pragma unroll
            for (int i = 0; i < GEMM_K / 16; i++) {
                wgmma_scores<T, N>(sum, further(x, i * 32), further(w, i * 32), k > 0 || i > 0);
            }
            wgmma_end_group();
            if (k > 0) {
                wgmma_wait<1>();
                release_to_both(memory::empty((n - 1) % memory::STAGES));
            } else if (KIND == QKV) { // while the tensor cores work
                at.find(a, t.row + mine);
            }
        }
        wgmma_wait<0>();
        hold(sum);
        release_to_both(memory::empty((n - 1) % memory::STAGES));
        const int row = t.row + mine;
        if (row >= a.n_rows) {
            continue;
        }
        if constexpr (KIND == SILU) {
            finish_pair<T, N>(sum, a, t.across * memory::HALF, row, memory::store());
        } else {
            const gemm_place low(a, false, memory::HALF, t.across, 0), high(a, false, memory::HALF, t.across, 1);
            if constexpr (KIND == ROWS) {
                store_rows<N / 4>(sum, a, low, row, t.node);
                store_rows<N / 4>(sum + N / 4, a, high, row, t.node);
            } else if (a.d_head == 64) {
                finish_heads<T, 64>(sum, a, low, row, at, memory::store());
                finish_heads<T, 64>(sum + N / 4, a, high, row, at, memory::store());
            } else {
                finish_heads<T, 128>(sum, a, low, row, at, memory::store());
                finish_heads<T, 128>(sum + N / 4, a, high, row, at, memory::store());
            }
        }
    }
}

template <class T, int KIND, int N> static __device__ void gemm(const gemm_args &a) {
    using memory = gemm_memory<N>;
    static_assert(memory::HALF % 8 == 0 && (KIND != QKV || N == 256), "boxes on borders of 1024 bytes, whole heads");
    let_next_kernel_start();
    if (threadIdx.x == 0) {
        for (int i = 0; i < memory::STAGES; i++) {
            barrier_init(memory::full(i), 1);
            barrier_init(memory::empty(i), GEMM_CLUSTER * GEMM_WARPS);
        }
        barriers_are_set();
    }
    meet_cluster(); // before either writes to the other
    const int role = uniform(threadIdx.x / 128);
    if (role < 2) {
        take_registers<232>();
        compute_tiles<T, KIND, N>(a, role);
    } else {
        give_registers<40>();
        if (threadIdx.x % 128 == 0) {
            load_tiles<N>(a, KIND == SILU);
        }
    }
    meet_cluster(); // none ends that the other still writes to
}
#define GEMM_BODY(type, kind, n) gemm<type, kind, n>(a)
#else
#define GEMM_BODY(type, kind, n) (void)a // other chips: prefill.c
#endif

#define GEMM(type, name, kind, n)                                                                                      \
    extern "C" __global__ void PREFILL_CLUSTER(GEMM_CLUSTER) __launch_bounds__(GEMM_THREADS, 1)                        \
        gemm_##type##_##name##_##n(const __grid_constant__ gemm_args a) {                                              \
        GEMM_BODY(type, kind, n);                                                                                      \
    }
#define GEMMS(type)                                                                                                    \
    GEMM(type, qkv, QKV, 256)                                                                                          \
    GEMM(type, silu, SILU, 256)                                                                                        \
    GEMM(type, silu, SILU, 240)                                                                                        \
    GEMM(type, silu, SILU, 160)                                                                                        \
    GEMM(type, rows, ROWS, 256)                                                                                        \
    GEMM(type, rows, ROWS, 160)                                                                                        \
    GEMM(type, rows, ROWS, 96)
GEMMS(bf16)
GEMMS(f16)
