/*
 * Attention of decode steps, one row a sequence, by splits of 256 tokens; with it what the QKV matmul leaves to be done: QK
 * norm, RoPE, rounding of q, and appending k and v at the row's position. Formulas in ops.h.
 *
 * A block takes one row, up to four query heads of one KV head, and every gridDim.x-th split. In a split a group of LANES
 * lanes holds a token's head, eight elements a lane; token (i * 8 + warp) * groups + group is the i-th of a group. Scores of
 * the split lie in shared memory; sums of a warp's groups are added by shuffles, those of the eight warps in order. Each
 * split's result goes to memory and the block that finishes last combines them in index order: neither the grid nor the
 * other rows decide any bits.
 *
 * The row's own k and v are computed by the block whose split holds its position, before it reads that split; with more
 * than four heads a KV head several blocks write the same bytes there.
 */
#include "backend/cuda/kern/common.cuh"

enum { WARPS = DECODE_ATTN_THREADS / 32, HEADS = DECODE_ATTN_HEADS, BATCH = 8 };

struct eight {
    float v[8];
};

/* Eight elements of a KV row as they lie: one or two 16-byte loads. */
template <int KV> struct raw_eight {
    uint4 word[KV == KERN_F32 ? 2 : 1];

    DEVICE_MEMBER void load(const char *row, int first, bool wanted) {
        word[0] = load_shared_by_rows(row + first * (KV == KERN_F32 ? 4 : 2), wanted);
        if (KV == KERN_F32) {
            word[KV == KERN_F32] = load_shared_by_rows(row + first * 4 + 16, wanted);
        }
    }

    DEVICE_MEMBER eight get() const {
        eight out;
        const uint32_t in[4] = {word[0].x, word[0].y, word[0].z, word[0].w};
        if (KV == KERN_F32) {
            const uint4 &next = word[KV == KERN_F32];
            const uint32_t rest[4] = {next.x, next.y, next.z, next.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                out.v[i] = __uint_as_float(in[i]);
                out.v[4 + i] = __uint_as_float(rest[i]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float2 pair = widen<KV>(in[i]);
                out.v[2 * i] = pair.x;
                out.v[2 * i + 1] = pair.y;
            }
        }
        return out;
    }
};

/* A warp norms and rotates one head: pairs (i, i + d / 2), i = lane, lane + 32, ... Results in shared memory. */
DEVICE void norm_and_rotate(const float *y, const float *norm, const float *rope, int d, float eps, float *out) {
    const int lane = threadIdx.x % 32, half = d / 2;
    float scale = 1.0F;
    if (norm != NULL) {
        float squares = 0.0F;
        for (int i = lane; i < half; i += 32) {
            squares = fmaf(y[i], y[i], squares);
            squares = fmaf(y[i + half], y[i + half], squares);
        }
        scale = 1.0F / sqrtf(warp_sum(squares) / (float)d + eps);
    }
    for (int i = lane; i < half; i += 32) {
        float a = y[i], b = y[i + half], c = rope[2 * i], s = rope[2 * i + 1];
        if (norm != NULL) {
            a = a * scale * norm[i];
            b = b * scale * norm[i + half];
        }
        out[i] = a * c - b * s;
        out[i + half] = b * c + a * s;
    }
}

/* Sums of four values over a group of LANES lanes; lane i of the group gets that of value 2 (i & 1) + (i >> 1 & 1). */
template <int LANES> DEVICE float sum_of_four(const float (&v)[4], int lane) {
    const bool odd = lane & 1, second = lane & 2;
    float a = odd ? v[2] : v[0], b = odd ? v[3] : v[1];
    a += __shfl_xor_sync(0xffffffffu, odd ? v[0] : v[2], 1);
    b += __shfl_xor_sync(0xffffffffu, odd ? v[1] : v[3], 1);
    float sum = second ? b : a;
    sum += __shfl_xor_sync(0xffffffffu, second ? a : b, 2);
#pragma unroll
    for (int lanes = 4; lanes < LANES; lanes *= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    }
    return sum;
}

template <int KV, int LANES> struct attention {
    static constexpr int GROUPS = 32 / LANES;   /* tokens that a warp takes at a time */
    static constexpr int PASS = WARPS * GROUPS; /* ... and all warps */
    static constexpr int WIDTH = 8 * LANES;     /* room for a head */
    static constexpr int KV_BYTES = KV == KERN_F32 ? 4 : 2;

    struct shared {
        float q[HEADS][WIDTH];
        float own_k[WIDTH];
        float score[HEADS][CUDA_SPLIT_TOKENS];
        float o[WARPS][HEADS][WIDTH];
        float max[HEADS], sum[HEADS];
        int32_t page[CUDA_SPLIT_TOKENS / CUDA_PAGE_TOKENS];
        uint32_t is_last;
    };
};

/* q of this block's heads; k and v of the row where this block appends them. Ends in a barrier. */
template <int KV, int LANES>
DEVICE void prepare(const decode_attn_args &a, typename attention<KV, LANES>::shared &s, int m, int position,
                    const int32_t *page, int kv_head, int first_head, int n_heads, bool appends) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float *row = a.qkv + (int64_t)m * (a.n_heads + 2 * a.n_kv) * a.d;
    const float *rope = a.rope + (int64_t)position * a.d;
    const int64_t slot = (((int64_t)page[position / CUDA_PAGE_TOKENS] * a.n_kv + kv_head) * CUDA_PAGE_TOKENS +
                          position % CUDA_PAGE_TOKENS) *
                         a.d;
    if (warp < HEADS) {
        const float *y = row + (first_head + warp) * a.d;
        if (warp < n_heads && a.raw) {
            norm_and_rotate(y, a.q_norm, rope, a.d, a.eps, s.q[warp]);
            __syncwarp();
        }
        for (int i = lane; i < 8 * LANES; i += 32) {
            float value = 0.0F;
            if (warp < n_heads && i < a.d) {
                value = a.raw ? round_to(a.dtype, s.q[warp][i]) : y[i];
            }
            s.q[warp][i] = value;
        }
    } else if (warp == HEADS && appends) {
        norm_and_rotate(row + (a.n_heads + kv_head) * a.d, a.k_norm, rope, a.d, a.eps, s.own_k);
        __syncwarp();
        for (int i = lane; i < a.d; i += 32) {
            store_as(KV, a.k_cache, slot + i, s.own_k[i]);
        }
    } else if (warp == HEADS + 1 && appends) {
        const float *y = row + (a.n_heads + a.n_kv + kv_head) * a.d;
        for (int i = lane; i < a.d; i += 32) {
            store_as(KV, a.v_cache, slot + i, y[i]);
        }
    }
    __syncthreads();
}

