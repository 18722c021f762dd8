/*
 * A generation: the requests in the engine that one call waits for, one for each prompt and choice.
 *
 * It outlives its call: when the client leaves, its requests are cancelled, which takes effect before the engine's next step,
 * and it goes when the engine has told of the end of each.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "server/serving.h"

/* ---- The end ---- */

void generation_destroy(generation *g) {
    server *s = g->server;
    for (int i = 0; i < g->n_choices; i++) {
        ls_request_free(&g->choice[i].request);
        if (g->choice[i].ids != NULL) {
            evbuffer_free(g->choice[i].ids);
        }
    }
    *(g->prev != NULL ? &g->prev->next : &s->generations) = g->next;
    if (g->next != NULL) {
        g->next->prev = g->prev;
    }
    if (g->call != NULL) {
        g->call->generation = NULL;
    }
    ask_deinit(&g->ask);
    free(g->choice);
    free(g);
}

/* Takes effect before the next step; generation_news hears of it. */
static void cancel(generation *g) {
    for (int i = 0; i < g->n_choices; i++) {
        if (!g->choice[i].ended && g->choice[i].request != NULL) {
            ls_request_cancel(g->choice[i].request);
        }
    }
}

/* Lets go of the call: whatever becomes of it, this no longer hears of it. */
static call *release(generation *g) {
    call *c = g->call;
    g->call = NULL;
    c->generation = NULL;
    return c;
}

void generation_abandon(generation *g) {
    cancel(g);
    if (g->n_ended == g->n_choices) {
        generation_destroy(g);
    }
}

void generation_lost(generation *g) {
    release(g);
    generation_abandon(g);
}

/* Tells the client, whatever it was told so far. */
static void fail(generation *g, ls_status st, const char *text) {
    if (g->ask.stream) {
        sse_fail(g, st, text);
    } else {
        call_fail(release(g), st, text, NULL);
    }
    generation_abandon(g);
}

void generation_end(generation *g, const char *why) {
    if (g->call != NULL) {
        fail(g, LS_EABORTED, why);
    }
}

/* ---- Metrics ---- */

static void seconds(histogram *h, int64_t us) {
    metrics_time(h, (double)us * 1e-6);
}

static void count_tokens(choice *ch, size_t n_new) {
    metrics *m = &ch->generation->server->metrics;
    int64_t now = now_us();
    if (ch->seen_us == 0) {
        seconds(&m->time_to_first_token_seconds, now - ch->generation->began_us);
        n_new--;
        m->generation_tokens++;
        ch->seen_us = now;
    }
    for (size_t i = 0; i < n_new; i++) { /* several at once: each its share of the time */
        seconds(&m->inter_token_latency_seconds, (now - ch->seen_us) / (int64_t)n_new);
    }
    m->generation_tokens += (int64_t)n_new;
    ch->seen_us = now;
}

static void count_end(choice *ch, const ls_result *r) {
    generation *g = ch->generation;
    metrics *m = &g->server->metrics;
    metrics_end end = r->finish == LS_FINISH_STOP     ? END_STOP
                      : r->finish == LS_FINISH_LENGTH ? END_LENGTH
                      : r->finish == LS_FINISH_ERROR  ? END_ERROR
                                                      : END_ABORT;
    m->ended[end]++;
    if (end == END_ERROR || end == END_ABORT) {
        return;
    }
    int64_t before_us = now_us() - g->began_us - r->total_us; /* until it was submitted */
    seconds(&m->e2e_request_latency_seconds, before_us + r->total_us);
    seconds(&m->request_queue_time_seconds, r->queued_us);
    seconds(&m->request_inference_time_seconds, r->total_us - r->queued_us);
    metrics_count(&m->request_prompt_tokens, (double)r->n_prompt_tokens);
    metrics_count(&m->request_generation_tokens, (double)ch->n_tokens);
    if (r->first_token_us >= 0) {
        seconds(&m->request_prefill_time_seconds, r->first_token_us - r->queued_us);
        seconds(&m->request_decode_time_seconds, r->total_us - r->first_token_us);
    }
    if (ch->n_tokens > 1) {
        seconds(&m->request_time_per_output_token_seconds,
                (r->total_us - r->first_token_us) / (int64_t)(ch->n_tokens - 1));
    }
}

