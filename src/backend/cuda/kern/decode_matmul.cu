/*
 * Matmuls of decode steps, and of other steps of few rows: y[m][n] = sum over k of w[n][k] x[m][k] up the leaf tree
 * of ops.h. A block takes up to 32 rows of x; blockIdx.z says which.
 *
 * A warp sums one leaf of 16 rows of W. Lane (g, t) = (lane / 4, lane % 4) loads 16 bytes, a UNIT, of rows g and g + 8: unit
 * t of a chunk of four. The mma's k is permuted so that a unit holds what the lane needs for one or more mmas (A's slots
 * 2t, 2t+1 and 2t+8, 2t+9 are neighbours in memory), and x is loaded by the same permutation. So weights go from memory to
 * registers as they lie. A ring of UNROLL chunks a warp is in flight.
 *
 * Bits: a leaf's sum is one chain of mmas (f32: one chain of fmas for each of four lanes, then a fixed tree), each column of
 * which depends on its own row of x alone; leaves are added up by the fixed tree. Neither M, nor the number of
 * tiles of columns, nor how leaves are spread over blocks changes that.
 *
 * Weights that no 16-byte loads can reach (k no multiple of a unit) go the same way through loads of single elements: ODD.
 */
#include "backend/cuda/kern/common.cuh"

/* Where a lane finds its units. ACT: dtype of x, and of W unless INT8. COLUMNS: most rows of x. */
template <int ACT, bool INT8, int COLUMNS, bool ODD> struct units {
    static constexpr bool IS_F32 = ACT == KERN_F32;
    static constexpr int TILES = COLUMNS / 8;
    static constexpr int W_BYTES = INT8 ? 1 : IS_F32 ? 4 : 2;
    static constexpr int X_BYTES = IS_F32 ? 4 : 2;
    static constexpr int UNIT = 16 / W_BYTES;           /* elements of a unit */
    static constexpr int CHUNK = 4 * UNIT;              /* elements of a row that a warp takes at a time */
    static constexpr int X_LOADS = UNIT * X_BYTES / 16; /* 16-byte loads of x for a unit */
    /* Chunks of a warp in flight, of W and (a divisor of it) of x: measured; with many columns, what registers allow. */
    static constexpr int UNROLL = IS_F32 || COLUMNS > 8 ? 4 : INT8 ? 6 : 8;
    static constexpr int X_UNROLL = COLUMNS <= 16 ? UNROLL : INT8 ? 1 : 2;

    const char *low, *high; /* rows g and g + 8 of W */
    const char *x;
    int k, n_rows; /* stride of x; its rows */
    int unit_k;    /* first element of this lane's unit in chunk 0 */
    int end;       /* of the leaf */

    DEVICE_MEMBER void load_w(uint4 *to_low, uint4 *to_high, int chunk) const {
        const int at = unit_k + chunk * CHUNK;
        if (ODD) {
            *to_low = load_elements<W_BYTES>(low, at, end);
            *to_high = load_elements<W_BYTES>(high, at, end);
        } else {
            *to_low = load_weight(low + (int64_t)at * W_BYTES, at < end);
            *to_high = load_weight(high + (int64_t)at * W_BYTES, at < end);
        }
    }

    /* X_LOADS times 16 bytes of row m of x, at this lane's unit. */
    DEVICE_MEMBER void load_x_row(uint4 *to, int m, int at) const {
        const char *row = x + (int64_t)m * k * X_BYTES;
#pragma unroll
        for (int i = 0; i < X_LOADS; i++) {
            const int first = at + i * (16 / X_BYTES);
            if (ODD) {
                to[i] = load_elements<X_BYTES>(row, first, m < n_rows ? end : 0);
            } else {
                to[i] = load_shared_by_rows(row + (int64_t)first * X_BYTES, m < n_rows && first < end);
            }
        }
    }

    /* mma: row g of each tile of eight. */
    DEVICE_MEMBER void load_x(uint4 (*to)[X_LOADS], int g, int chunk) const {
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            load_x_row(to[i], i * 8 + g, unit_k + chunk * CHUNK);
        }
    }
};

