/*
 * What the persistent decode kernel is made of: waiting with a deadline, words that cross SMs, the ring. See persist.cu.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_CUH
#define LS_BACKEND_CUDA_PERSIST_CUH

#include "backend/cuda/kern/common.cuh"
#include "backend/cuda/kern/persist_args.h"

/* All shared memory: see persist_args. Tensor copies need its beginning at a multiple of 1024 bytes, so that nothing else may be declared. */
extern __shared__ __align__(1024) uint4 persist_room[];

DEVICE char *shared_room() {
    return reinterpret_cast<char *>(persist_room);
}

/* In shared memory, so that it takes no registers. */
struct persist_watch {
    uint64_t deadline; /* of every wait */
    uint64_t starved;  /* measuring: ns that thread 0 waited for chunks */
};

DEVICE persist_watch *watch(const persist_args &a) {
    return reinterpret_cast<persist_watch *>(shared_room() + a.at_watch);
}

/* ---- Waiting ---- */

/* A thread's waits. Once one has been in vain, none of any block waits any more: all run through to the end, on whatever
 * is in memory, and the host finds persist_stuck. */
struct patience {
    static constexpr uint32_t POLLS = 256; /* between two looks at the clock */
    const persist_args &a;
    int64_t extra_ns; /* after the deadline */
    uint32_t polls;
    int line; /* of the table; -1 before its first one */
    bool gone;

    DEVICE_MEMBER patience(const persist_args &args, int64_t extra) : a(args), extra_ns(extra) {
        polls = 0;
        line = -1;
        gone = false;
    }

    /* What this warp was left without, if it was not another lane before: lanes that lack nothing run on. */
    DEVICE_MEMBER void leave(int what, uint32_t chunk) {
        persist_wait *to = &a.wait[blockIdx.x * (PERSIST_WARPS + 1) + threadIdx.x / 32];
        gone = true;
        if (to->what != PERSIST_WAIT_NONE) {
            return;
        }
        to->what = what;
        to->op = line < 0 ? -1 : a.op[line].index;
        to->layer = line < 0 ? -1 : a.op[line].layer;
        to->chunk = chunk;
    }

    DEVICE_MEMBER void tell(persist_stuck *to) const {
        to->op = line < 0 ? -1 : a.op[line].index;
        to->layer = line < 0 ? -1 : a.op[line].layer;
        to->block = (int32_t)blockIdx.x;
        store_word(&to->is_set, 1, true);
    }

    /* After a poll that found nothing: whether to leave. */
    DEVICE_MEMBER bool is_over(int what, uint32_t chunk = 0) {
        between_polls();
        if (!gone && ++polls % POLLS == 0) {
            persist_stuck *stuck = a.stuck;
            if (load_word(&stuck->is_set) != 0) {
                leave(what, chunk);
            } else if (global_time() > watch(a)->deadline + (uint64_t)extra_ns) {
                leave(what, chunk);
                if (atomicCAS(&stuck->claimed, 0, 1) == 0) {
                    tell(a.told != NULL ? a.told : stuck);
                    store_word(&stuck->is_set, 1, true);
                }
            }
        }
        return gone;
    }

    DEVICE_MEMBER void wait(uint64_t *barrier, uint32_t parity, int what, uint32_t chunk) {
        while (!barrier_passed(barrier, parity) && !is_over(what, chunk)) {
        }
    }

    /* Words are taken as they are: measuring. */
    DEVICE_MEMBER bool is_blind() const {
        return a.streams_only != 0;
    }
};

/* ---- Words ---- */

DEVICE uint64_t word_of(uint32_t value, uint32_t epoch) {
    return (uint64_t)epoch << 32 | value;
}

DEVICE uint64_t word_of_float(float value, uint32_t epoch) {
    return word_of(__float_as_uint(value), epoch);
}

DEVICE bool is_of(uint64_t word, uint32_t epoch) {
    return (uint32_t)(word >> 32) == epoch;
}

