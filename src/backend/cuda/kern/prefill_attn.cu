// Prefill: attention over paged KV, causal, grouped queries, sliding window (ops.h has the formula; here online softmax).
//
// Grid: tiles (prefill_tile.cuh) of all sequences in turn, KV heads. Keys pass in order; a pair's sums depend on its own
// sequence alone. prefill_flash.cu has the kernels that Hopper runs instead of the mma ones.
//
//   prefill_attn_<dtype>_<d>   64 pairs, a page of 64 keys at a time, mma.sync with f32 sums; KV in the run dtype
//   prefill_attn_any           any dtypes and head size, fma in f32: 32 pairs, 32 keys
#include "backend/cuda/kern/prefill_tile.cuh"

using namespace prefill;

static __device__ attn_tile find_tile(const prefill_attn_args &a, int pairs) {
    const cuda_seq *seq = of_step<cuda_seq>(a.step, a.step->seq);
    const int group = a.n_heads / a.n_kv;
    int i = blockIdx.x, n_tiles = tiles_of(seq, group, pairs);
    while (i >= n_tiles) {
        i -= n_tiles;
        seq++;
        n_tiles = tiles_of(seq, group, pairs);
    }
    return tile_of(a.step, seq, i, group, pairs, a.window);
}

// First element of K or V of (layer, page, KV head).
static __device__ int64_t page_at(const prefill_attn_args &a, int page) {
    return (((int64_t)a.layer * a.n_pages + page) * a.n_kv + blockIdx.y) * CUDA_PAGE_TOKENS * a.d_head;
}

extern __shared__ __align__(128) uint8_t attn_shared[];

// Keys [first, first + 64) of a page into rows of D + pad elements; zeros for keys outside [lo, last], which may be anything.
template <int D>
static __device__ void load_page(uint16_t *to, const void *cache, int64_t at, int first, int lo, int last) {
    constexpr int CHUNKS = D / 8;
#pragma unroll 4
    for (int c = threadIdx.x; c < CUDA_PAGE_TOKENS * CHUNKS; c += PREFILL_ATTN_THREADS) {
        int key = c / CHUNKS, col = c % CHUNKS * 8;
        uint4 eight = make_uint4(0, 0, 0, 0);
        if (first + key >= lo && first + key <= last) {
            eight = *(const uint4 *)((const uint16_t *)cache + at + key * D + col);
        }
        *(uint4 *)(to + key * (D + PREFILL_ATTN_PAD) + col) = eight;
    }
}

// The pairs' q, zeros behind the last.
template <int D> static __device__ void load_q(uint16_t *to, const prefill_attn_args &a, const attn_tile &t) {
    constexpr int CHUNKS = D / 8;
    const int64_t row_length = (int64_t)(a.n_heads + 2 * a.n_kv) * D;
    for (int c = threadIdx.x; c < PREFILL_ATTN_ROWS * CHUNKS; c += PREFILL_ATTN_THREADS) {
        int pair = c / CHUNKS, col = c % CHUNKS * 8;
        uint4 eight = make_uint4(0, 0, 0, 0);
        if (pair < t.n) {
            int64_t head = (int64_t)blockIdx.y * t.group + t.head(pair);
            eight = *(const uint4 *)((const uint16_t *)a.q + (t.first_row + t.row(pair)) * row_length + head * D + col);
        }
        *(uint4 *)(to + pair * (D + PREFILL_ATTN_PAD) + col) = eight;
    }
}

