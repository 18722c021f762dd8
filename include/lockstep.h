/*
 * lockstep: tensor-parallel inference for open-weight language models. The only public header.
 *
 * The opaque nouns:
 *   ls_model    what a checkpoint says: sizes, tokenizer, tensors on disk. Immutable once open; any thread may use it.
 *   ls_engine   a model made ready on R ranks: weights, KV pages, scheduler. One thread at a time drives it by
 *               ls_engine_step, or a thread of its own does (ls_engine_start).
 *   ls_request  one prompt and the tokens that follow it. Belongs to its engine, and to the thread that drives it.
 *   ls_text     a tokenizer and chat templates alone. Immutable once open; any thread may use it.
 *
 * Rules for every function here:
 *   - ls_status is returned: 0 good, positive a named outcome that is no error, negative an error.
 *   - Outputs go through pointers and are left untouched on failure.
 *   - `err` may be NULL. Otherwise, on failure it holds a sentence that names the file, field or flag and what to do.
 *   - Strings are UTF-8. Sizes end in their unit: _bytes, _tokens, _pages, _us.
 *   - The library never exits, aborts or prints. It logs through the callback it was given, or not at all.
 *   - Structs that cross the border start with struct_size: initialise them with their LS_*_INIT macro, so that a
 *     program built against an older header keeps its meaning.
 */
#ifndef LOCKSTEP_H
#define LOCKSTEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LS_ABI_VERSION 1
#define LS_VERSION "0.1.0"

#define LS_API __attribute__((visibility("default")))
#define LS_SIZED(type)                                                                                                 \
    { .struct_size = sizeof(type) }

/* Code, value and text of every status: the one list of them. */
#define LS_STATUS_MAP(X)                                                                                               \
    X(LS_OK, 0, "ok")                                                                                                  \
    X(LS_IDLE, 1, "nothing to do")                                                                                     \
    X(LS_EINVAL, -1, "invalid argument or option")                                                                     \
    X(LS_EIO, -2, "a file could not be read or written")                                                               \
    X(LS_ENOTFOUND, -3, "not found")                                                                                   \
    X(LS_EFORMAT, -4, "malformed file")                                                                                \
    X(LS_EUNSUPPORTED, -5, "unsupported model, value or feature")                                                      \
    X(LS_ENOMEM, -6, "out of memory")                                                                                  \
    X(LS_ETOOLONG, -7, "longer than the context or the KV cache")                                                      \
    X(LS_ENUMERIC, -8, "infinity or NaN")                                                                              \
    X(LS_EABORTED, -9, "aborted because another rank failed")                                                          \
    X(LS_EINTERNAL, -10, "internal error")                                                                             \
    X(LS_ENETWORK, -11, "the hub could not be reached, or gave no good answer")                                        \
    X(LS_EDENIED, -12, "the hub refused access")

typedef enum ls_status {
#define X(name, value, text) name = value,
    LS_STATUS_MAP(X)
#undef X
} ls_status;

/* Constant strings; never NULL, also for values not in the list. */
LS_API const char *ls_status_name(ls_status status);
LS_API const char *ls_status_text(ls_status status);

/* What went wrong, for people. Plain data on the caller's storage; nothing to free. */
typedef struct ls_error {
    ls_status status;
    char text[512];  /* the cause, written where it was known */
    char trace[256]; /* "file:line < file:line ...": the way the error took, for bug reports */
} ls_error;

/* Element types. LS_AUTO means the checkpoint's own where a setting allows it; LS_INT8 is a format of weights alone. */
typedef enum ls_dtype { LS_AUTO = 0, LS_F32 = 1, LS_BF16 = 2, LS_F16 = 3, LS_INT8 = 4 } ls_dtype;

LS_API const char *ls_dtype_name(ls_dtype dtype); /* "auto", "f32", "bf16", "f16", "int8" */
LS_API size_t ls_dtype_bytes(ls_dtype dtype);     /* 4, 2, 2, 1; 0 for LS_AUTO */

/* Matrices as 8-bit integers with one f32 scale for each output row and leaf (eighth) of the inputs. */
typedef enum ls_quantization {
    LS_QUANTIZATION_NONE = 0,
    LS_QUANTIZATION_W8A16 = 1, /* activations in the run dtype */
    LS_QUANTIZATION_W8A8 = 2   /* activations as 8-bit integers too, one scale for each token and leaf */
} ls_quantization;

LS_API const char *ls_quantization_name(ls_quantization quantization); /* "none", "w8a16", "w8a8" */

/* Log callback. `text` is one line without a newline, borrowed for the call. Called from any thread of the library,
 * one call at a time for each engine or model. */
typedef enum ls_log_level { LS_LOG_ERROR = 0, LS_LOG_WARN, LS_LOG_INFO, LS_LOG_DEBUG, LS_LOG_TRACE } ls_log_level;
typedef void (*ls_log_fn)(void *user, ls_log_level level, const char *text);

LS_API uint32_t ls_abi_version(void); /* LS_ABI_VERSION of the library that runs */
LS_API const char *ls_version(void);  /* LS_VERSION of the library that runs */
/* Chips that it has GPU kernels for, "sm_90a compute_80" (the latter: what the driver compiles for others); empty for a
 * library that was built without CUDA. */
LS_API const char *ls_cuda_archs(void);

/* ---- Model -------------------------------------------------------------------------------------------------------- */

typedef struct ls_model ls_model;
typedef struct ls_engine ls_engine;
typedef struct ls_request ls_request;

typedef enum ls_load_format {
    LS_LOAD_SAFETENSORS = 0, /* the checkpoint's tensors */
    LS_LOAD_DUMMY = 1        /* the model's shapes with hashed weights: for measuring without a checkpoint */
} ls_load_format;

typedef struct ls_model_params {
    size_t struct_size;
    /* A folder with config.json, tokenizer.json and *.safetensors. With LS_LOAD_DUMMY also a name whose shapes are built
     * in ("Qwen/Qwen3-4B"); such a model has no tokenizer: prompt bytes are its token ids. */
    const char *model;
    ls_load_format load_format;
    uint64_t dummy_seed;
    const char *cache_folder; /* keeps parsed tokenizers for faster starts; NULL: none */
    ls_log_fn log_fn;         /* NULL: silent */
    void *log_user;
    ls_log_level log_level;
    const char *device; /* what ls_engine_params.device will be: a GPU is opened while files are read, which makes the
                         * first engine start a quarter of a second earlier; NULL: nothing is opened */
} ls_model_params;
#define LS_MODEL_PARAMS_INIT                                                                                           \
    { .struct_size = sizeof(ls_model_params), .log_level = LS_LOG_INFO }

