/*
 * See perplexity.h. Windows run as a batch, as many at once as the engine has seats. Each adds up its own positions in their
 * order, and the windows are added in theirs: the figure does not depend on the batch.
 */
#include "cli/perplexity.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"

typedef struct window {
    const int32_t *token; /* [n] */
    size_t n, n_scored;
    double nll; /* sum over the scored tokens */
    ls_request *request;
} window;

typedef struct scoring {
    ls_engine *engine;
    const int32_t *token; /* [n_tokens] */
    size_t n_tokens, at_once;
    bool progress;
    window *window; /* [n_windows] */
    size_t n_windows, n_scored;
    double nll; /* of windows that are done */
} scoring;

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

static ls_status cut_windows(scoring *p, size_t length, ls_error *err) {
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

static ls_status submit(scoring *p, window *w, ls_error *err) {
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
static ls_status collect(scoring *p, size_t *next, size_t end, ls_error *err) {
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

static ls_status run(scoring *p, ls_error *err) {
    const size_t at_once = p->at_once;
    const bool progress = p->progress;
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

ls_status perplexity_measure(ls_engine *engine, const int32_t *token, size_t n_tokens, size_t at_once, bool progress,
                             perplexity_score *out, ls_error *err) {
    scoring p = {.engine = engine, .token = token, .n_tokens = n_tokens, .at_once = at_once, .progress = progress};
    ls_status st = cut_windows(&p, (size_t)ls_engine_max_tokens(engine), err);
    st = st == LS_OK ? run(&p, err) : st;
    for (size_t i = 0; i < p.n_windows; i++) { /* those that a failure left */
        ls_request_free(&p.window[i].request);
    }
    free(p.window);
    TRY(st);
    *out = (perplexity_score){p.nll, p.n_scored, p.n_windows};
    return LS_OK;
}
