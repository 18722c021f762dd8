/*
 * See link.h: TCP, with a rendezvous of our own. Host 0 listens at the address that all are given; each other host comes
 * with a hello that says who it is and where it listens itself, and gets the list of all in return. Then each host
 * connects to those before it. Two connections, one for each channel, join each pair.
 *
 * Connections that do not begin with a hello are closed and forgotten.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "rank/link.h"

static const int64_t MS = 1000000, SECOND = 1000000000;

enum { NAME_BYTES = 40, ADDRESS_BYTES = 46, PORT_BYTES = 8 };
static const char MAGIC[16] = "lockstep hosts 1";

typedef struct hello {
    char magic[sizeof MAGIC];
    int32_t host, count, channel;
    char name[NAME_BYTES];
    char port[PORT_BYTES]; /* where it listens, at the address it comes from; empty where nobody need come */
} hello;

/* What host 0 answers once all are there. */
typedef struct host_place {
    char name[NAME_BYTES], address[ADDRESS_BYTES], port[PORT_BYTES];
} host_place;

typedef struct host_list {
    char refusal[256]; /* empty: welcome */
    host_place place[HOSTS_MAX];
} host_list;

typedef struct link_tcp {
    host_link base;
    int fd[HOSTS_MAX][CHANNELS];
    int listener;
    host_list list;
} link_tcp;

/* ---- Moving bytes ---- */

static ls_status tcp_advance(host_link *base, host_channel channel, host_transfer *t, ls_error *err) {
    const int fd = ((link_tcp *)base)->fd[t->host][channel];
    while (t->done < t->bytes) {
        char *at = (char *)t->data + t->done;
        const size_t left = t->bytes - t->done;
        ssize_t n = t->sends ? send(fd, at, left, MSG_NOSIGNAL | MSG_DONTWAIT) : recv(fd, at, left, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return LS_OK;
        }
        if (n <= 0) {
            return error_set(err, LS_EABORTED, "%s is gone: %s", base->label[t->host],
                             n == 0 ? "it closed the connection" : strerror(errno));
        }
        t->done += (size_t)n;
    }
    return LS_OK;
}

static void tcp_rest(host_link *base, host_channel channel, host_transfer *const *pending, int n, int64_t timeout_ns) {
    struct pollfd wait[2 * HOSTS_MAX];
    for (int i = 0; i < n; i++) {
        wait[i] = (struct pollfd){.fd = ((link_tcp *)base)->fd[pending[i]->host][channel],
                                  .events = pending[i]->sends ? POLLOUT : POLLIN};
    }
    poll(wait, (nfds_t)n, (int)(timeout_ns / MS));
}

static void tcp_drop(host_link *base, host_transfer *t) {
    (void)base, (void)t; /* only tcp_advance touches it */
}

static void tcp_close(host_link *base, bool in_order) {
    link_tcp *link = (link_tcp *)base;
    (void)in_order;
    for (int host = 0; host < HOSTS_MAX; host++) {
        for (int channel = 0; channel < CHANNELS; channel++) {
            if (link->fd[host][channel] >= 0) {
                close(link->fd[host][channel]);
            }
        }
    }
    if (link->listener >= 0) {
        close(link->listener);
    }
    free(link);
}

/* ---- Meeting ---- */

static int until_ms(int64_t until_ns) {
    int64_t ms = (until_ns - clock_ns()) / MS;
    return ms < 0 ? 0 : ms > 1000000 ? 1000000 : (int)ms;
}

static bool wait_for(int fd, short events, int64_t until_ns) {
    struct pollfd wait = {.fd = fd, .events = events};
    int n;
    do {
        n = poll(&wait, 1, until_ms(until_ns));
    } while (n < 0 && errno == EINTR);
    return n > 0;
}

/* All of it, until then. */
static bool move(int fd, bool sends, void *data, size_t bytes, int64_t until_ns) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = sends ? send(fd, (char *)data + done, bytes - done, MSG_NOSIGNAL | MSG_DONTWAIT)
                          : recv(fd, (char *)data + done, bytes - done, MSG_DONTWAIT);
        const bool again = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
        if (n > 0) {
            done += (size_t)n;
        } else if (!again || !wait_for(fd, sends ? POLLOUT : POLLIN, until_ns)) {
            return false;
        }
    }
    return true;
}

