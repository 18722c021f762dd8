/*
 * What the matmuls of few rows of x share: where tiles lie, x, the products, and what becomes of sums. A warp sums one leaf of
 * 16 rows of W for up to COLUMNS rows of x; how it comes by its weights is decode_matmul.cu's and decode_matmul_wide.cu's. See
 * there for the layout and for bits.
 */
#ifndef LS_BACKEND_CUDA_DECODE_MATMUL_CUH
#define LS_BACKEND_CUDA_DECODE_MATMUL_CUH

#include "backend/cuda/kern/common.cuh"

/* A row of a matrix; where not wanted, it lies behind its tile. */
struct matrix_row {
    int matrix, row;
    bool wanted;
};

/* Where a tile lies. EVEN: rows [first, end) of all matrices in turn. Else, and in ffn_in: rows from `first` on of the matrix
 * `low`, 16 or as many as there are; ffn_in: of gate and of up, 8 each. */
template <bool EVEN> struct place {
    int low, first, end;

    /* Row i of the tile, or of a half of it. */
    DEVICE_MEMBER matrix_row row(const decode_matmul_args &a, int i) const {
        if (EVEN) {
            const int row = first + i, q = a.matrix[0].rows, matrix = (row >= q) + (row >= q + a.matrix[1].rows);
            return {matrix, row - a.matrix[matrix].y_first, row < end};
        }
        return {low, first + i, first + i < a.matrix[low].rows};
    }

    /* What lane group g reads as its row of the low or the high half: the last one instead of those behind it. EVEN: that is
     * not wanted. */
    DEVICE_MEMBER matrix_row lane_row(const decode_matmul_args &a, int half, int g) const {
        const int i = first + g + (a.is_pair ? 0 : half * DECODE_TILE / 2);
        if (EVEN) {
            matrix_row it = row(a, min(i, end - 1) - first);
            it.matrix += a.is_pair ? half : 0;
            it.wanted = i < end;
            return it;
        }
        const int matrix = low + (half == 0 ? 0 : a.is_pair);
        return {matrix, min(i, a.matrix[matrix].rows - 1), true};
    }
};

/* The tiles of a block, or of one of its groups of warps. EVEN: as many rows as others have, in tiles that are as equal; else every
 * gridDim.x-th tile. */
template <bool EVEN> struct share {
    int first, count, n_tiles; /* EVEN: rows; tiles of them */

    DEVICE_MEMBER share(const decode_matmul_args &a, int group, int n_groups) {
        if (EVEN) {
            const int shares = (int)gridDim.x * n_groups, mine = (int)blockIdx.x * n_groups + group,
                      least = a.n_rows / shares, more = a.n_rows - least * shares,
                      most = a.is_pair ? DECODE_TILE / 2 : DECODE_TILE;
            first = least * mine + min(mine, more);
            count = least + (mine < more);
            n_tiles = (count + most - 1) / most;
        }
    }

    /* Numbers of tiles. */
    DEVICE_MEMBER int begin() const {
        return EVEN ? 0 : blockIdx.x;
    }
    DEVICE_MEMBER int step() const {
        return EVEN ? 1 : gridDim.x;
    }
    DEVICE_MEMBER int end(const decode_matmul_args &a) const {
        return EVEN ? n_tiles : a.n_tiles;
    }

    DEVICE_MEMBER place<EVEN> tile(const decode_matmul_args &a, int i) const {
        if (EVEN) {
            return {0, first + count * i / n_tiles, first + count * (i + 1) / n_tiles};
        }
        const int low = (i >= a.matrix[1].first_tile) + (i >= a.matrix[2].first_tile);
        return {low, (i - a.matrix[low].first_tile) * (a.is_pair ? DECODE_TILE / 2 : DECODE_TILE), 0};
    }
};