/* A warp's sums over its leaf. */
template <int ACT, bool INT8, int COLUMNS, bool ODD> struct tile : units<ACT, INT8, COLUMNS, ODD> {
    using base = units<ACT, INT8, COLUMNS, ODD>;
    using base::IS_F32;
    using base::TILES;
    using base::UNIT;
    using base::X_LOADS;

    float acc[IS_F32 ? 2 * COLUMNS : 4 * TILES];

    DEVICE_MEMBER void add_pair(int i, uint4 l, uint4 h, uint4 b) {
        mma<ACT>(*reinterpret_cast<float(*)[4]>(&acc[4 * i]), l.x, h.x, l.y, h.y, b.x, b.y);
        mma<ACT>(*reinterpret_cast<float(*)[4]>(&acc[4 * i]), l.z, h.z, l.w, h.w, b.z, b.w);
    }

    DEVICE_MEMBER void add_mma(const uint4 &l, const uint4 &h, const uint4 (*b)[X_LOADS]) {
        if (INT8) {
            uint4 lw[2], hw[2]; /* 16 elements as pairs */
            pairs_of_int8<ACT>(l.x, &lw[0].x, &lw[0].y);
            pairs_of_int8<ACT>(l.y, &lw[0].z, &lw[0].w);
            pairs_of_int8<ACT>(l.z, &lw[1].x, &lw[1].y);
            pairs_of_int8<ACT>(l.w, &lw[1].z, &lw[1].w);
            pairs_of_int8<ACT>(h.x, &hw[0].x, &hw[0].y);
            pairs_of_int8<ACT>(h.y, &hw[0].z, &hw[0].w);
            pairs_of_int8<ACT>(h.z, &hw[1].x, &hw[1].y);
            pairs_of_int8<ACT>(h.w, &hw[1].z, &hw[1].w);
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                add_pair(i, lw[0], hw[0], b[i][0]);
                add_pair(i, lw[1], hw[1], b[i][X_LOADS - 1]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                add_pair(i, l, h, b[i][0]);
            }
        }
    }

    /* f32: this lane's unit of all rows of x, for its two rows of W. */
    DEVICE_MEMBER void add_f32(const uint4 &l, const uint4 &h, int chunk) {
        const int at = this->unit_k + chunk * base::CHUNK;
        float lw[UNIT], hw[UNIT];
        if (INT8) {
            const uint32_t lword[4] = {l.x, l.y, l.z, l.w}, hword[4] = {h.x, h.y, h.z, h.w};
#pragma unroll
            for (int i = 0; i < UNIT / 4; i++) {
                lw[4 * i] = widen_int8<0>(lword[i]);
                lw[4 * i + 1] = widen_int8<1>(lword[i]);
                lw[4 * i + 2] = widen_int8<2>(lword[i]);
                lw[4 * i + 3] = widen_int8<3>(lword[i]);
                hw[4 * i] = widen_int8<0>(hword[i]);
                hw[4 * i + 1] = widen_int8<1>(hword[i]);
                hw[4 * i + 2] = widen_int8<2>(hword[i]);
                hw[4 * i + 3] = widen_int8<3>(hword[i]);
            }
        } else {
            lw[0] = __uint_as_float(l.x);
            lw[1] = __uint_as_float(l.y);
            lw[2] = __uint_as_float(l.z);
            lw[3] = __uint_as_float(l.w);
            hw[0] = __uint_as_float(h.x);
            hw[1] = __uint_as_float(h.y);
            hw[2] = __uint_as_float(h.z);
            hw[3] = __uint_as_float(h.w);
        }
#pragma unroll
        for (int m = 0; m < COLUMNS; m++) {
            if (m < this->n_rows) {
                uint4 b[X_LOADS];
                this->load_x_row(b, m, at);
#pragma unroll
                for (int i = 0; i < UNIT; i++) {
                    const uint4 &four = b[i / 4];
                    const float value = __uint_as_float(i % 4 == 0   ? four.x
                                                        : i % 4 == 1 ? four.y
                                                        : i % 4 == 2 ? four.z
                                                                     : four.w);
                    acc[m] = fmaf(lw[i], value, acc[m]);
                    acc[COLUMNS + m] = fmaf(hw[i], value, acc[COLUMNS + m]);
                }
            }
        }
    }
};

