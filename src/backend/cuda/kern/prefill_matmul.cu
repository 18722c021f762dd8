// Prefill: y[m][n] = sum over k of x[m][k] w[n][k], y in f32. Where cuBLASLt is absent or refuses, and for int8 weights.
//
// 16-bit: a block of 8 warps makes a ROWS x 128 tile of y with mma.sync, K in steps of 32 through 4 stages in shared memory.
// Tall tiles for many rows, flat ones for few; an element's sum has the same order in both. int8 weights are 16-bit values
// (q is exact in either) whose sums are multiplied by the scale at each leaf border: those are multiples of 16, as is a step
// of mma. f32: 64 x 64 tiles, fma.
#include "backend/cuda/kern/prefill.cuh"

using namespace prefill;

constexpr int MM_N = PREFILL_MM_N, MM_K = PREFILL_MM_K, MM_STAGES = PREFILL_MM_STAGES;
constexpr int MM_STRIDE = MM_K + PREFILL_MM_PAD;            // elements of a row in shared memory
constexpr int MM_STRIDE_INT8 = MM_K + PREFILL_MM_PAD_BYTES; // bytes

extern __shared__ __align__(128) uint8_t mm_shared[];

// Rows [first, first + ROWS) of columns [k, k + 32) of a row-major matrix with row_bytes, zeros outside.
template <int ROWS, int ELEMENT>
static __device__ void load_tile(uint8_t *to, int stride_bytes, const void *from, int64_t first, int64_t n_rows, int k,
                                 int n_k, bool aligned) {
    constexpr int CHUNKS = MM_K * ELEMENT / 16, PER_CHUNK = 16 / ELEMENT;
    for (int c = threadIdx.x; c < ROWS * CHUNKS; c += PREFILL_MM_THREADS) {
        int row = c / CHUNKS, col = c % CHUNKS * PER_CHUNK;
        bool inside = first + row < n_rows && k + col < n_k;
        uint8_t *out = to + row * stride_bytes + col * ELEMENT;
        const uint8_t *in = (const uint8_t *)from + (inside ? ((first + row) * n_k + k + col) * ELEMENT : 0);
        if (aligned) { // then n_k is a multiple of PER_CHUNK
            copy_async(out, in, inside);
        } else {
            for (int e = 0; e < PER_CHUNK; e++) {
                bool there = inside && k + col + e < n_k;
                for (int b = 0; b < ELEMENT; b++) {
                    out[e * ELEMENT + b] = there ? in[e * ELEMENT + b] : 0;
                }
            }
        }
    }
}

// total += sum * scale of the leaf; sum = 0. Columns of a thread: n, n + 1, n + 8, ...
template <int MT, int NT>
static __device__ void add_leaf(float (&total)[MT][NT][4], float (&sum)[MT][NT][4], const prefill_matmul_args &a,
                                int leaf, int64_t n) {
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            int64_t column = n + nt * 8 + c;
            float scale = column < a.n ? a.scale[column * a.leaves.count + leaf] : 0;
#pragma unroll
            for (int mt = 0; mt < MT; mt++) {
                total[mt][nt][c] = fmaf(sum[mt][nt][c], scale, total[mt][nt][c]);
                total[mt][nt][c + 2] = fmaf(sum[mt][nt][c + 2], scale, total[mt][nt][c + 2]);
                sum[mt][nt][c] = sum[mt][nt][c + 2] = 0;
            }
        }
    }
}

// A thread's part of y: rows m, m + 8, m + 16, ..., columns n, n + 1, n + 8, ...
template <int MT, int NT>
static __device__ void store_tile(const float (&y)[MT][NT][4], const prefill_matmul_args &a, int64_t m, int64_t n) {
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int64_t row = m + mt * 16 + c / 2 * 8, column = n + nt * 8 + c % 2;
                if (row < a.m && column < a.n) {
                    a.y[row * a.y_stride + column] = y[mt][nt][c];
                }
            }
        }
    }
}

