/*
 * Matmuls of decode steps: y[m][n] = sum over k of w[n][k] x[m][k] for M = 1..16 rows, up the leaf tree of ops.h.
 *
 * A warp sums one leaf of 16 rows of W, a tile; a block has a share of the rows. Lane (g, t) = (lane / 4, lane % 4) has
 * 16 bytes, a UNIT, of rows g and g + 8: unit t of a chunk of four. The mma's k is permuted so that a unit holds what the lane
 * needs for one or more mmas (A's slots 2t, 2t+1 and 2t+8, 2t+9 are neighbours in memory), and x is loaded by the same
 * permutation. So weights are multiplied as they lie.
 *
 * Every warp streams its weights through a ring of stages (pairs of chunks: 128 bytes of each row) in shared memory. Each lane
 * copies its own units and reads them back itself, so that nobody waits for anybody. The ring runs on from tile to tile while
 * sums are added up, and it is filled before the input is there: what is in flight then hides the ops before this one. What
 * counts after that is the latency of a stage, hence x in shared memory where it fits, and little code.
 *
 * Two kinds of stages, measured: short ones of one pair, with two blocks an SM that take whole tiles in turn; long ones of
 * DECODE_LONG_PAIRS, with one block an SM and even shares of the rows, for f32 and for 16-bit leaves that are long (decode.c).
 * Memory gives more where it is asked for more of each row at a time.
 *
 * Bits: a leaf's sum is one chain of mmas (f32: one chain of fmas for each of four lanes, then a fixed tree), each column of
 * which depends on its own row of x alone; leaves are added up by the fixed tree. Neither M, nor the number of
 * tiles of columns, nor how leaves are spread over blocks changes that.
 *
 * Weights that no 16-byte loads can reach (k no multiple of a unit) go the same way through loads of single elements: ODD.
 */
#include "backend/cuda/kern/decode_matmul.cuh"

/* What asks for the weights of a block's tiles, through a ring. */
template <int ACT, bool INT8, int COLUMNS, bool ODD, int PAIRS> struct weight_stream : tile<ACT, INT8, COLUMNS, ODD> {
    using base = units<ACT, INT8, COLUMNS, ODD>;
    using base::CHUNK;
    using base::W_BYTES;
    static constexpr bool LONG = PAIRS > 1;
    static constexpr int PAIR = 2 * CHUNK, STAGE = PAIRS * PAIR; /* elements of a row */

    int n_stages; /* of the leaf */

    /* What is asked for next, n_slots stages before it is needed. */
    uint4 *ring; /* this lane's units: [n_slots][PAIRS][2][low, high][32 lanes] */
    int n_slots;
    const char *low, *high; /* rows g and g + 8 of tile i_tile, from `at` on */
    bool wants_low, wants_high;
    int at, stages_left, i_tile;

    DEVICE_MEMBER void point_at_tile(const decode_matmul_args &a, const share<LONG> &mine, int g) {
        const place<LONG> where = mine.tile(a, i_tile);
        const matrix_row l = where.lane_row(a, 0, g), h = where.lane_row(a, 1, g);
        const int64_t row_bytes = (int64_t)a.k * W_BYTES;
        low = static_cast<const char *>(a.matrix[l.matrix].w) + l.row * row_bytes;
        high = static_cast<const char *>(a.matrix[h.matrix].w) + h.row * row_bytes;
        wants_low = l.wanted;
        wants_high = h.wanted;
        if (!ODD) {
            low += this->unit_k * W_BYTES;
            high += this->unit_k * W_BYTES;
        }
        at = this->unit_k;
        stages_left = n_stages;
    }

    DEVICE_MEMBER void begin(const decode_matmul_args &a, const share<LONG> &mine, int g) {
        stages_left = 0;
        i_tile = mine.begin();
        if (n_stages > 0) {
            point_at_tile(a, mine, g);
        }
    }

    /* A stage more, if this warp has one, to the slot that was read last. */
    DEVICE_MEMBER void request(const decode_matmul_args &a, const share<LONG> &mine, int slot, int g) {
        if (stages_left > 0) {
            uint4 *to = ring + slot * PAIRS * 4 * 32;
#pragma unroll
            for (int i = 0; i < 2 * PAIRS; i++) {
                const int k = at + i * CHUNK;
                if (ODD) {
                    to[2 * i * 32] = load_elements<W_BYTES>(low, k, wants_low ? this->end : 0);
                    to[(2 * i + 1) * 32] = load_elements<W_BYTES>(high, k, wants_high ? this->end : 0);
                } else {
                    copy_once(to + 2 * i * 32, low + i * CHUNK * W_BYTES, wants_low && k < this->end);
                    copy_once(to + (2 * i + 1) * 32, high + i * CHUNK * W_BYTES, wants_high && k < this->end);
                }
            }
            if (!ODD) {
                low += STAGE * W_BYTES;
                high += STAGE * W_BYTES;
            }
            at += STAGE;
            if (--stages_left == 0) {
                i_tile += mine.step();
                if (i_tile < mine.end(a)) {
                    point_at_tile(a, mine, g);
                }
            }
        }
        end_copy_group();
    }

    /* What the ring has no room for of the first tile comes to L2. */
    DEVICE_MEMBER void call_for_rest(const share<LONG> &mine, int t) const {
        if (!ODD && i_tile == mine.begin()) {
#pragma unroll 1
            for (int i = t; i < stages_left * PAIRS; i += 4) {
                if (!LONG || at + i * PAIR < this->end) {
                    prefetch_to_l2(low + i * PAIR * W_BYTES);
                    prefetch_to_l2(high + i * PAIR * W_BYTES);
                }
            }
        }
    }
};

