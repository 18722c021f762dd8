/*
 * The arithmetic of sampling that ranks and the merging sampler share: the (max, sum of exp) tree, Gumbel noise, edited
 * logits, and the order of candidates with a heap of them.
 * Definitions in ops.h, at op_sample.
 */
#ifndef LS_BACKEND_SAMPLE_MATH_H
#define LS_BACKEND_SAMPLE_MATH_H

#include <string.h>

#include "backend/ops.h"
#include "base/numeric.h"

typedef struct softmax_node {
    float max, sum; /* sum of exp(z - max); sum 0: no element */
} softmax_node;

static inline softmax_node softmax_merge(softmax_node a, softmax_node b) {
    if (a.sum == 0.0F) {
        return b;
    }
    if (b.sum == 0.0F) {
        return a;
    }
    float max = a.max > b.max ? a.max : b.max;
    return (softmax_node){max, a.sum * ls_exp(a.max - max) + b.sum * ls_exp(b.max - max)};
}

/* Up the fixed tree; node[] is overwritten. count is a power of two. */
static inline softmax_node softmax_tree(softmax_node *node, int count) {
    for (; count > 1; count /= 2) {
        for (int i = 0; i < count / 2; i++) {
            node[i] = softmax_merge(node[2 * i], node[2 * i + 1]);
        }
    }
    return node[0];
}

/* First word of Philox4x32-10 with counter (c0, c1, c2, 0). */
static inline uint32_t philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32), c3 = 0;
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53 * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57 * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return c0;
}

static inline double gumbel_of(uint32_t x) {
    double u = ((double)x + 0.5) * 0x1p-32;
    return -log(-log(u));
}

static inline double gumbel(const ls_sample_params *how, int32_t id) {
    return gumbel_of(philox(how->seed, (uint32_t)id, (uint32_t)how->position, how->choice));
}

/* At least gumbel_of(x), without a logarithm: -log u >= 1 - u, and 1 - u >= 2^-(1 + leading ones of x). */
static inline double gumbel_bound(uint32_t x) {
    int ones = ~x != 0 ? __builtin_clz(~x) : 32;
    return (1 + ones) * 0.69314718056;
}

#define GUMBEL_MAX 22.88 /* of any x */

/* The order of candidates: better first. */
static inline bool candidate_better(ls_candidate a, ls_candidate b) {
    return a.z > b.z || (a.z == b.z && a.id < b.id);
}

/* Restores a binary heap of n below i: the best candidate on top, or the worst. */
static inline void candidate_sift(ls_candidate *heap, int n, int i, bool best_on_top) {
    ls_candidate c = heap[i];
    for (int child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && candidate_better(heap[child + 1], heap[child]) == best_on_top) {
            child++;
        }
        if (candidate_better(heap[child], c) != best_on_top) {
            break;
        }
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = c;
}

static inline void candidate_heapify(ls_candidate *heap, int n, bool best_on_top) {
    for (int i = n / 2 - 1; i >= 0; i--) {
        candidate_sift(heap, n, i, best_on_top);
    }
}

static inline bool sample_is_filtered(const ls_sample_params *how) {
    return how->temperature != 0.0F && (how->top_k > 0 || how->top_p < 1.0F || how->min_p > 0.0F);
}

static inline float logit_edited(float logit, const ls_logit_edit *edit) {
    float x = logit + edit->bias;
    x = x < 0.0F ? x * edit->penalty : x / edit->penalty;
    return x + edit->offset;
}

/* out[i] = the edited logit of id first + i, i < count; logits likewise. */
static inline void edit_logits(const ls_sample_params *how, const float *logits, int32_t first, int32_t count,
                               float *out) {
    memcpy(out, logits, (size_t)count * sizeof *out);
    for (int32_t i = 0; i < how->n_edits; i++) {
        int32_t at = how->edit[i].id - first;
        if (at >= 0 && at < count) {
            out[at] = logit_edited(logits[at], &how->edit[i]);
        }
    }
    if (how->allowed == NULL) {
        return;
    }
    int32_t next = 0;
    for (int32_t i = 0; i < how->n_allowed; i++) {
        int32_t at = how->allowed[i] - first;
        if (at >= next && at < count) {
            for (; next < at; next++) {
                out[next] = -INFINITY;
            }
            next = at + 1;
        }
    }
    for (; next < count; next++) {
        out[next] = -INFINITY;
    }
}

#endif