/* Words from[at[i]], or pairs of them from there on; at[i] < 0: none, 0. All are asked for before any is looked at. */
template <int N>
DEVICE void take_words(const uint64_t *from, const int (&at)[N], uint32_t epoch, uint32_t (&out)[N], int what,
                       patience *p) {
    uint64_t v[N];
    bool good;
    do {
        good = true;
#pragma unroll
        for (int i = 0; i < N; i++) {
            v[i] = at[i] >= 0 ? load_word(from + at[i]) : word_of(0, epoch);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            good = good && is_of(v[i], epoch);
        }
    } while (!good && !p->is_blind() && !p->is_over(what));
#pragma unroll
    for (int i = 0; i < N; i++) {
        out[i] = (uint32_t)v[i];
    }
}

template <int N>
DEVICE void take_pairs(const uint64_t *from, const int (&at)[N], uint32_t epoch, uint2 (&out)[N], int what,
                       patience *p) {
    ulonglong2 v[N];
    bool good;
    do {
        good = true;
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (at[i] >= 0) {
                v[i] = load_two_words(from + at[i]);
            } else {
                v[i].x = v[i].y = word_of(0, epoch);
            }
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            good = good && is_of(v[i].x, epoch) && is_of(v[i].y, epoch);
        }
    } while (!good && !p->is_blind() && !p->is_over(what));
#pragma unroll
    for (int i = 0; i < N; i++) {
        out[i] = make_uint2((uint32_t)v[i].x, (uint32_t)v[i].y);
    }
}

/* ---- A block's share of an op ---- */

/* Rows [first, first + count) of the op's matrices, all columns of one part of its leaves. */
struct share {
    int first, count, n_tiles, most;
    int part, first_leaf, n_leaves;

    DEVICE_MEMBER share(const persist_op &op) { /* rows * blocks < 2^31: persist.c */
        const uint32_t units = (uint32_t)(op.rows / op.unit), parts = (uint32_t)op.n_parts;
        const uint32_t groups = gridDim.x / parts, group = blockIdx.x / parts;
        part = (int)(blockIdx.x % parts);
        n_leaves = op.n_leaves / op.n_parts;
        first_leaf = part * n_leaves;
        first = (int)(units * group / groups) * op.unit;
        count = (int)(units * (group + 1) / groups) * op.unit - first;
        most = op.kind == PERSIST_FFN_IN ? DECODE_TILE / 2 : DECODE_TILE;
        n_tiles = (count + most - 1) / most;
    }

    /* All tiles are full but the last one. */
    DEVICE_MEMBER int begin_of(int tile) const {
        return first + min(tile * most, count);
    }

    /* Tiles that the warps take at a time: a warp takes one leaf of one of them. */
    DEVICE_MEMBER int tiles_at_once() const {
        return PERSIST_WARPS / n_leaves;
    }

    DEVICE_MEMBER int first_column(const persist_op &op) const {
        return op.border[first_leaf];
    }
};

DEVICE int matrix_of_row(const persist_op &op, int row) {
    return (row >= op.first_row[1]) + (row >= op.first_row[2]);
}

/* ---- The ring ---- */

/*
 * Chunks lie behind one another, as long as each is, and begin again at 0. Chunk n has the barriers and the place number n % PERSIST_SLOTS.
 * Who takes a chunk first sees it in its place: a warp may want one whose barrier is still that of a chunk before, and a
 * parity that is a round ahead looks as if it had come.
 */
struct ring {
    const persist_args &a;

    DEVICE_MEMBER explicit ring(const persist_args &args) : a(args) {}

    /* A chunk's bytes are there; it may be overwritten. */
    DEVICE_MEMBER uint64_t *full(uint32_t chunk) const {
        return reinterpret_cast<uint64_t *>(shared_room() + a.at_barriers) + chunk % PERSIST_SLOTS;
    }
    DEVICE_MEMBER uint64_t *empty(uint32_t chunk) const {
        return full(chunk) + PERSIST_SLOTS;
    }
    /* Number + 1 of the chunk that was asked for, and where it begins. */
    DEVICE_MEMBER uint64_t *place(uint32_t chunk) const {
        return full(chunk) + 2 * PERSIST_SLOTS;
    }
    /* The producer's own: bytes of the ring that a chunk holds, and bytes that come. */
    DEVICE_MEMBER uint2 *size(uint32_t chunk) const {
        return reinterpret_cast<uint2 *>(full(chunk) + 3 * PERSIST_SLOTS);
    }
    static DEVICE_MEMBER uint32_t parity(uint32_t chunk) {
        return chunk / PERSIST_SLOTS % 2;
    }

