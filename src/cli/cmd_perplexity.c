/*
 * lockstep perplexity: how well a model predicts a text. The definition stands in the command's --help; it is that of
 * transformers' "Perplexity of fixed-length models" with windows that do not overlap.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "cli/cli.h"
#include "cli/perplexity.h"
#include "cli/prompts.h"

typedef struct perplexity {
    ls_options options;
    prompt_list prompts;
    ls_text *text;
    ls_model *model;
    ls_engine *engine;
    cli_hosts hosts;
    int32_t *token; /* [n_tokens] */
    size_t n_tokens;
    perplexity_score score;
} perplexity;

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

static ls_status print(const perplexity *p, size_t window_tokens, double seconds, ls_error *err) {
    double mean = p->score.nll / (double)p->score.n_scored;
    double rate = seconds > 0 ? (double)p->n_tokens / seconds : 0;
    if (p->options.value[OPT_JSON].integer == 0) {
        printf("perplexity   %.6f\n", exp(mean));
        printf("nll          %.6f per token\n", mean);
        printf("tokens       %zu scored of %zu, in %zu windows of %zu\n", p->score.n_scored, p->n_tokens,
               p->score.n_windows, window_tokens);
        printf("time         %.2f s, %.1f tokens/s\n", seconds, rate);
        return LS_OK;
    }
    json_t *object = json_pack("{s:f, s:f, s:I, s:I, s:I, s:I, s:f, s:f}", "perplexity", exp(mean), "nll", mean,
                               "tokens", (json_int_t)p->n_tokens, "scored_tokens", (json_int_t)p->score.n_scored,
                               "windows", (json_int_t)p->score.n_windows, "window_tokens", (json_int_t)window_tokens,
                               "seconds", seconds, "tokens_per_s", rate);
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
    int64_t start = clock_ns();
    TRY(perplexity_measure(p->engine, p->token, p->n_tokens, (size_t)p->options.value[OPT_MAX_NUM_SEQS].integer,
                           isatty(STDERR_FILENO) == 1, &p->score, err));
    return print(p, length, (double)(clock_ns() - start) / 1e9, err);
}

int cmd_perplexity(int argc, char **argv) {
    perplexity p = {0};
    ls_error error = {0};
    ls_status st = perplexity_all(&p, argc, argv, &error);
    int code = st < 0 ? cli_fail(&error, p.options.value[OPT_VERBOSE].integer != 0) : EXIT_GOOD;
    ls_engine_close(&p.engine);
    ls_model_close(&p.model);
    cli_hosts_leave(&p.hosts, st, &error);
    ls_text_close(&p.text);
    free(p.token);
    prompts_deinit(&p.prompts);
    options_deinit(&p.options);
    return code;
}
