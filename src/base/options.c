/* See options.h. */
#include "base/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DTYPES "auto|f32|bf16|f16"

/* clang-format off */
const option_def option_table[OPTION_COUNT] = {
    [OPT_MODEL] = {OPT_MODEL, COMMAND_GENERATE | COMMAND_TOKENIZE | COMMAND_TEMPLATE, OPTION_TEXT, "model", NULL, 'm', "MODEL", NULL, 0, 0, NULL,
        "Model: a folder with config.json, tokenizer.json and *.safetensors, or the word 'demo' for the built-in one; "
        "with --load-format dummy also a known name such as Qwen/Qwen3-4B"},
    [OPT_PROMPT] = {OPT_PROMPT, COMMAND_GENERATE | COMMAND_TOKENIZE, OPTION_LIST, "prompt", NULL, 'p', "TEXT", NULL, 0, 0,
        NULL, "Prompt to continue, or text to tokenize; give it several times for a batch"},
    [OPT_MAX_TOKENS] = {OPT_MAX_TOKENS, COMMAND_GENERATE, OPTION_INT, "max-tokens", "predict", 'n', "N", "128",
        0, 1 << 24, NULL, "Most tokens to generate for each prompt"},
    [OPT_TEMPERATURE] = {OPT_TEMPERATURE, COMMAND_GENERATE, OPTION_REAL, "temp", "temperature", 0, "T", NULL, 0, 100,
        NULL, "Sampling temperature, 0 for greedy (default: generation_config.json's, else 1)"},
    [OPT_TOP_K] = {OPT_TOP_K, COMMAND_GENERATE, OPTION_INT, "top-k", NULL, 0, "K", NULL, 0, 1 << 30, NULL,
        "Keep the K most likely tokens, 0 for all (default: generation_config.json's, else 0)"},
    [OPT_TOP_P] = {OPT_TOP_P, COMMAND_GENERATE, OPTION_REAL, "top-p", NULL, 0, "P", NULL, 0, 1, NULL,
        "Keep the most likely tokens that hold this share of what top-k left, 1 for all (default: "
        "generation_config.json's, else 1)"},
    [OPT_SEED] = {OPT_SEED, COMMAND_GENERATE, OPTION_INT, "seed", NULL, 's', "N", NULL, 0, 9e15, NULL,
        "Seed of sampling: the same seed gives the same text at any -tp and in any batch (default: random, printed)"},
    [OPT_IGNORE_EOS] = {OPT_IGNORE_EOS, COMMAND_GENERATE, OPTION_FLAG, "ignore-eos", NULL, 0, NULL, NULL, 0, 0, NULL,
        "Go on after an end-of-text token"},
    [OPT_TENSOR_PARALLEL_SIZE] = {OPT_TENSOR_PARALLEL_SIZE, COMMAND_GENERATE, OPTION_INT, "tensor-parallel-size", "tp",
        0, "R", "1", 1, 8, NULL, "Ranks that share the model: 1, 2, 4 or 8"},
    [OPT_THREADS] = {OPT_THREADS, COMMAND_GENERATE, OPTION_INT, "threads", NULL, 't', "N", NULL, 1, 1024, NULL,
        "CPU threads of each rank (default: the cores divided by the ranks)"},
    [OPT_DTYPE] = {OPT_DTYPE, COMMAND_GENERATE, OPTION_CHOICE, "dtype", NULL, 0, "TYPE", "auto", 0, 0, DTYPES,
        "Type of weights and activations; auto is the checkpoint's"},
    [OPT_KV_CACHE_DTYPE] = {OPT_KV_CACHE_DTYPE, COMMAND_GENERATE, OPTION_CHOICE, "kv-cache-dtype", NULL, 0, "TYPE",
        "auto", 0, 0, DTYPES, "Type of the KV cache; auto is --dtype's"},
    [OPT_MAX_MODEL_LEN] = {OPT_MAX_MODEL_LEN, COMMAND_GENERATE, OPTION_INT, "max-model-len", NULL, 0, "N", NULL,
        1, 1 << 24, NULL, "Longest prompt plus answer in tokens (default: the model's, or what the KV cache holds)"},
    [OPT_MAX_NUM_SEQS] = {OPT_MAX_NUM_SEQS, COMMAND_GENERATE, OPTION_INT, "max-num-seqs", NULL, 0, "N", "16", 1, 4096,
        NULL, "Most sequences that run at once; others wait"},
    [OPT_MAX_NUM_BATCHED_TOKENS] = {OPT_MAX_NUM_BATCHED_TOKENS, COMMAND_GENERATE, OPTION_INT, "max-num-batched-tokens",
        NULL, 0, "N", NULL, 1, 1 << 20, NULL, "Most rows of one step: longer prompts run in chunks (default: 512)"},
    [OPT_KV_CACHE_MEMORY_BYTES] = {OPT_KV_CACHE_MEMORY_BYTES, COMMAND_GENERATE, OPTION_INT, "kv-cache-memory-bytes",
        NULL, 0, "BYTES", NULL, 1, 1e15, NULL,
        "Size of the KV cache, all ranks together (default: all sequences at full length, at most 4Gi)"},
    [OPT_LOAD_FORMAT] = {OPT_LOAD_FORMAT, COMMAND_GENERATE, OPTION_CHOICE, "load-format", NULL, 0, "FORMAT", "auto",
        0, 0, "auto|safetensors|dummy", "dummy: the model's shapes with made-up weights, nothing is read"},
    [OPT_CACHE_FOLDER] = {OPT_CACHE_FOLDER, COMMAND_GENERATE | COMMAND_TOKENIZE | COMMAND_TEMPLATE, OPTION_TEXT,
        "cache-folder", NULL, 0, "FOLDER", NULL, 0, 0, NULL,
        "Where parsed tokenizers are kept for faster starts, empty for nowhere (default: $XDG_CACHE_HOME/lockstep, "
        "else ~/.cache/lockstep)"},
    [OPT_NO_PARSE_SPECIAL] = {OPT_NO_PARSE_SPECIAL, COMMAND_TOKENIZE, OPTION_FLAG, "no-parse-special", NULL, 0, NULL,
        NULL, 0, 0, NULL, "Special tokens written in the text are text"},
    [OPT_NO_ADD_SPECIAL] = {OPT_NO_ADD_SPECIAL, COMMAND_TOKENIZE, OPTION_FLAG, "no-add-special", NULL, 0, NULL, NULL,
        0, 0, NULL, "Leave out what the tokenizer adds, such as a beginning-of-text token"},
    [OPT_MESSAGES] = {OPT_MESSAGES, COMMAND_TEMPLATE, OPTION_TEXT, "messages", NULL, 0, "JSON", NULL, 0, 0, NULL,
        "The conversation: an array of messages, or @FILE that holds one"},
    [OPT_TOOLS] = {OPT_TOOLS, COMMAND_TEMPLATE, OPTION_TEXT, "tools", NULL, 0, "JSON", NULL, 0, 0, NULL,
        "Tools the model may call: an array, or @FILE"},
    [OPT_CHAT_TEMPLATE_KWARGS] = {OPT_CHAT_TEMPLATE_KWARGS, COMMAND_TEMPLATE, OPTION_TEXT, "chat-template-kwargs", NULL,
        0, "JSON", NULL, 0, 0, NULL, "What else the template may read: an object such as {\"enable_thinking\": false}"},
    [OPT_CHAT_TEMPLATE_NAME] = {OPT_CHAT_TEMPLATE_NAME, COMMAND_TEMPLATE, OPTION_TEXT, "chat-template-name", NULL, 0,
        "NAME", NULL, 0, 0, NULL, "Which of the model's named templates (default: as transformers chooses)"},
    [OPT_NO_GENERATION_PROMPT] = {OPT_NO_GENERATION_PROMPT, COMMAND_TEMPLATE, OPTION_FLAG, "no-generation-prompt", NULL,
        0, NULL, NULL, 0, 0, NULL, "Leave out what opens the assistant's turn"},
    [OPT_JSON] = {OPT_JSON, COMMAND_GENERATE | COMMAND_TOKENIZE | COMMAND_TEMPLATE, OPTION_FLAG, "json", NULL, 0, NULL,
        NULL, 0, 0, NULL, "Print JSON: an object a line for each prompt or text; generate adds one with the timeline"},
    [OPT_VERBOSE] = {OPT_VERBOSE, COMMAND_GENERATE | COMMAND_TOKENIZE | COMMAND_TEMPLATE, OPTION_FLAG, "verbose", NULL, 'v', NULL, NULL, 0, 0, NULL,
        "Log what happens, and the way an error took"},
};
/* clang-format on */

