/*
 * The residual stream in decode steps: embed, and exchange with the norm of the op behind it. Formulas in ops.h.
 *
 * exchange: one block a row. How a row's sum of squares is added depends on d alone. Nothing overlaps with what it does once
 * its input is there, so it does it twice: the first time while it waits, on whatever lies in memory, storing nothing, so
 * that instructions and addresses are at hand when it counts.
 *
 * exchange_slim: for more rows than decode's own matmuls take. With few registers its blocks run beside those of the matmul
 * before it, which end, and of the one behind it, which ask for weights meanwhile; nodes come four at a time, in the same order.
 */
#include "backend/cuda/kern/stream.cuh"

extern "C" __global__ void decode_embed(const __grid_constant__ decode_embed_args a) {
    const int m = blockIdx.x;
    wait_for_earlier_kernels(); /* the one that brings the step in, which those behind read before they wait */
    let_next_kernel_start();
    if (m >= a.step->n_rows) {
        return;
    }
    if (threadIdx.x == 0) {
        a.fault[m] = 0;
    }
    const embed_row row(a, m);
    for (int i = threadIdx.x; i < a.d; i += blockDim.x) {
        a.y[(int64_t)m * a.d + i] = row.value(a, i);
    }
}

/* h of this row, WIDTH elements a thread at a time; kept in shared memory too. Returns this thread's sum of squares. */
template <int WIDTH> DEVICE float exchange_row(const decode_exchange_args &a, int m, float *kept, bool stores) {
    float squares = 0.0F;
    bool bad = false;
    for (int i = threadIdx.x * WIDTH; i < a.d; i += blockDim.x * WIDTH) {
        const int64_t at = (int64_t)m * a.d + i;
        floats<WIDTH> node[DECODE_LEAVES], h, bias;
#pragma unroll
        for (int j = 0; j < DECODE_LEAVES; j++) {
            if (j < a.n_nodes) {
                node[j] = load_floats<WIDTH>(a.node[j] + at);
            }
        }
        if (!a.init) {
            h = load_floats<WIDTH>(a.h + at);
        }
        if (a.bias != NULL) {
            bias = load_floats<WIDTH>(a.bias + i);
        }
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            float value = a.init ? 0.0F : h.v[e];
            if (a.n_nodes > 0) {
                float tree[DECODE_LEAVES];
#pragma unroll
                for (int j = 0; j < DECODE_LEAVES; j++) {
                    tree[j] = j < a.n_nodes ? node[j].v[e] : 0.0F;
                }
                float sum = leaf_tree(tree, a.n_nodes);
                value += a.bias != NULL ? sum + bias.v[e] : sum;
                bad = bad || !isfinite(value);
            }
            h.v[e] = value;
            kept[i + e] = value;
            squares = fmaf(value, value, squares);
        }
        if (stores && a.n_nodes > 0) {
            store_floats<WIDTH>(a.h + at, h);
        }
    }
    if (stores && bad) {
        note_fault(a.fault, m, a.op_index);
    }
    return squares;
}

enum { MANY_ROWS = 256 }; /* more blocks than run at a time: their input is there when they begin */

/* Shared memory: d floats. */
extern "C" __global__ void __launch_bounds__(1024) decode_exchange(const __grid_constant__ decode_exchange_args a) {
    extern __shared__ __align__(16) float kept[];
    __shared__ float room[32];
    const int m = blockIdx.x;
    let_next_kernel_start();
    if (m >= a.step->n_rows) {
        return;
    }
    const int to = a.out_rows ? output_of_row(a.step, m) : m; /* row of x */
    const bool wide = a.d % 4 == 0;
#pragma unroll 1
    for (int run = gridDim.x > MANY_ROWS; run < 2; run++) {
        const bool stores = run > 0;
        if (stores) {
            wait_for_earlier_kernels();
        }
        const float squares = wide ? exchange_row<4>(a, m, kept, stores) : exchange_row<1>(a, m, kept, stores);
        if (a.norm != NULL && to >= 0) {
            const float scale = 1.0F / sqrtf(block_sum(squares, room) / (float)a.d + a.eps);
            if (wide) {
                norm_row<4>(a, to, kept, scale, stores);
            } else {
                norm_row<1>(a, to, kept, scale, stores);
            }
        }
        __syncthreads(); /* before `room` is used again */
    }
}

