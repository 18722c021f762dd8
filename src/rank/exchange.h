/*
 * The exchange: how each rank's partial sums become visible to all. The sum itself is the op `exchange` (ops.h).
 *
 * Protocol, the same for every transport:
 *   1. A rank writes its node of the leaf tree into slot s of its own BUF_PART.
 *   2. All its threads call share() for slot s. When it returns true, bind->peer_part[i] + slot s, i < bind->n_parts,
 *      holds every rank's node, or where ranks are on several hosts that of each host's ranks together.
 *   3. The rank may write slot s again after its next share() (of the other slot) returned: by then all have read it.
 * Slots alternate from exchange to exchange; a rank is never more than one exchange ahead of another.
 */
#ifndef LS_RANK_EXCHANGE_H
#define LS_RANK_EXCHANGE_H

#include "backend/ops.h"
#include "rank/hosts.h"
#include "rank/rank.h"

typedef struct ls_exchange ls_exchange;

struct ls_exchange {
    const char *name;
    /* Called by every thread of the rank. False: another rank gave up; leave the step at once. */
    bool (*share)(ls_exchange *exchange, const ls_bind *bind, int slot, int n_rows);
    /* Makes every share(), present and future, return false on all ranks. */
    void (*abort)(ls_exchange *exchange);
    void (*destroy)(ls_exchange *exchange);
};

/* Ranks that are threads of one process and read each other's memory. `group` outlives the exchange. */
ls_status exchange_threads_create(ls_exchange **out, rank_group *group, ls_error *err);
/* Ranks on several hosts, those of `group` on this one: local[rank_group_size] is their BUF_PART, node[hosts_count] where
 * each host's node of the leaf tree will be (ours is local[0] if there is only that). All of it outlives the exchange. */
ls_status exchange_hosts_create(ls_exchange **out, ls_hosts *hosts, rank_group *group, const float *const *local,
                                float *const *node, ls_error *err);

#endif
