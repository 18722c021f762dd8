/*
 * lockstep perplexity: how well a model predicts a text. The definition stands in the command's --help; it is that of
 * transformers' "Perplexity of fixed-length models" with windows that do not overlap.
 *
 * Windows run as a batch, as many at once as the engine has seats. Each adds up its own positions in their order, and the
 * windows are added in theirs: the figure does not depend on the batch.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "cli/cli.h"
#include "cli/prompts.h"

typedef struct window {
    const int32_t *token; /* [n] */
    size_t n, n_scored;
    double nll; /* sum over the scored tokens */
    ls_request *request;
} window;

typedef struct perplexity {
    ls_options options;
    prompt_list prompts;
    ls_text *text;
    ls_model *model;
    ls_engine *engine;
    cli_hosts hosts;
    int32_t *token; /* [n_tokens] */
    window *window; /* [n_windows] */
    size_t n_tokens, n_windows, n_scored;
    double nll; /* of windows that are done */
} perplexity;

/* -log softmax(logits)[target] */
static double negative_log_likelihood(const float *logits, int n_vocab, int32_t target) {
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < n_vocab; i++) {
        max = logits[i] > max ? logits[i] : max;
    }
    for (int i = 0; i < n_vocab; i++) {
        sum += exp(logits[i] - max);
    }
    return log(sum) + max - logits[target];
}

static void score(void *user, ls_request *request, int position, const float *logits, int n_vocab) {
    window *w = user;
    (void)request;
    size_t next = (size_t)position + 1;
    if (next < w->n) {
        w->nll += negative_log_likelihood(logits, n_vocab, w->token[next]);
        w->n_scored++;
    }
}

static ls_status read_tokens(perplexity *p, ls_error *err) {
    const prompt_text *text = &p->prompts.item[0];
    ls_token *token;
    size_t n;
    TRY(ls_text_encode(p->text, text->bytes, text->n_bytes, LS_ENCODE_PARSE_SPECIAL | LS_ENCODE_ADD_SPECIAL, &token, &n,
                       err));
    p->token = malloc((n + 1) * sizeof *p->token);
    for (size_t i = 0; p->token != NULL && i < n; i++) {
        p->token[i] = token[i].id;
    }
    ls_free(token);
    p->n_tokens = n;
    if (p->token == NULL) {
        return error_set(err, LS_ENOMEM, "perplexity: out of memory");
    }
    return n >= 2 ? LS_OK
                  : error_set(err, LS_EINVAL, "%s: a text of %zu tokens has none that could be predicted",
                              p->options.list[OPT_PROMPT_FILE][0], n);
}

static ls_status cut_windows(perplexity *p, size_t length, ls_error *err) {
    if (length < 2) {
        return error_set(err, LS_EINVAL, "--max-model-len %zu: windows of one token predict nothing", length);
    }
    p->window = calloc(p->n_tokens / length + 1, sizeof *p->window);
    if (p->window == NULL) {
        return error_set(err, LS_ENOMEM, "perplexity: out of memory");
    }
    for (size_t at = 0; at + 1 < p->n_tokens; at += length) {
        size_t left = p->n_tokens - at;
        p->window[p->n_windows++] = (window){.token = p->token + at, .n = left < length ? left : length};
    }
    return LS_OK;
}

static ls_status submit(perplexity *p, window *w, ls_error *err) {
    ls_request_params params = LS_REQUEST_PARAMS_INIT;
    params.prompt_tokens = w->token;
    params.n_prompt_tokens = w->n;
    params.max_tokens = 0;
    params.temperature = 0;
    params.prompt_logits = true;
    params.on_logits = score;
    params.user = w;
    return ls_request_submit(p->engine, &params, &w->request, err);
}

/* Adds the windows that are done, in order, from *next on. */
static ls_status collect(perplexity *p, size_t *next, size_t end, ls_error *err) {
    for (; *next < end; (*next)++) {
        window *w = &p->window[*next];
        ls_result result = LS_RESULT_INIT;
        TRY(ls_request_get_result(w->request, &result, err));
        if (result.finish == LS_FINISH_NONE) {
            return LS_OK;
        }
        if (result.finish == LS_FINISH_ERROR) {
            return error_set(err, result.status, "window %zu of %zu: %s", *next + 1, p->n_windows, result.error);
        }
        p->nll += w->nll;
        p->n_scored += w->n_scored;
        ls_request_free(&w->request);
    }
    return LS_OK;
}

