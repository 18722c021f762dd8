/*
 * The exchange of several ranks, as kernels of their own: between two matmuls of a graph or of plain launches. The protocol is
 * exchange_args.h's.
 *
 * One launch serves all ranks that a GPU has, so that nothing has to run beside it: its blocks are few and resident together,
 * and what they wait for comes from another GPU, or from their own launch. The order of a GPU's other kernels does not matter.
 *
 * exchange_rows: one block a row and rank. Its threads add up the elements of their own nodes (the lower part of the leaf
 * tree), send them to all others, and wait for theirs; from there on it is decode_exchange, in the same order.
 *
 * exchange_push, exchange_take: the two halves of an exchange of more rows, with exchange_meet behind each.
 */
#include "backend/cuda/kern/decode_sample.cuh"
#include "backend/cuda/kern/exchange.cuh"
#include "backend/cuda/kern/stream.cuh"

/* ---- Rows ---- */

enum { RANKS_AT_ONCE = 4 }; /* whose words a thread asks for before it looks at any */

/* This rank's sum of the elements, kept in shared memory and sent to the others. */
template <int WIDTH>
DEVICE void send_row(const exchange_rows_args &a, const exchange_member &self, int m, uint32_t epoch, float *kept) {
    const int rank = self.self.rank, n_ranks = a.group.n_ranks;
    for (int i = threadIdx.x * WIDTH; i < a.d; i += blockDim.x * WIDTH) {
        const float *part = self.part + (int64_t)m * a.d + i;
        floats<WIDTH> node[DECODE_LEAVES];
#pragma unroll
        for (int j = 0; j < DECODE_LEAVES / 2; j++) { /* of two ranks at least */
            if (j < a.n_nodes) {
                node[j] = load_floats<WIDTH>(part + j * a.node_stride);
            }
        }
        uint64_t word[WIDTH];
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            float tree[DECODE_LEAVES];
#pragma unroll
            for (int j = 0; j < DECODE_LEAVES; j++) {
                tree[j] = j < DECODE_LEAVES / 2 && j < a.n_nodes ? node[j].v[e] : 0.0F;
            }
            const float sum = leaf_tree(tree, a.n_nodes);
            kept[i + e] = sum;
            word[e] = word_of(__float_as_uint(sum), epoch);
        }
        for (int n = 1; n < n_ranks; n++) {
            uint64_t *to = box_words(a.group, (rank + n) % n_ranks, epoch, rank, m);
            if (WIDTH == 4) {
                store_peer_words(to + i / 2, word[0], word[1 % WIDTH]);
                store_peer_words(to + (a.d + i) / 2, word[2 % WIDTH], word[3 % WIDTH]);
            } else {
                store_peer_word(to + i, word[0]);
            }
        }
    }
}

template <int WIDTH> struct row_words { uint64_t v[WIDTH]; };

/* Elements [i, i + WIDTH) of a row of d. */
template <int WIDTH> DEVICE row_words<WIDTH> load_row_words(const uint64_t *from, int i, int d) {
    row_words<WIDTH> out;
    if (WIDTH == 4) {
        const ulonglong2 low = load_peer_words(from + i / 2), high = load_peer_words(from + (d + i) / 2);
        out.v[0] = low.x;
        out.v[1 % WIDTH] = low.y;
        out.v[2 % WIDTH] = high.x;
        out.v[3 % WIDTH] = high.y;
    } else {
        out.v[0] = load_peer_word(from + i);
    }
    return out;
}