/* Reads config, tokenizer and generation defaults, maps the tensors and checks that all are there with their shapes.
 * params and its strings are borrowed for the call. *out is the caller's, to be closed after its engines. Errors:
 * LS_ENOTFOUND, LS_EIO, LS_EFORMAT, LS_EUNSUPPORTED, LS_ENOMEM. */
LS_API ls_status ls_model_open(const ls_model_params *params, ls_model **out, ls_error *err);
LS_API void ls_model_close(ls_model **model); /* accepts NULL inside; sets it to NULL */

/* What a model is. Borrowed from the model. */
typedef struct ls_model_info {
    size_t struct_size;
    const char *family; /* "qwen3" */
    int n_layers, d_model, d_ffn, n_heads, n_kv_heads, d_head, n_vocab;
    int max_position_tokens, window_tokens;
    bool tied, has_tokenizer;
    ls_dtype dtype; /* the checkpoint's */
    /* Defaults of generation_config.json; where it is silent: 1, 1, 0 (off), 0 (off), 1 (off). */
    double temperature, top_p;
    int top_k;
    double min_p, repetition_penalty;
} ls_model_info;
#define LS_MODEL_INFO_INIT LS_SIZED(ls_model_info)
LS_API ls_status ls_model_get_info(const ls_model *model, ls_model_info *out, ls_error *err);

/* ---- Engine ------------------------------------------------------------------------------------------------------- */

/* How far an engine has come with the weights, which take most of the time of opening it. */
typedef struct ls_load_progress {
    size_t struct_size;
    int64_t bytes, total_bytes; /* read from files by all ranks; of dummy weights, made */
    int64_t elapsed_us;         /* since the first of them */
} ls_load_progress;
/* Called some ten times a second and at the end, by any thread of the engine, one call at a time; may not call into it. */
typedef void (*ls_load_progress_fn)(void *user, const ls_load_progress *progress);

/* Zero means the default everywhere. */
typedef struct ls_engine_params {
    size_t struct_size;
    int tensor_parallel_size; /* ranks R: 1 (default), 2, 4 or 8 */
    int threads;              /* of each rank; default: cores / R, at least 1 */
    ls_dtype dtype;           /* run dtype; default: the checkpoint's */
    ls_dtype kv_cache_dtype;  /* default: the run dtype */
    int max_model_len_tokens; /* longest prompt plus answer; default: the model's max_position_embeddings, or
                                       * what the KV cache holds if that is less */
    int max_num_seqs;         /* sequences that run at once; default 16 */
    int max_num_batched_tokens; /* rows of one step: the prefill chunk; default 512, on a GPU 2048; at least max_num_seqs */
    int64_t kv_cache_memory_bytes; /* all ranks; default: room for max_num_seqs sequences of full length, but at most
                                       * 4 GiB, or one sequence of the max_model_len_tokens that was asked for */
    ls_quantization quantization;  /* of the matrices; default: none */
    const char *cpu_isa;     /* "ref", "avx2" or "avx512": the same bits at other speeds; default: the best here */
    const char *device;      /* "cpu", "cuda", "cuda:N" (the Nth GPU that the driver shows), or "auto", the default:
                                    * a GPU if there is one that the engine fits on, else the CPU. "0,1,..." or
                                    * "cuda:0,1,...": a GPU for each rank, which may share one; else rank r is on GPU r */
    const char *kernels;     /* of a GPU: "auto" (default), or "generic": those for chips that are not known */
    const char *graph_sizes; /* of a GPU: numbers of rows with commas between, out of the default
                                    * ("1,2,4,8,16,24,32,48,64,96,128,192,256"), for which decode steps are captured as
                                    * graphs, as far as max_num_seqs goes; "none" launches every kernel anew */
    double gpu_memory_utilization; /* share of a GPU's memory that the engine may fill with pages; default 0.9 */
    bool profile;     /* time the kernels or ops of every step, see ls_engine_get_profile; slows them down */
    int trace_events; /* kept for each thread (32 bytes each), see ls_engine_get_trace; default: no trace */
    ls_load_progress_fn progress_fn; /* told how loading goes; NULL: nobody */
    void *progress_user;
    const char *async_scheduling; /* of a GPU: "auto" (default) starts decode steps while the ones before them run,
                                   * wherever that changes nothing but the time; "off" waits for each. Not with profile
                                   * or trace_events */
    int64_t device_memory_bytes;  /* of plans alone: of a GPU that need not be there; default: ask the driver */
    struct ls_hosts *hosts;       /* the processes that share the ranks (lockstep_hosts.h); outlives the engine */
    /* Pages of 64 computed tokens serve every request that begins with the same ones, until their memory is needed (some 300
     * bytes more a page). It shows in the bits no more than the size of chunks does: on the CPU not at all. */
    bool prefix_cache;
    /* Of ranks on GPUs: "fused" (stores to one another's memory), "host" (through the host's memory), "auto" (default: fused
     * where all GPUs can, else host). */
    const char *exchange;
    /* Of ranks on GPUs, how decode steps of up to 16 rows run: "graph", a launch an op; "persistent", one launch a step,
     * for chips from Hopper on, of several ranks with an exchange that is fused; "auto" (default): graph, so far. */
    const char *plan;
} ls_engine_params;
#define LS_ENGINE_PARAMS_INIT LS_SIZED(ls_engine_params)

/* Plans every byte of memory, starts the ranks, loads and shards the weights. After it returns the step path allocates
 * nothing. The model is borrowed and must outlive the engine. Errors: LS_EINVAL names the parameter; LS_EUNSUPPORTED if
 * the heads do not split over R; LS_ENOMEM says need and have; LS_ENUMERIC names tensor and element of a bad weight. */
LS_API ls_status ls_engine_open(ls_model *model, const ls_engine_params *params, ls_engine **out, ls_error *err);
/* Frees the engine's remaining requests, joins its threads. Accepts NULL inside; sets it to NULL. */
LS_API void ls_engine_close(ls_engine **engine);

/* The most tokens one request may have, prompt and answer together: the context, or what the KV cache holds. */
LS_API int ls_engine_max_tokens(const ls_engine *engine);

/* One step: decode rows of running requests and chunks of prompts, one forward pass, one token for each sequence whose
 * prompt is through. Calls requests' callbacks. LS_OK, or LS_IDLE when no request is unfinished. A failure of one
 * request is not an error here: see ls_result. An error (LS_EABORTED: a rank gave up) is the end of the engine: its
 * requests have failed with the reason, and all that is left is to close it. LS_EINVAL while its own thread drives it. */
LS_API ls_status ls_engine_step(ls_engine *engine, ls_error *err);