static ls_status run(perplexity *p, ls_error *err) {
    const size_t at_once = (size_t)p->options.value[OPT_MAX_NUM_SEQS].integer;
    const bool progress = isatty(STDERR_FILENO) == 1;
    size_t n_submitted = 0, n_done = 0;
    while (n_done < p->n_windows) {
        for (; n_submitted < p->n_windows && n_submitted < n_done + at_once; n_submitted++) {
            TRY(submit(p, &p->window[n_submitted], err));
        }
        TRY(ls_engine_step(p->engine, err));
        size_t before = n_done;
        TRY(collect(p, &n_done, n_submitted, err));
        if (progress && n_done > before) {
            fprintf(stderr, "\r%zu of %zu windows, perplexity %.4f ", n_done, p->n_windows,
                    exp(p->nll / (double)p->n_scored));
        }
    }
    if (progress) {
        fprintf(stderr, "\n");
    }
    return LS_OK;
}

static ls_status print(const perplexity *p, size_t window_tokens, double seconds, ls_error *err) {
    double mean = p->nll / (double)p->n_scored;
    double rate = seconds > 0 ? (double)p->n_tokens / seconds : 0;
    if (p->options.value[OPT_JSON].integer == 0) {
        printf("perplexity   %.6f\n", exp(mean));
        printf("nll          %.6f per token\n", mean);
        printf("tokens       %zu scored of %zu, in %zu windows of %zu\n", p->n_scored, p->n_tokens, p->n_windows,
               window_tokens);
        printf("time         %.2f s, %.1f tokens/s\n", seconds, rate);
        return LS_OK;
    }
    json_t *object = json_pack("{s:f, s:f, s:I, s:I, s:I, s:I, s:f, s:f}", "perplexity", exp(mean), "nll", mean,
                               "tokens", (json_int_t)p->n_tokens, "scored_tokens", (json_int_t)p->n_scored, "windows",
                               (json_int_t)p->n_windows, "window_tokens", (json_int_t)window_tokens, "seconds", seconds,
                               "tokens_per_s", rate);
    if (object == NULL) {
        return error_set(err, LS_ENOMEM, "cannot write JSON: out of memory");
    }
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(12));
    putchar('\n');
    json_decref(object);
    return LS_OK;
}

static ls_status perplexity_all(perplexity *p, int argc, char **argv, ls_error *err) {
    TRY(options_init(&p->options, err));
    TRY(args_parse(&p->options, COMMAND_PERPLEXITY, argc, argv, err));
    const option_value *v = p->options.value;
    if (!v[OPT_MODEL].set || p->options.n_list[OPT_PROMPT_FILE] != 1) {
        return error_set(err, LS_EINVAL, "perplexity needs a model and one text: lockstep perplexity demo -f FILE");
    }
    p->options.n_list[OPT_PROMPT] = 0; /* not this command's, were it in the environment */
    p->options.value[OPT_REPEAT_PROMPT].set = false;
    TRY(cli_hosts_join(&p->options, &p->hosts, err));
    if (ls_hosts_self(p->hosts.group) > 0) {
        return cli_follow(&p->options, cli_engine_params(&p->options, p->hosts.group), err);
    }
    TRY(prompts_read(&p->prompts, &p->options, err));
    char folder[4096], cache[4096];
    TRY(cli_find_text(&p->options, folder, sizeof folder, err));
    TRY(ls_text_open(folder, options_cache_folder(&p->options, cache, sizeof cache), &p->text, err));
    TRY(read_tokens(p, err));
    TRY(cli_open(&p->options, p->hosts.group, &p->model, &p->engine, err));
    size_t length = (size_t)ls_engine_max_tokens(p->engine);
    TRY(cut_windows(p, length, err));
    int64_t start = clock_ns();
    TRY(run(p, err));
    return print(p, length, (double)(clock_ns() - start) / 1e9, err);
}

int cmd_perplexity(int argc, char **argv) {
    perplexity p = {0};
    ls_error error = {0};
    ls_status st = perplexity_all(&p, argc, argv, &error);
    int code = st < 0 ? cli_fail(&error, p.options.value[OPT_VERBOSE].integer != 0) : EXIT_GOOD;
    ls_engine_close(&p.engine); /* with the requests of windows that are left */
    ls_model_close(&p.model);
    cli_hosts_leave(&p.hosts, st, &error);
    ls_text_close(&p.text);
    free(p.window);
    free(p.token);
    prompts_deinit(&p.prompts);
    options_deinit(&p.options);
    return code;
}
