/*
 * What the operating system says about this machine: memory, limits of control groups, small settings.
 *
 * Nothing here fails: a value that cannot be read is MACHINE_UNKNOWN, so that callers can say so. Readers take their
 * paths, so that tests can give them files of their own; "/" as root is the machine.
 */
#ifndef LS_BASE_MACHINE_H
#define LS_BASE_MACHINE_H

#include "base/error.h"

enum { MACHINE_UNKNOWN = -1 };

/* /proc/meminfo. */
typedef struct machine_memory {
    int64_t total_bytes;
    int64_t available_bytes; /* what new programs can have without swapping: free memory and caches */
} machine_memory;

/* What the control groups of this process (v1 and v2) allow: the tightest on the way to the root. */
typedef struct machine_cgroup {
    double cpus;               /* cores' worth of time; 0: no limit */
    int64_t memory_bytes;      /* 0: no limit */
    int64_t memory_used_bytes; /* of the group that has that limit, file cache left out; 0 without a limit */
} machine_cgroup;

void machine_read_memory(const char *root, machine_memory *out); /* <root>/proc/meminfo */
void machine_read_cgroup(const char *root, machine_cgroup *out); /* <root>/proc/self/cgroup, <root>/sys/fs/cgroup */

/* The first line of a file without its newline, at most out_bytes - 1 bytes; false, and out empty, if there is none. */
bool machine_read_line(const char *root, const char *path, char *out, size_t out_bytes);
/* What follows `key` in a file of lines "<key> : <value>", such as proc/cpuinfo; the first line that has it. */
bool machine_read_value(const char *root, const char *path, const char *key, char *out, size_t out_bytes);
/* The word in brackets: what "always [madvise] never" chooses. False, and out empty, without one. */
bool machine_chosen_word(const char *line, char *out, size_t out_bytes);

#endif
