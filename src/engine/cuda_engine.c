/* See cuda_engine.h and backend.h. */
#include "engine/cuda_engine.h"

#include <stdlib.h>

#include "backend/cuda/measure.h"
#include "base/clock.h"
#include "engine/ranges.h"

/* ---- Opening ---- */

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
static ls_status open_devices(ls_engine *engine, const ls_engine_params *params, bool generic, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    cuda_start *start = engine->model->start;
    int64_t begin = clock_ns(), opened;
    if (start != NULL) {
        cuda_start_wait(start, &engine->driver_us, &engine->context_us);
    }
    TRY(cuda_driver_open(&cuda->driver, err));
    opened = clock_ns();
    TRY(cuda_ranks_open(engine, params, generic, err));
    if (engine->driver_us == 0) {
        engine->driver_us = (opened - begin) / 1000;
        engine->context_us = (clock_ns() - opened) / 1000;
    }
    if (start != NULL) {
        cuda_start_release(start);
    }
    return LS_OK;
}

static void open_lts(cuda_engine *first) {
    for (int r = 0; r < first->n_ranks; r++) {
        cuda_engine *cuda = first->of[r];
        cuda->is_opening_lt = cuda->leader == cuda && thread_start(&cuda->opens_lt, open_lt, cuda) == 0;
    }
}

static ls_status cuda_open(ls_engine *engine, const ls_engine_params *params, int ordinal, ls_error *err) {
    engine_config *config = &engine->config;
    gpu_memory memory;
    (void)ordinal; /* of the first rank: cuda_ranks_open knows them all */
    TRY(cuda_config_check(config, params, err));
    cuda_engine *cuda = calloc(1, sizeof *cuda);
    if (cuda == NULL) {
        return error_set(err, LS_ENOMEM, "engine: out of memory");
    }
    engine->device = cuda;
    TRY(cuda_graphs_read(cuda, params->graph_sizes, config->max_seqs, err));
    bool generic = params->kernels != NULL && strcmp(params->kernels, "generic") == 0;
    TRY(open_devices(engine, params, generic, err));
    if (!generic) {
        open_lts(cuda);
    }
    memcpy(engine->device_name, cuda->rank.facts.name, sizeof engine->device_name);
    if (cuda->rank.jit_us > 0) {
        log_line(&engine->model->log, LS_LOG_WARN, "%s (sm_%d%d): the driver compiled its kernels in %.1f s",
                 engine->device_name, cuda->rank.facts.cc_major, cuda->rank.facts.cc_minor,
                 (double)cuda->rank.jit_us / 1e6);
    }
    if (params->profile || params->trace_events > 0) {
        TRY(cuda_profile_open(engine, err));
    }
    TRY(cuda_ranks_memory(cuda, memory_share(params), &memory, err));
    return cuda_config_complete(config, engine->program[0], params, &memory, err);
}

/* ---- Memory ---- */

/* All that the ranks on a leader's GPU need, together. */
static ls_status compare_with_device(const cuda_engine *leader, const ls_memory_plan *plan, ls_error *err) {
    const cuda_rank *rank = &leader->rank;
    size_t free_bytes, total_bytes, need = 0, weights = 0, kv = 0;
    for (int i = 0; i < leader->n_here; i++) {
        const size_t *of_rank = plan->rank[leader->here[i]];
        need += memory_tags_sum(of_rank);
        weights += of_rank[MEM_WEIGHTS];
        kv += of_rank[MEM_KV_CACHE];
    }
    TRY(cuda_rank_memory(rank, &free_bytes, &total_bytes, err));
    if (need <= free_bytes) {
        return LS_OK;
    }
    return error_set(err, LS_ENOMEM,
                     "the plan needs %.2f GB (weights %.2f, KV cache %.2f); %s, device %d, has %.2f GB of %.2f free: "
                     "lower --max-model-len, --max-num-seqs or --kv-cache-memory-bytes, or use a 16-bit --dtype",
                     (double)need / 1e9, (double)weights / 1e9, (double)kv / 1e9, rank->facts.name, rank->facts.device,
                     (double)free_bytes / 1e9, (double)total_bytes / 1e9);
}

