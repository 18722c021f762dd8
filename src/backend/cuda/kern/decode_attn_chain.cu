/*
 * Attention of decode steps of many rows: what decode_attn.cu does for few, where an item's arithmetic, its beginning and its end
 * are hidden behind other items' memory instead of being shared by a block.
 *
 * A CHAIN is DECODE_CHAIN_TEAM warps with shared memory of their own. It takes items (row, up to four query heads of one KV head,
 * split) from end to end: q, k and v made ready, then the units of 32 tokens, dealt to its warps in turn, then the warps' sum.
 * Chain c of all takes items c, c + n_chains, ...; neighbours lie in different blocks, so that SMs have even shares of few items
 * too. No chain waits for another.
 *
 * Two units of K and V are on their way to each warp all the time, the next item's behind this one's last (fewer warps, or less on
 * its way, keep memory less busy; the next item's q on its way too gains nothing: measured). Splits have at least 1024
 * tokens (DECODE_CHAIN_TOKENS) and are added as in decode_attn.cu: by the chain that is done last, in index order.
 *
 * Bits: a warp's units in order, with one running maximum, then the warps' in order; splits follow from the row's own tokens. The
 * number of rows, blocks and chains decides none. They are not those of decode_attn.cu, which has more warps to deal units to.
 *
 * Shared memory of a chain: `shared`, o of each warp, then each warp's units: K, V each.
 */
#include "backend/cuda/kern/decode_attn.cuh"

enum { TEAM = DECODE_CHAIN_TEAM };

/* Finds items of rising indices, without beginning at the first row each time. By a whole warp. */
struct item_finder {
    const decode_attn_args &a;
    lane_row row;
    int first_row, count; /* the lane's row is among these 32; items before theirs */

    DEVICE_MEMBER explicit item_finder(const decode_attn_args &args) : a(args) {
        first_row = count = 0;
        row = row_of_lane(a.step, 0, a.step->n_rows);
    }

    /* False: there are fewer. */
    DEVICE_MEMBER bool find(int index, item *it) {
        const int n_rows = a.step->n_rows;
        for (;;) {
            const int up_to = find_among(a, row, first_row, count, index, false, it);
            if (index < up_to) {
                return true;
            }
            if (first_row + 32 >= n_rows) {
                return false;
            }
            count = up_to;
            first_row += 32;
            row = row_of_lane(a.step, first_row, n_rows);
        }
    }
};

/* The units of a warp, of its chain's items one after the other. */
struct chain_units {
    item_finder finder;
    item it;
    int index, step, rank, u;
    bool is_there;

    /* From the first item on, which is there. */
    DEVICE_MEMBER chain_units(const item_finder &its_finder, const item &first, int n_chains, int its_rank)
        : finder(its_finder), it(first) {
        index = first.index;
        step = n_chains;
        rank = u = its_rank;
        is_there = true;
        skip_ended();
    }

    DEVICE_MEMBER void skip_ended() {
        while (is_there && u >= it.n_units()) {
            index += step;
            u = rank;
            is_there = finder.find(index, &it);
        }
    }

    DEVICE_MEMBER unit here() const {
        unit out;
        out.row = -1;
        out.first = out.end = 0;
        if (is_there) {
            out.find(finder.a, it, u);
        }
        return out;
    }

    DEVICE_MEMBER void go_on() {
        u += TEAM;
        skip_ended();
    }
};

/* Where a warp is. */
struct chain_place {
    int chain, rank; /* of the block's chains; of the chain's warps */

    DEVICE_MEMBER void meet() const {
        meet_at(1 + chain, TEAM * 32);
    }
};

/* q of all heads, k and v of an item, each by one of the chain's warps. */
template <int KV, int WIDTH> struct chain_jobs {
    static_assert(N_JOBS % TEAM == 0, "warps have as many");
    static constexpr int MOST = N_JOBS / TEAM;
    attn_job<KV, WIDTH> job[MOST];
    rotation<WIDTH> turn[MOST];

    /* What nobody writes while kernels before this one run. */
    DEVICE_MEMBER void find(const decode_attn_args &a, const item &it, const chain_place &place) {
#pragma unroll
        for (int j = 0; j < MOST; j++) {
            job[j].find(a, it, j * TEAM + place.rank);
            turn[j].load(norm_of_job(a, j * TEAM + place.rank), a.rope + (int64_t)it.position * a.d, a.d);
        }
    }

    /* Everything is read before anything is made of it. */
    DEVICE_MEMBER void finish(const decode_attn_args &a, const item &it, const chain_place &place,
                              shared<KV, WIDTH> *s) {
#pragma unroll
        for (int j = 0; j < MOST; j++) {
            job[j].load(a, it, j * TEAM + place.rank);
        }
#pragma unroll
        for (int j = 0; j < MOST; j++) {
            job[j].finish(a, it, j * TEAM + place.rank, turn[j], s);
        }
        place.meet();
    }
};

