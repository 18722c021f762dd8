/*
 * HTTP by libevent's evhttp: listening, TLS, limits, and the life of a call. What libevent 2.1 makes of its users is here and
 * nowhere else:
 *
 *   - A lost client is not reported before the answer begins. Reading on would tell, but then a pipelined second request
 *     ends the process; an event of our own (`watch`) tells until the answer begins, then the close callback does. It is
 *     edge-triggered: a reset comes as EV_READ, and data that nobody reads for now must not wake us again and again.
 *   - Once the answer begins, evhttp reads on: what arrives is kept for the next request. The read watermark bounds it, and the
 *     read timeout, which an answer that takes longer would hit, is off until the answer has left.
 *   - evhttp_bind_socket listens with a backlog of 128; we listen ourselves.
 *   - A request whose connection is gone is still ours: evhttp_send_reply_end frees it.
 *   - It has no limit on connections. The lowest free descriptor tells how many there are at most: each new one takes the
 *     lowest, so that none lies beyond first_fd + max_connections while the listener rests when that one is reached.
 */
#include <errno.h>
#include <event2/bufferevent_ssl.h>
#include <event2/listener.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "server/serving.h"

enum { MAX_HEADER_BYTES = 64 << 10, BACKLOG = 4096, SPARE_FDS = 64, CLIENT_LEFT = 499 };

int64_t now_us(void) {
    return clock_ns() / 1000;
}

/* ---- The end of a call ---- */

static struct evhttp_connection *connection_of(const call *c) {
    return c->http != NULL ? evhttp_request_get_connection(c->http) : NULL;
}

static void unwatch(call *c) {
    if (c->watch != NULL) {
        event_free(c->watch);
        c->watch = NULL;
    }
}

/* Logs it and lets go of it; c->http is libevent's again, or gone. */
static void call_end(call *c) {
    server *s = c->server;
    access_log_write(c, now_us());
    int class = c->status / 100;
    s->metrics.http_by_class[class >= 1 && class <= 5 ? class : 0]++;
    unwatch(c);
    reader_forget(c);
    if (c->generation != NULL) {
        generation_lost(c->generation);
    }
    *(c->prev != NULL ? &c->prev->next : &s->calls) = c->next;
    if (c->next != NULL) {
        c->next->prev = c->prev;
    }
    free(c);
}

static void set_read_timeout(struct evhttp_connection *connection, const server *s, bool on) {
    struct timeval limit = {s->params->http_timeout_s, 0};
    bufferevent_set_timeouts(evhttp_connection_get_bufferevent(connection), on ? &limit : NULL, &limit);
}

/* The answer has left. */
static void on_sent(struct evhttp_request *http, void *arg) {
    call *c = arg;
    struct evhttp_connection *connection = evhttp_request_get_connection(http);
    evhttp_connection_set_closecb(connection, NULL, NULL);
    set_read_timeout(connection, c->server, true);
    call_end(c);
}

/* The client is gone, or takes nothing any more, while the answer is under way. */
static void on_close(struct evhttp_connection *connection, void *arg) {
    call *c = arg;
    struct evhttp_request *http = c->http;
    bool ours = c->state == CALL_STREAMING && evhttp_request_get_connection(http) == NULL;
    (void)connection;
    if (c->state == CALL_STREAMING) {
        c->status = CLIENT_LEFT;
    }
    call_end(c);
    if (ours) {
        evhttp_send_reply_end(http);
    }
}

/* Something happened at the client's end before the answer began: it is gone, or it has sent its next request already, which
 * stays where it is. What we say to one that is gone frees the request and the connection. */
static void on_left(evutil_socket_t fd, short what, void *arg) {
    call *c = arg;
    struct evhttp_request *http = c->http;
    struct pollfd state = {.fd = fd, .events = POLLRDHUP};
    if ((what & EV_CLOSED) == 0 && poll(&state, 1, 0) == 0) {
        return;
    }
    c->status = CLIENT_LEFT;
    evhttp_add_header(evhttp_request_get_output_headers(http), "Connection", "close");
    call_end(c);
    evhttp_send_reply(http, CLIENT_LEFT, "Client Closed Request", NULL);
}

/* ---- Answers ---- */

