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

/* By lane 0 alone, but for what whole warps do between the chunks of two ops: a line of the table, an item of attention. */
template <int W_BYTES> struct producer {
    const persist_args &a;
    patience p;
    ring r, landing; /* the next chunk; the one that must have landed before it is asked for */
    uint32_t n_ahead; /* chunks that may be asked for before the window is full */
    bool is_gone;

    DEVICE_MEMBER explicit producer(const persist_args &args) : a(args), p(args), r(args), landing(args) {
        n_ahead = (uint32_t)a.window;
        is_gone = false;
    }

    /* Whether the next chunk's slot may be filled, now. */
    DEVICE_MEMBER bool has_slot() {
        is_gone = is_gone || !p.wait(r.empty(r.slot), r.turn % 2 ^ 1, PERSIST_WAIT_ROOM, r.number());
        if (n_ahead > 0) {
            n_ahead--;
        } else {
            is_gone = is_gone || !p.wait(landing.full(landing.slot), landing.turn % 2, PERSIST_WAIT_WINDOW,
                                         landing.number());
            landing.go_on();
        }
        return !is_gone;
    }

    /* ---- Matmuls ---- */

    /* Rows of each of up to three matrices that are in a tile, and which row of a chunk is the first of them. Most tiles have a box's
     * height of one matrix, or half of it of gate and of up. */
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

    /* Boxes begin at multiples of 128 bytes: `width` is one of 64, and where it is none of 128 there is an even number of rows
     * before any of them (persist.c). */
    DEVICE_MEMBER void copy_rows(const persist_op &op, bool last, int column, int width) const {
        const int families = op.n_pieces > 1 ? 2 : 1;
        const persist_map *map = a.map + op.map + (last ? families - 1 : 0);
        char *to = r.at(r.slot);
        uint64_t *full = r.full(r.slot);
        if (rows[0].count == DECODE_TILE) {
            copy_box(to, map, column, rows[0].first, full);
            return;
        }
        if (rows[0].count == DECODE_TILE / 2 && rows[1].count == DECODE_TILE / 2) { /* gate and up */
            map += op.n_matrices * families;
            copy_box(to, map, column, rows[0].first, full);
            copy_box(to + DECODE_TILE / 2 * width, map + families, column, rows[1].first, full);
            return;
        }
#pragma unroll 1
        for (int i = 0; i < 3; i++) {
            const run_of_rows &mine = i == 0 ? rows[0] : i == 1 ? rows[1] : rows[2];
            int row = mine.first, in_chunk = mine.in_chunk;
#pragma unroll 1
            for (int h = 0; h < PERSIST_HEIGHTS; h++) {
                const int height = DECODE_TILE >> h;
                if ((mine.count & height) != 0) {
                    copy_box(to + in_chunk * width, map + (h * op.n_matrices + i) * families, column, row, full);
                    row += height;
                    in_chunk += height;
                }
            }
        }
    }

    /* Piece j of a group of leaves of them, from leaf `leaf` on. */
    DEVICE_MEMBER void copy_piece(const persist_op &op, int leaf, int j) {
        if (!has_slot()) {
            return;
        }
        const bool last = j == op.n_pieces - 1;
        const int first = op.border[leaf] * W_BYTES + j * op.piece_bytes;
        const int width = last ? op.last_bytes : op.piece_bytes;
        const bool there =
            first < op.border[leaf + op.group] * W_BYTES && (a.measure & PERSIST_NO_WEIGHTS) == 0;
        barrier_expect(r.full(r.slot), there ? (uint32_t)(n_rows * width) : 0);
        if (there) {
            copy_rows(op, last, first / PERSIST_ELEMENT, width);
        }
        r.go_on();
    }

    DEVICE_MEMBER void matmul(const persist_op &op) {
        const share mine(op);
        const int at_once = mine.tiles_at_once(), end = mine.first_leaf + mine.n_leaves;
        for (int first = 0; first < mine.n_tiles; first += at_once) {
            const int tiles = min(at_once, mine.n_tiles - first);
            for (int j = 0; j < op.n_pieces; j++) {
                for (int tile = 0; tile < tiles; tile++) {
                    point_at_tile(op, mine, first + tile);
                    for (int leaf = mine.first_leaf; leaf < end && !is_gone; leaf += op.group) {
                        copy_piece(op, leaf, j);
                    }
                }
            }
        }
    }

    /* ---- Attention ---- */

    /* All rows of K, or V, of a unit, panel by panel. */
    DEVICE_MEMBER void copy_unit(const persist_op &op, char *to, int64_t row, int is_v, int panels) const {
        for (int i = 0; i < panels; i++) {
            copy_box(to + i * (UNIT * PERSIST_PANEL), a.map + op.map + is_v, i * (PERSIST_PANEL / PERSIST_ELEMENT),
                     (int)row, r.full(r.slot));
        }
    }

    /* K and V of a unit, in one chunk or two. Where none of its tokens is attended to and in memory, slots alone. */
    DEVICE_MEMBER void copy_units(const persist_op &op, const unit &which, int panels) {
        const uint32_t bytes = (uint32_t)(panels * UNIT * PERSIST_PANEL);
        const bool there = which.end > max(which.first, 0) && (a.measure & PERSIST_NO_KV) == 0;
        for (int i = 0; i < 2; i += op.group) {
            if (!has_slot()) {
                return;
            }
            barrier_expect(r.full(r.slot), there ? (uint32_t)op.group * bytes : 0);
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
                between_polls();
            }
        }
    }

    /* line: room for one. */
    DEVICE_MEMBER void run(persist_op *line, int kv_bytes) {
        const lane_row row(a.step);
        line_reader ahead;
        ahead.ask(a, 0);
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