/* The sum over ranks [first, first + RANKS_AT_ONCE), or all there are, of the elements at i. */
template <int WIDTH>
DEVICE floats<WIDTH> add_ranks(const exchange_rows_args &a, const exchange_member &self, int m, int i, int first,
                               uint32_t epoch, const float *kept, patience &waiting) {
    const int rank = self.self.rank, n = min(a.group.n_ranks - first, (int)RANKS_AT_ONCE);
    row_words<WIDTH> word[RANKS_AT_ONCE];
    int missing;
    do {
        missing = -1;
#pragma unroll
        for (int j = 0; j < RANKS_AT_ONCE; j++) {
            if (j < n && first + j != rank) {
                word[j] = load_row_words<WIDTH>(box_words(a.group, rank, epoch, first + j, m), i, a.d);
            }
        }
#pragma unroll
        for (int j = 0; j < RANKS_AT_ONCE; j++) {
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                if (j < n && first + j != rank && (uint32_t)(word[j].v[e] >> 32) != epoch) {
                    missing = first + j;
                }
            }
        }
    } while (missing >= 0 && waiting.again(missing));
    floats<WIDTH> sum;
#pragma unroll
    for (int e = 0; e < WIDTH; e++) {
        float tree[DECODE_LEAVES];
#pragma unroll
        for (int j = 0; j < DECODE_LEAVES; j++) {
            tree[j] = 0.0F;
            if (j < RANKS_AT_ONCE && j < n) {
                tree[j] = first + j == rank ? kept[i + e] : __uint_as_float((uint32_t)word[j % RANKS_AT_ONCE].v[e]);
            }
        }
        sum.v[e] = leaf_tree(tree, n);
    }
    return sum;
}

/* h of the row, kept in shared memory too. Returns this thread's sum of squares. */
template <int WIDTH>
DEVICE float receive_row(const exchange_rows_args &a, const exchange_member &self, int m, uint32_t epoch, float *kept) {
    patience waiting(a.group, self.self, EXCHANGE_STUCK_ROWS);
    float squares = 0.0F;
    bool bad = false;
    for (int i = threadIdx.x * WIDTH; i < a.d; i += blockDim.x * WIDTH) {
        const int64_t at = (int64_t)m * a.d + i;
        floats<WIDTH> h, bias;
        if (!a.init) {
            h = load_floats<WIDTH>(self.h + at);
        }
        if (self.bias != NULL) {
            bias = load_floats<WIDTH>(self.bias + i);
        }
        floats<WIDTH> sum = add_ranks<WIDTH>(a, self, m, i, 0, epoch, kept, waiting), upper;
        if (a.group.n_ranks > RANKS_AT_ONCE) {
            upper = add_ranks<WIDTH>(a, self, m, i, RANKS_AT_ONCE, epoch, kept, waiting);
        }
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            float value = a.init ? 0.0F : h.v[e];
            const float all = a.group.n_ranks > RANKS_AT_ONCE ? sum.v[e] + upper.v[e] : sum.v[e];
            value += self.bias != NULL ? all + bias.v[e] : all;
            bad = bad || !isfinite(value);
            h.v[e] = value;
            kept[i + e] = value;
            squares = fmaf(value, value, squares);
        }
        store_floats<WIDTH>(self.h + at, h);
    }
    if (bad) {
        note_fault(self.fault, m, self.self.op_index);
    }
    return squares;
}

/* norm_row's arguments. */
struct normed {
    const float *norm;
    void *x;
    int32_t d, dtype;
};

template <int WIDTH>
DEVICE void exchange_row(const exchange_rows_args &a, const exchange_member &self, int m, float *kept, float *room) {
    const uint32_t epoch = load_flag(self.self.epochs + m) + 1;
    send_row<WIDTH>(a, self, m, epoch, kept);
    const float squares = receive_row<WIDTH>(a, self, m, epoch, kept);
    const float all = block_sum(squares, room); /* a barrier too: everybody has read the epoch */
    if (threadIdx.x == 0) {
        self.self.epochs[m] = epoch;
    }
    const int to = a.out_rows ? output_of_row(self.self.step, m) : m;
    if (self.norm != NULL && to >= 0) {
        const float scale = 1.0F / sqrtf(all / (float)a.d + a.eps);
        norm_row<WIDTH>(normed{self.norm, self.x, a.d, a.dtype}, to, kept, scale, true);
    }
}

