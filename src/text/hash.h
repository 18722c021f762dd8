/*
 * The hash of the tokenizer's two tables, seeded for each table: the keys come from an untrusted file, which must not
 * be able to pick them so that all collide. The seed decides nothing but where a key lies.
 */
#ifndef LS_TEXT_HASH_H
#define LS_TEXT_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

__extension__ typedef unsigned __int128 hash_u128;

static inline uint64_t hash_seed(void) {
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed) {
        seed = (uint64_t)clock() ^ (uint64_t)time(NULL)
                                       << 20; /* before the kernel has entropy: better than a constant */
    }
    return seed;
}

/* Both halves of a 64 x 64 bit product, folded. */
static inline uint64_t hash_mix(uint64_t a, uint64_t b) {
    hash_u128 product = (hash_u128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t hash_u64(uint64_t key, uint64_t seed) {
    return hash_mix(key ^ seed, 0x9E3779B97F4A7C15u ^ (seed >> 1));
}

static inline uint64_t hash_bytes(const char *bytes, size_t n, uint64_t seed) {
    uint64_t h = hash_u64(n, seed);
    uint64_t word;
    for (; n >= sizeof word; bytes += sizeof word, n -= sizeof word) {
        memcpy(&word, bytes, sizeof word);
        h = hash_u64(h ^ word, seed);
    }
    word = 0;
    memcpy(&word, bytes, n);
    return hash_u64(h ^ word, seed);
}

#endif