/* Row of K or V of token j of the split. */
template <int KV, int LANES>
DEVICE const char *kv_row(const decode_attn_args &a, const void *cache, const int32_t *page, int j, int kv_head) {
    const int64_t row =
        ((int64_t)page[j / CUDA_PAGE_TOKENS] * a.n_kv + kv_head) * CUDA_PAGE_TOKENS + j % CUDA_PAGE_TOKENS;
    return static_cast<const char *>(cache) + row * a.d * attention<KV, LANES>::KV_BYTES;
}

/* Asks for K and V of tokens [first, last), absolute positions, to come to L2. */
template <int KV, int LANES>
DEVICE void call_for_split(const decode_attn_args &a, const int32_t *page, int first, int last, int kv_head) {
    const int lines = (a.d * attention<KV, LANES>::KV_BYTES + 127) / 128;
    for (int i = threadIdx.x; i < (last - first) * lines; i += blockDim.x) {
        const int j = first + i / lines;
        prefetch_to_l2(kv_row<KV, LANES>(a, a.k_cache, page, j, kv_head) + i % lines * 128);
        prefetch_to_l2(kv_row<KV, LANES>(a, a.v_cache, page, j, kv_head) + i % lines * 128);
    }
}

/* Scores of tokens [from, to) of one split, counted from its first; -infinity before `from`. Ends in a barrier. */
template <int KV, int LANES>
DEVICE void score(const decode_attn_args &a, typename attention<KV, LANES>::shared &s, int from, int to, int kv_head) {
    using shape = attention<KV, LANES>;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, in_group = lane % LANES;
    const int first_token = warp * shape::GROUPS + lane / LANES;
    const int n_passes = (to + shape::PASS - 1) / shape::PASS;
    const bool has_elements = in_group * 8 < a.d;

    eight q[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            q[h].v[i] = s.q[h][in_group * 8 + i];
        }
    }
    for (int pass = 0; pass < n_passes; pass += BATCH) {
        raw_eight<KV> k[BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; u++) {
            const int j = (pass + u) * shape::PASS + first_token;
            const bool wanted = has_elements && j >= from && j < to;
            k[u].load(kv_row<KV, LANES>(a, a.k_cache, s.page, wanted ? j : from, kv_head), in_group * 8, wanted);
        }
#pragma unroll
        for (int u = 0; u < BATCH; u++) {
            const int j = (pass + u) * shape::PASS + first_token;
            const eight key = k[u].get();
            float dot[HEADS];
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                dot[h] = 0.0F;
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    dot[h] = fmaf(q[h].v[i], key.v[i], dot[h]);
                }
            }
            const float sum = sum_of_four<LANES>(dot, lane);
            if (in_group < HEADS && j < CUDA_SPLIT_TOKENS) {
                s.score[2 * (in_group & 1) + (in_group >> 1)][j] = j >= from && j < to ? sum * a.scale : -INFINITY;
            }
        }
    }
    __syncthreads();
}