/* Hands the engine to a thread of its own, which steps while there is work and sleeps while there is none. From then on
 * any thread may call any function on the engine and its requests (one thread at a time for each request); callbacks
 * come from the engine's thread. LS_EINVAL if it runs already. */
LS_API ls_status ls_engine_start(ls_engine *engine, ls_error *err);
/* Ends that thread after the step it is in; requests stay as they are, and ls_engine_step serves again. */
LS_API void ls_engine_stop(ls_engine *engine);

/* For one thread that waits for many: up to `n_max` requests that have new tokens or are finished since the last call,
 * each once. Waits up to timeout_us for the first (0: not, negative: for ever). *n is 0 after it. A started engine only. */
LS_API ls_status ls_engine_poll(ls_engine *engine, int64_t timeout_us, ls_request **out, size_t n_max, size_t *n,
                                ls_error *err);
/* A file descriptor that is readable while ls_engine_poll would give something: for event loops. Do not read or close it. */
LS_API int ls_engine_poll_fd(ls_engine *engine);

/* LS_OK while the engine lives; after a step that its ranks could not finish, that step's status and words. Any thread. */
LS_API ls_status ls_engine_check(ls_engine *engine, ls_error *err);

/* What an engine does at this moment and has done so far. */
typedef struct ls_engine_stats {
    size_t struct_size;
    int n_running, n_waiting; /* requests */
    int n_pages, n_free_pages;
    int64_t steps, preemptions;
    int64_t prompt_tokens, generated_tokens;        /* computed, also again after a preemption; given to requests */
    int64_t finished, failed, cancelled;            /* requests */
    int64_t prefix_query_tokens, prefix_hit_tokens; /* of prompts: looked up in the KV cache's pages; found there */
} ls_engine_stats;
#define LS_ENGINE_STATS_INIT LS_SIZED(ls_engine_stats)
LS_API ls_status ls_engine_get_stats(ls_engine *engine, ls_engine_stats *out, ls_error *err);

/* ---- Request ------------------------------------------------------------------------------------------------------ */

/* Text that became certain: whole characters, NUL-terminated, borrowed for the call; may be empty. `token` is the id that
 * brought it, or -1 for what was held back and comes out at the end. Must not call into the engine. */
typedef void (*ls_text_fn)(void *user, ls_request *request, int32_t token, const char *text, size_t text_bytes);

/* Logits at one position (position p predicts token p + 1), f32 [n_vocab], as the model computed them, borrowed for the
 * call. Must not call into the engine. */
typedef void (*ls_logits_fn)(void *user, ls_request *request, int position, const float *logits, int n_vocab);

typedef struct ls_logit_bias {
    int32_t token;
    float bias; /* added to the logit; -INFINITY forbids the token */
} ls_logit_bias;

enum { LS_MAX_LOGPROBS = 20 };

/* How the next token is drawn from the logits, in this order (transformers' order; `penalty` values are off at 1 or 0):
 *   1. logit_bias;  2. repetition_penalty (tokens of prompt and answer);  3. presence and frequency penalty (tokens of the
 *   answer; OpenAI's definition);  4. bad_words;  5. min_tokens forbids the tokens that would stop;  6. allowed_tokens;
 *   7. temperature;  8. top_k;  9. top_p;  10. min_p;  11. the draw.  Greedy (temperature 0) takes the best after 6. */
typedef struct ls_request_params {
    size_t struct_size;
    const char *prompt; /* text of prompt_bytes bytes, or */
    size_t prompt_bytes;
    const int32_t *prompt_tokens; /* n_prompt_tokens ids, used when not NULL */
    size_t n_prompt_tokens;
    int max_tokens;            /* tokens to generate; 0: only the prompt is run */
    int min_tokens;            /* before it has these, nothing but max_tokens ends an answer */
    double temperature;        /* 0: greedy; negative: the model's default */
    int top_k;                 /* 0: off; negative: the model's default */
    double top_p;              /* 1: off; negative: the model's default */
    double min_p;              /* 0: off; negative: the model's default */
    double repetition_penalty; /* 1: off; 0 or less: the model's default */
    double presence_penalty, frequency_penalty;
    const ls_logit_bias *logit_bias;
    size_t n_logit_bias;
    const int32_t *allowed_tokens; /* n_allowed_tokens ids: no other is drawn; NULL: all */
    size_t n_allowed_tokens;
    const char *const *bad_words; /* n_bad_words strings that may not appear, with or without a space before them */
    size_t n_bad_words;
    const char *const *stop; /* n_stop strings that end the answer */
    size_t n_stop;
    const int32_t *stop_tokens; /* n_stop_tokens ids that end it, besides the model's end-of-text tokens */
    size_t n_stop_tokens;
    bool include_stop; /* the text ends behind the stop string instead of before it */
    bool ignore_eos;   /* end-of-text tokens of the model do not end it; stop and stop_tokens do */
    uint64_t seed;     /* same seed, same text, whatever the batch and R */
    uint32_t choice;   /* which of several answers to one prompt: other draws from the same seed */
    /* Log probabilities, of the model's own logits (before 1.): -1 none; otherwise the token's and that many of the most
     * likely ones, at most LS_MAX_LOGPROBS. See ls_request_get_logprobs. */
    int logprobs, prompt_logprobs;
    /* KV reuse from turn to turn of a conversation: a finished request that was submitted with keep_cache keeps its part of
     * the KV cache until it is freed or the pages are needed. `reuse` names such a request of the same engine (or is
     * NULL): what its tokens and the new prompt's have in common at the beginning is not computed again. */
    ls_request *reuse;
    bool keep_cache;
    bool prompt_logits;     /* on_logits for every prompt position, not only the last */
    bool hash_logits;       /* fill ls_result.logits_hash */
    ls_text_fn on_text;     /* may be NULL */
    ls_logits_fn on_logits; /* may be NULL */
    void *user;
    int32_t priority; /* lower ones are begun first, and set aside last when pages run out; default 0 */
} ls_request_params;
#define LS_REQUEST_PARAMS_INIT                                                                                         \
    {                                                                                                                  \
        .struct_size = sizeof(ls_request_params), .max_tokens = 16, .temperature = -1, .top_k = -1, .top_p = -1,       \
        .min_p = -1, .logprobs = -1, .prompt_logprobs = -1                                                             \
    }

/* Tokenises and queues a prompt. Everything is copied. Errors: LS_EINVAL (empty prompt, a token id outside the vocabulary,
 * a parameter out of range), LS_ETOOLONG (prompt and max_tokens exceed the context or the KV cache; says the sizes). */
LS_API ls_status ls_request_submit(ls_engine *engine, const ls_request_params *params, ls_request **out, ls_error *err);
/* Ends a request where it stands, with LS_FINISH_CANCELLED; what it has come to stays readable. Takes effect before the
 * next step. Nothing happens to a finished one. */
