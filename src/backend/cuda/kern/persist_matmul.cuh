/*
 * The matmuls of the persistent decode kernel: decode_matmul.cu's leaves, from the ring.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_MATMUL_CUH
#define LS_BACKEND_CUDA_PERSIST_MATMUL_CUH

#include "backend/cuda/kern/decode_matmul.cuh"
#include "backend/cuda/kern/persist_head.cuh"
#include "backend/cuda/kern/persist_input.cuh"

template <int ACT, bool INT8, int COLUMNS> struct matmul_part {
    using tile_t = tile<ACT, INT8, COLUMNS, false>;
    static constexpr int W_BYTES = tile_t::W_BYTES;
    static constexpr int N_SUMS = PERSIST_WARPS * COLUMNS * DECODE_TILE;

    block_state &b;
    input_part<ACT> input;
    head_part<COLUMNS> head;

    DEVICE_MEMBER explicit matmul_part(block_state &block) : b(block), input{block}, head(block) {}

    /* A lane's units of a chunk, and of x. */
    struct chunk_of_units {
        uint4 w[1][2], x[tile_t::TILES][tile_t::X_LOADS];

        DEVICE_MEMBER void load_w(const tile_t &s, const char *low, const char *high, int k) {
            w[0][0] = w[0][1] = make_uint4(0, 0, 0, 0);
            if (k < s.end) {
                w[0][0] = *reinterpret_cast<const uint4 *>(low);
                w[0][1] = *reinterpret_cast<const uint4 *>(high);
            }
        }
    };

    /* One piece: as streamed_tile::add_stage, but chunk by chunk and from a slot. The next chunk is loaded while this one is multiplied;
     * what is loaded behind the last one is not used. */
    DEVICE_MEMBER void add_piece(tile_t &s, const char *low, const char *high, int first, int stop) const {
        constexpr int CHUNK = tile_t::CHUNK, BYTES = CHUNK * W_BYTES;
        const int g = b.lane / 4, t = b.lane % 4;
        chunk_of_units c[2];
        int k = first + t * tile_t::UNIT;
        if constexpr (tile_t::IS_F32) {
#pragma unroll 1
            for (; first < stop; first += CHUNK, k += CHUNK, low += BYTES, high += BYTES) {
                c[0].load_w(s, low, high, k);
                s.template add_f32<1>(c[0].w, k);
            }
        } else if constexpr (INT8 && tile_t::TILES > 1) { /* no registers left for two chunks */
#pragma unroll 2
            for (; first < stop; first += CHUNK, k += CHUNK, low += BYTES, high += BYTES) {
                c[0].load_w(s, low, high, k);
                s.load_x(c[0].x, g, k);
                s.add_mma(c[0].w[0][0], c[0].w[0][1], c[0].x);
            }
        } else {
            if (first < stop) {
                c[0].load_w(s, low, high, k);
                s.load_x(c[0].x, g, k);
            }
#pragma unroll 1
            for (; first < stop; first += 2 * CHUNK, k += 2 * CHUNK, low += 2 * BYTES, high += 2 * BYTES) {
                c[1].load_w(s, low + BYTES, high + BYTES, k + CHUNK);
                s.load_x(c[1].x, g, k + CHUNK);
                s.add_mma(c[0].w[0][0], c[0].w[0][1], c[0].x);
                if (first + CHUNK < stop) {
                    c[0].load_w(s, low + 2 * BYTES, high + 2 * BYTES, k + 2 * CHUNK);
                    s.load_x(c[0].x, g, k + 2 * CHUNK);
                    s.add_mma(c[1].w[0][0], c[1].w[0][1], c[1].x);
                }
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

    DEVICE_MEMBER void matmul(const persist_op &op, const share &mine) {
        const int at_once = mine.tiles_at_once(), n_x = b.rows_of(op);
        const int leaf = mine.first_leaf + b.warp % mine.n_leaves, begin = op.border[leaf],
                  piece = op.piece_bytes / W_BYTES;
        float *const sums = reinterpret_cast<float *>(shared_room() + b.a.at_sums), *at = sums;
        tile_t s;
        s.x = input.x_of(op, mine);
        s.x_stride = op.x_pitch;
        s.n_rows = n_x;
        s.end = op.border[leaf + 1];
        for (int first = 0; first < mine.n_tiles; first += at_once) {
            const int tiles = min(at_once, mine.n_tiles - first), jobs = tiles * mine.n_leaves;
            if (b.warp < jobs) {
                const int tile = first + b.warp / mine.n_leaves;
                float scale_low = 0.0F, scale_high = 0.0F;
                if (INT8) {
                    load_scales(op, mine.begin_of(tile), mine.begin_of(tile + 1), leaf, &scale_low,
                                &scale_high);
                }
#pragma unroll
                for (int i = 0; i < (int)(sizeof s.acc / sizeof *s.acc); i++) {
                    s.acc[i] = 0.0F;
                }
                const int n = mine.begin_of(tile + 1) - mine.begin_of(tile);
                const int base = op.kind == PERSIST_FFN_IN ? n : DECODE_TILE / 2, g = b.lane / 4;
                const int low = g < n ? g : 0, high = base + g < (base == n ? 2 * n : n) ? base + g : 0;
                for (int j = 0; j < op.n_pieces; j++) {
                    const uint32_t number = b.chunk + (uint32_t)(j * jobs + b.warp);
                    const char *chunk = b.r.take(number, &b.p) + b.lane % 4 * 16;
                    const int pitch = j == op.n_pieces - 1 ? op.last_bytes : op.piece_bytes;
                    add_piece(s, chunk + low * pitch, chunk + high * pitch, begin + j * piece,
                              min(s.end, begin + (j + 1) * piece));
                    b.r.give_back(number);
                }
                leave(s, at + b.warp * COLUMNS * DECODE_TILE, b.lane / 4, b.lane % 4, scale_low, scale_high);
            }
            b.chunk += (uint32_t)(jobs * op.n_pieces);
            meet();
            finish_tiles(op, mine, first, tiles, n_x, at);
            at = at == sums ? sums + N_SUMS : sums; /* these may still be read when the next tiles' leave */
        }
    }

    DEVICE_MEMBER float tree_of(const float *at, int m, int r_in_tile, int n_leaves) const {
        float leaf[DECODE_LEAVES];
#pragma unroll
        for (int j = 0; j < DECODE_LEAVES; j++) {
            leaf[j] = j < n_leaves ? at[(j * COLUMNS + m) * DECODE_TILE + r_in_tile] : 0.0F;
        }
        return leaf_tree(leaf, n_leaves);
    }

    /* Adds leaves and passes outputs on. Whole warps come here as often, since pairs are put together by shuffles. */
    DEVICE_MEMBER void finish_tiles(const persist_op &op, const share &mine, int first, int tiles, int n_x,
                                    const float *at) {
        const int tile_rows = mine.most, count = tiles * COLUMNS * tile_rows;
        for (int i = b.thread; i < count; i += PERSIST_THREADS) {
            const int in_tile = i % tile_rows, m = i / tile_rows % COLUMNS, tile = i / tile_rows / COLUMNS;
            const int row = mine.begin_of(first + tile) + in_tile;
            const bool there = m < n_x && row < mine.begin_of(first + tile + 1);
            const float *of_tile = at + tile * mine.n_leaves * COLUMNS * DECODE_TILE;
            const float value = tree_of(of_tile, m, in_tile, mine.n_leaves);
            if (op.kind == PERSIST_FFN_IN) {
                put_act(op, m, row, there, value, tree_of(of_tile, m, in_tile + 8, mine.n_leaves));
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
            store_word(op.out + at / 2, word_of(pair_of(ACT, value, next), b.epoch()), false);
        }
    }

    DEVICE_MEMBER void put_sum(const persist_op &op, const share &mine, int m, int row, float value) {
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

    DEVICE_MEMBER void run(const persist_op &op, const share &mine) {
        if (mine.count > 0) {
            matmul(op, mine);
        }
    }
};

#endif
