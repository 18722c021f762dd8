/*
 * Decode steps as one launch each: the persistent kernel's plans (backend/cuda/persist.h) in an engine. See cuda_engine.h.
 *
 * A plan for each bucket of rows, as there is a graph for each: fewer rows leave the ring more room. Plans lie behind one
 * another in the rank's arena. The record of a wait in vain is pinned memory of the host's, one for each rank, which every plan shares: no
 * copy brings it back. The kernel only writes it: a thousand warps that wait must not look across PCIe.
 *
 * Before the engine says that it is ready, a step is tried: where that does not end well, graphs run all steps, unless
 * params.plan insists.
 *
 * Several ranks store into each other's plans: words of their own, not those of kern/exchange_args.h, so that nothing of a step by graphs
 * is in the way of a step by this kernel. A GPU of several ranks runs them in one launch, each on its share of the SMs; all ranks
 * have as many blocks. Hence GPUs must reach each other's memory: the exchanges of host and nccl are not inside a kernel.
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
    if (is_asked_for(params, "persistent") && n_ranks > 1 && params->exchange != NULL &&
        (strcmp(params->exchange, "host") == 0 || strcmp(params->exchange, "nccl") == 0)) {
        return error_set(
            err, LS_EINVAL,
            "--plan persistent with --exchange %s: its ranks exchange inside of the kernel, by storing to each "
            "other's memory; leave --exchange at auto, or use --plan graph",
            params->exchange);
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

/* All plans for a rank whose facts and bind are known, from address `room` on; `here` ranks are on its GPU. */
static ls_status build_plans(cuda_persist *out, const cuda_rank *rank, int here, const engine_config *config,
                             const ls_program *program, CUdeviceptr room, ls_error *err) {
    out->n_plans = 0;
    for (int rows = 1; rows <= CUDA_MAX_DECODE; rows *= 2) {
        persist_plan *plan = &out->plan[out->n_plans++];
        const persist_options how = {
            .rows = rows, .max_len = config->max_len, .blocks = config->persist_blocks, .here = here};
        TRY(persist_plan_build(plan, rank, program->op, program->n_ops, &how, room, err));
        room += room_of(plan);
        if (rows >= config->max_seqs) {
            break;
        }
    }
    return LS_OK;
}

/* Bytes of a rank's plans, in *most if they are more. */
static ls_status size_rank(const engine_config *config, const cuda_facts *facts, const ls_program *program,
                           size_t *most, ls_error *err) {
    rank_memory counted = {.weight = calloc((size_t)program->n_weights, sizeof(ls_weight))};
    cuda_persist *plans = calloc(1, sizeof *plans);
    ls_arena arena;
    size_t bytes = 0;
    ls_status st = LS_OK;
    if (counted.weight == NULL || plans == NULL) {
        TRY_GOTO(error_set(err, LS_ENOMEM, "engine: out of memory"), done);
    }
    arena_init_counting(&arena);
    TRY_GOTO(rank_memory_place(&counted, config, program, &arena, err), done);
    const cuda_rank rank = {.facts = *facts, .bind = counted.bind};
    TRY_GOTO(build_plans(plans, &rank, 1, config, program, 0, err), done);
    for (int i = 0; i < plans->n_plans; i++) {
        bytes += room_of(&plans->plan[i]);
    }
    *most = bytes > *most ? bytes : *most;
done:
    free(plans);
    free(counted.weight);
    return st;
}

/* Leaves are not of one width, nor what ranks need. */
static ls_status size_ranks(engine_config *config, const cuda_facts *facts, const ls_program *program, size_t *most,
                            ls_error *err) {
    if (config->rank_count < config->n_ranks) {
        return error_set(err, LS_EUNSUPPORTED, "ranks on other hosts exchange by NCCL, which is not inside a kernel");
    }
    if (config->staged) {
        return error_set(err, LS_EUNSUPPORTED, "its GPUs cannot store to each other's memory");
    }
    if (config->persist_blocks == 0) {
        return error_set(err, LS_EUNSUPPORTED, "the ranks on a GPU are more than its SMs");
    }
    TRY(size_rank(config, facts, program, most, err));
    for (int r = 1; r < config->n_ranks; r++) {
        ls_program *other = NULL;
        TRY(program_build(&other, program->spec, (ls_group){r, config->n_ranks}, config->dtype, config->quantization,
                          err));
        ls_status st = size_rank(config, facts, other, most, err);
        program_destroy(&other);
        TRY(st);
    }
    return LS_OK;
}

