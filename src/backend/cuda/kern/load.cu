/*
 * Weights, made where they are needed: from rows as they lie in the file, or from the dummy formula of model/weights.h. Bits
 * are the CPU's (backend/cpu/rows_tmpl.h): f32 without contraction, rounded to nearest even. What is infinite or NaN once
 * it is stored leaves a mark; the host then finds out which element it was.
 *
 * load_rows   f32, bf16, f16 to f32, bf16, f16: groups of 8 elements, 4 groups in flight for each thread, since rows may
 *             come straight over the bus
 * load_int8   a warp for each leaf of a row: it keeps the values in shared memory while it looks for the largest, and reads
 *             again what does not fit there
 *
 * Both take memory of any alignment that its elements have, faster where 16 bytes can be read and 8 written at once.
 */
#include <cuda_fp16.h>

#include "backend/cuda/kern/load.h"

#define DEVICE static __device__ __forceinline__

enum { WARPS = LOAD_THREADS / 32 };

/* ---- Numbers ---- */

DEVICE uint32_t bf16_of(float value) {
    uint32_t bits = __float_as_uint(value);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

DEVICE uint32_t f16_of(float value) {
    return __half_as_ushort(__float2half_rn(value));
}

DEVICE float f32_of_f16(uint32_t half) {
    return __half2float(__ushort_as_half((unsigned short)half));
}

template <int DTYPE> DEVICE float f32_of(uint32_t bits) {
    return DTYPE == LOAD_F32    ? __uint_as_float(bits)
           : DTYPE == LOAD_BF16 ? __uint_as_float(bits << 16)
                                : f32_of_f16(bits & 0xffff);
}

/* The stored bits, and whether they are a number. */
template <int FORMAT> DEVICE uint32_t stored(float value, bool *bad) {
    const uint32_t exponent = FORMAT == LOAD_F32 ? 0x7f800000u : FORMAT == LOAD_BF16 ? 0x7f80u : 0x7c00u;
    uint32_t bits = FORMAT == LOAD_F32 ? __float_as_uint(value) : FORMAT == LOAD_BF16 ? bf16_of(value) : f16_of(value);
    *bad |= (bits & exponent) == exponent;
    return bits;
}

DEVICE float round_as(int dtype, float value) {
    return dtype == LOAD_BF16  ? __uint_as_float(bf16_of(value) << 16)
           : dtype == LOAD_F16 ? f32_of_f16(f16_of(value))
                               : value;
}

/* ---- Where elements come from: element i of the rows, or 8 from a multiple of 8 on ---- */

template <int DTYPE> struct file_rows {
    enum { WORDS = DTYPE == LOAD_F32 ? 2 : 1 };
    struct group {
        uint4 word[WORDS];
    };
    const void *in;
    bool aligned;

    __device__ __forceinline__ explicit file_rows(const load_args &a)
        : in((const void *)a.in), aligned(a.in % 16 == 0) {}
    __device__ __forceinline__ float one(int64_t i) const {
        return f32_of<DTYPE>(DTYPE == LOAD_F32 ? ((const uint32_t *)in)[i] : ((const uint16_t *)in)[i]);
    }
    __device__ __forceinline__ group fetch(int64_t i) const {
        group g;
        for (int w = 0; w < WORDS; w++) {
            g.word[w] = ((const uint4 *)in)[i / LOAD_GROUP * WORDS + w];
        }
        return g;
    }
    __device__ __forceinline__ void widen(const group &g, int64_t, float *to) const {
        for (int w = 0; w < WORDS; w++) {
            const uint32_t word[4] = {g.word[w].x, g.word[w].y, g.word[w].z, g.word[w].w};
            for (int i = 0; i < 4; i++) {
                if (DTYPE == LOAD_F32) {
                    to[w * 4 + i] = f32_of<DTYPE>(word[i]);
                } else {
                    to[i * 2] = f32_of<DTYPE>(word[i] & 0xffff);
                    to[i * 2 + 1] = f32_of<DTYPE>(word[i] >> 16);
                }
            }
        }
    }
};

struct dummy_rows {
    struct group {};
    const load_args &a;
    bool aligned;

    __device__ __forceinline__ explicit dummy_rows(const load_args &args) : a(args), aligned(true) {}
    __device__ __forceinline__ float at(uint64_t index) const {
        const uint64_t golden = 0x9E3779B97F4A7C15ull;
        uint64_t x = a.hash + (index + 1) * golden;
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
        x = (x ^ x >> 27) * 0x94D049BB133111EBull;
        x ^= x >> 31;
        float unit = 2.0f * ((float)(uint32_t)(x >> 40) * 0x1p-24f) - 1.0f; /* exact in every step */
        return round_as(a.dtype, __fadd_rn(a.offset, __fmul_rn(a.factor, unit)));
    }
    __device__ __forceinline__ uint64_t index_of(int64_t i) const {
        if (a.cols == a.all_cols) {
            return (uint64_t)(a.first_row * a.all_cols + i);
        }
        int64_t row = i / a.cols;
        return (uint64_t)((a.first_row + row) * a.all_cols + a.first_col + (i - row * a.cols));
    }
    __device__ __forceinline__ float one(int64_t i) const {
        return at(index_of(i));
    }
    __device__ __forceinline__ group fetch(int64_t) const {
        return group();
    }
    __device__ __forceinline__ void widen(const group &, int64_t first, float *to) const {
        for (int i = 0; i < LOAD_GROUP; i++) {
            to[i] = one(first + i);
        }
    }
};

/* ---- f32, bf16, f16 ---- */

template <int FORMAT> DEVICE void store_one(const load_args &a, int64_t i, float value, bool *bad) {
    uint32_t bits = stored<FORMAT>(value, bad);
    if (FORMAT == LOAD_F32) {
        ((uint32_t *)a.out)[i] = bits;
    } else {
        ((uint16_t *)a.out)[i] = (uint16_t)bits;
    }
}

template <int FORMAT> DEVICE void store_group(const load_args &a, int64_t first, const float *value, bool *bad) {
    uint32_t bits[LOAD_GROUP];
    for (int i = 0; i < LOAD_GROUP; i++) {
        bits[i] = stored<FORMAT>(value[i], bad);
    }
    uint4 *to = (uint4 *)a.out + first / LOAD_GROUP * (FORMAT == LOAD_F32 ? 2 : 1);
    if (FORMAT == LOAD_F32) {
        to[0] = make_uint4(bits[0], bits[1], bits[2], bits[3]);
        to[1] = make_uint4(bits[4], bits[5], bits[6], bits[7]);
    } else {
        to[0] = make_uint4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16, bits[4] | bits[5] << 16,
                           bits[6] | bits[7] << 16);
    }
}