LS_API void ls_request_cancel(ls_request *request);
/* Cancels it if it still runs, and gives back its pages. Accepts NULL inside; sets it to NULL. Waits for the step that is
 * under way if the request is not finished. */
LS_API void ls_request_free(ls_request **request);
/* The ls_request_params.user that it was submitted with. */
LS_API void *ls_request_user(const ls_request *request);

typedef enum ls_finish {
    LS_FINISH_NONE = 0,
    LS_FINISH_STOP,
    LS_FINISH_LENGTH,
    LS_FINISH_ERROR,
    LS_FINISH_CANCELLED
} ls_finish;
LS_API const char *ls_finish_name(ls_finish finish); /* "running", "stop", "length", "error", "cancelled" */

/* What a request has come to so far; everything borrowed from the request, until the next call on it. */
typedef struct ls_result {
    size_t struct_size;
    ls_finish finish;
    const int32_t *tokens; /* prompt, then answer; the token that stopped it is the last */
    size_t n_prompt_tokens, n_tokens;
    const char *text; /* the answer, special tokens and stop strings left out; NUL-terminated */
    size_t text_bytes;
    uint64_t logits_hash;    /* over the bits of all logits that chose a token; 0 unless asked for */
    ls_status status;        /* of LS_FINISH_ERROR */
    const char *error;       /* of LS_FINISH_ERROR, else "" */
    const char *stop_string; /* that ended it, or NULL */
    int32_t stop_token;      /* that ended it, or -1 */
    int preemptions;         /* times it was set aside and computed again */
    size_t n_reused_tokens;  /* of the prompt, taken from another request's KV cache, or the prefix cache */
    int64_t queued_us;       /* from submission to its first step; -1 before it */
    int64_t first_token_us;  /* from submission to the first token; -1 before it */
    int64_t total_us;        /* from submission to its end, or to now */
} ls_result;
#define LS_RESULT_INIT LS_SIZED(ls_result)
LS_API ls_status ls_request_get_result(ls_request *request, ls_result *out, ls_error *err);

/* The log probabilities of one token of a request's prompt or answer. */
typedef struct ls_logprobs {
    float logprob; /* of the token that stands there; NaN for the first of a prompt */
    int rank;      /* how many tokens were more likely; 0: none */
    int n_top;     /* as many as were asked for */
    struct {
        int32_t token;
        float logprob;
    } top[LS_MAX_LOGPROBS]; /* most likely first */
} ls_logprobs;
/* Of token `index`, counted from the first of the prompt. LS_EINVAL where none were asked for, or it is not there yet. */
LS_API ls_status ls_request_get_logprobs(ls_request *request, size_t index, ls_logprobs *out, ls_error *err);

/* ---- Text: a model's tokenizer and chat templates, without its weights --------------------------------------------- */

typedef struct ls_text ls_text; /* immutable once open; any thread may use it */

/* Reads tokenizer.json of a model folder and, where there are any, its chat templates (chat_template.jinja, or
 * tokenizer_config.json) and special tokens. cache_folder keeps parsed tokenizers for faster starts (made if its parent
 * exists); NULL: none. *out is the caller's. Errors: LS_ENOTFOUND, LS_EIO, LS_EFORMAT, LS_EUNSUPPORTED name the file. */
LS_API ls_status ls_text_open(const char *folder, const char *cache_folder, ls_text **out, ls_error *err);
LS_API void ls_text_close(ls_text **text); /* accepts NULL inside; sets it to NULL */

/* A token, and the bytes [begin, end) of the input that it stands for, in whole characters; both 0 for what the
 * post-processor added. */
typedef struct ls_token {
    int32_t id;
    size_t begin, end;
} ls_token;

enum {
    LS_ENCODE_PARSE_SPECIAL = 1, /* special tokens written in the text become their ids */
    LS_ENCODE_ADD_SPECIAL = 2    /* what the post-processor adds, such as a beginning-of-text token */
};

/* The tokens of any bytes; ids are those of Hugging Face `tokenizers`. *out is the caller's, to be freed with ls_free. */
LS_API ls_status ls_text_encode(const ls_text *text, const char *bytes, size_t n_bytes, unsigned flags, ls_token **out,
                                size_t *n_out, ls_error *err);
/* The text of ids, NUL-terminated; ids outside the vocabulary give none. *out is the caller's, to be freed with ls_free. */
LS_API ls_status ls_text_decode(const ls_text *text, const int32_t *ids, size_t n_ids, bool skip_special, char **out,
                                size_t *out_bytes, ls_error *err);

/* The bytes that an id stands for in the middle of a text, maybe a part of a character; borrowed from the text, not
 * NUL-terminated. False, with outputs untouched, if the id is not in the vocabulary: models have more logits than tokens. */
LS_API bool ls_text_token_bytes(const ls_text *text, int32_t id, const char **bytes, size_t *n_bytes);

typedef struct ls_chat_params {
    size_t struct_size;
    const char *messages_json;  /* array of objects as the OpenAI API has them */
    const char *tools_json;     /* array, or NULL */
    const char *variables_json; /* object of what else the template may read ("enable_thinking"), or NULL; an
                                 * add_generation_prompt in it goes before the one below */
    const char
        *template_name; /* NULL: "tool_use" if there are tools and it exists, else "default", else the only one */
    bool add_generation_prompt;
} ls_chat_params;
#define LS_CHAT_PARAMS_INIT                                                                                            \
    { .struct_size = sizeof(ls_chat_params), .add_generation_prompt = true }

/* Renders messages with the model's chat template, as transformers' apply_chat_template. *out is the caller's, to be freed
 * with ls_free. Errors: LS_EINVAL with the template's own words when it refuses the messages, LS_ENOTFOUND without a
 * template, LS_EFORMAT for JSON that is not what it should be or "<template>:<line>: <cause>", LS_ETOOLONG. */
LS_API ls_status ls_text_render_chat(const ls_text *text, const ls_chat_params *params, char **out, size_t *out_bytes,
                                     ls_error *err);

LS_API void ls_free(void *memory); /* what ls_text_* and ls_hub_* gave; accepts NULL */

/* ---- Hub: models by name ------------------------------------------------------------------------------------------ */

/*
 * Names like "Qwen/Qwen3-4B" or "Qwen/Qwen3-4B@REVISION" (branch, tag or commit; without it: main) become folders in the
 * cache that huggingface_hub uses too. Each can go on where the other stopped, and neither downloads what is there.
 */

