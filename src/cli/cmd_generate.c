/*
 * lockstep generate: continue prompts. One prompt streams; several run as a batch and are printed in their order. Results
 * go to stdout, the timeline to stderr; with --json all goes to stdout, one object a line.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/json.h"
#include "cli/cli.h"
#include "cli/timeline.h"

typedef struct generate {
    ls_options options;
    ls_model *model;
    ls_engine *engine;
    ls_request **request; /* [n_prompts] */
    size_t n_prompts;
    uint64_t seed;
    bool json, stream, has_tokenizer;
} generate;

static bool flag(const generate *g, option_id id) {
    return g->options.value[id].integer != 0;
}

/* ---- Requests ---- */

static void print_piece(void *user, ls_request *request, int32_t token, const char *text, size_t text_bytes) {
    const generate *g = user;
    (void)request;
    if (g->has_tokenizer) {
        fwrite(text, 1, text_bytes, stdout);
    } else if (token >= 0) {
        printf(" %" PRId32, token);
    }
    fflush(stdout);
}

static ls_status submit(generate *g, size_t i, ls_error *err) {
    const option_value *v = g->options.value;
    const char *prompt = g->options.list[OPT_PROMPT][i];
    ls_request_params params = LS_REQUEST_PARAMS_INIT;
    params.prompt = prompt;
    params.prompt_bytes = strlen(prompt);
    params.max_tokens = (int)v[OPT_MAX_TOKENS].integer;
    params.temperature = v[OPT_TEMPERATURE].set ? v[OPT_TEMPERATURE].real : -1;
    params.top_k = v[OPT_TOP_K].set ? (int)v[OPT_TOP_K].integer : -1;
    params.top_p = v[OPT_TOP_P].set ? v[OPT_TOP_P].real : -1;
    params.seed = g->seed;
    params.ignore_eos = flag(g, OPT_IGNORE_EOS);
    params.hash_logits = g->json;
    params.on_text = g->stream ? print_piece : NULL;
    params.user = g;
    ls_status st = ls_request_submit(g->engine, &params, &g->request[i], err);
    return st == LS_OK || g->n_prompts == 1 ? st : error_prefix(err, st, "prompt %zu", i + 1);
}

static ls_status run(generate *g, ls_error *err) {
    g->request = calloc(g->n_prompts, sizeof *g->request);
    if (g->request == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < g->n_prompts; i++) {
        TRY(submit(g, i, err));
    }
    if (g->stream && g->has_tokenizer) {
        fputs(g->options.list[OPT_PROMPT][0], stdout);
    }
    ls_status st;
    do {
        st = ls_engine_step(g->engine, err);
        TRY(st);
    } while (st != LS_IDLE);
    return LS_OK;
}

/* ---- Output ---- */

static ls_status print_json(json_t *object, ls_error *err) {
    if (object == NULL) {
        return error_set(err, LS_ENOMEM, "cannot write JSON: out of memory");
    }
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(object);
    return LS_OK;
}

static ls_status print_result_json(const char *prompt, const ls_result *result, ls_error *err) {
    json_t *tokens = json_array();
    for (size_t i = result->n_prompt_tokens; i < result->n_tokens; i++) {
        json_array_append_new(tokens, json_integer(result->tokens[i]));
    }
    char hash[20];
    snprintf(hash, sizeof hash, "%016" PRIx64, result->logits_hash);
    json_t *echo = json_string(prompt);
    if (echo == NULL) {
        echo = json_null(); /* bytes that are not UTF-8 cannot stand in JSON */
    }
    json_t *object =
        json_pack("{s:o, s:s%, s:o, s:I, s:s, s:s}", "prompt", echo, "text", result->text, result->text_bytes, "tokens",
                  tokens, "prompt_tokens", (json_int_t)result->n_prompt_tokens, "finish_reason",
                  ls_finish_name(result->finish), "logits_hash", hash);
    if (object != NULL && result->finish == LS_FINISH_ERROR) {
        json_object_set_new(object, "error", json_string(result->error));
    }
    return print_json(object, err);
}

