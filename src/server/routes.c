/* Which call goes where, and who may call: API keys, origins, methods, states of the server. */
#include <event2/keyvalq_struct.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "server/serving.h"

/* ---- Origins ---- */

static bool is_allowed(const server_params *p, const char *origin) {
    for (size_t i = 0; i < p->n_allowed_origins; i++) {
        if (strcmp(p->allowed_origin[i], "*") == 0 || strcmp(p->allowed_origin[i], origin) == 0) {
            return true;
        }
    }
    return false;
}

static const char *header_of(const call *c, const char *name) {
    return evhttp_find_header(evhttp_request_get_input_headers(c->http), name);
}

/* What browsers ask for before a page of another origin may read an answer. Headers are not what keeps a page out, so that it
 * may send any: OpenAI's own client sends a dozen. */
static void allow_origin(call *c) {
    const char *origin = header_of(c, "Origin"), *wanted = header_of(c, "Access-Control-Request-Headers");
    if (origin == NULL || !is_allowed(c->server->params, origin)) {
        return;
    }
    call_header(c, "Access-Control-Allow-Origin", origin);
    call_header(c, "Vary", "Origin");
    call_header(c, "Access-Control-Expose-Headers", "X-Request-Id");
    if (evhttp_request_get_command(c->http) == EVHTTP_REQ_OPTIONS) {
        call_header(c, "Vary", "Origin, Access-Control-Request-Headers");
        call_header(c, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
        call_header(c, "Access-Control-Allow-Headers", wanted != NULL ? wanted : "Authorization, Content-Type");
        call_header(c, "Access-Control-Max-Age", "86400");
    }
}

/* A page of another site can have a browser post text to a server on its user's own machine without asking first: it cannot
 * read the answer, but the work would be done. Browsers say where a page comes from (Sec-Fetch-Site, older ones only Origin);
 * other clients say nothing. Where there are keys, a foreign page has none. */
static bool is_foreign(const call *c) {
    const char *origin = header_of(c, "Origin"), *site = header_of(c, "Sec-Fetch-Site"), *host = header_of(c, "Host");
    if (origin == NULL || c->server->keys.n > 0 || is_allowed(c->server->params, origin)) {
        return false;
    }
    if (site != NULL) {
        return strcmp(site, "same-origin") != 0 && strcmp(site, "none") != 0;
    }
    const char *authority = strstr(origin, "://");
    return authority == NULL || host == NULL || strcasecmp(authority + 3, host) != 0;
}

static void refuse_foreign(call *c) {
    call_fail_as(c, 403, "invalid_request_error", "origin_not_allowed",
                 "the page that asks comes from another site: --allowed-origins names those that may");
}

/* ---- Bodies ---- */

/* Where two lengths are given, somebody in front may have read the other one, and taken the rest for another request. */
static bool has_two_lengths(const call *c) {
    const struct evkeyvalq *headers = evhttp_request_get_input_headers(c->http);
    int n = 0;
    for (const struct evkeyval *h = headers->tqh_first; h != NULL; h = h->next.tqe_next) {
        n += strcasecmp(h->key, "Content-Length") == 0;
    }
    return n > 1;
}

static void with_body(call *c, const body_kind *kind) {
    if (evbuffer_get_length(evhttp_request_get_input_buffer(c->http)) == 0) {
        call_fail(c, LS_EINVAL, "the request has no body: a JSON object is expected", NULL);
    } else {
        reader_take(c, kind);
    }
}

/* ---- Routes ---- */

typedef struct route {
    const char *path;
    void (*get)(call *c);
    const body_kind *post;
    bool open;  /* without a key */
    bool works; /* needs the model: refused while there is none, or no time for new work */
} route;

static void get_models(call *c) {
    api_models(c, NULL);
}

/* vLLM's and llama-server's paths; a base URL without /v1 is as good as one with it. */
static const route routes[] = {
    {"/v1/chat/completions", NULL, &body_of_chat, false, true},
    {"/chat/completions", NULL, &body_of_chat, false, true},
    {"/v1/completions", NULL, &body_of_completion, false, true},
    {"/completions", NULL, &body_of_completion, false, true},
    {"/v1/models", get_models, NULL, false, false},
    {"/models", get_models, NULL, false, false},
    {"/tokenize", NULL, &body_of_tokenize, false, true},
    {"/detokenize", NULL, &body_of_detokenize, false, true},
    {"/health", api_health, NULL, true, false},
    {"/v1/health", api_health, NULL, true, false},
    {"/metrics", api_metrics, NULL, false, false},
    {"/version", api_version, NULL, false, false},
};

static const route *find(const char *path) {
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        if (strcmp(routes[i].path, path) == 0) {
            return &routes[i];
        }
    }
    return NULL;
}