extern "C" __global__ void __launch_bounds__(1024) exchange_rows(const __grid_constant__ exchange_rows_args a) {
    extern __shared__ __align__(16) float row_kept[]; /* d, and a sum of each warp */
    const int m = blockIdx.x;
    const exchange_member &self = a.member[blockIdx.y];
    let_next_kernel_start();
    wait_for_earlier_kernels();
    if (m >= self.self.step->n_rows) {
        return;
    }
    if (a.d % 4 == 0) {
        exchange_row<4>(a, self, m, row_kept, row_kept + (a.d + 3) / 4 * 4);
    } else {
        exchange_row<1>(a, self, m, row_kept, row_kept + (a.d + 3) / 4 * 4);
    }
}

/* ---- Many rows ---- */

/* How many rows each rank owns; the last one may have fewer. */
DEVICE int owned_rows(const exchange_slice_args &a, const cuda_step *step) {
    return (step->n_rows + a.n_ranks - 1) / a.n_ranks;
}

/* This rank's sum of the elements at `at` of its nodes. */
template <int WIDTH>
DEVICE floats<WIDTH> sum_of_nodes(const exchange_slice_args &a, const exchange_slice &self, int64_t at) {
    floats<WIDTH> node[DECODE_LEAVES / 2], sum;
#pragma unroll
    for (int j = 0; j < DECODE_LEAVES / 2; j++) {
        if (j < a.n_nodes) {
            node[j] = load_floats<WIDTH>(self.part + at + j * a.node_stride);
        }
    }
#pragma unroll
    for (int e = 0; e < WIDTH; e++) {
        float tree[DECODE_LEAVES];
#pragma unroll
        for (int j = 0; j < DECODE_LEAVES; j++) {
            tree[j] = j < DECODE_LEAVES / 2 && j < a.n_nodes ? node[j % (DECODE_LEAVES / 2)].v[e] : 0.0F;
        }
        sum.v[e] = leaf_tree(tree, a.n_nodes);
    }
    return sum;
}

template <int WIDTH> DEVICE void store_sent(int dtype, void *inbox, int64_t at, const floats<WIDTH> &sum) {
    if (WIDTH == 4 && dtype == KERN_BF16) {
        static_cast<uint2 *>(inbox)[at / 4] =
            make_uint2(pair_of(dtype, sum.v[0], sum.v[1 % WIDTH]), pair_of(dtype, sum.v[2 % WIDTH], sum.v[3 % WIDTH]));
    } else if (WIDTH == 4) {
        store_floats<WIDTH>(static_cast<float *>(inbox) + at, sum);
    } else {
        store_as(dtype == KERN_BF16 ? KERN_BF16 : KERN_F32, inbox, at, sum.v[0]);
    }
}

template <int WIDTH> DEVICE floats<WIDTH> load_sent(int dtype, const void *inbox, int64_t at) {
    floats<WIDTH> sum;
    if (WIDTH == 4 && dtype == KERN_BF16) {
        const uint2 pairs = __ldcg(static_cast<const uint2 *>(inbox) + at / 4);
        const float2 low = widen<KERN_BF16>(pairs.x), high = widen<KERN_BF16>(pairs.y);
        sum.v[0] = low.x;
        sum.v[1 % WIDTH] = low.y;
        sum.v[2 % WIDTH] = high.x;
        sum.v[3 % WIDTH] = high.y;
    } else if (dtype == KERN_BF16) {
        sum.v[0] = load_as<KERN_BF16>(inbox, at);
    } else {
        sum = load_floats<WIDTH>(static_cast<const float *>(inbox) + at);
    }
    return sum;
}

