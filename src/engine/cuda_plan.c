/* See cuda_engine.h. The same arithmetic for engines and for plans of them, which need no GPU. */
#include <stdlib.h>

#include "engine/cuda_engine.h"

/* What the driver's context and all kernels take of a device (0.56 GB on an H100, driver 580), for one that is not here;
 * and what the driver takes later on, for cuBLASLt's kernels and its own use. */
static const int64_t driver_bytes = 600000000, later_bytes = (int64_t)64 << 20;

ls_status cuda_config_check(const engine_config *config, const ls_engine_params *params, ls_error *err) {
    device_choice choice;
    TRY(device_choice_read(&choice, params->device, err));
    TRY(cuda_devices_check(&choice, config->rank_count, err));
    TRY(cuda_exchange_check(params, err));
    if (config->quantization == LS_QUANTIZATION_W8A8) {
        return error_set(err, LS_EUNSUPPORTED, "--quantization w8a8: for CPUs; on a GPU use w8a16, or --device cpu");
    }
    if (params->kernels != NULL && strcmp(params->kernels, "auto") != 0 && strcmp(params->kernels, "generic") != 0) {
        return error_set(err, LS_EINVAL, "--kernels %s: must be auto or generic", params->kernels);
    }
    TRY(cuda_persist_params_check(params, config->n_ranks, err));
    if (!(params->gpu_memory_utilization >= 0 && params->gpu_memory_utilization <= 1)) {
        return error_set(err, LS_EINVAL, "--gpu-memory-utilization %g: must be above 0 and at most 1",
                         params->gpu_memory_utilization);
    }
    return LS_OK;
}

/* What persistent kernels are planned for. A GPU that is not here is taken for an H100. */
static cuda_facts facts_of(const gpu_memory *memory) {
    if (memory->sm_count == 0) {
        return (cuda_facts){.sm_count = 132, .cc_major = 9, .shared_bytes_per_block = 227 << 10};
    }
    return (cuda_facts){.sm_count = memory->sm_count,
                        .cc_major = memory->cc_major,
                        .shared_bytes_per_block = memory->shared_bytes_per_block};
}

/* Scratch that the kernels need for this configuration: the same memory serves all ops in turn. */
static ls_status size_workspace(engine_config *config, const ls_program *program, const ls_engine_params *params,
                                const gpu_memory *memory, ls_error *err) {
    const int decode_rows = config->m_max < config->max_seqs ? config->m_max : config->max_seqs;
    rank_memory counted = {.weight = calloc((size_t)program->n_weights, sizeof(ls_weight))};
    ls_arena arena;
    size_t most = 0;
    if (counted.weight == NULL) {
        return error_set(err, LS_ENOMEM, "engine: out of memory");
    }
    arena_init_counting(&arena);
    ls_status st = rank_memory_place(&counted, config, program, &arena, err);
    for (int i = 0; i < program->n_ops && st == LS_OK; i++) {
        const ls_op *op = &program->op[i];
        size_t bytes = op->kind == OP_ATTN     ? decode_workspace(op, decode_rows, config->max_len, config->n_pages)
                       : op->kind == OP_SAMPLE ? decode_sample_workspace(op, config->n_out_max)
                                               : 0;
        most = bytes > most ? bytes : most;
    }
    if (st == LS_OK) {
        size_t bytes = prefill_workspace(program->op, program->n_ops, &counted.bind, config->max_len);
        config->workspace_bytes = bytes > most ? bytes : most;
        const cuda_facts facts = facts_of(memory);
        st = cuda_persist_size(config, &facts, program, params, err);
    }
    free(counted.weight);
    return st;
}

double memory_share(const ls_engine_params *params) {
    return params->gpu_memory_utilization > 0 ? params->gpu_memory_utilization : 0.9;
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
    whole.n_pages = INT32_MAX; /* for scratch: as many as may turn out to be there */
    TRY(size_workspace(&whole, program, params, memory, err));
    whole.n_pages = 0;
    whole.rank_first = 0; /* the first, which has no less than the others */
    whole.rank_count = 1;
    TRY(memory_plan_make(&plan, &whole, &program, err));
    const int here = memory->n_ranks > 1 ? memory->n_ranks : 1;
    const int64_t all =
        (int64_t)(memory_share(params) * (double)memory->total_bytes) - memory->used_bytes - later_bytes;
    int64_t budget = config->n_ranks * (all / here - (int64_t)memory_tags_sum(plan.rank[0]));
    int64_t page_bytes = kv_page_bytes(config, spec);
    int64_t least = params->max_model_len_tokens > 0 ? pages_for(whole.max_len) * page_bytes : page_bytes;
    if (budget < least) {
        return LS_OK;
    }
    ls_engine_params sized = *params;
    sized.kv_cache_memory_bytes = budget;
    return engine_config_resolve(config, spec, &sized, err);
}

