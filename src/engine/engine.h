/*
 * Inside of ls_model, ls_engine and ls_request; only src/engine includes it.
 *
 * One thread at a time drives an engine. The ranks' threads run only inside rank_group_run, so nothing here needs a
 * lock: the driver writes the step's input, runs the step, reads the outputs.
 */
#ifndef LS_ENGINE_ENGINE_H
#define LS_ENGINE_ENGINE_H

#include "base/log.h"
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
    ls_log log;
    int64_t open_ns, load_us; /* when opening began, and how long it took */
};

typedef enum request_state { REQUEST_WAITING, REQUEST_RUNNING, REQUEST_FINISHED } request_state;

/* A sequence: a prompt and the tokens that follow it. tokens [0, n_computed) are in the KV cache. */
struct ls_request {
    ls_engine *engine;
    ls_request *next_of_engine, *prev_of_engine; /* all requests of the engine */
    ls_request *next_waiting;
    request_state state;
    ls_request_params params; /* its pointers to prompts are not kept */
    ls_sample_params sample;
    int32_t *token; /* [token_capacity]: prompt, then answer */
    int n_prompt, n_tokens, token_capacity;
    int n_computed;
    int n_logits_seen; /* prompt positions whose logits went to on_logits */
    int32_t *page;     /* [page_capacity] */
    int n_pages;
    detokenizer stream;
    text_buffer text; /* built by ls_request_get_result, not by steps */
    ls_finish finish;
    ls_error error;
    uint64_t logits_hash;
    int64_t submitted_ns, first_token_ns;
};

/* What one output row of the step is for. */
typedef struct step_output {
    ls_request *request;
    bool chooses; /* its logits choose the next token; otherwise they are a prompt position's */
} step_output;

/* A step being built: the arrays that ls_step points to. Engine lifetime; counts are reset each step. */
typedef struct step_batch {
    ls_step step;
    int32_t *token, *pos, *seq_of; /* [m_max] */
    ls_step_seq *seq;              /* [max_num_seqs] */
    ls_request **request;          /* [max_num_seqs] of each seq */
    int32_t *out_row;              /* [n_out_max] */
    ls_sample_params *sample;      /* [n_out_max] */
    step_output *output;           /* [n_out_max] */
} step_batch;

typedef struct engine_stats {
    int64_t prefill_ns, decode_ns;
    int64_t prefill_tokens, decode_tokens, prefill_steps, decode_steps;
    int64_t decode_kv_bytes; /* read by all decode steps */
    int64_t exchange_ns;     /* of decode steps */
    int64_t preemptions;
} engine_stats;

struct ls_engine {
    const ls_model *model;
    engine_config config;
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
    step_batch batch;
    text_buffer piece;                  /* what on_text is given; reserved at the start */
    ls_request *requests;               /* all */
    ls_request *waiting, **waiting_end; /* by arrival; preempted ones go to the front */
    ls_request **running;               /* [max_num_seqs] by admission */
    int n_running;
    engine_stats stats;
    int64_t open_ns, plan_us, shard_us;
    double read_bytes_per_s; /* 0: not measured yet */
    ls_error death;          /* status LS_OK while the engine lives; see engine_check_alive */
};

/* model_open.c: what crosses the border says its size. Inputs may not be larger than what we know; outputs may. */
ls_status check_struct_size(const char *name, size_t given, size_t known, ls_error *err);

/* scheduler.c: fills engine->batch from the running and waiting requests. */
void schedule(ls_engine *engine);
/* Takes a request out of the queues and gives back its pages. */
void scheduler_remove(ls_engine *engine, ls_request *request);
void scheduler_add(ls_engine *engine, ls_request *request);

/* step.c: schedule, run, sample, publish. A step that its ranks could not finish kills the engine: its requests fail with
 * the reason, and from then on submitting and stepping do too. */
ls_status engine_check_alive(const ls_engine *engine, ls_error *err);
ls_status engine_step(ls_engine *engine, ls_error *err);

/* request.c */
void request_finish(ls_request *request, ls_finish finish);
void request_destroy(ls_request *request);

/* timeline.c */
void stats_add_step(ls_engine *engine, int64_t step_ns, int64_t exchange_ns);

#endif