template <int WIDTH>
DEVICE void push_row(const exchange_slice_args &a, const exchange_slice &self, int m, int owner, int64_t to) {
    for (int i = threadIdx.x * WIDTH; i < a.d; i += blockDim.x * WIDTH) {
        store_sent<WIDTH>(a.dtype, a.inbox[owner], to * a.d + i, sum_of_nodes<WIDTH>(a, self, (int64_t)m * a.d + i));
    }
}

extern "C" __global__ void __launch_bounds__(1024) exchange_push(const __grid_constant__ exchange_slice_args a) {
    const exchange_slice &self = a.member[blockIdx.y];
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int m = blockIdx.x, n = owned_rows(a, self.self.step), owner = m / max(n, 1);
    if (m >= self.self.step->n_rows || owner == self.self.rank) {
        return;
    }
    const int64_t to = (int64_t)self.self.rank * n + m % n;
    if (a.d % 4 == 0) {
        push_row<4>(a, self, m, owner, to);
    } else {
        push_row<1>(a, self, m, owner, to);
    }
}

/* The sum over ranks [first, first + RANKS_AT_ONCE), or all there are: what they sent, and this one's own. */
template <int WIDTH>
DEVICE floats<WIDTH> add_sent(const exchange_slice_args &a, const exchange_slice &self, int m, int n, int i,
                              int first) {
    const int rank = self.self.rank, count = min(a.n_ranks - first, (int)RANKS_AT_ONCE);
    floats<WIDTH> sent[RANKS_AT_ONCE], sum;
#pragma unroll
    for (int j = 0; j < RANKS_AT_ONCE; j++) {
        if (j < count && first + j != rank) {
            sent[j] = load_sent<WIDTH>(a.dtype, self.inbox, ((int64_t)(first + j) * n + m - rank * n) * a.d + i);
        } else if (j < count) {
            sent[j] = sum_of_nodes<WIDTH>(a, self, (int64_t)m * a.d + i);
        }
    }
#pragma unroll
    for (int e = 0; e < WIDTH; e++) {
        float tree[DECODE_LEAVES];
#pragma unroll
        for (int j = 0; j < DECODE_LEAVES; j++) {
            tree[j] = j < RANKS_AT_ONCE && j < count ? sent[j % RANKS_AT_ONCE].v[e] : 0.0F;
        }
        sum.v[e] = leaf_tree(tree, count);
    }
    return sum;
}

/* h of an owned row, kept in shared memory too: as receive_row, but what it waits for is there. */
template <int WIDTH>
DEVICE float take_row(const exchange_slice_args &a, const exchange_slice &self, int m, int n, float *kept) {
    float squares = 0.0F;
    bool bad = false;
    for (int i = threadIdx.x * WIDTH; i < a.d; i += blockDim.x * WIDTH) {
        const int64_t at = (int64_t)m * a.d + i;
        floats<WIDTH> h, bias;
        if (!a.init) {
            h = load_floats<WIDTH>(self.h + at);
        }
        if (self.bias != NULL) {
            bias = load_floats<WIDTH>(self.bias + i);
        }
        floats<WIDTH> sum = add_sent<WIDTH>(a, self, m, n, i, 0), upper;
        if (a.n_ranks > RANKS_AT_ONCE) {
            upper = add_sent<WIDTH>(a, self, m, n, i, RANKS_AT_ONCE);
        }
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            float value = a.init ? 0.0F : h.v[e];
            const float all = a.n_ranks > RANKS_AT_ONCE ? sum.v[e] + upper.v[e] : sum.v[e];
            value += self.bias != NULL ? all + bias.v[e] : all;
            bad = bad || !isfinite(value);
            h.v[e] = value;
            kept[i + e] = value;
            squares = fmaf(value, value, squares);
        }
        store_floats<WIDTH>(self.h + at, h);
    }
    if (bad) {
        note_fault(self.fault, m, self.self.op_index);
    }
    return squares;
}

