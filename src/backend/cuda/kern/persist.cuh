/*
 * What the persistent decode kernel is made of: waiting with a deadline, words that cross SMs, the ring. See persist.cu.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_CUH
#define LS_BACKEND_CUDA_PERSIST_CUH

#include "backend/cuda/kern/common.cuh"
#include "backend/cuda/kern/persist_args.h"
#include "backend/cuda/kern/persist_ptx.cuh"

/* All shared memory: see persist_args. Tensor copies need its beginning at a multiple of 1024 bytes, so that nothing else may be declared. */
extern __shared__ __align__(1024) uint4 persist_room[];

DEVICE char *shared_room() {
    return reinterpret_cast<char *>(persist_room);
}

/* ---- Waiting ---- */

/* In shared memory. The last warp alone looks at the clock and at other blocks' word, and sets a flag: that is all that a wait
 * which finds nothing looks at, so that the code of waiting is short. Once the flag is set nobody of the block waits any more, and
 * soon none of any block: all run through to the end, on whatever is in memory, and the host finds persist_stuck. */
struct persist_watch {
    uint64_t finished; /* barrier: the consumers have */
    uint64_t starved;  /* measuring: ns that thread 0 waited for chunks */
    uint32_t is_over;
    int32_t line;  /* of the table, that the consumers are at; -1 before its first one */
    int32_t n_out; /* of the step */
    uint32_t reserved;
    int32_t row[CUDA_MAX_DECODE][2];     /* of the step: position, first page; else 0 */
    uint32_t left[PERSIST_WARPS + 1][4]; /* what a warp was left without, where, which chunk */
};

DEVICE persist_watch *watch(const persist_args &a) {
    return reinterpret_cast<persist_watch *>(shared_room() + a.at_watch);
}

/* A thread's waits. */
struct patience {
    const persist_args &a;
    int line; /* of the table; -1 before its first one */

    DEVICE_MEMBER explicit patience(const persist_args &args) : a(args) {
        line = -1;
    }

    DEVICE_MEMBER bool is_gone() const {
        return load_shared_flag(&watch(a)->is_over) != 0;
    }

    /* After a poll that found nothing: whether to leave. The first lane of a warp to leave says why: lanes that lack
     * nothing run on. */
    DEVICE_MEMBER bool is_over(int what, uint32_t chunk = 0) const {
        between_looks();
        if (!is_gone()) {
            return false;
        }
        uint32_t *to = watch(a)->left[threadIdx.x / 32];
        if (load_shared_flag(to) == PERSIST_WAIT_NONE) {
            store_shared_flag(to + 1, (uint32_t)line);
            store_shared_flag(to + 2, chunk);
            store_shared_flag(to, (uint32_t)what);
        }
        return true;
    }

    /* False: in vain. */
    DEVICE_MEMBER bool wait(uint64_t *barrier, uint32_t parity, int what, uint32_t chunk) const {
        while (!barrier_passed(barrier, parity)) {
            if (is_over(what, chunk)) {
                return false;
            }
        }
        return true;
    }

    /* What the warp was left without, for the host. */
    DEVICE_MEMBER void tell() const {
        const uint32_t *from = watch(a)->left[threadIdx.x / 32];
        if (threadIdx.x % 32 == 0 && load_shared_flag(from) != PERSIST_WAIT_NONE) {
            persist_wait *to = &a.wait[blockIdx.x * (PERSIST_WARPS + 1) + threadIdx.x / 32];
            const int at = (int)load_shared_flag(from + 1);
            to->what = (int32_t)load_shared_flag(from);
            to->op = at < 0 ? -1 : a.op[at].index;
            to->layer = at < 0 ? -1 : a.op[at].layer;
            to->chunk = load_shared_flag(from + 2);
        }
    }

    /* After a wait for words of other ranks in vain: the first of n that was not there, which is of rank first_rank + i / per. The
     * host hears of the warp's first such wait, in which it stood when waiting ended; from there on nothing comes. */
    DEVICE_MEMBER void name_missing(int i, int n, int what, int op_index, int per, int first_rank = 0) const {
        uint32_t *to = watch(a)->left[threadIdx.x / 32];
        if (i < n && load_shared_flag(to) == (uint32_t)what && load_shared_flag(to + 1) == (uint32_t)line &&
            load_shared_flag(to + 2) == 0) {
            const int missing = first_rank + i / per;
            store_shared_flag(to + 2, (uint32_t)missing + 1);
            store_peer_word(&(a.told != NULL ? a.told : a.stuck)->missing,
                            (uint64_t)(missing + 1) << 32 | (uint32_t)op_index);
        }
    }