static ls_status reserve_rank(ls_engine *engine, int r, const ls_memory_plan *plan, ls_error *err) {
    cuda_engine *cuda = cuda_of(engine, r);
    const cuda_driver *api = cuda->driver;
    const size_t device_bytes = memory_tags_sum(plan->rank[r]);
    TRY(cuda_rank_enter(&cuda->rank, err));
    if (cuda->leader == cuda) {
        TRY(compare_with_device(cuda, plan, err));
    }
    /* Weights come first in the arena, and are cleared first: they are loaded while the rest is. */
    const size_t weight_bytes = plan->rank[r][MEM_WEIGHTS];
    TRY(cuda_check(&cuda->rank, api->cuMemAlloc(&cuda->memory, device_bytes), "reserving the rank's memory", err));
    TRY(cuda_check(&cuda->rank, api->cuMemsetD8Async(cuda->memory, 0, weight_bytes, cuda->rank.stream),
                   "clearing the rank's memory", err));
    TRY(cuda_check(&cuda->rank, api->cuEventCreate(&cuda->cleared, CU_EVENT_DISABLE_TIMING), "creating an event", err));
    TRY(cuda_check(&cuda->rank, api->cuEventRecord(cuda->cleared, cuda->rank.stream), "clearing the rank's memory",
                   err));
    TRY(cuda_check(&cuda->rank,
                   api->cuMemsetD8Async(cuda->memory + weight_bytes, 0, device_bytes - weight_bytes, cuda->rank.stream),
                   "clearing the rank's memory", err));
    arena_init_at(&engine->rank_arena[r], (void *)(uintptr_t)cuda->memory, device_bytes);
    return LS_OK;
}

static ls_status cuda_reserve(ls_engine *engine, const ls_memory_plan *plan, ls_error *err) {
    cuda_engine *first = engine_cuda(engine);
    const size_t host_bytes = memory_tags_sum(plan->host);
    for (int r = 0; r < first->n_ranks; r++) {
        TRY(reserve_rank(engine, first_rank(engine) + r, plan, err));
    }
    TRY(cuda_rank_enter(&first->rank, err));
    /* Memory that comes in large pages is pinned several times faster than what the driver would allocate. */
    TRY(arena_init(&engine->host_arena, host_bytes, err));
    arena_large_pages(&engine->host_arena, host_bytes);
    TRY(cuda_check(&first->rank,
                   first->driver->cuMemHostRegister(engine->host_arena.base, engine->host_arena.bytes,
                                                    CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP),
                   "pinning memory", err));
    first->pinned = engine->host_arena.base;
    return LS_OK;
}

/* What steps need besides weights, for the ranks on a leader's GPU. */
static ls_status prepare(cuda_engine *leader, const void *arg, ls_error *err) {
    ls_engine *engine = leader->engine;
    (void)arg;
    TRY(cuda_rank_enter(&leader->rank, err));
    for (int i = 0; i < leader->n_here; i++) {
        const ls_program *program = engine->program[leader->here[i]];
        cuda_rank *rank = &cuda_of(engine, leader->here[i])->rank;
        TRY(decode_prepare(rank, err));
        rank->cublaslt = leader->lt;
        TRY(prefill_prepare(rank, program->op, program->n_ops, err));
    }
    if (engine_cuda(engine)->profile != NULL) {
        return LS_OK;
    }
    range_begin("capture");
    ls_status st = cuda_graphs_capture(leader, err);
    range_end();
    TRY(st);
    return engine->config.persist_bytes > 0 ? cuda_persist_prepare(leader, err) : LS_OK;
}

/* A persistent kernel that does not run to its end here is no reason to run nothing. */
static ls_status choose_plan(ls_engine *engine, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    ls_error why = {0};
    engine->decode_plan = "graph";
    if (cuda->persist == NULL) {
        return LS_OK;
    }
    cuda_persist_join(cuda);
    ls_status st = cuda_try_step(engine, &why);
    if (st == LS_OK) {
        engine->decode_plan = "persistent";
        return LS_OK;
    }
    if (engine->config.must_persist) {
        return error_set(err, st, "--plan persistent: %s", why.text);
    }
    log_line(&engine->model->log, LS_LOG_WARN, "decode steps run as graphs: %s", why.text);
    for (int r = 0; r < cuda->n_ranks; r++) {
        cuda_persist_close(cuda->of[r]);
        TRY(cuda_rank_enter(&cuda->of[r]->rank, err));
        TRY(cuda_rank_wait(&cuda->of[r]->rank, "a step that failed", CUDA_STEP_TIMEOUT_S, err));
    }
    return cuda_rank_enter(&cuda->rank, err);
}

/* Ranks must do the same: with cuBLASLt on all GPUs, or on none. */
static void agree_on_lt(cuda_engine *first) {
    bool all = true;
    for (int r = 0; r < first->n_ranks; r++) {
        end_opening_lt(first->of[r]);
        all = all && first->of[r]->leader->lt != NULL;
    }
    for (int r = 0; r < first->n_ranks && !all; r++) {
        cublaslt_close(&first->of[r]->lt);
    }
}