/* No delay; and what cannot be delivered is not kept for long once the program has ended. */
static void tune(int fd) {
    const int one = 1;
    const unsigned keep_ms = 5000;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &keep_ms, sizeof keep_ms);
}

/* One connection to one of the addresses; -1 with the reason in errno. */
static int connect_once(const struct addrinfo *to, int64_t until_ns) {
    int fd = socket(to->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int error = errno;
    if (fd >= 0) {
        socklen_t n = sizeof error;
        error = connect(fd, to->ai_addr, to->ai_addrlen) == 0 ? 0 : errno;
        if (error == EINPROGRESS) {
            error = ETIMEDOUT;
            if (wait_for(fd, POLLOUT, until_ns)) {
                getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n);
            }
        }
        if (error == 0) {
            tune(fd);
            return fd;
        }
        close(fd);
    }
    errno = error;
    return -1;
}

/* Tries until somebody listens there. */
static ls_status connect_to(int *out, const char *name, const char *port, const char *who, int64_t until_ns,
                            ls_error *err) {
    const int64_t pause_ms = 20, patience_ms = 2000; /* between tries; for one answer */
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    int rc = 0, error = ETIMEDOUT;
    do {
        struct addrinfo *list = NULL;
        rc = getaddrinfo(name, port, &hints, &list);
        for (const struct addrinfo *to = list; rc == 0 && to != NULL; to = to->ai_next) {
            int64_t soon = clock_ns() + patience_ms * MS;
            *out = connect_once(to, soon < until_ns ? soon : until_ns);
            if (*out >= 0) {
                freeaddrinfo(list);
                return LS_OK;
            }
            error = errno;
        }
        if (rc == 0) {
            freeaddrinfo(list);
        }
        nanosleep(&(struct timespec){.tv_nsec = pause_ms * MS}, NULL);
    } while (clock_ns() < until_ns);
    return error_set(err, LS_EABORTED, "joining: %s at %s port %s could not be reached: %s", who, name, port,
                     rc != 0 ? gai_strerror(rc) : strerror(error));
}

static int bind_to(const struct addrinfo *to) {
    const int one = 1;
    int fd = socket(to->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, to->ai_addr, to->ai_addrlen) == 0 && listen(fd, 64) == 0) {
            return fd;
        }
        int error = errno;
        close(fd);
        errno = error;
    }
    return -1;
}

/* At this address, or, where it is not the machine's own (it may stand before a router), at all. */
static ls_status listen_at(int *out, const char *name, const char *port, ls_error *err) {
    const struct addrinfo any = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM};
    const char *const place[2] = {name, NULL};
    int error = 0;
    for (int i = 0; i < 2; i++) {
        struct addrinfo *list = NULL;
        int rc = getaddrinfo(place[i], port, &any, &list);
        if (rc != 0) {
            return error_set(err, LS_EINVAL, "joining: %s port %s: %s", name, port, gai_strerror(rc));
        }
        *out = -1;
        for (const struct addrinfo *to = list; *out < 0 && to != NULL; to = to->ai_next) {
            *out = bind_to(to);
            error = errno;
        }
        freeaddrinfo(list);
        if (*out >= 0 || error != EADDRNOTAVAIL) {
            break;
        }
    }
    return *out >= 0 ? LS_OK
                     : error_set(err, LS_EABORTED, "joining: host 0 cannot listen at %s port %s: %s", name, port,
                                 strerror(error));
}