/* For the access log: times of the first choice, tokens of all. */
static void note_usage(const choice *ch, const ls_result *r) {
    generation *g = ch->generation;
    call *c = g->call;
    if (c == NULL) {
        return;
    }
    if (ch->index % (int)g->ask.n == 0) {
        c->usage.prompt_tokens += (int64_t)r->n_prompt_tokens;
        c->usage.cached_tokens += (int64_t)ch->n_cached_tokens;
    }
    c->usage.completion_tokens += (int64_t)ch->n_tokens;
    c->usage.finish = ls_finish_name(r->finish);
    if (ch->index == 0) {
        c->usage.queued_us = r->queued_us;
        c->usage.first_token_us = r->first_token_us;
    }
}

/* ---- News ---- */

/* The first choice that failed, with what came of it, or NULL. */
static const choice *failed_choice(const generation *g, ls_result *result) {
    for (int i = 0; i < g->n_choices; i++) {
        if (ls_request_get_result(g->choice[i].request, result, NULL) == LS_OK && result->finish == LS_FINISH_ERROR) {
            return &g->choice[i];
        }
    }
    return NULL;
}

static void answer(generation *g) {
    ls_result result = LS_RESULT_INIT;
    if (failed_choice(g, &result) != NULL) {
        fail(g, result.status, result.error);
        return;
    }
    call *c = g->call;
    json_t *body = answer_body(g);
    generation_destroy(g);
    call_reply_json(c, 200, body);
}

/* What the engine says of a choice; false if it cannot be had. */
static bool look(choice *ch, ls_result *result) {
    if (ls_request_get_result(ch->request, result, NULL) != LS_OK) {
        return false;
    }
    size_t n_tokens = result->n_tokens - result->n_prompt_tokens;
    if (n_tokens > ch->n_tokens) {
        count_tokens(ch, n_tokens - ch->n_tokens);
    }
    ch->n_tokens = n_tokens;
    ch->n_prompt_tokens = result->n_prompt_tokens;
    ch->n_cached_tokens = result->n_reused_tokens;
    if (result->finish != LS_FINISH_NONE && !ch->ended) {
        ch->ended = true;
        ch->generation->n_ended++;
        count_end(ch, result);
        note_usage(ch, result);
    }
    return true;
}

void generation_news(choice *ch) {
    generation *g = ch->generation;
    ls_result result = LS_RESULT_INIT;
    if (!look(ch, &result)) {
        if (g->call != NULL) {
            fail(g, LS_ENOMEM, "out of memory");
        }
        return;
    }
    if (g->call != NULL && g->ask.stream) {
        sse_push(ch, &result);
    } else if (g->n_ended < g->n_choices) {
        return;
    } else if (g->call != NULL) {
        answer(g);
    } else {
        generation_destroy(g);
    }
}

void generation_drained(generation *g) {
    ls_result result = LS_RESULT_INIT;
    for (int i = 0; i < g->n_choices; i++) {
        choice *ch = &g->choice[i];
        if (!ch->told && look(ch, &result) && !sse_push(ch, &result)) {
            return;
        }
    }
}

/* ---- The beginning ---- */

static generation *make(call *c, ask *a) {
    server *s = c->server;
    generation *g = calloc(1, sizeof *g);
    size_t n = a->n_prompts * (size_t)a->n;
    choice *choices = calloc(n, sizeof *choices);
    if (g == NULL || choices == NULL) {
        free(g);
        free(choices);
        return NULL;
    }
    *g = (generation){.server = s,
                      .next = s->generations,
                      .call = c,
                      .ask = *a,
                      .choice = choices,
                      .n_choices = (int)n,
                      .began_us = c->began_us,
                      .created_s = (int64_t)time(NULL)};
    snprintf(g->id, sizeof g->id, "%s-%s", a->is_chat ? "chatcmpl" : "cmpl", c->id);
    for (size_t i = 0; i < n; i++) {
        choices[i].generation = g;
        choices[i].index = (int)i;
        choices[i].i_prompt = i / (size_t)a->n;
    }
    if (s->generations != NULL) {
        s->generations->prev = g;
    }
    s->generations = g;
    c->generation = g;
    return g;
}

static ls_status submit(choice *ch, ls_error *err) {
    generation *g = ch->generation;
    const ask_prompt *prompt = &g->ask.prompt[ch->i_prompt];
    ls_request_params params = g->ask.params;
    size_t most = (size_t)g->server->max_tokens;
    params.prompt_tokens = prompt->id;
    params.n_prompt_tokens = prompt->n;
    params.choice = (uint32_t)(ch->index % (int)g->ask.n);
    params.max_tokens = g->ask.max_tokens >= 0 ? (int)g->ask.max_tokens
                        : prompt->n < most     ? (int)(most - prompt->n)
                                               : 1;
    params.user = ch;
    return ls_request_submit(g->server->model.engine, &params, &ch->request, err);
}