    /* Words are taken as they are: measuring. */
    DEVICE_MEMBER bool is_blind() const {
        return (a.measure & PERSIST_STREAMS_ONLY) != 0;
    }
};

/* With several ranks: where rank `to` hears of each other's bests; its word that ends all waiting. */
DEVICE uint64_t *bests_of(const persist_args &a, int to) {
    return a.node[to] + PERSIST_BESTS_AT(a.m_max, a.d);
}
DEVICE persist_stuck *stuck_of(const persist_args &a, int to) {
    return reinterpret_cast<persist_stuck *>(a.node[to] + PERSIST_STUCK_AT(a.m_max, a.d));
}

/* One thread: until the consumers have finished, or somebody's patience is over. It ends the waiting of all ranks, at a time by which
 * every watch has looked: a block that ran on earlier would write over what others still wait for, and they would name the wrong rank. */
DEVICE void watch_over(const persist_args &a) {
    constexpr uint64_t LOOK_NS = 20000, END_NS = 5 * LOOK_NS;
    persist_watch *w = watch(a);
    uint64_t now = global_time(), look = now + LOOK_NS;
    const uint64_t deadline = now + (uint64_t)a.timeout_ns;
    while (!barrier_passed(&w->finished, 0)) {
        between_looks();
        now = global_time();
        if (now < look) {
            continue;
        }
        look = now + LOOK_NS;
        const bool is_late = now > deadline;
        if (is_late && atomicCAS(&a.stuck->claimed, 0, 1) == 0) {
            persist_stuck *to = a.told != NULL ? a.told : a.stuck;
            const int line = (int)load_shared_flag(reinterpret_cast<const uint32_t *>(&w->line));
            to->op = line < 0 ? -1 : a.op[line].index;
            to->layer = line < 0 ? -1 : a.op[line].layer;
            to->block = (int32_t)blockIdx.x;
            to->claimed = 1;
            const uint64_t said = load_peer_word(&a.stuck->ends_ns), ends = said != 0 ? said : now + END_NS;
            store_peer_word(&a.stuck->ends_ns, ends);
#pragma unroll 1
            for (int rank = 0; rank < a.n_ranks && a.n_ranks > 1; rank++) {
                store_peer_word(&stuck_of(a, rank)->ends_ns, ends);
            }
        }
        const uint64_t end = load_peer_word(&a.stuck->ends_ns);
        if (is_late || end != 0) {
            const uint64_t most = now + END_NS, until = end != 0 && end < most ? end : most;
            while (global_time() < until && !barrier_passed(&w->finished, 0)) {
                between_looks();
            }
            store_shared_flag(&w->is_over, 1);
            return;
        }
    }
}

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

/* Words from[at[i]], or pairs of them from there on; at[i] < 0: none, 0. All are asked for before any is looked at. False: in vain.
 * *missing is then the first that was not there when it was last looked at, or N: whoever looks later may find what ranks that have
 * run on wrote over it, so a newer epoch is a word that was there. */
