/*
 * What an engine asks of a back end: memory for its ranks, weights in it, steps run there, and what a step leaves for the
 * host to read (rank_memory's logits and offers, host_memory's faults). One table for each; everything above it is the
 * same for all.
 *
 * Order of calls: open, reserve, load, then steps and read_rate, close. close takes an engine that got half way.
 *
 * A step is submitted, then collected. Steps run in the order in which they were submitted, each on what the one before
 * it left in the KV cache. A back end whose open sets config.runs_ahead takes a second step before the first is collected.
 */
#ifndef LS_ENGINE_BACKEND_H
#define LS_ENGINE_BACKEND_H

#include "engine/memory_plan.h"

struct step_batch;

typedef struct ls_backend {
    const char *name; /* "cpu", "cuda" */
    /* The device behind it, if it has one; completes engine->config. Programs are built. */
    ls_status (*open)(ls_engine *engine, const ls_engine_params *params, int ordinal, ls_error *err);
    /* Makes the host's and the ranks' arenas, of the plan's sizes and zeroed. LS_ENOMEM says need and have. */
    ls_status (*reserve)(ls_engine *engine, const ls_memory_plan *plan, ls_error *err);
    /* Fills the carved memory: weights, RoPE table. After it steps can run and nothing is allocated. */
    ls_status (*load)(ls_engine *engine, ls_error *err);
    /* Starts a step on all ranks; when it returns the step may run still, from a copy of its input. */
    ls_status (*submit)(ls_engine *engine, struct step_batch *batch, ls_error *err);
    /* Waits for the step, notes its end in batch->ended_ns, and makes its results the ones that the host reads. Nobody need collect a step; its batch may be
     * submitted again all the same. Both are called without the engine's lock; an error is the end of the engine. */
    ls_status (*collect)(ls_engine *engine, struct step_batch *batch, ls_error *err);
    /* Bytes a second at which the ranks can read their weights at most; 0 if that failed. */
    double (*read_rate)(ls_engine *engine);
    /* What params.profile asked for, lines of the engine's lifetime; none where nothing is timed. */
    size_t (*profile)(const ls_engine *engine, const ls_profile_line **out);
    /* For verify, where ranks are on devices (NULL otherwise): one op of rank 0; memory there, to and from. */
    ls_status (*run_op)(ls_engine *engine, const ls_step *step, int index, ls_error *err);
    /* The same by the kernels of decode steps, as such a step launches them from op `first` on: *n_taken ops, of which
     * the last may leave what only the next one goes on with. And names of the kernels that were launched since the
     * call before, borrowed until the next. */
    ls_status (*run_decode)(ls_engine *engine, const ls_step *step, int first, int *n_taken, ls_error *err);
    const char *(*kernels)(ls_engine *engine);
    ls_status (*copy_in)(const ls_engine *engine, void *device, const void *from, size_t bytes, ls_error *err);
    ls_status (*copy_out)(const ls_engine *engine, const void *device, void *to, size_t bytes, ls_error *err);
    void (*close)(ls_engine *engine);
} ls_backend;

extern const ls_backend backend_cpu;
#ifdef LS_CUDA
extern const ls_backend backend_cuda;
#endif

/* What --device says. */
typedef struct device_choice {
    bool may_be_cuda, may_be_cpu;
    int ordinal;
    int n_devices; /* that are named; 0: none */
    int device[LS_MAX_RANKS];
} device_choice;

static inline int device_of_rank(const device_choice *choice, int rank) {
    return rank < choice->n_devices ? choice->device[rank] : rank;
}

ls_status device_choice_read(device_choice *out, const char *text, ls_error *err);
/* As many ranks as devices are named, where their number is not given. */
ls_status device_choice_ranks(ls_engine_params *params, ls_error *err);

/* A GPU's memory before an engine takes any: of `used`, the driver's own share is measured with others', or assumed. */
typedef struct gpu_memory {
    int64_t total_bytes, used_bytes;
    bool measured;
    int n_ranks; /* that share it */
} gpu_memory;

#endif
