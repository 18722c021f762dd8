/*
 * Shard rules: which part of a weight a rank holds. The rule stands beside each weight in the program; loaders and
 * kernels know no other. Megatron's split (Shoeybi et al. 2019): heads and FFN columns first, then rows.
 */
#ifndef LS_RANK_SHARD_H
#define LS_RANK_SHARD_H

#include "backend/ops.h"

typedef enum shard_rule {
    SHARD_REPLICATED, /* all of it */
    SHARD_COLUMN,     /* outputs (rows of the stored matrix), at leaf borders */
    SHARD_ROW,        /* inputs (columns of the stored matrix), at leaf borders; an exchange follows */
    SHARD_KV_HEADS,   /* outputs by KV head; each head on R / K ranks when R > K */
    SHARD_VOCAB       /* rows by token id, at leaf borders of V */
} shard_rule;

typedef struct shard_range {
    int64_t first, count;
} shard_range;

/* Leaves [leaf_first, leaf_first + leaf_count) of every split dimension belong to the rank. */
static inline int shard_leaf_count(ls_group group) {
    return LS_LEAVES / group.size;
}
static inline int shard_leaf_first(ls_group group) {
    return group.rank * shard_leaf_count(group);
}

shard_range shard_leaves(int64_t n, ls_group group);        /* n cut at leaf borders */
shard_range shard_kv_heads(int n_kv_heads, ls_group group); /* K heads, replicated when R > K */

/* Refuses by name: R other than 1, 2, 4, 8; H or K that do not split; says what would work. */
ls_status shard_check(int n_ranks, int n_heads, int n_kv_heads, ls_error *err);

#endif
