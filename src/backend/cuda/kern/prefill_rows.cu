// Prefill: the parts of ops that work row by row (ops.h has the formulas). Dtypes are arguments: these kernels wait for memory.
#include "backend/cuda/kern/prefill.cuh"

using namespace prefill;

// Sum over a block of PREFILL_ROW_THREADS, in a fixed order; every thread gets it.
static __device__ float row_sum(float x) {
    __shared__ float warp[PREFILL_ROW_THREADS / 32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) {
        warp[threadIdx.x / 32] = x;
    }
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < PREFILL_ROW_THREADS / 32; i++) {
        sum += warp[i];
    }
    return sum;
}

// part[m] = table[token[m] - vocab_first], an input row, or 0; fault[m] = 0. Grid: rows.
extern "C" __global__ void __launch_bounds__(PREFILL_ROW_THREADS) prefill_embed(const prefill_embed_args a) {
    const int64_t m = blockIdx.x, d = a.d_model;
    const int64_t token = step_token(a.step, m), row = token - a.vocab_first;
    const bool mine = token >= 0 && row >= 0 && row < a.vocab_count;
    const bool is_input = token < 0 && a.takes_input_rows && a.step->input_rows != 0;
    int leaf = 0;
    if (threadIdx.x == 0) {
        a.fault[m] = 0;
    }
    for (int64_t i = threadIdx.x; i < d; i += PREFILL_ROW_THREADS) {
        float x = 0;
        if (mine && a.dtype == INT8) {
            while (leaf < PREFILL_LEAVES - 1 && leaf_border(d, leaf + 1) <= i) {
                leaf++;
            }
            x = (float)((const int8_t *)a.table)[row * d + i] * a.scale[row * PREFILL_LEAVES + leaf];
        } else if (is_input) {
            x = of_step<float>(a.step, a.step->input_rows)[(-1 - token) * d + i];
        } else if (mine) {
            x = load_as(a.dtype, a.table, row * d + i);
        }
        a.part[m * d + i] = x;
    }
}

// h[m] = (init ? 0 : h[m]) + (tree over ranks of part[m] + bias). Grid: rows.
extern "C" __global__ void __launch_bounds__(PREFILL_ROW_THREADS) prefill_exchange(const prefill_exchange_args a) {
    const int64_t m = blockIdx.x, d = a.d_model;
    bool finite = true;
    for (int64_t i = threadIdx.x; i < d; i += PREFILL_ROW_THREADS) {
        float node[PREFILL_RANKS];
#pragma unroll
        for (int r = 0; r < PREFILL_RANKS; r++) {
            node[r] = r < a.n_ranks ? a.part[r][m * d + i] : 0;
        }
#pragma unroll
        for (int n = PREFILL_RANKS / 2; n > 0;
             n /= 2) { // n_ranks is a power of two: the upper half of an unfilled tree is 0
#pragma unroll
            for (int r = 0; r < n; r++) {
                node[r] = node[2 * r] + node[2 * r + 1];
            }
        }
        float sum = a.bias == nullptr ? node[0] : node[0] + a.bias[i];
        float h = (a.init ? 0.0F : a.h[m * d + i]) + sum;
        a.h[m * d + i] = h;
        finite = finite && is_finite(h);
    }
    if (!finite) {
        note_fault(a.fault, (int)m, a.index);
    }
}

// x[i] = act(norm(h[row i])). Grid: rows of x.
extern "C" __global__ void __launch_bounds__(PREFILL_ROW_THREADS) prefill_norm(const prefill_norm_args a) {
    const int64_t i = blockIdx.x, d = a.d_model;
    const int64_t row = a.of_outputs ? of_step<int32_t>(a.step, a.step->out_row)[i] : a.row_first + i;
    const float *h = a.h + row * d;
    float sum = 0;
    for (int64_t j = threadIdx.x; j < d; j += PREFILL_ROW_THREADS) {
        sum = fmaf(h[j], h[j], sum);
    }
    const float scale = 1.0F / sqrtf(row_sum(sum) / (float)d + a.eps);
    for (int64_t j = threadIdx.x; j < d; j += PREFILL_ROW_THREADS) {
        store_as(a.dtype, a.x, i * d + j, h[j] * scale * a.weight[j]);
    }
}

