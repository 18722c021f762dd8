/*
 * The one table of options: flag, environment variable, default, limits, help. `--help` and the manual are made from it,
 * and it is the only place that reads the environment.
 *
 * A value comes from the command line, else from LOCKSTEP_<NAME> (--top-k is LOCKSTEP_TOP_K), else from the table.
 * Integers take the suffixes k, M, G (powers of 1000) and K, Mi, Gi (powers of 1024).
 */
#ifndef LS_BASE_OPTIONS_H
#define LS_BASE_OPTIONS_H

#include "base/error.h"

/* Commands that an option belongs to. */
enum {
    COMMAND_GENERATE = 1,
    COMMAND_CHAT = 2,
    COMMAND_TOKENIZE = 4,
    COMMAND_TEMPLATE = 8,
    COMMAND_PLAN = 16,
    COMMAND_PERPLEXITY = 32,
    COMMAND_VERIFY = 64,
    COMMAND_PULL = 128,
    COMMAND_DOCTOR = 256,
    COMMAND_HELP = 512,
    COMMAND_SERVE = 1024,
    COMMAND_BENCH = 2048,
    COMMAND_REPORT = 4096
};

typedef struct command_def {
    unsigned command;
    const char *name;
    const char *word; /* what help calls the one word that may follow the name without a flag, or NULL; "RESULTS..." are
                          * several, those of --results */
    const char *summary; /* one line */
    const char *text;    /* paragraphs after the options in --help and in the manual */
} command_def;

enum { COMMAND_COUNT = 13 };
extern const command_def command_table[COMMAND_COUNT];

typedef enum option_type { OPTION_TEXT, OPTION_LIST, OPTION_INT, OPTION_REAL, OPTION_CHOICE, OPTION_FLAG } option_type;

/* Headings of --help and the manual. */
typedef enum option_group {
    GROUP_MODEL,
    GROUP_INPUT,
    GROUP_SAMPLING,
    GROUP_ENGINE,
    GROUP_SERVER,
    GROUP_LOAD,
    GROUP_MEASURE,
    GROUP_OUTPUT,
    GROUP_COUNT
} option_group;
const char *option_group_name(option_group group);

typedef enum option_id {
    OPT_MODEL,
    OPT_REVISION,
    OPT_LOAD_FORMAT,
    OPT_CACHE_FOLDER,
    OPT_PROMPT,
    OPT_PROMPT_FILE,
    OPT_REPEAT_PROMPT,
    OPT_SYSTEM,
    OPT_MESSAGES,
    OPT_TOOLS,
    OPT_CHAT_TEMPLATE_KWARGS,
    OPT_CHAT_TEMPLATE_NAME,
    OPT_NO_GENERATION_PROMPT,
    OPT_NO_PARSE_SPECIAL,
    OPT_NO_ADD_SPECIAL,
    OPT_MAX_TOKENS,
    OPT_MIN_TOKENS,
    OPT_TEMPERATURE,
    OPT_TOP_K,
    OPT_TOP_P,
    OPT_MIN_P,
    OPT_REPETITION_PENALTY,
    OPT_PRESENCE_PENALTY,
    OPT_FREQUENCY_PENALTY,
    OPT_LOGIT_BIAS,
    OPT_ALLOWED_TOKEN_IDS,
    OPT_BAD_WORDS,
    OPT_STOP,
    OPT_STOP_TOKEN_IDS,
    OPT_IGNORE_EOS,
    OPT_SEED,
    OPT_NUM_RETURN_SEQUENCES,
    OPT_LOGPROBS,
    OPT_PROMPT_LOGPROBS,
    OPT_DEVICE,
    OPT_TENSOR_PARALLEL_SIZE,
    OPT_EXCHANGE,
    OPT_THREADS,
    OPT_DTYPE,
    OPT_QUANTIZATION,
    OPT_KV_CACHE_DTYPE,
    OPT_MAX_MODEL_LEN,
    OPT_MAX_NUM_SEQS,
    OPT_MAX_NUM_BATCHED_TOKENS,
    OPT_KV_CACHE_MEMORY_BYTES,
    OPT_GPU_MEMORY_UTILIZATION,
    OPT_DEVICE_MEMORY_BYTES,
    OPT_CPU_ISA,
    OPT_KERNELS,
    OPT_PLAN,
    OPT_GRAPH_SIZES,
    OPT_ASYNC_SCHEDULING,
    OPT_NO_PREFIX_CACHING,
    OPT_AGAINST,
    OPT_HOSTS,
    OPT_JOIN_TIMEOUT,
    OPT_HOST_TIMEOUT,
    OPT_HOST,
    OPT_PORT,
    OPT_SERVED_MODEL_NAME,
    OPT_API_KEY,
    OPT_API_KEY_FILE,
    OPT_SSL_CERTFILE,
    OPT_SSL_KEYFILE,
    OPT_ALLOWED_ORIGINS,
    OPT_MAX_NUM_QUEUED_REQS,
    OPT_MAX_CONNECTIONS,
    OPT_MAX_BODY_BYTES,
    OPT_HTTP_TIMEOUT,
    OPT_SHUTDOWN_TIMEOUT,
    OPT_STALL_TIMEOUT,
    OPT_METRICS_PREFIX,
    OPT_ACCESS_LOG,
    OPT_BASE_URL,
    OPT_ENDPOINT,
    OPT_NUM_PROMPTS,
    OPT_REQUEST_RATE,
    OPT_MAX_CONCURRENCY,
    OPT_RANDOM_INPUT_LEN,
    OPT_RANDOM_OUTPUT_LEN,
    OPT_RANDOM_RANGE_RATIO,
    OPT_DATASET,
    OPT_GOODPUT,
    OPT_INPUT_LEN,
    OPT_OUTPUT_LEN,
    OPT_BATCH_SIZE,
    OPT_VARY,
    OPT_EXCHANGE_SIZES,
    OPT_REPETITIONS,
    OPT_COMPARE,
    OPT_RESULTS,
    OPT_OUTPUT,
    OPT_OUTPUT_JSON,
    OPT_HTML,
    OPT_MARKDOWN,
    OPT_TIMELINE,
    OPT_PROFILE,
    OPT_TRACE,
    OPT_JSON,
    OPT_VERBOSE,
    OPTION_COUNT
} option_id;

