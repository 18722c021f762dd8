/*
 * What the persistent decode kernel is made of: waiting with a deadline, words that cross SMs, the ring. See persist.cu.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_CUH
#define LS_BACKEND_CUDA_PERSIST_CUH

#include "backend/cuda/kern/common.cuh"
#include "backend/cuda/kern/persist_args.h"

/* All shared memory but for the table's lines: see persist_args. */
extern __shared__ uint4 persist_room[];

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
    int op, layer;
    bool gone;

    DEVICE_MEMBER patience(const persist_args &args, int64_t extra) : a(args), extra_ns(extra) {
        polls = 0;
        op = layer = -1;
        gone = false;
    }

    /* After a poll that found nothing: whether to leave. */
    DEVICE_MEMBER bool is_over() {
        between_polls();
        if (!gone && ++polls % POLLS == 0) {
            persist_stuck *stuck = a.stuck;
            if (load_word(&stuck->is_set) != 0) {
                gone = true;
            } else if (global_time() > watch(a)->deadline + (uint64_t)extra_ns) {
                gone = true;
                if (atomicCAS(&stuck->claimed, 0, 1) == 0) {
                    stuck->op = op;
                    stuck->layer = layer;
                    stuck->block = (int32_t)blockIdx.x;
                    store_word(&stuck->is_set, 1, true);
                }
            }
        }
        return gone;
    }

    DEVICE_MEMBER void wait(uint64_t *barrier, uint32_t parity) {
        while (!barrier_passed(barrier, parity) && !is_over()) {
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
DEVICE void take_words(const uint64_t *from, const int (&at)[N], uint32_t epoch, uint32_t (&out)[N], patience *p) {
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
    } while (!good && !p->is_blind() && !p->is_over());
#pragma unroll
    for (int i = 0; i < N; i++) {
        out[i] = (uint32_t)v[i];
    }
}

template <int N>
DEVICE void take_pairs(const uint64_t *from, const int (&at)[N], uint32_t epoch, uint2 (&out)[N], patience *p) {
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
    } while (!good && !p->is_blind() && !p->is_over());
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

    /* Tiles are as equal as units allow. */
    DEVICE_MEMBER int begin_of(const persist_op &op, int tile) const {
        return first + (int)((uint32_t)(count / op.unit) * (uint32_t)tile / (uint32_t)n_tiles) * op.unit;
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

/* Chunk number n lies in slot n % n_slots. Both sides count chunks alike. */
struct ring {
    const persist_args &a;
    uint32_t slot, phase; /* of the chunk that `next` is */
    uint32_t next;

    DEVICE_MEMBER explicit ring(const persist_args &args) : a(args) {
        slot = phase = next = 0;
    }

    /* A chunk's bytes are there; it may be overwritten. */
    DEVICE_MEMBER uint64_t *full(uint32_t which) const {
        return reinterpret_cast<uint64_t *>(shared_room() + a.at_barriers) + which;
    }
    DEVICE_MEMBER uint64_t *empty(uint32_t which) const {
        return full(a.n_slots + which);
    }
    /* Of the chunk in a slot: a producer's own. */
    DEVICE_MEMBER uint32_t *bytes(uint32_t which, int producer) const {
        return reinterpret_cast<uint32_t *>(full(2 * a.n_slots)) + which * PERSIST_PRODUCERS + producer;
    }

    /* Forward. */
    DEVICE_MEMBER void seek(uint32_t chunk) {
        slot += chunk - next;
        next = chunk;
        while (slot >= (uint32_t)a.n_slots) {
            slot -= (uint32_t)a.n_slots;
            phase ^= 1;
        }
    }

    DEVICE_MEMBER char *at() const {
        return shared_room() + slot * a.slot_bytes;
    }

    /* A consumer's warp: the chunk is there. */
    DEVICE_MEMBER const char *take(uint32_t chunk, patience *p) {
        seek(chunk);
        if (a.stamp != NULL && threadIdx.x == 0) {
            const uint64_t begin = global_time();
            p->wait(full(slot), phase);
            watch(a)->starved += global_time() - begin;
        }
        p->wait(full(slot), phase);
        return at();
    }

    DEVICE_MEMBER void give_back() {
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            barrier_arrive(empty(slot));
        }
    }
};

/* What a producer has in flight. */
struct flight {
    int producer;                 /* which */
    uint32_t oldest, slot, phase; /* chunk that may not have landed */
    int in_flight, window;

    DEVICE_MEMBER void begin(const persist_args &a, int which) {
        producer = which;
        oldest = slot = phase = 0;
        in_flight = 0;
        window = a.window_bytes / PERSIST_PRODUCERS;
    }

    DEVICE_MEMBER void step(const ring *r) {
        oldest++;
        if (++slot == (uint32_t)r->a.n_slots) {
            slot = 0;
            phase ^= 1;
        }
    }

    DEVICE_MEMBER void land_one(ring *r, patience *p) {
        p->wait(r->full(slot), phase);
        if (p->gone) {
            return;
        }
        in_flight -= (int)*r->bytes(slot, producer);
        step(r);
    }

    /* Room for the next chunk: its slot is free, and no more than the window is on its way. False, on all lanes, if nothing
     * is to be copied any more. */
    DEVICE_MEMBER bool make_room(ring *r, int total, patience *p) {
        while (!p->gone && oldest != r->next &&
               (in_flight + total > window || r->next - oldest >= (uint32_t)r->a.n_slots)) {
            land_one(r, p);
        }
        if (r->next >= (uint32_t)r->a.n_slots) {
            p->wait(r->empty(r->slot), r->phase ^ 1);
        }
        p->gone = __ballot_sync(0xffffffffu, p->gone) != 0;
        if (p->gone) {
            return false;
        }
        if (threadIdx.x % 32 == 0) {
            *r->bytes(r->slot, producer) = (uint32_t)total;
            barrier_expect(r->full(r->slot), (uint32_t)total);
        }
        __syncwarp();
        in_flight += total;
        return true;
    }

    DEVICE_MEMBER void go_on(ring *r) {
        r->seek(r->next + 1);
    }

    /* All that was asked for, whether or not anybody waits for it: a block must not end before. After an abort chunks may
     * miss another producer's part, and what is under way is given time to land. */
    DEVICE_MEMBER void land_all(ring *r, patience *p) {
        constexpr uint64_t LANDING_NS = 20000000;
        while (!p->gone && oldest != r->next) {
            land_one(r, p);
        }
        for (const uint64_t begin = global_time(); p->gone && global_time() - begin < LANDING_NS;) {
            barrier_passed(r->full(slot), phase);
            between_polls();
        }
    }
};

#endif