template <int WIDTH>
DEVICE void take_and_norm(const exchange_slice_args &a, const exchange_slice &self, int m, int n, float *kept,
                          float *room) {
    const float all = block_sum(take_row<WIDTH>(a, self, m, n, kept), room);
    const int to = a.out_rows ? output_of_row(self.self.step, m) : m;
    if (self.norm == NULL || to < 0) {
        return;
    }
    const float scale = 1.0F / sqrtf(all / (float)a.d + a.eps);
    for (int r = 0; r < a.n_ranks; r++) {
        void *x = a.x[(self.self.rank + r) % a.n_ranks];
        norm_row<WIDTH>(normed{self.norm, x, a.d, a.dtype}, to, kept, scale, true);
    }
}

extern "C" __global__ void __launch_bounds__(1024) exchange_take(const __grid_constant__ exchange_slice_args a) {
    extern __shared__ __align__(16) float row_kept[];
    const exchange_slice &self = a.member[blockIdx.y];
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int n = owned_rows(a, self.self.step), m = self.self.rank * n + blockIdx.x;
    if ((int)blockIdx.x >= n || m >= self.self.step->n_rows) {
        return;
    }
    if (a.d % 4 == 0) {
        take_and_norm<4>(a, self, m, n, row_kept, row_kept + (a.d + 3) / 4 * 4);
    } else {
        take_and_norm<1>(a, self, m, n, row_kept, row_kept + (a.d + 3) / 4 * 4);
    }
}

/* ---- Meeting ---- */

extern "C" __global__ void __launch_bounds__(32) exchange_meet(const __grid_constant__ exchange_meet_args a) {
    const exchange_self &self = a.member[blockIdx.y];
    const int other = threadIdx.x;
    let_next_kernel_start();
    wait_for_earlier_kernels();
    uint32_t *epochs = self.epochs + EXCHANGE_ROWS + a.group.layout.n_out_max;
    const uint32_t epoch = load_flag(epochs) + 1;
    if (other < a.group.n_ranks && other != self.rank) {
        store_flag_behind_all(box_met(a.group, other) + self.rank, epoch);
        patience waiting(a.group, self, EXCHANGE_STUCK_MEET);
        while ((int32_t)(load_flag_before_all(box_met(a.group, self.rank) + other) - epoch) < 0 &&
               waiting.again(other)) {
        }
    }
    __syncwarp();
    if (other == 0) {
        *epochs = epoch;
    }
}

/* ---- Drawn tokens ---- */

/* This rank's offer for the row to all others: lane r sends to rank r. */
DEVICE void send_offer(const exchange_offers_args &a, const exchange_offers_member &self, int row) {
    const int lane = threadIdx.x % 32, rank = self.self.rank;
    const uint32_t epoch = load_flag(self.self.epochs + EXCHANGE_ROWS + row) + 1;
    offer mine = {-INFINITY, -1};
    for (int i = lane; i < self.n_slices; i += 32) {
        const decode_sample_part *part = self.part + (int64_t)row * self.n_slices + i;
        mine = better(mine, offer{__ldcg(&part->value), __ldcg(&part->id)});
    }
    mine = warp_best(mine);
    mine.id = mine.id < 0 ? -1 : self.vocab_first + mine.id;
    if (lane < a.group.n_ranks) {
        const uint64_t bits = (uint64_t)__double_as_longlong(mine.value);
        uint64_t *to = box_offer(a.group, lane, epoch, rank, row);
        store_peer_words(to, word_of((uint32_t)bits, epoch), word_of((uint32_t)(bits >> 32), epoch));
        store_peer_word(to + 2, word_of((uint32_t)mine.id, epoch));
    }
}

