/*
 * The producer of the persistent decode kernel: asks for all that this block's warps will multiply, in the order of the table.
 *
 * One lane starts all copies. A chunk is one box where its tile has 16 rows of one matrix (two where it has 8 of gate and of up), and a box
 * for each bit of their number elsewhere.
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
    DEVICE_MEMBER explicit producer(const persist_args &a) : r(a), p(a, a.timeout_ns) {
        f.begin();
    }

    /* Rows of each of up to three matrices that are in a tile, and which row of a chunk is the first of them. */
    struct run_of_rows {
        int first, count, in_chunk;
    };
    run_of_rows rows[3];
    int n_rows;

    DEVICE_MEMBER void point_at_tile(const persist_op &op, const share &mine, int tile) {
        const bool is_pair = op.kind == PERSIST_FFN_IN;
        const int begin = mine.begin_of(tile), end = mine.begin_of(tile + 1);
        n_rows = 0;
#pragma unroll
        for (int i = 0; i < 3; i++) {
            const int base = is_pair || op.first_row[i] == INT32_MAX ? 0 : op.first_row[i];
            const int behind = is_pair || i == 2 ? INT32_MAX : op.first_row[i + 1];
            const int first = max(begin, base), count = i < op.n_matrices ? max(0, min(end, behind) - first) : 0;
            rows[i].first = first - base;
            rows[i].count = count;
            rows[i].in_chunk = n_rows;
            n_rows += count;
        }
    }

    /* By one lane. Boxes begin at multiples of 128 bytes: `width` is one of 64, and where it is none of 128 there is an even number of rows
     * before any of them (persist.c). */
    DEVICE_MEMBER void copy_rows(const persist_op &op, bool last, int column, int width) const {
        const int families = op.n_pieces > 1 ? 2 : 1;
        const persist_map *of_width = r.a.map + op.map + (last ? families - 1 : 0);
        char *to = shared_room() + f.at;
#pragma unroll
        for (int i = 0; i < 3; i++) {
            int row = rows[i].first, in_chunk = rows[i].in_chunk;
#pragma unroll 1
            for (int h = 0; h < PERSIST_HEIGHTS; h++) {
                const int height = DECODE_TILE >> h;
                if ((rows[i].count & height) != 0) {
                    copy_box(to + in_chunk * width, of_width + (h * op.n_matrices + i) * families, column, row,
                             r.full(f.next));
                    row += height;
                    in_chunk += height;
                }
            }
        }
    }

    /* Piece j of a leaf of them. */
    DEVICE_MEMBER void copy_piece(const persist_op &op, int leaf, int j) {
        const bool last = j == op.n_pieces - 1;
        const int first = op.border[leaf] * W_BYTES + j * op.piece_bytes;
        const int width = last ? op.last_bytes : op.piece_bytes;
        const int bytes = first < op.border[leaf + 1] * W_BYTES ? n_rows * width : 0;
        if (!f.make_room(r, (uint32_t)(bytes + 127) / 128 * 128, 128, (uint32_t)bytes, &p)) {
            return;
        }
        if (is_elected()) {
            f.announce(r, (uint32_t)bytes);
            if (bytes > 0) {
                copy_rows(op, last, first / PERSIST_ELEMENT, width);
            }
        }
        __syncwarp();
        f.next++;
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
                    for (int leaf = 0; leaf < mine.n_leaves && !p.gone; leaf++) {
                        copy_piece(op, mine.first_leaf + leaf, j);
                    }
                }
            }
        }
    }

    /* K, or V, of a unit: all its rows, panel by panel. Where none of them is attended to and in memory, room alone. */
    DEVICE_MEMBER void copy_unit(const persist_op &op, const unit &which, int is_v, int panels) {
        constexpr int PANEL_BYTES = UNIT * PERSIST_PANEL;
        const uint32_t bytes = (uint32_t)(panels * PANEL_BYTES), coming = which.end > max(which.first, 0) ? bytes : 0;
        if (!f.make_room(r, bytes, 8 * PERSIST_PANEL, coming, &p)) {
            return;
        }
        if (is_elected()) {
            f.announce(r, coming);
            for (int i = 0; i < panels && coming > 0; i++) {
                copy_box(shared_room() + f.at + i * PANEL_BYTES, r.a.map + op.map + is_v,
                         i * (PERSIST_PANEL / PERSIST_ELEMENT), (int)which.row, r.full(f.next));
            }
        }
        __syncwarp();
        f.next++;
    }

    DEVICE_MEMBER void attention(const persist_args &a, const persist_op &op, int kv_bytes) {
        const decode_attn_args args = attn_args(a, op, 0);
        const int panels = (op.d_head * kv_bytes + PERSIST_PANEL - 1) / PERSIST_PANEL;
        item it;
        for (int index = blockIdx.x; index < find_item(args, index, &it); index += gridDim.x) {
            for (int u = 0; u < it.n_units() && !p.gone; u++) {
                unit which;
                which.find(args, it, u);
                copy_unit(op, which, 0, panels);
                if (!p.gone) {
                    copy_unit(op, which, 1, panels);
                }
            }
        }
    }

    /* Of the op behind this one: the maps that it begins with are those of its highest boxes. */
    DEVICE_MEMBER void prefetch_maps(const persist_op &op) const {
        constexpr int MOST = 6;
        const int lane = threadIdx.x % 32, i = op.map + op.n_maps + lane;
        if (lane < MOST && i < r.a.n_maps) {
            prefetch_map(r.a.map + i);
        }
    }

    /* line: room for one. */
    DEVICE_MEMBER void run(const persist_args &a, persist_op *line, int kv_bytes) {
        line_reader ahead;
        ahead.ask(a, 0);
        for (int i = 0; i < a.n_ops && !p.gone; i++) {
            __syncwarp();
            ahead.put(line);
            ahead.ask(a, i + 1);
            __syncwarp();
            p.line = i;
            prefetch_maps(*line);
            if (line->kind == PERSIST_ATTN) {
                attention(a, *line, kv_bytes);
            } else if (line->kind != PERSIST_EMBED && line->kind != PERSIST_NORM) {
                matmul(*line);
            }
        }
        f.land_all(r, &p);
    }
};

#endif
