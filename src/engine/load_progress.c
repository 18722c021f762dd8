/* See load_progress.h. */
#include "engine/load_progress.h"

#include "base/clock.h"

static const int64_t INTERVAL_NS = 100000000;

void load_progress_begin(load_progress *progress, ls_load_progress_fn fn, void *user, int64_t total_bytes) {
    progress->fn = fn;
    progress->user = user;
    progress->start_ns = clock_ns();
    progress->total_bytes = total_bytes;
    atomic_init(&progress->bytes, 0);
    atomic_init(&progress->last_ns, progress->start_ns);
    atomic_init(&progress->next_ns, progress->start_ns + INTERVAL_NS);
    pthread_mutex_init(&progress->telling, NULL);
}

/* With the lock. */
static void tell(const load_progress *progress, int64_t now_ns) {
    ls_load_progress report = {.struct_size = sizeof report,
                               .bytes = atomic_load(&progress->bytes),
                               .total_bytes = progress->total_bytes,
                               .elapsed_us = (now_ns - progress->start_ns) / 1000};
    progress->fn(progress->user, &report);
}

void load_progress_add(load_progress *progress, int64_t bytes) {
    int64_t now = clock_ns();
    atomic_fetch_add(&progress->bytes, bytes);
    atomic_store(&progress->last_ns, now);
    if (progress->fn != NULL && now >= atomic_load(&progress->next_ns) &&
        pthread_mutex_trylock(&progress->telling) == 0) {
        if (now >= atomic_load(&progress->next_ns)) {
            atomic_store(&progress->next_ns, now + INTERVAL_NS);
            tell(progress, now);
        }
        pthread_mutex_unlock(&progress->telling);
    }
}

int64_t load_progress_end(load_progress *progress) {
    int64_t last = atomic_load(&progress->last_ns);
    if (progress->fn != NULL && atomic_load(&progress->bytes) == progress->total_bytes) {
        tell(progress, last);
    }
    pthread_mutex_destroy(&progress->telling);
    return (last - progress->start_ns) / 1000;
}

int64_t load_bytes(const weight_slot *slot, const weight_raw *raw, int64_t rows) {
    const ls_dtype dtype = raw->tensor != NULL ? raw->dtype : slot->format;
    return rows * slot->col.count * (int64_t)ls_dtype_bytes(dtype);
}

ls_status load_total_bytes(const ls_program *program, const weight_source *source, int64_t *out, ls_error *err) {
    int64_t total = 0;
    for (int i = 0; i < program->n_weights; i++) {
        weight_raw raw;
        TRY(weight_raw_find(program, source, i, &raw, err));
        total += load_bytes(&program->weight[i], &raw, program->weight[i].row.count);
    }
    *out = total;
    return LS_OK;
}
