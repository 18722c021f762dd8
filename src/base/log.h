/* Log lines go to one callback with a user pointer; there is no global log, every owner holds an ls_log. */
#ifndef LS_BASE_LOG_H
#define LS_BASE_LOG_H

#include "lockstep.h"

typedef struct ls_log {
    ls_log_fn fn; /* NULL: silent */
    void *user;
    ls_log_level level; /* lines above it are dropped before they are formatted */
} ls_log;

/* One line, at most 511 bytes, without a newline. `log` may be NULL. Thread safe if the callback is. */
void log_line(const ls_log *log, ls_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