/* A tile whose weights come that way. */
template <int ACT, bool INT8, int COLUMNS, bool ODD, int PAIRS>
struct streamed_tile : weight_stream<ACT, INT8, COLUMNS, ODD, PAIRS> {
    using base = weight_stream<ACT, INT8, COLUMNS, ODD, PAIRS>;
    using base::CHUNK;
    using base::LONG;
    using base::PAIR;

    DEVICE_MEMBER void load_x_of_pair(uint4 (*b)[base::TILES][base::X_LOADS], int g, int k) const {
        if (!base::IS_F32) {
            this->load_x(b[0], g, k);
            this->load_x(b[1], g, k + CHUNK);
        }
    }

    /* One stage. What mmas need of x is asked for a pair ahead. */
    DEVICE_MEMBER void add_stage(int slot, int g, int k) {
        uint4 w[2][2], b[2][base::TILES][base::X_LOADS];
        load_x_of_pair(b, g, k);
        if (LONG) {
            wait_for_copies_but_few(this->n_slots - 1);
        } else {
            wait_for_copies_but(this->n_slots - 1);
        }
        const uint4 *from = this->ring + slot * PAIRS * 4 * 32;
#pragma unroll 1
        for (int pair = 0; pair < PAIRS; pair++, k += PAIR, from += 4 * 32) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                w[i][0] = from[2 * i * 32];
                w[i][1] = from[(2 * i + 1) * 32];
            }
            if (!base::IS_F32) {
                this->add_mma(w[0][0], w[0][1], b[0]);
                this->add_mma(w[1][0], w[1][1], b[1]);
                if (pair + 1 < PAIRS) {
                    load_x_of_pair(b, g, k + PAIR);
                }
            } else if (INT8) {
                this->template add_f32<1>(w, k);
                this->template add_f32<1>(w + 1, k + CHUNK);
            } else {
                this->template add_f32<2>(w, k);
            }
        }
    }
};

/* Shared memory: two times sums of warps * COLUMNS * 16 floats, rings, x_room bytes a leaf. A warp is a leaf; with long
 * stages a block may have several groups of warps, each of all the block's leaves, with rows of W of its own and x in common.
 * MANY: it may have several rows of x, and groups (one row would wait for the code of that). */
