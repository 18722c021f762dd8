/* See hosts.h. */
#include "rank/hosts.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

static const int64_t MS = 1000000;
static const int64_t BEAT_MS = 250;   /* between notes */
static const int64_t SLICE_MS = 50;   /* between looks at whether the run has failed */
static const int64_t GRACE_MS = 2000; /* from a failure until on_lost */

typedef enum note_kind { NOTE_BEAT, NOTE_LEAVE, NOTE_FAIL } note_kind;

/* What processes tell each other beside the data; always this many bytes. */
typedef struct host_note {
    uint32_t kind, phase;
    int64_t number;
    char text[400]; /* NOTE_FAIL: why */
} host_note;

typedef struct host_peer {
    host_note in, out;
    host_transfer receive, send;
    bool sending;
    bool left, gone; /* it said so; nothing more can be told to it, or heard */
    int64_t heard_ns;
    atomic_uint phase; /* as it said last; read by whoever waits for it, too */
    atomic_llong number;
} host_peer;

struct ls_hosts {
    host_link *link;
    int64_t lost_ns;
    void (*on_lost)(void *user, const ls_error *why);
    void *user;
    atomic_uint phase;
    atomic_llong number;
    atomic_bool failed, leaving;
    pthread_mutex_t lock; /* of why */
    ls_error why;
    pthread_t beat;
    host_peer peer[HOSTS_MAX];
};

int hosts_count(const ls_hosts *hosts) {
    return hosts == NULL ? 1 : hosts->link->count;
}

int ls_hosts_self(const ls_hosts *hosts) {
    return hosts == NULL ? 0 : hosts->link->self;
}

const char *hosts_label(const ls_hosts *hosts, int host) {
    return hosts->link->label[host];
}

void hosts_set_phase(ls_hosts *hosts, host_phase phase, int64_t number) {
    if (hosts != NULL) {
        atomic_store(&hosts->number, number);
        atomic_store(&hosts->phase, (unsigned)phase);
    }
}

bool hosts_lost(const ls_hosts *hosts) {
    return hosts != NULL && atomic_load(&hosts->failed);
}

ls_status hosts_why(ls_hosts *hosts, ls_error *err) {
    pthread_mutex_lock(&hosts->lock);
    ls_status st = error_set(err, hosts->why.status, "%s", hosts->why.text);
    pthread_mutex_unlock(&hosts->lock);
    return st;
}

/* The first reason is the one that counts. */
static void lose(ls_hosts *hosts, const ls_error *why) {
    pthread_mutex_lock(&hosts->lock);
    if (!atomic_load(&hosts->failed)) {
        hosts->why = *why;
        atomic_store(&hosts->failed, true);
    }
    pthread_mutex_unlock(&hosts->lock);
}

/* ---- Notes ---- */

/* "loading the weights", "in step 12": what a host was doing. */
static const char *phase_text(char *out, size_t n, uint32_t phase, int64_t number) {
    static const char *const text[PHASES] = {"opening the model", "comparing options and files", "loading weights",
                                             "waiting for step", "in step"};
    snprintf(out, n, phase >= PHASE_IDLE ? "%s %lld" : "%s", phase < PHASES ? text[phase] : "doing something unknown",
             (long long)number);
    return out;
}

void ls_hosts_describe(const ls_hosts *hosts, char *out, size_t out_bytes) {
    char what[48];
    snprintf(out, out_bytes, "%s, %s", hosts->link->label[hosts->link->self],
             phase_text(what, sizeof what, atomic_load(&hosts->phase), atomic_load(&hosts->number)));
}

static void lose_peer(ls_hosts *hosts, int host, const char *what) {
    const host_peer *peer = &hosts->peer[host];
    ls_error why = {0};
    char theirs[48], ours[48];
    error_set(&why, LS_EABORTED, "%s %s; it was %s, and this host %s", hosts->link->label[host], what,
              phase_text(theirs, sizeof theirs, atomic_load(&peer->phase), atomic_load(&peer->number)),
              phase_text(ours, sizeof ours, atomic_load(&hosts->phase), atomic_load(&hosts->number)));
    lose(hosts, &why);
}

