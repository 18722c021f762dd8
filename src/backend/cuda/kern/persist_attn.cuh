/*
 * Attention in the persistent decode kernel: decode_attn.cu's items, units and sums, with K and V from the ring, q from words.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_ATTN_CUH
#define LS_BACKEND_CUDA_PERSIST_ATTN_CUH

#include "backend/cuda/kern/persist_block.cuh"
#include "backend/cuda/kern/persist_producer.cuh"

template <int ACT, int KV> struct attn_part {
    static constexpr int WIDTH = 128; /* of heads, at most */
    using shared_t = shared<KV, WIDTH>;

    block_state &b;

    DEVICE_MEMBER float *o_of(int w) const {
        return reinterpret_cast<float *>(shared_room() + b.a.at_x + DECODE_ATTN_BYTES + w * b.a.attn_warp_bytes);
    }

    /* As attn_job, from words; not by attn_job::finish, with which more registers are spilled. */
    DEVICE_MEMBER void job(const persist_op &op, const decode_attn_args &args, const item &it, int which, shared_t *s) {
        constexpr int PAIRS = rotation<WIDTH>::PAIRS;
        const int half = args.d / 2, lane = b.lane;
        const bool is_q = which < HEADS, wanted = is_q ? which < it.n_heads : it.has_own();
        const int head = is_q ? it.first_head + which : args.n_heads + (which == JOB_K ? 0 : args.n_kv) + it.kv_head;
        rotation<WIDTH> turn;
        turn.load(norm_of_job(args, which), args.rope + (int64_t)it.position * args.d, args.d);
        float low[PAIRS], high[PAIRS];
        int at[2 * PAIRS];
        uint32_t word[2 * PAIRS];
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            const int i = lane + 32 * j;
            at[2 * j] = wanted && i < half ? i : -1;
            at[2 * j + 1] = wanted && i < half ? i + half : -1;
        }
        take_words<2 * PAIRS>(op.in + (int64_t)it.m * op.in_stride + (int64_t)head * args.d, at, b.epoch_of_input(op),
                              word, PERSIST_WAIT_INPUT, &b.p);
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            low[j] = __uint_as_float(word[2 * j]);
            high[j] = __uint_as_float(word[2 * j + 1]);
        }
        __syncwarp();
        if (which != JOB_V) {
            turn.apply(low, high, norm_of_job(args, which) != NULL, args.d, args.eps);
        }
        const int64_t slot =
            (((int64_t)it.page[it.position / CUDA_PAGE_TOKENS] * args.n_kv + it.kv_head) * CUDA_PAGE_TOKENS +
             it.position % CUDA_PAGE_TOKENS) *
            args.d;
        void *cache = which == JOB_K ? args.k_cache : args.v_cache;
