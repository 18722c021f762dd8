/* See cuda_engine.h and backend.h. */
#include "engine/cuda_engine.h"

#include <stdlib.h>

#include "base/clock.h"
#include "engine/ranges.h"

/* ---- Opening ---- */

/* Scratch that the kernels need for this configuration: the same memory serves all ops in turn. */
static ls_status size_workspace(const ls_engine *engine, engine_config *config, ls_error *err) {
    const ls_program *program = engine->program[0];
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
    }
    free(counted.weight);
    return st;
}

/* Where no size of the KV cache was asked for, it is what --gpu-memory-utilization leaves, if all seats at full length do
 * not take less. What does not fit even so is told by reserve(). */
static ls_status fit_pages(ls_engine *engine, const ls_engine_params *params, ls_error *err) {
    const int64_t slack_bytes = (int64_t)64 << 20; /* of the driver's own, allocated later */
    const ls_spec *spec = &engine->model->spec;
    engine_config *config = &engine->config;
    engine_config whole = *config;
    ls_memory_plan plan;
    size_t free_bytes, total_bytes;
    if (params->kv_cache_memory_bytes > 0) {
        return LS_OK;
    }
    whole.max_len = params->max_model_len_tokens > 0 ? params->max_model_len_tokens : spec->max_position_tokens;
    whole.n_pages = 0;
    TRY(size_workspace(engine, &whole, err));
    TRY(memory_plan_make(&plan, &whole, (const ls_program *const *)engine->program, err));
    TRY(cuda_rank_memory(&engine_cuda(engine)->rank, &free_bytes, &total_bytes, err));
    double share = params->gpu_memory_utilization > 0 ? params->gpu_memory_utilization : 0.9;
    int64_t budget = (int64_t)(share * (double)total_bytes) - (int64_t)(total_bytes - free_bytes) - slack_bytes -
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

static ls_status check_config(const ls_engine *engine, const ls_engine_params *params, ls_error *err) {
    if (engine->config.n_ranks > 1) {
        return error_set(
            err, LS_EUNSUPPORTED,
            "--device cuda with --tensor-parallel-size %d: GPUs run one rank so far; leave it at 1, or use "
            "--device cpu",
            engine->config.n_ranks);
    }
    if (engine->config.quantization == LS_QUANTIZATION_W8A8) {
        return error_set(err, LS_EUNSUPPORTED, "--quantization w8a8: for CPUs; on a GPU use w8a16, or --device cpu");
    }
    if (params->kernels != NULL && strcmp(params->kernels, "auto") != 0 && strcmp(params->kernels, "generic") != 0) {
        return error_set(err, LS_EINVAL, "--kernels %s: must be auto or generic", params->kernels);
    }
    if (!(params->gpu_memory_utilization >= 0 && params->gpu_memory_utilization <= 1)) {
        return error_set(err, LS_EINVAL, "--gpu-memory-utilization %g: must be above 0 and at most 1",
                         params->gpu_memory_utilization);
    }
    return LS_OK;
}

static void *open_lt(void *arg) {
    cuda_engine *cuda = arg;
    if (cuda_rank_enter(&cuda->rank, &cuda->no_lt) == LS_OK) {
        cublaslt_open(&cuda->lt, &cuda->no_lt);
    }
    return NULL;
}

static void end_opening_lt(cuda_engine *cuda) {
    if (cuda->is_opening_lt) {
        pthread_join(cuda->opens_lt, NULL);
        cuda->is_opening_lt = false;
    }
}

/* The driver and the context take longer than anything else here, unless the model has been opening them. */
static ls_status open_device(ls_engine *engine, int ordinal, bool generic, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    cuda_start *start = engine->model->start;
    int64_t begin = clock_ns(), opened;
    if (start != NULL) {
        cuda_start_wait(start, &engine->driver_us, &engine->context_us);
    }
    TRY(cuda_driver_open(&cuda->driver, err));
    opened = clock_ns();
    TRY(cuda_rank_open(&cuda->rank, cuda->driver, ordinal, generic, err));
    if (engine->driver_us == 0) {
        engine->driver_us = (opened - begin) / 1000;
        engine->context_us = (clock_ns() - opened) / 1000;
    }
    if (start != NULL) {
        cuda_start_release(start);
    }
    TRY(cuda_rank_kernel(&cuda->rank, "read_all", &cuda->read_all, err));
    return cuda_load_open(&cuda->load_kernels, &cuda->rank, err);
}

static ls_status cuda_open(ls_engine *engine, const ls_engine_params *params, int ordinal, ls_error *err) {
    enum { MOST_THREADS = 16 }; /* they read files and sample odd rows */
    TRY(check_config(engine, params, err));
    engine_config *config = &engine->config;
    cuda_engine *cuda = calloc(1, sizeof *cuda);
    if (cuda == NULL) {
        return error_set(err, LS_ENOMEM, "engine: out of memory");
    }
    engine->device = cuda;
    TRY(cuda_graphs_read(cuda, params->graph_sizes, config->max_seqs, err));
    bool generic = params->kernels != NULL && strcmp(params->kernels, "generic") == 0;
    TRY(open_device(engine, ordinal, generic, err));
    cuda->is_opening_lt = !generic && pthread_create(&cuda->opens_lt, NULL, open_lt, cuda) == 0;
    memcpy(engine->device_name, cuda->rank.facts.name, sizeof engine->device_name);
    if (cuda->rank.jit_us > 0) {
        log_line(&engine->model->log, LS_LOG_WARN, "%s (sm_%d%d): the driver compiled its kernels in %.1f s",
                 engine->device_name, cuda->rank.facts.cc_major, cuda->rank.facts.cc_minor,
                 (double)cuda->rank.jit_us / 1e6);
    }
    config->on_device = true;
    TRY(fit_pages(engine, params, err));
    if (params->threads == 0 && config->n_threads > MOST_THREADS) {
        config->n_threads = MOST_THREADS;
    }
    if (params->profile || params->trace_events > 0) {
        TRY(cuda_profile_open(cuda, engine->program[0]->n_ops, err));
    }
    return size_workspace(engine, config, err);
}

/* ---- Memory ---- */

static ls_status compare_with_device(const cuda_rank *rank, const ls_memory_plan *plan, ls_error *err) {
    size_t free_bytes, total_bytes, need = memory_tags_sum(plan->rank[0]);
    TRY(cuda_rank_memory(rank, &free_bytes, &total_bytes, err));
    if (need <= free_bytes) {
        return LS_OK;
    }
    return error_set(err, LS_ENOMEM,
                     "the plan needs %.2f GB (weights %.2f, KV cache %.2f); %s, device %d, has %.2f GB of %.2f free: "
                     "lower --max-model-len, --max-num-seqs or --kv-cache-memory-bytes, or use a 16-bit --dtype",
                     (double)need / 1e9, (double)plan->rank[0][MEM_WEIGHTS] / 1e9,
                     (double)plan->rank[0][MEM_KV_CACHE] / 1e9, rank->facts.name, rank->facts.device,
                     (double)free_bytes / 1e9, (double)total_bytes / 1e9);
}

static ls_status cuda_reserve(ls_engine *engine, const ls_memory_plan *plan, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    const cuda_driver *api = cuda->driver;
    size_t device_bytes = memory_tags_sum(plan->rank[0]), host_bytes = memory_tags_sum(plan->host);
    TRY(compare_with_device(&cuda->rank, plan, err));
    /* Weights come first in the arena, and are cleared first: they are loaded while the rest is. */
    const size_t weight_bytes = plan->rank[0][MEM_WEIGHTS];
    TRY(cuda_check(&cuda->rank, api->cuMemAlloc(&cuda->memory, device_bytes), "reserving the rank's memory", err));
    TRY(cuda_check(&cuda->rank, api->cuMemsetD8Async(cuda->memory, 0, weight_bytes, cuda->rank.stream),
                   "clearing the rank's memory", err));
    TRY(cuda_check(&cuda->rank, api->cuEventCreate(&cuda->cleared, CU_EVENT_DISABLE_TIMING), "creating an event", err));
    TRY(cuda_check(&cuda->rank, api->cuEventRecord(cuda->cleared, cuda->rank.stream), "clearing the rank's memory",
                   err));
    TRY(cuda_check(&cuda->rank,
                   api->cuMemsetD8Async(cuda->memory + weight_bytes, 0, device_bytes - weight_bytes, cuda->rank.stream),
                   "clearing the rank's memory", err));
    /* Memory that comes in large pages is pinned several times faster than what the driver would allocate. */
    TRY(arena_init(&engine->host_arena, host_bytes, err));
    arena_large_pages(&engine->host_arena, host_bytes);
    TRY(cuda_check(&cuda->rank,
                   api->cuMemHostRegister(engine->host_arena.base, engine->host_arena.bytes,
                                          CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP),
                   "pinning memory", err));
    cuda->pinned = engine->host_arena.base;
    arena_init_at(&engine->rank_arena[0], (void *)(uintptr_t)cuda->memory, device_bytes);
    return LS_OK;
}

/* What steps need besides weights. */
static ls_status prepare(ls_engine *engine, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    cuda_rank *rank = &cuda->rank;
    TRY(cuda_rank_enter(rank, err));
    TRY(decode_prepare(rank, err));
    end_opening_lt(cuda);
    rank->cublaslt = cuda->lt;
    TRY(prefill_prepare(rank, engine->program[0]->op, engine->program[0]->n_ops, err));
    if (cuda->profile != NULL) {
        return LS_OK;
    }
    range_begin("capture");
    ls_status st = cuda_graphs_capture(engine, err);
    range_end();
    return st;
}

static void *prepare_thread(void *arg) {
    cuda_engine *cuda = engine_cuda(arg);
    range_begin("prepare");
    cuda->unprepared.status = prepare(arg, &cuda->unprepared);
    range_end();
    return NULL;
}

static ls_status cuda_load(ls_engine *engine, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    cuda_rank *rank = &cuda->rank;
    const rank_memory *placed = &engine->rank[0];
    const engine_config *config = &engine->config;
    size_t rope_bytes = (size_t)config->max_len * (size_t)engine->model->spec.d_head * sizeof(float);
    rank->bind = placed->bind;
    rank->step = (CUdeviceptr)(uintptr_t)placed->step;
    rank->step_bytes = step_image_bytes(config);
    rank->host_step = engine->host.step;
    rank->counters = (CUdeviceptr)(uintptr_t)placed->counters;
    rank->drawn = (CUdeviceptr)(uintptr_t)placed->result;
    rank->workspace = (CUdeviceptr)(uintptr_t)placed->workspace;
    rank->workspace_bytes = config->workspace_bytes;
    TRY(cuda_check(rank,
                   cuda->driver->cuMemcpyHtoDAsync((CUdeviceptr)(uintptr_t)rank->bind.rope, engine->host.rope,
                                                   rope_bytes, rank->stream),
                   "copying the RoPE table", err));
    bool beside = thread_start(&cuda->prepares, prepare_thread, engine) == 0;
    ls_status st = cuda_load_weights(engine, err);
    if (beside) {
        pthread_join(cuda->prepares, NULL);
    } else if (st == LS_OK) {
        prepare_thread(engine);
    }
    TRY(st);
    if (cuda->unprepared.status != LS_OK) {
        if (err != NULL) {
            *err = cuda->unprepared;
        }
        return cuda->unprepared.status;
    }
    if (cuda->no_lt.status != LS_OK) {
        log_line(&engine->model->log, LS_LOG_INFO, "prompts run without cuBLASLt: %s", cuda->no_lt.text);
    }
    return cuda_rank_wait(rank, "loading", CUDA_STEP_TIMEOUT_S, err);
}

/* ---- The limit ---- */

/* Microseconds that n reads of the weights took, or 0. */
static double time_reads(cuda_engine *cuda, CUevent begin, CUevent end, unsigned n_blocks, int64_t n_words, int n) {
    const cuda_driver *api = cuda->driver;
    CUdeviceptr sink = cuda->rank.drawn; /* next step's results overwrite it */
    void *args[] = {&cuda->memory, &n_words, &sink};
    float ms = 0;
    bool good = api->cuEventRecord(begin, cuda->rank.stream) == CUDA_SUCCESS;
    for (int i = 0; i < n && good; i++) {
        good = cuda_launch(&cuda->rank, cuda->read_all, "read_all", n_blocks, 1, 1, 512, 0, args, NULL) == LS_OK;
    }
    good = good && api->cuEventRecord(end, cuda->rank.stream) == CUDA_SUCCESS &&
           api->cuEventSynchronize(end) == CUDA_SUCCESS && api->cuEventElapsedTime(&ms, begin, end) == CUDA_SUCCESS;
    return good ? (double)ms * 1000 : 0;
}

/* The best of several launches of several shapes: how much is in flight matters. */
static double cuda_read_rate(ls_engine *engine) {
    enum { PASSES = 6 };
    cuda_engine *cuda = engine_cuda(engine);
    const int64_t enough_bytes = (int64_t)1 << 30;
    int64_t bytes = (int64_t)engine->rank_arena[0].by_tag[MEM_WEIGHTS];
    int n = (int)(enough_bytes / (bytes + 1));
    n = n < 1 ? 1 : n > 100 ? 100 : n;
    CUevent begin = NULL, end = NULL;
    double best = 0;
    if (cuda_rank_enter(&cuda->rank, NULL) == LS_OK &&
        cuda->driver->cuEventCreate(&begin, CU_EVENT_DEFAULT) == CUDA_SUCCESS &&
        cuda->driver->cuEventCreate(&end, CU_EVENT_DEFAULT) == CUDA_SUCCESS) {
        for (int pass = 0; pass < 3 * PASSES; pass++) {
            unsigned blocks_per_sm = 1u << pass % 3; /* 1, 2, 4: 64 to 256 KB in flight */
            double us =
                time_reads(cuda, begin, end, blocks_per_sm * (unsigned)cuda->rank.facts.sm_count, bytes / 16, n);
            double rate = us > 0 ? (double)bytes * n * 1e6 / us : 0;
            best = rate > best ? rate : best;
        }
    }
    if (begin != NULL) {
        cuda->driver->cuEventDestroy(begin);
    }
    if (end != NULL) {
        cuda->driver->cuEventDestroy(end);
    }
    return best;
}

/* ---- Closing ---- */

static void cuda_close(ls_engine *engine) {
    cuda_engine *cuda = engine_cuda(engine);
    if (engine->model->start != NULL) { /* refused before the device was opened */
        cuda_start_release(engine->model->start);
    }
    if (cuda == NULL) {
        return;
    }
    end_opening_lt(cuda);
    if (cuda->rank.context != NULL && cuda_rank_enter(&cuda->rank, NULL) == LS_OK) {
        if (cuda->rank.stream != NULL && cuda_rank_wait(&cuda->rank, "closing", 5, NULL) != LS_OK &&
            cuda->driver->cuStreamQuery(cuda->rank.stream) == CUDA_ERROR_NOT_READY) {
            engine->device = NULL; /* a kernel that never ends: freeing anything would wait for it */
            engine->host_arena.borrowed = true;
            return;
        }
        for (int i = 0; i < cuda->n_graphs; i++) {
            if (cuda->graph[i] != NULL) {
                cuda->driver->cuGraphExecDestroy(cuda->graph[i]);
            }
        }
        cuda_profile_close(cuda);
        cublaslt_close(&cuda->lt);
        if (cuda->memory != 0) {
            cuda->driver->cuMemFree(cuda->memory);
        }
        if (cuda->pinned != NULL) {
            cuda->driver->cuMemHostUnregister(cuda->pinned);
        }
        if (cuda->cleared != NULL) {
            cuda->driver->cuEventDestroy(cuda->cleared);
        }
    }
    if (cuda->driver != NULL) {
        cuda_rank_close(&cuda->rank);
    }
    cuda_driver_close(&cuda->driver);
    free(cuda);
    engine->device = NULL;
}

static size_t cuda_profile_lines(const ls_engine *engine, const ls_profile_line **out) {
    const cuda_profile *profile = engine_cuda(engine)->profile;
    *out = profile != NULL ? profile->line : NULL;
    return profile != NULL ? (size_t)profile->n_lines : 0;
}

static ls_status cuda_copy_in(const ls_engine *engine, void *device, const void *from, size_t bytes, ls_error *err) {
    const cuda_rank *rank = &engine_cuda(engine)->rank;
    TRY(cuda_rank_enter(rank, err));
    return cuda_check(rank, rank->driver->cuMemcpyHtoD((CUdeviceptr)(uintptr_t)device, from, bytes), "copying in", err);
}

static ls_status cuda_copy_out(const ls_engine *engine, const void *device, void *to, size_t bytes, ls_error *err) {
    const cuda_rank *rank = &engine_cuda(engine)->rank;
    TRY(cuda_rank_enter(rank, err));
    return cuda_check(rank, rank->driver->cuMemcpyDtoH(to, (CUdeviceptr)(uintptr_t)device, bytes), "copying out", err);
}

const ls_backend backend_cuda = {.name = "cuda",
                                 .open = cuda_open,
                                 .reserve = cuda_reserve,
                                 .load = cuda_load,
                                 .run = cuda_run,
                                 .read_rate = cuda_read_rate,
                                 .profile = cuda_profile_lines,
                                 .run_op = cuda_run_op,
                                 .copy_in = cuda_copy_in,
                                 .copy_out = cuda_copy_out,
                                 .close = cuda_close};
