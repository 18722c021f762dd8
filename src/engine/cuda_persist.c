/*
 * Decode steps as one launch each: the persistent kernel's plans (backend/cuda/persist.h) in an engine. See cuda_engine.h.
 *
 * A plan for each bucket of rows, as there is a graph for each: fewer rows leave the ring more room. Plans lie behind one
 * another in the rank's arena. The record of a wait in vain is pinned memory of the host's, which every plan shares: no
 * copy brings it back. The kernel only writes it: a thousand warps that wait must not look across PCIe.
 *
 * Before the engine says that it is ready, a step is tried: where that does not end well, graphs run all steps, unless
 * params.plan insists.
 *
 * One rank only: the kernel's words between ranks are not those of kern/exchange_args.h.
 */
#include <stdlib.h>

#include "engine/cuda_engine.h"

enum { PLANS = 5 }; /* of 1, 2, 4, 8 and 16 rows */

struct cuda_persist {
    int n_plans;
    persist_plan plan[PLANS];
    CUfunction fn[PLANS];
};

static const size_t room_align = 256;

/* ---- Whether ---- */

static bool is_asked_for(const ls_engine_params *params, const char *plan) {
    return strcmp(params->plan != NULL ? params->plan : "auto", plan) == 0;
}

/* This alone decides what auto is: graphs, until the persistent kernel has been measured to be the faster one on the chip and model
 * at hand. */
static bool is_wanted(const ls_engine_params *params) {
    return is_asked_for(params, "persistent");
}

ls_status cuda_persist_params_check(const ls_engine_params *params, int n_ranks, ls_error *err) {
    if (!is_asked_for(params, "auto") && !is_asked_for(params, "graph") && !is_asked_for(params, "persistent")) {
        return error_set(err, LS_EINVAL, "--plan %s: must be auto, graph or persistent", params->plan);
    }
    if (is_asked_for(params, "persistent") && n_ranks > 1) {
        return error_set(err, LS_EUNSUPPORTED,
                         "--plan persistent: runs on one rank, and there are %d; leave it at auto, or use "
                         "--tensor-parallel-size 1",
                         n_ranks);
    }
    if (is_asked_for(params, "persistent") && params->kernels != NULL && strcmp(params->kernels, "generic") == 0) {
        return error_set(err, LS_EINVAL, "--plan persistent with --kernels generic: those run op by op");
    }
    return LS_OK;
}

/* ---- Plans ---- */

static size_t room_of(const persist_plan *plan) {
    return (plan->room_bytes + room_align - 1) / room_align * room_align;
}

/* All plans for a rank whose facts and bind are known, from address `room` on. */
static ls_status build_plans(cuda_persist *out, const cuda_rank *rank, const engine_config *config,
                             const ls_program *program, CUdeviceptr room, ls_error *err) {
    out->n_plans = 0;
    for (int rows = 1; rows <= CUDA_MAX_DECODE; rows *= 2) {
        persist_plan *plan = &out->plan[out->n_plans++];
        TRY(persist_plan_build(
            plan, rank, program->op, program->n_ops,
            &(persist_options){.rows = rows, .max_len = config->max_len, .blocks = rank->facts.sm_count}, room, err));
        room += room_of(plan);
        if (rows >= config->max_seqs) {
            break;
        }
    }
    return LS_OK;
}

ls_status cuda_persist_size(engine_config *config, const cuda_facts *facts, const ls_bind *counted,
                            const ls_program *program, const ls_engine_params *params, ls_error *err) {
    const bool generic = params->kernels != NULL && strcmp(params->kernels, "generic") == 0;
    config->persist_bytes = 0;
    config->must_persist = is_asked_for(params, "persistent");
    if (!is_wanted(params) || generic || config->n_ranks > 1) {
        return LS_OK;
    }
    cuda_persist *plans = calloc(1, sizeof *plans);
    if (plans == NULL) {
        return error_set(err, LS_ENOMEM, "engine: out of memory");
    }
    cuda_rank rank = {.facts = *facts, .bind = *counted};
    ls_error why = {0};
    ls_status st = build_plans(plans, &rank, config, program, 0, &why);
    for (int i = 0; i < plans->n_plans && st == LS_OK; i++) {
        config->persist_bytes += room_of(&plans->plan[i]);
    }
    free(plans);
    return st == LS_OK || (st == LS_EUNSUPPORTED && !config->must_persist)
               ? LS_OK
               : error_set(err, st, "--plan persistent: %s", why.text);
}

ls_status cuda_persist_prepare(cuda_engine *cuda, ls_error *err) {
    ls_engine *engine = cuda->engine;
    cuda_rank *rank = &cuda->rank;
    cuda_persist *plans = calloc(1, sizeof *plans);
    if (plans == NULL) {
        return error_set(err, LS_ENOMEM, "engine: out of memory");
    }
    cuda->persist = plans;
    TRY(build_plans(plans, rank, &engine->config, engine->program[0], (CUdeviceptr)(uintptr_t)engine->rank[0].persist,
                    err));
    for (int i = 0; i < plans->n_plans; i++) {
        persist_plan *plan = &plans->plan[i];
        TRY(cuda_rank_kernel(rank, plan->kernel, &plans->fn[i], err));
        TRY(persist_prepare(rank, plan, plans->fn[i], err));
        plan->args.told = engine->host.persist_stuck;
    }
    return LS_OK;
}

/* ---- Steps ---- */

bool cuda_persist_takes(const cuda_engine *cuda, int n_rows) {
    const cuda_persist *plans = cuda->persist;
    return plans != NULL && cuda->profile == NULL && n_rows <= plans->plan[plans->n_plans - 1].rows;
}

ls_status cuda_persist_launch(cuda_engine *cuda, int n_rows, ls_error *err) {
    const cuda_persist *plans = cuda->persist;
    int i = 0;
    while (plans->plan[i].rows < n_rows) {
        i++;
    }
    return persist_launch(&cuda->rank, &plans->plan[i], plans->fn[i], err);
}

ls_status cuda_persist_check(const ls_engine *engine, ls_error *err) {
    const cuda_engine *cuda = engine_cuda(engine);
    return cuda->persist == NULL ? LS_OK
                                 : persist_check(&cuda->rank, engine->program[0]->op, engine->host.persist_stuck, err);
}

void cuda_persist_close(cuda_engine *cuda) {
    free(cuda->persist);
    cuda->persist = NULL;
}
