/*
 * What the kernels of decode's attention share: items, q with the row's own k and v, a warp's scores and its part of o,
 * and how parts are added. See decode_attn.cu for splits, units and bits.
 */
#ifndef LS_BACKEND_CUDA_DECODE_ATTN_CUH
#define LS_BACKEND_CUDA_DECODE_ATTN_CUH

#include "backend/cuda/kern/common.cuh"

static_assert((int)CUDA_PAGE_TOKENS % (int)DECODE_ATTN_UNIT == 0, "a unit lies in one page");
enum { HEADS = DECODE_ATTN_HEADS, UNIT = DECODE_ATTN_UNIT, MAX_WARPS = DECODE_ATTN_WARPS };
#define EVERY_LANE 0xffffffffu
#define LOG2_E 1.44269504F

/* ---- Items ---- */

struct item {
    int index;    /* among the step's; those of a row and group follow one another */
    int m, group; /* row; which query heads */
    int kv_head, first_head, n_heads;
    int position, lo;
    int first, end; /* the split's tokens; the first ones may lie before lo */
    int split, n_splits;
    const int32_t *page;

    DEVICE_MEMBER int n_units() const {
        return (end - first + UNIT - 1) / UNIT;
    }
    DEVICE_MEMBER bool has_own() const {
        return end > position;
    }
};

DEVICE int groups_of_kv(const decode_attn_args &a) {
    return (a.n_heads / a.n_kv + HEADS - 1) / HEADS;
}

/* Tokens of a split where the row has n; whole units. */
DEVICE int split_tokens(const decode_attn_args &a, int n) {
    if (n <= DECODE_ATTN_WHOLE) {
        return DECODE_ATTN_WHOLE;
    }
    const int most = n > 16384 ? DECODE_ATTN_SPLITS : 16;
    return max(a.split_tokens, ((n + most - 1) / most + UNIT - 1) / UNIT * UNIT);
}

/* A row, where there is one; else 0. */
struct lane_row {
    bool has_row;
    int position, page_first;
};

/* Row first_row and the number of this lane. */
DEVICE lane_row row_of_lane(const cuda_step *step, int first_row, int n_rows) {
    const int m = first_row + threadIdx.x % 32;
    const bool has_row = m < n_rows;
    const int position = has_row ? step_array<int32_t>(step, step->pos)[m] : 0;
    const int i_seq = has_row ? step_array<int32_t>(step, step->seq_of)[m] : 0;
    const int page_first = has_row ? step_array<cuda_seq>(step, step->seq)[i_seq].page_first : 0;
    return {has_row, position, page_first};
}

/* Item `index` of the step's, by a whole warp, if it is one of rows [first_row, first_row + 32), one a lane; there are `count`
 * items before these rows'. How many there are then. `always`: *it is set even if it is none of them, to no use; so the compiler
 * may keep it in registers. */
DEVICE int find_among(const decode_attn_args &a, const lane_row &row, int first_row, int count, int index, bool always,
                      item *it) {
    const int lane = threadIdx.x % 32, n_groups = a.n_kv * groups_of_kv(a);
    const bool has_row = row.has_row;
    const int position = row.position, page_first = row.page_first;
    const int lo = a.window > 0 ? max(0, position - a.window + 1) : 0, base = lo / UNIT * UNIT;
    const int size = split_tokens(a, position + 1 - base);
    const int n_splits = (position - base) / size + 1;
    int before = has_row ? n_splits * n_groups : 0; /* items of rows up to this lane's */
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const int other = __shfl_up_sync(EVERY_LANE, before, lanes);
        before += lane >= lanes ? other : 0;
    }
    before += count;
    if (!always) {
        const int up_to = __shfl_sync(EVERY_LANE, before, 31);
        if (index < count || index >= up_to) {
            return up_to;
        }
    }
    const int passed = __popc(__ballot_sync(EVERY_LANE, before <= index)), m = always ? min(passed, 31) : passed;
    it->index = index;
    it->m = first_row + m;
    it->position = __shfl_sync(EVERY_LANE, position, m);
    it->lo = __shfl_sync(EVERY_LANE, lo, m);
    it->n_splits = __shfl_sync(EVERY_LANE, n_splits, m);
    const int step = __shfl_sync(EVERY_LANE, size, m),
              of_row = index - __shfl_sync(EVERY_LANE, before, m) + it->n_splits * n_groups;
    it->group = of_row / it->n_splits;
    it->split = of_row % it->n_splits;
    it->first = it->lo / UNIT * UNIT + it->split * step;
    it->end = min(it->first + step, it->position + 1);
    it->kv_head = it->group / groups_of_kv(a);
    const int heads_per_kv = a.n_heads / a.n_kv, skipped = it->group % groups_of_kv(a) * HEADS;
    it->first_head = it->kv_head * heads_per_kv + skipped;
    it->n_heads = min((int)HEADS, heads_per_kv - skipped);
    it->page = step_array<int32_t>(a.step, a.step->page) + __shfl_sync(EVERY_LANE, page_first, m);
    return __shfl_sync(EVERY_LANE, before, 31);
}

