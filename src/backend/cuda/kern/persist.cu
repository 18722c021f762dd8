/*
 * A whole decode step as one cooperative kernel, M = 1 .. 16, sm_90 on: one block on each SM, and weights that never stop coming.
 *
 * Shape. Per-op kernels stop and start the stream of weights at every border. Here a PRODUCER warp walks the op table once a
 * step and copies this block's part of every op, in order, into a ring of slots in shared memory (cp.async.bulk, a slot's
 * barrier counts its bytes). It waits for free slots and for its window (bytes in flight: more would only make exchanges wait in
 * the memory's queues), never for activations: what an op will need is there when its input is. Eight other warps COMPUTE.
 * All that is particular to a model is in the table (persist.c, from the program).
 *
 * Matmuls. A block has a contiguous range of rows of every op, to the row, so that all blocks have as many bytes; it works through them in
 * tiles of at most 16 rows, as equal as can be (ffn_in: 8 of gate and the same 8 of up). A warp takes one LEAF of a tile, as in
 * decode_matmul.cu, with fewer leaves (more ranks) several tiles at a time. A CHUNK of the ring is a PIECE of one leaf of a tile's rows:
 * piece after piece of all leaves in turn, so that all warps work while a tile comes in and little is left to do behind
 * its last byte. Rows lie `pitch` bytes apart, 64 modulo 128: a quarter of a warp reads 16 bytes of two rows without a conflict.
 *
 * Attention is the same stream: a chunk is K or V of one unit (32 tokens), asked for ahead as weights are; the row's own k and v
 * are put in by hand, since this step makes them. Items go to blocks in turn. An item of split 0 adds the splits' parts when its
 * block has done all its items, so that no block waits for itself.
 *
 * Exchange. A value crosses SMs in a word of 8 bytes with the EPOCH of what wrote it: who needs it polls it; there are no counters,
 * fences, or barriers of the grid. An epoch is of one op of one step, so that nothing is cleared. There is one buffer for each
 * kind of vector (qkv, att, act, and h twice): between two writes of a word lies always an exchange that each
 * reader of the first had to take part in. Four exchanges a layer have all of a vector read by every block: att, h, act, h; qkv
 * goes to the blocks of attention alone.
 *
 * The residual stream lies in pieces: the block with rows [a, b) of out and ffn_out has these elements of h in shared memory, adds
 * to them, and publishes h. Every block takes all of h and makes the norm itself. With several ranks a row's nodes go to all ranks first
 * and the owner adds them up the leaf tree: the same kernel, one hop more.
 *
 * Bits are those of the kernels that run op by op: the same chains, trees, splits and order of the norm's sum.
 *
 * Memory order. Words carry their own readiness, hence relaxed. Shared memory goes between warps by barriers of the eight.
 * Where warps write into a slot (attention), a fence stands before the slot is given back, since the next copy is another proxy's.
 *
 * Every wait has a deadline (patience). After an abort nobody waits; the producer asks for nothing more but lets what is under way land.
 */
#include "backend/cuda/kern/decode_attn.cuh"
#include "backend/cuda/kern/decode_matmul.cuh"
#include "backend/cuda/kern/decode_sample.cuh"
#include "backend/cuda/kern/persist.cuh"

extern __shared__ uint4 persist_room[];

DEVICE void meet() {
    first_threads_meet(PERSIST_THREADS);
}

/* An op's line in shared memory: 16 bytes a lane are read while the op before it runs. */
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

/* ---- The producer ---- */

