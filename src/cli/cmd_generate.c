/*
 * lockstep generate: continue prompts. One answer streams; several run as a batch and are printed in their order. Results
 * go to stdout, the timeline to stderr; with --json all goes to stdout, one object a line. Ctrl-C ends the run after the
 * step it is in: what there is is printed, and the exit code is 130.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/generate.h"
#include "cli/interrupt.h"
#include "cli/timeline.h"

static bool flag(const generate *g, option_id id) {
    return g->options.value[id].integer != 0;
}

static bool timeline_is(const generate *g, const char *form) {
    return strcmp(g->options.value[OPT_TIMELINE].text, form) == 0;
}

static int choices(const generate *g) {
    return (int)g->options.value[OPT_NUM_RETURN_SEQUENCES].integer;
}

/* ---- Requests ---- */

/* Before anything of an answer. */
static void print_prompt(generate *g) {
    reading_clear(&g->reading);
    if (g->shows_prompt) {
        fwrite(g->prompts.item[0].bytes, 1, g->prompts.item[0].n_bytes, stdout);
        fflush(stdout);
        g->shows_prompt = false;
    }
}

static void print_piece(void *user, ls_request *request, int32_t token, const char *text, size_t text_bytes) {
    generate *g = user;
    (void)request;
    print_prompt(g);
    if (g->has_tokenizer) {
        fwrite(text, 1, text_bytes, stdout);
    } else if (token >= 0) {
        printf(" %" PRId32, token);
    }
    fflush(stdout);
}

static ls_status submit(generate *g, answer *a, ls_error *err) {
    const option_value *v = g->options.value;
    ls_request_params params = LS_REQUEST_PARAMS_INIT;
    sampling_options_apply(&g->sampling, &g->options, &params);
    params.prompt = a->prompt->bytes;
    params.prompt_bytes = a->prompt->n_bytes;
    params.choice = a->choice;
    params.logprobs = v[OPT_LOGPROBS].set ? (int)v[OPT_LOGPROBS].integer : -1;
    params.prompt_logprobs = v[OPT_PROMPT_LOGPROBS].set ? (int)v[OPT_PROMPT_LOGPROBS].integer : -1;
    params.hash_logits = g->json;
    params.on_text = g->stream ? print_piece : NULL;
    params.user = g;
    ls_status st = ls_request_submit(g->engine, &params, &a->request, err);
    return st == LS_OK || g->prompts.n == 1 ? st : error_prefix(err, st, "prompt %zu", a->i_prompt + 1);
}

static ls_status submit_all(generate *g, ls_error *err) {
    size_t n_choices = (size_t)choices(g);
    g->answer = calloc(g->prompts.n * n_choices, sizeof *g->answer);
    if (g->answer == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < g->prompts.n * n_choices; i++) {
        size_t i_prompt = i / n_choices;
        g->answer[i] = (answer){&g->prompts.item[i_prompt], i_prompt, (uint32_t)(i % n_choices), NULL};
        g->n_answers++;
        TRY(submit(g, &g->answer[i], err));
    }
    return LS_OK;
}

static ls_status step_to_end(generate *g, ls_error *err) {
    ls_status st = LS_OK;
    while (st == LS_OK) {
        if (interrupt_taken()) {
            g->interrupted = true;
            break;
        }
        st = ls_engine_step(g->engine, err);
        reading_step(&g->reading);
    }
    print_prompt(g);
    if (g->interrupted) {
        for (size_t i = 0; i < g->n_answers; i++) {
            ls_request_cancel(g->answer[i].request);
        }
        st = ls_engine_step(g->engine, err); /* that it takes effect */
    }
    return st;
}

static ls_status begin_reading(generate *g, ls_error *err) {
    int64_t n_tokens = 0;
    for (size_t i = 0; i < g->n_answers; i++) {
        ls_result result = LS_RESULT_INIT;
        TRY(ls_request_get_result(g->answer[i].request, &result, err));
        n_tokens += (int64_t)result.n_prompt_tokens;
    }
    g->shows_prompt = g->stream && g->has_tokenizer;
    g->reading = reading_begin(&g->options, g->engine, n_tokens);
    if (!reading_is_shown(&g->reading)) {
        print_prompt(g); /* a bar would stand in its last line */
    }
    return LS_OK;
}

static ls_status run(generate *g, ls_error *err) {
    TRY(submit_all(g, err));
    TRY(begin_reading(g, err));
    interrupt_hold();
    ls_status st = step_to_end(g, err);
    interrupt_release();
    return st;
}

/* ---- Output ---- */

static void print_text(const generate *g, const answer *a, const ls_result *result) {
    if (choices(g) > 1) {
        printf("[%zu.%" PRIu32 "] ", a->i_prompt + 1, a->choice + 1);
    } else {
        printf("[%zu] ", a->i_prompt + 1);
    }
    if (g->has_tokenizer) {
        fwrite(a->prompt->bytes, 1, a->prompt->n_bytes, stdout);
    }
    fwrite(result->text, 1, result->text_bytes, stdout);
    for (size_t t = result->n_prompt_tokens; !g->has_tokenizer && t < result->n_tokens; t++) {
        printf(" %" PRId32, result->tokens[t]);
    }
}