/* Item `index` of the step's, by a whole warp, if there is one; how many there are. */
DEVICE int find_item(const decode_attn_args &a, int index, item *it) {
    const int n_rows = a.step->n_rows;
    int count = 0;
    for (int first_row = 0; first_row < n_rows; first_row += 32) {
        count = find_among(a, row_of_lane(a.step, first_row, n_rows), first_row, count, index, false, it);
    }
    return count;
}

/* ---- Shared memory ---- */

template <int KV, int WIDTH> struct shared {
    static constexpr bool IS_F32 = KV == KERN_F32;
    static constexpr int KV_BYTES = IS_F32 ? 4 : 2;

    /* f32 [HEADS][WIDTH], or KV dtype [2 HEADS][WIDTH + 8]: what is left of head h in row HEADS + h. */
    alignas(16) char q[IS_F32 ? HEADS * WIDTH * 4 : 2 * HEADS * (WIDTH + 8) * 2];
    alignas(16) char own[2][WIDTH * KV_BYTES]; /* k and v of the row's position */
    float max[MAX_WARPS][HEADS], sum[MAX_WARPS][HEADS];
    uint32_t is_last;

    DEVICE_MEMBER void put_q(int h, int i, float value) {
        if (IS_F32) {
            reinterpret_cast<float *>(q)[h * WIDTH + i] = value;
        } else {
            const int at = h * (WIDTH + 8) + i;
            store_as(KV, q, at, value);
            store_as(KV, q, at + HEADS * (WIDTH + 8), value - round_to(KV, value));
        }
    }
};

/* The launcher's arrangement: `shared`, then for each warp a unit of K, one of V, o of its heads, and (f32) p. */
extern __shared__ uint4 attn_room[];

DEVICE char *warp_room(const decode_attn_args &a, int warp) {
    return reinterpret_cast<char *>(attn_room) + DECODE_ATTN_BYTES + warp * a.warp_bytes;
}

DEVICE float *o_of_warp(const decode_attn_args &a, int warp) {
    return reinterpret_cast<float *>(warp_room(a, warp) + 2 * UNIT * a.row_bytes);
}

/* ---- q, and the row's own k and v ---- */

/* A lane's share of QK norm and RoPE: pairs (i, i + d / 2), i = lane, lane + 32, ... */
template <int WIDTH> struct rotation {
    static constexpr int PAIRS = WIDTH / 64;
    float first[PAIRS], second[PAIRS], cosine[PAIRS], sine[PAIRS];

    DEVICE_MEMBER void load(const float *norm, const float *rope, int d) {
        const int lane = threadIdx.x % 32, half = d / 2;
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            const int i = lane + 32 * j;
            const bool there = i < half;
            first[j] = there && norm != NULL ? norm[i] : 1.0F;
            second[j] = there && norm != NULL ? norm[i + half] : 1.0F;
            cosine[j] = there ? rope[2 * i] : 0.0F;
            sine[j] = there ? rope[2 * i + 1] : 0.0F;
        }
    }

    /* a, b: the lane's pairs, zero where there are none. */
    DEVICE_MEMBER void apply(float (&a)[PAIRS], float (&b)[PAIRS], bool with_norm, int d, float eps) const {
        if (with_norm) {
            float squares = 0.0F;
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                squares = fmaf(a[j], a[j], squares);
                squares = fmaf(b[j], b[j], squares);
            }
            const float scale = 1.0F / sqrtf(warp_sum(squares) / (float)d + eps);
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                a[j] = a[j] * scale * first[j];
                b[j] = b[j] * scale * second[j];
            }
        }
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            /* Fused by hand: left to itself the compiler fuses one kernel's products so and another's so, and their bits differ. */
            const float x = a[j], y = b[j];
            a[j] = fmaf(x, cosine[j], -(y * sine[j]));
            b[j] = fmaf(y, cosine[j], x * sine[j]);
        }
    }
};