static const char *reason_of(int status) {
    static const struct {
        int status;
        const char *text;
    } known[] = {{200, "OK"},
                 {204, "No Content"},
                 {400, "Bad Request"},
                 {401, "Unauthorized"},
                 {403, "Forbidden"},
                 {404, "Not Found"},
                 {405, "Method Not Allowed"},
                 {413, "Payload Too Large"},
                 {429, "Too Many Requests"},
                 {500, "Internal Server Error"},
                 {503, "Service Unavailable"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (known[i].status == status) {
            return known[i].text;
        }
    }
    return "Status";
}

void call_header(call *c, const char *name, const char *value) {
    struct evkeyvalq *headers = evhttp_request_get_output_headers(c->http);
    evhttp_remove_header(headers, name);
    evhttp_add_header(headers, name, value);
}

/* From here on libevent tells how it goes. */
static void begin_answer(call *c, int status, call_state state) {
    unwatch(c);
    reader_forget(c);
    c->status = status;
    c->state = state;
    call_header(c, "X-Request-Id", c->id);
    if (c->server->draining) {
        call_header(c, "Connection", "close");
    }
    evhttp_connection_set_closecb(connection_of(c), on_close, c);
    evhttp_request_set_on_complete_cb(c->http, on_sent, c);
}

void call_reply_text(call *c, int status, const char *content_type, struct evbuffer *body) {
    struct evhttp_connection *connection = connection_of(c);
    const server *s = c->server;
    begin_answer(c, status, CALL_ANSWERED);
    if (content_type != NULL) {
        call_header(c, "Content-Type", content_type);
    }
    bool is_head = evhttp_request_get_command(c->http) == EVHTTP_REQ_HEAD;
    evhttp_send_reply(c->http, status, reason_of(status), is_head ? NULL : body);
    set_read_timeout(connection, s, false);
}

static void free_text(const void *data, size_t n, void *text) {
    (void)data, (void)n;
    free(text);
}

void call_reply_dumped(call *c, int status, char *text) {
    struct evbuffer *buffer = evbuffer_new();
    if (text == NULL || buffer == NULL) {
        free(text);
        status = 500;
    } else {
        evbuffer_add_reference(buffer, text, strlen(text), free_text, text);
    }
    call_reply_text(c, status, "application/json", buffer);
    if (buffer != NULL) {
        evbuffer_free(buffer);
    }
}

void call_reply_json(call *c, int status, json_t *body) {
    char *text = body != NULL ? json_dumps(body, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(body);
    call_reply_dumped(c, status, text);
}

void error_kind(ls_status st, int *status, const char **type, const char **code) {
    *type = "invalid_request_error";
    *code = NULL;
    switch (st) {
    case LS_EINVAL:
    case LS_EFORMAT:
        *status = 400;
        break;
    case LS_EUNSUPPORTED:
        *status = 400;
        *code = "unsupported";
        break;
    case LS_ETOOLONG:
        *status = 400;
        *code = "context_length_exceeded";
        break;
    case LS_ENOTFOUND:
        *status = 404;
        *code = "model_not_found";
        break;
    case LS_EABORTED:
    case LS_ENOMEM:
        *status = 503;
        *type = "service_unavailable_error";
        break;
    default:
        *status = 500;
        *type = "server_error";
    }
}

/* Bytes of the character that s[0 .. n) begins with; 0: it is none. jansson takes nothing but UTF-8. */
static size_t character_bytes(const char *s, size_t n) {
    for (size_t i = 1; i <= 4 && i <= n; i++) {
        json_t *one = json_stringn(s, i);
        json_decref(one);
        if (one != NULL) {
            return i;
        }
    }
    return 0;
}

/* Texts repeat what the client sent, and where they are too long they end anywhere: in a character too. Bytes that are no UTF-8
 * become '?'. */
json_t *error_object(const char *type, const char *code, const char *param, const char *text) {
    char whole[1024];
    snprintf(whole, sizeof whole, "%s", text);
    for (size_t i = 0, n = strlen(whole); i < n;) {
        size_t n_bytes = (unsigned char)whole[i] < 0x80 ? 1 : character_bytes(whole + i, n - i);
        if (n_bytes == 0) {
            whole[i] = '?';
        }
        i += n_bytes > 0 ? n_bytes : 1;
    }
    return json_pack("{s:{s:s, s:s, s:s?, s:s?}}", "error", "message", whole, "type", type, "param", param, "code",
                     code);
}

void call_fail(call *c, ls_status st, const char *text, const char *param) {
    int status;
    const char *type, *code;
    error_kind(st, &status, &type, &code);
    call_reply_json(c, status, error_object(type, code, param, text));
}

void call_fail_as(call *c, int status, const char *type, const char *code, const char *text) {
    call_reply_json(c, status, error_object(type, code, NULL, text));
}

void call_stream_begin(call *c) {
    struct evhttp_connection *connection = connection_of(c);
    begin_answer(c, 200, CALL_STREAMING);
    call_header(c, "Content-Type", "text/event-stream; charset=utf-8");
    call_header(c, "Cache-Control", "no-cache");
    call_header(c, "X-Accel-Buffering", "no");
    if (c->http->major == 1 && c->http->minor == 0) { /* it has no chunks: the stream ends with the connection */
        evhttp_remove_header(evhttp_request_get_input_headers(c->http), "Connection");
    }
    evhttp_send_reply_start(c->http, 200, "OK");
    set_read_timeout(connection, c->server, false);
}

static void on_drained(struct evhttp_connection *connection, void *arg) {
    call *c = arg;
    (void)connection;
    if (c->generation != NULL) {
        generation_drained(c->generation);
    }
}

void call_stream_write(call *c, struct evbuffer *event) {
    evhttp_send_reply_chunk_with_cb(c->http, event, on_drained, c);
    evbuffer_drain(event, evbuffer_get_length(event)); /* of an answer to HEAD nothing was taken */
}

void call_stream_end(call *c) {
    c->state = CALL_ANSWERED;
    evhttp_send_reply_end(c->http);
}

size_t call_backlog_bytes(const call *c) {
    struct evhttp_connection *connection = connection_of(c);
    return connection == NULL
               ? 0
               : evbuffer_get_length(bufferevent_get_output(evhttp_connection_get_bufferevent(connection)));
}

/* ---- A call arrives ---- */

static const char *method_of(const struct evhttp_request *http) {
    switch (evhttp_request_get_command(http)) {
    case EVHTTP_REQ_GET:
        return "GET";
    case EVHTTP_REQ_POST:
        return "POST";
    case EVHTTP_REQ_HEAD:
        return "HEAD";
    case EVHTTP_REQ_OPTIONS:
        return "OPTIONS";
    case EVHTTP_REQ_PUT:
        return "PUT";
    case EVHTTP_REQ_DELETE:
        return "DELETE";
    case EVHTTP_REQ_PATCH:
        return "PATCH";
    default:
        return "OTHER";
    }
}

/* Ids differ within a server and, as far as chance goes, between servers. */
static void set_id(call *c) {
    server *s = c->server;
    uint64_t x = s->id_salt + ++s->n_ids * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    snprintf(c->id, sizeof c->id, "%016llx", (unsigned long long)(x ^ (x >> 31)));
}

/* As it came, "/" if it is empty, "?" if it has bytes that no URL has: they would not go into the JSON of answers and logs. */
static const char *path_of(const struct evhttp_request *http) {
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(http);
    const char *path = uri != NULL ? evhttp_uri_get_path(uri) : NULL;
    if (path == NULL || path[0] == '\0') {
        return "/";
    }
    for (const char *p = path; *p != '\0'; p++) {
        if ((unsigned char)*p >= 0x80) {
            return "?";
        }
    }
    return path;
}

static void on_request(struct evhttp_request *http, void *arg) {
    server *s = arg;
    struct evhttp_connection *connection = evhttp_request_get_connection(http);
    evutil_socket_t fd = bufferevent_getfd(evhttp_connection_get_bufferevent(connection));
    char *remote = NULL;
    ev_uint16_t port;
    call *c = calloc(1, sizeof *c);
    if (c != NULL) {
        c->watch = event_new(s->base, fd, EV_READ | EV_CLOSED | EV_ET | EV_PERSIST, on_left, c);
    }
    if (c == NULL || c->watch == NULL || event_add(c->watch, NULL) != 0) {
        if (c != NULL) {
            unwatch(c);
        }
        free(c);
        evhttp_send_error(http, 503, NULL);
        return;
    }
    evhttp_connection_get_peer(connection, &remote, &port);
    c->server = s;
    c->http = http;
    c->method = method_of(http);
    c->path = path_of(http);
    c->remote = remote != NULL ? remote : "";
    c->began_us = now_us();
    c->key = -1;
    c->usage.first_token_us = c->usage.queued_us = -1;
    set_id(c);
    c->next = s->calls;
    if (s->calls != NULL) {
        s->calls->prev = c;
    }
    s->calls = c;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)); /* tokens do not wait for one another */
    routes_handle(c);
}

