/*
 * How far the loading of weights has come: many threads add what they have read, and every now and then one of them tells
 * the caller (ls_engine_params.progress_fn), one call at a time.
 */
#ifndef LS_ENGINE_LOAD_PROGRESS_H
#define LS_ENGINE_LOAD_PROGRESS_H

#include <pthread.h>
#include <stdatomic.h>

#include "model/weights.h"

typedef struct load_progress {
    ls_load_progress_fn fn; /* NULL: nobody wants to know */
    void *user;
    int64_t start_ns, total_bytes;
    _Atomic int64_t bytes, last_ns, next_ns; /* read so far, and when; when to tell again */
    pthread_mutex_t telling;
} load_progress;

void load_progress_begin(load_progress *progress, ls_load_progress_fn fn, void *user, int64_t total_bytes);
/* Called from any thread. */
void load_progress_add(load_progress *progress, int64_t bytes);
/* Tells once more if all was read. Microseconds from the beginning to the last addition. */
int64_t load_progress_end(load_progress *progress);

/* Bytes that a rank reads for `rows` rows of a weight: in the file's dtype, or, of a dummy, as they are made. */
int64_t load_bytes(const weight_slot *slot, const weight_raw *raw, int64_t rows);
/* Of all weights of a program. */
ls_status load_total_bytes(const ls_program *program, const weight_source *source, int64_t *out, ls_error *err);

#endif
