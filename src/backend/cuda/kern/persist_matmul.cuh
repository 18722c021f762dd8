/*
 * The matmuls of the persistent decode kernel: decode_matmul.cu's leaves, from the ring.
 *
 * A warp sums its leaf of a tile, leaves the sums and goes on; some warps, the last ones, wait for all, add the leaves and pass outputs
 * on. There are two rooms for sums.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_MATMUL_CUH
#define LS_BACKEND_CUDA_PERSIST_MATMUL_CUH

#include "backend/cuda/kern/decode_matmul.cuh"
#include "backend/cuda/kern/persist_head.cuh"
#include "backend/cuda/kern/persist_input.cuh"

template <int ACT, bool INT8, int COLUMNS> struct matmul_part {
    using tile_t = tile<ACT, INT8, COLUMNS, false>;
    static constexpr int W_BYTES = tile_t::W_BYTES, X_BYTES = tile_t::X_BYTES;
    static constexpr int N_SUMS = PERSIST_WARPS * COLUMNS * DECODE_TILE;

    block_state &b;
    input_part<ACT> input;
    head_part<COLUMNS> head;

    DEVICE_MEMBER explicit matmul_part(block_state &block) : b(block), input{block}, head(block) {}

    /* Where a lane finds W, in a slot, and x: its units of the first chunk of 64 bytes. */
    struct lane_at {
        const char *low, *high; /* rows g and g + 8 of W */
        int x;                  /* behind where x lies: row g of x, or row 0 (f32) */
        int x_pitch, n_x;
        int g;

        DEVICE_MEMBER bool has_x(int tile) const {
            return tile * 8 + g < n_x;
        }
    };

    /* Units of one chunk, W's and x's. */
    struct chunk_of_units {
        uint4 low, high, x[tile_t::TILES][tile_t::X_LOADS];

        DEVICE_MEMBER void load(const lane_at &at, const char *x_room, int i) {
            low = *reinterpret_cast<const uint4 *>(at.low + i * 64);
            high = *reinterpret_cast<const uint4 *>(at.high + i * 64);
#pragma unroll
            for (int tile = 0; tile < tile_t::TILES; tile++) {
#pragma unroll
                for (int j = 0; j < tile_t::X_LOADS; j++) {
                    const uint4 *from = reinterpret_cast<const uint4 *>(
                        x_room + (at.x + tile * 8 * at.x_pitch + i * (tile_t::CHUNK * X_BYTES)));
                    x[tile][j] = at.has_x(tile) ? from[j] : make_uint4(0, 0, 0, 0);
                }
            }
        }

        /* Of the leaf's last elements, `rest` of them from the lane's first one on. */
        DEVICE_MEMBER void load_rest(const lane_at &at, const char *x_room, int i, int rest) {
            low = high = make_uint4(0, 0, 0, 0);
            if (rest > 0) {
                low = *reinterpret_cast<const uint4 *>(at.low + i * 64);
                high = *reinterpret_cast<const uint4 *>(at.high + i * 64);
            }
#pragma unroll
            for (int tile = 0; tile < tile_t::TILES; tile++) {
#pragma unroll
                for (int j = 0; j < tile_t::X_LOADS; j++) {
                    const uint4 *from = reinterpret_cast<const uint4 *>(
                        x_room + (at.x + tile * 8 * at.x_pitch + i * (tile_t::CHUNK * X_BYTES)));
                    x[tile][j] = at.has_x(tile) && j * (16 / X_BYTES) < rest ? from[j] : make_uint4(0, 0, 0, 0);
                }
            }
        }
    };

    /* f32: a lane's units of a chunk. */
    DEVICE_MEMBER void add_f32(tile_t &s, const lane_at &at, const char *x_room, int i) const {
        const float4 low = *reinterpret_cast<const float4 *>(at.low + i * 64),
                     high = *reinterpret_cast<const float4 *>(at.high + i * 64);
#pragma unroll
        for (int m = 0; m < COLUMNS; m++) {
            if (m < at.n_x) {
                const float4 x = *reinterpret_cast<const float4 *>(x_room + (at.x + m * at.x_pitch + i * 64));
                s.acc[m] = fmaf(low.x, x.x, s.acc[m]);
                s.acc[COLUMNS + m] = fmaf(high.x, x.x, s.acc[COLUMNS + m]);
                s.acc[m] = fmaf(low.y, x.y, s.acc[m]);
                s.acc[COLUMNS + m] = fmaf(high.y, x.y, s.acc[COLUMNS + m]);
                s.acc[m] = fmaf(low.z, x.z, s.acc[m]);
                s.acc[COLUMNS + m] = fmaf(high.z, x.z, s.acc[COLUMNS + m]);
                s.acc[m] = fmaf(low.w, x.w, s.acc[m]);
                s.acc[COLUMNS + m] = fmaf(high.w, x.w, s.acc[COLUMNS + m]);
            }
        }
    }

    /* `n` elements of the leaf. The next chunk is loaded while this one is multiplied. */
    DEVICE_MEMBER void add_piece(tile_t &s, const lane_at &at, const char *x_room, int n) const {
        constexpr int CHUNK = tile_t::CHUNK;
        const int whole = n / CHUNK, rest = n % CHUNK - b.lane % 4 * tile_t::UNIT;
        if constexpr (tile_t::IS_F32) {
#pragma unroll(COLUMNS > 8 ? 1 : 2)
            for (int i = 0; i < whole; i++) {
                add_f32(s, at, x_room, i);
            }
            if (rest > 0) {
                add_f32(s, at, x_room, whole);
            }
        } else if constexpr (INT8 && tile_t::TILES > 1) { /* no registers left for two chunks */
            chunk_of_units c;
#pragma unroll 1
            for (int i = 0; i < whole; i++) {
                c.load(at, x_room, i);
                s.add_mma(c.low, c.high, c.x);
            }
            if (n % CHUNK != 0) {
                c.load_rest(at, x_room, whole, rest);
                s.add_mma(c.low, c.high, c.x);
            }
        } else {
            chunk_of_units c[2];
            if (whole > 0) {
                c[0].load(at, x_room, 0);
            }
#pragma unroll 1
            for (int i = 0; i < whole; i += 2) {
                if (i + 1 < whole) {
                    c[1].load(at, x_room, i + 1);
                }
                s.add_mma(c[0].low, c[0].high, c[0].x);
                if (i + 1 < whole) {
                    if (i + 2 < whole) {
                        c[0].load(at, x_room, i + 2);
                    }
                    s.add_mma(c[1].low, c[1].high, c[1].x);
                }
            }
            if (n % CHUNK != 0) {
                c[0].load_rest(at, x_room, whole, rest);
                s.add_mma(c[0].low, c[0].high, c[0].x);
            }
        }
    }

    /* int8: of rows g and g + 8 of a tile. */
    DEVICE_MEMBER void load_scales(const persist_op &op, int first_row, int end_row, int leaf, float *low,
                                   float *high) const {
        const bool is_pair = op.kind == PERSIST_FFN_IN;
        const int g = b.lane / 4, row_low = min(first_row + g, end_row - 1),
                  row_high = min(first_row + g + (is_pair ? 0 : 8), end_row - 1);
        const int of_low = is_pair ? 0 : matrix_of_row(op, row_low),
                  of_high = is_pair ? 1 : matrix_of_row(op, row_high);
        const int from_low = is_pair ? 0 : op.first_row[of_low], from_high = is_pair ? 0 : op.first_row[of_high];
        *low = op.matrix[of_low].scale[(int64_t)(row_low - from_low) * op.n_leaves + leaf];
        *high = op.matrix[of_high].scale[(int64_t)(row_high - from_high) * op.n_leaves + leaf];
    }

    DEVICE_MEMBER void matmul(const persist_op &op, const op_share &mine) {
        const int at_once = mine.tiles_at_once(), n_x = b.rows_of(op), n_pieces = op.n_pieces;
        const int by_leaves = log_of(mine.n_leaves), by_group = log_of(op.group),
                  in_part = b.warp & (mine.n_leaves - 1);
        const int leaf = mine.first_leaf + in_part, begin = op.border[leaf], length = op.border[leaf + 1] - begin;
        const int in_box = (begin - op.border[mine.first_leaf + (in_part >> by_group << by_group)]) * W_BYTES;
        const int piece = op.piece_bytes / W_BYTES, g = b.lane / 4, t = b.lane % 4;
        const bool is_pair = op.kind == PERSIST_FFN_IN;
        tile_t s;
        lane_at at;
        at.n_x = n_x;
        at.g = g;
        at.x_pitch = op.x_pitch;
        const bool in_shared = input.is_in_shared(op);
        const int first_x =
            (tile_t::IS_F32 ? 0 : g * at.x_pitch) + (begin - mine.first_column(op) + t * tile_t::UNIT) * X_BYTES;
#pragma unroll 1
        for (int first = 0; first < mine.n_tiles; first += at_once) {
            const int tiles = min(at_once, mine.n_tiles - first), groups = mine.n_leaves >> by_group;
            const int a_piece = tiles * groups; /* chunks of it */
            const int tile = first + (b.warp >> by_leaves);
            const bool has_job = tile < first + tiles;
            const int my_chunk = has_job ? (b.warp >> by_leaves) * groups + (in_part >> by_group) : a_piece;
            const int n = mine.begin_of(tile + 1) - mine.begin_of(tile);
            float scale_low = 0.0F, scale_high = 0.0F;
            if (INT8 && has_job) {
                load_scales(op, mine.begin_of(tile), mine.begin_of(tile + 1), leaf, &scale_low, &scale_high);
            }
#pragma unroll
            for (int i = 0; i < (int)(sizeof s.acc / sizeof *s.acc); i++) {
                s.acc[i] = 0.0F;
            }
            const int low = g < n ? g : 0; /* a pair's boxes may have rows behind the tile's */
            const int high = is_pair ? rows_of_box(n) + low : DECODE_TILE / 2 + g < n ? DECODE_TILE / 2 + g : 0;
            at.x = first_x;
#pragma unroll 1
            for (int j = 0; j < n_pieces; j++, at.x += piece * X_BYTES) {
                const int pitch = j == n_pieces - 1 ? op.last_bytes : op.piece_bytes;
#pragma unroll 1
                for (int i = 0; i < a_piece; i++) {
                    const char *chunk = b.r.take(b.p) + in_box + t * 16;
                    if (i == my_chunk && (b.a.measure & PERSIST_NO_PRODUCTS) == 0) {
                        at.low = chunk + low * pitch;
                        at.high = chunk + high * pitch;
                        const int left = length - j * piece;
                        const int n_here = max(0, min(left, piece));
                        if (in_shared) { /* loads of two kinds */
                            add_piece(s, at, shared_room() + b.a.at_x, n_here);
                        } else {
                            add_piece(s, at, input.scratch(), n_here);
                        }
                    }
                    b.r.give_back();
                }
            }
            pass_sums_on(op, mine, first, tiles, n_x, s, has_job, scale_low, scale_high);
        }
    }

    /* In a ring of two rooms: all warps have left the sums before these, so that those before them were read. */
    DEVICE_MEMBER void pass_sums_on(const persist_op &op, const op_share &mine, int first, int tiles, int n_x,
                                    tile_t &s, bool has_job, float scale_low, float scale_high) {
        float *const sums = reinterpret_cast<float *>(shared_room() + b.a.at_sums) + b.tile % 2 * N_SUMS;
        b.p.wait(b.r.sums((b.tile - 1) % 2), (b.tile - 1) / 2 % 2, PERSIST_WAIT_SUMS, b.tile - 1);
        if (has_job) {
            leave(s, sums + b.warp * COLUMNS * DECODE_TILE, b.lane / 4, b.lane % 4, scale_low, scale_high);
        }
        __syncwarp();
        if (b.lane == 0) {
            barrier_arrive(b.r.sums(b.tile % 2));
        }
        if (finisher() - b.lane < n_x * mine.most && (b.a.measure & PERSIST_NO_OUTPUTS) == 0) {
            b.p.wait(b.r.sums(b.tile % 2), b.tile / 2 % 2, PERSIST_WAIT_SUMS, b.tile);
            finish_tiles(op, mine, first, tiles, n_x, sums);
        }
        b.tile++;
    }

    /* A thread's number among those that add leaves. The last warps, whose leaves come last, are the first: the others go on. */
    DEVICE_MEMBER int finisher() const {
        return (PERSIST_WARPS - 1 - b.warp) * 32 + b.lane;
    }

    DEVICE_MEMBER float tree_of(const float *at, int m, int r_in_tile, int n_leaves) const {
        float leaf[DECODE_LEAVES];
#pragma unroll
        for (int j = 0; j < DECODE_LEAVES; j++) {
            leaf[j] = j < n_leaves ? at[(j * COLUMNS + m) * DECODE_TILE + r_in_tile] : 0.0F;
        }
        return leaf_tree(leaf, n_leaves);
    }

    /* Adds leaves and passes outputs on. Whole warps come here, since pairs are put together by shuffles. */
    DEVICE_MEMBER void finish_tiles(const persist_op &op, const op_share &mine, int first, int tiles, int n_x,
                                    const float *at) {
        const int by_rows = log_of(mine.most), in_tile = finisher() & (mine.most - 1), m = finisher() >> by_rows;
#pragma unroll 1
        for (int tile = 0; tile < tiles; tile++, at += mine.n_leaves * COLUMNS * DECODE_TILE) {
            const int row = mine.begin_of(first + tile) + in_tile;
            const bool there = m < n_x && row < mine.begin_of(first + tile + 1);
            const float value = tree_of(at, min(m, COLUMNS - 1), in_tile, mine.n_leaves);
            if (op.kind == PERSIST_FFN_IN) {
                put_act(op, m, row, there, value,
                        tree_of(at, min(m, COLUMNS - 1), in_tile + DECODE_TILE / 2, mine.n_leaves));
            } else if (there) {
                put_sum(op, mine, m, row, value);
            }
        }
    }

    DEVICE_MEMBER void put_act(const persist_op &op, int m, int column, bool there, float gate, float up) const {
        if (there) {
            gate = op.matrix[0].bias != NULL ? gate + op.matrix[0].bias[column] : gate;
            up = op.matrix[1].bias != NULL ? up + op.matrix[1].bias[column] : up;
        }
        const float value = gate / (1.0F + expf(-gate)) * up;
        const int64_t at = (int64_t)m * op.out_stride + column;
        if (ACT == KERN_F32) {
            if (there) {
                b.put_float(op.out + at, value);
            }
            return;
        }
        const float next = __shfl_xor_sync(0xffffffffu, value, 1);
        if (there && column % 2 == 0) {
            store_word(op.out + at / 2, word_of(pair_of(ACT, value, next), b.epoch()));
        }
    }

    DEVICE_MEMBER void put_sum(const persist_op &op, const op_share &mine, int m, int row, float value) {
        if (op.kind == PERSIST_QKV) {
            const int which = matrix_of_row(op, row);
            const float *bias = op.matrix[which].bias;
            b.put_float(op.out + (int64_t)m * op.out_stride + row,
                        bias != NULL ? value + bias[row - op.first_row[which]] : value);
        } else if (op.kind == PERSIST_ROW) {
            b.put_node(op, mine.part, m, row, value);
        } else {
            head.put_logit(op, m, row, value);
        }
    }

    DEVICE_MEMBER void run(const persist_op &op, const op_share &mine) {
        head.begin();
        if (mine.count > 0) {
            matmul(op, mine);
        }
    }
};

#endif
