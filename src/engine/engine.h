/*
 * Inside of ls_model, ls_engine and ls_request; only src/engine includes it.
 *
 * One thread at a time drives an engine: the caller of ls_engine_step, or the engine's own (driver.c). The ranks' threads
 * run only inside rank_group_run: the driver writes the step's input, runs the step, reads the outputs.
 *
 * engine->lock guards everything but what a running step reads. The driver holds it while it schedules and publishes, and
 * lets go of it while the ranks run; `in_step` says so. Meanwhile others may add, read and cancel requests, but what the
 * step works on (its sequences' tokens, pages, edits; the ranks) they leave alone: they wait, or leave a mark that the
 * driver sees to. A step ahead (step.c) may run at any time, `in_step` or not; it reads nothing of the host's.
 */
#ifndef LS_ENGINE_ENGINE_H
#define LS_ENGINE_ENGINE_H

#include <pthread.h>

#include "base/log.h"
#include "engine/answer.h"
#include "engine/backend.h"
#include "engine/load_progress.h"
#include "engine/logit_edits.h"
#include "engine/memory_plan.h"
#include "engine/pages.h"
#include "engine/plan_cache.h"
#include "engine/sampler.h"
#include "model/weights.h"
#include "text/detokenize.h"

struct ls_model {
    ls_spec spec;
    ls_generation_defaults defaults;
    ls_tokenizer *tokenizer;   /* NULL: dummy model without a folder */
    ls_checkpoint *checkpoint; /* NULL: dummy weights */
    uint64_t dummy_seed;
    char *folder;             /* NULL: shapes that are built in */
    struct cuda_start *start; /* opens a GPU while the rest of the model is read; or NULL */
    ls_log log;
    int64_t open_ns, load_us; /* when opening began, and how long it took */
};

typedef enum request_state { REQUEST_WAITING, REQUEST_RUNNING, REQUEST_FINISHED } request_state;

/* A sequence: a prompt and the tokens that follow it. tokens [0, n_computed) are in the KV cache. */
struct ls_request {
    ls_engine *engine;
    ls_request *next_of_engine, *prev_of_engine; /* all requests of the engine */
    ls_request *next_waiting;
    ls_request *next_kept;          /* finished ones that keep their pages, oldest first */
    ls_request *next_news;          /* ls_engine_poll has not told of it yet */
    bool has_news, is_kept, cancel; /* cancel: as soon as the step is over */
    request_state state;
    ls_request_params params; /* its pointers are not kept, but for `reuse` */
    ls_sample_params sample;  /* edit and allowed point to what follows */
    logit_edits edits;
    int32_t *allowed; /* [sample.n_allowed] rising */
    int32_t *ending;  /* [n_ending] tokens that stop it */
    int n_ending;
    char **stop; /* [n_stop] for ls_result.stop_string */
    size_t n_stop;
    int32_t *token; /* [token_capacity]: prompt, then answer */
    int n_prompt, n_tokens, token_capacity;
    int n_computed;
    int n_logits_seen; /* prompt positions whose logits were used */
    int n_reused, n_preempted;
    int32_t *page; /* [page_capacity] */
    int n_pages;
    int n_remembered;       /* of them, from the first on, the prefix cache knows: full and computed */
    uint64_t remembered;    /* the serial of the last of these; 0: none */
    answer_text live, view; /* fed by steps (only if it is `watched`); by ls_request_get_result */
    bool watched;           /* somebody listens, or a stop string may come */
    text_buffer text;       /* what view gave */
    bool text_ended;
    ls_logprobs *logprobs; /* [token_capacity] from logprobs_first on, or NULL */
    int logprobs_first, logprobs_end;
    ls_finish finish;
    ls_error error;
    int stop_string;    /* index, or -1 */
    int32_t stop_token; /* or -1 */
    uint64_t logits_hash;
    int64_t submitted_ns, first_step_ns, first_token_ns, finished_ns; /* -1: not yet */
};

/* What one output row of the step is for. */
typedef struct step_output {
    ls_request *request; /* NULL: nobody wants it any more */
    bool chooses;        /* its logits choose the next token; otherwise they are a prompt position's */
    bool on_host; /* the host reads its logits; otherwise the token that the device draws is all that is asked for */
} step_output;

/* A step being built: the arrays that ls_step points to. Engine lifetime; counts are reset each step. */
typedef struct step_batch {
    ls_step step;
    int32_t *token, *pos, *seq_of;  /* [m_max] */
    ls_step_seq *seq;               /* [max_num_seqs] */
    ls_request **request;           /* [max_num_seqs] of each seq; NULL: ended meanwhile */
    int32_t *out_row;               /* [n_out_max] */
    ls_sample_params *sample;       /* [n_out_max] */
    step_output *output;            /* [n_out_max] */
    int64_t submitted_ns, ended_ns; /* ended: as the host saw it, its results not read yet */
    int64_t exchange_ns;            /* that rank 0's exchanges took, where somebody measures it */
    int64_t host_ns;                /* before it: ranks had no step, though there was work; step.c */
    /* Of ranks on devices: */
    void *image;     /* [step_image_bytes] the step as it is copied there, the same for all */
    int32_t *result; /* [n_ranks][result_words] their results as they come back */
} step_batch;