template <int W_BYTES> struct producer {
    ring r;
    flight f;
    patience p;

    /* Piece j of leaf `leaf` of a tile; a lane copies a row. */
    DEVICE_MEMBER void copy_piece(const persist_op &op, const share &mine, int tile, int leaf, int j) {
        const int lane = threadIdx.x % 32, begin = mine.begin_of(op, tile), n = mine.begin_of(op, tile + 1) - begin;
        const int first = op.border[leaf] * W_BYTES + j * op.piece_bytes;
        const int bytes = max(0, min(op.border[leaf + 1] * W_BYTES - first, op.piece_bytes));
        const bool is_pair = op.kind == PERSIST_FFN_IN;
        if (!f.make_room(&r, bytes * n * (is_pair ? 2 : 1), &p)) {
            return;
        }
        const int i = is_pair ? lane % 8 : lane;
        if (bytes > 0 && i < n && lane < DECODE_TILE) {
            const int row = begin + i, which = is_pair ? lane / 8 : matrix_of_row(op, row);
            const char *w = static_cast<const char *>(op.matrix[which].w) +
                            (int64_t)(row - (is_pair ? 0 : op.first_row[which])) * op.k * W_BYTES;
            copy_bulk(r.at() + lane * op.pitch, w + first, (uint32_t)bytes, r.full + r.slot);
        }
        f.go_on(&r);
    }

    DEVICE_MEMBER void matmul(const persist_op &op) {
        const share mine(op);
        const int group = tiles_of_group(op);
        for (int tile = 0; tile < mine.n_tiles; tile += group) {
            const int jobs = min(group, mine.n_tiles - tile) * op.n_leaves;
            for (int j = 0; j < op.n_pieces; j++) {
                for (int job = 0; job < jobs; job++) {
                    copy_piece(op, mine, tile + job / op.n_leaves, job % op.n_leaves, j);
                }
            }
        }
    }

    /* A lane copies a token's row. */
    DEVICE_MEMBER void attention(const persist_args &a, const persist_op &op, int kv_bytes) {
        const decode_attn_args args = attn_args(a, op, 0);
        const int lane = threadIdx.x % 32, bytes = op.d_head * kv_bytes;
        item it;
        for (int index = blockIdx.x; index < find_item(args, index, &it); index += gridDim.x) {
            for (int u = 0; u < it.n_units(); u++) {
                unit which;
                which.find(args, it, u);
                const int first = max(which.first, 0), n = max(0, min(which.end, (int)UNIT) - first);
                for (int kv = 0; kv < 2; kv++) {
                    if (!f.make_room(&r, n * bytes, &p)) {
                        return;
                    }
                    if (lane >= first && lane < first + n) {
                        const char *from = static_cast<const char *>(kv == 0 ? op.k_cache : op.v_cache);
                        copy_bulk(r.at() + lane * args.row_bytes, from + (which.row + lane) * bytes, (uint32_t)bytes,
                                  r.full + r.slot);
                    }
                    f.go_on(&r);
                }
            }
        }
    }

    DEVICE_MEMBER void run(const persist_args &a, char *room, persist_op *line, int kv_bytes) {
        r.begin(a, room);
        p.begin(a);
        p.deadline += (uint64_t)a.timeout_ns; /* it is ahead: who is stuck is for consumers to say */
        f.oldest = 0;
        f.in_flight = 0;
        f.window = a.window_bytes;
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
            } else if (line->kind != PERSIST_EMBED) {
                matmul(*line);
            }
        }
        f.land_all(&r);
    }
};

/* ---- Consumers ---- */