/* How far ls_hub_find has come. Totals grow once, when the list of a large model's files is there. */
typedef struct ls_hub_progress {
    size_t struct_size;
    int64_t bytes, total_bytes; /* of the files that were not in the cache when it began */
    int64_t fetched_bytes;      /* of bytes, what came over the network in this call */
    int files, total_files;
    const char *file;   /* that was finished just now, borrowed for the call; or NULL */
    int64_t file_bytes; /* its size */
    bool is_waiting;    /* for another process that downloads the same */
} ls_hub_progress;
/* Called a few times a second and after each file, by the thread that called ls_hub_find. False ends the download with
 * LS_EABORTED; what is on disk stays, and the next call goes on from there. */
typedef bool (*ls_hub_progress_fn)(void *user, const ls_hub_progress *progress);

/* Zero and NULL mean the default, but for cache_folder, which is required. */
typedef struct ls_hub_params {
    size_t struct_size;
    const char *cache_folder; /* such as ~/.cache/huggingface/hub, without the ~ */
    const char *endpoint;     /* default: https://huggingface.co */
    const char *token;        /* sent to the endpoint's own scheme, host and port, and never to where it redirects */
    const char *ca_file;      /* certificates to trust, PEM; default: the system's */
    bool offline;             /* use the cache alone */
    bool skip_weights;        /* only config, tokenizer and chat templates */
    int connections;          /* at once; default 8 */
    int max_retries;          /* of each piece of 8 MiB, and of each question; default 5 */
    int retry_delay_ms;       /* before the first retry, doubled for each further one; default 1000 */
    int timeout_ms;           /* to connect, and for a branch that is in the cache the whole check whether it has moved;
                               * a transfer that stands still for three times as long is tried again; default 10000 */
    ls_hub_progress_fn progress_fn;
    ls_log_fn log_fn;
    void *user; /* of both */
    ls_log_level log_level;
} ls_hub_params;
#define LS_HUB_PARAMS_INIT                                                                                             \
    { .struct_size = sizeof(ls_hub_params), .log_level = LS_LOG_INFO }

/* The folder of a model, for ls_model_params.model and ls_text_open: what is missing in the cache is downloaded, each file
 * verified by its hash before it gets its name. A commit whose files are all there needs no network; a branch or tag is
 * looked up, and taken from the cache with a warning if the hub cannot be reached. Blocks; threads and processes that do
 * the same at once share the work. *folder is the caller's, to be freed with ls_free. Errors:
 * LS_EINVAL (not a name of a model), LS_ENOTFOUND (model, revision or file; offline: not in the cache), LS_EDENIED (gated,
 * private, or a bad token), LS_ENETWORK, LS_EIO (cannot write, or the disk is full), LS_EFORMAT, LS_EUNSUPPORTED (not
 * safetensors), LS_EABORTED. */
LS_API ls_status ls_hub_find(const ls_hub_params *params, const char *name, char **folder, ls_error *err);

/* Whether text looks like a name for ls_hub_find ("organisation/model", with or without a revision). */
LS_API bool ls_hub_is_name(const char *text);

typedef struct ls_hub_state {
    size_t struct_size;
    bool reachable;     /* something answered, be it an error */
    int http_status;    /* of the answer; 0 without one */
    int64_t latency_us; /* until the answer began, with look-up, connection and TLS */
    char text[256];     /* why it is not reachable, or "" */
} ls_hub_state;
#define LS_HUB_STATE_INIT LS_SIZED(ls_hub_state)
/* One small question to the endpoint, not tried again. An unreachable hub is no error. */
LS_API ls_status ls_hub_check(const ls_hub_params *params, ls_hub_state *out, ls_error *err);

typedef struct ls_hub_model {
    char name[200];  /* "Qwen/Qwen3-4B" */
    char commit[41]; /* of main, or of its only snapshot; "" where that is not clear */
    bool complete;   /* that commit can be opened as it is */
    int64_t bytes;   /* of all its files and revisions on disk */
} ls_hub_model;
/* The models in the cache, by name. *out, an array, is the caller's, to be freed with ls_free. No network. */
LS_API ls_status ls_hub_list(const ls_hub_params *params, ls_hub_model **out, size_t *n, ls_error *err);

/* ---- Timeline ----------------------------------------------------------------------------------------------------- */

/* Where the time went, and how far from the machine's limit. Steps with prompt rows count as prefill. */
typedef struct ls_timeline {
    size_t struct_size;
    int n_ranks, n_threads; /* threads of each rank */
    ls_dtype dtype, kv_cache_dtype;
    const char *isa;  /* inner loops in use, constant */
    int64_t load_us;  /* reading config and tokenizer, mapping tensors */
    int64_t plan_us;  /* programs, memory, threads */
    int64_t shard_us; /* weights into the ranks' memory */
    int64_t prefill_us, decode_us;
    int64_t prefill_tokens, decode_tokens;
    int64_t prefill_steps, decode_steps;
    int64_t weight_bytes_per_step; /* read by one decode step, all ranks */
    int64_t kv_bytes_per_step;     /* the same for the KV cache, mean over the decode steps */
    int exchanges_per_step;
    int64_t
        exchange_us; /* in decode steps, waiting for other ranks included; -1: on a GPU, not measured without a profile */
    int64_t weights_memory_bytes, kv_memory_bytes, other_memory_bytes; /* planned and allocated, all ranks */
    double read_bytes_per_s;  /* the ranks' threads reading their own weights, best of several passes */
    double limit_us_per_step; /* (weights + KV) / read_bytes_per_s */
    double limit_ratio;       /* limit_us_per_step over the measured step; 1 is the limit; 0 without decode steps */
    const char *device;       /* "CPU" or the GPU's name; lives as long as the engine */
    int n_graphs;             /* of decode steps, captured at the start; part of shard_us: */
    int64_t graphs_us;
    int64_t driver_us, context_us; /* what opening a GPU took, as far as possible beside load_us; 0 on the CPU */
    int64_t weights_us;            /* of shard_us: until the last weight was read, converted and handed over */
    int64_t load_bytes;            /* read in that time, as in ls_load_progress */
    int64_t first_token_us;        /* from the beginning of ls_model_open to the first token of all; -1 before it */
    int64_t age_us;                /* from there to this call */
    const char *no_gpu;            /* where --device auto chose the CPU: why; else "". Lives as long as the engine */
    const char *plan;              /* of a GPU: "persistent" or "graph", as ls_engine_params.plan; else "" */
    /* Before the steps, and no part of the times above: requests had work, and the ranks had no step, because the host was
     * scheduling, sampling, turning tokens into text and handing it out, or because ls_engine_step was not called. 0 for a
     * step that was submitted while the one before it ran. */
    int64_t prefill_host_us, decode_host_us;
} ls_timeline;
#define LS_TIMELINE_INIT LS_SIZED(ls_timeline)