    /* Measuring: the difference of two times. */
    DEVICE_MEMBER void time_starved(int sign) const {
        if (a.stamp != NULL && threadIdx.x == 0) {
            watch(a)->starved += (uint64_t)sign * global_time();
        }
        __syncwarp();
    }

    /* A consumer's warp: the chunk is there. */
    DEVICE_MEMBER char *take(uint32_t chunk, patience *p) const {
        time_starved(-1);
        uint64_t at;
        do {
            at = load_place(place(chunk));
        } while (!is_of(at, chunk + 1) && !p->is_over(PERSIST_WAIT_ASKED, chunk));
        p->wait(full(chunk), parity(chunk), PERSIST_WAIT_CHUNK, chunk);
        time_starved(1);
        return shared_room() + (p->gone ? 0 : (uint32_t)at);
    }

    DEVICE_MEMBER void give_back(uint32_t chunk) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            barrier_arrive(empty(chunk));
        }
    }
};

/* The producer's side of it. All lanes do the same. */
struct flight {
    uint32_t next, landed, freed; /* chunks: to be asked for; the first that may not have landed, not have been given back */
    uint32_t at, head, used;      /* where the chunk asked for begins; behind the last one; bytes held */
    uint32_t in_flight;

    DEVICE_MEMBER void begin() {
        next = landed = freed = at = head = used = in_flight = 0;
    }

    DEVICE_MEMBER void has_landed(const ring &r) {
        in_flight -= r.size(landed)->y;
        landed++;
    }

    DEVICE_MEMBER void free_one(const ring &r, patience *p) {
        p->wait(r.empty(freed), ring::parity(freed), PERSIST_WAIT_ROOM, freed);
        if (p->gone) {
            return;
        }
        if (landed == freed) {
            has_landed(r);
        }
        used -= r.size(freed)->x;
        freed++;
    }

    /* Room for the next chunk of `bytes`, from a multiple of `align` on, of which `coming` will come: there is, and no more than the
     * window is on its way. False, on all lanes, if nothing is to be copied any more. */
    DEVICE_MEMBER bool make_room(const ring &r, uint32_t bytes, uint32_t align, uint32_t coming, patience *p) {
        const uint32_t ring_bytes = (uint32_t)r.a.ring_bytes;
        uint32_t need;
        for (;;) {
            head = used == 0 ? 0 : head;
            at = (head + align - 1) / align * align;
            at = at + bytes > ring_bytes ? 0 : at;
            need = (at >= head ? at - head : ring_bytes - head + at) + bytes;
            if (p->gone || (next - freed < PERSIST_SLOTS && ring_bytes - used >= need)) {
                break;
            }
            free_one(r, p);
        }
        while (!p->gone && landed != next && in_flight + coming > (uint32_t)r.a.window_bytes) {
            p->wait(r.full(landed), ring::parity(landed), PERSIST_WAIT_WINDOW, landed);
            if (!p->gone) {
                has_landed(r);
            }
        }
        p->gone = __ballot_sync(0xffffffffu, p->gone) != 0;
        if (p->gone) {
            return false;
        }
        *r.size(next) = make_uint2(need, coming);
        used += need;
        head = at + bytes;
        in_flight += coming;
        return true;
    }

    /* By one lane: its bytes will come. Copies may be started. */
    DEVICE_MEMBER void announce(const ring &r, uint32_t coming) const {
        barrier_expect(r.full(next), coming);
        store_place(r.place(next), (uint64_t)(next + 1) << 32 | at);
    }

    /* All that was asked for, whether or not anybody waits for it: a block must not end before. After an abort what is under way is
     * given time to land. */
    DEVICE_MEMBER void land_all(const ring &r, patience *p) {
        constexpr uint64_t LANDING_NS = 20000000;
        const uint64_t begin = global_time();
        while (landed != next && !(p->gone && global_time() - begin > LANDING_NS)) {
            if (barrier_passed(r.full(landed), ring::parity(landed))) {
                has_landed(r);
            } else if (!p->gone) {
                p->is_over(PERSIST_WAIT_WINDOW, landed);
            } else {
                between_polls();
            }
        }
    }
};

#endif