template <int ACT, bool INT8, int COLUMNS, int KV> struct consumers {
    using tile_t = tile<ACT, INT8, COLUMNS, false>;
    static constexpr int W_BYTES = tile_t::W_BYTES, X_BYTES = tile_t::X_BYTES;
    static constexpr int WIDTH = 128; /* of heads, at most */
    static constexpr int PER_WORD = ACT == KERN_F32 ? 1 : 2;

    const persist_args &a;
    char *room;
    ring r;
    patience p;
    uint32_t base;  /* epoch of the table's first op */
    uint32_t chunk; /* of the ring: the first of this op */
    int warp, lane, thread, n_rows;
    float *sums, *h, *norm_room, *kept;
    int32_t *fault; /* [16] of this block, 0: none */
    offer best;
    const cuda_draw *how; /* of this thread's output row in head */

    DEVICE_MEMBER consumers(const persist_args &args, char *shared_room) : a(args), room(shared_room) {
        thread = threadIdx.x;
        warp = thread / 32;
        lane = thread % 32;
        r.begin(a, room);
        p.begin(a);
        base = *a.launches * (uint32_t)a.n_ops + 1;
        chunk = 0;
        n_rows = a.step->n_rows;
        sums = reinterpret_cast<float *>(room + a.at_sums);
        h = reinterpret_cast<float *>(room + a.at_h);
        norm_room = h + COLUMNS * a.own_rows;
        fault = reinterpret_cast<int32_t *>(norm_room + 2 * PERSIST_NORM_WARPS);
        kept = reinterpret_cast<float *>(room + a.at_kept);
        best.value = -INFINITY;
        best.id = -1;
        how = NULL;
    }

    DEVICE_MEMBER char *x_of(const persist_op &op) const {
        return op.x_pitch * n_rows <= a.x_bytes ? room + a.at_x : a.scratch + (int64_t)blockIdx.x * a.scratch_bytes;
    }

    DEVICE_MEMBER void note(int row, int op_index) {
        atomicCAS(&fault[row], 0, op_index + 1); /* ops come in order, so the first one stays */
    }

    /* ---- x ---- */

    /* Columns [begin, end) of all rows of x, by `n` threads of which this is `i_thread`. */
    DEVICE_MEMBER void stage(const persist_op &op, int begin, int end, int i_thread, int n) {
        constexpr int PER = 2 * PER_WORD, BATCH = 4;
        const uint32_t epoch = base + (uint32_t)op.in_op;
        const int pairs = (end - begin) / PER;
        char *x = x_of(op);
        for (int m = 0; m < n_rows; m++) {
            for (int i = i_thread; i < pairs; i += n * BATCH) {
                uint2 v[BATCH];
                const int64_t at = ((int64_t)m * op.in_stride + begin) / PER_WORD + 2 * i;
                const int there = (pairs - i + n - 1) / n;
                take_pairs<BATCH>(op.in + at, 2 * n, there, epoch, v, &p);
#pragma unroll
                for (int j = 0; j < BATCH; j++) {
                    if (j < there) {
                        *reinterpret_cast<uint2 *>(x + (int64_t)m * op.x_pitch + (begin + (i + j * n) * PER) * X_BYTES) =
                            v[j];
                    }
                }
            }
        }
    }

    /* x = act(norm(h)). Sums of squares in the order of decode_exchange: its threads are dealt out to these. */
    DEVICE_MEMBER void stage_norm(const persist_op &op) {
        const uint32_t epoch = base + (uint32_t)op.in_op;
        const int32_t *out_row = step_array<int32_t>(a.step, a.step->out_row);
        const int n = op.kind == PERSIST_HEAD ? a.step->n_out : n_rows, theirs = op.norm_threads / 32, k = op.k;
        char *x = x_of(op);
        for (int m = 0; m < n; m++) {
            const uint64_t *in = op.in + (int64_t)(op.kind == PERSIST_HEAD ? out_row[m] : m) * op.in_stride;
            float *squares_of = norm_room + m % 2 * PERSIST_NORM_WARPS;
            for (int w = warp; w < theirs; w += PERSIST_WARPS) {
                float squares = 0.0F;
                for (int i = (w * 32 + lane) * 4; i < k; i += op.norm_threads * 4) {
                    uint2 v[2];
                    take_pairs<2>(in + i, 2, 2, epoch, v, &p);
                    const float4 four = make_float4(__uint_as_float(v[0].x), __uint_as_float(v[0].y),
                                                    __uint_as_float(v[1].x), __uint_as_float(v[1].y));
                    *reinterpret_cast<float4 *>(kept + i) = four;
                    squares = fmaf(four.x, four.x, squares);
                    squares = fmaf(four.y, four.y, squares);
                    squares = fmaf(four.z, four.z, squares);
                    squares = fmaf(four.w, four.w, squares);
                }
                squares = warp_sum(squares);
                if (lane == 0) {
                    squares_of[w] = squares;
                }
            }
            meet();
            const float scale = 1.0F / sqrtf(warp_sum(lane < theirs ? squares_of[lane] : 0.0F) / (float)k + op.eps);
            for (int w = warp; w < theirs; w += PERSIST_WARPS) {
                for (int i = (w * 32 + lane) * 4; i < k; i += op.norm_threads * 4) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        store_as(ACT, x + (int64_t)m * op.x_pitch, i + e, kept[i + e] * scale * op.norm[i + e]);
                    }
                }
            }
        }
        meet();
    }

    /* ---- Matmuls ---- */

    /* One piece: as streamed_tile::add_stage, but chunk by chunk and from a slot. */
    DEVICE_MEMBER void add_piece(tile_t &s, const char *slot, int pitch, int first, int stop) {
        const int g = lane / 4, t = lane % 4;
        const char *low = slot + g * pitch + t * 16, *high = low + 8 * pitch;
#pragma unroll 2
        for (int k = first; k < stop; k += tile_t::CHUNK, low += 64, high += 64) {
            const int mine = k + t * tile_t::UNIT;
            uint4 w[1][2] = {{make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)}};
            if (mine < s.end) {
                w[0][0] = *reinterpret_cast<const uint4 *>(low);
                w[0][1] = *reinterpret_cast<const uint4 *>(high);
            }
            if constexpr (tile_t::IS_F32) {
                s.template add_f32<1>(w, mine);
            } else {
                uint4 b[tile_t::TILES][tile_t::X_LOADS];
                s.load_x(b, g, mine);
                s.add_mma(w[0][0], w[0][1], b);
            }
        }
    }

    DEVICE_MEMBER void matmul(const persist_op &op, int n_x) {
        const share mine(op);
        const int group = tiles_of_group(op), g = lane / 4, t = lane % 4;
        const int leaf = warp % op.n_leaves, begin = op.border[leaf], piece = op.piece_bytes / W_BYTES;
        tile_t s;
        s.x = x_of(op);
        s.x_stride = op.x_pitch;
        s.n_rows = n_x;
        s.end = op.border[leaf + 1];
        float *at = sums;
        for (int first = 0; first < mine.n_tiles; first += group) {
            const int tiles = min(group, mine.n_tiles - first), jobs = tiles * op.n_leaves;
            if (warp < jobs) {
                const int tile = first + warp / op.n_leaves, row = mine.begin_of(op, tile);
                float scale_low = 0.0F, scale_high = 0.0F;
                if (INT8) {
                    const bool is_pair = op.kind == PERSIST_FFN_IN;
                    const int last = mine.begin_of(op, tile + 1) - 1, low = min(row + g, last),
                              high = min(row + g + (is_pair ? 0 : 8), last);
                    const int of_low = is_pair ? 0 : matrix_of_row(op, low), of_high = is_pair ? 1 : matrix_of_row(op, high);
                    const int from_low = is_pair ? 0 : op.first_row[of_low], from_high = is_pair ? 0 : op.first_row[of_high];
                    scale_low = op.matrix[of_low].scale[(int64_t)(low - from_low) * op.n_leaves + leaf];
                    scale_high = op.matrix[of_high].scale[(int64_t)(high - from_high) * op.n_leaves + leaf];
                }
#pragma unroll
                for (int i = 0; i < (int)(sizeof s.acc / sizeof *s.acc); i++) {
                    s.acc[i] = 0.0F;
                }
                for (int j = 0; j < op.n_pieces; j++) {
                    const char *slot = r.take(chunk + (uint32_t)(j * jobs + warp), &p);
                    add_piece(s, slot, op.pitch, begin + j * piece, min(s.end, begin + (j + 1) * piece));
                    r.give_back();
                }
                leave(s, at + warp * COLUMNS * DECODE_TILE, g, t, scale_low, scale_high);
            }
            chunk += (uint32_t)(jobs * op.n_pieces);
            meet();
            finish_tiles(op, mine, first, tiles, n_x, at);
            at = at == sums ? sums + PERSIST_WARPS * COLUMNS * DECODE_TILE : sums;
        }
    }

    DEVICE_MEMBER float tree_of(const float *at, int m, int r_in_tile, int n_leaves) {
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
        const int tile_rows = mine.most;
        for (int i = thread; i < tiles * COLUMNS * tile_rows; i += PERSIST_THREADS) {
            const int in_tile = i % tile_rows, m = i / tile_rows % COLUMNS, tile = i / tile_rows / COLUMNS;
            const int row = mine.begin_of(op, first + tile) + in_tile;
            const bool there = m < n_x && row < mine.begin_of(op, first + tile + 1);
            const float *of_tile = at + tile * op.n_leaves * COLUMNS * DECODE_TILE;
            const float value = tree_of(of_tile, m, in_tile, op.n_leaves);
            if (op.kind == PERSIST_FFN_IN) {
                const float other = tree_of(of_tile, m, in_tile + 8, op.n_leaves);
                put_act(op, m, row, there, value, other);
            } else if (there) {
                put_sum(op, m, row, value);
            }
        }
    }

    DEVICE_MEMBER void put_act(const persist_op &op, int m, int column, bool there, float gate, float up) {
        if (there) {
            gate = op.matrix[0].bias != NULL ? gate + op.matrix[0].bias[column] : gate;
            up = op.matrix[1].bias != NULL ? up + op.matrix[1].bias[column] : up;
        }
        const float value = gate / (1.0F + expf(-gate)) * up;
        const uint32_t epoch = base + epoch_of(op);
        if (ACT == KERN_F32) {
            if (there) {
                put_float(op.out + (int64_t)m * op.out_stride + column, value, epoch);
            }
            return;
        }
        const float next = __shfl_xor_sync(EVERY_LANE, value, 1);
        if (there && column % 2 == 0) {
            store_word(op.out + ((int64_t)m * op.out_stride + column) / 2, word_of(pair_of(ACT, value, next), epoch), false);
        }
    }

    int table_index;
    DEVICE_MEMBER uint32_t epoch_of(const persist_op &) const {
        return (uint32_t)table_index;
    }

    DEVICE_MEMBER void put_sum(const persist_op &op, int m, int row, float value) {
        if (op.kind == PERSIST_QKV) {
            const int which = matrix_of_row(op, row);
            const float *bias = op.matrix[which].bias;
            put_float(op.out + (int64_t)m * op.out_stride + row,
                      bias != NULL ? value + bias[row - op.first_row[which]] : value, base + epoch_of(op));
        } else if (op.kind == PERSIST_ROW) {
            put_node(op, m, row, value);
        } else {
            put_logit(op, m, row, value);
        }
    }

    /* ---- The residual stream ---- */

    /* This rank's node of an element of h. Of one rank it is the sum. */
    DEVICE_MEMBER void put_node(const persist_op &op, int m, int i, float value) {
        if (a.n_ranks == 1) {
            add_to_h(op, m, i, value);
            return;
        }
        const int64_t at = ((int64_t)(op.slot * a.n_ranks + a.rank) * a.m_max + m) * a.d + i;
        const uint64_t word = word_of(__float_as_uint(value), base + epoch_of(op));
        for (int to = 0; to < a.n_ranks; to++) {
            store_word(a.node[to] + at, word, true);
        }
    }

    /* Several ranks: this block's elements of all of them. */
    DEVICE_MEMBER void add_nodes(const persist_op &op) {
        const share mine(op);
        for (int i = thread; i < n_rows * mine.count; i += PERSIST_THREADS) {
            const int m = i / mine.count, e = mine.first + i % mine.count;
            float node[DECODE_LEAVES];
#pragma unroll
            for (int from = 0; from < DECODE_LEAVES; from++) {
                node[from] = 0.0F;
                if (from < a.n_ranks) {
                    const int64_t at = ((int64_t)(op.slot * a.n_ranks + from) * a.m_max + m) * a.d + e;
                    node[from] = __uint_as_float(take_word(a.node[a.rank] + at, base + epoch_of(op), &p));
                }
            }
            add_to_h(op, m, e, leaf_tree(node, a.n_ranks));
        }
    }

    DEVICE_MEMBER void add_to_h(const persist_op &op, int m, int i, float sum) {
        const share mine(op);
        float *mine_h = &h[m * a.own_rows + i - mine.first];
        float value = op.kind == PERSIST_EMBED ? 0.0F : *mine_h;
        value += op.bias != NULL ? sum + op.bias[i] : sum;
        *mine_h = value;
        if (!isfinite(value)) {
            note(m, op.index);
        }
        put_float(op.out + (int64_t)m * op.out_stride + i, value, base + epoch_of(op));
    }

    DEVICE_MEMBER void embed(const persist_op &op) {
        const share mine(op);
        for (int m = 0; m < n_rows; m++) {
            const embed_row row(a.embed, m);
            for (int i = thread; i < mine.count; i += PERSIST_THREADS) {
                put_node(op, m, mine.first + i, row.value(a.embed, mine.first + i));
            }
        }
    }

    /* ---- Attention ---- */

    using attn_shared = shared<KV, WIDTH>;

    DEVICE_MEMBER char *attn_room_of(int w) const {
        return room + a.at_x + DECODE_ATTN_BYTES + w * a.attn_warp_bytes;
    }

    /* do_job of decode_attn.cuh, from words. */
    DEVICE_MEMBER void job(const persist_op &op, const decode_attn_args &args, const item &it, int which, attn_shared *s) {
        constexpr int PAIRS = rotation<WIDTH>::PAIRS;
        const int half = args.d / 2;
        const bool is_q = which < HEADS, wanted = is_q ? which < it.n_heads : it.has_own();
        const int head = is_q ? it.first_head + which : args.n_heads + (which == JOB_K ? 0 : args.n_kv) + it.kv_head;
        const uint64_t *y = op.in + (int64_t)it.m * op.in_stride + (int64_t)head * args.d;
        const uint32_t epoch = base + (uint32_t)op.in_op;
        float low[PAIRS], high[PAIRS];
        rotation<WIDTH> turn;
        turn.load(norm_of_job(args, which), args.rope + (int64_t)it.position * args.d, args.d);
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            const int i = lane + 32 * j;
            low[j] = wanted && i < half ? __uint_as_float(take_word(y + i, epoch, &p)) : 0.0F;
            high[j] = wanted && i < half ? __uint_as_float(take_word(y + i + half, epoch, &p)) : 0.0F;
        }
        __syncwarp();
        if (which != JOB_V) {
            turn.apply(low, high, norm_of_job(args, which) != NULL, args.d, args.eps);
        }
        const int64_t slot = (((int64_t)it.page[it.position / CUDA_PAGE_TOKENS] * args.n_kv + it.kv_head) *
                                  CUDA_PAGE_TOKENS +
                              it.position % CUDA_PAGE_TOKENS) *
                             args.d;
        void *cache = which == JOB_K ? args.k_cache : args.v_cache;
        for (int j = 0; j < PAIRS; j++) {
            const int i = lane + 32 * j;
            if (i >= half) {
                continue;
            }
            if (is_q) {
                s->put_q(which, i, round_to(ACT, low[j]));
                s->put_q(which, i + half, round_to(ACT, high[j]));
                continue;
            }
            store_as(KV, s->own[which - JOB_K], i, low[j]);
            store_as(KV, s->own[which - JOB_K], i + half, high[j]);
            if (wanted) {
                store_as(KV, cache, slot + i, low[j]);
                store_as(KV, cache, slot + i + half, high[j]);
            }
        }
        for (int i = args.d + lane; i < WIDTH && is_q; i += 32) {
            s->put_q(which, i, 0.0F);
        }
    }

    /* K (or V) of a unit, with the row's own, and without what no copy brought. */
    DEVICE_MEMBER char *take_unit(const decode_attn_args &args, const item &it, int u, uint32_t number, const char *own) {
        char *slot = const_cast<char *>(r.take(number, &p));
        unit which;
        which.find(args, it, u);
        const int own_row = it.has_own() ? it.position - (it.first + u * UNIT) : (int)UNIT;
        const int n = args.row_bytes / 16 - 1;
        if (which.first > 0 || which.end < UNIT) {
            for (int row = 0; row < UNIT; row++) {
                if (row >= which.first && row < which.end) {
                    continue;
                }
                for (int i = lane; i < n; i += 32) {
                    reinterpret_cast<uint4 *>(slot + row * args.row_bytes)[i] =
                        row == own_row ? reinterpret_cast<const uint4 *>(own)[i] : make_uint4(0, 0, 0, 0);
                }
            }
        }
        __syncwarp();
        return slot;
    }

    DEVICE_MEMBER void put_att(const persist_op &op, const item &it, int i, const total &t) {
        const int64_t at = (int64_t)it.m * op.out_stride + (int64_t)it.first_head * op.d_head + i;
        const float x = t.o[0] / t.sum, y = t.o[1] / t.sum;
        const uint32_t epoch = base + epoch_of(op);
        if (ACT == KERN_F32) {
            put_float(op.out + at, x, epoch);
            put_float(op.out + at + 1, y, epoch);
        } else {
            store_word(op.out + at / 2, word_of(pair_of(ACT, x, y), epoch), false);
        }
    }

    DEVICE_MEMBER uint64_t *part_of(const decode_attn_args &args, const item &it, int split) {
        const int64_t group = (int64_t)it.m * args.n_kv * groups_of_kv(args) + it.group;
        return a.partial + (group * args.max_splits + split) * partial_stride(args);
    }

    /* As add_warps of decode_attn.cuh. */
    DEVICE_MEMBER void add_all_warps(const persist_op &op, const decode_attn_args &args, const item &it,
                                     const attn_shared &s) {
        const int n = min(a.attn_warps, it.n_units());
        for (int i = 2 * thread; i < it.n_heads * args.d; i += 2 * PERSIST_THREADS) {
            const int head = i / args.d;
            float max = s.max[0][head];
            for (int w = 1; w < n; w++) {
                max = fmaxf(max, s.max[w][head]);
            }
            total t;
            t.begin(max);
            for (int w = 0; w < n; w++) {
                t.add(s.max[w][head], s.sum[w][head], *reinterpret_cast<const float2 *>(attn_room_of(w) + i * 4));
            }
            if (it.n_splits == 1) {
                put_att(op, it, i, t);
                continue;
            }
            uint64_t *out = part_of(args, it, it.split);
            const uint32_t epoch = base + epoch_of(op);
            put_float(out + i, t.o[0], epoch);
            put_float(out + i + 1, t.o[1], epoch);
            if (i % args.d == 0) {
                put_float(out + it.n_heads * args.d + head, t.max, epoch);
                put_float(out + it.n_heads * (args.d + 1) + head, t.sum, epoch);
            }
        }
    }

    /* As add_splits: in index order. */
    DEVICE_MEMBER void add_all_splits(const persist_op &op, const decode_attn_args &args, const item &it) {
        const int stride = partial_stride(args);
        const uint32_t epoch = base + epoch_of(op);
        for (int i = 2 * thread; i < it.n_heads * args.d; i += 2 * PERSIST_THREADS) {
            const uint64_t *from = part_of(args, it, 0), *maxes = from + it.n_heads * args.d + i / args.d,
                           *all = maxes + it.n_heads;
            float max = -INFINITY;
            for (int n = 0; n < it.n_splits; n++) {
                max = fmaxf(max, __uint_as_float(take_word(maxes + n * stride, epoch, &p)));
            }
            total t;
            t.begin(max);
            for (int n = 0; n < it.n_splits; n++) {
                const float its_max = __uint_as_float(take_word(maxes + n * stride, epoch, &p));
                const float its_sum = __uint_as_float(take_word(all + n * stride, epoch, &p));
                const float x = __uint_as_float(take_word(from + n * stride + i, epoch, &p));
                const float y = __uint_as_float(take_word(from + n * stride + i + 1, epoch, &p));
                t.add(its_max, its_sum, make_float2(x, y));
            }
            put_att(op, it, i, t);
        }
    }

    DEVICE_MEMBER void attention(const persist_op &op) {
        const decode_attn_args args = attn_args(a, op, ACT);
        attn_shared &s = *reinterpret_cast<attn_shared *>(room + a.at_x);
        item it;
        for (int index = blockIdx.x; index < find_item(args, index, &it); index += gridDim.x) {
            for (int which = warp; which < N_JOBS; which += PERSIST_WARPS) {
                job(op, args, it, which, &s);
            }
            meet();
            const int n_units = it.n_units();
            if (warp < min(a.attn_warps, n_units)) {
                float *o = reinterpret_cast<float *>(attn_room_of(warp));
                worker<KV, WIDTH> w;
                w.begin(s);
                for (int u = warp; u < n_units; u += a.attn_warps) {
                    const int token = it.first + u * UNIT;
                    w.score(args, take_unit(args, it, u, chunk + 2 * (uint32_t)u, s.own[0]));
                    writes_before_copies();
                    r.give_back();
                    w.soften(args.scale * LOG2_E, it.lo - token, it.end - token);
                    w.weigh(args, take_unit(args, it, u, chunk + 2 * (uint32_t)u + 1, s.own[1]), o + HEADS * args.d);
                    writes_before_copies();
                    r.give_back();
                }
                w.end(args, o, s.max[warp], s.sum[warp]);
            }
            chunk += 2 * (uint32_t)n_units;
            meet();
            add_all_warps(op, args, it, s);
            meet();
        }
        for (int index = blockIdx.x; index < find_item(args, index, &it); index += gridDim.x) {
            if (it.n_splits > 1 && it.split == 0) {
                add_all_splits(op, args, it);
            }
        }
    }

    /* ---- Head and sample ---- */

    /* A thread meets one output row only (its m in finish_tiles does not change), ids rising. */
    DEVICE_MEMBER void put_logit(const persist_op &op, int m, int row, float value) {
        if (!isfinite(value)) {
            note(step_array<int32_t>(a.step, a.step->out_row)[m], op.index);
        }
        how = &step_array<cuda_draw>(a.step, a.step->draw)[m];
        if (how->on_host) {
            a.logits[(int64_t)m * a.n_vocab + row] = value;
            return;
        }
        const float temperature = how->temperature, z = temperature == 0.0F ? value : value / temperature;
        offer mine;
        mine.value = (double)z;
        mine.id = row;
        if (!(z > -INFINITY)) {
            return;
        }
        if (temperature != 0.0F) {
            const uint32_t x = philox(how->seed, (uint32_t)(op.vocab_first + row), (uint32_t)how->position, how->choice);
            if (mine.value + gumbel_bound(x) < best.value) {
                return;
            }
            mine.value += gumbel_of(x);
        }
        best = better(best, mine);
    }

    /* Every block says what it has best for each output row, and the faults it saw; block 0 decides. */
    DEVICE_MEMBER void draw_rows(const persist_op &op) {
        const uint32_t epoch = base + epoch_of(op);
#pragma unroll
        for (int lanes = 8; lanes > 0; lanes /= 2) { /* 16 threads have a row */
            offer other;
            other.value = __shfl_xor_sync(EVERY_LANE, best.value, lanes);
            other.id = __shfl_xor_sync(EVERY_LANE, best.id, lanes);
            best = better(best, other);
        }
        if (thread % DECODE_TILE == 0 && thread / DECODE_TILE < COLUMNS) {
            const int m = thread / DECODE_TILE;
            uint64_t bits;
            static_assert(sizeof bits == sizeof best.value, "a double is two words");
            memcpy(&bits, &best.value, sizeof bits);
            uint64_t *out = a.offer + ((int64_t)blockIdx.x * CUDA_MAX_DECODE + m) * 4;
            store_word(out, word_of((uint32_t)bits, epoch), false);
            store_word(out + 1, word_of((uint32_t)(bits >> 32), epoch), false);
            store_word(out + 2, word_of((uint32_t)best.id, epoch), false);
            store_word(out + 3, word_of((uint32_t)fault[m], epoch), false);
        }
        if (blockIdx.x != 0) {
            return;
        }
        for (int m = warp; m < COLUMNS; m += PERSIST_WARPS) {
            offer all;
            all.value = -INFINITY;
            all.id = -1;
            uint32_t first = UINT32_MAX; /* 0, no fault, becomes the largest */
            for (int b = lane; b < (int)gridDim.x; b += 32) {
                const uint64_t *in = a.offer + ((int64_t)b * CUDA_MAX_DECODE + m) * 4;
                uint64_t bits = take_word(in, epoch, &p);
                bits |= (uint64_t)take_word(in + 1, epoch, &p) << 32;
                offer its;
                memcpy(&its.value, &bits, sizeof bits);
                its.id = (int32_t)take_word(in + 2, epoch, &p);
                all = better(all, its);
                const uint32_t its_fault = take_word(in + 3, epoch, &p) - 1;
                first = its_fault < first ? its_fault : first;
            }
            __syncwarp();
#pragma unroll
            for (int lanes = 16; lanes > 0; lanes /= 2) {
                offer other;
                other.value = __shfl_xor_sync(EVERY_LANE, all.value, lanes);
                other.id = __shfl_xor_sync(EVERY_LANE, all.id, lanes);
                all = better(all, other);
                const uint32_t its_first = __shfl_xor_sync(EVERY_LANE, first, lanes);
                first = its_first < first ? its_first : first;
            }
            if (lane == 0 && m < n_rows) {
                a.fault[m] = (int32_t)(first + 1);
            }
            if (lane == 0 && m < a.step->n_out) {
                const bool on_host = step_array<cuda_draw>(a.step, a.step->draw)[m].on_host != 0;
                a.drawn[m] = on_host || all.id < 0 || p.gone ? -1 : op.vocab_first + all.id;
            }
        }
    }

    /* ---- All ops ---- */

    /* The input of a matmul. With eight leaves a warp needs its own alone: the op before it ended in a meeting, so that none
     * still reads what was there. */
    DEVICE_MEMBER void stage_input(const persist_op &op) {
        if (op.norm != NULL) {
            stage_norm(op);
        } else if (op.n_leaves == DECODE_LEAVES) {
            stage(op, op.border[warp], op.border[warp + 1], lane, 32);
            __syncwarp();
        } else {
            stage(op, 0, op.k, thread, PERSIST_THREADS);
            meet();
        }
    }

    DEVICE_MEMBER void stamp(int i, int which) {
        if (a.stamp != NULL && thread == 0) {
            persist_stamp *to = &a.stamp[(int64_t)i * gridDim.x + blockIdx.x];
            (&to->begin)[which] = global_time();
            to->starved = r.starved;
            r.starved = which == 2 ? 0 : r.starved;
        }
    }

    DEVICE_MEMBER void run_op(const persist_op &op, int i) {
        table_index = i;
        p.op = op.index;
        p.layer = op.layer;
        stamp(i, 0);
        if (op.kind == PERSIST_EMBED) {
            embed(op);
        } else if (op.kind == PERSIST_ATTN) {
            attention(op);
        } else {
            const share mine(op);
            if (mine.count > 0 && !a.streams_only) {
                stage_input(op);
            }
            stamp(i, 1);
            matmul(op, op.kind == PERSIST_HEAD ? a.step->n_out : n_rows);
        }
        if (a.n_ranks > 1 && (op.kind == PERSIST_EMBED || op.kind == PERSIST_ROW)) {
            add_nodes(op);
        }
        if (op.kind == PERSIST_HEAD) {
            meet(); /* faults */
            draw_rows(op);
        }
        stamp(i, 2);
    }

    /* line: [2] of the table, in turn. */
    DEVICE_MEMBER void run(persist_op *line) {
        line_reader ahead;
        if (warp == 0) {
            ahead.ask(a, 0);
            ahead.put(&line[0]);
        }
        if (thread < CUDA_MAX_DECODE) {
            fault[thread] = 0;
        }
        meet();
        for (int i = 0; i < a.n_ops; i++) {
            if (warp == 0) {
                ahead.ask(a, i + 1);
            }
            run_op(line[i % 2], i);
            if (warp == 0 && i + 1 < a.n_ops) {
                ahead.put(&line[(i + 1) % 2]);
            }
            meet();
        }
        if (blockIdx.x == 0 && thread == 0 && !p.gone) { /* which has heard from all blocks, so that all have read it */
            *a.launches += 1;
        }
    }
};