#pragma unroll
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

    /* Into K (or V) of a unit go the row's own, and zeros for what is not attended to. */
    DEVICE_MEMBER void mend(const decode_attn_args &args, const item &it, int u, char *at, const char *own) const {
        const int token = it.first + u * UNIT, first = it.lo - token, end = min(it.end, it.position) - token;
        if (first > 0 || end < UNIT) {
            const int own_row = it.has_own() ? it.position - token : (int)UNIT;
            const int n = args.d * shared_t::KV_BYTES / 16;
#pragma unroll 1
            for (int row = b.lane / 8; row < UNIT; row += 4) {
                const panel_rows to(at, 0, row, 0);
#pragma unroll 1
                for (int i = row < first || row >= end ? b.lane % 8 : n; i < n; i += 8) {
                    *reinterpret_cast<uint4 *>(const_cast<char *>(to.at(0, 0, i * 16))) =
                        row == own_row ? reinterpret_cast<const uint4 *>(own)[i] : make_uint4(0, 0, 0, 0);
                }
            }
            show_to_async();
            __syncwarp();
        }
    }

    /* This warp's units of an item; it passes the others. */
    DEVICE_MEMBER void attend(const persist_op &op, const decode_attn_args &args, const item &it, shared_t &s) {
        const int n_units = it.n_units();
        const bool is_needed = b.warp < min(b.a.attn_warps, n_units);
        const int v_bytes = (args.d * shared_t::KV_BYTES + PERSIST_PANEL - 1) / PERSIST_PANEL * UNIT * PERSIST_PANEL;
        float *o = o_of(b.warp);
        worker<KV, WIDTH, panel_rows> w;
        if (is_needed) {
            w.begin(s);
        }
        int next = is_needed ? b.warp : n_units;
#pragma unroll 1
        for (int u = 0; u < n_units; u++) {
            char *at = b.r.take(b.p);
            if (u == next) {
                const int token = it.first + u * UNIT;
                mend(args, it, u, at, s.own[0]);
                w.score(args, at);
                w.soften(args.scale * LOG2_E, it.lo - token, it.end - token);
            }
            if (op.group == 1) {
                b.r.give_back();
                at = b.r.take(b.p);
            } else {
                at += v_bytes;
            }
            if (u == next) {
                mend(args, it, u, at, s.own[1]);
                w.weigh(args, at, o + HEADS * args.d);
                next += b.a.attn_warps;
            }
            b.r.give_back();
        }
        if (is_needed) {
            w.end(args, o, s.max[b.warp], s.sum[b.warp]);
        }
    }

    /* ---- Results ---- */

    DEVICE_MEMBER void put_att(const persist_op &op, const item &it, int i, const total &t) const {
        const int64_t at = (int64_t)it.m * op.out_stride + (int64_t)it.first_head * op.d_head + i;
        const float x = t.o[0] / t.sum, y = t.o[1] / t.sum;
        const uint32_t epoch = b.epoch();
        if (ACT == KERN_F32) {
            store_words(op.out + at, word_of_float(x, epoch), word_of_float(y, epoch));
        } else {
            store_word(op.out + at / 2, word_of(pair_of(ACT, x, y), epoch));
        }
    }

    /* Of a row and group: for each split the heads' maxima and sums, in pairs, and o. */
    DEVICE_MEMBER int stride_of_part(const decode_attn_args &args) const {
        return HEADS * (args.d + 2);
    }
    DEVICE_MEMBER uint64_t *parts_of(const persist_op &op, const decode_attn_args &args, const item &it) const {
        const int64_t group = (int64_t)it.m * args.n_kv * groups_of_kv(args) + it.group;
        return b.a.partial + group * op.max_splits * stride_of_part(args);
    }

    /* As add_warps of decode_attn.cuh. */
    DEVICE_MEMBER void add_all_warps(const persist_op &op, const decode_attn_args &args, const item &it,
                                     const shared_t &s) {
        const int n = min(b.a.attn_warps, it.n_units());
#pragma unroll 1
        for (int i = 2 * b.thread; i < it.n_heads * args.d; i += 2 * PERSIST_THREADS) {
            const int head = i / args.d;
            float max = s.max[0][head];
            for (int w = 1; w < n; w++) {
                max = fmaxf(max, s.max[w][head]);
            }
            total t;
            t.begin(max);
            for (int w = 0; w < n; w++) {
                t.add(s.max[w][head], s.sum[w][head], *reinterpret_cast<const float2 *>(o_of(w) + i));
            }
            if (it.n_splits == 1) {
                put_att(op, it, i, t);
                continue;
            }
            uint64_t *out = parts_of(op, args, it) + it.split * stride_of_part(args);
            const uint32_t epoch = b.epoch();
            store_words(out + 2 * HEADS + i, word_of_float(t.o[0], epoch), word_of_float(t.o[1], epoch));
            if (i % args.d == 0) {
                store_words(out + 2 * head, word_of_float(t.max, epoch), word_of_float(t.sum, epoch));
            }
        }
    }

    /* As add_splits: in index order. The splits' maxima and sums come to shared memory first, where q was. */
    DEVICE_MEMBER void add_all_splits(const persist_op &op, const decode_attn_args &args, const item &it, shared_t *s) {
        constexpr int BATCH = 8;
        static_assert(sizeof s->q >= DECODE_ATTN_SPLITS * HEADS * sizeof(float2),
                      "room for the splits' maxima and sums");
        float2 *of_split = reinterpret_cast<float2 *>(s->q);
        const uint64_t *from = parts_of(op, args, it);
        const int stride = stride_of_part(args);
        if (b.thread < it.n_splits * HEADS) {
            const int head = b.thread % HEADS, at[1] = {head < it.n_heads ? b.thread / HEADS * stride + 2 * head : -1};
            uint2 v[1];
            take_pairs<1>(from, at, b.epoch(), v, PERSIST_WAIT_SPLITS, &b.p);
            of_split[b.thread] = make_float2(__uint_as_float(v[0].x), __uint_as_float(v[0].y));
        }
        meet();
#pragma unroll 1
        for (int i = 2 * b.thread; i < it.n_heads * args.d; i += 2 * PERSIST_THREADS) {
            const int head = i / args.d;
            float max = -INFINITY;
            for (int n = 0; n < it.n_splits; n++) {
                max = fmaxf(max, of_split[n * HEADS + head].x);
            }
            total t;
            t.begin(max);
            for (int n = 0; n < it.n_splits; n += BATCH) {
                int at[BATCH];
                uint2 v[BATCH];
#pragma unroll
                for (int j = 0; j < BATCH; j++) {
                    at[j] = n + j < it.n_splits ? (n + j) * stride + 2 * HEADS + i : -1;
                }
                take_pairs<BATCH>(from, at, b.epoch(), v, PERSIST_WAIT_SPLITS, &b.p);
#pragma unroll
                for (int j = 0; j < BATCH; j++) {
                    if (n + j < it.n_splits) {
                        const float2 its = of_split[(n + j) * HEADS + head];
                        t.add(its.x, its.y, make_float2(__uint_as_float(v[j].x), __uint_as_float(v[j].y)));
                    }
                }
            }
            put_att(op, it, i, t);
        }
        meet();
    }

    DEVICE_MEMBER void run(const persist_op &op) {
        const decode_attn_args args = attn_args(b.a, op, ACT);
        shared_t &s = *reinterpret_cast<shared_t *>(shared_room() + b.a.at_x);
        const lane_row row = known_row(b.a);
        bool adds_splits = false;
        item it;
        for (int index = blockIdx.x; index < find_item(args, row, index, &it); index += gridDim.x) {
#pragma unroll 1
            for (int which = b.warp; which < N_JOBS; which += PERSIST_WARPS) {
                job(op, args, it, which, &s);
            }
            meet();
            attend(op, args, it, s);
            meet();
            add_all_warps(op, args, it, s);
            meet();
            adds_splits = adds_splits || (it.n_splits > 1 && it.split == 0);
        }
        /* Behind all items of this block, so that it does not wait for itself. */
        for (int index = blockIdx.x; adds_splits && index < find_item(args, row, index, &it); index += gridDim.x) {
            if (it.n_splits > 1 && it.split == 0) {
                add_all_splits(op, args, it, &s);
            }
        }
    }
};

#endif