static ls_status print_result(generate *g, size_t i, bool *failed, ls_error *err) {
    ls_result result = LS_RESULT_INIT;
    TRY(ls_request_get_result(g->request[i], &result, err));
    const char *prompt = g->options.list[OPT_PROMPT][i];
    *failed = *failed || result.finish == LS_FINISH_ERROR;
    if (g->json) {
        return print_result_json(prompt, &result, err);
    }
    if (!g->stream) {
        printf("[%zu] %s", i + 1, g->has_tokenizer ? prompt : "");
        fwrite(result.text, 1, result.text_bytes, stdout);
        for (size_t t = result.n_prompt_tokens; !g->has_tokenizer && t < result.n_tokens; t++) {
            printf(" %" PRId32, result.tokens[t]);
        }
    }
    putchar('\n');
    if (result.finish == LS_FINISH_ERROR) {
        fprintf(stderr, "lockstep: prompt %zu: %s\n", i + 1, result.error);
    }
    return LS_OK;
}

enum { PROFILE_LINES = 48 };

static ls_status print_all(generate *g, bool *failed, ls_error *err) {
    for (size_t i = 0; i < g->n_prompts; i++) {
        TRY(print_result(g, i, failed, err));
    }
    fflush(stdout);
    ls_timeline timeline = LS_TIMELINE_INIT;
    TRY(ls_engine_get_timeline(g->engine, &timeline, err));
    if (g->json) {
        json_t *object = timeline_json(&timeline);
        json_t *last = json_pack("{s:o, s:I}", "timeline", object, "seed", (json_int_t)g->seed);
        return print_json(last, err);
    }
    timeline_print(stderr, &timeline);
    ls_profile_line line[PROFILE_LINES];
    size_t n_lines;
    TRY(ls_engine_get_profile(g->engine, line, PROFILE_LINES, &n_lines, err));
    profile_print(stderr, line, n_lines, timeline.read_bytes_per_s);
    if (!g->options.value[OPT_SEED].set) {
        fprintf(stderr, "seed     %" PRIu64 "\n", g->seed);
    }
    return LS_OK;
}

static ls_status generate_all(generate *g, int argc, char **argv, bool *failed, ls_error *err) {
    TRY(options_init(&g->options, err));
    TRY(args_parse(&g->options, COMMAND_GENERATE, argc, argv, err));
    g->n_prompts = g->options.n_list[OPT_PROMPT];
    if (!g->options.value[OPT_MODEL].set || g->n_prompts == 0) {
        return error_set(err, LS_EINVAL,
                         "generate needs %s; a first try: lockstep generate -m demo -p 'Once upon a time'",
                         g->n_prompts == 0 ? "a prompt: -p TEXT" : "a model: -m FOLDER or -m demo");
    }
    g->json = flag(g, OPT_JSON);
    g->stream = g->n_prompts == 1 && !g->json;
    g->seed = (uint64_t)g->options.value[OPT_SEED].integer;
    if (!g->options.value[OPT_SEED].set && getrandom(&g->seed, sizeof g->seed, 0) == sizeof g->seed) {
        g->seed >>= 32; /* short enough to type */
    }
    TRY(cli_open(&g->options, &g->model, &g->engine, err));
    ls_model_info info = LS_MODEL_INFO_INIT;
    TRY(ls_model_get_info(g->model, &info, err));
    g->has_tokenizer = info.has_tokenizer;
    TRY(run(g, err));
    return print_all(g, failed, err);
}

int cmd_generate(int argc, char **argv) {
    generate g = {0};
    ls_error error = {0};
    bool failed = false;
    ls_status st = generate_all(&g, argc, argv, &failed, &error);
    int code = st < 0 ? cli_fail(&error, flag(&g, OPT_VERBOSE)) : failed ? EXIT_FAILED : EXIT_GOOD;
    for (size_t i = 0; g.request != NULL && i < g.n_prompts; i++) {
        ls_request_free(&g.request[i]);
    }
    free(g.request);
    ls_engine_close(&g.engine);
    ls_model_close(&g.model);
    options_deinit(&g.options);
    return code;
}