/* This warp's leaf: sums[m][row of the tile]. */
template <int ACT, bool INT8, int COLUMNS, bool ODD>
DEVICE void leave(tile<ACT, INT8, COLUMNS, ODD> &s, float *sums, int g, int t, float scale_low, float scale_high) {
    auto &acc = s.acc;
    if (s.IS_F32) {
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; i++) {
            acc[i] += __shfl_xor_sync(0xffffffffu, acc[i], 1);
            acc[i] += __shfl_xor_sync(0xffffffffu, acc[i], 2);
        }
#pragma unroll
        for (int m = 0; m < COLUMNS; m++) {
            if (m % 4 == t) {
                sums[m * DECODE_TILE + g] = INT8 ? acc[m] * scale_low : acc[m];
                sums[m * DECODE_TILE + g + 8] = INT8 ? acc[COLUMNS + m] * scale_high : acc[COLUMNS + m];
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < s.TILES; i++) {
            float *to = sums + (i * 8 + 2 * t) * DECODE_TILE + g;
            to[0] = INT8 ? acc[4 * i] * scale_low : acc[4 * i];
            to[DECODE_TILE] = INT8 ? acc[4 * i + 1] * scale_low : acc[4 * i + 1];
            to[8] = INT8 ? acc[4 * i + 2] * scale_high : acc[4 * i + 2];
            to[DECODE_TILE + 8] = INT8 ? acc[4 * i + 3] * scale_high : acc[4 * i + 3];
        }
    }
}

/* Adds the leaves of this block and passes the outputs on. first_row: of the tile, in its matrix. */
template <int ACT, int COLUMNS>
DEVICE void finish(const decode_matmul_args &a, const decode_matrix &w, const float *sums, int first_row, int first_m,
                   int n_rows) {
    const int n_leaves = blockDim.x / 32;
    const int tile_rows = a.kind == DECODE_FFN_IN ? DECODE_TILE / 2 : DECODE_TILE;
    for (int i = threadIdx.x; i < COLUMNS * tile_rows; i += blockDim.x) {
        const int r = i % tile_rows, m = i / tile_rows, row = first_row + r;
        if (m >= n_rows || row >= w.rows) {
            continue;
        }
        float leaf[DECODE_LEAVES], other[DECODE_LEAVES];
#pragma unroll
        for (int j = 0; j < DECODE_LEAVES; j++) {
            const float *at = sums + (j * COLUMNS + m) * DECODE_TILE + r;
            leaf[j] = j < n_leaves ? at[0] : 0.0F;
            other[j] = j < n_leaves && a.kind == DECODE_FFN_IN ? at[8] : 0.0F;
        }
        float value = leaf_tree(leaf, n_leaves);
        const int64_t to = (int64_t)(first_m + m) * a.y_stride + w.y_first + row;
        if (a.kind == DECODE_FFN_IN) {
            float gate = w.bias != NULL ? value + w.bias[row] : value;
            float up = leaf_tree(other, n_leaves);
            up = a.matrix[1].bias != NULL ? up + a.matrix[1].bias[row] : up;
            store_as(ACT, a.y, to, gate / (1.0F + expf(-gate)) * up);
        } else if (a.kind == DECODE_QKV) {
            static_cast<float *>(a.y)[to] = w.bias != NULL ? value + w.bias[row] : value;
        } else {
            static_cast<float *>(a.y)[to + blockIdx.y * a.node_stride] = value;
            if (a.kind == DECODE_HEAD && !isfinite(value)) {
                note_fault(a.fault, step_array<int32_t>(a.step, a.step->out_row)[first_m + m], a.op_index);
            }
        }
    }
}