/* What the value was called by: a flag or a variable. */
static void describe(const option_def *def, bool from_env, char *out, size_t out_bytes) {
    int n = snprintf(out, out_bytes, "%s%s", from_env ? "LOCKSTEP_" : "--", def->name);
    for (int i = 0; from_env && i < n && (size_t)i < out_bytes; i++) {
        out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
    }
}

static double suffix_factor(const char *suffix) {
    static const struct {
        const char *text;
        double factor;
    } known[] = {{"", 1},     {"k", 1e3},   {"M", 1e6},      {"G", 1e9},
                 {"K", 1024}, {"Ki", 1024}, {"Mi", 1048576}, {"Gi", 1073741824}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].text, suffix) == 0) {
            return known[i].factor;
        }
    }
    return 0;
}

static ls_status parse_number(const option_def *def, const char *what, const char *text, option_value *value,
                              ls_error *err) {
    char *end;
    errno = 0;
    bool integer = def->type == OPTION_INT;
    double number = integer ? (double)strtoll(text, &end, 10) : strtod(text, &end);
    double factor = integer ? suffix_factor(end) : *end == '\0' ? 1 : 0;
    if (end == text || errno != 0 || factor == 0 || !isfinite(number)) {
        return error_set(err, LS_EINVAL, "%s %s: expected %s", what, text, integer ? "an integer" : "a number");
    }
    if (number * factor < def->min || number * factor > def->max) {
        return error_set(err, LS_EINVAL, "%s %s: must be from %.15g to %.15g", what, text, def->min, def->max);
    }
    value->real = number * factor;
    value->integer = (int64_t)value->real;
    return LS_OK;
}