static void take_note(ls_hosts *hosts, int host) {
    host_peer *peer = &hosts->peer[host];
    ls_error why = {0};
    peer->heard_ns = clock_ns();
    peer->in.text[sizeof peer->in.text - 1] = '\0';
    if (peer->in.kind == NOTE_LEAVE) {
        peer->left = true;
    } else if (peer->in.kind == NOTE_FAIL) {
        peer->left = true;
        error_set(&why, LS_EABORTED, "%s: %s", hosts->link->label[host], peer->in.text);
        lose(hosts, &why);
    } else {
        atomic_store(&peer->phase, peer->in.phase);
        atomic_store(&peer->number, peer->in.number);
    }
    peer->receive.done = 0;
}

/* Takes every note that has come from a host, and moves what is on its way there. */
static void see_to_peer(ls_hosts *hosts, int host, int64_t now) {
    host_peer *peer = &hosts->peer[host];
    ls_status st = LS_OK;
    while (st == LS_OK && !peer->left) {
        st = hosts->link->advance(hosts->link, CHANNEL_NOTES, &peer->receive, NULL);
        if (st != LS_OK || peer->receive.done < peer->receive.bytes) {
            break;
        }
        take_note(hosts, host);
    }
    if (peer->sending) {
        peer->sending = hosts->link->advance(hosts->link, CHANNEL_NOTES, &peer->send, NULL) == LS_OK &&
                        peer->send.done < peer->send.bytes;
    }
    if (st != LS_OK) {
        lose_peer(hosts, host, "is gone: its process has ended");
        peer->gone = true;
    } else if (!peer->left && now - peer->heard_ns > hosts->lost_ns) {
        char what[96];
        snprintf(what, sizeof what, "gave no sign of life for %.1f s: it was stopped, or cut off",
                 (double)(now - peer->heard_ns) / 1e9);
        lose_peer(hosts, host, what);
        peer->gone = true;
    }
}

/* Puts a note on its way to a host, unless the one before still is. */
static bool send_note(ls_hosts *hosts, int host, const host_note *note) {
    host_peer *peer = &hosts->peer[host];
    if (host == hosts->link->self || peer->gone) {
        return true;
    }
    if (peer->sending) {
        return false;
    }
    peer->out = *note;
    peer->send.done = 0;
    peer->sending = true;
    return true;
}

static void rest(ls_hosts *hosts, int64_t timeout_ns) {
    host_transfer *pending[2 * HOSTS_MAX];
    int n = 0;
    for (int host = 0; host < hosts->link->count; host++) {
        host_peer *peer = &hosts->peer[host];
        if (host == hosts->link->self || peer->gone) {
            continue;
        }
        if (!peer->left) {
            pending[n++] = &peer->receive;
        }
        if (peer->sending) {
            pending[n++] = &peer->send;
        }
    }
    hosts->link->rest(hosts->link, CHANNEL_NOTES, pending, n, timeout_ns);
}

static void see_to_all(ls_hosts *hosts) {
    for (int host = 0; host < hosts->link->count; host++) {
        if (host != hosts->link->self && !hosts->peer[host].gone) {
            see_to_peer(hosts, host, clock_ns());
        }
    }
}

/* Whether the program must be told that this run is over, for it has not left. */
static bool must_tell(const ls_hosts *hosts, int64_t lost_at_ns, int64_t now) {
    return hosts->on_lost != NULL && lost_at_ns > 0 && now - lost_at_ns > GRACE_MS * MS &&
           !atomic_load(&hosts->leaving);
}

static void *beat(void *arg) {
    ls_hosts *hosts = arg;
    int64_t next_ns = 0, lost_at_ns = 0;
    bool told = false;
    while (!atomic_load(&hosts->leaving)) {
        int64_t now = clock_ns();
        if (now >= next_ns) {
            host_note note = {
                .kind = NOTE_BEAT, .phase = atomic_load(&hosts->phase), .number = atomic_load(&hosts->number)};
            for (int host = 0; host < hosts->link->count; host++) {
                send_note(hosts, host, &note);
            }
            next_ns = now + BEAT_MS * MS;
        }
        see_to_all(hosts);
        lost_at_ns = lost_at_ns == 0 && atomic_load(&hosts->failed) ? now : lost_at_ns;
        if (!told && must_tell(hosts, lost_at_ns, now)) {
            ls_error why = {0};
            hosts_why(hosts, &why);
            told = true;
            hosts->on_lost(hosts->user, &why);
        }
        rest(hosts, SLICE_MS * MS);
    }
    return NULL;
}

