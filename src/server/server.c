/* The server's life: open, serve, drain, close. See server.h for its parts and threads. */
#include "server/server.h"

#include <event2/event.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/threads.h"
#include "server/serving.h"

enum {
    DEAD_FOR_US = 5000000,  /* so long /health says why, then the process ends: its supervisor may start another */
    LAST_WORDS_US = 1000000 /* for clients to be told that the server ends */
};

/* ---- Opening the model, in a thread of its own ---- */

typedef struct opening {
    server server;
    pthread_t thread;
    bool started;
    int event_fd; /* readable when it is over */
    struct event *over;
    server_model model;
    ls_status status;
    ls_error error;
} opening;

static void *open_model(void *arg) {
    opening *o = arg;
    const server_params *p = o->server.params;
    o->status = p->open(p->open_user, &o->server.progress, &o->model, &o->error);
    eventfd_write(o->event_fd, 1);
    return NULL;
}

static void close_model(server_model *m) {
    ls_engine_close(&m->engine);
    ls_text_close(&m->text);
    ls_model_close(&m->model);
}

/* ---- Draining ---- */

static void stop_now(server *s) {
    s->stopping = true;
    event_base_loopbreak(s->base);
}

static void look_whether_drained(server *s) {
    static const char too_late[] = "the server is shutting down: --shutdown-timeout is over";
    if (!s->draining) {
        return;
    }
    if (s->generations == NULL && s->calls == NULL) {
        event_base_loopbreak(s->base);
    } else if (now_us() >= s->drain_until_us && (s->ending || s->generations == NULL)) {
        stop_now(s);
    } else if (now_us() >= s->drain_until_us) {
        log_line(&s->params->log, LS_LOG_WARN, "--shutdown-timeout is over: ending what still runs");
        s->ending = true;
        s->drain_until_us = now_us() + LAST_WORDS_US;
        for (generation *g = s->generations, *next; g != NULL; g = next) {
            next = g->next;
            generation_end(g, too_late);
        }
        for (call *c = s->calls, *next; c != NULL; c = next) {
            next = c->next;
            if (c->reading != NULL) {
                call_fail(c, LS_EABORTED, too_late, NULL);
            }
        }
    }
}

static void drain(server *s, const char *why) {
    if (s->draining) {
        return;
    }
    if (s->state == STATE_STARTING) {
        stop_now(s);
        return;
    }
    int n = 0;
    for (const generation *g = s->generations; g != NULL; g = g->next) {
        n++;
    }
    log_line(&s->params->log, LS_LOG_INFO, "%s: %d requests are being finished, new ones are refused", why, n);
    s->draining = true;
    s->drain_until_us = now_us() + (int64_t)s->params->shutdown_timeout_s * 1000000;
    event_add(s->tick, &(struct timeval){0, 20000}); /* look more often from here on */
    look_whether_drained(s);
}

static void on_term(evutil_socket_t signal, short what, void *arg) {
    (void)signal, (void)what;
    drain(arg, "SIGTERM");
}

static void on_int(evutil_socket_t signal, short what, void *arg) {
    server *s = arg;
    (void)signal, (void)what;
    if (++s->n_interrupts > 1) {
        stop_now(s);
    } else {
        drain(s, "interrupted (once more ends it at once)");
    }
}

/* ---- Events ---- */

static void on_tick(evutil_socket_t fd, short what, void *arg) {
    server *s = arg;
    (void)fd, (void)what;
    state_check(s, now_us());
    look_whether_drained(s);
    if (s->state == STATE_DEAD && now_us() - s->died_us > DEAD_FOR_US) {
        drain(s, "the engine has failed");
    }
}

/* The engine has made tokens, or requests have ended. */
static void on_news(evutil_socket_t fd, short what, void *arg) {
    enum { BATCH = 64 }; /* then the loop's other events have their turn */
    server *s = arg;
    (void)fd, (void)what;
    for (int i = 0; i < BATCH; i++) { /* one by one: hearing of one may free others, which leave the engine's list */
        ls_request *request;
        size_t n = 0;
        if (ls_engine_poll(s->model.engine, 0, &request, 1, &n, NULL) != LS_OK || n == 0) {
            break;
        }
        generation_news(ls_request_user(request));
    }
    look_whether_drained(s);
}

static size_t longest_token(const server *s) {
    size_t longest = 1;
    for (int32_t id = 0; s->model.text != NULL && id < s->info.n_vocab; id++) {
        const char *bytes;
        size_t n = 0;
        ls_text_token_bytes(s->model.text, id, &bytes, &n);
        longest = n > longest ? n : longest;
    }
    return longest;
}

static ls_status begin_work(server *s, ls_error *err) {
    s->info = (ls_model_info)LS_MODEL_INFO_INIT;
    TRY(ls_model_get_info(s->model.model, &s->info, err));
    s->max_tokens = ls_engine_max_tokens(s->model.engine);
    s->longest_token_bytes = longest_token(s);
    TRY(reader_start(s, err));
    TRY(ls_engine_start(s->model.engine, err));
    s->news = event_new(s->base, ls_engine_poll_fd(s->model.engine), EV_READ | EV_PERSIST, on_news, s);
    if (s->news == NULL || event_add(s->news, NULL) != 0) {
        return error_set(err, LS_ENOMEM, "server: out of memory");
    }
    s->ready_us = s->steps_seen_us = now_us();
    s->state = STATE_OK;
    log_line(&s->params->log, LS_LOG_INFO, "ready after %.2f s: %s, at most %d tokens a request",
             (double)(s->ready_us - s->started_us) * 1e-6, s->params->name[0], s->max_tokens);
    return LS_OK;
}

