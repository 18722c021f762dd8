/*
 * Matmuls of decode steps: y[m][n] = sum over k of w[n][k] x[m][k] for M = 1..16 rows, up the leaf tree of ops.h.
 *
 * A warp sums one leaf of 16 rows of W, a tile; a block takes every gridDim.x-th tile. Lane (g, t) = (lane / 4, lane % 4) has
 * 16 bytes, a UNIT, of rows g and g + 8: unit t of a chunk of four. The mma's k is permuted so that a unit holds what the lane
 * needs for one or more mmas (A's slots 2t, 2t+1 and 2t+8, 2t+9 are neighbours in memory), and x is loaded by the same
 * permutation. So weights are multiplied as they lie.
 *
 * Every warp streams its weights through a ring of stages (two chunks: 128 bytes of each row) in shared memory. Each lane
 * copies its own units and reads them back itself, so that nobody waits for anybody. The ring runs on from tile to tile while
 * sums are added up, and it is filled before the input is there: what is in flight then hides the ops before this one. What
 * counts after that is the latency of a stage, hence x in shared memory where it fits, and little code.
 *
 * Bits: a leaf's sum is one chain of mmas (f32: one chain of fmas for each of four lanes, then a fixed tree), each column of
 * which depends on its own row of x alone; leaves are added up by the fixed tree. Neither M, nor the number of
 * tiles of columns, nor how leaves are spread over blocks changes that.
 *
 * Weights that no 16-byte loads can reach (k no multiple of a unit) go the same way through loads of single elements: ODD.
 */
#include "backend/cuda/kern/common.cuh"

/* Where a tile lies: rows [first, first + 16) of a matrix; ffn_in: rows [first, first + 8) of gate and of up. */
struct place {
    int low, high; /* the matrices of the tile's two halves */
    int first;     /* row */

    DEVICE_MEMBER place(const decode_matmul_args &a, int i_tile) {
        low = (i_tile >= a.matrix[1].first_tile) + (i_tile >= a.matrix[2].first_tile);
        high = low + a.is_pair;
        first = (i_tile - a.matrix[low].first_tile) * (a.is_pair ? DECODE_TILE / 2 : DECODE_TILE);
    }

    /* Rows of lane group g. Those behind the last one are read as the last one and not stored. */
    DEVICE_MEMBER int row_low(const decode_matmul_args &a, int g) const {
        return min(first + g, a.matrix[low].rows - 1);
    }
    DEVICE_MEMBER int row_high(const decode_matmul_args &a, int g) const {
        return min(first + g + (a.is_pair ? 0 : DECODE_TILE / 2), a.matrix[high].rows - 1);
    }
};