/* ---- Transfers ---- */

/* The link broke under a transfer. The note that says why may be on its way, and says it better. */
static void lost_in_transfer(ls_hosts *hosts, const ls_error *why) {
    int64_t until = clock_ns() + 1000 * MS;
    while (!atomic_load(&hosts->failed) && clock_ns() < until) {
        hosts->link->rest(hosts->link, CHANNEL_DATA, NULL, 0, 10 * MS);
    }
    lose(hosts, why);
}

/* Starts and advances what it can; *n_pending are left, those at the head of each queue in pending. */
static ls_status advance_all(ls_hosts *hosts, host_transfer *transfer, int n, host_transfer **pending, int *n_pending,
                             ls_error *err) {
    unsigned busy[2] = {0};
    *n_pending = 0;
    for (int i = 0; i < n; i++) {
        host_transfer *t = &transfer[i];
        const unsigned bit = 1U << t->host;
        if (t->done == t->bytes || (busy[t->sends] & bit) != 0) {
            continue;
        }
        TRY(hosts->link->advance(hosts->link, CHANNEL_DATA, t, err));
        if (t->done < t->bytes) {
            busy[t->sends] |= bit;
            pending[(*n_pending)++] = t;
        }
    }
    return LS_OK;
}

ls_status hosts_transfer(ls_hosts *hosts, host_transfer *transfer, int n, int64_t timeout_ns, ls_error *err) {
    const int64_t start = timeout_ns > 0 ? clock_ns() : 0;
    host_transfer *pending[2 * HOSTS_MAX];
    ls_error why = {0};
    int n_pending;
    while (!atomic_load(&hosts->failed)) {
        if (advance_all(hosts, transfer, n, pending, &n_pending, &why) != LS_OK) {
            lost_in_transfer(hosts, &why);
            break;
        }
        if (n_pending == 0) {
            return LS_OK;
        }
        if (timeout_ns > 0 && clock_ns() - start > timeout_ns) {
            char what[96];
            snprintf(what, sizeof what, "lives, but its part of an exchange did not come for %.0f s",
                     (double)timeout_ns / 1e9);
            lose_peer(hosts, pending[0]->host, what);
            break;
        }
        hosts->link->rest(hosts->link, CHANNEL_DATA, pending, n_pending, SLICE_MS * MS);
    }
    for (int i = 0; i < n; i++) {
        hosts->link->drop(hosts->link, &transfer[i]);
    }
    return hosts_why(hosts, err);
}

ls_status hosts_swap(ls_hosts *hosts, const void *mine, void *all, size_t bytes, ls_error *err) {
    host_transfer transfer[2 * HOSTS_MAX];
    int n = 0;
    for (int host = 0; host < hosts->link->count; host++) {
        void *theirs = (char *)all + (size_t)host * bytes;
        if (host == hosts->link->self) {
            memcpy(theirs, mine, bytes);
            continue;
        }
        transfer[n++] = (host_transfer){.host = host, .sends = true, .data = (void *)(uintptr_t)mine, .bytes = bytes};
        transfer[n++] = (host_transfer){.host = host, .data = theirs, .bytes = bytes};
    }
    return hosts_transfer(hosts, transfer, n, 0, err);
}

/* ---- Joining and leaving ---- */

static ls_status check_count(int n_hosts, ls_error *err) {
    return n_hosts == 2 || n_hosts == 4 || n_hosts == HOSTS_MAX
               ? LS_OK
               : error_set(err, LS_EINVAL,
                           "%d processes: ranks are spread over 2, 4 or 8 (WORLD_SIZE, or the launcher's -n or -np)",
                           n_hosts);
}

static ls_status check_params(const ls_hosts_params *p, ls_error *err) {
    if (p->address != NULL) {
        TRY(check_count(p->n_hosts, err));
    }
    if (p->address != NULL && (p->host < 0 || p->host >= p->n_hosts)) {
        return error_set(err, LS_EINVAL, "host %d of %d: hosts are counted from 0", p->host, p->n_hosts);
    }
    if (p->join_timeout_ms < 0 || p->lost_timeout_ms < 0) {
        return error_set(err, LS_EINVAL, "ls_hosts_params: a timeout is negative");
    }
    return LS_OK;
}