template <int ACT, bool INT8, int COLUMNS, bool ODD, int PAIRS, bool MANY>
DEVICE void matmul(const decode_matmul_args &a) {
    using tile_t = streamed_tile<ACT, INT8, COLUMNS, ODD, PAIRS>;
    extern __shared__ __align__(16) float matmul_room[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    constexpr bool GROUPS = MANY && tile_t::LONG;
    const int n_warps = blockDim.x / 32, n_leaves = GROUPS ? 1 << a.leaf_bits : n_warps;
    const int group = GROUPS ? warp >> a.leaf_bits : 0, n_groups = GROUPS ? n_warps >> a.leaf_bits : 1;
    const int its_leaf = warp - group * n_leaves, leaf = blockIdx.y * n_leaves + its_leaf,
              first_m = blockIdx.z * COLUMNS;
    const int n_sums = n_warps * COLUMNS * DECODE_TILE;
    let_next_kernel_start();

    const share<tile_t::LONG> mine(a, group, n_groups);
    tile_t s;
    const int begin = a.border[leaf];
    s.end = a.border[leaf + 1];
    s.unit_k = begin + t * tile_t::UNIT;
    s.n_stages = (s.end - begin + tile_t::STAGE - 1) / tile_t::STAGE;
    s.n_slots = a.ring;
    s.ring = reinterpret_cast<uint4 *>(matmul_room + 2 * n_sums) + warp * a.ring * PAIRS * 4 * 32 + lane;
    float *sums = matmul_room;
    s.begin(a, mine, g);
#pragma unroll 1 /* little code to fetch before the first loads */
    for (int slot = 0; slot < a.ring; slot++) {
        s.request(a, mine, slot, g);
        if (slot > 0) { /* no more at a time: loads of the kernel ahead of this one would wait behind them */
            wait_for_copies<1>();
        }
    }
    s.call_for_rest(mine, t);
    const int n_rows = min(COLUMNS, (a.kind == DECODE_HEAD ? a.step->n_out : a.step->n_rows) - first_m);
    s.x_stride = (int64_t)a.k * tile_t::X_BYTES;
    s.x = static_cast<const char *>(a.x) + first_m * s.x_stride;
    s.n_rows = n_rows;
    wait_for_earlier_kernels();
    if (!ODD && a.x_room > 0) {
        char *const to = reinterpret_cast<char *>(matmul_room) + 2 * n_sums * 4 +
                         n_warps * a.ring * PAIRS * DECODE_PAIR_BYTES + its_leaf * a.x_room;
        if (MANY) {
            s.move_x_together(to, begin, group, n_groups);
        } else {
            s.move_x(to, begin);
        }
        if (n_groups > 1) {
            __syncthreads();
        } else {
            __syncwarp();
        }
    }

    int slot = 0;
    for (int i_tile = mine.begin(); i_tile < mine.end(a); i_tile += mine.step()) {
        const auto where = mine.tile(a, i_tile);
        float scale_low = 0.0F, scale_high = 0.0F;
        if (INT8) {
            const matrix_row low = where.lane_row(a, 0, g), high = where.lane_row(a, 1, g);
            scale_low = a.matrix[low.matrix].scale[(int64_t)low.row * a.n_leaves + leaf];
            scale_high = a.matrix[high.matrix].scale[(int64_t)high.row * a.n_leaves + leaf];
        }
#pragma unroll
        for (int i = 0; i < (int)(sizeof s.acc / sizeof *s.acc); i++) {
            s.acc[i] = 0.0F;
        }
#pragma unroll 1
        for (int stage = 0, k = s.unit_k; stage < s.n_stages; stage++, k += tile_t::STAGE) {
            s.add_stage(slot, g, k);
            s.request(a, mine, slot, g);
            slot = slot + 1 < a.ring ? slot + 1 : 0;
        }
        leave(s, sums + warp * COLUMNS * DECODE_TILE, g, t, scale_low, scale_high);
        if (n_groups > 1) {
            meet_at(1 + group, n_leaves * 32);
        } else {
            __syncthreads();
        }
        finish<ACT, COLUMNS>(a, where, sums + group * n_leaves * COLUMNS * DECODE_TILE, first_m, n_rows, n_leaves,
                             threadIdx.x - group * n_leaves * 32);
        /* finish may still read these when the next tile's leave */
        sums = sums == matmul_room ? matmul_room + n_sums : matmul_room;
    }
}

/* Names: dtype of x, of W where it differs; the most rows; odd: any k; long: of stages, where there are short ones too. */
#define DEFINE_MATMUL(name, act, int8, columns, odd, pairs, many, blocks)                                              \
    extern "C" __global__ void __launch_bounds__(256, blocks) name(const __grid_constant__ decode_matmul_args a) {     \
        matmul<act, int8, columns, odd, pairs, many>(a);                                                               \
    }
#define DEFINE_MATMULS(name, act, int8, pairs, blocks)                                                                 \
    DEFINE_MATMUL(decode_matmul_##name##_odd, act, int8, 16, true, pairs, false, 1)                                    \
    DEFINE_MATMUL(decode_matmul_##name##_1, act, int8, 8, false, pairs, false, blocks)                                 \
    DEFINE_MATMUL(decode_matmul_##name##_8, act, int8, 8, false, pairs, true, blocks)                                  \
    DEFINE_MATMUL(decode_matmul_##name##_16, act, int8, 16, false, pairs, true, blocks)
#define DEFINE_LONG(name, act)                                                                                         \
    DEFINE_MATMUL(decode_matmul_##name##_1_long, act, false, 8, false, DECODE_LONG_PAIRS, false, 1)                    \
    DEFINE_MATMUL(decode_matmul_##name##_8_long, act, false, 8, false, DECODE_LONG_PAIRS, true, 1)                     \
    DEFINE_MATMUL(decode_matmul_##name##_16_long, act, false, 16, false, DECODE_LONG_PAIRS, true, 1)

DEFINE_MATMULS(f32, KERN_F32, false, DECODE_LONG_PAIRS, 1)
DEFINE_MATMULS(bf16, KERN_BF16, false, 1, 2)
DEFINE_MATMULS(f16, KERN_F16, false, 1, 2)
DEFINE_MATMULS(int8_f32, KERN_F32, true, 1, 2)
DEFINE_MATMULS(int8_bf16, KERN_BF16, true, 1, 2)
DEFINE_MATMULS(int8_f16, KERN_F16, true, 1, 2)
DEFINE_LONG(bf16, KERN_BF16)
DEFINE_LONG(f16, KERN_F16)