static inline int32_t *batch_result(const step_batch *batch, const engine_config *config, int rank) {
    return batch->result + (size_t)rank * result_words(config);
}
static inline atomic_int *batch_faults(const step_batch *batch, const engine_config *config, int rank) {
    return (atomic_int *)(batch_result(batch, config, rank) + result_faults(config));
}

typedef struct engine_stats {
    int64_t prefill_ns, decode_ns;
    int64_t prefill_tokens, decode_tokens, prefill_steps, decode_steps;
    int64_t decode_kv_bytes;                 /* read by all decode steps */
    int64_t exchange_ns;                     /* of decode steps */
    int64_t prefill_host_ns, decode_host_ns; /* before the steps; no part of their time */
    int64_t preemptions, finished, failed, cancelled, generated_tokens;
    int64_t prefix_query_tokens, prefix_hit_tokens;
    int64_t ahead_steps; /* that were submitted while the one before them ran */
} engine_stats;

/* The engine's own thread, and what ls_engine_poll tells. */
typedef struct engine_driver {
    pthread_t thread;
    bool started, stopping;
    ls_request *news, **news_end; /* in the order it happened */
    int event_fd;                 /* readable while there is news; -1 before the first start */
} engine_driver;

struct ls_engine {
    const ls_model *model;
    engine_config config;
    const ls_backend *backend;
    ls_hosts *hosts;               /* the other processes that have ranks, or NULL: host_step.c */
    struct host_steps *host_steps; /* what host_step.c keeps, or NULL */
    bool is_open;                  /* all of ls_engine_open was done */
    struct cpu_profile *profile;   /* of ranks on the CPU, or NULL: profile.h */
    void *device;                  /* the back end's own, or NULL */
    char device_name[96];          /* of the GPU; empty on the CPU */
    char no_gpu[512];              /* why "auto" came to be the CPU, or empty */
    const cpu_isa *isa;
    rank_group *group;
    ls_exchange *exchange;
    ls_program *program[LS_MAX_RANKS];
    ls_arena rank_arena[LS_MAX_RANKS];
    ls_arena host_arena;
    rank_memory rank[LS_MAX_RANKS];
    host_memory host;
    plan_cache plans;
    page_pool pages;
    step_batch batch[2]; /* the second: only if config.runs_ahead */
    step_batch *ahead;   /* the one of them that was submitted before the step before it was published, or NULL */
    text_buffer piece, scratch; /* what on_text is given, and before stop strings; reserved at the start */
    ls_request *requests;       /* all */
    ls_request *waiting;        /* by priority, then arrival; preempted ones go before their equals */
    ls_request *kept;           /* finished, with pages that others may have when they need them */
    ls_request **running;       /* [max_num_seqs] by admission */
    int n_running;
    engine_stats stats;
    load_progress progress; /* of loading weights */
    int64_t open_ns, plan_us, shard_us, graphs_us;
    int64_t driver_us, context_us; /* of a GPU: what opening them took */
    int64_t weights_us;            /* of shard_us */
    int64_t first_token_ns;        /* when the first token of all was given; 0: not yet */
    int64_t ended_ns;              /* when the last step was over */
    int64_t free_ns;               /* since when work has waited and no step runs; 0: one does, or there was no work */
    int n_graphs;                  /* of a GPU's decode steps */
    const char *decode_plan;       /* of a GPU: "persistent" or "graph"; else "" */
    double read_bytes_per_s;       /* 0: not measured yet */
    ls_error death;                /* status LS_OK while the engine lives; see engine_check_alive */
    pthread_mutex_t lock;
    pthread_cond_t step_over, work, told; /* in_step fell; something to do; something for ls_engine_poll */
    bool in_step;
    int n_cancels;      /* requests marked `cancel` */
    int n_idle_waiters; /* in engine_lock_idle: the driver starts no step before they are through */
    engine_driver driver;
};

/* model_open.c: what crosses the border says its size. Inputs may not be larger than what we know; outputs may. */
ls_status check_struct_size(const char *name, size_t given, size_t known, ls_error *err);

#ifdef LS_CUDA
/* cuda_start.c: the driver and a context of a GPU, opened by threads while something else is done. Whoever opens the GPU
 * after that finds both. */
typedef struct cuda_start cuda_start;
/* NULL if there can be no such threads. */
cuda_start *cuda_start_begin(int ordinal);
/* Meanwhile the files of a checkpoint, which outlives `start`, are read into the page cache. Once. */
void cuda_start_read_ahead(cuda_start *start, const ls_checkpoint *checkpoint);
/* Waits until the GPU is open, or could not be: opening it again tells why. What the two took is 0 in the latter case. */
void cuda_start_wait(cuda_start *start, int64_t *driver_us, int64_t *context_us);
/* Lets go of the context. From then on `start` does nothing more. From any thread, any number of times. */
void cuda_start_release(cuda_start *start);
void cuda_start_end(cuda_start **start); /* accepts NULL inside; sets it to NULL */
#endif

