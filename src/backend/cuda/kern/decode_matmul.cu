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
#include "backend/cuda/kern/decode_matmul.cuh"

/* A tile whose weights come through a ring. */
template <int ACT, bool INT8, int COLUMNS, bool ODD> struct streamed_tile : tile<ACT, INT8, COLUMNS, ODD> {
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
        end_copy_group();
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

    /* One stage. */
    DEVICE_MEMBER void add_stage(int slot, int g, int k) {
        uint4 w[2][2], b[2][base::TILES][base::X_LOADS];
        if (!base::IS_F32) {
            this->load_x(b[0], g, k);
            this->load_x(b[1], g, k + base::CHUNK);
        }
        wait_for_copies_but(n_slots - 1);
        const uint4 *from = ring + slot * 4 * 32;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            w[i][0] = from[2 * i * 32];
            w[i][1] = from[(2 * i + 1) * 32];
        }
        if (!base::IS_F32) {
            this->add_mma(w[0][0], w[0][1], b[0]);
            this->add_mma(w[1][0], w[1][1], b[1]);
        } else if (INT8) {
            this->template add_f32<1>(w, k);
            this->template add_f32<1>(w + 1, k + base::CHUNK);
        } else {
            this->template add_f32<2>(w, k);
        }
    }
};

/* Shared memory: two times sums of warps * COLUMNS * 16 floats, rings, x_room bytes a warp. A warp is a leaf; a block takes
 * every gridDim.x-th tile. */
template <int ACT, bool INT8, int COLUMNS, bool ODD> DEVICE void matmul(const decode_matmul_args &a) {
    using tile_t = streamed_tile<ACT, INT8, COLUMNS, ODD>;
    extern __shared__ __align__(16) float matmul_room[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int n_warps = blockDim.x / 32, leaf = blockIdx.y * n_warps + warp;
    const int first_m = blockIdx.z * COLUMNS;
    const int n_sums = n_warps * COLUMNS * DECODE_TILE;
    let_next_kernel_start();

    tile_t s;
    const int begin = a.border[leaf];
    s.end = a.border[leaf + 1];
    s.unit_k = begin + t * tile_t::UNIT;
    s.n_stages = (s.end - begin + tile_t::STAGE - 1) / tile_t::STAGE;
    s.n_slots = a.ring;
    s.ring = reinterpret_cast<uint4 *>(matmul_room + 2 * n_sums) + warp * a.ring * 4 * 32 + lane;
    float *sums = matmul_room;
    s.begin(a, g);
#pragma unroll 1 /* little code to fetch before the first loads */
    for (int slot = 0; slot < a.ring; slot++) {
        s.request(a, slot, g);
    }
    s.call_for_rest(t);
    const int n_rows = min(COLUMNS, (a.kind == DECODE_HEAD ? a.step->n_out : a.step->n_rows) - first_m);
    s.x_stride = (int64_t)a.k * tile_t::X_BYTES;
    s.x = static_cast<const char *>(a.x) + first_m * s.x_stride;
    s.n_rows = n_rows;
    wait_for_earlier_kernels();
    if (!ODD && a.x_room > 0) {
        s.move_x(reinterpret_cast<char *>(matmul_room) + 2 * n_sums * 4 + n_warps * a.ring * DECODE_STAGE_BYTES +
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
        finish<ACT, COLUMNS>(a, a.matrix[where.low], sums, where.first, first_m, n_rows);
        /* finish may still read these when the next tile's leave */
        sums = sums == matmul_room ? matmul_room + n_sums : matmul_room;
    }
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

DEFINE_MATMULS(f32, KERN_F32, false)
DEFINE_MATMULS(bf16, KERN_BF16, false)
DEFINE_MATMULS(f16, KERN_F16, false)
DEFINE_MATMULS(int8_f32, KERN_F32, true)
DEFINE_MATMULS(int8_bf16, KERN_BF16, true)
DEFINE_MATMULS(int8_f16, KERN_F16, true)