template <int ACT, bool INT8, int COLUMNS, int KV> DEVICE void persist(const persist_args &a) {
    __shared__ __align__(16) persist_op line[3];
    char *room = reinterpret_cast<char *>(persist_room);
    ring r;
    r.begin(a, room);
    for (int i = threadIdx.x; i < 2 * a.n_slots; i += blockDim.x) {
        barrier_init(r.full + i, 1);
        barriers_are_ready();
    }
    __syncthreads();
    if (threadIdx.x < PERSIST_THREADS) {
        consumers<ACT, INT8, COLUMNS, KV> all(a, room);
        all.run(line);
    } else {
        producer<units<ACT, INT8, COLUMNS, false>::W_BYTES> one;
        one.run(a, room, &line[2], KV == KERN_F32 ? 4 : 2);
    }
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define PERSIST_BODY(act, int8, columns, kv) persist<act, int8, columns, kv>(a)
#else
#define PERSIST_BODY(act, int8, columns, kv)
#endif
/* Names: dtype of x (and KV), of W where it differs; the most rows. */
#define DEFINE_PERSIST(name, act, int8, columns, kv)                                                                   \
    extern "C" __global__ void __launch_bounds__(PERSIST_THREADS + 32, 1)                                              \
        persist_##name##_##columns(const __grid_constant__ persist_args a) {                                           \
        PERSIST_BODY(act, int8, columns, kv);                                                                          \
    }
#define DEFINE_PERSISTS(name, act, int8, kv)                                                                           \
    DEFINE_PERSIST(name, act, int8, 8, kv)                                                                             \
    DEFINE_PERSIST(name, act, int8, 16, kv)

DEFINE_PERSISTS(f32, KERN_F32, false, KERN_F32)
DEFINE_PERSISTS(bf16, KERN_BF16, false, KERN_BF16)
DEFINE_PERSISTS(f16, KERN_F16, false, KERN_F16)
DEFINE_PERSISTS(int8_bf16, KERN_BF16, true, KERN_BF16)