/* Measures the read bandwidth the first time it is called (0.1 to 2 s), between steps; later calls wait for nothing. */
LS_API ls_status ls_engine_get_timeline(ls_engine *engine, ls_timeline *out, ls_error *err);

/* All launches of one kind that the engine has made so far on the first GPU; on the CPU, ops of the first rank, with the waiting of
 * its team. */
typedef struct ls_profile_line {
    char ops[56]; /* the ops that a launch did, "exchange+qkv" */
    bool decode;  /* in steps without prompt rows */
    int64_t launches;
    double total_us;
    double bytes; /* of weights and KV that they had to read */
    double flops; /* a multiplication and an addition are two; of matmuls and attention alone */
    /* total_us of the GPU of this process, or the CPU rank, for which they took least, and most: equal where there is one. In an
     * exchange the slowest waits least. */
    double least_us, most_us;
} ls_profile_line;

/* At most n_max lines in the order of the program. *n is 0 without ls_engine_params.profile. */
LS_API ls_status ls_engine_get_profile(ls_engine *engine, ls_profile_line *out, size_t n_max, size_t *n, ls_error *err);

/* ---- Plan: every byte of an engine before it is opened -------------------------------------------------------------- */

/* What an engine's memory is for. The first five lie in the memory of each rank, the others are shared by the ranks; a
 * trace, where one was asked for, lies in both. */
typedef enum ls_memory {
    LS_MEMORY_WEIGHTS,
    LS_MEMORY_KV_CACHE,
    LS_MEMORY_ACTIVATIONS,
    LS_MEMORY_EXCHANGE,
    LS_MEMORY_LOGITS,
    LS_MEMORY_ROPE,
    LS_MEMORY_STEP_INPUT,
    LS_MEMORY_SCHEDULER,
    LS_MEMORY_TRACE,
    LS_MEMORY_KINDS
} ls_memory;
LS_API const char *ls_memory_name(ls_memory kind); /* "weights", "KV cache", ... */

enum { LS_PLAN_RANKS = 8 };

/* What ls_engine_open would take, to the byte: its memory equals it. */
typedef struct ls_plan_report {
    size_t struct_size;
    int n_ranks, n_threads; /* threads of each rank: sampling has scratch for each */
    ls_dtype dtype, kv_cache_dtype;
    ls_quantization quantization;
    int max_model_len_tokens, max_num_seqs, max_num_batched_tokens; /* every default resolved */
    int n_pages, page_tokens;
    int64_t rank_bytes[LS_PLAN_RANKS][LS_MEMORY_KINDS]; /* of each rank; zeros beyond n_ranks */
    int64_t shared_bytes[LS_MEMORY_KINDS];
    int64_t total_bytes;
    int64_t kv_bytes_per_token;         /* one token of one sequence, all ranks */
    int64_t weight_read_bytes_per_step; /* read by one decode step, all ranks */
    /* With params.device "cuda": ranks' bytes are the GPU's, shared ones pinned memory of the host. */
    bool on_gpu, driver_measured; /* else driver_bytes is assumed, because the GPU is not there */
    int64_t driver_bytes;         /* of the GPU, besides the above: driver, kernels, libraries and other programs */
} ls_plan_report;
#define LS_PLAN_REPORT_INIT LS_SIZED(ls_plan_report)

/* Opens nothing and reads no weights: a model opened with LS_LOAD_DUMMY on a folder needs config.json alone. A plan larger
 * than the machine is no error here. Errors: those of ls_engine_open for the same parameters, but LS_ENOMEM and
 * LS_ENUMERIC. params.device "cuda" or "cuda:N" plans for a GPU: one of params.device_memory_bytes, which need not be
 * there, or the one that is, whose memory is then asked for; any other device is the CPU. */
LS_API ls_status ls_plan_make(const ls_model *model, const ls_engine_params *params, ls_plan_report *out,
                              ls_error *err);

/* The memory that a rank may use: utilization * total - used by others, all of them bytes of one rank's device. */
typedef struct ls_plan_budget {
    size_t struct_size;
    bool machine; /* the ranks share this machine; otherwise each has a device of its own */
    int64_t total_bytes, used_by_others_bytes;
    double utilization;
    int64_t budget_bytes; /* negative where others use more than the share */
} ls_plan_budget;
#define LS_PLAN_BUDGET_INIT LS_SIZED(ls_plan_budget)

/* device_memory_bytes: of each rank's own device, which nobody else uses; 0: this machine's memory (or what its control
 * group allows, if that is less), and what is in use there, divided by the ranks. utilization: 0 means 0.9. Errors:
 * LS_EINVAL; LS_EIO if the machine does not say how much memory it has. */
LS_API ls_status ls_plan_get_budget(int64_t device_memory_bytes, double utilization, int n_ranks, ls_plan_budget *out,
                                    ls_error *err);

/* The same for a GPU: params.device, device_memory_bytes (see ls_plan_make), gpu_memory_utilization. Used by others is what
 * is in use once kernels are loaded, by the driver and other programs; of a GPU that is not there, 0.6 GB. Errors:
 * LS_EINVAL if params.device is no GPU; those of ls_gpu_measure. */
LS_API ls_status ls_plan_get_gpu_budget(const ls_engine_params *params, ls_plan_budget *out, ls_error *err);

/* What fits into a budget with every sequence at full length (kv_cache_memory_bytes is not looked at). The memory of a rank
 * is its own and of what ranks share its part on one machine, all of it on a device of its own, none of it on a GPU. */
typedef struct ls_plan_fit {
    size_t struct_size;
    int64_t need_bytes;           /* of the fullest rank, with the parameters as given */
    int64_t short_bytes;          /* need - budget: more than 0 is missing */
    int64_t kv_bytes_per_seq;     /* of one rank, one sequence of max_model_len_tokens in whole pages */
    int largest_model_len_tokens; /* with max_num_seqs as given; 0: not even one token */
    int largest_num_seqs;         /* with max_model_len_tokens as given, at most 4096; 0: not one */
} ls_plan_fit;
#define LS_PLAN_FIT_INIT LS_SIZED(ls_plan_fit)

/* max_model_len_tokens 0 means the model's max_position_embeddings. Errors as ls_plan_make. */
LS_API ls_status ls_plan_get_fit(const ls_model *model, const ls_engine_params *params, const ls_plan_budget *budget,
                                 ls_plan_fit *out, ls_error *err);

/* ---- Verify: two engines of one model, op by op ---------------------------------------------------------------------- */

