/* See exchange.h: ranks share an address space, so making parts visible is a barrier of all threads. */
#include <stdlib.h>

#include "rank/exchange.h"

typedef struct exchange_threads {
    ls_exchange base;
    ls_barrier *barrier;
} exchange_threads;

static bool threads_share(ls_exchange *exchange, const ls_bind *bind, int slot, int n_rows) {
    (void)bind, (void)slot, (void)n_rows;
    return barrier_wait(((exchange_threads *)exchange)->barrier);
}

static void threads_abort(ls_exchange *exchange) {
    barrier_abort(((exchange_threads *)exchange)->barrier);
}

static void threads_destroy(ls_exchange *exchange) {
    free(exchange);
}

ls_status exchange_threads_create(ls_exchange **out, rank_group *group, ls_error *err) {
    exchange_threads *exchange = malloc(sizeof *exchange);
    if (exchange == NULL) {
        return error_set(err, LS_ENOMEM, "exchange: out of memory");
    }
    *exchange = (exchange_threads){.base = {"threads", threads_share, threads_abort, threads_destroy},
                                   .barrier = rank_group_barrier(group)};
    *out = &exchange->base;
    return LS_OK;
}