static ls_status print_answer(generate *g, const answer *a, ls_error *err) {
    ls_result result = LS_RESULT_INIT;
    TRY(ls_request_get_result(a->request, &result, err));
    g->failed = g->failed || result.finish == LS_FINISH_ERROR;
    if (g->json) {
        return generate_print_json(g, a, &result, err);
    }
    if (!g->stream) {
        print_text(g, a, &result);
    }
    putchar('\n');
    if (result.finish == LS_FINISH_ERROR) {
        fprintf(stderr, "lockstep: prompt %zu: %s\n", a->i_prompt + 1, result.error);
    }
    return LS_OK;
}

static ls_status print_profile(generate *g, double limit_bytes_per_s, ls_error *err) {
    enum { MOST_LINES = 48 };
    ls_profile_line line[MOST_LINES];
    size_t n;
    TRY(ls_engine_get_profile(g->engine, line, MOST_LINES, &n, err));
    profile_print(stderr, line, n, limit_bytes_per_s);
    return LS_OK;
}

static ls_status print_end(generate *g, ls_error *err) {
    if (g->json || timeline_is(g, "json")) {
        return timeline_is(g, "none") ? LS_OK : generate_print_end_json(g, g->json ? stdout : stderr, err);
    }
    if (timeline_is(g, "text")) {
        ls_timeline timeline = LS_TIMELINE_INIT;
        TRY(ls_engine_get_timeline(g->engine, &timeline, err));
        timeline_print(stderr, &timeline);
        TRY(print_profile(g, timeline.read_bytes_per_s, err));
        if (!g->options.value[OPT_SEED].set) {
            fprintf(stderr, "seed     %" PRId64 "\n", (int64_t)g->sampling.seed);
        }
    }
    return LS_OK;
}

static ls_status print_all(generate *g, ls_error *err) {
    for (size_t i = 0; i < g->n_answers; i++) {
        TRY(print_answer(g, &g->answer[i], err));
    }
    fflush(stdout);
    if (g->trace != NULL) { /* before the timeline, whose measurement is no part of the run */
        TRY(trace_file_write(g->trace, g->engine, g->options.value[OPT_MODEL].text, err));
    }
    return print_end(g, err);
}

/* ---- The command ---- */

static ls_status read_options(generate *g, int argc, char **argv, ls_error *err) {
    TRY(options_init(&g->options, err));
    TRY(args_parse(&g->options, COMMAND_GENERATE, argc, argv, err));
    const option_value *v = g->options.value;
    size_t n_prompts = g->options.n_list[OPT_PROMPT] + g->options.n_list[OPT_PROMPT_FILE];
    if (!v[OPT_MODEL].set || n_prompts == 0) {
        return error_set(err, LS_EINVAL,
                         "generate needs %s; a first try: lockstep generate -m demo -p 'Once upon a time'",
                         n_prompts == 0 ? "a prompt: -p TEXT or -f FILE" : "a model: -m FOLDER or -m demo");
    }
    g->json = flag(g, OPT_JSON);
    if (!g->json && (v[OPT_LOGPROBS].set || v[OPT_PROMPT_LOGPROBS].set)) {
        return error_set(err, LS_EINVAL, "--%s needs --json, where log probabilities are written",
                         v[OPT_LOGPROBS].set ? "logprobs" : "prompt-logprobs");
    }
    return sampling_options_read(&g->sampling, &g->options, err);
}

static ls_status generate_all(generate *g, int argc, char **argv, ls_error *err) {
    TRY(read_options(g, argc, argv, err));
    TRY(cli_hosts_join(&g->options, &g->hosts, err));
    ls_engine_params params = cli_engine_params(&g->options, g->hosts.group);
    if (ls_hosts_self(g->hosts.group) > 0) {
        return cli_follow(&g->options, params, err);
    }
    TRY(prompts_read(&g->prompts, &g->options, err));
    g->stream = g->prompts.n == 1 && choices(g) == 1 && !g->json;
    if (g->options.value[OPT_TRACE].set) {
        TRY(trace_file_open(&g->trace, g->options.value[OPT_TRACE].text, err));
    }
    TRY(g->hosts.group != NULL ? cli_open_model(&g->options, &g->model, err)
                               : cli_open_to_run(&g->options, &g->model, err));
    params.trace_events = g->trace != NULL ? TRACE_FILE_EVENTS : 0;
    TRY(cli_open_engine(&g->options, g->model, &params, &g->engine, err));
    ls_model_info info = LS_MODEL_INFO_INIT;
    TRY(ls_model_get_info(g->model, &info, err));
    g->has_tokenizer = info.has_tokenizer;
    TRY(run(g, err));
    return print_all(g, err);
}

int cmd_generate(int argc, char **argv) {
    generate g = {0};
    ls_error error = {0};
    ls_status st = generate_all(&g, argc, argv, &error);
    int code = st < 0          ? cli_fail(&error, flag(&g, OPT_VERBOSE))
               : g.failed      ? EXIT_FAILED
               : g.interrupted ? EXIT_INTERRUPTED
                               : EXIT_GOOD;
    for (size_t i = 0; i < g.n_answers; i++) {
        ls_request_free(&g.answer[i].request);
    }
    free(g.answer);
    ls_engine_close(&g.engine);
    ls_model_close(&g.model);
    cli_hosts_leave(&g.hosts, st, &error);
    trace_file_close(&g.trace);
    prompts_deinit(&g.prompts);
    sampling_options_deinit(&g.sampling);
    options_deinit(&g.options);
    return code;
}