static void on_opened(evutil_socket_t fd, short what, void *arg) {
    opening *o = arg;
    server *s = &o->server;
    (void)fd, (void)what;
    pthread_join(o->thread, NULL);
    o->started = false;
    s->model = o->model;
    if (o->status == LS_OK) {
        o->status = begin_work(s, &o->error);
    }
    if (o->status != LS_OK) {
        event_base_loopbreak(s->base);
    }
}

/* ---- Run ---- */

static ls_status read_settings(server *s, ls_error *err) {
    const server_params *p = s->params;
    for (size_t i = 0; i < p->n_api_keys; i++) {
        TRY(keys_add(&s->keys, p->api_key[i], strlen(p->api_key[i]), err));
    }
    if (p->api_key_file != NULL) {
        TRY(keys_add_file(&s->keys, p->api_key_file, err));
    }
    if (p->chat_template_kwargs != NULL) {
        json_doc doc = {0};
        TRY(json_doc_parse(&doc, "--chat-template-kwargs", p->chat_template_kwargs, strlen(p->chat_template_kwargs),
                           err));
        s->template_kwargs = doc.root;
        if (!json_is_object(doc.root)) {
            return error_set(err, LS_EINVAL, "--chat-template-kwargs: expected a JSON object");
        }
    }
    if (getrandom(&s->id_salt, sizeof s->id_salt, GRND_NONBLOCK) != sizeof s->id_salt) {
        s->id_salt = (uint64_t)now_us();
    }
    return LS_OK;
}

static ls_status open_loop(server *s, opening *o, ls_error *err) {
    s->base = event_base_new();
    o->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (s->base == NULL || o->event_fd < 0) {
        return error_set(err, LS_ENOMEM, "server: no event loop");
    }
    s->tick = event_new(s->base, -1, EV_PERSIST, on_tick, s);
    s->on_term = evsignal_new(s->base, SIGTERM, on_term, s);
    s->on_int = evsignal_new(s->base, SIGINT, on_int, s);
    o->over = event_new(s->base, o->event_fd, EV_READ, on_opened, o);
    bool good = s->tick != NULL && s->on_term != NULL && s->on_int != NULL && o->over != NULL &&
                event_add(s->tick, &(struct timeval){1, 0}) == 0 && event_add(s->on_term, NULL) == 0 &&
                event_add(s->on_int, NULL) == 0 && event_add(o->over, NULL) == 0;
    return good ? LS_OK : error_set(err, LS_ENOMEM, "server: out of memory");
}

static void free_event(struct event *event) {
    if (event != NULL) {
        event_free(event);
    }
}

static void close_all(server *s, opening *o) {
    if (s->model.engine != NULL) {
        ls_engine_stop(s->model.engine);
    }
    reader_stop(s);
    http_close(s);
    while (s->generations != NULL) {
        generation_destroy(s->generations);
    }
    free_event(s->news);
    free_event(s->tick);
    free_event(o->over);
    close_model(&s->model); /* may take a while: another SIGTERM meanwhile is still caught */
    free_event(s->on_term);
    free_event(s->on_int);
    if (s->base != NULL) {
        event_base_free(s->base);
    }
    if (o->event_fd >= 0) {
        close(o->event_fd);
    }
    keys_deinit(&s->keys);
    json_decref(s->template_kwargs);
}

static ls_status serve(server *s, opening *o, server_end *end, ls_error *err) {
    TRY(read_settings(s, err));
    TRY(open_loop(s, o, err));
    TRY(http_open(s, err));
    int rc = thread_start(&o->thread, open_model, o);
    if (rc != 0) {
        return error_set(err, LS_ENOMEM, "server: no thread: %s", strerror(rc));
    }
    o->started = true;
    event_base_dispatch(s->base);
    http_stop_listening(s);
    if (o->status != LS_OK && !o->started) {
        if (err != NULL) {
            *err = o->error;
        }
        return o->status;
    }
    *end = o->started && s->n_interrupts > 0                    ? SERVER_INTERRUPTED
           : o->started                                         ? SERVER_NOT_OPENED
           : s->state == STATE_DEAD                             ? SERVER_ENGINE_DIED
           : s->generations != NULL || s->ending || s->stopping ? SERVER_STOPPED
                                                                : SERVER_DRAINED;
    return LS_OK;
}

ls_status server_run(const server_params *params, server_end *end, ls_error *err) {
    opening *o = calloc(1, sizeof *o);
    if (o == NULL) {
        return error_set(err, LS_ENOMEM, "server: out of memory");
    }
    struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
    sigaction(SIGPIPE, &ignore, &before);
    server *s = &o->server;
    s->params = params;
    s->started_us = now_us();
    s->created_s = (int64_t)time(NULL);
    o->event_fd = -1;
    server_progress_set(&s->progress, "opening the model", -1);
    ls_status st = serve(s, o, end, err);
    if (o->started) {
        return st; /* the thread goes on with what is in *o, until the process exits */
    }
    close_all(s, o);
    sigaction(SIGPIPE, &before, NULL);
    free(o);
    return st;
}
