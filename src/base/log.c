/* See log.h. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

void log_line(const ls_log *log, ls_log_level level, const char *format, ...) {
    if (log == NULL || log->fn == NULL || level > log->level) {
        return;
    }
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    log->fn(log->user, level, text);
}
