/* See shard.h. */
#include "rank/shard.h"

#include <stdio.h>

shard_range shard_leaves(int64_t n, ls_group group) {
    int leaf = shard_leaf_first(group);
    int64_t first = leaf_border(n, leaf);
    return (shard_range){first, leaf_border(n, leaf + shard_leaf_count(group)) - first};
}

shard_range shard_kv_heads(int n_kv_heads, ls_group group) {
    if (group.size <= n_kv_heads) {
        int count = n_kv_heads / group.size;
        return (shard_range){(int64_t)group.rank * count, count};
    }
    return (shard_range){(int64_t)group.rank * n_kv_heads / group.size, 1};
}

static bool heads_split(int n_ranks, int n_heads, int n_kv_heads) {
    return n_heads % n_ranks == 0 && (n_kv_heads % n_ranks == 0 || n_ranks % n_kv_heads == 0);
}

ls_status shard_check(int n_ranks, int n_heads, int n_kv_heads, ls_error *err) {
    if (n_ranks != 1 && n_ranks != 2 && n_ranks != 4 && n_ranks != 8) {
        return error_set(err, LS_EINVAL, "--tensor-parallel-size %d: must be 1, 2, 4 or 8", n_ranks);
    }
    if (heads_split(n_ranks, n_heads, n_kv_heads)) {
        return LS_OK;
    }
    char works[32] = "";
    int used = 0;
    for (int r = 1; r <= LS_MAX_RANKS; r *= 2) {
        if (heads_split(r, n_heads, n_kv_heads)) {
            used += snprintf(works + used, sizeof works - (size_t)used, "%s%d", used ? ", " : "", r);
        }
    }
    return error_set(err, LS_EUNSUPPORTED,
                     "--tensor-parallel-size %d: the model's %d query heads and %d KV heads do not split so; it runs "
                     "with %s",
                     n_ranks, n_heads, n_kv_heads, works);
}
