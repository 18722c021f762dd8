/*
 * Rows of the residual stream and their norm, as exchanges go about them: decode_stream.cu on one rank, exchange.cu on several.
 * How a row's sum of squares is added depends on d and the block alone.
 */
#ifndef LS_BACKEND_CUDA_STREAM_CUH
#define LS_BACKEND_CUDA_STREAM_CUH

#include "backend/cuda/kern/common.cuh"

/* Which output row m is; -1: none. */
DEVICE int output_of_row(const cuda_step *step, int m) {
    const int32_t *out_row = step_array<int32_t>(step, step->out_row);
    int to = -1;
    for (int i = 0; i < step->n_out; i++) {
        to = out_row[i] == m ? i : to;
    }
    return to;
}

/* The same on every thread; `room` is shared memory for 32 floats. */
DEVICE float block_sum(float value, float *room) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    value = warp_sum(value);
    if (lane == 0) {
        room[warp] = value;
    }
    __syncthreads();
    return warp_sum(lane < (int)(blockDim.x / 32) ? room[lane] : 0.0F);
}

template <int WIDTH> struct floats { float v[WIDTH]; };

/* From L2, where an earlier kernel's stores are. */
template <int WIDTH> DEVICE floats<WIDTH> load_floats(const float *p) {
    floats<WIDTH> out;
    if (WIDTH == 4) {
        float4 all = __ldcg(reinterpret_cast<const float4 *>(p));
        out.v[0] = all.x;
        out.v[1 % WIDTH] = all.y;
        out.v[2 % WIDTH] = all.z;
        out.v[3 % WIDTH] = all.w;
    } else {
        out.v[0] = __ldcg(p);
    }
    return out;
}

template <int WIDTH> DEVICE void store_floats(float *p, const floats<WIDTH> &value) {
    if (WIDTH == 4) {
        *reinterpret_cast<float4 *>(p) =
            make_float4(value.v[0], value.v[1 % WIDTH], value.v[2 % WIDTH], value.v[3 % WIDTH]);
    } else {
        *p = value.v[0];
    }
}

/* Row `to` of x: ARGS has d, norm, dtype and x. Each thread reads what it kept itself. */
template <int WIDTH, typename ARGS>
DEVICE void norm_row(const ARGS &a, int to, const float *kept, float scale, bool stores) {
    for (int i = threadIdx.x * WIDTH; i < a.d; i += blockDim.x * WIDTH) {
        const int64_t at = (int64_t)to * a.d + i;
        floats<WIDTH> x = load_floats<WIDTH>(a.norm + i);
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            x.v[e] = kept[i + e] * scale * x.v[e];
        }
        if (!stores) {
            continue;
        }
        if (WIDTH == 4 && a.dtype != KERN_F32) {
            static_cast<uint2 *>(a.x)[at / 4] =
                make_uint2(pair_of(a.dtype, x.v[0], x.v[1 % WIDTH]), pair_of(a.dtype, x.v[2 % WIDTH], x.v[3 % WIDTH]));
        } else if (WIDTH == 4) {
            store_floats<WIDTH>(static_cast<float *>(a.x) + at, x);
        } else {
            store_as(a.dtype, a.x, at, x.v[0]);
        }
    }
}

#endif
