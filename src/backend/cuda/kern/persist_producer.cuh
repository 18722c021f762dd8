/*
 * The producer of the persistent decode kernel: asks for all that this block's warps will multiply, in the order of the table.
 *
 * One thread starts all copies, and a chunk costs it some hundred instructions: what it does for one is what limits the stream
 * where chunks are short. A chunk is one box where its tile has 16 rows of one matrix (two where it has 8 of gate and of up), and
 * a box for each bit of their number elsewhere.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_PRODUCER_CUH
#define LS_BACKEND_CUDA_PERSIST_PRODUCER_CUH

#include "backend/cuda/kern/decode_attn.cuh"
#include "backend/cuda/kern/persist.cuh"

/* As row_of_lane of all the step's rows, from shared memory. */
DEVICE lane_row known_row(const persist_args &a) {
    const int lane = threadIdx.x % 32;
    const int2 *row = reinterpret_cast<const int2 *>(watch(a)->row);
    const int2 mine = row[min(lane, CUDA_MAX_DECODE - 1)];
    return lane_row{lane < a.step->n_rows, mine.x, mine.y};
}

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
    out.warp_bytes = a.attn_warp_bytes;
    out.split_tokens = DECODE_ATTN_TOKENS;
    out.scale = op.scale;
    out.eps = op.eps;
    return out;
}

/* Item `index` of the step's; how many there are, which may be no more than that. */
DEVICE int find_item(const decode_attn_args &args, const lane_row &row, int index, item *it) {
    return find_among(args, row, 0, 0, index, true, it);
}

