/* The arguments of kern/pair.cu. */
#ifndef LS_BACKEND_CUDA_PAIR_ARGS_H
#define LS_BACKEND_CUDA_PAIR_ARGS_H

#include <stdint.h>

typedef struct pair_pattern_args {
    uint32_t *data;
    int64_t n; /* words */
    uint32_t seed;
    unsigned long long *first_bad; /* pair_check */
} pair_pattern_args;

typedef struct pair_ping_args {
    uint32_t *here, *there; /* this GPU's word and the other's, both 0 */
    uint32_t *lost;
    uint32_t n;
    int32_t begins;
    uint64_t patience_ns; /* for all of it */
} pair_ping_args;

#endif
