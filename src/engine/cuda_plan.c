/* See cuda_engine.h. The same arithmetic for engines and for plans of them, which need no GPU. */
#include <stdlib.h>

#include "engine/cuda_engine.h"

/* What the driver's context and all kernels take of a device (0.56 GB on an H100, driver 580), for one that is not here;
 * and what the driver takes later on, for cuBLASLt's kernels and its own use. */
static const int64_t driver_bytes = 600000000, later_bytes = (int64_t)64 << 20;

ls_status cuda_config_check(const engine_config *config, const ls_engine_params *params, ls_error *err) {
    if (config->n_ranks > 1) {
        return error_set(
            err, LS_EUNSUPPORTED,
            "--device cuda with --tensor-parallel-size %d: GPUs run one rank so far; leave it at 1, or use "
            "--device cpu",
            config->n_ranks);
    }
    if (config->quantization == LS_QUANTIZATION_W8A8) {
        return error_set(err, LS_EUNSUPPORTED, "--quantization w8a8: for CPUs; on a GPU use w8a16, or --device cpu");
    }
    if (params->kernels != NULL && strcmp(params->kernels, "auto") != 0 && strcmp(params->kernels, "generic") != 0) {
        return error_set(err, LS_EINVAL, "--kernels %s: must be auto or generic", params->kernels);
    }
    if (params->plan != NULL && strcmp(params->plan, "auto") != 0 && strcmp(params->plan, "graph") != 0 &&
        strcmp(params->plan, "persistent") != 0) {
        return error_set(err, LS_EINVAL, "--plan %s: must be auto, graph or persistent", params->plan);
    }
    if (!(params->gpu_memory_utilization >= 0 && params->gpu_memory_utilization <= 1)) {
        return error_set(err, LS_EINVAL, "--gpu-memory-utilization %g: must be above 0 and at most 1",
                         params->gpu_memory_utilization);
    }
    return LS_OK;
}

/* Scratch that the kernels need for this configuration: the same memory serves all ops in turn. */
static ls_status size_workspace(engine_config *config, const ls_program *program, const ls_engine_params *params,
                                const gpu_memory *memory, ls_error *err) {
    const int decode_rows = config->m_max < CUDA_MAX_DECODE ? config->m_max : CUDA_MAX_DECODE;
    rank_memory counted = {.weight = calloc((size_t)program->n_weights, sizeof(ls_weight))};
    ls_arena arena;
    size_t most = 0;
    if (counted.weight == NULL) {
        return error_set(err, LS_ENOMEM, "engine: out of memory");
    }
    arena_init_counting(&arena);
    ls_status st = rank_memory_place(&counted, config, program, &arena, err);
    for (int i = 0; i < program->n_ops && st == LS_OK; i++) {
        size_t bytes =
            program->op[i].kind == OP_ATTN ? decode_workspace(&program->op[i], decode_rows, config->max_len) : 0;
        most = bytes > most ? bytes : most;
    }
    if (st == LS_OK) {
        size_t bytes = prefill_workspace(program->op, program->n_ops, &counted.bind, config->max_len);
        config->workspace_bytes = bytes > most ? bytes : most;
        const cuda_facts facts = {.sm_count = memory->sm_count,
                                  .cc_major = memory->cc_major,
                                  .shared_bytes_per_block = memory->shared_bytes_per_block};
        config->must_persist = params->plan != NULL && strcmp(params->plan, "persistent") == 0;
        st = cuda_persist_size(config, &facts, &counted.bind, program, params, err);
    }
    free(counted.weight);
    return st;
}

/* Where no size of the KV cache was asked for, it is what --gpu-memory-utilization leaves, if all seats at full length do
 * not take less. What does not fit even so is told when memory is reserved. */
static ls_status fit_pages(engine_config *config, const ls_program *program, const ls_engine_params *params,
                           const gpu_memory *memory, ls_error *err) {
    const ls_spec *spec = program->spec;
    engine_config whole = *config;
    ls_memory_plan plan;
    if (params->kv_cache_memory_bytes > 0) {
        return LS_OK;
    }
    whole.max_len = params->max_model_len_tokens > 0 ? params->max_model_len_tokens : spec->max_position_tokens;
    whole.n_pages = 0;
    TRY(size_workspace(&whole, program, params, memory, err));
    TRY(memory_plan_make(&plan, &whole, &program, err));
    double share = params->gpu_memory_utilization > 0 ? params->gpu_memory_utilization : 0.9;
    int64_t budget = (int64_t)(share * (double)memory->total_bytes) - memory->used_bytes - later_bytes -
                     (int64_t)memory_tags_sum(plan.rank[0]);
    int64_t page_bytes = kv_page_bytes(config, spec);
    int64_t least = params->max_model_len_tokens > 0 ? pages_for(whole.max_len) * page_bytes : page_bytes;
    if (budget < least) {
        return LS_OK;
    }
    ls_engine_params sized = *params;
    sized.kv_cache_memory_bytes = budget;
    return engine_config_resolve(config, spec, &sized, err);
}

ls_status cuda_config_complete(engine_config *config, const ls_program *program, const ls_engine_params *params,
                               const gpu_memory *memory, ls_error *err) {
    enum { MOST_THREADS = 16 }; /* they read files and sample odd rows */
    const bool runs_ahead = wants_async_scheduling(params) && !params->profile && params->trace_events == 0;
    config->on_device = true;
    config->runs_ahead = runs_ahead;
    if (params->threads == 0 && config->n_threads > MOST_THREADS) {
        config->n_threads = MOST_THREADS;
    }
    int n_threads = config->n_threads;
    TRY(fit_pages(config, program, params, memory, err));
    config->on_device = true;
    config->runs_ahead = runs_ahead;
    config->n_threads = n_threads;
    return size_workspace(config, program, params, memory, err);
}

ls_status cuda_find_memory(const ls_engine_params *params, int ordinal, gpu_memory *out, ls_error *err) {
    cuda_driver *driver = NULL;
    cuda_rank rank = {0};
    size_t free_bytes, total_bytes;
    ls_status st = LS_OK;
    if (params->device_memory_bytes > 0) {
        *out = (gpu_memory){.total_bytes = params->device_memory_bytes,
                            .used_bytes = driver_bytes,
                            .sm_count = 132,
                            .cc_major = 9,
                            .shared_bytes_per_block = 227 << 10}; /* an H100 */
        return LS_OK;
    }
    bool generic = params->kernels != NULL && strcmp(params->kernels, "generic") == 0;
    st = cuda_driver_open(&driver, err);
    if (st != LS_OK) {
        TRY_GOTO(error_prefix(err, st, "--device cuda without --device-memory-bytes plans for the GPU that is here"),
                 fail);
    }
    TRY_GOTO(cuda_rank_open(&rank, driver, ordinal, generic, err), fail);
    TRY_GOTO(cuda_rank_memory(&rank, &free_bytes, &total_bytes, err), fail);
    *out = (gpu_memory){.total_bytes = (int64_t)total_bytes,
                        .used_bytes = (int64_t)(total_bytes - free_bytes),
                        .measured = true,
                        .sm_count = rank.facts.sm_count,
                        .cc_major = rank.facts.cc_major,
                        .shared_bytes_per_block = rank.facts.shared_bytes_per_block};
fail:
    if (driver != NULL) {
        cuda_rank_close(&rank);
    }
    cuda_driver_close(&driver);
    return st;
}
