/*
 * Engines whose ranks are on GPUs: what stands between the engine and backend/cuda.
 *
 *   cuda_engine.c    opens the devices, reserves memory, measures it
 *   cuda_ranks.c     which GPU is whose; opens them side by side, joins them, launches ops on the ranks of one
 *   cuda_crew.c      a thread for each GPU, for what they do side by side
 *   cuda_plan.c      what the configuration is on a device: the KV cache that fits, scratch; for engines and plans
 *   cuda_start.c     opens the driver and a context before the engine does, while files are read
 *   cuda_load.c      weights: files -> pinned ring -> kernels that convert and quantise; dummy ones are made there
 *   cuda_step.c      packs a step, runs it, reads its results: a graph for decode, or one launch of the persistent kernel
 *                    (cuda_persist.c); plain launches for the rest
 *   cuda_profile.c   times every launch, for --profile and --trace
 *
 * The host's arena is pinned: steps are packed in it and results arrive in it. Rows whose logits somebody wants to see, or
 * whose drawing needs more than the device knows (edits; with several ranks, filters), come back as logits, and the CPU's
 * `sample` makes the offer from them; for the others only the drawn token comes back.
 */
#ifndef LS_ENGINE_CUDA_ENGINE_H
#define LS_ENGINE_CUDA_ENGINE_H

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/cuda.h"
#include "backend/cuda/exchange.h"
#include "backend/cuda/persist.h"
#include "engine/engine.h"
#include "engine/profile.h"

enum { CUDA_GRAPHS = 13, CUDA_STEP_TIMEOUT_S = 60 };
#define CUDA_GRAPH_SIZES "1,2,4,8,16,24,32,48,64,96,128,192,256"

typedef struct cuda_profile {
    CUevent *event; /* [n_ops + 1] */
    int *first;     /* [n_ops + 1]: op with which launch i began */
    int n_events, n_launches;
    int64_t begin_ns;    /* when the step's first launch was made */
    profile_lines lines; /* of all GPUs: the first one's */
} cuda_profile;

typedef struct cuda_crew cuda_crew;
typedef struct cuda_persist cuda_persist;

/* A rank's. engine->device is that of the first rank of this process ("rank 0's" below), which has what all of them share: the driver, `of`, pinned memory, the group.
 * Streams, graphs, events, profiles and cuBLASLt are the leaders', a GPU's first rank each: cuda_ranks.c. */
typedef struct cuda_engine {
    ls_engine *engine;
    struct cuda_engine *of[LS_MAX_RANKS]; /* those of the ranks of this process, this one first */
    int n_ranks;                          /* of this process */
    int ordinal;                          /* the GPU */
    struct cuda_engine *leader;
    int here[LS_MAX_RANKS], n_here; /* of a leader: the ranks on its GPU */
    int64_t graphs_us;              /* that capturing took */
    cuda_crew *crew;                /* rank 0's */
    bool crew_lost;                 /* a thread of it hangs: nothing that it may use can be freed */
    cuda_nccl *nccl;                /* rank 0's; NULL: exchanges are not NCCL's */
    exchange_group group;
    cuda_exchange exchange;
    cuda_driver *driver;
    cuda_rank rank;
    CUdeviceptr memory; /* the rank's arena */
    void *pinned;       /* the host's, NULL until it is registered */
    cuda_load_kernels load_kernels;
    CUfunction copy_words;
    CUevent cleared; /* the weights' memory is zero */
    int n_graphs;
    int graph_rows[CUDA_GRAPHS]; /* rising: most rows of graph i */
    CUgraphExec graph[CUDA_GRAPHS];
    cuda_persist *persist; /* every rank's; NULL: graphs run all decode steps */
    CUevent done[2];       /* the step of engine->batch[i] is over and its results are there */
    /* While weights are loaded: a thread opens cuBLASLt, another prepares kernels and captures graphs, for all GPUs once all
     * cuBLASLts are open. */
    pthread_t opens_lt, prepares; /* the latter rank 0's */
    bool is_opening_lt;
    cublaslt *lt;        /* when that has ended; NULL: not there */
    ls_error no_lt;      /* why */
    ls_error unprepared; /* rank 0's, of all; LS_OK: they are prepared */
    uint32_t epoch;
    cuda_profile *profile; /* a leader's; NULL: not asked for */
    char kernels[128];     /* what cuda_kernels told last */
} cuda_engine;

static inline cuda_engine *engine_cuda(const ls_engine *engine) {
    return engine->device;
}
static inline cuda_engine *cuda_of(const ls_engine *engine, int rank) {
    return engine_cuda(engine)->of[rank - first_rank(engine)];
}

/* cuda_ranks.c. check: words of parameters, before anything is opened. open: all ranks, with rank 0's driver; sets
 * config.staged. join: once memory is placed. launch: op `first` on the ranks of a GPU, for decode-only steps of at most
 * `rows` rows, or (rows = 0) for this step; n_ranks > 1. */