typedef struct ls_verify_params {
    size_t struct_size;
    /* Any ranks, threads, formats, instruction sets. Their sizes of context and batch are not looked at. */
    const ls_engine_params *tested, *reference;
    const int32_t
        *prompt_tokens; /* n_prompt_tokens ids; NULL: a built-in text, or made-up ids without a tokenizer, of as
                                   * many tokens */
    size_t n_prompt_tokens;
    int decode_steps; /* after the prompt; the reference's greedy tokens are fed to both */
    int n_sequences; /* more than 1, at most 16: shorter prompts join the first after its decode steps, as one step, and
                       * two decode steps with a row of each follow */
} ls_verify_params;
#define LS_VERIFY_PARAMS_INIT                                                                                          \
    { .struct_size = sizeof(ls_verify_params), .n_prompt_tokens = 40, .decode_steps = 4, .n_sequences = 5 }

/* Where two engines differ. `error` is max|tested - reference| over the rank's part of a row, divided by max|reference| of
 * the row; infinity where one of them is not a finite number. */
typedef struct ls_verify_place {
    bool found;
    bool running;       /* in the free run, else in the op alone */
    const char *op;     /* "qkv", constant */
    const char *buffer; /* "q", "k cache", "att", ..., constant */
    int layer;          /* -1 outside the layers */
    int rank;           /* of the tested engine; -1: all together */
    int step, position; /* step 0 is the prompt; position of the row's token */
    double error;
} ls_verify_place;

enum { LS_VERIFY_OPS = 9 };

/* One kind of op, over all its layers, ranks, rows and steps. */
typedef struct ls_verify_op {
    const char *op;     /* constant */
    int64_t n_compared; /* rows of buffers */
    bool bits_equal;    /* of all of them */
    ls_verify_place worst;
    ls_verify_place first_bits; /* the first place where bits differ */
} ls_verify_op;

typedef struct ls_verify_report {
    size_t struct_size;
    bool passed;
    bool bits_expected; /* the engines have the same formats: not one bit may differ */
    int n_prompt_tokens, n_decode_steps;
    double tolerance;                     /* of one op alone; by the coarser of the formats */
    double logits_tolerance;              /* of the free run */
    ls_verify_op isolated[LS_VERIFY_OPS]; /* each op on the reference's inputs: errors do not pile up. Judged */
    ls_verify_op running[LS_VERIFY_OPS];  /* the tested engine runs by itself. Only its logits are judged */
    ls_verify_place first;                /* the first breach in the order of the program */
    int n_logits_rows;                    /* of the free run */
    double logits_error;                  /* worst of them */
    int n_margin_rows;       /* rows whose best two logits lie further apart than twice the format's tolerance */
    int n_other_choices;     /* of those: where the engines choose different tokens; a breach */
    int n_sequences;         /* step n_decode_steps + 1 is the prompts of the others, later ones have a row of each */
    char first_kernels[128]; /* launched between the border before `first` and its own, on a GPU; else "" */
} ls_verify_report;
#define LS_VERIFY_REPORT_INIT LS_SIZED(ls_verify_report)

/* Opens both engines, one beside the other, and compares what every op of every layer wrote on every rank. A difference is
 * no error here: see passed and first. Errors: those of ls_engine_open for either; LS_EINVAL, LS_ETOOLONG for a prompt. */
LS_API ls_status ls_verify(ls_model *model, const ls_verify_params *params, ls_verify_report *out, ls_error *err);

/* ---- Machine: what this one is, and what it can do ------------------------------------------------------------------- */

enum { LS_MACHINE_NODES = 16, LS_MACHINE_CACHES = 4, LS_MACHINE_LIBRARIES = 8 };

/* Plain data. What cannot be read is -1, or "" for text. */
typedef struct ls_machine_info {
    size_t struct_size;
    const char *compiler;  /* of the library, constant: "gcc 12.2.0" */
    const char *sanitizer; /* it was built with, constant: "none", "address", ... */
    const char *back_ends; /* it was built with, constant: "cpu" */
    char os[160];          /* "Debian GNU/Linux 12 (bookworm), Linux 6.1.0 x86_64" */
    char cpu[128];         /* "Intel(R) Xeon(R) Platinum 8488C" */
    char features[256];    /* instruction sets that matter here and that it has: "avx2 fma avx512f" */
    char isas[32];         /* inner loops that run here, best first: "avx512 avx2 ref" */
    int n_packages, n_cores, n_hardware_threads; /* n_hardware_threads > n_cores: SMT is on */
    int n_allowed_threads;                       /* hardware threads that this process may use */
    double cgroup_cpus;                          /* cores' worth of time that its control group may use; 0: no limit */
    int n_caches;
    struct {
        int level, count;
        int64_t bytes; /* of one */
    } cache[LS_MACHINE_CACHES];
    int n_nodes; /* NUMA; at most LS_MACHINE_NODES have their memory here */
    int64_t node_memory_bytes[LS_MACHINE_NODES];
    int64_t memory_bytes, available_memory_bytes;
    int64_t cgroup_memory_bytes, cgroup_used_bytes; /* 0: no limit */
    char huge_pages[32];                            /* transparent huge pages: "always", "madvise", "never" */
    int64_t memlock_bytes, max_open_files;          /* soft limits; INT64_MAX: none */
    bool has_cuda_driver;                           /* libcuda.so.1 can be loaded */
    int n_libraries;
    struct {
        const char *name;
        char version[48]; /* of the library that is loaded; "... as built" where it does not say */
    } library[LS_MACHINE_LIBRARIES];
} ls_machine_info;
#define LS_MACHINE_INFO_INIT LS_SIZED(ls_machine_info)
/* Takes some 20 ms. */
LS_API ls_status ls_machine_get_info(ls_machine_info *out, ls_error *err);

/* Of several passes. */
typedef struct ls_rate {
    double best, median;
} ls_rate;

typedef struct ls_machine_speed {
    size_t struct_size;
    int n_threads;                /* of the _all figures */
    const char *isa;              /* the inner loops that were measured, constant */
    int64_t buffer_bytes;         /* larger than the caches, as far as free memory allows */
    ls_rate read_one, read_all;   /* bytes/s with one thread and with all */
    ls_rate copy_one, copy_all;   /* bytes/s read plus bytes/s written */
    ls_rate flops_one, flops_all; /* f32, a fused multiply-add is two; nothing is loaded from memory */
} ls_machine_speed;
#define LS_MACHINE_SPEED_INIT LS_SIZED(ls_machine_speed)
/* Measures, 1 to 3 s. n_threads 0: as many as are allowed. isa: as ls_engine_params.cpu_isa. Errors: LS_EINVAL for an isa
 * that is unknown or that this machine lacks, LS_ENOMEM. */