/* Where a lane finds its units. ACT: dtype of x, and of W unless INT8. COLUMNS: 8 or 16 rows of x. */
template <int ACT, bool INT8, int COLUMNS, bool ODD> struct units {
    static constexpr bool IS_F32 = ACT == KERN_F32;
    static constexpr int TILES = COLUMNS / 8;
    static constexpr int W_BYTES = INT8 ? 1 : IS_F32 ? 4 : 2;
    static constexpr int X_BYTES = IS_F32 ? 4 : 2;
    static constexpr int UNIT = 16 / W_BYTES; /* elements of a unit */
    static constexpr int CHUNK = 4 * UNIT;    /* elements of a row that a warp takes at a time */
    static constexpr int STAGE = 2 * CHUNK;   /* elements of a row that a warp asks for at a time: 128 bytes */
    static constexpr int X_LOADS = UNIT * X_BYTES / 16; /* 16-byte loads of x for a unit */

    const char *x;    /* so that elements of the leaf are found by their number in all of k */
    int64_t x_stride; /* bytes */
    int n_rows;       /* of x */
    int unit_k;       /* first element of this lane's unit in the first chunk */
    int end;          /* of the leaf */
    int n_stages;     /* of the leaf */

    /* This warp's part of x comes to `to`, in shared memory. */
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
        __syncwarp();
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

/* A warp's ring of weights. */
template <int ACT, bool INT8, int COLUMNS, bool ODD> struct stream : units<ACT, INT8, COLUMNS, ODD> {
    using base = units<ACT, INT8, COLUMNS, ODD>;
    using base::CHUNK;
    using base::STAGE;
    using base::W_BYTES;

    /* What is asked for next, n_slots stages before it is needed. */
    uint4 *ring; /* this lane's units: [n_slots][2][low, high][32 lanes] */
    int n_slots;
    const char *low, *high; /* rows g and g + 8 of tile i_tile, from `at` on */
    int at, stages_left, i_tile;

    DEVICE_MEMBER void point_at_tile(const decode_matmul_args &a, int g) {
        const place where(a, i_tile);
        const int64_t row_bytes = (int64_t)a.k * W_BYTES;
        low = static_cast<const char *>(a.matrix[where.low].w) + where.row_low(a, g) * row_bytes;
        high = static_cast<const char *>(a.matrix[where.high].w) + where.row_high(a, g) * row_bytes;
        if (!ODD) {
            low += this->unit_k * W_BYTES;
            high += this->unit_k * W_BYTES;
        }
        at = this->unit_k;
        stages_left = this->n_stages;
    }

    DEVICE_MEMBER void begin(const decode_matmul_args &a, int g) {
        stages_left = 0;
        i_tile = blockIdx.x;
        if (this->n_stages > 0) {
            point_at_tile(a, g);
        }
    }

    /* A stage more, if this warp has one, to the slot that was read last. */
    DEVICE_MEMBER void request(const decode_matmul_args &a, int slot, int g) {
        if (stages_left > 0) {
            uint4 *to = ring + slot * 4 * 32;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (ODD) {
                    to[2 * i * 32] = load_elements<W_BYTES>(low, at + i * CHUNK, this->end);
                    to[(2 * i + 1) * 32] = load_elements<W_BYTES>(high, at + i * CHUNK, this->end);
                } else {
                    copy_weight(to + 2 * i * 32, low + i * CHUNK * W_BYTES, at + i * CHUNK < this->end);
                    copy_weight(to + (2 * i + 1) * 32, high + i * CHUNK * W_BYTES, at + i * CHUNK < this->end);
                }
            }
            if (!ODD) {
                low += STAGE * W_BYTES;
                high += STAGE * W_BYTES;
            }
            at += STAGE;
            if (--stages_left == 0) {
                i_tile += gridDim.x;
                if (i_tile < a.n_tiles) {
                    point_at_tile(a, g);
                }
            }
        }
        end_of_copies();
    }

    /* What the ring has no room for of the first tile comes to L2. */
    DEVICE_MEMBER void call_for_rest(int t) const {
        if (!ODD && i_tile == (int)blockIdx.x) {
#pragma unroll 1
            for (int i = t; i < stages_left; i += 4) {
                prefetch_to_l2(low + i * STAGE * W_BYTES);
                prefetch_to_l2(high + i * STAGE * W_BYTES);
            }
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
template <int ACT, bool INT8, int COLUMNS, bool ODD> struct tile : stream<ACT, INT8, COLUMNS, ODD> {
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

    /* One stage. */
    DEVICE_MEMBER void add_stage(int slot, int g, int k) {
        uint4 w[2][2], b[2][base::TILES][X_LOADS];
        if (!IS_F32) {
            this->load_x(b[0], g, k);
            this->load_x(b[1], g, k + base::CHUNK);
        }
        wait_for_copies(this->n_slots - 1);
        const uint4 *from = this->ring + slot * 4 * 32;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            w[i][0] = from[2 * i * 32];
            w[i][1] = from[(2 * i + 1) * 32];
        }
        if (!IS_F32) {
            add_mma(w[0][0], w[0][1], b[0]);
            add_mma(w[1][0], w[1][1], b[1]);
        } else if (INT8) {
            add_f32<1>(w, k);
            add_f32<1>(w + 1, k + base::CHUNK);
        } else {
            add_f32<2>(w, k);
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
DEVICE void finish(const decode_matmul_args &a, const decode_matrix &w, const float *sums, int first_row, int n_rows) {
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
        const int64_t to = (int64_t)m * a.y_stride + w.y_first + row;
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
                note_fault(a.fault, step_array<int32_t>(a.step, a.step->out_row)[m], a.op_index);
            }
        }
    }
}

/* Shared memory: two times sums of warps * COLUMNS * 16 floats, rings, x_room bytes a warp. A warp is a leaf; a block takes
 * every gridDim.x-th tile. */
template <int ACT, bool INT8, int COLUMNS, bool ODD> DEVICE void matmul(const decode_matmul_args &a) {
    using tile_t = tile<ACT, INT8, COLUMNS, ODD>;
    extern __shared__ __align__(16) float shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int n_warps = blockDim.x / 32, leaf = blockIdx.y * n_warps + warp;
    const int n_sums = n_warps * COLUMNS * DECODE_TILE;
    let_next_kernel_start();

    tile_t s;
    const int begin = a.border[leaf];
    s.end = a.border[leaf + 1];
    s.unit_k = begin + t * tile_t::UNIT;
    s.n_stages = (s.end - begin + tile_t::STAGE - 1) / tile_t::STAGE;
    s.n_slots = a.ring;
    s.ring = reinterpret_cast<uint4 *>(shared + 2 * n_sums) + warp * a.ring * 4 * 32 + lane;
    float *sums = shared;
    s.begin(a, g);
#pragma unroll 1 /* little code to fetch before the first loads */
    for (int slot = 0; slot < a.ring; slot++) {
        s.request(a, slot, g);
    }
    s.call_for_rest(t);
    const int n_rows = min(COLUMNS, a.kind == DECODE_HEAD ? a.step->n_out : a.step->n_rows);
    s.x = static_cast<const char *>(a.x);
    s.x_stride = (int64_t)a.k * tile_t::X_BYTES;
    s.n_rows = n_rows;
    wait_for_earlier_kernels();
    if (!ODD && a.x_room > 0) {
        s.move_x(reinterpret_cast<char *>(shared) + 2 * n_sums * 4 + n_warps * a.ring * DECODE_STAGE_BYTES +
                     warp * a.x_room,
                 begin);
    }

    int slot = 0;
    for (int i_tile = blockIdx.x; i_tile < a.n_tiles; i_tile += gridDim.x) {
        const place where(a, i_tile);
        float scale_low = 0.0F, scale_high = 0.0F;
        if (INT8) {
            scale_low = a.matrix[where.low].scale[(int64_t)where.row_low(a, g) * a.n_leaves + leaf];
            scale_high = a.matrix[where.high].scale[(int64_t)where.row_high(a, g) * a.n_leaves + leaf];
        }
#pragma unroll
        for (int i = 0; i < (int)(sizeof s.acc / sizeof *s.acc); i++) {
            s.acc[i] = 0.0F;
        }
#pragma unroll 1
        for (int stage = 0, k = s.unit_k; stage < s.n_stages; stage++, k += tile_t::STAGE) {
            s.add_stage(slot, g, k);
            s.request(a, slot, g);
            slot = slot + 1 < a.ring ? slot + 1 : 0;
        }
        leave(s, sums + warp * COLUMNS * DECODE_TILE, g, t, scale_low, scale_high);
        __syncthreads();
        finish<ACT, COLUMNS>(a, a.matrix[where.low], sums, where.first, n_rows);
        /* finish may still read these when the next tile's leave */
        sums = sums == shared ? shared + n_sums : shared;
    }
}

/* Names: dtype of x, of W where it differs; the most rows; odd: any k. */
#define DEFINE_MATMUL(name, act, int8, columns, odd, blocks)                                                           \
    extern "C" __global__ void __launch_bounds__(256, blocks) name(const __grid_constant__ decode_matmul_args a) {     \
        matmul<act, int8, columns, odd>(a);                                                                            \
    }
#define DEFINE_MATMULS(name, act, int8)                                                                                \
    DEFINE_MATMUL(decode_matmul_##name##_8, act, int8, 8, false, 2)                                                    \
    DEFINE_MATMUL(decode_matmul_##name##_16, act, int8, 16, false, 2)                                                  \
    DEFINE_MATMUL(decode_matmul_##name##_odd, act, int8, 16, true, 1)

DEFINE_MATMULS(f32, KERN_F32, false)
DEFINE_MATMULS(bf16, KERN_BF16, false)
DEFINE_MATMULS(f16, KERN_F16, false)
DEFINE_MATMULS(int8_f32, KERN_F32, true)
DEFINE_MATMULS(int8_bf16, KERN_BF16, true)
DEFINE_MATMULS(int8_f16, KERN_F16, true)