/* Lane r waits for rank r's. */
DEVICE void receive_offers(const exchange_offers_args &a, const exchange_offers_member &self, int row) {
    const int lane = threadIdx.x % 32;
    uint32_t *epochs = self.self.epochs + EXCHANGE_ROWS + row;
    const uint32_t epoch = load_flag(epochs) + 1;
    offer best = {-INFINITY, -1};
    if (lane < a.group.n_ranks) {
        const uint64_t *from = box_offer(a.group, self.self.rank, epoch, lane, row);
        patience waiting(a.group, self.self, EXCHANGE_STUCK_OFFERS);
        ulonglong2 value;
        uint64_t id;
        bool here;
        do {
            value = load_peer_words(from);
            id = load_peer_word(from + 2);
            here = (uint32_t)(value.x >> 32) == epoch && (uint32_t)(value.y >> 32) == epoch &&
                   (uint32_t)(id >> 32) == epoch;
        } while (!here && waiting.again(lane));
        best.value = __longlong_as_double((long long)(value.y << 32 | (uint32_t)value.x));
        best.id = here ? (int32_t)(uint32_t)id : -1;
    }
    best = warp_best(best);
    if (lane == 0) {
        *epochs = epoch;
        self.drawn[row] = best.id;
    }
}

extern "C" __global__ void __launch_bounds__(EXCHANGE_OFFER_THREADS)
    exchange_offers(const __grid_constant__ exchange_offers_args a) {
    const exchange_offers_member &self = a.member[blockIdx.y];
    const cuda_step *step = self.self.step;
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int n_warps = blockDim.x / 32, first = blockIdx.x * n_warps + threadIdx.x / 32, stride = gridDim.x * n_warps;
    const cuda_draw *draw = step_array<cuda_draw>(step, step->draw);
    for (int row = first; row < step->n_out; row += stride) {
        if (!draw[row].on_host) {
            send_offer(a, self, row);
        }
    }
    for (int row = first; row < step->n_out; row += stride) {
        if (!draw[row].on_host) {
            receive_offers(a, self, row);
        }
    }
}

/* ---- By a library ---- */

extern "C" __global__ void __launch_bounds__(1024) exchange_sum(const __grid_constant__ exchange_slice_args a) {
    const exchange_slice &self = a.member[blockIdx.y];
    const int m = blockIdx.x;
    wait_for_earlier_kernels();
    if (m >= self.self.step->n_rows) {
        return;
    }
    for (int i = threadIdx.x; i < a.d; i += blockDim.x) {
        const int64_t at = (int64_t)m * a.d + i;
        const_cast<float *>(self.part)[at] = sum_of_nodes<1>(a, self, at).v[0];
    }
}

extern "C" __global__ void __launch_bounds__(32) exchange_offer(const __grid_constant__ exchange_draw_args a) {
    wait_for_earlier_kernels();
    offer mine = {-INFINITY, -1};
    for (int i = threadIdx.x; i < a.n_slices && (int)blockIdx.x < a.step->n_out; i += 32) {
        const decode_sample_part *part = a.part + (int64_t)blockIdx.x * a.n_slices + i;
        mine = better(mine, offer{__ldcg(&part->value), __ldcg(&part->id)});
    }
    mine = warp_best(mine);
    if (threadIdx.x == 0) {
        a.mine[blockIdx.x] = exchange_offered{mine.value, mine.id < 0 ? -1 : a.vocab_first + mine.id, 0};
    }
}

extern "C" __global__ void __launch_bounds__(32) exchange_draw(const __grid_constant__ exchange_draw_args a) {
    const int row = blockIdx.x, lane = threadIdx.x;
    wait_for_earlier_kernels();
    if (row >= a.step->n_out || step_array<cuda_draw>(a.step, a.step->draw)[row].on_host) {
        return;
    }
    offer best = {-INFINITY, -1};
    if (lane < a.n_ranks) {
        const exchange_offered *from = a.all + (int64_t)lane * a.n_out + row;
        best = offer{__ldcg(&from->value), __ldcg(&from->id)};
    }
    best = warp_best(best);
    if (lane == 0) {
        a.drawn[row] = best.id;
    }
}