template <int N>
DEVICE bool take_words(const uint64_t *from, const int (&at)[N], uint32_t epoch, uint32_t (&out)[N], int what,
                       patience *p, int *missing = NULL) {
    uint64_t v[N];
    bool good;
    do {
        good = true;
#pragma unroll
        for (int i = 0; i < N; i++) {
            v[i] = at[i] >= 0 ? load_peer_word(from + at[i]) : word_of(0, epoch);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            good = good && is_of(v[i], epoch);
        }
    } while (!good && !p->is_blind() && !p->is_over(what));
    if (missing != NULL && !good) {
        *missing = N;
#pragma unroll
        for (int i = N - 1; i >= 0; i--) {
            *missing = (int32_t)((uint32_t)(v[i] >> 32) - epoch) < 0 ? i : *missing;
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        out[i] = (uint32_t)v[i];
    }
    return good || p->is_blind();
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
                v[i] = load_words(from + at[i]);
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

/* Of a power of two. */
DEVICE int log_of(int n) {
    return 31 - __clz(n);
}

/* Rows of the lowest box that has n. */
DEVICE int rows_of_box(int n) {
    return n > 0 ? 1 << log_of(2 * n - 1) : 0;
}

/* Rows [first, first + count) of the op's matrices, all columns of one part of its leaves. */
struct op_share {
    int first, count, n_tiles, most;
    int part, first_leaf, n_leaves;

    DEVICE_MEMBER op_share(const persist_op &op) { /* rows * blocks < 2^31: persist.c */
        const uint32_t units = (uint32_t)op.rows >> (op.unit == 2);
        const int by = log_of(op.n_parts);
        const uint32_t groups = gridDim.x >> by, group = blockIdx.x >> by;
        part = (int)(blockIdx.x - (group << by));
        n_leaves = op.n_leaves >> by;
        first_leaf = part * n_leaves;
        first = (int)(units * group / groups) * op.unit;
        count = (int)(units * (group + 1) / groups) * op.unit - first;
        most = op.kind == PERSIST_FFN_IN ? DECODE_TILE / 2 : DECODE_TILE;
        n_tiles = (count + most - 1) >> log_of(most);
    }

    /* All tiles are full but the last one. */
    DEVICE_MEMBER int begin_of(int tile) const {
        return first + min(tile * most, count);
    }

    /* Tiles that the warps take at a time: a warp takes one leaf of one of them. */
    DEVICE_MEMBER int tiles_at_once() const {
        return PERSIST_WARPS >> log_of(n_leaves);
    }

    DEVICE_MEMBER int first_column(const persist_op &op) const {
        return op.border[first_leaf];
    }
};

DEVICE int matrix_of_row(const persist_op &op, int row) {
    return (row >= op.first_row[1]) + (row >= op.first_row[2]);
}

/* ---- The ring ---- */

/* Chunk n is in slot n % n_slots, for the n / n_slots-th time. Every consumer warp waits for every chunk, in order, and gives it
 * back, whether or not it has a use for it: so all know a slot's turn by counting, and nobody is a turn ahead of a barrier. */
struct ring {
    const persist_args &a;
    uint32_t slot, turn; /* of the chunk that is next */

    DEVICE_MEMBER explicit ring(const persist_args &args) : a(args) {
        slot = turn = 0;
    }

    /* A chunk's bytes are there; all warps have given it back. */
    DEVICE_MEMBER uint64_t *full(uint32_t i) const {
        return reinterpret_cast<uint64_t *>(shared_room() + a.at_barriers) + i;
    }
    DEVICE_MEMBER uint64_t *empty(uint32_t i) const {
        return full(i) + PERSIST_SLOTS;
    }
    /* All warps have left their sums of a tile: of every other one. */
    DEVICE_MEMBER uint64_t *sums(uint32_t i) const {
        return full(i) + 2 * PERSIST_SLOTS;
    }
    DEVICE_MEMBER char *at(uint32_t i) const {
        return shared_room() + i * (uint32_t)a.slot_bytes;
    }
    DEVICE_MEMBER uint32_t number() const {
        return turn * (uint32_t)a.n_slots + slot;
    }
    DEVICE_MEMBER void go_on() {
        slot++;
        if (slot == (uint32_t)a.n_slots) {
            slot = 0;
            turn++;
        }
    }

    /* A consumer's warp: the next chunk is there. */
    DEVICE_MEMBER char *take(const patience &p) const {
        if (a.stamp != NULL) { /* a look may wait too */
            time_starved(-1);
        }
        p.wait(full(slot), turn % 2, PERSIST_WAIT_CHUNK, number());
        if (a.stamp != NULL) {
            time_starved(1);
        }
        return at(slot);
    }

    DEVICE_MEMBER void give_back() {
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            barrier_arrive(empty(slot));
        }
        go_on();
    }

    /* Measuring: the difference of two times. */
    DEVICE_MEMBER void time_starved(int sign) const {
        if (threadIdx.x == 0) {
            watch(a)->starved += (uint64_t)sign * global_time();
        }
    }
};

#endif
