/*
 * The producer of the persistent decode kernel: asks for all that this block's warps will multiply, in the order of the table.
 *
 * One warp does. Chunks are worked out 32 at a time, one a lane: slot, barriers, bytes, the box. Then lane by lane, in the chunks' order,
 * each waits for its slot and for the window and asks for its own: that is all that one chunk after the other costs, 45
 * instructions, or 58 with two boxes. What comes before that, some 400 an op, takes less time than what is on its way by then.
 *
 * A chunk is one box, or one of gate and one of up: where a tile is short, the lowest box that has all its rows. What that reads
 * beyond them is the next block's, or 0 behind the matrix's end; where it would be much (9 to 12 rows) there are two.
 * A tile with rows of several matrices, which few blocks have one of, has a box for each bit of the number of a matrix's.
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

    /* All lanes, at once: what a branch reads would be waited for at its end. */
    DEVICE_MEMBER void ask(const persist_args &a, int i) {
        const int lane = min((int)threadIdx.x % 32, (int)(sizeof(persist_op) / 16) - 1);
        part = reinterpret_cast<const uint4 *>(a.op + min(i, a.n_ops - 1))[lane];
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

/* By all lanes of its warp. */
template <int W_BYTES> struct producer {
    const persist_args &a;
    patience p;
    ring r;            /* for its addresses */
    uint32_t per_slot; /* 2^32 / n_slots, rounded up */
    uint32_t next;     /* number of the next chunk: so many were asked for */
    uint32_t asked;    /* bytes so far */
    uint32_t begun;    /* of the 32 chunks before, one a lane: bytes that were asked for before it */
    bool is_gone;

    DEVICE_MEMBER explicit producer(const persist_args &args) : a(args), p(args), r(args) {
        per_slot = UINT32_MAX / (uint32_t)a.n_slots + 1;
        next = asked = begun = 0;
        is_gone = false;
    }

    /* ---- The next chunks ---- */

    /* number / n_slots, of numbers below 2^26. */
    DEVICE_MEMBER uint32_t turn_of(uint32_t number) const {
        return (uint32_t)((uint64_t)number * per_slot >> 32);
    }

    /* How many chunks, with this lane's as the last one of them, have no more bytes than the window, at least 1: it may be asked for when
     * the one before these has landed. Chunks before the 32 of `begun` count for none, those before the first one do, which changes
     * nothing. Lanes from n on have none. */
    DEVICE_MEMBER uint32_t window_of(int n, uint32_t bytes) {
        const int lane = threadIdx.x % 32;
        bytes = lane < n ? bytes : 0;
        uint32_t end = bytes;
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes *= 2) {
            const uint32_t other = __shfl_up_sync(EVERY_LANE, end, lanes);
            end += lane >= lanes ? other : 0;
        }
        end += asked;
        const uint32_t begin = end - bytes;
        int passed = 0; /* of these 64 in all, those that begin too early */
#pragma unroll
        for (int step = 32; step > 0; step /= 2) {
            const int i = passed + step - 1;
            const uint32_t before = __shfl_sync(EVERY_LANE, begun, i % 32),
                           here = __shfl_sync(EVERY_LANE, begin, i % 32);
            passed += (int32_t)((i < 32 ? before : here) - end + (uint32_t)a.window_bytes) < 0 ? step : 0;
        }
        const uint32_t last_before = __shfl_sync(EVERY_LANE, begun, (lane + n) % 32),
                       last_here = __shfl_sync(EVERY_LANE, begin, (lane + n) % 32);
        begun = lane + n < 32 ? last_before : last_here;
        asked = __shfl_sync(EVERY_LANE, end, 31);
        return (uint32_t)max(1, min(32 + lane - passed + 1, a.n_slots));
    }

    /* Of lane i, chunk next + i, for i < n: when there is room for it, `bytes` of it are announced and copy(slot, barrier) asks for its
     * boxes. After a wait in vain no lane asks for any more. A chunk's waits are for barriers that are in their last phase but one
     * or in the last: n_slots chunks before it, or fewer, all were asked for when its lane looks. */
    template <typename COPY> DEVICE_MEMBER void ask(int n, uint32_t bytes, const COPY &copy) {
        const int lane = threadIdx.x % 32;
        const uint32_t n_slots = (uint32_t)a.n_slots, number = next + (uint32_t)lane;
        const uint32_t turn = turn_of(number), slot = number - turn * n_slots;
        uint64_t *const full = r.full(slot), *const empty = r.empty(slot);
        const uint32_t is_empty = turn % 2 ^ 1;
        /* The chunk that must have landed; of the first ones none: the same once more. */
        const uint32_t window = window_of(n, bytes);
        const bool has_window = number >= window;
        const uint32_t landing = has_window ? number - window : 0, its_turn = turn_of(landing);
        uint64_t *const landed = has_window ? r.full(landing - its_turn * n_slots) : empty;
        const uint32_t is_landed = has_window ? its_turn % 2 : is_empty;
        char *const to = r.at(slot);
        int i = 0;
#pragma unroll 1
        while (i < n && !is_gone) {
            bool in_vain = false;
            if (lane == i) {
                in_vain = !p.wait(empty, is_empty, PERSIST_WAIT_ROOM, number) ||
                          !p.wait(landed, is_landed, PERSIST_WAIT_WINDOW, landing);
                if (!in_vain) {
                    barrier_expect(full, bytes);
                    copy(to, full);
                }
            }
            is_gone = __ballot_sync(EVERY_LANE, in_vain) != 0;
            i += !is_gone;
        }
        next += (uint32_t)i;
    }

    /* ---- Matmuls ---- */

    static DEVICE_MEMBER int n_chunks_of(const persist_op &op, const op_share &mine) {
        return (mine.n_tiles * op.n_pieces) << (log_of(mine.n_leaves) - log_of(op.group));
    }

    /* Rows of a tile's highest box, of one matrix. */
    static DEVICE_MEMBER int high_of(int n) {
        return n > DECODE_TILE / 2 && n <= DECODE_TILE * 3 / 4 ? DECODE_TILE / 2 : rows_of_box(n);
    }

    /* A lane's chunk: piece j of a group of leaves of a tile. */
    struct matmul_chunk {
        int tile, j, leaf; /* the group's first */
        int begin, end;    /* of the op's rows; a pair's: of either matrix */
        int matrix, row;   /* the first one's */
        int high, low;     /* rows of its box, or of either matrix's; of another box behind it, or 0 */
        bool is_odd;       /* of several matrices */

        /* Rows of matrix i that are in it: the first one's number there, how many. */
        DEVICE_MEMBER int2 rows_of(const persist_op &op, int i) const {
            if (op.kind == PERSIST_FFN_IN) {
                return make_int2(begin, end - begin);
            }
            const int base = op.first_row[i], behind = i == 2 ? INT32_MAX : op.first_row[i + 1];
            return make_int2(max(begin, base) - base, max(0, min(end, behind) - max(begin, base)));
        }

        /* Number `index` of the op's: by tiles that the warps take at a time, pieces, tiles, leaves. */
        DEVICE_MEMBER matmul_chunk(const persist_op &op, const op_share &mine, int index) {
            const int by_groups = log_of(mine.n_leaves) - log_of(op.group), at_once = mine.tiles_at_once();
            const int of_tiles = index >> by_groups;
            j = 0;
            tile = of_tiles;
            if (op.n_pieces > 1) {
                const int round = (int)((uint32_t)(of_tiles >> log_of(at_once)) / (uint32_t)op.n_pieces);
                const int first = round * at_once, tiles = min(at_once, mine.n_tiles - first);
                const int in_round = of_tiles - first * op.n_pieces;
                j = (int)((uint32_t)in_round / (uint32_t)tiles);
                tile = first + in_round - j * tiles;
            }
            leaf = mine.first_leaf + (index & ((1 << by_groups) - 1)) * op.group;
            begin = mine.begin_of(tile);
            end = mine.begin_of(tile + 1);
            matrix = op.kind == PERSIST_FFN_IN ? 0 : matrix_of_row(op, begin);
            const int2 rows = rows_of(op, matrix);
            row = rows.x;
            is_odd = rows.y != end - begin;
            high = high_of(end - begin);
            low = rows_of_box(end - begin - high);
        }
    };

    /* Its maps of boxes of so many rows. */
    static DEVICE_MEMBER int maps_of(const persist_op &op, int height, int families) {
        return (log_of(DECODE_TILE) - log_of(height)) * op.n_matrices * families;
    }

    /* A box for each bit of the number of a matrix's rows. They begin at multiples of 128 bytes: `width` is one of 64, and where it is
     * none of 128 there is an even number of rows before any of them (persist.c). */
    static DEVICE_MEMBER void copy_odd(const persist_op &op, const matmul_chunk &c, const persist_map *map,
                                       int families, int column, int width, char *to, uint64_t *full) {
#pragma unroll 1
        for (int i = 0; i < op.n_matrices; i++) {
            const int2 rows = c.rows_of(op, i);
            int row = rows.x;
#pragma unroll 1
            for (int h = 0; h < PERSIST_HEIGHTS; h++) {
                const int height = DECODE_TILE >> h;
                if ((rows.y & height) != 0) {
                    copy_box_once(to, map + (h * op.n_matrices + i) * families, column, row, full);
                    row += height;
                    to += height * width;
                }
            }
        }
    }

    /* The maps of the last tile's boxes, which are no highest ones: prefetch_maps. */
    DEVICE_MEMBER void prefetch_last(const persist_op &op, const op_share &mine, int families) const {
        const int lane = threadIdx.x % 32;
        const int n = mine.count - (mine.n_tiles - 1) * mine.most, high = high_of(n);
        if (mine.count > 0 && lane < op.n_matrices * families) {
            prefetch_map(a.map + op.map + maps_of(op, n > high ? rows_of_box(n - high) : high, families) + lane);
        }
    }

    DEVICE_MEMBER void matmul(const persist_op &op) {
        const op_share mine(op);
        const int n_chunks = n_chunks_of(op, mine), families = op.n_pieces > 1 ? 2 : 1;
        const bool is_pair = op.kind == PERSIST_FFN_IN, copies = (a.measure & PERSIST_NO_WEIGHTS) == 0;
        prefetch_last(op, mine, families);
#pragma unroll 1
        for (int first = 0; first < n_chunks && !is_gone; first += 32) {
            const matmul_chunk c(op, mine, min(first + (int)(threadIdx.x % 32), n_chunks - 1));
            const bool last = c.j == op.n_pieces - 1;
            const int width = last ? op.last_bytes : op.piece_bytes;
            const int at = op.border[c.leaf] * W_BYTES + c.j * op.piece_bytes, column = at / PERSIST_ELEMENT;
            const bool there = copies && at < op.border[c.leaf + op.group] * W_BYTES;
            const persist_map *map = a.map + op.map + (last ? families - 1 : 0),
                              *box = map + maps_of(op, c.high, families) + c.matrix * families;
            const int n_rows = c.is_odd ? c.end - c.begin : is_pair ? 2 * c.high : c.high + c.low;
            /* The second one: up's, or of the rows behind the first one's. */
            const bool has_second = is_pair || c.low > 0;
            const persist_map *second =
                is_pair || !has_second ? box + families : map + maps_of(op, c.low, families) + c.matrix * families;
            const int row = c.row + (is_pair ? 0 : c.high);
            const uint32_t behind = (uint32_t)(c.high * width);
            ask(min(32, n_chunks - first), there ? (uint32_t)(n_rows * width) : 0, [&](char *to, uint64_t *full) {
                if (there && !c.is_odd) {
                    copy_box_once(to, box, column, c.row, full);
                    if (has_second) {
                        copy_box_once(to + behind, second, column, row, full);
                    }
                } else if (there) {
                    copy_odd(op, c, map, families, column, width, to, full);
                }
            });
        }
    }

    /* ---- Attention ---- */

    /* All units of an item, K and V of each in one chunk or two. Of a unit of which no token is attended to and in memory, slots
     * alone. */
    DEVICE_MEMBER void copy_item(const persist_op &op, const decode_attn_args &args, const item &it, int panels) {
        const int by_unit = 2 / op.group, n_chunks = it.n_units() * by_unit; /* 1 or 2 */
        const uint32_t bytes = (uint32_t)(panels * UNIT * PERSIST_PANEL);
#pragma unroll 1
        for (int first = 0; first < n_chunks && !is_gone; first += 32) {
            const int index = min(first + (int)(threadIdx.x % 32), n_chunks - 1), is_v = index & (by_unit - 1);
            unit which;
            which.find(args, it, index / by_unit);
            const bool there = which.end > max(which.first, 0) && (a.measure & PERSIST_NO_KV) == 0;
            ask(min(32, n_chunks - first), there ? (uint32_t)op.group * bytes : 0, [&](char *to, uint64_t *full) {
#pragma unroll 1
                for (int i = 0; i < op.group * panels && there; i++) { /* K's panels, then V's */
                    const bool in_v = i >= panels;
                    copy_box(to + i * (UNIT * PERSIST_PANEL), a.map + op.map + (in_v ? 1 : is_v),
                             (in_v ? i - panels : i) * (PERSIST_PANEL / PERSIST_ELEMENT), (int)which.row, full);
                }
            });
        }
    }

    DEVICE_MEMBER void attention(const persist_op &op, const lane_row &row, int kv_bytes) {
        const decode_attn_args args = attn_args(a, op, 0);
        const int panels = (op.d_head * kv_bytes + PERSIST_PANEL - 1) / PERSIST_PANEL;
        item it;
        for (int index = blockIdx.x; index < find_item(args, row, index, &it); index += gridDim.x) {
            copy_item(op, args, it, panels);
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
    DEVICE_MEMBER void let_land() const {
        constexpr uint64_t LANDING_NS = 20000000;
        const uint64_t begin = global_time();
        const uint32_t n_slots = (uint32_t)a.n_slots;
#pragma unroll 1
        for (uint32_t i = threadIdx.x % 32; i < min(n_slots, next); i += 32) {
            const uint32_t number = next - 1 - i;
            while (!barrier_passed(r.full(number % n_slots), number / n_slots % 2) &&
                   global_time() - begin < LANDING_NS) {
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
            } else if (line->kind != PERSIST_EMBED && line->kind != PERSIST_NORM) {
                matmul(*line);
            }
        }
        if (is_gone) {
            let_land();
        }
        p.tell();
    }
};

#endif