template <int FORMAT, typename SOURCE> DEVICE void load_as(const load_args &a, const SOURCE &source) {
    const int64_t n = a.rows * a.cols, stride = (int64_t)gridDim.x * LOAD_THREADS;
    const int64_t thread = (int64_t)blockIdx.x * LOAD_THREADS + threadIdx.x;
    const int64_t n_groups = source.aligned && a.out % 16 == 0 ? n / LOAD_GROUP : 0;
    bool bad = false;
    for (int64_t first = thread; first < n_groups; first += LOAD_UNROLL * stride) {
        typename SOURCE::group g[LOAD_UNROLL];
#pragma unroll
        for (int u = 0; u < LOAD_UNROLL; u++) {
            if (first + u * stride < n_groups) {
                g[u] = source.fetch((first + u * stride) * LOAD_GROUP);
            }
        }
#pragma unroll
        for (int u = 0; u < LOAD_UNROLL; u++) {
            if (first + u * stride < n_groups) {
                float value[LOAD_GROUP];
                source.widen(g[u], (first + u * stride) * LOAD_GROUP, value);
                store_group<FORMAT>(a, (first + u * stride) * LOAD_GROUP, value, &bad);
            }
        }
    }
    for (int64_t i = n_groups * LOAD_GROUP + thread; i < n; i += stride) {
        store_one<FORMAT>(a, i, source.one(i), &bad);
    }
    if (bad) {
        *(volatile uint32_t *)a.fault = a.mark;
    }
}

template <typename SOURCE> DEVICE void load_any(const load_args &a) {
    const SOURCE source(a);
    if (a.format == LOAD_F32) {
        load_as<LOAD_F32>(a, source);
    } else if (a.format == LOAD_BF16) {
        load_as<LOAD_BF16>(a, source);
    } else {
        load_as<LOAD_F16>(a, source);
    }
}

extern "C" __global__ void __launch_bounds__(LOAD_THREADS) load_rows(load_args a) {
    if (a.in == 0) {
        load_any<dummy_rows>(a);
    } else if (a.dtype == LOAD_F32) {
        load_any<file_rows<LOAD_F32>>(a);
    } else if (a.dtype == LOAD_BF16) {
        load_any<file_rows<LOAD_BF16>>(a);
    } else {
        load_any<file_rows<LOAD_F16>>(a);
    }
}