typedef struct option_def {
    option_id id;
    unsigned commands;
    option_group group;
    option_type type;
    const char *name;     /* without the dashes */
    const char *alias;    /* second long name, or NULL */
    char key;             /* one-letter name, or 0 */
    const char *arg;      /* what help calls the value */
    const char *fallback; /* default as text; NULL: unset */
    double min, max;      /* of numbers */
    const char *choices;  /* of OPTION_CHOICE: "a|b|c" */
    const char *help;
} option_def;

extern const option_def option_table[OPTION_COUNT]; /* indexed by option_id; groups follow one another */

typedef struct option_value {
    bool set;         /* has a value, be it the default */
    bool from_env;    /* flags replace it, lists too */
    const char *text; /* borrowed: argv, the environment or the table */
    int64_t integer;
    double real;
} option_value;

typedef struct ls_options {
    option_value value[OPTION_COUNT];
    const char **list[OPTION_COUNT]; /* OPTION_LIST: all values in order */
    size_t n_list[OPTION_COUNT];
} ls_options;

/* Defaults, then the environment. Errors name the variable. */
ls_status options_init(ls_options *options, ls_error *err);
void options_deinit(ls_options *options);
/* One value from the command line; an error names the flag and says what it takes. A list grows. */
ls_status options_set(ls_options *options, option_id id, const char *text, ls_error *err);

/* A value came from the command line or the environment, not from the table. */
bool options_given(const ls_options *options, option_id id);

/* Whether a terminal may be written to in colours: not if NO_COLOR is set (https://no-color.org), nor on a dumb one. */
bool options_color(void);

/* --cache-folder, else $XDG_CACHE_HOME/lockstep, else ~/.cache/lockstep (in scratch); NULL if that says none: an empty
 * value, or no home. */
const char *options_cache_folder(const ls_options *options, char *scratch, size_t scratch_bytes);

/* What the variables of a launcher say about this process: torchrun's RANK and WORLD_SIZE, OMPI_COMM_WORLD_* (Open MPI),
 * PMI_* (MPICH and others), SLURM_PROCID and SLURM_STEP_NUM_TASKS (srun), the first that are there. LS_EINVAL if they make no
 * sense. */
typedef struct options_launch {
    int local; /* this process's number among those of its host: LOCAL_RANK and the like; 0 where nothing says */
    int process, n_processes; /* 0 of 1: alone */
    const char *launcher;     /* "torchrun", "srun", ... */
    char address[300];        /* MASTER_ADDR:MASTER_PORT; empty where MPI is to find the others */
} options_launch;
ls_status options_launch_read(options_launch *out, ls_error *err);

/* Fills cache_folder, endpoint, token, ca_file and offline from the variables that huggingface_hub reads: HF_HUB_CACHE,
 * HF_HOME, XDG_CACHE_HOME; HF_ENDPOINT; HF_TOKEN, else the file HF_TOKEN_PATH or $HF_HOME/token, none of them with
 * HF_HUB_DISABLE_IMPLICIT_TOKEN; HF_HUB_OFFLINE; and SSL_CERT_FILE. A leading "~/" is the home folder. Strings are borrowed
 * from the environment and from text. LS_EINVAL without a home, or if a value is too long. */
typedef struct options_hub_text {
    char home[2048], cache_folder[4096], token[1024];
} options_hub_text;
ls_status options_hub(ls_hub_params *params, options_hub_text *text, ls_error *err);

#endif
