/*
 * The thread that reads bodies: JSON, chat templates, tokenizers and what /tokenize answers. A body may be long, and while the
 * loop read it every stream would wait.
 *
 *   loop: reader_take -> todo -> thread: read_body -> done -> loop: on_done -> spent -> thread: freed
 *
 * Bodies are read in the order in which they came. A reading is in one list at a time, and belongs to whoever took it out;
 * `call` is the loop's alone. Freeing is the thread's as well: a body of millions of values takes as long to free as to read.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/threads.h"
#include "server/serving.h"

struct reading {
    reading *next;
    server *server;
    call *call; /* NULL: the client is gone, or was told something else */
    const body_kind *kind;
    char *text;
    size_t n_bytes;
    json_doc doc; /* lent to the ask until its requests were submitted */
    ask ask;
    char *answer;
    ls_status status;
    ls_error error;
    const char *param;
};

typedef struct reading_list {
    reading *first, *last;
} reading_list;

struct reader {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work;
    reading_list todo, done, spent;
    bool started, stop;
    int event_fd;
    struct event *over; /* something is in `done` */
};

static void push(reading_list *list, reading *r) {
    r->next = NULL;
    *(list->last != NULL ? &list->last->next : &list->first) = r;
    list->last = r;
}

static reading *pop(reading_list *list) {
    reading *r = list->first;
    if (r != NULL) {
        list->first = r->next;
        list->last = r->next != NULL ? list->last : NULL;
    }
    return r;
}

static void reading_free(reading *r) {
    ask_deinit(&r->ask);
    json_doc_deinit(&r->doc);
    free(r->text);
    free(r->answer);
    free(r);
}

static void free_all(reading_list *list) {
    for (reading *r = pop(list); r != NULL; r = pop(list)) {
        if (r->call != NULL) {
            r->call->reading = NULL;
        }
        reading_free(r);
    }
}

/* ---- The thread ---- */

static ls_status make_answer(reading *r, fields *f, ls_error *err) {
    json_t *out = NULL;
    TRY(r->kind->make(r->server, f, &out, err));
    r->answer = out != NULL ? json_dumps(out, JSON_COMPACT) : NULL;
    json_decref(out);
    return r->answer != NULL ? LS_OK : error_set(err, LS_ENOMEM, "out of memory");
}

/* Deeply nested values are refused by jansson (2048 levels), doubled keys by us. */
static ls_status read_body(reading *r, ls_error *err) {
    TRY(json_doc_parse(&r->doc, "request", r->text, r->n_bytes, err));
    if (!json_is_object(r->doc.root)) {
        return error_set(err, LS_EINVAL, "the request's body must be a JSON object");
    }
    if (r->kind->ask != NULL) {
        ls_status st = r->kind->ask(&r->ask, r->server, r->doc.root, err);
        r->param = r->ask.body.param;
        return st;
    }
    fields f = {.object = r->doc.root};
    ls_status st = make_answer(r, &f, err);
    r->param = f.param;
    return st;
}

static void *run(void *arg) {
    reader *all = arg;
    pthread_mutex_lock(&all->lock);
    while (!all->stop) {
        reading *r = pop(&all->todo), *old = r == NULL ? pop(&all->spent) : NULL;
        if (r == NULL && old == NULL) {
            pthread_cond_wait(&all->work, &all->lock);
            continue;
        }
        pthread_mutex_unlock(&all->lock);
        if (r != NULL) {
            r->status = read_body(r, &r->error);
        } else {
            reading_free(old);
        }
        pthread_mutex_lock(&all->lock);
        if (r != NULL) {
            push(&all->done, r);
            eventfd_write(all->event_fd, 1);
        }
    }
    pthread_mutex_unlock(&all->lock);
    return NULL;
}

/* ---- The loop ---- */

static void answer(call *c, reading *r) {
    c->reading = NULL;
    r->call = NULL;
    if (r->status != LS_OK) {
        call_fail(c, r->status, r->error.text, r->param);
    } else if (r->kind->ask != NULL) {
        generation_start(c, &r->ask);
        r->ask = (ask){0};
    } else {
        call_reply_dumped(c, 200, r->answer);
        r->answer = NULL;
    }
}

static void on_done(evutil_socket_t fd, short what, void *arg) {
    reader *all = arg;
    eventfd_t n;
    (void)what;
    eventfd_read(fd, &n);
    for (;;) {
        pthread_mutex_lock(&all->lock);
        reading *r = pop(&all->done);
        pthread_mutex_unlock(&all->lock);
        if (r == NULL) {
            return;
        }
        if (r->call != NULL) {
            answer(r->call, r);
        }
        pthread_mutex_lock(&all->lock);
        push(&all->spent, r);
        pthread_cond_signal(&all->work);
        pthread_mutex_unlock(&all->lock);
    }
}

void reader_take(call *c, const body_kind *kind) {
    reader *all = c->server->reader;
    struct evbuffer *in = evhttp_request_get_input_buffer(c->http);
    const size_t n_bytes = evbuffer_get_length(in);
    reading *r = calloc(1, sizeof *r);
    char *text = malloc(n_bytes + 1);
    if (r == NULL || text == NULL) {
        free(r);
        free(text);
        call_fail(c, LS_ENOMEM, "out of memory", NULL);
        return;
    }
    evbuffer_remove(in, text, n_bytes);
    text[n_bytes] = '\0';
    *r = (reading){.server = c->server, .call = c, .kind = kind, .text = text, .n_bytes = n_bytes};
    c->reading = r;
    pthread_mutex_lock(&all->lock);
    push(&all->todo, r);
    pthread_cond_signal(&all->work);
    pthread_mutex_unlock(&all->lock);
}

void reader_forget(call *c) {
    if (c->reading != NULL) {
        c->reading->call = NULL;
        c->reading = NULL;
    }
}

ls_status reader_start(server *s, ls_error *err) {
    reader *all = calloc(1, sizeof *all);
    if (all == NULL) {
        return error_set(err, LS_ENOMEM, "server: out of memory");
    }
    s->reader = all;
    pthread_mutex_init(&all->lock, NULL);
    pthread_cond_init(&all->work, NULL);
    all->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    all->over = all->event_fd >= 0 ? event_new(s->base, all->event_fd, EV_READ | EV_PERSIST, on_done, all) : NULL;
    if (all->over == NULL || event_add(all->over, NULL) != 0) {
        return error_set(err, LS_ENOMEM, "server: out of memory");
    }
    int rc = thread_start(&all->thread, run, all);
    all->started = rc == 0;
    return rc == 0 ? LS_OK : error_set(err, LS_ENOMEM, "server: no thread: %s", strerror(rc));
}

void reader_stop(server *s) {
    reader *all = s->reader;
    if (all == NULL) {
        return;
    }
    if (all->started) {
        pthread_mutex_lock(&all->lock);
        all->stop = true;
        pthread_cond_signal(&all->work);
        pthread_mutex_unlock(&all->lock);
        pthread_join(all->thread, NULL);
    }
    free_all(&all->todo);
    free_all(&all->done);
    free_all(&all->spent);
    if (all->over != NULL) {
        event_free(all->over);
    }
    if (all->event_fd >= 0) {
        close(all->event_fd);
    }
    pthread_cond_destroy(&all->work);
    pthread_mutex_destroy(&all->lock);
    free(all);
    s->reader = NULL;
}