static ls_status open_link(ls_hosts *hosts, const ls_hosts_params *p, ls_error *err) {
    const int64_t timeout_ms = p->join_timeout_ms > 0 ? p->join_timeout_ms : 60000;
    const int64_t until = clock_ns() + timeout_ms * MS;
    if (p->address != NULL) {
        return link_tcp_open(&hosts->link, p->host, p->n_hosts, p->address, until, err);
    }
    TRY(link_mpi_open(&hosts->link, until, err));
    return check_count(hosts->link->count, err);
}

static void prepare_peers(ls_hosts *hosts) {
    for (int host = 0; host < hosts->link->count; host++) {
        host_peer *peer = &hosts->peer[host];
        peer->receive = (host_transfer){.host = host, .data = &peer->in, .bytes = sizeof peer->in};
        peer->send = (host_transfer){.host = host, .sends = true, .data = &peer->out, .bytes = sizeof peer->out};
        peer->heard_ns = clock_ns();
    }
}

ls_status ls_hosts_join(const ls_hosts_params *params, ls_hosts **out, ls_error *err) {
    ls_hosts_params p = {0};
    if (params->struct_size == 0 || params->struct_size > sizeof p) {
        return error_set(err, LS_EINVAL, "ls_hosts_params: start it with LS_HOSTS_PARAMS_INIT");
    }
    memcpy(&p, params, params->struct_size);
    TRY(check_params(&p, err));
    ls_hosts *hosts = calloc(1, sizeof *hosts);
    ls_status st = LS_OK;
    if (hosts == NULL) {
        return error_set(err, LS_ENOMEM, "hosts: out of memory");
    }
    hosts->lost_ns = (p.lost_timeout_ms > 0 ? p.lost_timeout_ms : 5000) * MS;
    hosts->on_lost = p.on_lost;
    hosts->user = p.user;
    TRY_GOTO(open_link(hosts, &p, err), fail);
    prepare_peers(hosts);
    pthread_mutex_init(&hosts->lock, NULL);
    int rc = thread_start(&hosts->beat, beat, hosts);
    if (rc != 0) {
        pthread_mutex_destroy(&hosts->lock);
        hosts->link->close(hosts->link, false);
        TRY_GOTO(error_set(err, LS_ENOMEM, "hosts: no thread: %s", strerror(rc)), fail);
    }
    *out = hosts;
    return LS_OK;
fail:
    free(hosts);
    return st;
}

/* Tells all, as far as they can be told in time. In good order, waits until all the others leave too, so that nobody takes
 * our end for a failure. */
static bool say_goodbye(ls_hosts *hosts, const ls_error *why) {
    const bool in_order = why == NULL;
    const int64_t until = clock_ns() + (in_order ? hosts->lost_ns : 500 * MS);
    host_note note = {.kind = in_order ? NOTE_LEAVE : NOTE_FAIL};
    bool said[HOSTS_MAX] = {false};
    if (!in_order) {
        snprintf(note.text, sizeof note.text, "%s", why->text);
    }
    for (;;) {
        bool pending = false;
        for (int host = 0; host < hosts->link->count; host++) {
            said[host] = said[host] || send_note(hosts, host, &note);
            const bool is_other = host != hosts->link->self;
            const host_peer *peer = &hosts->peer[host];
            pending =
                pending || !said[host] || (is_other && !peer->gone && (peer->sending || (in_order && !peer->left)));
        }
        if (!pending || clock_ns() > until || (in_order && atomic_load(&hosts->failed))) {
            return !pending;
        }
        rest(hosts, 10 * MS);
        see_to_all(hosts);
    }
}

void ls_hosts_leave(ls_hosts **out, const ls_error *why) {
    ls_hosts *hosts = *out;
    if (hosts == NULL) {
        return;
    }
    atomic_store(&hosts->leaving, true);
    pthread_join(hosts->beat, NULL);
    bool in_order = say_goodbye(hosts, why) && why == NULL;
    hosts->link->close(hosts->link, in_order && !atomic_load(&hosts->failed));
    pthread_mutex_destroy(&hosts->lock);
    free(hosts);
    *out = NULL;
}
