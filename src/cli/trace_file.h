/* An engine's trace as a Chrome trace file, for chrome://tracing and ui.perfetto.dev. */
#ifndef LS_CLI_TRACE_FILE_H
#define LS_CLI_TRACE_FILE_H

#include "base/error.h"

enum { TRACE_FILE_EVENTS = 1 << 17 }; /* ls_engine_params.trace_events: 4 MB a thread, 450 steps of 36 layers */

typedef struct trace_file trace_file;

/* Opens it for writing before anything is run, so that a bad path costs nothing. LS_EIO names the file. */
ls_status trace_file_open(trace_file **out, const char *path, ls_error *err);
/* Writes the whole trace. `model` is how it was called. Says on stderr if the beginning was lost. */
ls_status trace_file_write(trace_file *file, ls_engine *engine, const char *model, ls_error *err);
void trace_file_close(trace_file **file); /* accepts NULL inside */

#endif