/* The field that an error of the engine is about: the one that its text begins with, if it was sent. */
static const char *param_of(const ask *a, ls_status st, const char *text, char *scratch, size_t scratch_bytes) {
    if (st == LS_ETOOLONG) {
        return a->is_chat ? "messages" : "prompt";
    }
    size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyz_");
    if (n == 0 || n >= scratch_bytes) {
        return NULL;
    }
    memcpy(scratch, text, n);
    scratch[n] = '\0';
    return json_object_get(a->body.object, scratch) != NULL ? scratch : NULL;
}

/* How long those that are there may take to make room, from what requests took so far. */
static int retry_after_s(const server *s, const ls_engine_stats *stats) {
    const histogram *h = &s->metrics.e2e_request_latency_seconds;
    double mean_s = h->n > 0 ? h->sum / (double)h->n : 1;
    double wait_s = mean_s * (stats->n_waiting + 1) / s->params->max_num_seqs;
    return wait_s < 1 ? 1 : wait_s > 60 ? 60 : (int)wait_s;
}

/* Whether the queue takes so many more; otherwise the call has been told. */
static bool has_room(call *c, int64_t n) {
    server *s = c->server;
    ls_engine_stats stats = LS_ENGINE_STATS_INIT;
    char text[160], after[16];
    int64_t most = (int64_t)s->params->max_num_seqs + s->params->max_queued;
    if (n > ASK_MAX_ANSWERS || n > most) {
        snprintf(text, sizeof text, "%lld answers at once; at most %lld are made", (long long)n,
                 (long long)(most < ASK_MAX_ANSWERS ? most : ASK_MAX_ANSWERS));
        call_fail(c, LS_EINVAL, text, "n");
        return false;
    }
    if (ls_engine_get_stats(s->model.engine, &stats, NULL) != LS_OK || stats.n_running + stats.n_waiting + n <= most) {
        return true;
    }
    s->metrics.rejected_queue++;
    snprintf(after, sizeof after, "%d", retry_after_s(s, &stats));
    snprintf(text, sizeof text, "%d requests run and %d wait, which is as many as may (--max-num-queued-reqs)",
             stats.n_running, stats.n_waiting);
    call_header(c, "Retry-After", after);
    call_fail_as(c, 429, "rate_limit_error", "queue_full", text);
    return false;
}

/* Whether so many log probabilities of prompts may be asked for; otherwise the call has been told. */
static bool may_list(call *c, const ask *a) {
    char text[120];
    int64_t n = 0;
    for (size_t i = 0; i < a->n_prompts && a->params.prompt_logprobs >= 0; i++) {
        n += (int64_t)a->prompt[i].n * (a->params.prompt_logprobs + 1) * a->n;
    }
    if (n > ASK_MAX_LOGPROBS) {
        snprintf(text, sizeof text, "%lld log probabilities of prompts in one answer; at most %d are listed",
                 (long long)n, (int)ASK_MAX_LOGPROBS);
        call_fail(c, LS_EINVAL, text, a->prompt_logprobs ? "prompt_logprobs" : "logprobs");
    }
    return n <= ASK_MAX_LOGPROBS;
}

void generation_start(call *c, ask *a) {
    ls_error error = {0};
    char param[40];
    if (!may_list(c, a) || !has_room(c, (int64_t)a->n_prompts * a->n)) {
        ask_deinit(a);
        return;
    }
    generation *g = make(c, a);
    if (g == NULL) {
        ask_deinit(a);
        call_fail(c, LS_ENOMEM, "out of memory", NULL);
        return;
    }
    metrics_count(&c->server->metrics.request_params_n, (double)a->n);
    for (int i = 0; i < g->n_choices; i++) {
        ls_status st = submit(&g->choice[i], &error);
        if (st != LS_OK) {
            const char *name = param_of(&g->ask, st, error.text, param, sizeof param);
            ask_drop_body(&g->ask);
            release(g);
            g->n_ended += g->n_choices - i; /* these never were */
            generation_abandon(g);
            call_fail(c, st, error.text, name);
            return;
        }
    }
    if (g->ask.max_tokens >= 0) {
        metrics_count(&c->server->metrics.request_params_max_tokens, (double)g->ask.max_tokens);
    }
    ask_drop_body(&g->ask);
    if (g->ask.stream) {
        call_stream_begin(c);
    }
}
