/* What the parts of the server share; only src/server includes it. Everything here belongs to the event loop's thread, but
 * for what reader.c says. */
#ifndef LS_SERVER_SERVING_H
#define LS_SERVER_SERVING_H

#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/http_struct.h>
#include <openssl/ssl.h>
#include <stdatomic.h>

#include "server/fields.h"
#include "server/keys.h"
#include "server/metrics.h"
#include "server/server.h"

typedef struct server server;
typedef struct call call;
typedef struct generation generation;
typedef struct reading reading;
typedef struct reader reader;

/* ---- http.c: calls ---- */

typedef enum call_state {
    CALL_WAITING,   /* nothing was answered yet */
    CALL_STREAMING, /* the answer has begun */
    CALL_ANSWERED,  /* all of it is on its way */
} call_state;

/*
 * One HTTP request, from its arrival to its line in the access log. It ends, and its memory with it, when the answer has
 * left, or when the client has. libevent tells of a lost client only while an answer is under way; before that `watch` does.
 */
struct call {
    server *server;
    call *next, *prev;
    struct evhttp_request *http; /* NULL: the client is gone */
    struct event *watch;         /* the client closes, while nothing was answered */
    call_state state;
    reading *reading;                   /* its body is being read, or NULL */
    generation *generation;             /* whose answer it waits for, or NULL */
    char id[32];                        /* "7f0c...": of answers and log lines */
    const char *method, *path, *remote; /* borrowed from http, as long as it is there */
    int64_t began_us;
    int status; /* HTTP; 499: the client left first */
    int key;    /* index of the API key, or -1 */
    struct {
        int64_t prompt_tokens, cached_tokens, completion_tokens, queued_us, first_token_us;
        const char *finish; /* constant, or NULL: no generation */
    } usage;                /* for the log */
};

/* Answers with JSON, which is taken over (NULL: out of memory). The call may be gone afterwards. */
void call_reply_json(call *c, int status, json_t *body);
/* The same, of a text from json_dumps, which is taken over. */
void call_reply_dumped(call *c, int status, char *text);
void call_reply_text(call *c, int status, const char *content_type, struct evbuffer *body);
/* OpenAI's error object. param: the field it is about, or NULL. */
void call_fail(call *c, ls_status st, const char *text, const char *param);
void call_fail_as(call *c, int status, const char *type, const char *code, const char *text);
json_t *error_object(const char *type, const char *code, const char *param, const char *text);
/* What a status of the engine means as HTTP: status, type, code. */
void error_kind(ls_status st, int *status, const char **type, const char **code);
void call_header(call *c, const char *name, const char *value);
/* A stream of server-sent events: begin, any number of events (drained from `event`), end. What was written and the client has
 * not taken: call_backlog_bytes; generation_drained is called when it has. The call may be gone after its end. */
void call_stream_begin(call *c);
void call_stream_write(call *c, struct evbuffer *event);
void call_stream_end(call *c);
size_t call_backlog_bytes(const call *c);

/* The loop: listening, and calls for routes_handle. */
ls_status http_open(server *s, ls_error *err);
void http_stop_listening(server *s);
void http_close(server *s);

/* ---- routes.c ---- */

void routes_handle(call *c);

/* ---- ask.c: what a request asks of the engine ---- */

enum {
    ASK_MAX_PROMPTS = 256,
    ASK_MAX_CHOICES = 128,
    ASK_MAX_ANSWERS = 512,
    /* What takes the loop's time while others wait for it. */
    ASK_MAX_WORDS = 1024,      /* bad_words; stop_token_ids */
    ASK_MAX_LOGPROBS = 1 << 20 /* log probabilities of prompts in one answer */
};

typedef struct ask_prompt {
    int32_t *id; /* owned */
    size_t n;
    char *echo; /* owned: its text, where the answer begins with it; else NULL */
    size_t echo_bytes;
} ask_prompt;

typedef struct ask {
    fields body;
    ls_request_params params; /* its arrays are owned by the ask, its strings borrowed from the body */
    ls_logit_bias *bias;
    int32_t *allowed, *stop_ids;
    const char **stop, **bad_words;
    ask_prompt *prompt; /* [n_prompts] owned */
    size_t n_prompts;
    int64_t n, max_tokens; /* max_tokens: -1: as many as fit */
    int64_t truncate;      /* keep so many tokens of the prompt's end; -1: all */
    bool is_chat, stream, include_usage, usage_each, logprobs, prompt_logprobs, echo, add_special;
} ask;

/* Everything but the prompt. On failure ask->body.param names the field. */
ls_status ask_read(ask *a, const server *s, const json_t *body, bool is_chat, ls_error *err);
/* Adds a prompt; with echo its text is kept as well. */
ls_status ask_add_text(ask *a, const server *s, const char *text, size_t n_bytes, bool add_special, ls_error *err);
ls_status ask_add_ids(ask *a, const server *s, int32_t *id, size_t n, ls_error *err); /* takes `id` over */
/* Lets go of everything that is borrowed from the body. */
void ask_drop_body(ask *a);
void ask_deinit(ask *a);

/* ---- reader.c: bodies are read by a thread of their own ---- */

/* What a route makes of a body, in the reader's thread: it sees of the server what does not change once it is ready. */
typedef struct body_kind {
    /* What is to be generated; generation_start goes on. The ask is to be let go of on failure too. */
    ls_status (*ask)(ask *a, const server *s, const json_t *body, ls_error *err);
    /* Or else the answer. */
    ls_status (*make)(const server *s, fields *f, json_t **out, ls_error *err);
} body_kind;

