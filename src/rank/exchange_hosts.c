/*
 * See exchange.h: ranks on several hosts. The ranks of a host are an aligned power of two of them, so their nodes sum up
 * to one node of the leaf tree, and only that goes to the other hosts: the tree over hosts goes on where the tree over a
 * host's ranks ends, and the bits are those of ranks on one host.
 *
 * Of bind->peer_part the exchange op then sees one for each host (bind->n_parts). One thread moves them.
 */
#include <stdlib.h>

#include "rank/exchange.h"

typedef struct exchange_hosts {
    ls_exchange base;
    ls_hosts *hosts;
    ls_barrier *barrier;
    atomic_uint turn; /* hands each thread its place in an exchange */
    unsigned n_threads;
    int n_local;
    const float *const *local; /* BUF_PART of the host's ranks */
    float *const *node;        /* of each host; ours is local[0] where there is only that */
} exchange_hosts;

static const int64_t SHARE_TIMEOUT_NS = (int64_t)300 * 1000000000;

/* This thread's share of our host's node. */
static void sum_up(const exchange_hosts *exchange, unsigned turn, int64_t first, int64_t count) {
    float *node = exchange->node[ls_hosts_self(exchange->hosts)] + first;
    const ls_team all = {(int)turn, (int)exchange->n_threads, NULL};
    int64_t from, to;
    team_range(&all, count, 16, &from, &to);
    for (int64_t i = from; i < to; i++) {
        float leaf[LS_MAX_RANKS];
        for (int r = 0; r < exchange->n_local; r++) {
            leaf[r] = exchange->local[r][first + i];
        }
        for (int n = exchange->n_local; n > 1; n /= 2) {
            for (int r = 0; r < n / 2; r++) {
                leaf[r] = leaf[2 * r] + leaf[2 * r + 1];
            }
        }
        node[i] = leaf[0];
    }
}

static ls_status swap(const exchange_hosts *exchange, int64_t first, int64_t count) {
    const int self = ls_hosts_self(exchange->hosts);
    host_transfer transfer[2 * HOSTS_MAX];
    int n = 0;
    for (int host = 0; host < hosts_count(exchange->hosts); host++) {
        if (host != self) {
            const size_t bytes = (size_t)count * sizeof(float);
            transfer[n++] =
                (host_transfer){.host = host, .sends = true, .data = exchange->node[self] + first, .bytes = bytes};
            transfer[n++] = (host_transfer){.host = host, .data = exchange->node[host] + first, .bytes = bytes};
        }
    }
    return hosts_transfer(exchange->hosts, transfer, n, SHARE_TIMEOUT_NS, NULL);
}

static bool hosts_share(ls_exchange *base, const ls_bind *bind, int slot, int n_rows) {
    exchange_hosts *exchange = (exchange_hosts *)base;
    const int64_t first = (int64_t)slot * bind->m_max * bind->d_model, count = (int64_t)n_rows * bind->d_model;
    if (!barrier_wait(exchange->barrier)) {
        return false;
    }
    const unsigned turn = atomic_fetch_add(&exchange->turn, 1) % exchange->n_threads;
    if (exchange->n_local > 1) {
        sum_up(exchange, turn, first, count);
        if (!barrier_wait(exchange->barrier)) {
            return false;
        }
    }
    if (turn == 0 && swap(exchange, first, count) != LS_OK) {
        barrier_abort(exchange->barrier);
        return false;
    }
    return barrier_wait(exchange->barrier);
}

static void hosts_abort(ls_exchange *base) {
    barrier_abort(((exchange_hosts *)base)->barrier);
}

static void hosts_destroy(ls_exchange *base) {
    free(base);
}

ls_status exchange_hosts_create(ls_exchange **out, ls_hosts *hosts, rank_group *group, const float *const *local,
                                float *const *node, ls_error *err) {
    exchange_hosts *exchange = malloc(sizeof *exchange);
    if (exchange == NULL) {
        return error_set(err, LS_ENOMEM, "exchange: out of memory");
    }
    *exchange = (exchange_hosts){.base = {"hosts", hosts_share, hosts_abort, hosts_destroy},
                                 .hosts = hosts,
                                 .barrier = rank_group_barrier(group),
                                 .n_threads = (unsigned)(rank_group_size(group) * rank_group_threads(group)),
                                 .n_local = rank_group_size(group),
                                 .local = local,
                                 .node = node};
    *out = &exchange->base;
    return LS_OK;
}
