/*
 * The producers of the persistent decode kernel: ask for all that this block's warps will multiply, in the order of the table.
 *
 * Producer p of four copies rows p, p + 4, ... of each chunk, by one lane. All four announce their bytes at the chunk's
 * barrier, so that none can be a round of the ring behind.
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

    /* It is ahead: who is stuck is for consumers to say. */
    DEVICE_MEMBER explicit producer(const persist_args &a) : r(a), p(a, a.timeout_ns) {}

    /* Rows of one matrix, or of K or V, PERSIST_PRODUCERS apart: all that this producer copies of a chunk are one to three of these. */
    struct run_of_rows {
        const char *from;
        int in_slot, count;
    };
    run_of_rows rows[3];
    int n_rows;

    /* Rows [first, end) lie in memory from `from` on, `bytes` each, and in the slot from row in_slot on. */
    DEVICE_MEMBER void set_rows(int which, const char *from, int64_t bytes, int first, int end, int in_slot) {
        const int before = (f.producer - in_slot % PERSIST_PRODUCERS + PERSIST_PRODUCERS) % PERSIST_PRODUCERS;
        rows[which].from = from + before * bytes;
        rows[which].in_slot = in_slot + before;
        rows[which].count = max(0, (end - first - before + PERSIST_PRODUCERS - 1) / PERSIST_PRODUCERS);
        n_rows += rows[which].count;
    }

    /* `bytes` of each of them, which lie `apart` from one another. */
    DEVICE_MEMBER void copy_rows(int from_byte, int bytes, int64_t apart, int pitch) {
        if (bytes > 0 && is_elected()) {
#pragma unroll
            for (int i = 0; i < 3; i++) {
                const char *from = rows[i].from + from_byte;
                char *to = r.at() + rows[i].in_slot * pitch;
                for (int n = rows[i].count; n > 0; n--) {
                    copy_bulk(to, from, (uint32_t)bytes, r.full(r.slot));
                    from += PERSIST_PRODUCERS * apart;
                    to += PERSIST_PRODUCERS * pitch;
                }
            }
        }
        __syncwarp();
    }

    DEVICE_MEMBER void point_at_tile(const persist_op &op, const share &mine, int tile) {
        const bool is_pair = op.kind == PERSIST_FFN_IN;
        const int begin = mine.begin_of(op, tile), end = mine.begin_of(op, tile + 1);
        const int64_t row_bytes = (int64_t)op.k * W_BYTES;
        n_rows = 0;
#pragma unroll
        for (int i = 0; i < 3; i++) {
            const int base = is_pair || op.first_row[i] == INT32_MAX ? 0 : op.first_row[i];
            const int behind = is_pair || i == 2 ? INT32_MAX : op.first_row[i + 1];
            const bool there = op.matrix[i].w != NULL;
            const int first = max(begin, base), stop = there ? min(end, behind) : first;
            set_rows(i, static_cast<const char *>(op.matrix[i].w) + (first - base) * row_bytes, row_bytes, first, stop,
                     is_pair ? i * (DECODE_TILE / 2) : max(first - begin, 0));
        }
    }

    /* Piece j of a leaf of them. */
    DEVICE_MEMBER void copy_piece(const persist_op &op, int leaf, int j) {
        const int first = op.border[leaf] * W_BYTES + j * op.piece_bytes;
        const int bytes = max(0, min(op.border[leaf + 1] * W_BYTES - first, op.piece_bytes));
        if (!f.make_room(&r, bytes * n_rows, &p)) {
            return;
        }
        copy_rows(first, bytes, (int64_t)op.k * W_BYTES, op.pitch);
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

    DEVICE_MEMBER void attention(const persist_args &a, const persist_op &op, int kv_bytes) {
        const decode_attn_args args = attn_args(a, op, 0);
        const int bytes = op.d_head * kv_bytes;
        item it;
        rows[1].count = rows[2].count = 0;
        for (int index = blockIdx.x; index < find_item(args, index, &it); index += gridDim.x) {
            for (int u = 0; u < it.n_units(); u++) {
                unit which;
                which.find(args, it, u);
                const int first = max(which.first, 0), end = max(first, min(which.end, (int)UNIT));
                for (int kv = 0; kv < 2; kv++) {
                    n_rows = 0;
                    set_rows(0,
                             static_cast<const char *>(kv == 0 ? op.k_cache : op.v_cache) + (which.row + first) * bytes,
                             bytes, first, end, first);
                    if (!f.make_room(&r, n_rows * bytes, &p)) {
                        return;
                    }
                    copy_rows(0, bytes, bytes, args.row_bytes);
                    f.go_on(&r);
                }
            }
        }
    }

    /* line: room for one. */
    DEVICE_MEMBER void run(const persist_args &a, int which, persist_op *line, int kv_bytes) {
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
        f.land_all(&r, &p);
    }
};

#endif
