// What an attention block of prefill works on: some (row, query head) pairs of one sequence and one KV head, rows outer, so
// that the heads of a group share each K and V that is loaded; a decode row's pairs are a tile of their own.
#pragma once

#include "backend/cuda/kern/prefill.cuh"

namespace prefill {

struct attn_tile {
    const int32_t *page;
    int first_row, n_past;
    int group;    // query heads of a KV head
    int first, n; // pairs [first, first + n) of the sequence
    int pos_last; // the highest position of its rows
    int lo;       // the lowest position that any of its rows attends to
    int window;

    __device__ int row(int pair) const {
        return (first + pair) / group;
    }
    __device__ int head(int pair) const { // of the group
        return (first + pair) % group;
    }
    __device__ int pos(int pair) const {
        return n_past + row(pair);
    }
    __device__ bool attends(int pos, int key) const {
        return key <= pos && (window == 0 || key > pos - window);
    }
};

__device__ inline int tiles_of(const cuda_seq *seq, int group, int pairs) {
    return (seq->n_rows * group + pairs - 1) / pairs;
}

// Tile i of the sequence.
__device__ inline attn_tile tile_of(const cuda_step *step, const cuda_seq *seq, int i, int group, int pairs,
                                    int window) {
    attn_tile t;
    t.page = of_step<int32_t>(step, step->page) + seq->page_first;
    t.first_row = seq->first_row;
    t.n_past = seq->n_past;
    t.group = group;
    t.first = i * pairs;
    t.n = min(pairs, seq->n_rows * group - t.first);
    t.pos_last = t.pos(t.n - 1);
    t.window = window;
    t.lo = window > 0 ? max(0, t.pos(0) - window + 1) : 0;
    return t;
}

} // namespace prefill