template <class T, int ROWS, int WARP_ROWS, int WARP_COLS, bool IS_INT8>
static __device__ void matmul_16(const prefill_matmul_args &a) {
    constexpr int MT = WARP_ROWS / 16, NT = WARP_COLS / 8, WARPS_N = MM_N / WARP_COLS;
    static_assert(ROWS / WARP_ROWS * WARPS_N == PREFILL_MM_THREADS / 32 && NT % 2 == 0, "8 warps make the tile");
    constexpr int X_BYTES = ROWS * MM_STRIDE * 2, W_STRIDE = IS_INT8 ? MM_STRIDE_INT8 : 2 * MM_STRIDE;
    constexpr int STAGE = X_BYTES + MM_N * W_STRIDE;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp / WARPS_N * WARP_ROWS, warp_n = warp % WARPS_N * WARP_COLS;
    const int64_t m0 = (int64_t)blockIdx.x * ROWS, n0 = (int64_t)blockIdx.y * MM_N;
    const int n_steps = (a.k + MM_K - 1) / MM_K;

    auto load = [&](int step) {
        uint8_t *stage = mm_shared + step % MM_STAGES * STAGE;
        load_tile<ROWS, 2>(stage, 2 * MM_STRIDE, a.x, m0, a.m, step * MM_K, a.k, a.x_aligned);
        load_tile<MM_N, IS_INT8 ? 1 : 2>(stage + X_BYTES, W_STRIDE, a.w, n0, a.n, step * MM_K, a.k, a.w_aligned);
    };
    for (int i = 0; i < MM_STAGES - 1; i++) {
        if (i < n_steps) {
            load(i);
        }
        copy_commit();
    }

    // int8: of the leaf, and of those before it; else total is not there.
    float sum[MT][NT][4] = {}, total[MT][NT][4] = {};
    int leaf = 0, end = 0;
    if constexpr (IS_INT8) {
        end = leaf_end(a.leaves, 0);
        while (leaf < a.leaves.count - 1 && end <= 0) { // a leaf may be empty
            end = leaf_end(a.leaves, ++leaf);
        }
    }
    for (int i = 0; i < n_steps; i++) {
        copy_wait<MM_STAGES - 2>();
        __syncthreads(); // step i has arrived; all are done with step i - 1, whose stage is filled next
        if (i + MM_STAGES - 1 < n_steps) {
            load(i + MM_STAGES - 1);
        }
        copy_commit();
        const uint8_t *stage = mm_shared + i % MM_STAGES * STAGE;
        const uint16_t *x = (const uint16_t *)stage + (warp_m + lane % 16) * MM_STRIDE + lane / 16 * 8;
        const uint8_t *w = stage + X_BYTES;
#pragma unroll
        for (int k = 0; k < MM_K; k += 16) {
            uint32_t xf[MT][4], wf[NT][2];
#pragma unroll
            for (int mt = 0; mt < MT; mt++) {
                ldmatrix(xf[mt], x + mt * 16 * MM_STRIDE + k);
            }
            if constexpr (IS_INT8) {
#pragma unroll
                for (int nt = 0; nt < NT; nt++) {
                    const uint8_t *q = w + (warp_n + nt * 8 + lane / 4) * W_STRIDE + k + lane % 4 * 2;
                    wf[nt][0] = T::unpack(*(const uint16_t *)q);
                    wf[nt][1] = T::unpack(*(const uint16_t *)(q + 8));
                }
            } else {
#pragma unroll
                for (int nt = 0; nt < NT; nt += 2) {
                    uint32_t four[4];
                    ldmatrix(four, (const uint16_t *)w + (warp_n + nt * 8 + lane / 16 * 8 + lane % 8) * MM_STRIDE + k +
                                       lane / 8 % 2 * 8);
                    wf[nt][0] = four[0], wf[nt][1] = four[1], wf[nt + 1][0] = four[2], wf[nt + 1][1] = four[3];
                }
            }
#pragma unroll
            for (int mt = 0; mt < MT; mt++) {
#pragma unroll
                for (int nt = 0; nt < NT; nt++) {
                    T::mma(sum[mt][nt], xf[mt], wf[nt][0], wf[nt][1]);
                }
            }
            if constexpr (IS_INT8) {
                const int next = i * MM_K + k + 16;
                if (next >= end || next >= a.k) { // past K the sums are 0
                    add_leaf<MT, NT>(total, sum, a, leaf, n0 + warp_n + lane % 4 * 2);
                    while (leaf < a.leaves.count - 1 && end <= next) {
                        end = leaf_end(a.leaves, ++leaf);
                    }
                }
            }
        }
    }

    const int64_t m = m0 + warp_m + lane / 4, n = n0 + warp_n + lane % 4 * 2;
    if constexpr (IS_INT8) {
        store_tile<MT, NT>(total, a, m, n);
    } else {
        store_tile<MT, NT>(sum, a, m, n);
    }
}