/* Jobs of a warp: HEADS query heads, then k, then v. */
enum { JOB_K = HEADS, JOB_V, N_JOBS };

DEVICE const float *norm_of_job(const decode_attn_args &a, int job) {
    return job < HEADS ? a.q_norm : job == JOB_K ? a.k_norm : NULL;
}

/* One of an item's jobs: its place in the cache found (which needs nothing of earlier kernels), read, done. */
template <int KV, int WIDTH> struct attn_job {
    static constexpr int PAIRS = rotation<WIDTH>::PAIRS;
    float low[PAIRS], high[PAIRS]; /* of the lane's pairs */
    int64_t slot;                  /* of the row's own k or v: an element of the cache */

    static DEVICE_MEMBER bool is_wanted(const item &it, int job) {
        return job < HEADS ? job < it.n_heads : it.has_own();
    }
    DEVICE_MEMBER void find(const decode_attn_args &a, const item &it, int job) {
        slot = job < HEADS
                   ? 0
                   : (((int64_t)it.page[it.position / CUDA_PAGE_TOKENS] * a.n_kv + it.kv_head) * CUDA_PAGE_TOKENS +
                      it.position % CUDA_PAGE_TOKENS) *
                         a.d;
    }

    DEVICE_MEMBER void load(const decode_attn_args &a, const item &it, int job) {
        const int lane = threadIdx.x % 32, half = a.d / 2;
        const int head = job < HEADS ? it.first_head + job : a.n_heads + (job == JOB_K ? 0 : a.n_kv) + it.kv_head;
        const float *bias = job < HEADS ? a.q_bias : job == JOB_K ? a.k_bias : a.v_bias;
        const int64_t of_bias = (int64_t)(job < HEADS ? head : it.kv_head) * a.d;
        const float *y = a.qkv + ((int64_t)it.m * (a.n_heads + 2 * a.n_kv) + head) * a.d;
        const void *cache = job == JOB_K ? a.k_cache : a.v_cache;
        const bool wanted = is_wanted(it, job), from_cache = job >= HEADS && !a.raw;
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            const int i = lane + 32 * j;
            const bool there = wanted && i < half;
            low[j] = !there ? 0.0F : from_cache ? load_as<KV>(cache, slot + i) : y[i];
            high[j] = !there ? 0.0F : from_cache ? load_as<KV>(cache, slot + i + half) : y[i + half];
            if (bias != NULL && there) {
                low[j] += bias[of_bias + i];
                high[j] += bias[of_bias + i + half];
            }
        }
    }

    DEVICE_MEMBER void finish(const decode_attn_args &a, const item &it, int job, const rotation<WIDTH> &turn,
                              shared<KV, WIDTH> *s) {
        const int lane = threadIdx.x % 32, half = a.d / 2;
        const bool is_q = job < HEADS;
        void *cache = job == JOB_K ? a.k_cache : a.v_cache;
        if (a.raw && job != JOB_V) {
            turn.apply(low, high, norm_of_job(a, job) != NULL, a.d, a.eps);
        }
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            const int i = lane + 32 * j;
            if (i >= half) {
                continue;
            }
            if (is_q) {
                s->put_q(job, i, round_to(a.dtype, low[j]));
                s->put_q(job, i + half, round_to(a.dtype, high[j]));
                continue;
            }
            store_as(KV, s->own[job - JOB_K], i, low[j]);
            store_as(KV, s->own[job - JOB_K], i + half, high[j]);
            if (a.raw && is_wanted(it, job)) {
                store_as(KV, cache, slot + i, low[j]);
                store_as(KV, cache, slot + i + half, high[j]);
            }
        }
        for (int i = a.d + lane; i < WIDTH; i += 32) {
            if (is_q) {
                s->put_q(job, i, 0.0F);
            } else {
                store_as(KV, s->own[job - JOB_K], i, 0.0F);
            }
        }
    }
};

/* ---- K and V on their way to shared memory ---- */

