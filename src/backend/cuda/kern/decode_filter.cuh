/*
 * Drawing from a filtered row (top-k, top-p, min-p) on the device. Definitions in ops.h (op_sample) and engine/sampler.c.
 *
 * Candidates are compared as one number, their key: by z, of equals the lower id is the larger. A row's chunk is what one warp
 * of one slice reads; each tells the key of its best. What is worse than a key lies in no chunk whose best is worse, so that
 * the block that finishes a row reads few chunks again (they lie in L2):
 *
 *   top-k up to DECODE_LISTED  The k best candidates lie in the k best chunks. They are listed and sorted, and filters go down
 *                              the list in the sampler's own arithmetic.
 *   otherwise                  The winner of the whole row is found as without filters. If it passes them, it is the winner of
 *                              what they leave; if not, nothing worse passes either, and the next is the winner of what is
 *                              better than it. A candidate passes by how many are better, and by their mass.
 *
 * Sums run in orders that depend on the size of the vocabulary alone: the same bits in every step and batch. Of the second way
 * the row's mass is not the CPU's to the last bit, so where top-p's border falls on a candidate to within rounding (of 1e-5 of
 * the mass at most, as the CPU's is a plain f32 sum) the CPU may keep one more or one less.
 */
#ifndef LS_BACKEND_CUDA_DECODE_FILTER_CUH
#define LS_BACKEND_CUDA_DECODE_FILTER_CUH

#include "backend/cuda/kern/decode_sample.cuh"

static constexpr int SAMPLE_WARPS = DECODE_SAMPLE_THREADS / 32;
static constexpr int FILTER_CHUNKS = DECODE_SAMPLE_BLOCKS * SAMPLE_WARPS, FILTER_ROOM = 2 * DECODE_LISTED;

struct filter_room {
    uint64_t chunk[FILTER_CHUNKS]; /* keys of their best; 0: an empty one */
    uint64_t listed[FILTER_ROOM];
    double value[DECODE_LISTED]; /* z + noise */
    float mass[DECODE_LISTED];
    double sum[SAMPLE_WARPS];
    uint32_t count[SAMPLE_WARPS], n_listed;
};

/* ls_exp, to the bit. */
DEVICE float exp_as_cpu(float x) {
    if (!(x > -87.3F)) {
        return x != x ? x : 0.0F;
    }
    if (x > 88.7F) {
        return INFINITY;
    }
    const float round_magic = 12582912.0F;
    const float n = __fadd_rn(__fadd_rn(__fmul_rn(x, 1.44269504F), round_magic), -round_magic);
    float r = __fadd_rn(x, -__fmul_rn(n, 0.693359375F));
    r = __fadd_rn(r, -__fmul_rn(n, -2.12194440e-4F));
    float p = 1.9875691500e-4F;
    p = __fadd_rn(__fmul_rn(p, r), 1.3981999507e-3F);
    p = __fadd_rn(__fmul_rn(p, r), 8.3334519073e-3F);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665795894e-2F);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666665459e-1F);
    p = __fadd_rn(__fmul_rn(p, r), 5.0000001201e-1F);
    const float y = __fadd_rn(__fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), r), 1.0F);
    const int32_t half = (int32_t)n / 2;
    return __fmul_rn(__fmul_rn(y, __uint_as_float((uint32_t)(half + 127) << 23)),
                     __uint_as_float((uint32_t)((int32_t)n - half + 127) << 23));
}

/* ---- Keys ---- */