/* o: of all warps. */
template <int KV, int WIDTH>
DEVICE void end_item(const decode_attn_args &a, const item &it, const chain_place &place, worker<KV, WIDTH> &w,
                     shared<KV, WIDTH> *s, float *o) {
    const int thread = place.rank * 32 + threadIdx.x % 32, n_warps = min((int)TEAM, it.n_units());
    w.end(a, o + place.rank * HEADS * WIDTH, s->max[place.rank], s->sum[place.rank]);
    place.meet();
    for (int i = 2 * thread; i < it.n_heads * a.d; i += 2 * TEAM * 32) {
        const int h = i / a.d;
        float max = s->max[0][h];
        for (int r = 1; r < n_warps; r++) {
            max = fmaxf(max, s->max[r][h]);
        }
        total t;
        t.begin(max);
        for (int r = 0; r < n_warps; r++) {
            t.add(s->max[r][h], s->sum[r][h], *reinterpret_cast<const float2 *>(o + r * HEADS * WIDTH + i));
        }
        store_total(a, it, i, t);
    }
    if (it.n_splits > 1) {
        __threadfence();
        place.meet();
        if (thread == 0) {
            s->is_last = count_split(a, it);
        }
        place.meet();
        if (s->is_last) {
            __threadfence();
            add_splits(a, it, thread, TEAM * 32);
        }
    }
}

template <int KV, int WIDTH> DEVICE void attn_chain(const decode_attn_args &a) {
    using units = stream<KV, WIDTH>;
    static_assert(sizeof(shared<KV, WIDTH>) <= DECODE_CHAIN_BYTES(WIDTH), "room for what a chain knows");
    static_assert((int)DECODE_CHAIN_UNITS == 2, "two rooms, taken in turn");
    const int warp = threadIdx.x / 32, n_chains = (int)(gridDim.x * (blockDim.x / 32 / TEAM));
    const chain_place place = {warp / TEAM, warp % TEAM};
    const int unit_bytes = UNIT * a.row_bytes;
    char *const own = reinterpret_cast<char *>(attn_room) + place.chain * a.warp_bytes;
    shared<KV, WIDTH> &s = *reinterpret_cast<shared<KV, WIDTH> *>(own);
    float *const o = reinterpret_cast<float *>(own + DECODE_CHAIN_BYTES(WIDTH));
    char *const room =
        reinterpret_cast<char *>(o + TEAM * HEADS * WIDTH) + place.rank * DECODE_CHAIN_UNITS * 2 * unit_bytes;
    let_next_kernel_start();
    int index = place.chain * (int)gridDim.x + (int)blockIdx.x;
    item_finder finder(a);
    item it;
    if (!finder.find(index, &it)) {
        return;
    }
    chain_units ahead(finder, it, n_chains, place.rank);
    chain_jobs<KV, WIDTH> jobs;
    jobs.find(a, it, place);
    for (int i = 0; i < 2; i++) {
        /* One after the other: what the kernel ahead of this one still reads and writes would wait behind all of it. */
        const unit which = ahead.here();
        wait_for_copies<0>();
        units::ask(a, a.k_cache, which, room + 2 * i * unit_bytes);
        wait_for_copies<0>();
        units::ask(a, a.v_cache, which, room + (2 * i + 1) * unit_bytes);
        ahead.go_on();
    }
    wait_for_earlier_kernels();
    uint32_t n_done = 0;
    for (;;) {
        jobs.finish(a, it, place, &s);
        worker<KV, WIDTH> w;
        w.begin(s);
        const int n_units = it.n_units();
        for (int u = place.rank; u < n_units; u += TEAM, n_done++) {
            char *const k_room = room + n_done % 2 * 2 * unit_bytes, *const v_room = k_room + unit_bytes;
            const int token = it.first + u * UNIT;
            const unit which = ahead.here();
            units::template await<3>(a, it, u, k_room, s.own[0]);
            w.score(a, k_room);
            __syncwarp();
            units::ask(a, a.k_cache, which, k_room);
            w.soften(a.scale * LOG2_E, it.lo - token, it.end - token);
            units::template await<3>(a, it, u, v_room, s.own[1]);
            w.weigh(a, v_room, NULL);
            __syncwarp();
            units::ask(a, a.v_cache, which, v_room);
            ahead.go_on();
        }
        end_item<KV, WIDTH>(a, it, place, w, &s, o);
        index += n_chains;
        if (!finder.find(index, &it)) {
            return;
        }
        jobs.find(a, it, place);
    }
}

/* Heads that fill the width are most; a number that the compiler knows saves it a question at each step of 16 elements. */
template <int KV, int WIDTH> DEVICE void attn_chain_of(const decode_attn_args &a) {
    if (a.d == WIDTH) {
        decode_attn_args full = a;
        full.d = WIDTH;
        full.row_bytes = WIDTH * 2 + 16;
        attn_chain<KV, WIDTH>(full);
    } else {
        attn_chain<KV, WIDTH>(a);
    }
}

/* Names: KV dtype, the largest head size. */
#define DEFINE_CHAIN(name, kv, width)                                                                                  \
    extern "C" __global__ void __launch_bounds__(DECODE_CHAIN_WARPS * 32, 1)                                           \
        decode_attn_chain_##name##_##width(const __grid_constant__ decode_attn_args a) {                               \
        attn_chain_of<kv, width>(a);                                                                                   \
    }

DEFINE_CHAIN(bf16, KERN_BF16, 64)
DEFINE_CHAIN(bf16, KERN_BF16, 128)
DEFINE_CHAIN(f16, KERN_F16, 64)
DEFINE_CHAIN(f16, KERN_F16, 128)