/* Shared memory: warps * COLUMNS * 16 floats. A warp is a leaf. */
template <int ACT, bool INT8, int COLUMNS, bool ODD> DEVICE void matmul(const decode_matmul_args &a) {
    using tile_t = tile<ACT, INT8, COLUMNS, ODD>;
    constexpr int UNROLL = tile_t::UNROLL, X_UNROLL = tile_t::X_UNROLL;
    extern __shared__ __align__(16) float sums[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int leaf = blockIdx.y * (blockDim.x / 32) + warp, first_m = blockIdx.z * COLUMNS;
    let_next_kernel_start();

    /* Which matrix, which rows of it. Rows behind the last one are read as the last one and not stored. */
    decode_matrix w = a.matrix[0];
    int first_row;
    const void *w_high;
    int row_low, row_high;
    const float *scale_high;
    if (a.kind == DECODE_FFN_IN) {
        first_row = blockIdx.x * (DECODE_TILE / 2);
        row_low = row_high = min(first_row + g, w.rows - 1);
        w_high = a.matrix[1].w;
        scale_high = a.matrix[1].scale;
    } else {
        int i_tile = blockIdx.x;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int n_tiles = (w.rows + DECODE_TILE - 1) / DECODE_TILE;
            if (i_tile >= n_tiles && a.matrix[i + 1].rows > 0) {
                i_tile -= n_tiles;
                w = a.matrix[i + 1];
            } else {
                break;
            }
        }
        first_row = i_tile * DECODE_TILE;
        row_low = min(first_row + g, w.rows - 1);
        row_high = min(first_row + g + 8, w.rows - 1);
        w_high = w.w;
        scale_high = w.scale;
    }

    tile_t s;
    s.low = static_cast<const char *>(w.w) + (int64_t)row_low * a.k * tile_t::W_BYTES;
    s.high = static_cast<const char *>(w_high) + (int64_t)row_high * a.k * tile_t::W_BYTES;
    s.x = static_cast<const char *>(a.x) + (int64_t)first_m * a.k * tile_t::X_BYTES;
    s.k = a.k;
    const int begin = a.border[leaf];
    s.end = a.border[leaf + 1];
    s.unit_k = begin + t * tile_t::UNIT;
    const int n_chunks = (s.end - begin + tile_t::CHUNK - 1) / tile_t::CHUNK;
#pragma unroll
    for (int i = 0; i < (int)(sizeof s.acc / sizeof *s.acc); i++) {
        s.acc[i] = 0.0F;
    }

    uint4 w_low[UNROLL], w_hi[UNROLL], b[X_UNROLL][tile_t::TILES][tile_t::X_LOADS];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        s.load_w(&w_low[u], &w_hi[u], u);
    }
    float scale_of_low = 0.0F, scale_of_high = 0.0F;
    if (INT8) {
        scale_of_low = w.scale[(int64_t)row_low * a.n_leaves + leaf];
        scale_of_high = scale_high[(int64_t)row_high * a.n_leaves + leaf];
    }
    const int n_rows = min(COLUMNS, (a.kind == DECODE_HEAD ? a.step->n_out : a.step->n_rows) - first_m);
    s.n_rows = n_rows;
    wait_for_earlier_kernels();
    if (!tile_t::IS_F32) {
#pragma unroll
        for (int u = 0; u < X_UNROLL; u++) {
            s.load_x(b[u], g, u);
        }
    }
    for (int chunk = 0; chunk < n_chunks; chunk += UNROLL) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (chunk + u < n_chunks) {
                if (tile_t::IS_F32) {
                    s.add_f32(w_low[u], w_hi[u], chunk + u);
                } else {
                    s.add_mma(w_low[u], w_hi[u], b[u % X_UNROLL]);
                    s.load_x(b[u % X_UNROLL], g, chunk + u + X_UNROLL);
                }
                s.load_w(&w_low[u], &w_hi[u], chunk + u + UNROLL);
            }
        }
    }
    leave(s, sums + warp * COLUMNS * DECODE_TILE, g, t, scale_of_low, scale_of_high);
    __syncthreads();
    finish<ACT, COLUMNS>(a, w, sums, first_row, first_m, n_rows);
}

/* Names: dtype of x, of W where it differs; the most rows; odd: any k. */
#define DEFINE_MATMUL(name, act, int8, columns, odd, blocks)                                                           \
    extern "C" __global__ void __launch_bounds__(256, blocks) name(const __grid_constant__ decode_matmul_args a) {     \
        matmul<act, int8, columns, odd>(a);                                                                            \
    }
#define DEFINE_MATMULS(name, act, int8)                                                                                \
    DEFINE_MATMUL(decode_matmul_##name##_odd, act, int8, 16, true, 1)                                                  \
    DEFINE_MATMUL(decode_matmul_##name##_8, act, int8, 8, false, 2)                                                    \
    DEFINE_MATMUL(decode_matmul_##name##_16, act, int8, 16, false, 2)
#define DEFINE_WIDE_MATMULS(name, act, int8)                                                                           \
    DEFINE_MATMULS(name, act, int8)                                                                                    \
    DEFINE_MATMUL(decode_matmul_##name##_24, act, int8, 24, false, 2)                                                  \
    DEFINE_MATMUL(decode_matmul_##name##_32, act, int8, 32, false, 2)

DEFINE_MATMULS(f32, KERN_F32, false)
DEFINE_WIDE_MATMULS(bf16, KERN_BF16, false)
DEFINE_WIDE_MATMULS(f16, KERN_F16, false)
DEFINE_MATMULS(int8_f32, KERN_F32, true)
DEFINE_WIDE_MATMULS(int8_bf16, KERN_BF16, true)
DEFINE_WIDE_MATMULS(int8_f16, KERN_F16, true)