/* Scores become their exponentials, up to the split's end; max and sum. A warp a head. Ends in a barrier. */
template <int KV, int LANES> DEVICE void soften(typename attention<KV, LANES>::shared &s, int to, int n_heads) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp < n_heads) {
        float e[CUDA_SPLIT_TOKENS / 32], max = -INFINITY, sum = 0.0F;
#pragma unroll
        for (int i = 0; i < CUDA_SPLIT_TOKENS / 32; i++) {
            e[i] = i * 32 + lane < to ? s.score[warp][i * 32 + lane] : -INFINITY;
            max = fmaxf(max, e[i]);
        }
        max = warp_max(max);
#pragma unroll
        for (int i = 0; i < CUDA_SPLIT_TOKENS / 32; i++) {
            e[i] = expf(e[i] - max);
            sum += e[i];
            s.score[warp][i * 32 + lane] = e[i];
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            s.max[warp] = max;
            s.sum[warp] = sum;
        }
    }
    __syncthreads();
}

/* Each warp's part of o, in shared memory. Ends in a barrier. */
template <int KV, int LANES>
DEVICE void weigh(const decode_attn_args &a, typename attention<KV, LANES>::shared &s, int from, int to, int kv_head,
                  int n_heads) {
    using shape = attention<KV, LANES>;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, in_group = lane % LANES;
    const int first_token = warp * shape::GROUPS + lane / LANES;
    const int n_passes = (to + shape::PASS - 1) / shape::PASS;
    const bool has_elements = in_group * 8 < a.d;

    eight o[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            o[h].v[i] = 0.0F;
        }
    }
    for (int pass = 0; pass < n_passes; pass += BATCH) {
        raw_eight<KV> v[BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; u++) {
            const int j = (pass + u) * shape::PASS + first_token;
            const bool wanted = has_elements && j >= from && j < to;
            v[u].load(kv_row<KV, LANES>(a, a.v_cache, s.page, wanted ? j : from, kv_head), in_group * 8, wanted);
        }
#pragma unroll
        for (int u = 0; u < BATCH; u++) {
            const int j = (pass + u) * shape::PASS + first_token;
            const eight value = v[u].get();
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                const float p = h < n_heads && j < to ? s.score[h][j] : 0.0F;
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    o[h].v[i] = fmaf(p, value.v[i], o[h].v[i]);
                }
            }
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
            for (int lanes = LANES; lanes < 32; lanes *= 2) {
                o[h].v[i] += __shfl_xor_sync(0xffffffffu, o[h].v[i], lanes);
            }
            if (lane < LANES) {
                s.o[warp][h][in_group * 8 + i] = o[h].v[i];
            }
        }
    }
    __syncthreads();
}

