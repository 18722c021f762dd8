/* See plan_cache.h. */
#include "engine/plan_cache.h"

#include "base/clock.h"

void plan_cache_init(plan_cache *cache, const ls_op_table *table, const ls_program *const *program) {
    *cache = (plan_cache){.table = table, .program = program};
}

ls_status plan_get_or_build(plan_cache *cache, plan_key key, const ls_plan **out, ls_error *err) {
    for (int i = 0; i < cache->n; i++) {
        if (cache->plan[i].key.kind == key.kind && cache->plan[i].key.m_bucket == key.m_bucket) {
            *out = &cache->plan[i];
            return LS_OK;
        }
    }
    if (cache->n == PLAN_CACHE_SIZE) {
        return error_set(err, LS_EINTERNAL, "plan cache: more than %d plans", PLAN_CACHE_SIZE);
    }
    cache->plan[cache->n] = (ls_plan){key, cache->table, cache->program};
    *out = &cache->plan[cache->n++];
    return LS_OK;
}

bool plan_run(const ls_plan *plan, const ls_bind *bind, const ls_step *step, ls_exchange *exchange, const ls_team *team,
              int64_t *exchange_ns, int64_t *op_ns, trace_row *trace) {
    const ls_program *program = plan->program[bind->group.rank];
    for (int i = 0; i < program->n_ops; i++) {
        const ls_op *op = &program->op[i];
        bool adds_time = op->kind == OP_EXCHANGE && exchange_ns != NULL;
        int64_t start = trace != NULL || adds_time || op_ns != NULL ? clock_ns() : 0;
        if (op->kind == OP_EXCHANGE && !exchange->share(exchange, bind, op->exchange.slot, step->n_rows)) {
            return false;
        }
        plan->table->fn[op->kind](op, i, bind, step, team);
        if (trace != NULL) {
            trace_add(trace, i, step->n_rows, start, clock_ns());
        }
        if (!team_wait(team)) {
            return false;
        }
        if (adds_time) {
            *exchange_ns += clock_ns() - start;
        }
        if (op_ns != NULL) {
            op_ns[i] += clock_ns() - start;
        }
    }
    return true;
}