/* z is a number above -infinity; 0 is no key. */
DEVICE uint64_t key_of(float z, int32_t id) {
    const uint32_t bits = __float_as_uint(z + 0.0F); /* -0 equals 0 */
    return (uint64_t)((bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u) << 32 | (uint32_t)~id;
}

DEVICE float key_z(uint64_t key) {
    const uint32_t order = (uint32_t)(key >> 32);
    return __uint_as_float((order & 0x80000000u) != 0 ? order & 0x7fffffffu : ~order);
}

DEVICE int32_t key_id(uint64_t key) {
    return (int32_t) ~(uint32_t)key;
}

/* n is a power of two. Ends with a barrier. */
DEVICE void sort_falling(uint64_t *key, int n) {
    for (int size = 2; size <= n; size *= 2) {
        for (int apart = size / 2; apart > 0; apart /= 2) {
            for (int i = threadIdx.x; i < n / 2; i += DECODE_SAMPLE_THREADS) {
                const int at = 2 * i - (i & (apart - 1));
                const uint64_t a = key[at], b = key[at + apart];
                if ((a < b) == ((at & size) == 0)) {
                    key[at] = b;
                    key[at + apart] = a;
                }
            }
            __syncthreads();
        }
    }
}

/* ---- What all threads have, on all threads, in a fixed order ---- */

template <typename T> DEVICE T block_sum(T mine, T *room) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        mine += __shfl_xor_sync(0xffffffffu, mine, lanes);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        room[threadIdx.x / 32] = mine;
    }
    __syncthreads();
    T sum = room[0];
    for (int i = 1; i < SAMPLE_WARPS; i++) {
        sum += room[i];
    }
    return sum;
}

/* ---- A row ---- */

struct filtered_row {
    const float *logits;
    cuda_draw how;
    int n_vocab, vocab_first;
    int slice, n_slices; /* ids of one */
    filter_room &room;
    offer *best_room;

    /* Calls visit(z, id) for each candidate of the chunk that this lane reads, ids rising. */
    template <typename visitor> DEVICE_MEMBER void each_of_chunk(int chunk, visitor visit) const {
        const int first = chunk / SAMPLE_WARPS * slice, last = min(first + slice, n_vocab);
        for (int i = first + chunk % SAMPLE_WARPS * 32 + threadIdx.x % 32; i < last; i += DECODE_SAMPLE_THREADS) {
            const float z = logits[i] / how.temperature;
            if (z > -INFINITY) {
                visit(z, i);
            }
        }
    }

    DEVICE_MEMBER int chunk_of(int32_t id) const {
        return id / slice * SAMPLE_WARPS + id % slice % DECODE_SAMPLE_THREADS / 32;
    }

    /* A power of two. */
    DEVICE_MEMBER int chunks_room() const {
        int n = SAMPLE_WARPS;
        while (n < n_slices * SAMPLE_WARPS) {
            n *= 2;
        }
        return n;
    }

    DEVICE_MEMBER uint32_t noise(int32_t id) const {
        return philox(how.seed, (uint32_t)(vocab_first + id), (uint32_t)how.position, how.choice);
    }

    /* ---- top-k up to DECODE_LISTED ---- */

    /* Candidates of the n_chunks best chunks that are no worse than `least`. room.chunk is sorted. */
    DEVICE_MEMBER uint32_t count_best(int n_chunks, uint64_t least) const {
        uint32_t n = 0;
        for (int c = threadIdx.x / 32; c < n_chunks && room.chunk[c] >= least; c += SAMPLE_WARPS) {
            each_of_chunk(chunk_of(key_id(room.chunk[c])), [&](float z, int32_t id) { n += key_of(z, id) >= least; });
        }
        return block_sum(n, room.count);
    }

    /* Lists the candidates that are no worse than `least`, in any order. Returns how many there are, though there may be no
     * room for all of them. */
    DEVICE_MEMBER int list_best(int n_chunks, uint64_t least) const {
        __syncthreads();
        if (threadIdx.x == 0) {
            room.n_listed = 0;
        }
        __syncthreads();
        for (int c = threadIdx.x / 32; c < n_chunks && room.chunk[c] >= least; c += SAMPLE_WARPS) {
            each_of_chunk(chunk_of(key_id(room.chunk[c])), [&](float z, int32_t id) {
                const uint64_t key = key_of(z, id);
                if (key >= least) {
                    const uint32_t at = atomicAdd(&room.n_listed, 1);
                    if (at < FILTER_ROOM) {
                        room.listed[at] = key;
                    }
                }
            });
        }
        __syncthreads();
        return (int)room.n_listed;
    }

