/*
 * What carries bytes between the processes of a run: TCP (link_tcp.c) or MPI (link_mpi.c). One table of functions; who
 * waits for how long, and what it means if nothing comes, is hosts.c's business.
 *
 * Two channels join each pair of processes: one for data, one for notes. On a channel bytes arrive in the order in which
 * they were sent. Each channel is used by one thread at a time, both at once.
 */
#ifndef LS_RANK_LINK_H
#define LS_RANK_LINK_H

#include "backend/ops.h"

enum { HOSTS_MAX = LS_MAX_RANKS, HOST_LABEL = 96 };

typedef enum host_channel { CHANNEL_DATA, CHANNEL_NOTES, CHANNELS } host_channel;

/* Bytes on their way to or from another process. The memory stays where it is until done == bytes. */
typedef struct host_transfer {
    int host; /* the other one */
    bool sends;
    void *data;
    size_t bytes;
    size_t done;
    void *request; /* the link's own, NULL at first */
} host_transfer;

typedef struct host_link host_link;

struct host_link {
    int self, count;
    char label[HOSTS_MAX][HOST_LABEL]; /* "host 1 (name, address)" */
    /* Moves what can be moved at once and never waits. LS_EABORTED: the other process is gone. */
    ls_status (*advance)(host_link *link, host_channel channel, host_transfer *transfer, ls_error *err);
    /* Sleeps until one of these may be advanced, at most so long. */
    void (*rest)(host_link *link, host_channel channel, host_transfer *const *pending, int n, int64_t timeout_ns);
    /* Gives up a transfer of the data channel: its memory is left alone from then on. The link may be dead after that. */
    void (*drop)(host_link *link, host_transfer *transfer);
    /* in_order: all processes do it, and nothing is on its way. */
    void (*close)(host_link *link, bool in_order);
};

/* Each returns when all processes have met, or at that time of clock_ns(). */
ls_status link_tcp_open(host_link **out, int self, int count, const char *address, int64_t until_ns, ls_error *err);
ls_status link_mpi_open(host_link **out, int64_t until_ns, ls_error *err);

#endif
