/*
 * See trace_file.h. The format is the Trace Event Format's JSON object form: one complete event ("ph": "X") for each of
 * ours, times in microseconds, a row ("tid") for the engine and for each thread of each rank, rows named and sorted by
 * metadata events.
 */
#include "cli/trace_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

struct trace_file {
    FILE *stream;
    char *path;
    int row; /* of the last event; -1 before the first */
};

ls_status trace_file_open(trace_file **out, const char *path, ls_error *err) {
    trace_file *file = calloc(1, sizeof *file);
    char *copy = strdup(path);
    if (file == NULL || copy == NULL) {
        free(file);
        free(copy);
        return error_set(err, LS_ENOMEM, "--trace: out of memory");
    }
    *file = (trace_file){fopen(path, "w"), copy, -1};
    if (file->stream == NULL) {
        ls_status st = error_set(err, LS_EIO, "--trace %s: cannot be written: %s", path, strerror(errno));
        trace_file_close(&file);
        return st;
    }
    *out = file;
    return LS_OK;
}

void trace_file_close(trace_file **file) {
    if (*file == NULL) {
        return;
    }
    if ((*file)->stream != NULL) {
        fclose((*file)->stream);
    }
    free((*file)->path);
    free(*file);
    *file = NULL;
}

static void write_event(void *user, const ls_trace_event *event) {
    enum { THREADS = 1024 }; /* at most, of each rank */
    trace_file *file = user;
    int row = event->rank < 0 ? 0 : 1 + event->rank * THREADS + event->thread;
    if (row != file->row) {
        char name[64] = "engine";
        if (event->rank >= 0) {
            snprintf(name, sizeof name, "rank %d thread %d", event->rank, event->thread);
        }
        fprintf(file->stream,
                ",\n{\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"%s\"}}"
                ",\n{\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":%d}}",
                row, name, row, row);
        file->row = row;
    }
    /* Names are the library's own words: there is nothing to escape. */
    fprintf(file->stream,
            ",\n{\"ph\":\"X\",\"pid\":1,\"tid\":%d,\"cat\":\"%s\",\"name\":\"%s\",\"ts\":%.3f,\"dur\":%.3f,\"args\":{",
            row, event->rank >= 0 ? "op" : "stage", event->name, event->start_us, event->duration_us);
    const char *comma = "";
    if (event->step >= 0) {
        fprintf(file->stream, "\"step\":%" PRId64 ",\"rows\":%d", event->step, event->rows);
        comma = ",";
    }
    if (event->layer >= 0) {
        fprintf(file->stream, "%s\"layer\":%d", comma, event->layer);
    }
    fputs("}}", file->stream);
}

ls_status trace_file_write(trace_file *file, ls_engine *engine, const char *model, ls_error *err) {
    char title[512];
    snprintf(title, sizeof title, "lockstep %s", model);
    json_t *name = json_string(title);
    json_t *process = json_pack("{s:s, s:i, s:s, s:{s:o}}", "ph", "M", "pid", 1, "name", "process_name", "args", "name",
                                name != NULL ? name : json_string("lockstep")); /* a path may be no UTF-8 */
    if (process == NULL) {
        return error_set(err, LS_ENOMEM, "--trace: out of memory");
    }
    fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", file->stream);
    json_dumpf(process, file->stream, JSON_COMPACT);
    json_decref(process);
    int64_t n_lost = 0;
    TRY(ls_engine_get_trace(engine, write_event, file, &n_lost, err));
    fprintf(file->stream, "\n],\"otherData\":{\"version\":\"%s\",\"lost_events\":%" PRId64 "}}\n", ls_version(),
            n_lost);
    bool failed = fflush(file->stream) != 0 || ferror(file->stream);
    if (failed) {
        return error_set(err, LS_EIO, "--trace %s: cannot be written: %s", file->path, strerror(errno));
    }
    if (n_lost > 0) {
        fprintf(stderr, "lockstep: %s begins late: %" PRId64 " older events were overwritten\n", file->path, n_lost);
    }
    return LS_OK;
}
