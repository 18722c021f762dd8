/*
 * The producers of the persistent decode kernel: ask for all that this block's warps will multiply, in the order of the table.
 *
 * Producer p of four copies rows p, p + 4, ... of each chunk: copies of a warp's lanes are issued one after the other, some fifty
 * clocks each, so that one warp would be slower than memory. All four announce their bytes at the chunk's barrier, so
 * that none can be a round of the ring behind.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_PRODUCER_CUH
#define LS_BACKEND_CUDA_PERSIST_PRODUCER_CUH

#include "backend/cuda/kern/decode_attn.cuh"
#include "backend/cuda/kern/persist.cuh"

/* An op's line on its way to shared memory: 16 bytes a lane are read while the op before it runs. */
static_assert(sizeof(persist_op) <= 512 && sizeof(persist_op) % 16 == 0, "a lane has 16 bytes of a line");

struct line_reader {
    uint4 part;

    DEVICE_MEMBER void ask(const persist_args &a, int i) {
        const int lane = threadIdx.x % 32;
        if (i < a.n_ops && lane < (int)(sizeof(persist_op) / 16)) {
            part = reinterpret_cast<const uint4 *>(a.op + i)[lane];
        }
    }
    DEVICE_MEMBER void put(persist_op *to) const {
        const int lane = threadIdx.x % 32;
        if (lane < (int)(sizeof(persist_op) / 16)) {
            reinterpret_cast<uint4 *>(to)[lane] = part;
        }
    }
};

/* What attention's functions want to know. */
DEVICE decode_attn_args attn_args(const persist_args &a, const persist_op &op, int dtype) {
    decode_attn_args out = {};
    out.step = a.step;
    out.k_cache = op.k_cache;
    out.v_cache = op.v_cache;
    out.q_norm = op.q_norm;
    out.k_norm = op.k_norm;
    out.rope = a.rope;
    out.raw = 1;
    out.n_heads = op.n_heads;
    out.n_kv = op.n_kv;
    out.d = op.d_head;
    out.dtype = dtype;
    out.window = op.window;
    out.max_splits = op.max_splits;
    out.row_bytes = a.kv_row_bytes;
    out.warp_bytes = a.attn_warp_bytes;
    out.scale = op.scale;
    out.eps = op.eps;
    return out;
}

template <int W_BYTES> struct producer {
    ring r;
    flight f;
    patience p;

    /* A tile's rows: a lane copies one of them. */
    const char *row;
    int in_slot, n_rows; /* the lane's; the warp's */
    bool is_mine;

    DEVICE_MEMBER int row_of_lane() const {
        return threadIdx.x % 32 * PERSIST_PRODUCERS + f.producer;
    }

    DEVICE_MEMBER void point_at_tile(const persist_op &op, const share &mine, int tile) {
        const bool is_pair = op.kind == PERSIST_FFN_IN;
        const int begin = mine.begin_of(op, tile), n = mine.begin_of(op, tile + 1) - begin;
        in_slot = row_of_lane();
        const int i = begin + (is_pair ? in_slot % 8 : in_slot),
                  which = is_pair ? in_slot / 8 % 2 : matrix_of_row(op, i);
        row = static_cast<const char *>(op.matrix[which].w) +
              (int64_t)(i - (is_pair ? 0 : op.first_row[which])) * op.k * W_BYTES;
        is_mine = i < begin + n && in_slot < DECODE_TILE;
        n_rows = __popc(__ballot_sync(0xffffffffu, is_mine));
    }

    /* Piece j of a leaf of them. */
    DEVICE_MEMBER void copy_piece(const persist_op &op, int leaf, int j) {
        const int first = op.border[leaf] * W_BYTES + j * op.piece_bytes;
        const int bytes = max(0, min(op.border[leaf + 1] * W_BYTES - first, op.piece_bytes));
        if (!f.make_room(&r, bytes * n_rows, &p)) {
            return;
        }
        if (bytes > 0 && is_mine) {
            copy_bulk(r.at() + in_slot * op.pitch, row + first, (uint32_t)bytes, r.full + r.slot);
        }
        f.go_on(&r);
    }

    DEVICE_MEMBER void matmul(const persist_op &op) {
        const share mine(op);
        const int at_once = mine.tiles_at_once();
        for (int first = 0; first < mine.n_tiles; first += at_once) {
            const int tiles = min(at_once, mine.n_tiles - first);
            for (int j = 0; j < op.n_pieces; j++) {
                for (int tile = 0; tile < tiles; tile++) {
                    if (j == 0 || tiles > 1) {
                        point_at_tile(op, mine, first + tile);
                    }
                    for (int leaf = 0; leaf < mine.n_leaves; leaf++) {
                        copy_piece(op, mine.first_leaf + leaf, j);
                    }
                }
            }
        }
    }

    /* A lane copies a token's row. */
    DEVICE_MEMBER void attention(const persist_args &a, const persist_op &op, int kv_bytes) {
        const decode_attn_args args = attn_args(a, op, 0);
        const int token = row_of_lane(), bytes = op.d_head * kv_bytes;
        item it;
        for (int index = blockIdx.x; index < find_item(args, index, &it); index += gridDim.x) {
            for (int u = 0; u < it.n_units(); u++) {
                unit which;
                which.find(args, it, u);
                is_mine = token < UNIT && token >= which.first && token < which.end;
                n_rows = __popc(__ballot_sync(0xffffffffu, is_mine));
                for (int kv = 0; kv < 2; kv++) {
                    if (!f.make_room(&r, n_rows * bytes, &p)) {
                        return;
                    }
                    if (is_mine) {
                        const char *from = static_cast<const char *>(kv == 0 ? op.k_cache : op.v_cache);
                        copy_bulk(r.at() + token * args.row_bytes, from + (which.row + token) * bytes, (uint32_t)bytes,
                                  r.full + r.slot);
                    }
                    f.go_on(&r);
                }
            }
        }
    }

    /* line: room for one. */
    DEVICE_MEMBER void run(const persist_args &a, char *room, int which, persist_op *line, int kv_bytes) {
        r.begin(a, room);
        p.begin(a);
        p.deadline += (uint64_t)a.timeout_ns; /* it is ahead: who is stuck is for consumers to say */
        f.begin(a, which);
        line_reader ahead;
        ahead.ask(a, 0);
        for (int i = 0; i < a.n_ops && !p.gone; i++) {
            __syncwarp();
            ahead.put(line);
            ahead.ask(a, i + 1);
            __syncwarp();
            p.op = line->index;
            p.layer = line->layer;
            if (line->kind == PERSIST_ATTN) {
                attention(a, *line, kv_bytes);
            } else if (line->kind != PERSIST_EMBED && line->kind != PERSIST_NORM) {
                matmul(*line);
            }
        }
        f.land_all(&r);
    }
};

#endif