/* Unit u of an item, as it is copied. */
struct unit {
    int64_t row; /* of K and V in this layer's cache: the unit's rows follow one another; -1: there is no such unit */
    int first, end; /* of the unit's rows, those that are attended to and in memory */

    DEVICE_MEMBER void find(const decode_attn_args &a, const item &it, int u) {
        row = -1;
        if (u < it.n_units()) {
            const int token = it.first + u * UNIT;
            row = ((int64_t)it.page[token / CUDA_PAGE_TOKENS] * a.n_kv + it.kv_head) * CUDA_PAGE_TOKENS +
                  token % CUDA_PAGE_TOKENS;
            first = it.lo - token;
            end = min(it.end, it.position) - token;
        }
    }
};

template <int KV, int WIDTH> struct stream {
    static constexpr int KV_BYTES = shared<KV, WIDTH>::KV_BYTES;

    /* One group of copies; zeros in place of rows that are not to be copied. */
    static DEVICE_MEMBER void ask(const decode_attn_args &a, const void *cache, const unit &which, char *room) {
        if (which.row >= 0) {
            /* Eight lanes a row, 128 bytes of it at a time. */
            const int lane = threadIdx.x % 32, in_memory = a.d * KV_BYTES / 16, chunks = a.row_bytes / 16 - 1;
            const char *from = static_cast<const char *>(cache) + (which.row + lane / 8) * a.d * KV_BYTES;
            room += lane / 8 * a.row_bytes;
#pragma unroll 1
            for (int chunk = lane % 8; chunk < chunks; chunk += 8) {
                const char *source = from + chunk * 16;
                char *to = room + chunk * 16;
#pragma unroll 4
                for (int r = lane / 8; r < UNIT; r += 4, source += 4 * a.d * KV_BYTES, to += 4 * a.row_bytes) {
                    copy_once(to, source, r >= which.first && r < which.end && chunk < in_memory);
                }
            }
        }
        end_copy_group();
    }

    /* All groups but the last PENDING are there; the row's own k (or v) too, if it belongs to unit u. */
    template <int PENDING = 1>
    static DEVICE_MEMBER void await(const decode_attn_args &a, const item &it, int u, char *room, const char *own) {
        wait_for_copies<PENDING>();
        __syncwarp();
        const int row = it.position - (it.first + u * UNIT);
        if (row < UNIT && it.has_own()) {
            for (int i = threadIdx.x % 32; i < a.row_bytes / 16 - 1; i += 32) {
                reinterpret_cast<uint4 *>(room + row * a.row_bytes)[i] = reinterpret_cast<const uint4 *>(own)[i];
            }
            __syncwarp();
        }
    }
};

/* ---- A warp's scores and its part of o ---- */

/* How a unit's rows of K or V lie in shared memory, seen from one row and byte. Both are free of bank conflicts. Every row is
 * row_bytes long, ... */
struct padded_rows {
    static constexpr int AT_ONCE = 2; /* steps of a loop of loads that is unrolled */
    const char *from;

    DEVICE_MEMBER padded_rows(const char *room, int row_bytes, int row, int byte)
        : from(room + row * row_bytes + byte) {}
    DEVICE_MEMBER const char *at(int row_bytes, int rows, int bytes) const {
        return from + rows * row_bytes + bytes;
    }
};

/* ... or it lies in panels of 128 bytes of all rows, as tensor copies with that swizzle leave them. byte < 128; rows: a
 * multiple of 8; a bit of `bytes` that is set in `byte` is below 16. */
struct panel_rows {
    static constexpr int AT_ONCE = 1; /* no registers left in persist.cu */
    const char *from;
    int byte;

    DEVICE_MEMBER panel_rows(const char *room, int, int row, int first)
        : from(room + row * 128), byte(first ^ row % 8 * 16) {}
    DEVICE_MEMBER const char *at(int, int rows, int bytes) const {
        return from + rows * 128 + bytes / 128 * (UNIT * 128) + (byte ^ bytes % 128);
    }
};

/*
 * bf16 and f16. Lane (g, t) = (lane / 4, lane % 4) has columns 2t and 2t + 1 of an accumulator: heads 2 (t % 2) and
 * the next, rounded (t < 2) or what is left of them. Scores are of tokens g + 8 i of the unit, the same in lanes t and
 * t ^ 2; o is of elements 16 i + g and 16 i + g + 8.
 */
