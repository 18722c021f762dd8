/*
 * A block of the persistent decode kernel, as its eight computing warps see it: where it is, words, and the residual stream.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_BLOCK_CUH
#define LS_BACKEND_CUDA_PERSIST_BLOCK_CUH

#include "backend/cuda/kern/persist.cuh"

DEVICE void meet() {
    meet_at(1, PERSIST_THREADS);
}

struct block_state {
    const persist_args &a;
    ring r;
    patience p;
    uint32_t base; /* epoch of the table's first op */
    uint32_t tile; /* of matmuls, or as many as warps take at a time: so far */
    int warp, lane, thread, n_rows;

    DEVICE_MEMBER explicit block_state(const persist_args &args) : a(args), r(args), p(args) {
        thread = threadIdx.x;
        warp = thread / 32;
        lane = thread % 32;
        base = *a.launches * (uint32_t)a.n_ops + 1;
        tile = 0;
        n_rows = a.step->n_rows;
    }

    /* The block's elements of a row of the residual stream: from this one on; and the first that is the next block's. */
    DEVICE_MEMBER int first_own() const {
        return (int)((uint32_t)a.d * blockIdx.x / gridDim.x);
    }
    DEVICE_MEMBER int end_own() const {
        return (int)((uint32_t)a.d * (blockIdx.x + 1) / gridDim.x);
    }
    /* What has become of them, [M][own_rows]. */
    DEVICE_MEMBER float *h() const {
        return reinterpret_cast<float *>(shared_room() + a.at_h);
    }
    /* [16] of this block, 0: none */
    DEVICE_MEMBER int32_t *fault() const {
        return reinterpret_cast<int32_t *>(shared_room() + a.at_fault);
    }

    /* Epochs of what this op writes; of what it reads. */
    DEVICE_MEMBER uint32_t epoch() const {
        return base + (uint32_t)p.line;
    }
    DEVICE_MEMBER uint32_t epoch_of_input(const persist_op &op) const {
        return base + (uint32_t)op.in_op;
    }

    DEVICE_MEMBER void put_float(uint64_t *to, float value) const {
        store_word(to, word_of_float(value, epoch()));
    }

    /* Ops come in order, so the first one stays. */
    DEVICE_MEMBER void note(int row, int op_index) {
        atomicCAS(&fault()[row], 0, op_index + 1);
    }

    /* Rows of x as an op multiplies them. */
    DEVICE_MEMBER int rows_of(const persist_op &op) const {
        return op.kind == PERSIST_HEAD || op.of_outputs ? watch(a)->n_out : n_rows;
    }

    /* ---- The residual stream ---- */

    DEVICE_MEMBER void add_to_h(const persist_op &op, int m, int i, float sum) {
        float *mine = &h()[m * a.own_rows + i - first_own()];
        float value = op.kind == PERSIST_EMBED ? 0.0F : *mine;
        value += op.bias != NULL ? sum + op.bias[i] : sum;
        *mine = value;
        if (!isfinite(value)) {
            note(m, op.index);
        }
        put_float(op.out + (int64_t)m * op.out_stride + i, value);
    }

    /* Nodes of the leaf tree of an element of h. */
    DEVICE_MEMBER int nodes_of(const persist_op &op) const {
        return a.n_ranks * op.n_parts;
    }
    DEVICE_MEMBER int64_t node_at(const persist_op &op, int node, int m, int i) const {
        return ((int64_t)(op.slot * DECODE_LEAVES + node) * a.m_max + m) * a.d + i;
    }

    /* One of them, which this block made. If it is all, the element is its own. */
    DEVICE_MEMBER void put_node(const persist_op &op, int part, int m, int i, float value) {
        if (nodes_of(op) == 1) {
            add_to_h(op, m, i, value);
            return;
        }
        const int64_t at = node_at(op, a.rank * op.n_parts + part, m, i);
        const uint64_t word = word_of_float(value, epoch());
#pragma unroll 1
        for (int n = 1; n <= a.n_ranks; n++) {
            const int to = (a.rank + n) & (a.n_ranks - 1); /* each rank begins elsewhere, and ends with itself */
            if (a.n_ranks > 1) {
                store_peer_word(a.node[to] + at, word);
            } else {
                store_word(a.node[to] + at, word);
            }
        }
    }

    /* The block's own elements, where others made nodes of them. */
    DEVICE_MEMBER void add_nodes(const persist_op &op) {
        const int n = nodes_of(op), first = first_own(), n_own = end_own() - first;
#pragma unroll 1
        for (int i = thread; i < n_rows * n_own; i += PERSIST_THREADS) {
            const int m = i / n_own, e = first + i % n_own;
            int at[DECODE_LEAVES];
            uint32_t word[DECODE_LEAVES];
            float node[DECODE_LEAVES];
#pragma unroll
            for (int j = 0; j < DECODE_LEAVES; j++) {
                at[j] = j < n ? (int)(node_at(op, j, m, e) - node_at(op, 0, m, e)) : -1;
            }
            const uint64_t *from = a.node[a.rank] + node_at(op, 0, m, e);
            int missing;
            if (!take_words<DECODE_LEAVES>(from, at, epoch(), word, PERSIST_WAIT_NODES, &p, &missing) &&
                a.n_ranks > 1) {
                p.name_missing(missing, n, PERSIST_WAIT_NODES, op.index, op.n_parts);
            }
#pragma unroll
            for (int j = 0; j < DECODE_LEAVES; j++) {
                node[j] = __uint_as_float(word[j]);
            }
            add_to_h(op, m, e, leaf_tree(node, n));
        }
    }

    DEVICE_MEMBER void embed(const persist_op &op) {
        const int first = first_own(), n_own = end_own() - first;
#pragma unroll 1
        for (int i = thread; i < n_rows * n_own; i += PERSIST_THREADS) {
            const int m = i / n_own, e = first + i % n_own;
            put_node(op, 0, m, e, embed_row(a.embed, m).value(a.embed, e));
        }
    }
};

#endif