static void *prepare_thread(void *arg) {
    cuda_engine *first = arg;
    agree_on_lt(first);
    range_begin("prepare");
    first->unprepared.status = cuda_crew_run(first, prepare, NULL, 0, &first->unprepared);
    range_end();
    return NULL;
}

static ls_status bind_rank(ls_engine *engine, int r, ls_error *err) {
    const engine_config *config = &engine->config;
    const rank_memory *placed = &engine->rank[r];
    cuda_engine *cuda = cuda_of(engine, r);
    cuda_rank *rank = &cuda->rank;
    size_t rope_bytes = (size_t)config->max_len * (size_t)engine->model->spec.d_head * sizeof(float);
    rank->bind = placed->bind;
    rank->step = (CUdeviceptr)(uintptr_t)placed->step;
    rank->step_bytes = step_image_bytes(config);
    rank->counters = (CUdeviceptr)(uintptr_t)placed->counters;
    rank->drawn = (CUdeviceptr)(uintptr_t)placed->result;
    rank->workspace = (CUdeviceptr)(uintptr_t)placed->workspace;
    rank->workspace_bytes = config->workspace_bytes;
    rank->attn_warps = config->persist_bytes > 0 ? PERSIST_WARPS : 0; /* the same bits by graphs, with a profile */
    TRY(cuda_rank_enter(rank, err));
    TRY(cuda_check(rank,
                   cuda->driver->cuMemcpyHtoDAsync((CUdeviceptr)(uintptr_t)rank->bind.rope, engine->host.rope,
                                                   rope_bytes, rank->stream),
                   "copying the RoPE table", err));
    engine->host.fault[r] = batch_faults(&engine->batch[0], config, r);
    for (int i = 0; i < 2 && cuda->leader == cuda; i++) {
        TRY(cuda_check(rank, cuda->driver->cuEventCreate(&cuda->done[i], CU_EVENT_DISABLE_TIMING), "creating an event",
                       err));
    }
    return LS_OK;
}

/* Weights, and beside them all else on every GPU. */
static ls_status load_and_prepare(ls_engine *engine, ls_error *err) {
    cuda_engine *first = engine_cuda(engine);
    const bool beside = thread_start(&first->prepares, prepare_thread, first) == 0;
    ls_status st = cuda_load_weights(engine, err);
    if (beside) {
        pthread_join(first->prepares, NULL);
    } else if (st == LS_OK) {
        prepare_thread(first);
    }
    TRY(st);
    if (first->unprepared.status != LS_OK) {
        if (err != NULL) {
            *err = first->unprepared;
        }
        return first->unprepared.status;
    }
    for (int r = 0; r < first->n_ranks; r++) {
        const int64_t us = first->of[r]->graphs_us;
        engine->graphs_us = us > engine->graphs_us ? us : engine->graphs_us;
    }
    engine->n_graphs = first->profile == NULL ? first->n_graphs : 0;
    return LS_OK;
}

static ls_status cuda_load(ls_engine *engine, ls_error *err) {
    cuda_engine *first = engine_cuda(engine);
    for (int r = 0; r < first->n_ranks; r++) {
        TRY(bind_rank(engine, first_rank(engine) + r, err));
    }
    TRY(cuda_ranks_join(engine, err));
    TRY(cuda_rank_enter(&first->rank, err));
    TRY(load_and_prepare(engine, err));
    if (first->no_lt.status != LS_OK) {
        log_line(&engine->model->log, LS_LOG_INFO, "prompts run without cuBLASLt: %s", first->no_lt.text);
    }
    for (int r = first->n_ranks - 1; r >= 0; r--) {
        TRY(cuda_rank_enter(&first->of[r]->rank, err));
        TRY(cuda_rank_wait(&first->of[r]->rank, "loading", CUDA_STEP_TIMEOUT_S, err));
    }
    return choose_plan(engine, err);
}

/* ---- The limit ---- */

/* All GPUs of the ranks, one after the other. */
static double cuda_read_rate(ls_engine *engine) {
    const cuda_engine *first = engine_cuda(engine);
    double sum = 0;
    for (int r = 0; r < first->n_ranks; r++) {
        cuda_engine *cuda = first->of[r];
        const int64_t bytes = (int64_t)engine->rank_arena[first_rank(engine) + r].by_tag[MEM_WEIGHTS];
        const CUdeviceptr sink = cuda->rank.workspace; /* nothing in it outlives a step */
        ls_rate rate = {0, 0};
        if (cuda->leader == cuda && cuda_rank_enter(&cuda->rank, NULL) == LS_OK) {
            cuda_measure_read(&cuda->rank, cuda->memory, bytes / 16 * 16, sink, &rate, NULL);
            sum += rate.best;
        }
    }
    return sum;
}