template <int KV, int WIDTH, class ROWS> struct products {
    static constexpr int STEPS = WIDTH / 16, TILES = UNIT / 16;
    uint32_t q[STEPS][2];
    float o[STEPS][4];
    float max[2], sum[2];
    float p[TILES][4]; /* [.][2 i + h]: token g + 8 i of the tile */

    DEVICE_MEMBER void begin(const shared<KV, WIDTH> &s) {
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const uint32_t *column = reinterpret_cast<const uint32_t *>(s.q) + g * ((WIDTH + 8) / 2) + t;
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            q[i][0] = column[8 * i];
            q[i][1] = column[8 * i + 4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                o[i][j] = 0.0F;
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            max[h] = -INFINITY;
            sum[h] = 0.0F;
        }
    }

    DEVICE_MEMBER void score(const decode_attn_args &a, const char *k) {
        const int lane = threadIdx.x % 32;
        const ROWS row(k, a.row_bytes, lane % 16, lane / 16 * 16);
        float acc[TILES][2][4] = {}; /* two chains a tile */
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            if (16 * i < a.d) {
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    const uint4 m = load_matrices(row.at(a.row_bytes, tile * 16, i * 32));
                    mma<KV>(acc[tile][i % 2], m.x, m.y, m.z, m.w, q[i][0], q[i][1]);
                }
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float part = acc[tile][0][j] + acc[tile][1][j];
                p[tile][j] = part + __shfl_xor_sync(EVERY_LANE, part, 2);
            }
        }
    }

    DEVICE_MEMBER void weigh(const decode_attn_args &a, const char *v, float *) {
        const int lane = threadIdx.x % 32;
        const ROWS row(v, a.row_bytes, lane / 16 * 8 + lane % 8, lane / 8 % 2 * 16);
        uint32_t b[TILES][2];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float x = p[tile][2 * i], y = p[tile][2 * i + 1];
                const uint32_t rounded = pair_of(KV, x, y);
                const float2 back = widen<KV>(rounded);
                b[tile][i] = transposed(lane % 4 < 2 ? rounded : pair_of(KV, x - back.x, y - back.y));
            }
        }
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            if (16 * i < a.d) {
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    const uint4 m = load_transposed(row.at(a.row_bytes, tile * 16, i * 32));
                    mma<KV>(o[i], m.x, m.y, m.z, m.w, b[tile][0], b[tile][1]);
                }
            }
        }
    }
};

template <int KV, int WIDTH, class ROWS = padded_rows> struct worker : products<KV, WIDTH, ROWS> {
    using base = products<KV, WIDTH, ROWS>;
    using base::max;
    using base::o;
    using base::p;
    using base::STEPS;
    using base::sum;
    using base::TILES;

    /* Scores become exponentials, to base 2. [first, end): tokens of the unit that are attended to; there is one. */
    DEVICE_MEMBER void soften(float scale, int first, int end) {
        const int g = threadIdx.x % 32 / 4;
        float old[2] = {max[0], max[1]};
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int token = tile * 16 + j / 2 * 8 + g;
                p[tile][j] = token >= first && token < end ? p[tile][j] * scale : -INFINITY;
                max[j % 2] = fmaxf(max[j % 2], p[tile][j]);
            }
        }
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {
            max[0] = fmaxf(max[0], __shfl_xor_sync(EVERY_LANE, max[0], lanes));
            max[1] = fmaxf(max[1], __shfl_xor_sync(EVERY_LANE, max[1], lanes));
        }
        const float shrink[2] = {exp2f(old[0] - max[0]), exp2f(old[1] - max[1])};
        sum[0] *= shrink[0];
        sum[1] *= shrink[1];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                p[tile][j] = exp2f(p[tile][j] - max[j % 2]);
                sum[j % 2] += p[tile][j];
            }
        }
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                o[i][j] *= shrink[j % 2];
            }
        }
    }

    DEVICE_MEMBER void end(const decode_attn_args &a, float *o_out, float *max_out, float *sum_out) {
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const bool rounded = t < 2; /* this lane keeps elements 16 i + g, the other one those 8 further */
        float *out = o_out + 2 * (t % 2) * a.d;
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int at = 16 * i + (rounded ? 0 : 8) + g;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float other = __shfl_xor_sync(EVERY_LANE, rounded ? o[i][2 + h] : o[i][h], 2);
                if (at < a.d) {
                    out[h * a.d + at] = (rounded ? o[i][h] : o[i][2 + h]) + other;
                }
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) {
                sum[h] += __shfl_xor_sync(EVERY_LANE, sum[h], lanes);
            }
            if (lane < 2) {
                max_out[2 * t + h] = max[h];
                sum_out[2 * t + h] = sum[h];
            }
        }
    }
};