static bool may_call(call *c, const route *r) {
    server *s = c->server;
    if (s->keys.n == 0 || (r != NULL && r->open)) {
        return true;
    }
    c->key = keys_find(&s->keys, header_of(c, "Authorization"));
    if (c->key >= 0) {
        return true;
    }
    s->metrics.rejected_key++;
    call_header(c, "WWW-Authenticate", "Bearer");
    call_fail_as(c, 401, "invalid_request_error", "invalid_api_key",
                 "no valid API key: send one as 'Authorization: Bearer KEY'");
    return false;
}

static void wrong_method(call *c, const route *r) {
    char text[160];
    const char *right = r->get != NULL ? "GET" : "POST";
    snprintf(text, sizeof text, "%s takes %s", r->path, right);
    call_header(c, "Allow", right);
    call_fail_as(c, 405, "invalid_request_error", "method_not_allowed", text);
}

static void not_found(call *c) {
    char text[256];
    snprintf(text, sizeof text, "there is no %.200s here", c->path);
    call_fail_as(c, 404, "invalid_request_error", "not_found", text);
}

/* A name with a slash comes as one segment from clients that keep to the letter: Qwen%2FQwen3-4B. */
static void get_model(call *c, const char *name) {
    size_t n;
    char *decoded = evhttp_uridecode(name, 0, &n);
    api_models(c, decoded != NULL && strlen(decoded) == n ? decoded : name); /* a name has no NUL in it */
    free(decoded);
}

void routes_handle(call *c) {
    static const char models[] = "/v1/models/";
    server *s = c->server;
    enum evhttp_cmd_type command = evhttp_request_get_command(c->http);
    bool is_get = command == EVHTTP_REQ_GET || command == EVHTTP_REQ_HEAD;
    const route *r = find(c->path);
    allow_origin(c);
    if (command == EVHTTP_REQ_OPTIONS) {
        call_reply_text(c, 204, NULL, NULL);
        return;
    }
    if (has_two_lengths(c)) {
        call_header(c, "Connection", "close");
        call_fail_as(c, 400, "invalid_request_error", NULL, "more than one Content-Length");
        return;
    }
    if (!may_call(c, r)) {
        return;
    }
    if (command == EVHTTP_REQ_POST && is_foreign(c)) {
        refuse_foreign(c);
        return;
    }
    if (r == NULL && is_get && strncmp(c->path, models, sizeof models - 1) == 0) {
        get_model(c, c->path + sizeof models - 1);
    } else if (r == NULL) {
        not_found(c);
    } else if (is_get ? r->get == NULL : command != EVHTTP_REQ_POST || r->post == NULL) {
        wrong_method(c, r);
    } else if (r->works && state_refuses(s) != NULL) {
        s->metrics.rejected_state++;
        call_header(c, "Retry-After", s->state == STATE_STARTING ? "5" : "30");
        call_fail_as(c, 503, "service_unavailable_error", state_name(s->draining ? STATE_DRAINING : s->state),
                     state_refuses(s));
    } else if (is_get) {
        r->get(c);
    } else {
        with_body(c, r->post);
    }
}