/* Where a lane finds its units. ACT: dtype of x, and of W unless INT8. COLUMNS: 8 or 16 rows of x. */
template <int ACT, bool INT8, int COLUMNS, bool ODD> struct units {
    static constexpr bool IS_F32 = ACT == KERN_F32;
    static constexpr int TILES = COLUMNS / 8;
    static constexpr int W_BYTES = INT8 ? 1 : IS_F32 ? 4 : 2;
    static constexpr int X_BYTES = IS_F32 ? 4 : 2;
    static constexpr int UNIT = 16 / W_BYTES;           /* elements of a unit */
    static constexpr int CHUNK = 4 * UNIT;              /* elements of a row that a warp takes at a time */
    static constexpr int X_LOADS = UNIT * X_BYTES / 16; /* 16-byte loads of x for a unit */

    const char *x;    /* so that elements of the leaf are found by their number in all of k */
    int64_t x_stride; /* bytes */
    int n_rows;       /* of x */
    int unit_k;       /* first element of this lane's unit in the first chunk */
    int end;          /* of the leaf */

    /* The leaf's part of x comes to `to`, in shared memory. */
    DEVICE_MEMBER void move_x(char *to, int begin) {
        const int bytes = (end - begin) * X_BYTES, lane = threadIdx.x % 32;
#pragma unroll 1
        for (int m = 0; m < n_rows; m++) {
#pragma unroll 4
            for (int i = lane * 16; i < bytes; i += 32 * 16) {
                *reinterpret_cast<uint4 *>(to + m * bytes + i) =
                    load_shared_by_rows(x + m * x_stride + begin * X_BYTES + i, true);
            }
        }
        x = to - begin * X_BYTES;
        x_stride = bytes;
    }

    /* The same by `n_groups` warps, of which this is number `group`, for more rows than one: as many loads at a time as registers
     * allow, since what counts is how often memory is waited for. */
    DEVICE_MEMBER void move_x_together(char *to, int begin, int group, int n_groups) {
        constexpr int AT_ONCE = 10;
        const int bytes = (end - begin) * X_BYTES, total = n_rows * bytes, step = n_groups * 32 * 16;
        const char *from = x + begin * X_BYTES;
        int at = (group * 32 + threadIdx.x % 32) * 16; /* in its row */
#pragma unroll 1
        for (int first = at; first < total; first += AT_ONCE * step) {
            uint4 piece[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                while (at >= bytes && first + i * step < total) {
                    at -= bytes;
                    from += x_stride;
                }
                piece[i] = load_shared_by_rows(from + at, first + i * step < total);
                at += step;
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (first + i * step < total) {
                    *reinterpret_cast<uint4 *>(to + first + i * step) = piece[i];
                }
            }
        }
        x = to - begin * X_BYTES;
        x_stride = bytes;
    }

    /* X_LOADS times 16 bytes of row m of x, from element k on. */
    DEVICE_MEMBER void load_x_row(uint4 *to, int m, int k) const {
        const char *row = x + m * x_stride;
#pragma unroll
        for (int i = 0; i < X_LOADS; i++) {
            const int first = k + i * (16 / X_BYTES);
            if (ODD) {
                to[i] = load_elements<X_BYTES>(row, first, m < n_rows ? end : 0);
            } else {
                to[i] = load_from_anywhere(row + first * X_BYTES, m < n_rows && first < end);
            }
        }
    }

    /* mma: row g of each tile of eight. */
    DEVICE_MEMBER void load_x(uint4 (*to)[X_LOADS], int g, int k) const {
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            load_x_row(to[i], i * 8 + g, k);
        }
    }
};

/* A unit of weights, in f32. */
template <bool INT8> DEVICE void widen_unit(const uint4 &unit, float *to) {
    const uint32_t word[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (INT8) {
            to[4 * i] = widen_int8<0>(word[i]);
            to[4 * i + 1] = widen_int8<1>(word[i]);
            to[4 * i + 2] = widen_int8<2>(word[i]);
            to[4 * i + 3] = widen_int8<3>(word[i]);
        } else {
            to[i] = __uint_as_float(word[i]);
        }
    }
}

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

    /* f32: this lane's units of N chunks from element k on, of all rows of x, for its two rows of W. */
    template <int N> DEVICE_MEMBER void add_f32(const uint4 (*w)[2], int k) {
        float lw[N * UNIT], hw[N * UNIT];
#pragma unroll
        for (int i = 0; i < N; i++) {
            widen_unit<INT8>(w[i][0], lw + i * UNIT);
            widen_unit<INT8>(w[i][1], hw + i * UNIT);
        }
#pragma unroll
        for (int m = 0; m < COLUMNS; m++) {
            if (m < this->n_rows) {
                uint4 b[N][X_LOADS];
#pragma unroll
                for (int i = 0; i < N; i++) {
                    this->load_x_row(b[i], m, k + i * base::CHUNK);
                }
#pragma unroll
                for (int i = 0; i < N * UNIT; i++) {
                    const uint4 &four = b[i / UNIT][i % UNIT / 4];
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

/* Adds leaves, one of each of n_leaves warps, and passes the outputs on; `thread` counts theirs. */
template <int ACT, int COLUMNS, bool EVEN>
DEVICE void finish(const decode_matmul_args &a, const place<EVEN> &where, const float *sums, int first_m, int n_rows,
                   int n_leaves, int thread) {
    const int tile_rows = a.kind == DECODE_FFN_IN ? DECODE_TILE / 2 : DECODE_TILE;
    for (int i = thread; i < COLUMNS * tile_rows; i += n_leaves * 32) {
        const int r = i % tile_rows, m = i / tile_rows;
        const matrix_row at_r = where.row(a, r);
        const int row = at_r.row;
        if (m >= n_rows || !at_r.wanted) {
            continue;
        }
        const decode_matrix &w = a.matrix[at_r.matrix];
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

#endif
