/*
 * lockstep serve: an OpenAI-compatible HTTP server over one engine, on libevent's evhttp.
 *
 * Threads. One runs the event loop: it owns every connection, submits and writes. A second one reads bodies: JSON, templates,
 * tokenizers (reader.c). The engine's own thread (ls_engine_start) steps; what it has made arrives at the loop through
 * ls_engine_poll_fd, so that the two share no memory but the engine's. A fourth one opens the model, and is gone once the server
 * is ready.
 *
 *   http.c         listening, TLS, limits; one `call` for each HTTP request, from its arrival to its line in the access log
 *   routes.c       which call goes where; keys, CORS, the states in which work is refused
 *   reader.c       bodies, in a thread of their own; fields.c: reading untrusted JSON; ask.c: what a request asks of the engine
 *   api_*.c        one file for each endpoint
 *   generation.c   the requests in the engine that one call waits for; sse.c and answer.c write what they come to
 *   state.c        starting, ok, stalled, draining, dead; metrics.c; access_log.c; keys.c
 *
 * serving.h has the structures they share. Like the command line, nothing here sees more than lockstep.h and src/base.
 */
#ifndef LS_SERVER_SERVER_H
#define LS_SERVER_SERVER_H

#include <stdio.h>

#include "base/log.h"

/* What the server serves, opened by server_params.open; the server closes it. */
typedef struct server_model {
    ls_model *model;
    ls_engine *engine;
    ls_text *text; /* NULL: a model without a tokenizer, whose prompts are token ids or bytes */
} server_model;

/* How far opening has come; any thread. stage: constant ("loading weights"); percent: of the stage, or -1. */
typedef struct server_progress server_progress;
void server_progress_set(server_progress *progress, const char *stage, int percent);

typedef ls_status (*server_open_fn)(void *user, server_progress *progress, server_model *out, ls_error *err);

typedef struct server_params {
    const char *host;
    int port;                /* 0: any; the log says which */
    const char *const *name; /* [n_names] of the model, at least one; the first is the one that answers carry */
    size_t n_names;
    const char *const *api_key; /* [n_api_keys]; with those of the file; none at all: everybody may */
    size_t n_api_keys;
    const char *api_key_file; /* a key a line; or NULL */
    const char *ssl_certfile, *ssl_keyfile;
    const char *const *allowed_origin; /* [n_allowed_origins] for browsers; "*": all */
    size_t n_allowed_origins;
    const char *chat_template_name, *chat_template_kwargs; /* JSON object of defaults; or NULL */
    int64_t max_body_bytes;
    int max_connections, http_timeout_s;
    int max_num_seqs, max_queued; /* requests that run at once, as the engine was told, and that may wait */
    int shutdown_timeout_s, stall_timeout_s;
    const char *metrics_prefix; /* "lockstep:" */
    FILE *access_log;           /* JSON lines; or NULL */
    ls_log log;
    server_open_fn open; /* called once, by a thread of its own */
    void *open_user;
} server_params;

typedef enum server_end {
    SERVER_DRAINED,     /* asked to end, and every answer was given */
    SERVER_STOPPED,     /* some were not */
    SERVER_ENGINE_DIED, /* see the log */
    SERVER_NOT_OPENED, /* asked to end while the model was being opened, which still goes on: the process should exit */
    SERVER_INTERRUPTED /* the same, by Ctrl-C */
} server_end;

/* Serves until SIGTERM or SIGINT, or until the engine dies. params is borrowed. Errors: what kept it from listening, or the
 * model from being opened. Call it from the main thread, once: it handles SIGTERM, SIGINT and SIGPIPE while it runs. */
ls_status server_run(const server_params *params, server_end *end, ls_error *err);

#endif