/* ---- int8: scale = max|x| / 127, q = x / scale to nearest even ---- */

DEVICE uint32_t magnitude(float value) {
    return __float_as_uint(value) & 0x7fffffff; /* rises as the numbers do, then come infinity and NaN */
}

DEVICE uint32_t quantized(float value, float scale) {
    return (uint32_t)__float2int_rn(fmaxf(fminf(__fdiv_rn(value, scale), 127.0f), -127.0f)) & 0xff;
}

/* The largest magnitude of n elements from `first` on, on every lane; those that `stage` holds are left there. */
template <typename SOURCE>
DEVICE uint32_t largest(const SOURCE &source, int64_t first, int n, bool by_group, float *stage) {
    const int lane = threadIdx.x % 32, n_groups = by_group ? n / LOAD_GROUP : 0;
    uint32_t most = 0;
    for (int g = lane; g < n_groups; g += 32) {
        float value[LOAD_GROUP];
        source.widen(source.fetch(first + g * LOAD_GROUP), first + g * LOAD_GROUP, value);
        for (int i = 0; i < LOAD_GROUP; i++) {
            most = max(most, magnitude(value[i]));
            if (g * LOAD_GROUP + i < LOAD_STAGE) {
                stage[g * LOAD_GROUP + i] = value[i];
            }
        }
    }
    for (int i = n_groups * LOAD_GROUP + lane; i < n; i += 32) {
        float value = source.one(first + i);
        most = max(most, magnitude(value));
        if (i < LOAD_STAGE) {
            stage[i] = value;
        }
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        most = max(most, __shfl_xor_sync(0xffffffffu, most, lanes));
    }
    return most;
}

template <typename SOURCE>
DEVICE void load_leaf(const load_args &a, const SOURCE &source, int64_t row, int leaf, float *stage) {
    const int lane = threadIdx.x % 32, n = a.border[leaf + 1] - a.border[leaf];
    const int64_t first = row * a.cols + a.border[leaf];
    const bool by_group =
        source.aligned && a.out % 8 == 0 && a.cols % LOAD_GROUP == 0; /* borders are multiples of 16 */
    const float scale = __fdiv_rn(__uint_as_float(largest(source, first, n, by_group, stage)), 127.0f);
    const bool good = scale > 0.0f && magnitude(scale) < 0x7f800000u;
    uint8_t *out = (uint8_t *)a.out + first;
    const int n_groups = by_group ? n / LOAD_GROUP : 0;
    __syncwarp();
    for (int g = lane; g < n_groups; g += 32) {
        uint32_t word[2] = {0, 0};
        for (int i = 0; i < LOAD_GROUP && good; i++) {
            int k = g * LOAD_GROUP + i;
            word[i / 4] |= quantized(k < LOAD_STAGE ? stage[k] : source.one(first + k), scale) << i % 4 * 8;
        }
        ((uint2 *)out)[g] = make_uint2(word[0], word[1]);
    }
    for (int k = n_groups * LOAD_GROUP + lane; k < n; k += 32) {
        out[k] = good ? (uint8_t)quantized(k < LOAD_STAGE ? stage[k] : source.one(first + k), scale) : 0;
    }
    if (lane == 0) {
        ((float *)a.scale)[row * a.n_leaves + leaf] = scale;
        if (magnitude(scale) >= 0x7f800000u) {
            *(volatile uint32_t *)a.fault = a.mark;
        }
    }
    __syncwarp();
}

template <typename SOURCE> DEVICE void load_leaves(const load_args &a, float *stage) {
    const SOURCE source(a);
    const int64_t n = a.rows * a.n_leaves;
    for (int64_t i = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; i < n; i += (int64_t)gridDim.x * WARPS) {
        load_leaf(a, source, i / a.n_leaves, (int)(i % a.n_leaves), stage);
    }
}

extern "C" __global__ void __launch_bounds__(LOAD_THREADS) load_int8(load_args a) {
    __shared__ __align__(16) float stages[WARPS][LOAD_STAGE]; /* here, or every source would have one of its own */
    float *stage = stages[threadIdx.x / 32];
    if (a.in == 0) {
        load_leaves<dummy_rows>(a, stage);
    } else if (a.dtype == LOAD_F32) {
        load_leaves<file_rows<LOAD_F32>>(a, stage);
    } else if (a.dtype == LOAD_BF16) {
        load_leaves<file_rows<LOAD_BF16>>(a, stage);
    } else {
        load_leaves<file_rows<LOAD_F16>>(a, stage);
    }
}