/* api_chat.c, api_completions.c, api_tokenize.c */
extern const body_kind body_of_chat, body_of_completion, body_of_tokenize, body_of_detokenize;

ls_status reader_start(server *s, ls_error *err);
void reader_stop(server *s); /* calls that wait for it go on waiting */
/* Takes the body of the call, which is answered later, or has a generation then. */
void reader_take(call *c, const body_kind *kind);
void reader_forget(call *c); /* it no longer waits */

/* api_chat.c: messages to a prompt; used by /tokenize as well. *out to be freed with ls_free. */
ls_status chat_render(const server *s, fields *body, char **out, size_t *out_bytes, ls_error *err);

/* ---- api_*.c without a body: each answers ---- */

void api_models(call *c, const char *name); /* name: behind /v1/models/, or NULL */
void api_health(call *c);
void api_version(call *c);
void api_metrics(call *c);

/* ---- generation.c ---- */

/* One answer: one request of the engine. */
typedef struct choice {
    generation *generation;
    ls_request *request;
    int index;
    size_t i_prompt;
    bool opened;                                       /* a chat's first chunk, with the role, was sent */
    bool ended;                                        /* the engine is through with it */
    bool told;                                         /* its last chunk was sent */
    size_t sent_bytes, sent_tokens;                    /* of the answer */
    json_int_t text_offset;                            /* characters of the tokens whose log probabilities were sent */
    size_t n_prompt_tokens, n_cached_tokens, n_tokens; /* as last seen; n_tokens of the answer */
    int64_t seen_us;                                   /* when it last had new tokens; 0: never */
    struct evbuffer *ids; /* what stands for the text of a model without a tokenizer, or NULL */
} choice;

struct generation {
    server *server;
    generation *next, *prev;
    call *call; /* NULL: the client is gone */
    ask ask;
    choice *choice; /* [n_choices] */
    int n_choices, n_ended, n_told;
    int64_t began_us, created_s;
    char id[48];
};

/* Reads the body, and submits what it asks for; where that cannot be, the call is told. */
void generation_start(call *c, ask *a); /* takes the ask over */
void generation_news(choice *ch);
void generation_drained(generation *g);
void generation_lost(generation *g);                 /* its client is gone */
void generation_end(generation *g, const char *why); /* the server ends: tells the client, cancels */
void generation_abandon(generation *g); /* it has no call (any more): cancels, and goes when nothing runs */
void generation_destroy(generation *g); /* of requests that still run it waits for the step */

/* ---- answer.c: what a choice has come to, as JSON. NULL: out of memory ---- */

/* Text of the answer so far: the engine's, or the ids of a model without a tokenizer. Borrowed until the next call. */
void choice_text(choice *ch, const ls_result *result, const char **text, size_t *n_bytes);
json_t *answer_body(generation *g); /* of an answer that is not streamed; every choice has ended */
/* A chunk of a stream with one choice, which is taken over; NULL: a chunk without one, for the usage. */
json_t *answer_chunk(const generation *g, json_t *one);
json_t *answer_delta_role(const choice *ch);
/* n_bytes of text, and the tokens [sent_tokens, n_tokens) of the answer. */
json_t *answer_delta(choice *ch, const ls_result *result, const char *text, size_t n_bytes, size_t n_tokens);

/* ---- sse.c ---- */

/* Sends what is new, as far as the client keeps up; the stream's end when every choice has been told. Then the generation is
 * gone, and false comes back. */
bool sse_push(choice *ch, const ls_result *result);
/* An error in the middle of a stream, which ends it. */
void sse_fail(generation *g, ls_status st, const char *text);

/* ---- state.c ---- */

typedef enum server_state { STATE_STARTING, STATE_OK, STATE_STALLED, STATE_DRAINING, STATE_DEAD } server_state;

struct server_progress {
    _Atomic(const char *) stage;
    atomic_int percent;
};

const char *state_name(server_state state);
/* Looks at the engine: is it alive, does it step? About once a second. */
void state_check(server *s, int64_t now_us);
/* NULL if new work may come; else why not. */
const char *state_refuses(const server *s);

/* ---- access_log.c ---- */

void access_log_write(const call *c, int64_t now_us);

struct server {
    const server_params *params;
    struct event_base *base;
    struct evhttp *http;
    struct evconnlistener *listener;
    struct event *listen_again; /* the listener rests: too many connections */
    SSL_CTX *tls;
    int first_fd; /* the lowest that a connection can have */
    size_t read_limit_bytes;
    bool listening;
    key_ring keys;
    json_t *template_kwargs; /* defaults for chat_template_kwargs, or NULL */
    server_model model;      /* complete once state is not STATE_STARTING */
    ls_model_info info;
    int max_tokens; /* of one request, prompt and answer */
    size_t longest_token_bytes;
    server_state state;
    server_progress progress;
    char death[512];
    int64_t started_us, ready_us, died_us, created_s;
    int64_t steps_seen, steps_seen_us; /* when the step counter last moved, or there was nothing to do */
    int n_stalls;
    struct event *news, *tick, *on_term, *on_int;
    reader *reader; /* NULL while there is no model */
    call *calls;
    generation *generations;
    uint64_t n_ids;
    uint64_t id_salt;
    bool draining, ending, stopping; /* ending: --shutdown-timeout is over, clients are being told */
    int n_interrupts;
    int64_t drain_until_us;
    metrics metrics;
};

int64_t now_us(void);

#endif