LS_API ls_status ls_machine_measure(int n_threads, const char *isa, ls_machine_speed *out, ls_error *err);

/* ---- GPUs: what they are, how they are, and what they can do -------------------------------------------------------- */

/* How many the driver shows, at least 1. Errors say why there is none: LS_ENOTFOUND without a driver or without a GPU,
 * LS_EUNSUPPORTED where the driver is too old or the library was built without CUDA. */
LS_API ls_status ls_gpu_count(int *out, ls_error *err);

/* Plain data. What is not known is -1, or "" for text. From ecc on it is told by libnvidia-ml.so.1, which is optional. */
typedef struct ls_gpu_info {
    size_t struct_size;
    char name[96], chip[16], bus[16]; /* "NVIDIA H100 80GB HBM3", "sm_90", PCI "0000:19:00.0" */
    char kernels[16]; /* of the library, that run on it: "sm_90a"; "compute_80": the driver compiles them; "": none */
    int64_t n_sms, l2_bytes, memory_bytes;
    int cuda_version;               /* that the driver is for: 13000 is 13.0 */
    uint32_t peers;                 /* bit N: it can reach the memory of GPU N */
    int64_t ecc, ecc_errors;        /* of its memory: 1 on, 0 off; uncorrected ones since the driver was loaded */
    char driver[32], slowed_by[96]; /* its release; what holds the clocks down now: "power cap, heat", or "": nothing */
    int sm_clock_mhz, max_sm_clock_mhz, memory_clock_mhz, max_memory_clock_mhz;          /* now, and at most */
    int temperature_c, power_w, power_limit_w, pcie_generation, pcie_lanes, n_processes; /* links slow down when idle */
} ls_gpu_info;
#define LS_GPU_INFO_INIT LS_SIZED(ls_gpu_info)
/* GPU N of "cuda:N". Takes none of its memory. Errors: as ls_gpu_count; LS_ENOTFOUND: no such GPU. */
LS_API ls_status ls_gpu_get_info(int device, ls_gpu_info *out, ls_error *err);

typedef struct ls_gpu_speed {
    size_t struct_size;
    int64_t context_us, jit_us;       /* opening it with all kernels; of that, what the driver took to compile them */
    int64_t free_bytes, buffer_bytes; /* of its memory once it was open; that was read */
    ls_rate read, to_device, to_host; /* bytes/s of its memory, and of copies from and to pinned memory */
    double kernel_us, overlapped_kernel_us; /* from kernel to kernel in a graph, median; by overlapping, 0: cannot */
    int gemm_n, gemm_sm_clock_mhz; /* matmul of gemm_n^3 in bf16 with f32 sums, by cuBLASLt; the clock then, or -1 */
    ls_rate gemm_flops;            /* a multiplication and an addition are two; 0: not measured, see no_gemm */
    char gemm_slowed_by[96], no_gemm[256]; /* what held the clock down then; why there was no matmul, or none in f32 */
    ls_rate copy;                          /* within its memory: bytes/s read plus bytes/s written */
    int gemm_f32_n;                        /* matmul of gemm_f32_n^3 in true f32, by cuBLASLt, */
    ls_rate gemm_f32_flops;                /* 0: not measured, see no_gemm */
} ls_gpu_speed;
#define LS_GPU_SPEED_INIT LS_SIZED(ls_gpu_speed)
/* Measures, less than a second, besides opening it and loading cuBLASLt. Errors: as ls_gpu_get_info; LS_EUNSUPPORTED: no
 * kernels for its chip; LS_ENOMEM: too little of its memory is free; LS_EABORTED with the driver's own words. */
LS_API ls_status ls_gpu_measure(int device, ls_gpu_speed *out, ls_error *err);

/* ---- Exchange: what it takes the ranks to add up a vector ----------------------------------------------------------- */

typedef struct ls_exchange_params {
    size_t struct_size;
    const char *device;     /* as ls_engine_params.device; NULL: the CPU */
    int n_ranks;            /* 2, 4 or 8, of all processes together */
    int threads;            /* of each rank; 0: cores / ranks here, at least 1 */
    int64_t bytes;          /* of the f32 vector that every rank has a part of: 64 to 1 GiB, rounded down to 64 */
    int n_rounds;           /* that are timed, at least 1 */
    struct ls_hosts *hosts; /* the processes that share the ranks, all of which call; NULL: this one alone */
} ls_exchange_params;
#define LS_EXCHANGE_PARAMS_INIT                                                                                        \
    { .struct_size = sizeof(ls_exchange_params), .n_ranks = 2, .bytes = 16384, .n_rounds = 100 }

typedef struct ls_exchange_speed {
    size_t struct_size;
    const char *transport;            /* "threads", "hosts": constant */
    int n_threads;                    /* of each rank */
    double median_us, min_us, max_us; /* of the rounds, as the first rank here sees them */
} ls_exchange_speed;
#define LS_EXCHANGE_SPEED_INIT LS_SIZED(ls_exchange_speed)
/* Runs the engine's own exchange, sums included, on made-up parts. Errors: LS_EINVAL names the parameter; LS_EUNSUPPORTED
 * for a transport that this library has not; LS_ENOMEM; LS_EABORTED if a host was lost. */
LS_API ls_status ls_exchange_measure(const ls_exchange_params *params, ls_exchange_speed *out, ls_error *err);

/* ---- Trace: who did what when ------------------------------------------------------------------------------------- */

/* A stage of the start ("load", "plan", "shard"), of a step ("step", and inside of it "schedule", "run", "sample and
 * publish"), or an op that one thread of a rank ran. Borrowed for the call. */
typedef struct ls_trace_event {
    const char *name;   /* constant */
    int rank, thread;   /* -1, -1: the engine itself */
    int layer;          /* -1 outside the layers */
    int rows;           /* of the step; 0 of the start */
    int64_t step;       /* counted from 0; -1 of the start */
    double start_us;    /* since the model was opened */
    double duration_us; /* of an op: this thread's part, without waiting for its team at the end */
} ls_trace_event;
typedef void (*ls_trace_fn)(void *user, const ls_trace_event *event);

/* Gives every event that is kept: the engine's, then thread by thread of each rank; within a step's stages and within a
 * thread in the order of their ends. *n_lost: older ones that were overwritten. Waits for the step that runs;
 * `fn` must not call into the engine. LS_EINVAL if it was opened without trace_events. */
LS_API ls_status ls_engine_get_trace(ls_engine *engine, ls_trace_fn fn, void *user, int64_t *n_lost, ls_error *err);

#include "lockstep_hosts.h"
#include "lockstep_pairs.h"

#ifdef __cplusplus
}
#endif
#endif /* LOCKSTEP_H */
