/* See machine.h. */
#include "base/machine.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "<root>/<path>", opened; a root of "/" or "" is the machine's own. NULL if it is not there. */
static FILE *open_below(const char *root, const char *path) {
    char full[4096];
    int n = snprintf(full, sizeof full, "%s/%s", strcmp(root, "/") == 0 ? "" : root, path);
    return n > 0 && (size_t)n < sizeof full ? fopen(full, "re") : NULL;
}

bool machine_read_line(const char *root, const char *path, char *out, size_t out_bytes) {
    out[0] = '\0';
    FILE *file = open_below(root, path);
    if (file == NULL) {
        return false;
    }
    bool read = fgets(out, (int)out_bytes, file) != NULL;
    fclose(file);
    out[read ? strcspn(out, "\n") : 0] = '\0';
    return read;
}

bool machine_chosen_word(const char *line, char *out, size_t out_bytes) {
    const char *from = strchr(line, '[');
    const char *to = from == NULL ? NULL : strchr(from, ']');
    out[0] = '\0';
    if (to == NULL || (size_t)(to - from) > out_bytes) {
        return false;
    }
    memcpy(out, from + 1, (size_t)(to - from - 1));
    out[to - from - 1] = '\0';
    return true;
}

bool machine_read_value(const char *root, const char *path, const char *key, char *out, size_t out_bytes) {
    FILE *file = open_below(root, path);
    char *line = NULL;
    size_t capacity = 0, n = strlen(key);
    bool found = false;
    out[0] = '\0';
    while (file != NULL && !found && getline(&line, &capacity, file) > 0) {
        size_t blanks = strncmp(line, key, n) == 0 ? strspn(line + n, " \t") : 0;
        char *value = line + n + blanks;
        found = strncmp(line, key, n) == 0 && (*value == ':' || *value == '=');
        if (found) {
            value += 1 + strspn(value + 1, " \t\"");
            value[strcspn(value, "\"\n")] = '\0';
            snprintf(out, out_bytes, "%s", value);
        }
    }
    free(line);
    if (file != NULL) {
        fclose(file);
    }
    return found;
}

/* The number behind `key` in a file of lines "<key> <number>". */
static int64_t keyed_number(const char *root, const char *path, const char *key) {
    FILE *file = open_below(root, path);
    char line[256];
    int64_t value = MACHINE_UNKNOWN;
    size_t n = strlen(key);
    while (file != NULL && value == MACHINE_UNKNOWN && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, key, n) == 0 && (line[n] == ' ' || line[n] == '\t')) {
            value = strtoll(line + n, NULL, 10);
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return value;
}

void machine_read_memory(const char *root, machine_memory *out) {
    int64_t total = keyed_number(root, "proc/meminfo", "MemTotal:");
    int64_t available = keyed_number(root, "proc/meminfo", "MemAvailable:");
    out->total_bytes = total > 0 ? total * 1024 : MACHINE_UNKNOWN;
    out->available_bytes = available >= 0 ? available * 1024 : MACHINE_UNKNOWN;
}

/* ---- Control groups ---- */

/* A whole number in a file of its own; "max" and v1's huge numbers are no limit (0). */
static int64_t single_number(const char *root, const char *folder, const char *name) {
    char path[4096], line[64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (!machine_read_line(root, path, line, sizeof line)) {
        return MACHINE_UNKNOWN;
    }
    const int64_t huge = (int64_t)1 << 60;
    int64_t value = strncmp(line, "max", 3) == 0 ? 0 : strtoll(line, NULL, 10);
    return value >= huge || value < 0 ? 0 : value;
}

static void take_cpus(machine_cgroup *out, double quota, double period) {
    double cpus = quota > 0 && period > 0 ? quota / period : 0;
    if (cpus > 0 && (out->cpus <= 0 || cpus < out->cpus)) {
        out->cpus = cpus;
    }
}

static void read_cpus(const char *root, const char *folder, bool v2, machine_cgroup *out) {
    char path[4096], line[64];
    snprintf(path, sizeof path, "%s/cpu.max", folder);
    if (v2 && machine_read_line(root, path, line, sizeof line)) {
        char *end;
        double quota = strtod(line, &end); /* "max 100000" gives 0: no limit */
        take_cpus(out, quota, strtod(end, NULL));
    } else if (!v2) {
        take_cpus(out, (double)single_number(root, folder, "cpu.cfs_quota_us"),
                  (double)single_number(root, folder, "cpu.cfs_period_us"));
    }
}

static void read_memory(const char *root, const char *folder, bool v2, machine_cgroup *out) {
    int64_t limit = single_number(root, folder, v2 ? "memory.max" : "memory.limit_in_bytes");
    if (limit <= 0 || (out->memory_bytes > 0 && limit >= out->memory_bytes)) {
        return;
    }
    char path[4096];
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    int64_t used = single_number(root, folder, v2 ? "memory.current" : "memory.usage_in_bytes");
    int64_t cache = keyed_number(root, path, v2 ? "file" : "total_cache");
    out->memory_bytes = limit;
    out->memory_used_bytes = used < 0 || cache < 0 ? MACHINE_UNKNOWN : used > cache ? used - cache : 0;
}

/* Reads a group and all above it. `group` is cut at its slashes on the way up; a path that is not there, as inside of a
 * container that sees only its own part of the tree, is passed by. */
static void walk_up(const char *root, const char *mount, char *group, bool v2, bool cpu, bool memory,
                    machine_cgroup *out) {
    for (;;) {
        char folder[4096];
        int n = snprintf(folder, sizeof folder, "sys/fs/cgroup%s%s", mount, group);
        if (n > 0 && (size_t)n < sizeof folder) {
            if (cpu) {
                read_cpus(root, folder, v2, out);
            }
            if (memory) {
                read_memory(root, folder, v2, out);
            }
        }
        char *slash = strrchr(group, '/');
        if (slash == NULL) {
            return;
        }
        *slash = '\0';
    }
}

static bool has_controller(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *c = list; c != NULL; c = strchr(c, ',')) {
        c += *c == ',';
        if (strncmp(c, name, n) == 0 && (c[n] == '\0' || c[n] == ',')) {
            return true;
        }
    }
    return false;
}

void machine_read_cgroup(const char *root, machine_cgroup *out) {
    *out = (machine_cgroup){MACHINE_UNKNOWN, MACHINE_UNKNOWN, MACHINE_UNKNOWN};
    FILE *file = open_below(root, "proc/self/cgroup");
    char line[4096];
    if (file == NULL) {
        return;
    }
    *out = (machine_cgroup){0};
    while (fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *list = strchr(line, ':'); /* "<number>:<controllers>:<path>"; v2 names no controllers */
        char *group = list == NULL ? NULL : strchr(list + 1, ':');
        if (group == NULL) {
            continue;
        }
        *group++ = '\0';
        list++;
        if (list[0] == '\0') {
            walk_up(root, "", group, true, true, true, out);
        } else if (has_controller(list, "cpu") || has_controller(list, "memory")) {
            char mount[256];
            snprintf(mount, sizeof mount, "/%.250s", list);
            walk_up(root, mount, group, false, has_controller(list, "cpu"), has_controller(list, "memory"), out);
        }
    }
    fclose(file);
}