ls_status cuda_devices_check(const device_choice *choice, int n_ranks, ls_error *err);
int cuda_most_on_a_device(const device_choice *choice, int n_ranks); /* ranks that share one */
ls_status cuda_exchange_check(const ls_engine_params *params, ls_error *err);
ls_status cuda_ranks_open(ls_engine *engine, const ls_engine_params *params, bool generic, ls_error *err);
ls_status cuda_ranks_memory(const cuda_engine *first, double share, gpu_memory *out, ls_error *err); /* of all hosts */
ls_status cuda_ranks_join(ls_engine *engine, ls_error *err);
ls_status cuda_ranks_launch(cuda_engine *leader, int first, const ls_step *step, int rows, ls_error *err);
ls_status cuda_ranks_check(const ls_engine *engine, ls_error *err);

/* cuda_crew.c: runs a job for every GPU at the same time, that of rank 0's on the calling thread; returns when all are done, with
 * the error of the first that failed. Others than the caller get a copy of what arg points to. A job makes its leader's context the thread's. One at a time; none after crew_lost. */
typedef ls_status (*cuda_job)(cuda_engine *leader, const void *arg, ls_error *err);
ls_status cuda_crew_open(cuda_engine *first, ls_error *err);
ls_status cuda_crew_run(cuda_engine *first, cuda_job job, const void *arg, size_t arg_bytes, ls_error *err);
void cuda_crew_close(cuda_engine *first); /* without one too */

/* cuda_plan.c: refuses what GPUs do not do; then, with the programs of the ranks and the device's memory, all that the
 * configuration lacks. */
ls_status cuda_config_check(const engine_config *config, const ls_engine_params *params, ls_error *err);
ls_status cuda_config_complete(engine_config *config, const ls_program *program, const ls_engine_params *params,
                               const gpu_memory *memory, ls_error *err);
/* --gpu-memory-utilization. */
double memory_share(const ls_engine_params *params);
/* Of an open rank's GPU, which n_ranks share; what that share of it leaves for each of them, in bytes. */
ls_status cuda_memory_of(const cuda_rank *rank, int n_ranks, gpu_memory *out, ls_error *err);
double memory_left(const gpu_memory *memory, double share);
/* What params.device has and what of it is in use once kernels are loaded, or what is assumed of a device of
 * params.device_memory_bytes. */
ls_status cuda_find_memory(const ls_engine_params *params, const device_choice *choice, int n_ranks, gpu_memory *out,
                           ls_error *err);

/* cuda_load.c */
ls_status cuda_load_weights(ls_engine *engine, ls_error *err);

/* cuda_step.c */
ls_status cuda_graphs_read(cuda_engine *cuda, const char *sizes, int max_seqs, ls_error *err);
ls_status cuda_graphs_capture(cuda_engine *leader, ls_error *err);
ls_status cuda_submit(ls_engine *engine, step_batch *batch, ls_error *err);
ls_status cuda_collect(ls_engine *engine, step_batch *batch, ls_error *err);
/* Runs a step of one token, which nobody wants, by the persistent kernel, on all ranks. */
ls_status cuda_try_step(ls_engine *engine, ls_error *err);
/* One op by the kernels for any step, which leave what ops.h says at every border. */
ls_status cuda_run_op(ls_engine *engine, const ls_step *step, int index, ls_error *err);
ls_status cuda_run_decode(ls_engine *engine, const ls_step *step, int first, int *n_taken, ls_error *err);
const char *cuda_kernels(ls_engine *engine);

/* cuda_persist.c. check: params->plan, before anything is opened. size: what its plans take of the device's
 * memory for a rank, on devices of these facts: config->persist_bytes, 0 where they are not wanted, or cannot be and params->plan does
 * not insist. prepare: of the ranks of a GPU, once their memory is placed; join: all ranks, once all are prepared. */
ls_status cuda_persist_params_check(const ls_engine_params *params, int n_ranks, ls_error *err);
ls_status cuda_persist_size(engine_config *config, const cuda_facts *facts, const ls_program *program,
                            const ls_engine_params *params, ls_error *err);
ls_status cuda_persist_prepare(cuda_engine *leader, ls_error *err);
void cuda_persist_join(cuda_engine *first);
/* Whether it runs a decode step of so many rows; enqueues it, on the ranks of a GPU; after it: LS_EABORTED if it ended in vain. */
bool cuda_persist_takes(const cuda_engine *leader, int n_rows);
ls_status cuda_persist_launch(cuda_engine *leader, int n_rows, ls_error *err);
ls_status cuda_persist_check(const ls_engine *engine, ls_error *err);
void cuda_persist_close(cuda_engine *cuda);

/* cuda_profile.c, of every GPU: begin, a mark before each launch, end when the streams are idle again. No-ops where it is off. */
ls_status cuda_profile_open(ls_engine *engine, ls_error *err);
void cuda_profile_close(cuda_engine *cuda);
void cuda_profile_begin(cuda_engine *cuda);
ls_status cuda_profile_mark(cuda_engine *cuda, int op, ls_error *err);
ls_status cuda_profile_end(ls_engine *engine, step_batch *batch, ls_error *err);

#endif