/* The splits' results of one row and block of heads, added in index order, scaled to the largest of all. `room` has
 * n_room floats of shared memory; max[HEADS] too. */
DEVICE void combine(const decode_attn_args &a, const float *partial, int stride, int n_splits, int n_heads, int64_t to,
                    float *room, int n_room, float *max) {
    enum { MINE = HEADS * 256 / DECODE_ATTN_THREADS }; /* outputs of a thread, at most */
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float *maxes = partial + n_heads * a.d, *sums = maxes + n_heads;
    if (warp < n_heads) {
        float m = -INFINITY;
        for (int i = lane; i < n_splits; i += 32) {
            m = fmaxf(m, __ldcg(maxes + (int64_t)i * stride + warp));
        }
        m = warp_max(m);
        if (lane == 0) {
            max[warp] = m;
        }
    }
    float o[MINE] = {0.0F}, sum[MINE] = {0.0F};
    const int fit = n_room / (2 * n_heads); /* splits whose weights are in hand at a time */
    for (int first = 0; first < n_splits; first += fit) {
        const int count = min(fit, n_splits - first);
        __syncthreads();
        for (int i = threadIdx.x; i < count * n_heads; i += blockDim.x) {
            const int64_t at = (int64_t)(first + i / n_heads) * stride + i % n_heads;
            const float weight = expf(__ldcg(maxes + at) - max[i % n_heads]);
            room[2 * i] = weight;
            room[2 * i + 1] = weight * __ldcg(sums + at);
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < MINE; k++) {
            const int at = threadIdx.x + k * DECODE_ATTN_THREADS;
            if (at < n_heads * a.d) {
                const float *from = partial + (int64_t)first * stride + at, *weights = room + 2 * (at / a.d);
#pragma unroll 8
                for (int i = 0; i < count; i++) {
                    o[k] = fmaf(weights[2 * n_heads * i], __ldcg(from + (int64_t)i * stride), o[k]);
                    sum[k] += weights[2 * n_heads * i + 1];
                }
            }
        }
    }
#pragma unroll
    for (int k = 0; k < MINE; k++) {
        const int at = threadIdx.x + k * DECODE_ATTN_THREADS;
        if (at < n_heads * a.d) {
            store_as(a.dtype, a.att, to + at, o[k] / sum[k]);
        }
    }
}

