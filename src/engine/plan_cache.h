/*
 * Plans: a program made ready on a back end for one bucket of steps.
 *
 * On the CPU a plan is a walk over the op list with the functions looked up, and serves every step. CUDA adds kinds (the
 * op table of a persistent kernel, captured graphs, plain launches) and one plan for each bucket of rows; steps ask by key
 * and do not care.
 */
#ifndef LS_ENGINE_PLAN_CACHE_H
#define LS_ENGINE_PLAN_CACHE_H

#include "engine/trace.h"
#include "model/program.h"
#include "rank/exchange.h"

typedef enum plan_kind { PLAN_WALK } plan_kind;

typedef struct plan_key {
    plan_kind kind;
    int m_bucket; /* most rows it serves; 0: any number */
} plan_key;

typedef struct ls_plan {
    plan_key key;
    const ls_op_table *table;
    const ls_program *const *program; /* [R], borrowed */
} ls_plan;

enum { PLAN_CACHE_SIZE = 16 };

typedef struct plan_cache {
    const ls_op_table *table;
    const ls_program *const *program;
    int n;
    ls_plan plan[PLAN_CACHE_SIZE];
} plan_cache;

void plan_cache_init(plan_cache *cache, const ls_op_table *table, const ls_program *const *program);
ls_status plan_get_or_build(plan_cache *cache, plan_key key, const ls_plan **out, ls_error *err);

/* Runs the plan's ops for one rank; every thread of the rank calls it. Adds the time of exchanges to *exchange_ns
 * and that of op i to op_ns[i], both with waiting for the team, and every op to the thread's row of the trace, unless these
 * are NULL. False if the step was aborted. */
bool plan_run(const ls_plan *plan, const ls_bind *bind, const ls_step *step, ls_exchange *exchange, const ls_team *team,
              int64_t *exchange_ns, int64_t *op_ns, trace_row *trace);

#endif