ls_status cuda_persist_size(engine_config *config, const cuda_facts *facts, const ls_program *program,
                            const ls_engine_params *params, ls_error *err) {
    const bool generic = params->kernels != NULL && strcmp(params->kernels, "generic") == 0;
    config->persist_bytes = 0;
    config->must_persist = is_asked_for(params, "persistent");
    if (!is_wanted(params) || generic) {
        return LS_OK;
    }
    device_choice choice;
    TRY(device_choice_read(&choice, params->device, err));
    config->persist_blocks = facts->sm_count / cuda_most_on_a_device(&choice, config->n_ranks);
    ls_error why = {0};
    size_t most = 0;
    ls_status st = size_ranks(config, facts, program, &most, &why);
    if (st == LS_OK) {
        config->persist_bytes = most;
    }
    return st == LS_OK || (st == LS_EUNSUPPORTED && !config->must_persist)
               ? LS_OK
               : error_set(err, st, "--plan persistent: %s", why.text);
}

static ls_status prepare_rank(cuda_engine *cuda, ls_error *err) {
    const ls_engine *engine = cuda->engine;
    cuda_rank *rank = &cuda->rank;
    const int r = rank->bind.group.rank;
    cuda_persist *plans = calloc(1, sizeof *plans);
    if (plans == NULL) {
        return error_set(err, LS_ENOMEM, "engine: out of memory");
    }
    cuda->persist = plans;
    TRY(build_plans(plans, rank, cuda->leader->n_here, &engine->config, engine->program[r],
                    (CUdeviceptr)(uintptr_t)engine->rank[r].persist, err));
    for (int i = 0; i < plans->n_plans; i++) {
        persist_plan *plan = &plans->plan[i];
        TRY(cuda_rank_kernel(rank, plan->kernel, &plans->fn[i], err));
        TRY(persist_prepare(rank, plan, plans->fn[i], err));
        plan->args.told = &engine->host.persist_stuck[r];
    }
    return LS_OK;
}

ls_status cuda_persist_prepare(cuda_engine *leader, ls_error *err) {
    for (int i = 0; i < leader->n_here; i++) {
        TRY(prepare_rank(cuda_of(leader->engine, leader->here[i]), err));
    }
    return LS_OK;
}

/* One rank has no more to wait for than its own SMs; several are told of as soon as by graphs. */
void cuda_persist_join(cuda_engine *first) {
    for (int r = 0; r < first->n_ranks && first->n_ranks > 1; r++) {
        cuda_persist *plans = first->of[r]->persist;
        for (int i = 0; i < plans->n_plans; i++) {
            plans->plan[i].args.timeout_ns = (int64_t)first->group.args.patience_ns;
            for (int peer = 0; peer < first->n_ranks; peer++) {
                plans->plan[i].args.node[peer] = first->of[peer]->persist->plan[i].args.node[peer];
            }
        }
    }
}

/* ---- Steps ---- */

bool cuda_persist_takes(const cuda_engine *leader, int n_rows) {
    const cuda_persist *plans = leader->persist;
    return plans != NULL && engine_cuda(leader->engine)->profile == NULL &&
           n_rows <= plans->plan[plans->n_plans - 1].rows;
}

ls_status cuda_persist_launch(cuda_engine *leader, int n_rows, ls_error *err) {
    const persist_plan *plan[LS_MAX_RANKS];
    int i = 0;
    while (leader->persist->plan[i].rows < n_rows) {
        i++;
    }
    for (int k = 0; k < leader->n_here; k++) {
        plan[k] = &cuda_of(leader->engine, leader->here[k])->persist->plan[i];
    }
    return persist_launch(&leader->rank, plan, leader->n_here, leader->persist->fn[i], err);
}

ls_status cuda_persist_check(const ls_engine *engine, ls_error *err) {
    const cuda_engine *first = engine_cuda(engine);
    return first->persist == NULL ? LS_OK
                                  : persist_check(engine->host.persist_stuck, first->n_ranks, engine->program[0]->op,
                                                  first->persist->plan[0].args.timeout_ns, err);
}

void cuda_persist_close(cuda_engine *cuda) {
    free(cuda->persist);
    cuda->persist = NULL;
}