// Four values of row `row` from column k on, zeros outside.
static __device__ float4 load_four(const float *from, int64_t row, int64_t n_rows, int k, int n_k, bool aligned) {
    if (row >= n_rows || k >= n_k) {
        return make_float4(0, 0, 0, 0);
    }
    from += row * n_k + k;
    if (aligned) {
        return *(const float4 *)from;
    }
    return make_float4(from[0], k + 1 < n_k ? from[1] : 0, k + 2 < n_k ? from[2] : 0, k + 3 < n_k ? from[3] : 0);
}

template <bool IS_INT8> static __device__ void matmul_f32(const prefill_matmul_args &a) {
    constexpr int TILE = PREFILL_MM_F32_TILE, STEP = 16;
    __shared__ __align__(16) float x[STEP][TILE + 4], w[STEP][TILE + 4]; // transposed
    const int64_t m0 = (int64_t)blockIdx.x * TILE, n0 = (int64_t)blockIdx.y * TILE;
    const int row = threadIdx.x / 4, col = threadIdx.x % 4 * 4; // what a thread loads
    const int tm = threadIdx.x / 16 * 4, tn = threadIdx.x % 16 * 4;
    float sum[4][4] = {};
    int leaf = 0;
    for (int k0 = 0; k0 < a.k; k0 += STEP) {
        float4 xv = load_four((const float *)a.x, m0 + row, a.m, k0 + col, a.k, a.x_aligned), wv;
        if constexpr (IS_INT8) {
            while (leaf < a.leaves.count - 1 && leaf_end(a.leaves, leaf) <= k0) {
                leaf++;
            }
            int64_t n = n0 + row;
            float v[4];
            float scale = n < a.n ? a.scale[n * a.leaves.count + leaf] : 0;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                bool inside = n < a.n && k0 + col + e < a.k;
                v[e] = inside ? (float)((const int8_t *)a.w)[n * a.k + k0 + col + e] * scale : 0;
            }
            wv = make_float4(v[0], v[1], v[2], v[3]);
        } else {
            wv = load_four((const float *)a.w, n0 + row, a.n, k0 + col, a.k, a.w_aligned);
        }
        __syncthreads();
        x[col][row] = xv.x, x[col + 1][row] = xv.y, x[col + 2][row] = xv.z, x[col + 3][row] = xv.w;
        w[col][row] = wv.x, w[col + 1][row] = wv.y, w[col + 2][row] = wv.z, w[col + 3][row] = wv.w;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            float4 p = *(const float4 *)&x[k][tm], q = *(const float4 *)&w[k][tn];
            const float pv[4] = {p.x, p.y, p.z, p.w}, qv[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    sum[i][j] = fmaf(pv[i], qv[j], sum[i][j]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (m0 + tm + i < a.m && n0 + tn + j < a.n) {
                a.y[(m0 + tm + i) * a.y_stride + n0 + tn + j] = sum[i][j];
            }
        }
    }
}

// prefill_mm_<dtype of x>[_int8]_<rows of a tile>. Grid: tiles of m, tiles of n.
#define MATMUL_16(name, type, rows, warp_rows, warp_cols, is_int8)                                                     \
    extern "C" __global__ void __launch_bounds__(PREFILL_MM_THREADS, 2) name(const prefill_matmul_args a) {            \
        matmul_16<type, rows, warp_rows, warp_cols, is_int8>(a);                                                       \
    }
MATMUL_16(prefill_mm_bf16_32, bf16, 32, 32, 16, false)
MATMUL_16(prefill_mm_bf16_128, bf16, 128, 64, 32, false)
MATMUL_16(prefill_mm_f16_32, f16, 32, 32, 16, false)
MATMUL_16(prefill_mm_f16_128, f16, 128, 64, 32, false)
MATMUL_16(prefill_mm_bf16_int8_32, bf16, 32, 32, 16, true)
MATMUL_16(prefill_mm_bf16_int8_64, bf16, 64, 32, 32, true)
MATMUL_16(prefill_mm_f16_int8_32, f16, 32, 32, 16, true)
MATMUL_16(prefill_mm_f16_int8_64, f16, 64, 32, 32, true)

extern "C" __global__ void __launch_bounds__(PREFILL_MM_THREADS) prefill_mm_f32(const prefill_matmul_args a) {
    matmul_f32<false>(a);
}
extern "C" __global__ void __launch_bounds__(PREFILL_MM_THREADS) prefill_mm_f32_int8(const prefill_matmul_args a) {
    matmul_f32<true>(a);
}