    /* The k best candidates, sorted, in room.listed; returns how many there are. */
    DEVICE_MEMBER int sort_best(int k) const {
        const int n_chunks = chunks_room();
        sort_falling(room.chunk, n_chunks);
        uint64_t least = k <= n_chunks && room.chunk[k - 1] > 0 ? room.chunk[k - 1] : 1;
        const int n_read = min(k, n_chunks);
        int n = list_best(n_read, least);
        if (n > FILTER_ROOM) { /* many in few chunks: a border between so many and k of them */
            uint64_t too_good = room.chunk[0] + 1;
            while (n > FILTER_ROOM) {
                const uint64_t middle = least + (too_good - least) / 2;
                const int n_middle = (int)count_best(n_read, middle);
                if (n_middle < k) {
                    too_good = middle;
                } else {
                    least = middle;
                    n = n_middle;
                }
            }
            n = list_best(n_read, least);
        }
        int n_sorted = 2;
        while (n_sorted < n) {
            n_sorted *= 2;
        }
        for (int i = n + threadIdx.x; i < n_sorted; i += DECODE_SAMPLE_THREADS) {
            room.listed[i] = 0;
        }
        __syncthreads();
        sort_falling(room.listed, n_sorted);
        return min(n, k);
    }

    /* For thread 0. */
    DEVICE_MEMBER int32_t draw_listed() const {
        const int n = sort_best(how.top_k);
        for (int i = threadIdx.x; i < n; i += DECODE_SAMPLE_THREADS) {
            const float z = key_z(room.listed[i]);
            room.mass[i] = exp_as_cpu(z - key_z(room.listed[0]));
            room.value[i] = (double)z + gumbel_of(noise(key_id(room.listed[i])));
        }
        __syncthreads();
        offer best = {-INFINITY, -1};
        if (threadIdx.x == 0) {
            float mass = 0.0F, held = 0.0F, wanted = INFINITY;
            if (how.top_p < 1.0F) {
                for (int i = 0; i < n; i++) {
                    mass += room.mass[i];
                }
                wanted = how.top_p * mass;
            }
            for (int i = 0; i < n && (i == 0 || held < wanted) && !(room.mass[i] < how.min_p); i++) {
                held += room.mass[i];
                best = better(best, offer{room.value[i], key_id(room.listed[i])});
            }
        }
        return best.id;
    }

    /* ---- Otherwise ---- */

    /* How many candidates are better than `than`; *mass: theirs, in units of exp(best_z). */
    DEVICE_MEMBER uint32_t count_better(uint64_t than, float best_z, float *mass) const {
        uint32_t n = 0;
        float sum = 0.0F;
        for (int c = threadIdx.x / 32; c < n_slices * SAMPLE_WARPS; c += SAMPLE_WARPS) {
            if (room.chunk[c] > than) {
                each_of_chunk(c, [&](float z, int32_t id) {
                    if (key_of(z, id) > than) {
                        n++;
                        sum += mass != NULL ? exp_as_cpu(z - best_z) : 0.0F;
                    }
                });
            }
        }
        if (mass != NULL) {
            *mass = (float)block_sum((double)sum, room.sum);
        }
        return block_sum(n, room.count);
    }

    /* The key that the k best alone are better than; 0: there are no more. */
    DEVICE_MEMBER uint64_t key_behind(uint32_t k, uint64_t best) const {
        uint64_t low = 0, high = best; /* more than k are better than low, fewer than high */
        if (count_better(low, 0.0F, NULL) <= k) {
            return low;
        }
        for (uint32_t n = 0; n != k;) {
            const uint64_t middle = low + (high - low) / 2;
            n = count_better(middle, 0.0F, NULL);
            low = n >= k ? middle : low;
            high = n < k ? middle : high;
        }
        return low;
    }