/* ---- Listening ---- */

static int n_connections_at_most(const server *s) {
    int lowest_free = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, s->first_fd);
    if (lowest_free < 0) {
        lowest_free = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, s->first_fd); /* stderr may be closed */
    }
    if (lowest_free < 0) {
        return s->params->max_connections; /* no descriptor is left */
    }
    close(lowest_free);
    return lowest_free - s->first_fd;
}

static void listen_again(evutil_socket_t fd, short what, void *arg) {
    server *s = arg;
    (void)fd, (void)what;
    if (!s->listening) {
        return;
    }
    if (n_connections_at_most(s) < s->params->max_connections) {
        evconnlistener_enable(s->listener);
    } else {
        event_add(s->listen_again, &(struct timeval){0, 20000});
    }
}

static struct bufferevent *on_accept(struct event_base *base, void *arg) {
    server *s = arg;
    if (s->listening && n_connections_at_most(s) >= s->params->max_connections) {
        evconnlistener_disable(s->listener); /* the others wait in the kernel's queue */
        event_add(s->listen_again, &(struct timeval){0, 20000});
    }
    SSL *ssl = s->tls != NULL ? SSL_new(s->tls) : NULL;
    struct bufferevent *bev =
        ssl != NULL ? bufferevent_openssl_socket_new(base, -1, ssl, BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE)
        : s->tls == NULL ? bufferevent_socket_new(base, -1, BEV_OPT_CLOSE_ON_FREE)
                         : NULL;
    if (bev != NULL) {
        bufferevent_setwatermark(bev, EV_READ, 0, s->read_limit_bytes);
    }
    if (bev != NULL && ssl != NULL) {
        bufferevent_openssl_set_allow_dirty_shutdown(bev, 1);
    }
    return bev; /* NULL: evhttp makes a plain one, which no TLS client understands */
}

