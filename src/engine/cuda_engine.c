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
    return cuda_load_open(&cuda->load_kernels, &cuda->rank, err);
}

static ls_status cuda_open(ls_engine *engine, const ls_engine_params *params, int ordinal, ls_error *err) {
    engine_config *config = &engine->config;
    size_t free_bytes, total_bytes;
    TRY(cuda_config_check(config, params, err));
    cuda_engine *cuda = calloc(1, sizeof *cuda);
    if (cuda == NULL) {
        return error_set(err, LS_ENOMEM, "engine: out of memory");
    }
    engine->device = cuda;
    TRY(cuda_graphs_read(cuda, params->graph_sizes, config->max_seqs, err));
    bool generic = params->kernels != NULL && strcmp(params->kernels, "generic") == 0;
    TRY(open_device(engine, ordinal, generic, err));
    TRY(cuda_rank_kernel(&cuda->rank, "copy_words", &cuda->copy_words, err));
    cuda->is_opening_lt = !generic && pthread_create(&cuda->opens_lt, NULL, open_lt, cuda) == 0;
    memcpy(engine->device_name, cuda->rank.facts.name, sizeof engine->device_name);
    if (cuda->rank.jit_us > 0) {
        log_line(&engine->model->log, LS_LOG_WARN, "%s (sm_%d%d): the driver compiled its kernels in %.1f s",
                 engine->device_name, cuda->rank.facts.cc_major, cuda->rank.facts.cc_minor,
                 (double)cuda->rank.jit_us / 1e6);
    }
    if (params->profile || params->trace_events > 0) {
        TRY(cuda_profile_open(cuda, engine->program[0]->n_ops, err));
    }
    TRY(cuda_rank_memory(&cuda->rank, &free_bytes, &total_bytes, err));
    return cuda_config_complete(config, engine->program[0], params,
                                &(gpu_memory){.total_bytes = (int64_t)total_bytes,
                                              .used_bytes = (int64_t)(total_bytes - free_bytes),
                                              .measured = true,
                                              .sm_count = cuda->rank.facts.sm_count,
                                              .cc_major = cuda->rank.facts.cc_major,
                                              .shared_bytes_per_block = cuda->rank.facts.shared_bytes_per_block},
                                err);
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
    TRY(st);
    return engine->config.persist_bytes > 0 ? cuda_persist_prepare(engine, err) : LS_OK;
}

static void *prepare_thread(void *arg) {
    cuda_engine *cuda = engine_cuda(arg);
    range_begin("prepare");
    cuda->unprepared.status = prepare(arg, &cuda->unprepared);
    range_end();
    return NULL;
}

/* A persistent kernel that does not run to its end here is no reason to run nothing. */
static ls_status choose_plan(ls_engine *engine, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    ls_error why = {0};
    engine->decode_plan = "graph";
    if (cuda->persist == NULL) {
        return LS_OK;
    }
    ls_status st = cuda_try_step(engine, &why);
    if (st == LS_OK) {
        engine->decode_plan = "persistent";
        return LS_OK;
    }
    if (engine->config.must_persist) {
        return error_set(err, st, "--plan persistent: %s", why.text);
    }
    log_line(&engine->model->log, LS_LOG_WARN, "decode steps run as graphs: %s", why.text);
    cuda_persist_close(cuda);
    return cuda_rank_wait(&cuda->rank, "a step that failed", CUDA_STEP_TIMEOUT_S, err);
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
    rank->counters = (CUdeviceptr)(uintptr_t)placed->counters;
    rank->drawn = (CUdeviceptr)(uintptr_t)placed->result;
    rank->workspace = (CUdeviceptr)(uintptr_t)placed->workspace;
    rank->workspace_bytes = config->workspace_bytes;
    TRY(cuda_check(rank,
                   cuda->driver->cuMemcpyHtoDAsync((CUdeviceptr)(uintptr_t)rank->bind.rope, engine->host.rope,
                                                   rope_bytes, rank->stream),
                   "copying the RoPE table", err));
    engine->host.fault[0] = batch_faults(&engine->batch[0], config);
    for (int i = 0; i < 2; i++) {
        TRY(cuda_check(rank, cuda->driver->cuEventCreate(&cuda->done[i], CU_EVENT_DISABLE_TIMING), "creating an event",
                       err));
    }
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
    TRY(cuda_rank_wait(rank, "loading", CUDA_STEP_TIMEOUT_S, err));
    return choose_plan(engine, err);
}

/* ---- The limit ---- */

static double cuda_read_rate(ls_engine *engine) {
    cuda_rank *rank = &engine_cuda(engine)->rank;
    const int64_t bytes = (int64_t)engine->rank_arena[0].by_tag[MEM_WEIGHTS];
    const CUdeviceptr sink = rank->workspace; /* nothing in it outlives a step */
    ls_rate rate = {0, 0};
    if (cuda_rank_enter(rank, NULL) == LS_OK) {
        cuda_measure_read(rank, engine_cuda(engine)->memory, bytes / 16 * 16, sink, &rate, NULL);
    }
    return rate.best;
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
        for (int i = 0; i < 2; i++) {
            if (cuda->done[i] != NULL) {
                cuda->driver->cuEventDestroy(cuda->done[i]);
            }
        }
        cuda_profile_close(cuda);
        cuda_persist_close(cuda);
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