    /* The winner of the candidates that are better than `than`; best is one of them. */
    DEVICE_MEMBER offer draw_better(uint64_t than, uint64_t best) const {
        offer won = {-INFINITY, -1};
        double floor_value = (double)key_z(best) + gumbel_of(noise(key_id(best)));
        for (int c = threadIdx.x / 32; c < n_slices * SAMPLE_WARPS; c += SAMPLE_WARPS) {
            if (room.chunk[c] <= than || (double)key_z(room.chunk[c]) + GUMBEL_MAX < floor_value) {
                continue;
            }
            each_of_chunk(c, [&](float z, int32_t id) {
                if (key_of(z, id) <= than || (double)z + GUMBEL_MAX < floor_value) {
                    return;
                }
                const uint32_t x = noise(id);
                if ((double)z + gumbel_bound(x) < floor_value) {
                    return;
                }
                const double value = (double)z + gumbel_of(x);
                if (value > won.value) {
                    won = offer{value, id};
                    floor_value = value > floor_value ? value : floor_value;
                }
            });
        }
        return block_best(won, best_room);
    }

    /* `first`: the winner of the whole row. */
    DEVICE_MEMBER int32_t draw_rest(offer first, const decode_sample_part *part) const {
        offer most = {-INFINITY, -1};
        for (int c = threadIdx.x; c < n_slices * SAMPLE_WARPS; c += DECODE_SAMPLE_THREADS) {
            const uint64_t key = room.chunk[c];
            most = key > 0 ? better(most, offer{(double)key_z(key), key_id(key)}) : most;
        }
        most = block_best(most, best_room);
        const float best_z = (float)most.value;
        const uint64_t best = key_of(best_z, most.id);
        float wanted = INFINITY;
        uint64_t behind = 0; /* what is no better passes no filter */
        if (how.top_k > 0) {
            behind = key_behind((uint32_t)how.top_k, best);
        }
        if (how.top_p < 1.0F && behind > 0) {
            count_better(behind, best_z, &wanted);
            wanted *= how.top_p;
        } else if (how.top_p < 1.0F) {
            const int i = threadIdx.x;
            const double mine = i < n_slices ? __ldcg(&part[i].sum) * exp_as_cpu(__ldcg(&part[i].max) - best_z) : 0.0F;
            wanted = how.top_p * (float)block_sum(mine, room.sum);
        }
        for (offer won = first;; won = draw_better(behind, best)) {
            const uint64_t key = key_of(logits[won.id] / how.temperature, won.id);
            if (key > behind) {
                bool passes = key == best;
                if (!passes && !(exp_as_cpu(key_z(key) - best_z) < how.min_p)) {
                    float mass = 0.0F;
                    if (how.top_p < 1.0F) {
                        count_better(key, best_z, &mass);
                    }
                    passes = mass < wanted;
                }
                if (passes) {
                    return won.id;
                }
                behind = key;
            }
        }
    }

    /* For thread 0: the drawn id, or -1. part: the slices' of this row. By the whole block. */
    DEVICE_MEMBER int32_t draw_filtered(offer first, const decode_sample_part *part) const {
        const int n = chunks_room();
        for (int i = threadIdx.x; i < n; i += DECODE_SAMPLE_THREADS) {
            room.chunk[i] = i < n_slices * SAMPLE_WARPS ? __ldcg(&part[i / SAMPLE_WARPS].best[i % SAMPLE_WARPS]) : 0;
        }
        __syncthreads();
        return how.top_k > 0 && how.top_k <= DECODE_LISTED ? draw_listed() : first.id < 0 ? -1 : draw_rest(first, part);
    }
};

#endif