/* The numeric address at this end of a connection, or at the other. */
static void address_of(int fd, bool other, char address[ADDRESS_BYTES], char port[PORT_BYTES]) {
    struct sockaddr_storage at;
    socklen_t n = sizeof at;
    int rc = other ? getpeername(fd, (struct sockaddr *)&at, &n) : getsockname(fd, (struct sockaddr *)&at, &n);
    if (rc != 0 || getnameinfo((struct sockaddr *)&at, n, address, ADDRESS_BYTES, port, PORT_BYTES,
                               NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        snprintf(address, ADDRESS_BYTES, "?");
        snprintf(port, PORT_BYTES, "0");
    }
}

static hello hello_of(const link_tcp *link, int channel) {
    hello h = {.host = link->base.self, .count = link->base.count, .channel = channel};
    memcpy(h.magic, MAGIC, sizeof MAGIC);
    memcpy(h.name, link->list.place[link->base.self].name, sizeof h.name);
    memcpy(h.port, link->list.place[link->base.self].port, sizeof h.port);
    return h;
}

/* Why a hello is not welcome; false if it is. */
static bool refuse(const link_tcp *link, const hello *h, char *why, size_t n) {
    const int count = link->base.count;
    why[0] = '\0';
    if (h->count != count) {
        snprintf(why, n, "host %d (%s) counts %d processes, host %d counts %d", h->host, h->name, h->count,
                 link->base.self, count);
    } else if (h->host <= link->base.self || h->host >= count || h->channel < 0 || h->channel >= CHANNELS) {
        snprintf(why, n, "%s says that it is host %d of %d", h->name, h->host, count);
    } else if (link->fd[h->host][h->channel] >= 0) {
        snprintf(why, n, "two processes (%s, %s) say that they are host %d", link->list.place[h->host].name, h->name,
                 h->host);
    }
    return why[0] != '\0';
}

static void take_host(link_tcp *link, int fd, const hello *h) {
    host_place *place = &link->list.place[h->host];
    char port[PORT_BYTES];
    link->fd[h->host][h->channel] = fd;
    memcpy(place->name, h->name, sizeof place->name);
    address_of(fd, true, place->address, port);
    memcpy(place->port, h->port, sizeof place->port);
}

/* Who has not come, for the error. */
static ls_status missing(const link_tcp *link, ls_error *err) {
    char who[128] = "";
    size_t used = 0;
    for (int host = link->base.self + 1; host < link->base.count; host++) {
        if (link->fd[host][CHANNEL_DATA] < 0 || link->fd[host][CHANNEL_NOTES] < 0) {
            used += (size_t)snprintf(who + used, sizeof who - used, "%s%d", used > 0 ? ", " : "", host);
        }
    }
    return error_set(err, LS_EABORTED,
                     "joining: host %s did not come in time (--join-timeout); --hosts off runs a process alone", who);
}

/* Until all hosts behind this one have come, both channels of each. */
static ls_status accept_all(link_tcp *link, int64_t until_ns, ls_error *err) {
    const int64_t patience_ms = 2000;
    for (int n_left = (link->base.count - link->base.self - 1) * CHANNELS; n_left > 0;) {
        hello h;
        if (!wait_for(link->listener, POLLIN, until_ns)) {
            return missing(link, err);
        }
        int fd = accept4(link->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            continue;
        }
        if (!move(fd, false, &h, sizeof h, clock_ns() + patience_ms * MS) ||
            memcmp(h.magic, MAGIC, sizeof MAGIC) != 0) {
            close(fd);
            continue;
        }
        h.name[sizeof h.name - 1] = h.port[sizeof h.port - 1] = '\0';
        if (refuse(link, &h, link->list.refusal, sizeof link->list.refusal)) {
            move(fd, true, &link->list, sizeof link->list, clock_ns() + patience_ms * MS);
            close(fd);
            return error_set(err, LS_EINVAL, "joining: %s", link->list.refusal);
        }
        tune(fd);
        take_host(link, fd, &h);
        n_left--;
    }
    return LS_OK;
}

static ls_status connect_both(link_tcp *link, int host, const char *address, const char *port, int64_t until_ns,
                              ls_error *err) {
    char who[16];
    snprintf(who, sizeof who, "host %d", host);
    for (int channel = 0; channel < CHANNELS; channel++) {
        hello h;
        const int64_t soon = clock_ns() + SECOND; /* it was there for the first channel */
        TRY(connect_to(&link->fd[host][channel], address, port, who, channel == 0 ? until_ns : soon, err));
        if (host == 0 && channel == 0 && link->base.self + 1 < link->base.count) {
            host_place *self = &link->list.place[link->base.self];
            char ours[PORT_BYTES];
            address_of(link->fd[0][0], false, self->address, ours);
            TRY(listen_at(&link->listener, self->address, "0", err));
            address_of(link->listener, false, self->address, self->port);
        }
        h = hello_of(link, channel);
        if (!move(link->fd[host][channel], true, &h, sizeof h, until_ns)) {
            return error_set(err, LS_EABORTED, "joining: %s at %s left", who, address);
        }
    }
    return LS_OK;
}

/* Host 0's part: all come here, and get the list. */
static ls_status gather(link_tcp *link, const char *name, const char *port, int64_t until_ns, ls_error *err) {
    TRY(listen_at(&link->listener, name, port, err));
    char unused[PORT_BYTES];
    ls_status st = accept_all(link, until_ns, err);
    snprintf(link->list.place[0].address, ADDRESS_BYTES, "%s", name);
    for (int host = 1; host < link->base.count; host++) {
        const int fd = link->fd[host][CHANNEL_DATA];
        if (fd < 0) {
            continue;
        }
        address_of(fd, false, link->list.place[0].address, unused);
        if (st != LS_OK && link->list.refusal[0] == '\0' && err != NULL) {
            snprintf(link->list.refusal, sizeof link->list.refusal, "%.255s", err->text);
        }
        if (!move(fd, true, &link->list, sizeof link->list, until_ns) && st == LS_OK) {
            st = error_set(err, LS_EABORTED, "joining: host %d (%s) left", host, link->list.place[host].name);
        }
    }
    return st;
}

/* What the others do: to host 0 first, then to those before them, and wait for those behind. */
static ls_status go_there(link_tcp *link, const char *name, const char *port, int64_t until_ns, ls_error *err) {
    ls_status st = connect_both(link, 0, name, port, until_ns, err);
    if (st != LS_OK && link->fd[0][CHANNEL_DATA] < 0) {
        return st;
    }
    if (!move(link->fd[0][CHANNEL_DATA], false, &link->list, sizeof link->list,
              st == LS_OK ? until_ns : clock_ns() + SECOND)) {
        return st != LS_OK ? st
                           : error_set(err, LS_EABORTED,
                                       "joining: host 0 at %s port %s left, or waits for others still", name, port);
    }
    link->list.refusal[sizeof link->list.refusal - 1] = '\0';
    if (link->list.refusal[0] != '\0') {
        return error_set(err, LS_EABORTED, "joining: host 0 says: %s", link->list.refusal);
    }
    for (int host = 1; host < link->base.self; host++) {
        host_place *place = &link->list.place[host];
        place->address[ADDRESS_BYTES - 1] = place->port[PORT_BYTES - 1] = '\0';
        TRY(connect_both(link, host, place->address, place->port, until_ns, err));
    }
    return accept_all(link, until_ns, err);
}

/* "NAME:PORT", "[ADDRESS]:PORT" of IPv6. */
static ls_status split_address(const char *address, char *name, size_t n, const char **port, ls_error *err) {
    const char *colon = strrchr(address, ':');
    const bool in_brackets = colon != NULL && address[0] == '[' && colon[-1] == ']';
    const char *first = address + in_brackets;
    size_t length = colon == NULL ? 0 : (size_t)(colon - in_brackets - first);
    if (colon == NULL || length == 0 || length >= n || colon[1] == '\0') {
        return error_set(err, LS_EINVAL, "%s: the address of host 0 must be NAME:PORT", address);
    }
    memcpy(name, first, length);
    name[length] = '\0';
    *port = colon + 1;
    return LS_OK;
}

static ls_status meet(link_tcp *link, const char *address, int64_t until_ns, ls_error *err) {
    char name[256];
    const char *port = NULL;
    host_place *self = &link->list.place[link->base.self];
    TRY(split_address(address, name, sizeof name, &port, err));
    if (gethostname(self->name, sizeof self->name - 1) != 0) {
        snprintf(self->name, sizeof self->name, "?");
    }
    TRY(link->base.self == 0 ? gather(link, name, port, until_ns, err) : go_there(link, name, port, until_ns, err));
    for (int host = 0; host < link->base.count; host++) {
        const host_place *place = &link->list.place[host];
        snprintf(link->base.label[host], HOST_LABEL, "host %d (%.*s, %.*s)", host, NAME_BYTES - 1, place->name,
                 ADDRESS_BYTES - 1, place->address);
    }
    if (link->listener >= 0) {
        close(link->listener);
        link->listener = -1;
    }
    return LS_OK;
}

ls_status link_tcp_open(host_link **out, int self, int count, const char *address, int64_t until_ns, ls_error *err) {
    link_tcp *link = calloc(1, sizeof *link);
    if (link == NULL) {
        return error_set(err, LS_ENOMEM, "hosts: out of memory");
    }
    link->base = (host_link){
        .self = self, .count = count, .advance = tcp_advance, .rest = tcp_rest, .drop = tcp_drop, .close = tcp_close};
    memset(link->fd, -1, sizeof link->fd);
    link->listener = -1;
    ls_status st = meet(link, address, until_ns, err);
    if (st != LS_OK) {
        tcp_close(&link->base, false);
        return st;
    }
    *out = &link->base;
    return LS_OK;
}