template <int KV, int LANES> DEVICE void attn(const decode_attn_args &a) {
    using shape = attention<KV, LANES>;
    __shared__ typename shape::shared s;
    const int m = blockIdx.z;
    let_next_kernel_start();
    if (m >= a.step->n_rows) {
        return;
    }
    const int heads_per_kv = a.n_heads / a.n_kv, blocks_per_kv = (heads_per_kv + HEADS - 1) / HEADS;
    const int kv_head = blockIdx.y / blocks_per_kv, first_of_kv = blockIdx.y % blocks_per_kv * HEADS;
    const int first_head = kv_head * heads_per_kv + first_of_kv, n_heads = min(HEADS, heads_per_kv - first_of_kv);
    const int position = step_array<int32_t>(a.step, a.step->pos)[m];
    const int lo = a.window > 0 ? max(0, position - a.window + 1) : 0;
    const int first_split = lo / CUDA_SPLIT_TOKENS, last_split = position / CUDA_SPLIT_TOKENS;
    const int n_splits = last_split - first_split + 1;
    if ((int)blockIdx.x >= n_splits) {
        return;
    }
    const cuda_seq *seq = step_array<cuda_seq>(a.step, a.step->seq) + step_array<int32_t>(a.step, a.step->seq_of)[m];
    const int32_t *page = step_array<int32_t>(a.step, a.step->page) + seq->page_first;
    const int first_base = (first_split + (int)blockIdx.x) * CUDA_SPLIT_TOKENS;
    call_for_split<KV, LANES>(a, page, max(lo, first_base), min(position, first_base + CUDA_SPLIT_TOKENS), kv_head);
    wait_for_earlier_kernels();
    const bool appends = a.raw && (n_splits - 1) % gridDim.x == blockIdx.x;
    prepare<KV, LANES>(a, s, m, position, page, kv_head, first_head, n_heads, appends);

    const int64_t to = ((int64_t)m * a.n_heads + first_head) * a.d;
    const int stride = min(HEADS, heads_per_kv) * (a.d + 2); /* of a partial result */
    const int64_t item = (int64_t)m * gridDim.y + blockIdx.y;
    float *partial = a.partial + item * a.max_splits * stride;
    for (int split = blockIdx.x; split < n_splits; split += gridDim.x) {
        const int base = (first_split + split) * CUDA_SPLIT_TOKENS;
        const int from = max(lo - base, 0), end = min(position + 1 - base, (int)CUDA_SPLIT_TOKENS);
        if (threadIdx.x * CUDA_PAGE_TOKENS < end) {
            s.page[threadIdx.x] = page[base / CUDA_PAGE_TOKENS + threadIdx.x];
        }
        __syncthreads();
        score<KV, LANES>(a, s, from, end, kv_head);
        soften<KV, LANES>(s, end, n_heads);
        weigh<KV, LANES>(a, s, from, end, kv_head, n_heads);
        for (int at = threadIdx.x; at < n_heads * a.d; at += blockDim.x) {
            const int h = at / a.d, i = at % a.d;
            float o = s.o[0][h][i];
#pragma unroll
            for (int w = 1; w < WARPS; w++) {
                o += s.o[w][h][i];
            }
            if (n_splits == 1) {
                store_as(a.dtype, a.att, to + at, o / s.sum[h]);
            } else {
                partial[(int64_t)split * stride + at] = o;
            }
        }
        if (n_splits > 1 && threadIdx.x < n_heads) {
            float *behind = partial + (int64_t)split * stride + n_heads * a.d;
            behind[threadIdx.x] = s.max[threadIdx.x];
            behind[n_heads + threadIdx.x] = s.sum[threadIdx.x];
        }
        __syncthreads(); /* before s is used again */
    }
    if (n_splits == 1) {
        return;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        const uint32_t n_blocks = min((int)gridDim.x, n_splits);
        s.is_last = atomicAdd(&a.counter[item], 1) == n_blocks - 1;
        if (s.is_last) {
            a.counter[item] = 0;
        }
        __threadfence();
    }
    __syncthreads();
    if (s.is_last) {
        combine(a, partial, stride, n_splits, n_heads, to, &s.o[0][0][0], WARPS * HEADS * shape::WIDTH, s.max);
    }
}

/* Names: KV dtype, the largest head size. */
#define DEFINE_ATTN(name, kv, width)                                                                                   \
    extern "C" __global__ void __launch_bounds__(DECODE_ATTN_THREADS)                                                  \
        decode_attn_##name##_##width(const __grid_constant__ decode_attn_args a) {                                     \
        attn<kv, width / 8>(a);                                                                                        \
    }
#define DEFINE_ATTNS(name, kv) DEFINE_ATTN(name, kv, 64) DEFINE_ATTN(name, kv, 128) DEFINE_ATTN(name, kv, 256)

DEFINE_ATTNS(f32, KERN_F32)
DEFINE_ATTNS(bf16, KERN_BF16)
DEFINE_ATTNS(f16, KERN_F16)