/* Rows of one step: a GPU is faster with longer chunks than a CPU, if there can be so many rows (docs/performance.md). */
static int batched_tokens(const engine_config *config, const ls_engine_params *params) {
    enum { CHUNK = 2048 };
    const int64_t most = (int64_t)config->max_len * config->max_seqs, rows = most < CHUNK ? most : CHUNK;
    return params->max_num_batched_tokens > 0 || rows < config->m_max ? config->m_max : (int)rows;
}

/* What the device makes of a configuration that engine_config_resolve made. */
static void set_for_device(engine_config *config, const ls_engine_params *params, bool staged) {
    enum { MOST_THREADS = 16 }; /* they read files and sample odd rows */
    config->on_device = true;
    config->staged = staged;
    config->runs_ahead =
        wants_async_scheduling(params) && !params->profile && params->trace_events == 0 && config->n_hosts == 1;
    config->draws_filtered = config->n_ranks == 1; /* several would have to merge candidates */
    if (params->threads == 0 && config->n_threads > MOST_THREADS) {
        config->n_threads = MOST_THREADS;
    }
}

ls_status cuda_config_complete(engine_config *config, const ls_program *program, const ls_engine_params *params,
                               const gpu_memory *memory, ls_error *err) {
    const bool by_host = params->exchange != NULL && strcmp(params->exchange, "host") == 0;
    const bool staged = config->n_ranks > 1 && (config->staged || by_host);
    ls_engine_params sized = *params;
    sized.max_num_batched_tokens = batched_tokens(config, params);
    TRY(engine_config_resolve(config, program->spec, &sized, err));
    set_for_device(config, &sized, staged);
    TRY(fit_pages(config, program, &sized, memory, err));
    set_for_device(config, &sized, staged);
    return size_workspace(config, program, params, memory, err);
}

ls_status cuda_memory_of(const cuda_rank *rank, int n_ranks, gpu_memory *out, ls_error *err) {
    size_t free_bytes, total_bytes;
    TRY(cuda_rank_memory(rank, &free_bytes, &total_bytes, err));
    *out = (gpu_memory){.total_bytes = (int64_t)total_bytes,
                        .used_bytes = (int64_t)(total_bytes - free_bytes),
                        .measured = true,
                        .n_ranks = n_ranks,
                        .sm_count = rank->facts.sm_count,
                        .cc_major = rank->facts.cc_major,
                        .shared_bytes_per_block = rank->facts.shared_bytes_per_block};
    return LS_OK;
}

double memory_left(const gpu_memory *memory, double share) {
    return (share * (double)memory->total_bytes - (double)memory->used_bytes) / memory->n_ranks;
}

/* What a GPU has for each of the ranks on it, in `out` if that is the least so far. */
static ls_status find_memory_of(const cuda_driver *driver, int ordinal, int n_here, const ls_engine_params *params,
                                gpu_memory *out, ls_error *err) {
    cuda_rank rank = {0};
    gpu_memory found = {0};
    const bool generic = params->kernels != NULL && strcmp(params->kernels, "generic") == 0;
    ls_status st = cuda_rank_open(&rank, driver, ordinal, generic, err);
    st = st == LS_OK ? cuda_memory_of(&rank, n_here, &found, err) : st;
    cuda_rank_close(&rank);
    TRY(st);
    const double share = memory_share(params);
    if (out->n_ranks == 0 || memory_left(&found, share) < memory_left(out, share)) {
        *out = found;
    }
    return LS_OK;
}

ls_status cuda_find_memory(const ls_engine_params *params, const device_choice *choice, int n_ranks, gpu_memory *out,
                           ls_error *err) {
    cuda_driver *driver = NULL;
    gpu_memory found = {0};
    int n_here[LS_MAX_RANKS] = {0}; /* ranks on the GPU of a rank; 0: it is an earlier one's */
    ls_status st = LS_OK;
    for (int r = 0; r < n_ranks; r++) {
        int first = 0;
        while (device_of_rank(choice, first) != device_of_rank(choice, r)) {
            first++;
        }
        n_here[first]++;
    }
    if (params->device_memory_bytes > 0) {
        *out = (gpu_memory){.total_bytes = params->device_memory_bytes,
                            .used_bytes = driver_bytes,
                            .n_ranks = cuda_most_on_a_device(choice, n_ranks)};
        return LS_OK;
    }
    st = cuda_driver_open(&driver, err);
    if (st != LS_OK) {
        TRY_GOTO(error_prefix(err, st, "--device cuda without --device-memory-bytes plans for the GPU that is here"),
                 fail);
    }
    for (int r = 0; r < n_ranks; r++) {
        if (n_here[r] > 0) {
            TRY_GOTO(find_memory_of(driver, device_of_rank(choice, r), n_here[r], params, &found, err), fail);
        }
    }
    *out = found;
fail:
    cuda_driver_close(&driver);
    return st;
}
