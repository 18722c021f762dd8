// Prefill: the parts of ops that work row by row (ops.h has the formulas). Dtypes are arguments: these kernels wait for memory.
#include "backend/cuda/kern/prefill.cuh"

using namespace prefill;

// Up the leaf tree. Not inline: registers for eight loads of each element would be too many.
static __device__ __noinline__ float add_parts(const float *y, int n_parts, int64_t stride) {
    float node[PREFILL_LEAVES];
#pragma unroll
    for (int i = 0; i < PREFILL_LEAVES; i++) {
        node[i] = i < n_parts ? y[i * stride] : 0;
    }
#pragma unroll
    for (int n = PREFILL_LEAVES / 2; n > 0; n /= 2) { // the upper half of an unfilled tree is 0
#pragma unroll
        for (int i = 0; i < n; i++) {
            node[i] = node[2 * i] + node[2 * i + 1];
        }
    }
    return node[0];
}

static __device__ float load_sum(const float *y, int n_parts, int64_t stride) {
    return n_parts == 1 ? *y : add_parts(y, n_parts, stride);
}

// Bias, QK norm, RoPE; q to BUF_QKV, k and v to the cache. A warp takes one head of one row; grid: all of them.
extern "C" __global__ void __launch_bounds__(32 * PREFILL_HEAD_WARPS) prefill_qkv(const prefill_qkv_args a) {
    enum { PAIRS = PREFILL_MAX_HEAD / 2 / 32 };
    const int lane = threadIdx.x % 32, d = a.d_head, half = d / 2, n_heads = a.n_heads + 2 * a.n_kv;
    let_next_kernel_start();
    wait_for_earlier_kernels();
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
            low[j] = load_sum(y + i, a.n_parts, a.part_stride);
            high[j] = load_sum(y + i + half, a.n_parts, a.part_stride);
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

static __device__ float silu(float x) {
    return x / (1.0F + expf(-x));
}

// act = silu(gate + bias) * (up + bias). Grid: blocks along a row, rows.
extern "C" __global__ void __launch_bounds__(PREFILL_ROW_THREADS) prefill_silu(const prefill_silu_args a) {
    const int64_t row = (int64_t)blockIdx.y * a.d_ffn;
    if (a.n_parts == 1 && a.gate_bias == nullptr && a.up_bias == nullptr && a.dtype != F32 && a.d_ffn % 4 == 0) {
        const int i = (blockIdx.x * PREFILL_ROW_THREADS + threadIdx.x) * 4; // the grid has a thread for each four
        if (i < a.d_ffn) {
            const float4 g = *(const float4 *)(a.gate + row + i), u = *(const float4 *)(a.up + row + i);
            const float x = silu(g.x) * u.x, y = silu(g.y) * u.y, z = silu(g.z) * u.z, w = silu(g.w) * u.w;
            uint32_t *out = (uint32_t *)((uint16_t *)a.act + row + i);
            out[0] = a.dtype == BF16 ? bf16::pack(x, y) : f16::pack(x, y);
            out[1] = a.dtype == BF16 ? bf16::pack(z, w) : f16::pack(z, w);
        }
        return;
    }
    for (int i = blockIdx.x * PREFILL_ROW_THREADS + threadIdx.x; i < a.d_ffn; i += gridDim.x * PREFILL_ROW_THREADS) {
        float gate = load_sum(a.gate + row + i, a.n_parts, a.part_stride);
        float up = load_sum(a.up + row + i, a.n_parts, a.part_stride);
        gate = a.gate_bias == nullptr ? gate : gate + a.gate_bias[i];
        up = a.up_bias == nullptr ? up : up + a.up_bias[i];
        store_as(a.dtype, a.act, row + i, silu(gate) * up);
    }
}

// An int8 weight in the run dtype. A thread takes 16 elements, which lie in one leaf. Grid: blocks along a row, rows.
extern "C" __global__ void __launch_bounds__(PREFILL_ROW_THREADS) prefill_widen(const prefill_widen_args a) {
    const int first = (blockIdx.x * PREFILL_ROW_THREADS + threadIdx.x) * 16;
    const int64_t at = (int64_t)blockIdx.y * a.cols + first;
    if (first >= a.cols) {
        return;
    }
    int leaf = 0;
    while (leaf < a.leaves.count - 1 && first >= leaf_end(a.leaves, leaf)) {
        leaf++;
    }
    const float scale = a.scale[(int64_t)blockIdx.y * a.leaves.count + leaf];
    const uint4 q = *(const uint4 *)(a.w + at);
    const uint32_t word[4] = {q.x, q.y, q.z, q.w};
    uint32_t pair[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int two = (int)(word[i / 2] >> i % 2 * 16);
        const float low = (float)(int8_t)two * scale, high = (float)(int8_t)(two >> 8) * scale;
        pair[i] = a.dtype == BF16 ? bf16::pack(low, high) : f16::pack(low, high);
    }
    uint4 *out = (uint4 *)(a.out + at);
    out[0] = make_uint4(pair[0], pair[1], pair[2], pair[3]);
    out[1] = make_uint4(pair[4], pair[5], pair[6], pair[7]);
}

// Notes rows whose logits are not all finite. Grid: blocks along a row, output rows.
extern "C" __global__ void __launch_bounds__(PREFILL_ROW_THREADS) prefill_faults(const prefill_faults_args a) {
    const float *logits = a.logits + (int64_t)blockIdx.y * a.n;
    bool finite = true;
    if ((int)blockIdx.y >= a.step->n_out) { // a captured step with fewer rows
        return;
    }
    for (int i = blockIdx.x * PREFILL_ROW_THREADS + threadIdx.x; i < a.n; i += gridDim.x * PREFILL_ROW_THREADS) {
        finite = finite && is_finite(logits[i]);
    }
    if (!finite) {
        note_fault(a.fault, of_step<int32_t>(a.step, a.step->out_row)[blockIdx.y], a.index);
    }
}