/* ---- Closing ---- */

/* False: a kernel never ends, and freeing anything would wait for it. */
static bool is_idle(const cuda_engine *cuda) {
    return cuda->rank.context == NULL || cuda->rank.stream == NULL || cuda_rank_enter(&cuda->rank, NULL) != LS_OK ||
           cuda_rank_wait(&cuda->rank, "closing", 5, NULL) == LS_OK ||
           cuda->driver->cuStreamQuery(cuda->rank.stream) != CUDA_ERROR_NOT_READY;
}

static void free_rank(cuda_engine *cuda) {
    const cuda_driver *api = cuda->driver;
    if (cuda->rank.context == NULL || cuda_rank_enter(&cuda->rank, NULL) != LS_OK) {
        return;
    }
    for (int i = 0; i < cuda->n_graphs; i++) {
        if (cuda->graph[i] != NULL) {
            api->cuGraphExecDestroy(cuda->graph[i]);
        }
    }
    for (int i = 0; i < 2; i++) {
        if (cuda->done[i] != NULL) {
            api->cuEventDestroy(cuda->done[i]);
        }
    }
    cuda_profile_close(cuda);
    cuda_persist_close(cuda);
    cublaslt_close(&cuda->lt);
    if (cuda->memory != 0) {
        api->cuMemFree(cuda->memory);
    }
    if (cuda->pinned != NULL) {
        api->cuMemHostUnregister(cuda->pinned);
    }
    if (cuda->cleared != NULL) {
        api->cuEventDestroy(cuda->cleared);
    }
}

static void cuda_close(ls_engine *engine) {
    cuda_engine *first = engine_cuda(engine);
    bool idle = !(first != NULL && first->crew_lost);
    if (engine->model->start != NULL) { /* refused before the device was opened */
        cuda_start_release(engine->model->start);
    }
    if (first == NULL) {
        return;
    }
    if (first->nccl != NULL && (engine->death.status != LS_OK || !engine->is_open)) {
        idle = nccl_abort(first->nccl) && idle; /* a GPU may wait for one that was given nothing */
    }
    for (int r = 0; r < first->n_ranks; r++) {
        end_opening_lt(first->of[r]);
        idle = is_idle(first->of[r]) && idle;
    }
    cuda_crew_close(first);
    engine->device = NULL;
    if (!idle) {
        engine->host_arena.borrowed = true;
        return;
    }
    nccl_close(&first->nccl);
    for (int r = first->n_ranks - 1; r >= 0; r--) {
        free_rank(first->of[r]);
    }
    for (int r = first->n_ranks - 1; r >= 0; r--) { /* those who borrow first: leaders are before them */
        cuda_rank_close(&first->of[r]->rank);
        if (r > 0) {
            free(first->of[r]);
        }
    }
    cuda_driver_close(&first->driver);
    free(first);
}

static size_t cuda_profile_lines(const ls_engine *engine, const ls_profile_line **out) {
    const cuda_profile *profile = engine_cuda(engine)->profile;
    *out = profile != NULL ? profile->lines.line : NULL;
    return profile != NULL ? (size_t)profile->lines.n : 0;
}

/* A plain copy may still be on its way when it returns, and the stream would not wait for it. */
static ls_status cuda_copy_in(const ls_engine *engine, void *device, const void *from, size_t bytes, ls_error *err) {
    const cuda_rank *rank = &engine_cuda(engine)->rank;
    TRY(cuda_rank_enter(rank, err));
    TRY(cuda_check(rank, rank->driver->cuMemcpyHtoDAsync((CUdeviceptr)(uintptr_t)device, from, bytes, rank->stream),
                   "copying in", err));
    return cuda_check(rank, rank->driver->cuStreamSynchronize(rank->stream), "copying in", err);
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
                                 .submit = cuda_submit,
                                 .collect = cuda_collect,
                                 .read_rate = cuda_read_rate,
                                 .profile = cuda_profile_lines,
                                 .run_op = cuda_run_op,
                                 .run_decode = cuda_run_decode,
                                 .kernels = cuda_kernels,
                                 .copy_in = cuda_copy_in,
                                 .copy_out = cuda_copy_out,
                                 .close = cuda_close};