/* ---- Many rows ---- */

/* What nobody writes while this waits, and what is this row's: from memory, where weights that passed since left it. */
DEVICE void bring_row_to_l2(const decode_exchange_args &a, int m) {
    for (int i = threadIdx.x * 32; i < a.d; i += blockDim.x * 32) { /* 128 bytes */
        if (!a.init) {
            prefetch_to_l2(a.h + (int64_t)m * a.d + i);
        }
        if (a.bias != NULL) {
            prefetch_to_l2(a.bias + i);
        }
        if (a.norm != NULL) {
            prefetch_to_l2(a.norm + i);
        }
    }
}

/* The sums of four elements of nodes [first, first + 4), or all there are. */
DEVICE floats<4> sum_of_four(const decode_exchange_args &a, int first, int64_t at) {
    floats<4> node[4], sum;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (j < a.n_nodes) {
            node[j] = load_floats<4>(a.node[first + j] + at);
        }
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float tree[DECODE_LEAVES] = {};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            tree[j] = j < a.n_nodes ? node[j].v[e] : 0.0F;
        }
        sum.v[e] = leaf_tree(tree, min(a.n_nodes, 4));
    }
    return sum;
}

/* exchange_row<4> and block_sum, whose bits these are: blocks of decode_exchange have a thread for every four elements, these
 * may take them in turns, and `room` has a float for each warp of theirs. */
DEVICE float exchange_slim_row(const decode_exchange_args &a, int m, float *kept, float *room) {
    const int lane = threadIdx.x % 32;
    int n_warps = 0;
    bool bad = false;
    for (int first = 0; first < a.d; first += blockDim.x * 4, n_warps += blockDim.x / 32) {
        const int i = first + threadIdx.x * 4;
        float squares = 0.0F;
        if (i < a.d) {
            const int64_t at = (int64_t)m * a.d + i;
            floats<4> h = {};
            if (!a.init) {
                h = load_floats<4>(a.h + at);
            }
            if (a.n_nodes > 0) {
                floats<4> sum = sum_of_four(a, 0, at);
                if (a.n_nodes > 4) {
                    const floats<4> rest = sum_of_four(a, 4, at);
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        sum.v[e] = sum.v[e] + rest.v[e];
                    }
                }
                if (a.bias != NULL) {
                    const floats<4> bias = load_floats<4>(a.bias + i);
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        sum.v[e] = sum.v[e] + bias.v[e];
                    }
                }
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    h.v[e] += sum.v[e];
                    bad = bad || !isfinite(h.v[e]);
                }
                store_floats<4>(a.h + at, h);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                kept[i + e] = h.v[e];
                squares = fmaf(h.v[e], h.v[e], squares);
            }
        }
        squares = warp_sum(squares);
        if (lane == 0) {
            room[n_warps + threadIdx.x / 32] = squares;
        }
    }
    if (bad) {
        note_fault(a.fault, m, a.op_index);
    }
    __syncthreads();
    return warp_sum(lane < n_warps ? room[lane] : 0.0F);
}

/* d is a multiple of 4, 4096 at most. Shared memory: d floats. */
extern "C" __global__ void __launch_bounds__(DECODE_SLIM_THREADS, 2)
    decode_exchange_slim(const __grid_constant__ decode_exchange_args a) {
    extern __shared__ __align__(16) float kept[];
    __shared__ float room[32];
    const int m = blockIdx.x;
    let_next_kernel_start();
    if (m >= a.step->n_rows) {
        return;
    }
    bring_row_to_l2(a, m);
    const int to = a.out_rows ? output_of_row(a.step, m) : m;
    wait_for_earlier_kernels();
    const float squares = exchange_slim_row(a, m, kept, room);
    if (a.norm != NULL && to >= 0) {
        norm_row<4>(a, to, kept, 1.0F / sqrtf(squares / (float)a.d + a.eps), true);
    }
}
