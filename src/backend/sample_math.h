/*
 * The arithmetic of sampling that ranks and the merging sampler share: the (max, sum of exp) tree and Gumbel noise.
 * Definitions in ops.h, at op_sample.
 */
#ifndef LS_BACKEND_SAMPLE_MATH_H
#define LS_BACKEND_SAMPLE_MATH_H

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

/* First word of Philox4x32-10 with counter (c0, c1, 0, 0). */
static inline uint32_t philox(uint64_t key, uint32_t c0, uint32_t c1) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32), c2 = 0, c3 = 0;
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

static inline double gumbel(uint64_t seed, int32_t position, int32_t id) {
    double u = ((double)philox(seed, (uint32_t)id, (uint32_t)position) + 0.5) * 0x1p-32;
    return -log(-log(u));
}

#endif