// A warp holds 16 pairs; a thread values of pairs lane / 4 (index 0) and lane / 4 + 8 (index 1), as mma lays them out.
template <class T, int D> static __device__ void attn_mma(const prefill_attn_args &a) {
    constexpr int STRIDE = D + PREFILL_ATTN_PAD, KEYS = CUDA_PAGE_TOKENS, ST = KEYS / 8, OT = D / 8;
    static_assert(D % 16 == 0 && PREFILL_ATTN_ROWS == PREFILL_ATTN_THREADS / 32 * 16, "whole mma tiles");
    let_next_kernel_start();
    wait_for_earlier_kernels();
    uint16_t *q = (uint16_t *)attn_shared, *k = q + PREFILL_ATTN_ROWS * STRIDE, *v = k + KEYS * STRIDE;
    const attn_tile t = find_tile(a, PREFILL_ATTN_ROWS);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int pair[2] = {warp * 16 + lane / 4, warp * 16 + lane / 4 + 8};
    const int pos[2] = {t.pos(min(pair[0], t.n - 1)), t.pos(min(pair[1], t.n - 1))};
    const float scale = a.scale * 1.44269504F; // exponentials to base 2
    float o[OT][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};

    load_q<D>(q, a, t);
    for (int first = t.lo / KEYS * KEYS; first <= t.pos_last; first += KEYS) {
        const int64_t at = page_at(a, t.page[first / KEYS]);
        __syncthreads(); // all are done with the last page
        load_page<D>(k, a.k_cache, at, first, t.lo, t.pos_last);
        load_page<D>(v, a.v_cache, at, first, t.lo, t.pos_last);
        __syncthreads();

        float s[ST][4] = {};
#pragma unroll
        for (int i = 0; i < D; i += 16) {
            uint32_t qf[4];
            ldmatrix(qf, q + (warp * 16 + lane % 16) * STRIDE + i + lane / 16 * 8);
#pragma unroll
            for (int st = 0; st < ST; st += 2) {
                uint32_t kf[4];
                ldmatrix(kf, k + (st * 8 + lane / 16 * 8 + lane % 8) * STRIDE + i + lane / 8 % 2 * 8);
                T::mma(s[st], qf, kf[0], kf[1]);
                T::mma(s[st + 1], qf, kf[2], kf[3]);
            }
        }

        float old[2] = {max[0], max[1]}, base[2], shrink[2];
#pragma unroll
        for (int st = 0; st < ST; st++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int key = first + st * 8 + lane % 4 * 2 + c % 2;
                s[st][c] = t.attends(pos[c / 2], key) ? s[st][c] * scale : -INFINITY;
                max[c / 2] = fmaxf(max[c / 2], s[st][c]);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            max[r] = fmaxf(max[r], __shfl_xor_sync(0xffffffff, max[r], 1));
            max[r] = fmaxf(max[r], __shfl_xor_sync(0xffffffff, max[r], 2));
            base[r] = max[r] == -INFINITY ? 0 : max[r]; // nothing attended to yet
            shrink[r] = exp2f(old[r] - base[r]);
            sum[r] *= shrink[r];
        }
#pragma unroll
        for (int ot = 0; ot < OT; ot++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                o[ot][c] *= shrink[c / 2];
            }
        }
#pragma unroll
        for (int st = 0; st < ST; st++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                s[st][c] = exp2f(s[st][c] - base[c / 2]);
                sum[c / 2] += s[st][c];
            }
        }

#pragma unroll
        for (int st = 0; st < ST; st += 2) { // 16 keys: the results of two mma tiles are the operand of one
            const uint32_t pf[4] = {T::pack(s[st][0], s[st][1]), T::pack(s[st][2], s[st][3]),
                                    T::pack(s[st + 1][0], s[st + 1][1]), T::pack(s[st + 1][2], s[st + 1][3])};
#pragma unroll
            for (int ot = 0; ot < OT; ot += 2) {
                uint32_t vf[4];
                ldmatrix_transposed(vf, v + (st * 8 + lane % 16) * STRIDE + ot * 8 + lane / 16 * 8);
                T::mma(o[ot], pf, vf[0], vf[1]);
                T::mma(o[ot + 1], pf, vf[2], vf[3]);
            }
        }
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffff, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffff, sum[r], 2);
        if (pair[r] < t.n) {
            int64_t row = t.first_row + t.row(pair[r]), head = (int64_t)blockIdx.y * t.group + t.head(pair[r]);
            uint32_t *out = (uint32_t *)((uint16_t *)a.out + (row * a.n_heads + head) * D) + lane % 4;
#pragma unroll
            for (int ot = 0; ot < OT; ot++) {
                out[ot * 4] = T::pack(o[ot][2 * r] / sum[r], o[ot][2 * r + 1] / sum[r]);
            }
        }
    }
}

#define ATTN(type, d)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(PREFILL_ATTN_THREADS)                                                 \
        prefill_attn_##type##_##d(const prefill_attn_args a) {                                                         \
        attn_mma<type, d>(a);                                                                                          \
    }
ATTN(bf16, 64)
ATTN(bf16, 80)
ATTN(bf16, 96)
ATTN(bf16, 128)
ATTN(bf16, 256)
ATTN(f16, 64)
ATTN(f16, 80)
ATTN(f16, 96)
ATTN(f16, 128)
ATTN(f16, 256)