/* f32. Scores: a token a lane, all heads; o: elements lane, lane + 32, ... of all heads. */
template <int WIDTH, class ROWS> struct worker<KERN_F32, WIDTH, ROWS> {
    static constexpr int MINE = WIDTH / 32;
    const float *q;
    float o[HEADS][MINE];
    float max[HEADS], sum[HEADS], p[HEADS];

    DEVICE_MEMBER void begin(const shared<KERN_F32, WIDTH> &s) {
        q = reinterpret_cast<const float *>(s.q);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            max[h] = -INFINITY;
            sum[h] = 0.0F;
#pragma unroll
            for (int i = 0; i < MINE; i++) {
                o[h][i] = 0.0F;
            }
        }
    }

    DEVICE_MEMBER void score(const decode_attn_args &a, const char *k) {
        const ROWS row(k, a.row_bytes, threadIdx.x % 32, 0);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            p[h] = 0.0F;
        }
#pragma unroll(ROWS::AT_ONCE)
        for (int i = 0; i < a.d; i += 4) {
            const float4 key = *reinterpret_cast<const float4 *>(row.at(a.row_bytes, 0, i * 4));
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                const float4 x = *reinterpret_cast<const float4 *>(q + h * WIDTH + i);
                p[h] = fmaf(x.x, key.x, p[h]);
                p[h] = fmaf(x.y, key.y, p[h]);
                p[h] = fmaf(x.z, key.z, p[h]);
                p[h] = fmaf(x.w, key.w, p[h]);
            }
        }
    }

    DEVICE_MEMBER void soften(float scale, int first, int end) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const float s = lane >= first && lane < end ? p[h] * scale : -INFINITY, old = max[h];
            max[h] = fmaxf(old, warp_max(s));
            const float shrink = exp2f(old - max[h]);
            p[h] = exp2f(s - max[h]);
            sum[h] = sum[h] * shrink + p[h];
#pragma unroll
            for (int i = 0; i < MINE; i++) {
                o[h][i] *= shrink;
            }
        }
    }

    DEVICE_MEMBER void weigh(const decode_attn_args &a, const char *v, float *room) {
        const int lane = threadIdx.x % 32;
        float4 *all = reinterpret_cast<float4 *>(room);
        all[lane] = make_float4(p[0], p[1], p[2], p[3]);
        __syncwarp();
        for (int j = 0; j < UNIT; j++) {
            const float4 weight = all[j];
            const ROWS row(v, a.row_bytes, j, lane * 4);
#pragma unroll
            for (int i = 0; i < MINE; i++) {
                const float value =
                    lane + 32 * i < a.d ? *reinterpret_cast<const float *>(row.at(a.row_bytes, 0, 128 * i)) : 0.0F;
                o[0][i] = fmaf(weight.x, value, o[0][i]);
                o[1][i] = fmaf(weight.y, value, o[1][i]);
                o[2][i] = fmaf(weight.z, value, o[2][i]);
                o[3][i] = fmaf(weight.w, value, o[3][i]);
            }
        }
        __syncwarp(); /* before `room` is written again */
    }

    DEVICE_MEMBER void end(const decode_attn_args &a, float *o_out, float *max_out, float *sum_out) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            sum[h] = warp_sum(sum[h]);
            if (lane == 0) {
                max_out[h] = max[h];
                sum_out[h] = sum[h];
            }
#pragma unroll
            for (int i = 0; i < MINE; i++) {
                if (lane + 32 * i < a.d) {
                    o_out[h * a.d + lane + 32 * i] = o[h][i];
                }
            }
        }
    }
};

/* ---- Results ---- */

/* Parts of a sum of exponentials, each relative to its own maximum (base 2), brought to that of all. */
struct total {
    float max, sum, o[2];

