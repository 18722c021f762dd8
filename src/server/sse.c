/*
 * Streams of server-sent events. What a choice has come to stays in the engine until it is sent: of a client that reads slowly
 * no more than BACKLOG_BYTES wait here, and the rest follows when those have left (generation_drained).
 */
#include <stdlib.h>
#include <string.h>

#include "server/serving.h"

enum { BACKLOG_BYTES = 64 << 10 };

/* data: <json>; takes the JSON over. */
static void send_event(generation *g, json_t *json) {
    char *text = json != NULL ? json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    struct evbuffer *event = text != NULL ? evbuffer_new() : NULL;
    json_decref(json);
    if (event != NULL) {
        evbuffer_add(event, "data: ", 6);
        evbuffer_add(event, text, strlen(text));
        evbuffer_add(event, "\n\n", 2);
        call_stream_write(g->call, event);
        evbuffer_free(event);
    }
    free(text);
}

static void send_done(generation *g) {
    struct evbuffer *event = evbuffer_new();
    if (event != NULL) {
        evbuffer_add_printf(event, "data: [DONE]\n\n");
        call_stream_write(g->call, event);
        evbuffer_free(event);
    }
}

static void end(generation *g) {
    call *c = g->call;
    send_done(g);
    g->call = NULL;
    c->generation = NULL;
    call_stream_end(c);
}

void sse_fail(generation *g, ls_status st, const char *text) {
    int status;
    const char *type, *code;
    error_kind(st, &status, &type, &code);
    send_event(g, error_object(type, code, NULL, text));
    end(g);
}

static bool send_new(choice *ch, const ls_result *result) {
    generation *g = ch->generation;
    const char *text;
    size_t n_bytes;
    choice_text(ch, result, &text, &n_bytes);
    size_t n_tokens = result->n_tokens - result->n_prompt_tokens;
    bool last = result->finish != LS_FINISH_NONE;
    bool news = n_bytes > ch->sent_bytes || last || (g->ask.logprobs && n_tokens > ch->sent_tokens);
    if (!news) {
        return false;
    }
    if (g->ask.is_chat && !ch->opened) {
        send_event(g, answer_chunk(g, answer_delta_role(ch)));
    }
    json_t *delta = answer_delta(ch, result, text + ch->sent_bytes, n_bytes - ch->sent_bytes, n_tokens);
    ch->opened = true;
    ch->sent_bytes = n_bytes;
    ch->sent_tokens = n_tokens;
    send_event(g, answer_chunk(g, delta));
    return last;
}

bool sse_push(choice *ch, const ls_result *result) {
    generation *g = ch->generation;
    if (ch->told || call_backlog_bytes(g->call) > BACKLOG_BYTES) {
        return true;
    }
    if (result->finish == LS_FINISH_ERROR) {
        sse_fail(g, result->status, result->error);
        generation_abandon(g);
        return false;
    }
    if (send_new(ch, result)) {
        ch->told = true;
        g->n_told++;
    }
    if (g->n_told < g->n_choices) {
        return true;
    }
    if (g->ask.include_usage) {
        send_event(g, answer_chunk(g, NULL));
    }
    end(g);
    generation_destroy(g);
    return false;
}