static bool is_choice(const char *choices, const char *text) {
    size_t n = strlen(text);
    if (n == 0 || strchr(text, '|') != NULL) {
        return false; /* two choices are no choice */
    }
    for (const char *c = choices; c != NULL; c = strchr(c, '|')) {
        c += *c == '|';
        if (strncmp(c, text, n) == 0 && (c[n] == '|' || c[n] == '\0')) {
            return true;
        }
    }
    return false;
}

static ls_status parse(const option_def *def, bool from_env, const char *text, option_value *value, ls_error *err) {
    char what[64];
    describe(def, from_env, what, sizeof what);
    option_value fresh = {.set = true, .from_env = from_env, .text = text};
    if (def->type == OPTION_INT || def->type == OPTION_REAL) {
        TRY(parse_number(def, what, text, &fresh, err));
    } else if (def->type == OPTION_CHOICE && !is_choice(def->choices, text)) {
        return error_set(err, LS_EINVAL, "%s %s: must be one of %s", what, text, def->choices);
    } else if (def->type == OPTION_FLAG) {
        if (strcmp(text, "0") != 0 && strcmp(text, "1") != 0) {
            return error_set(err, LS_EINVAL, "%s %s: must be 0 or 1", what, text);
        }
        fresh.integer = text[0] == '1';
    }
    *value = fresh;
    return LS_OK;
}

static ls_status list_append(ls_options *options, option_id id, const char *text, ls_error *err) {
    size_t n = options->n_list[id];
    const char **grown = realloc(options->list[id], (n + 1) * sizeof *grown);
    if (grown == NULL) {
        return error_set(err, LS_ENOMEM, "options: out of memory");
    }
    grown[n] = text;
    options->list[id] = grown;
    options->n_list[id] = n + 1;
    return LS_OK;
}

static ls_status take(ls_options *options, const option_def *def, bool from_env, const char *text, ls_error *err) {
    bool replaces = options->value[def->id].from_env && !from_env;
    TRY(parse(def, from_env, text, &options->value[def->id], err));
    if (replaces) {
        options->n_list[def->id] = 0;
    }
    return def->type == OPTION_LIST ? list_append(options, def->id, text, err) : LS_OK;
}

ls_status options_init(ls_options *options, ls_error *err) {
    *options = (ls_options){0};
    for (int id = 0; id < OPTION_COUNT; id++) {
        const option_def *def = &option_table[id];
        char variable[64];
        describe(def, true, variable, sizeof variable);
        const char *from_env = getenv(variable);
        if (from_env != NULL) {
            TRY(take(options, def, true, from_env, err));
        } else if (def->fallback != NULL) {
            TRY(parse(def, false, def->fallback, &options->value[id], err));
        }
    }
    return LS_OK;
}

void options_deinit(ls_options *options) {
    for (int id = 0; id < OPTION_COUNT; id++) {
        free(options->list[id]);
    }
    *options = (ls_options){0};
}

ls_status options_set(ls_options *options, option_id id, const char *text, ls_error *err) {
    return take(options, &option_table[id], false, text != NULL ? text : "1", err);
}

const char *options_cache_folder(const ls_options *options, char *scratch, size_t scratch_bytes) {
    const option_value *given = &options->value[OPT_CACHE_FOLDER];
    if (given->set) {
        return given->text[0] != '\0' ? given->text : NULL;
    }
    const char *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    bool has_cache = cache != NULL && cache[0] == '/'; /* the XDG rules: a relative path is none */
    if (!has_cache && (home == NULL || home[0] != '/')) {
        return NULL;
    }
    int n = snprintf(scratch, scratch_bytes, "%s/%slockstep", has_cache ? cache : home, has_cache ? "" : ".cache/");
    return n > 0 && (size_t)n < scratch_bytes ? scratch : NULL;
}