// `n` keys from key `first` on as f32 rows, by warps; zeros outside [lo, last].
static __device__ void load_any(float *to, int stride, const prefill_attn_args &a, const void *cache,
                                const attn_tile &t, int first) {
    const int page = t.page[first / CUDA_PAGE_TOKENS];
    const void *from = array_at(a.kv_dtype, cache, page_at(a, page) + (int64_t)(first % CUDA_PAGE_TOKENS) * a.d_head);
    for (int key = threadIdx.x / 32; key < 32; key += PREFILL_ATTN_ANY_THREADS / 32) {
        bool wanted = first + key >= t.lo && first + key <= t.pos_last;
        for (int i = threadIdx.x % 32; i < stride; i += 32) {
            to[key * stride + i] = wanted && i < a.d_head ? load_as(a.kv_dtype, from, (int64_t)key * a.d_head + i) : 0;
        }
    }
}

// Eight threads, neighbours in a warp, work for a pair: four keys each of every 32, then every eighth element of o.
extern "C" __global__ void __launch_bounds__(PREFILL_ATTN_ANY_THREADS) prefill_attn_any(const prefill_attn_args a) {
    enum { PAIRS = PREFILL_ATTN_ANY_ROWS, KEYS = 32, MINE = PREFILL_MAX_HEAD / 8 };
    static_assert(PAIRS * 8 == PREFILL_ATTN_ANY_THREADS && CUDA_PAGE_TOKENS % KEYS == 0, "eight threads a pair");
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int d = a.d_head, stride = a.stride, pair = threadIdx.x / 8, part = threadIdx.x % 8;
    float *q = (float *)attn_shared, *kv = q + PAIRS * stride, *p = kv + KEYS * stride; // p: [PAIRS][KEYS + 1]
    const attn_tile t = find_tile(a, PAIRS);
    const int pos = t.pos(min(pair, t.n - 1));
    float o[MINE] = {}, max = -INFINITY, sum = 0;

    for (int i = threadIdx.x; i < PAIRS * stride; i += PREFILL_ATTN_ANY_THREADS) {
        int of = i / stride, col = i % stride;
        int64_t at =
            ((t.first_row + t.row(of)) * (int64_t)(a.n_heads + 2 * a.n_kv) + blockIdx.y * t.group + t.head(of)) * d;
        q[i] = of < t.n && col < d ? load_as(a.dtype, a.q, at + col) : 0;
    }
    for (int first = t.lo / KEYS * KEYS; first <= t.pos_last; first += KEYS) {
        __syncthreads();
        load_any(kv, stride, a, a.k_cache, t, first);
        __syncthreads();
        float s[KEYS / 8] = {}, old = max;
        for (int i = 0; i < stride; i += 4) {
            float4 x = *(const float4 *)(q + pair * stride + i);
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                float4 y = *(const float4 *)(kv + (part + 8 * j) * stride + i);
                s[j] = fmaf(x.x, y.x, s[j]);
                s[j] = fmaf(x.y, y.y, s[j]);
                s[j] = fmaf(x.z, y.z, s[j]);
                s[j] = fmaf(x.w, y.w, s[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
            s[j] = t.attends(pos, first + part + 8 * j) ? s[j] * a.scale : -INFINITY;
            max = fmaxf(max, s[j]);
        }
#pragma unroll
        for (int i = 1; i < 8; i *= 2) {
            max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, i));
        }
        const float base = max == -INFINITY ? 0 : max, shrink = expf(old - base);
        sum *= shrink;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
            float e = expf(s[j] - base);
            sum += e;
            p[pair * (KEYS + 1) + part + 8 * j] = e;
        }
#pragma unroll
        for (int c = 0; c < MINE; c++) {
            o[c] *= shrink;
        }
        __syncthreads(); // p is there, K is no longer wanted
        load_any(kv, stride, a, a.v_cache, t, first);
        __syncthreads();
        for (int key = 0; key < KEYS; key++) {
            float e = p[pair * (KEYS + 1) + key];
#pragma unroll
            for (int c = 0; c < MINE; c++) {
                if (part + 8 * c < d) {
                    o[c] = fmaf(e, kv[key * stride + part + 8 * c], o[c]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 1; i < 8; i *= 2) {
        sum += __shfl_xor_sync(0xffffffff, sum, i);
    }
    if (pair < t.n) {
        int64_t row = t.first_row + t.row(pair), head = (int64_t)blockIdx.y * t.group + t.head(pair);
#pragma unroll
        for (int c = 0; c < MINE; c++) {
            if (part + 8 * c < d) {
                store_as(a.dtype, a.out, (row * a.n_heads + head) * d + part + 8 * c, o[c] / sum);
            }
        }
    }
}