/* By lane 0 alone, but for what whole warps do between the chunks of two ops: a line of the table, an item of attention. */
template <int W_BYTES> struct producer {
    const persist_args &a;
    patience p;
    ring r, landing;  /* the next chunk; the one that must have landed before it is asked for */
    uint32_t n_ahead; /* chunks that may be asked for before the window is full */
    bool is_gone;

    DEVICE_MEMBER explicit producer(const persist_args &args) : a(args), p(args), r(args), landing(args) {
        n_ahead = (uint32_t)a.window;
        is_gone = false;
    }

    /* Whether the next chunk's slot may be filled, now. */
    DEVICE_MEMBER bool has_slot() {
        if (is_gone) {
            return false;
        }
        is_gone = !p.wait(r.empty(r.slot), r.turn % 2 ^ 1, PERSIST_WAIT_ROOM, r.number());
        if (n_ahead > 0) {
            n_ahead--;
        } else {
            is_gone =
                is_gone || !p.wait(landing.full(landing.slot), landing.turn % 2, PERSIST_WAIT_WINDOW, landing.number());
            landing.go_on();
        }
        return !is_gone;
    }

    /* ---- Matmuls ---- */

    /* A tile, as it is copied. Most have a box's height of one matrix, or half of it of gate and of up. */
    struct tile_of_rows {
        int begin, end; /* of the op's rows; a pair's: of either matrix */
        int boxes;      /* 0: another number of them */
        int matrix, row;

        /* Rows of matrix i that are in it: the first one's number there, how many. */
        DEVICE_MEMBER int2 rows_of(const persist_op &op, int i) const {
            if (op.kind == PERSIST_FFN_IN) {
                return make_int2(begin, end - begin);
            }
            const int base = op.first_row[i], behind = i == 2 ? INT32_MAX : op.first_row[i + 1];
            return make_int2(max(begin, base) - base, max(0, min(end, behind) - max(begin, base)));
        }

        DEVICE_MEMBER void point(const persist_op &op, const op_share &mine, int tile) {
            begin = mine.begin_of(tile);
            end = mine.begin_of(tile + 1);
            matrix = op.kind == PERSIST_FFN_IN ? 0 : matrix_of_row(op, begin);
            const int2 rows = rows_of(op, matrix);
            row = rows.x;
            boxes = rows.y != mine.most ? 0 : op.kind == PERSIST_FFN_IN ? 2 : 1;
        }

        DEVICE_MEMBER int n_rows(const persist_op &op) const {
            return op.kind == PERSIST_FFN_IN ? 2 * (end - begin) : end - begin;
        }
    };

    /* A box for each bit of the number of a matrix's rows. They begin at multiples of 128 bytes: `width` is one of 64, and where it is
     * none of 128 there is an even number of rows before any of them (persist.c). */
    DEVICE_MEMBER void copy_odd_tile(const persist_op &op, const tile_of_rows &t, const persist_map *map, int families,
                                     int column, int width) const {
        char *to = r.at(r.slot);
#pragma unroll 1
        for (int i = 0; i < op.n_matrices; i++) {
            const int2 rows = t.rows_of(op, i);
            int row = rows.x;
#pragma unroll 1
            for (int h = 0; h < PERSIST_HEIGHTS; h++) {
                const int height = DECODE_TILE >> h;
                if ((rows.y & height) != 0) {
                    copy_box(to, map + (h * op.n_matrices + i) * families, column, row, r.full(r.slot));
                    row += height;
                    to += height * width;
                }
            }
        }
    }

    /* Piece j of all groups of a tile's leaves. */
    DEVICE_MEMBER void copy_pieces(const persist_op &op, const op_share &mine, const tile_of_rows &t, int j) {
        const bool last = j == op.n_pieces - 1, copies = (a.measure & PERSIST_NO_WEIGHTS) == 0;
        const int width = last ? op.last_bytes : op.piece_bytes, families = op.n_pieces > 1 ? 2 : 1;
        const int group = op.group, end = mine.first_leaf + mine.n_leaves;
        const uint32_t bytes = (uint32_t)(t.n_rows(op) * width), half = bytes / 2;
        const persist_map *map = a.map + op.map + (last ? families - 1 : 0), *first = map + t.matrix * families,
                          *second = map + (op.n_matrices + 1) * families;
        first += t.boxes == 2 ? op.n_matrices * families : 0;
        int next = op.border[mine.first_leaf];
#pragma unroll 1
        for (int leaf = mine.first_leaf; leaf < end; leaf += group) {
            const int at = next * W_BYTES + j * op.piece_bytes, column = at / PERSIST_ELEMENT;
            next = op.border[leaf + group];
            if (!has_slot()) {
                return;
            }
            const bool there = at < next * W_BYTES && copies;
            barrier_expect(r.full(r.slot), there ? bytes : 0);
            if (there && t.boxes != 0) {
                copy_box(r.at(r.slot), first, column, t.row, r.full(r.slot));
                if (t.boxes == 2) {
                    copy_box(r.at(r.slot) + half, second, column, t.row, r.full(r.slot));
                }
            } else if (there) {
                copy_odd_tile(op, t, map, families, column, width);
            }
            r.go_on();
        }
    }

    DEVICE_MEMBER void matmul(const persist_op &op) {
        const op_share mine(op);
        const int at_once = mine.tiles_at_once(), n_pieces = op.n_pieces;
        tile_of_rows t;
#pragma unroll 1
        for (int first = 0; first < mine.n_tiles; first += at_once) {
            const int tiles = min(at_once, mine.n_tiles - first);
#pragma unroll 1
            for (int j = 0; j < n_pieces; j++) {
#pragma unroll 1
                for (int tile = 0; tile < tiles; tile++) {
                    t.point(op, mine, first + tile);
                    copy_pieces(op, mine, t, j);
                }
            }
        }
    }

    /* ---- Attention ---- */

    /* All rows of K, or V, of a unit, panel by panel. */
    DEVICE_MEMBER void copy_unit(const persist_op &op, char *to, int64_t row, int is_v, int panels) const {
#pragma unroll 1
        for (int i = 0; i < panels; i++) {
            copy_box(to + i * (UNIT * PERSIST_PANEL), a.map + op.map + is_v, i * (PERSIST_PANEL / PERSIST_ELEMENT),
                     (int)row, r.full(r.slot));
        }
    }

    /* K and V of a unit, in one chunk or two. Where none of its tokens is attended to and in memory, slots alone. */
    DEVICE_MEMBER void copy_units(const persist_op &op, const unit &which, int panels) {
        const uint32_t bytes = (uint32_t)(panels * UNIT * PERSIST_PANEL);
        const bool there = which.end > max(which.first, 0) && (a.measure & PERSIST_NO_KV) == 0;
#pragma unroll 1
        for (int i = 0; i < 2; i += op.group) {
            if (!has_slot()) {
                return;
            }
            barrier_expect(r.full(r.slot), there ? (uint32_t)op.group * bytes : 0);
#pragma unroll 1
            for (int j = 0; j < op.group && there; j++) {
                copy_unit(op, r.at(r.slot) + (uint32_t)j * bytes, which.row, i + j, panels);
            }
            r.go_on();
        }
    }

    DEVICE_MEMBER void attention(const persist_op &op, const lane_row &row, int kv_bytes) {
        const decode_attn_args args = attn_args(a, op, 0);
        const int panels = (op.d_head * kv_bytes + PERSIST_PANEL - 1) / PERSIST_PANEL;
        item it;
        for (int index = blockIdx.x; index < find_item(args, row, index, &it); index += gridDim.x) {
            if (threadIdx.x % 32 == 0) {
#pragma unroll 1
                for (int u = 0; u < it.n_units() && !is_gone; u++) {
                    unit which;
                    which.find(args, it, u);
                    copy_units(op, which, panels);
                }
            }
            __syncwarp();
        }
    }

    /* ---- All ---- */

    /* Of the op behind this one: the maps that it begins with are those of its highest boxes. */
    DEVICE_MEMBER void prefetch_maps(const persist_op &op) const {
        constexpr int MOST = 6;
        const int lane = threadIdx.x % 32, i = op.map + op.n_maps + lane;
        if (lane < MOST && i < a.n_maps) {
            prefetch_map(a.map + i);
        }
    }

    /* After an abort: a block must not end while copies are under way. They are given some time to land. */
    DEVICE_MEMBER void let_land() {
        constexpr uint64_t LANDING_NS = 20000000;
        const uint64_t begin = global_time();
        for (int i = 0; i < a.n_slots && r.number() > 0; i++) {
            r.turn -= r.slot == 0;
            r.slot = (r.slot == 0 ? (uint32_t)a.n_slots : r.slot) - 1;
            while (!barrier_passed(r.full(r.slot), r.turn % 2) && global_time() - begin < LANDING_NS) {
                between_looks();
            }
        }
    }

    /* line: room for one. */
    DEVICE_MEMBER void run(persist_op *line, int kv_bytes) {
        const lane_row row = known_row(a);
        line_reader ahead;
        ahead.ask(a, 0);
        if (*a.launches == 0) { /* other maps may have lain there before */
#pragma unroll 1
            for (int i = threadIdx.x % 32; i < a.n_maps; i += 32) {
                renew_map(a.map + i);
            }
        }
        for (int i = 0; i < a.n_ops; i++) {
            __syncwarp();
            ahead.put(line);
            ahead.ask(a, i + 1);
            __syncwarp();
            p.line = i;
            prefetch_maps(*line);
            if (line->kind == PERSIST_ATTN) {
                attention(*line, row, kv_bytes);
            } else if (line->kind != PERSIST_EMBED && line->kind != PERSIST_NORM && threadIdx.x % 32 == 0) {
                matmul(*line);
            }
        }
        if (threadIdx.x % 32 == 0 && is_gone) {
            let_land();
        }
        p.tell();
    }
};

#endif