static ls_status tls_open(server *s, ls_error *err) {
    const server_params *p = s->params;
    char why[256] = "";
    if (p->ssl_certfile == NULL && p->ssl_keyfile == NULL) {
        return LS_OK;
    }
    if (p->ssl_certfile == NULL || p->ssl_keyfile == NULL) {
        return error_set(err, LS_EINVAL, "TLS needs both --ssl-certfile and --ssl-keyfile");
    }
    s->tls = SSL_CTX_new(TLS_server_method());
    bool good = s->tls != NULL && SSL_CTX_set_min_proto_version(s->tls, TLS1_2_VERSION) == 1;
    if (!good || SSL_CTX_use_certificate_chain_file(s->tls, p->ssl_certfile) != 1) {
        ERR_error_string_n(ERR_get_error(), why, sizeof why);
        return error_set(err, LS_EINVAL, "--ssl-certfile %s: %s", p->ssl_certfile, why);
    }
    if (SSL_CTX_use_PrivateKey_file(s->tls, p->ssl_keyfile, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_check_private_key(s->tls) != 1) {
        ERR_error_string_n(ERR_get_error(), why, sizeof why);
        return error_set(err, LS_EINVAL, "--ssl-keyfile %s: %s", p->ssl_keyfile, why);
    }
    return LS_OK;
}

static ls_status make_socket(const server_params *p, int *out, ls_error *err) {
    char port[16];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found = NULL;
    snprintf(port, sizeof port, "%d", p->port);
    int rc = getaddrinfo(p->host, port, &hints, &found);
    if (rc != 0) {
        return error_set(err, LS_EINVAL, "--host %s: %s", p->host, gai_strerror(rc));
    }
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bool good = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)) == 0 &&
                bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0;
    int why = errno;
    freeaddrinfo(found);
    if (!good) {
        if (fd >= 0) {
            close(fd);
        }
        return error_set(err, LS_EIO, "cannot listen on %s port %d: %s", p->host, p->port, strerror(why));
    }
    *out = fd;
    return LS_OK;
}