/* What backend_cpu is made of: engine.c (the first two), step.c, timeline.c. */
ls_status cpu_reserve(ls_engine *engine, const ls_memory_plan *plan, ls_error *err);
ls_status cpu_load(ls_engine *engine, ls_error *err);
ls_status cpu_submit(ls_engine *engine, step_batch *batch, ls_error *err);
ls_status cpu_collect(ls_engine *engine, step_batch *batch, ls_error *err);
double cpu_read_rate(ls_engine *engine);
size_t memory_tags_sum(const size_t by_tag[MEM_TAGS]);
/* engine.c: what parameters mean for a model, without opening anything: every default resolved; the ranks' programs, into
 * program[n_ranks] (those built before a failure stay the caller's). Plans are made by the same two. */
ls_status engine_config_resolve(engine_config *config, const ls_spec *spec, const ls_engine_params *params,
                                ls_error *err);
bool wants_async_scheduling(const ls_engine_params *params);
ls_status engine_programs_build(ls_program **program, const ls_spec *spec, const engine_config *config, ls_error *err);

/* engine.c: ls_engine_open on this back end; its own parameters are known to be of this header's size. */
ls_status engine_open_on(const ls_backend *backend, ls_model *model, const ls_engine_params *params, int ordinal,
                         ls_engine **out, ls_error *err);

/* scheduler.c: fills a batch from the running and waiting requests. No step may be ahead. */
void schedule(ls_engine *engine, step_batch *batch);
/* Fills `next` with the step after `now`, whose tokens are not known yet; false, with nothing changed, where that step
 * must wait for them. */
bool schedule_ahead(ls_engine *engine, const step_batch *now, step_batch *next);
void scheduler_add(ls_engine *engine, ls_request *request);
/* A step has computed tokens of the request: its full pages may serve others. */
void scheduler_remember(ls_engine *engine, ls_request *request);
/* Takes a request out of the queues and of the step ahead; its pages go back, or are kept for a later one (`keep`). */
void scheduler_remove(ls_engine *engine, ls_request *request, bool keep);
/* Gives back the pages of a finished request that kept them. */
void scheduler_drop_kept(ls_engine *engine, ls_request *request);

/* step.c: schedule, run, sample, publish. A step that its ranks could not finish kills the engine: its requests fail with
 * the reason, and from then on submitting and stepping do too. */
ls_status engine_check_alive(const ls_engine *engine, ls_error *err);
/* Called with the lock, which it lets go while the ranks run. */
ls_status engine_step(ls_engine *engine, ls_error *err);

/* driver.c */
ls_status driver_init(ls_engine *engine, ls_error *err);
void driver_deinit(ls_engine *engine);
/* The lock, once no step runs: for what needs the ranks, or what a step may be working on. */
void engine_lock_idle(ls_engine *engine);
void driver_wake(ls_engine *engine);                        /* there is work */
void driver_tell(ls_engine *engine, ls_request *request);   /* it has news */
void driver_forget(ls_engine *engine, ls_request *request); /* it goes away */

/* request.c */
void request_finish(ls_request *request, ls_finish finish);
void request_destroy(ls_request *request);

/* request_params.c: checks and copies what the caller gave, with the model's defaults. prompt: the tokens. */
ls_status request_read_params(ls_request *request, const token_list *prompt, ls_error *err);
ls_status request_read_prompt(const ls_model *model, const ls_request_params *p, token_list *out, ls_error *err);

/* logprobs.c */
bool wants_logprobs(const ls_request *request, int index); /* of token `index` */
ls_status logprobs_reserve(ls_request *request, ls_error *err);
void logprobs_store(ls_request *request, const sampler_row *row, int index, int32_t token);

/* host_step.c: ranks on several hosts. Nothing of it does anything on one. Host 0 sends a step before it runs its own ranks,
 * and gathers what theirs have for it after that; the others do the same in ls_engine_follow. */
ls_status host_device_check(device_choice *choice, const ls_engine_params *params, ls_error *err);
void host_ranks_bind(ls_engine *engine);
ls_status host_exchange_create(ls_engine *engine, ls_error *err);
void host_steps_free(ls_engine *engine);
ls_status hosts_loaded(ls_engine *engine, ls_error *err);
ls_status host_step_send(ls_engine *engine, const step_batch *batch, ls_error *err);
ls_status host_step_gather(ls_engine *engine, const step_batch *batch, ls_error *err);
void hosts_end_steps(ls_engine *engine);
/* host_compare.c: whether all processes run the same model in the same way; the one that does not is named. */
ls_status hosts_compare(ls_engine *engine, ls_error *err);

/* The ranks of this process. */
static inline int first_rank(const ls_engine *engine) {
    return engine->config.rank_first;
}
static inline int end_rank(const ls_engine *engine) {
    return engine->config.rank_first + engine->config.rank_count;
}

/* timeline.c */
void stats_add_step(ls_engine *engine, const step_batch *batch, int64_t step_ns);

#endif