// Bias, QK norm, RoPE; q to BUF_QKV, k and v to the cache. A warp takes one head of one row; grid: all of them.
extern "C" __global__ void __launch_bounds__(32 * PREFILL_HEAD_WARPS) prefill_qkv(const prefill_qkv_args a) {
    enum { PAIRS = PREFILL_MAX_HEAD / 2 / 32 };
    const int lane = threadIdx.x % 32, d = a.d_head, half = d / 2, n_heads = a.n_heads + 2 * a.n_kv;
    const int64_t item = (int64_t)blockIdx.x * PREFILL_HEAD_WARPS + threadIdx.x / 32;
    if (item >= (int64_t)a.n_rows * n_heads) {
        return;
    }
    const int64_t row = item / n_heads;
    const int64_t m = a.row_first + row;
    const int head = (int)(item % n_heads);
    const bool is_q = head < a.n_heads, is_v = head >= a.n_heads + a.n_kv;
    const int local = is_q ? head : is_v ? head - a.n_heads - a.n_kv : head - a.n_heads; // among its kind
    const float *y = a.y + row * n_heads * d + (int64_t)head * d;
    const float *bias = is_q ? a.q_bias : is_v ? a.v_bias : a.k_bias;
    const float *norm = is_q ? a.q_norm : is_v ? nullptr : a.k_norm;
    const int pos = of_step<int32_t>(a.step, a.step->pos)[m];

    float low[PAIRS], high[PAIRS], sum = 0;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        int i = lane + 32 * j;
        low[j] = high[j] = 0;
        if (i < half) {
            low[j] = y[i];
            high[j] = y[i + half];
            if (bias != nullptr) {
                low[j] += bias[local * d + i];
                high[j] += bias[local * d + i + half];
            }
            sum = fmaf(low[j], low[j], sum);
            sum = fmaf(high[j], high[j], sum);
        }
    }
    const float scale = norm == nullptr ? 1.0F : 1.0F / sqrtf(warp_sum(sum) / (float)d + a.eps);

    void *out = a.q;
    int64_t at = m * n_heads * d + (int64_t)head * d;
    const int dtype = is_q ? a.dtype : a.kv_dtype;
    if (!is_q) {
        const cuda_seq *seq = of_step<cuda_seq>(a.step, a.step->seq) + of_step<int32_t>(a.step, a.step->seq_of)[m];
        int page = of_step<int32_t>(a.step, a.step->page)[seq->page_first + pos / CUDA_PAGE_TOKENS];
        out = is_v ? a.v_cache : a.k_cache;
        at = (((int64_t)a.layer * a.n_pages + page) * a.n_kv + local) * CUDA_PAGE_TOKENS * d +
             (int64_t)(pos % CUDA_PAGE_TOKENS) * d;
    }
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        int i = lane + 32 * j;
        if (i < half) {
            float x = low[j], z = high[j];
            if (norm != nullptr) {
                x = x * scale * norm[i];
                z = z * scale * norm[i + half];
            }
            if (!is_v) {
                float c = a.rope[(int64_t)pos * d + 2 * i], s = a.rope[(int64_t)pos * d + 2 * i + 1];
                float turned = x * c - z * s;
                z = z * c + x * s;
                x = turned;
            }
            store_as(dtype, out, at + i, x);
            store_as(dtype, out, at + i + half, z);
        }
    }
}

// act = silu(gate + bias) * (up + bias). Grid: blocks along a row, rows.
extern "C" __global__ void __launch_bounds__(PREFILL_ROW_THREADS) prefill_silu(const prefill_silu_args a) {
    const int64_t row = (int64_t)blockIdx.y * a.d_ffn;
    for (int i = blockIdx.x * PREFILL_ROW_THREADS + threadIdx.x; i < a.d_ffn; i += gridDim.x * PREFILL_ROW_THREADS) {
        float gate = a.gate[row + i], up = a.up[row + i];
        gate = a.gate_bias == nullptr ? gate : gate + a.gate_bias[i];
        up = a.up_bias == nullptr ? up : up + a.up_bias[i];
        store_as(a.dtype, a.act, row + i, gate / (1.0F + expf(-gate)) * up);
    }
}

// Notes rows whose logits are not all finite. Grid: blocks along a row, output rows.
extern "C" __global__ void __launch_bounds__(PREFILL_ROW_THREADS) prefill_faults(const prefill_faults_args a) {
    const float *logits = a.logits + (int64_t)blockIdx.y * a.n;
    bool finite = true;
    for (int i = blockIdx.x * PREFILL_ROW_THREADS + threadIdx.x; i < a.n; i += gridDim.x * PREFILL_ROW_THREADS) {
        finite = finite && is_finite(logits[i]);
    }
    if (!finite) {
        note_fault(a.fault, of_step<int32_t>(a.step, a.step->out_row)[blockIdx.y], a.index);
    }
}