    DEVICE_MEMBER void begin(float of_all) {
        max = of_all;
        sum = o[0] = o[1] = 0.0F;
    }
    DEVICE_MEMBER void add(float its_max, float its_sum, float2 its_o) {
        const float weight = exp2f(its_max - max);
        sum = fmaf(weight, its_sum, sum);
        o[0] = fmaf(weight, its_o.x, o[0]);
        o[1] = fmaf(weight, its_o.y, o[1]);
    }
};

DEVICE void store_result(const decode_attn_args &a, const item &it, int i, const total &t) {
    const int64_t at = ((int64_t)it.m * a.n_heads + it.first_head) * a.d + i;
    const float x = t.o[0] / t.sum, y = t.o[1] / t.sum;
    if (a.dtype == KERN_F32) {
        *reinterpret_cast<float2 *>(static_cast<float *>(a.att) + at) = make_float2(x, y);
    } else {
        *reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(a.att) + at) = pair_of(a.dtype, x, y);
    }
}

/* Floats of a split's partial result: o, then the heads' maxima and sums. */
DEVICE int partial_stride(const decode_attn_args &a) {
    return min((int)HEADS, a.n_heads / a.n_kv) * (a.d + 2);
}

DEVICE float *partial_of(const decode_attn_args &a, const item &it, int split) {
    return a.partial + (int64_t)(it.index - it.split + split) * partial_stride(a);
}

/* Of a split; where it is the only one, of the row. */
DEVICE void store_total(const decode_attn_args &a, const item &it, int i, const total &t) {
    if (it.n_splits == 1) {
        store_result(a, it, i, t);
        return;
    }
    float *out = partial_of(a, it, it.split);
    *reinterpret_cast<float2 *>(out + i) = make_float2(t.o[0], t.o[1]);
    if (i % a.d == 0) {
        out[it.n_heads * a.d + i / a.d] = t.max;
        out[it.n_heads * (a.d + 1) + i / a.d] = t.sum;
    }
}

/* The warps' results, in order, become the split's. */
template <int KV, int WIDTH>
DEVICE void add_warps(const decode_attn_args &a, const item &it, const shared<KV, WIDTH> &s) {
    const int n_warps = min((int)(blockDim.x / 32), it.n_units());
    for (int i = 2 * threadIdx.x; i < it.n_heads * a.d; i += 2 * blockDim.x) {
        const int h = i / a.d;
        float max = s.max[0][h];
        for (int w = 1; w < n_warps; w++) {
            max = fmaxf(max, s.max[w][h]);
        }
        total t;
        t.begin(max);
        for (int w = 0; w < n_warps; w++) {
            t.add(s.max[w][h], s.sum[w][h], *reinterpret_cast<const float2 *>(o_of_warp(a, w) + i));
        }
        store_total(a, it, i, t);
    }
}

/* The splits' results, in order, become the row's; by n_threads, of which this is one. */
DEVICE void add_splits(const decode_attn_args &a, const item &it, int thread, int n_threads) {
    const int stride = partial_stride(a);
    for (int i = 2 * thread; i < it.n_heads * a.d; i += 2 * n_threads) {
        const float *from = partial_of(a, it, 0) + i, *maxes = from - i + it.n_heads * a.d + i / a.d,
                    *sums = maxes + it.n_heads;
        float max = -INFINITY;
#pragma unroll 8
        for (int n = 0; n < it.n_splits; n++) {
            max = fmaxf(max, __ldcg(maxes + n * stride));
        }
        total t;
        t.begin(max);
#pragma unroll 8
        for (int n = 0; n < it.n_splits; n++) {
            t.add(__ldcg(maxes + n * stride), __ldcg(sums + n * stride),
                  __ldcg(reinterpret_cast<const float2 *>(from + n * stride)));
        }
        store_result(a, it, i, t);
    }
}

/* Whether all splits of the item's row and heads are in memory: true once. By one thread, behind a fence of all. */
DEVICE bool count_split(const decode_attn_args &a, const item &it) {
    uint32_t *counter = &a.counter[it.m * a.n_kv * groups_of_kv(a) + it.group];
    const bool is_last = atomicAdd(counter, 1) == (uint32_t)it.n_splits - 1;
    if (is_last) {
        *counter = 0;
    }
    __threadfence();
    return is_last;
}

DEVICE bool is_last_split(const decode_attn_args &a, const item &it, uint32_t *is_last) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        *is_last = count_split(a, it);
    }
    __syncthreads();
    return *is_last;
}

#endif