static int port_of(int fd) {
    struct sockaddr_storage address = {0};
    socklen_t n = sizeof address;
    getsockname(fd, (struct sockaddr *)&address, &n);
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

static ls_status check_fds(server *s, ls_error *err) {
    struct rlimit limit;
    int lowest_free = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
    if (lowest_free < 0) {
        return error_set(err, LS_EIO, "no file descriptor is left");
    }
    close(lowest_free);
    s->first_fd = lowest_free;
    rlim_t wanted = (rlim_t)s->first_fd + (rlim_t)s->params->max_connections + SPARE_FDS;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < wanted) {
        limit.rlim_cur = wanted < limit.rlim_max ? wanted : limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < wanted) {
        return error_set(err, LS_EINVAL,
                         "--max-connections %d: this process may open %llu files, %llu are needed: raise the limit "
                         "(ulimit -n), or allow fewer connections",
                         s->params->max_connections, (unsigned long long)limit.rlim_cur, (unsigned long long)wanted);
    }
    return LS_OK;
}

ls_status http_open(server *s, ls_error *err) {
    const server_params *p = s->params;
    int fd = -1;
    TRY(tls_open(s, err));
    s->http = evhttp_new(s->base);
    s->listen_again = evtimer_new(s->base, listen_again, s);
    if (s->http == NULL || s->listen_again == NULL) {
        return error_set(err, LS_ENOMEM, "server: out of memory");
    }
    s->read_limit_bytes = (size_t)p->max_body_bytes + 2 * MAX_HEADER_BYTES;
    evhttp_set_max_headers_size(s->http, MAX_HEADER_BYTES);
    evhttp_set_max_body_size(s->http, (ev_ssize_t)p->max_body_bytes);
    evhttp_set_timeout(s->http, p->http_timeout_s);
    evhttp_set_flags(s->http, EVHTTP_SERVER_LINGERING_CLOSE); /* too long a body is read, so that the client sees why */
    evhttp_set_allowed_methods(s->http, EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_HEAD | EVHTTP_REQ_OPTIONS |
                                            EVHTTP_REQ_PUT | EVHTTP_REQ_DELETE | EVHTTP_REQ_PATCH);
    evhttp_set_default_content_type(s->http, NULL);
    evhttp_set_bevcb(s->http, on_accept, s);
    evhttp_set_gencb(s->http, on_request, s);
    TRY(make_socket(p, &fd, err));
    struct evhttp_bound_socket *bound = evhttp_accept_socket_with_handle(s->http, fd);
    if (bound == NULL) {
        close(fd);
        return error_set(err, LS_ENOMEM, "server: out of memory");
    }
    s->listener = evhttp_bound_socket_get_listener(bound);
    s->listening = true;
    TRY(check_fds(s, err));
    bool is_v6 = strchr(p->host, ':') != NULL;
    log_line(&p->log, LS_LOG_INFO, "listening on %s://%s%s%s:%d", s->tls != NULL ? "https" : "http", is_v6 ? "[" : "",
             p->host, is_v6 ? "]" : "", port_of(fd));
    return LS_OK;
}

void http_stop_listening(server *s) {
    if (s->listening) {
        s->listening = false;
        evconnlistener_disable(s->listener);
    }
}

void http_close(server *s) {
    for (call *c = s->calls, *next; c != NULL; c = next) {
        struct evhttp_connection *connection = connection_of(c);
        next = c->next;
        if (connection != NULL) {
            evhttp_connection_set_closecb(connection, NULL, NULL);
            evhttp_request_set_on_complete_cb(c->http, NULL, NULL);
        }
        call_end(c);
    }
    if (s->http != NULL) {
        evhttp_free(s->http); /* with connections and their requests */
    }
    if (s->listen_again != NULL) {
        event_free(s->listen_again);
    }
    SSL_CTX_free(s->tls);
}
