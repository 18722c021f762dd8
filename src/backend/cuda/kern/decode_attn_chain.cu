/*
 * Attention of decode steps of many rows: what decode_attn.cu does for few, where an item's arithmetic, its beginning and its end
 * are hidden behind other items' memory instead of being shared by a block.
 *
 * A CHAIN is a warp with shared memory of its own. It takes items (row, up to four query heads of one KV head, split) from end to
 * end: q, k and v made ready, then its units of 32 tokens one after the other, then the result. Chain c of all takes items c,
 * c + n_chains, ...; neighbours lie in different blocks, so that SMs have even shares of few items too. No warp waits for another.
 *
 * Two units of K and V are on their way all the time, the next item's behind this one's last. Splits have at least 1024 tokens
 * (DECODE_CHAIN_TOKENS) and are added as in decode_attn.cu: by the warp that is done last, in index order. (Shorter ones where rows are
 * too few to keep all chains busy cost more than they give: 32 rows took 4 % longer.)
 *
 * Bits: units in order, with one running maximum; splits follow from the row's own tokens. The number of rows, blocks and warps
 * decides none. They are not those of decode_attn.cu, which deals units to its warps.
 *
 * Shared memory of a warp: `shared` (a chain's o overwrites its q, which is in registers by then), then units: K, V each.
 */
#include "backend/cuda/kern/decode_attn.cuh"

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

/* The units of a chain's items, one after the other. */
struct chain_units {
    item_finder finder;
    item it;
    int index, step, u;
    bool is_there;

    DEVICE_MEMBER chain_units(const decode_attn_args &a, int first, int n_chains) : finder(a) {
        index = first;
        step = n_chains;
        u = 0;
        is_there = finder.find(index, &it);
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
        if (is_there && ++u == it.n_units()) {
            index += step;
            u = 0;
            is_there = finder.find(index, &it);
        }
    }
};

/* q of all heads, k and v: everything is read before anything is made of it. */
template <int KV, int WIDTH> DEVICE void make_ready(const decode_attn_args &a, const item &it, shared<KV, WIDTH> *s) {
    attn_job<KV, WIDTH> job[N_JOBS];
    rotation<WIDTH> of_q, of_k;
    const float *rope = a.rope + (int64_t)it.position * a.d;
#pragma unroll
    for (int j = 0; j < N_JOBS; j++) {
        job[j].load(a, it, j);
    }
    of_q.load(a.q_norm, rope, a.d);
    of_k.load(a.k_norm, rope, a.d);
#pragma unroll
    for (int j = 0; j < N_JOBS; j++) {
        job[j].finish(a, it, j, j == JOB_K ? of_k : of_q, s);
    }
    __syncwarp();
}

template <int KV, int WIDTH>
DEVICE void end_item(const decode_attn_args &a, const item &it, worker<KV, WIDTH> &w, shared<KV, WIDTH> *s) {
    static_assert(sizeof s->q >= HEADS * WIDTH * sizeof(float), "room for o");
    const int lane = threadIdx.x % 32;
    float *o = reinterpret_cast<float *>(s->q);
    w.end(a, o, s->max[0], s->sum[0]);
    __syncwarp();
    for (int i = 2 * lane; i < it.n_heads * a.d; i += 64) {
        const int h = i / a.d;
        total t;
        t.begin(s->max[0][h]);
        t.add(s->max[0][h], s->sum[0][h], *reinterpret_cast<const float2 *>(o + i));
        store_total(a, it, i, t);
    }
    if (it.n_splits > 1) {
        __threadfence();
        __syncwarp();
        int is_last = 0;
        if (lane == 0) {
            is_last = count_split(a, it);
        }
        if (__shfl_sync(EVERY_LANE, is_last, 0) != 0) {
            __threadfence();
            add_splits(a, it, lane, 32);
        }
    }
    __syncwarp(); /* before q is written again */
}

template <int KV, int WIDTH> DEVICE void attn_chain(const decode_attn_args &a) {
    using units = stream<KV, WIDTH>;
    static_assert(sizeof(shared<KV, WIDTH>) <= DECODE_CHAIN_BYTES(WIDTH), "room for what a chain knows");
    static_assert((int)DECODE_CHAIN_UNITS == 2, "two rooms, taken in turn");
    const int warp = threadIdx.x / 32, n_chains = (int)(gridDim.x * (blockDim.x / 32));
    char *const own = reinterpret_cast<char *>(attn_room) + warp * a.warp_bytes, *const room =
                                                                                     own + DECODE_CHAIN_BYTES(WIDTH);
    shared<KV, WIDTH> &s = *reinterpret_cast<shared<KV, WIDTH> *>(own);
    const int unit_bytes = UNIT * a.row_bytes;
    let_next_kernel_start();
    int index = warp * (int)gridDim.x + (int)blockIdx.x;
    chain_units ahead(a, index, n_chains);
    for (int i = 0; i < 2; i++) {
        const unit which = ahead.here();
        units::ask(a, a.k_cache, which, room + 2 * i * unit_bytes);
        units::ask(a, a.v_cache, which, room + (2 * i + 1) * unit_bytes);
        ahead.go_on();
    }
    wait_for_earlier_kernels();
    item_finder finder(a);
    item it;
    uint32_t n_done = 0;
    for (; finder.find(index, &it); index += n_chains) {
        make_ready<KV, WIDTH>(a, it, &s);
        worker<KV, WIDTH> w;
        w.begin(s);
        const int n_units = it.n_units();
        for (int u = 0; u < n_units; u++, n_done++) {
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
        end_item<KV, WIDTH>(a, it, w, &s);
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
