/* See trace.h. */
#include "engine/trace.h"

#include "engine/engine.h"

ls_status trace_place(trace_row **out, int n_rows, int capacity, ls_arena *arena, int tag, ls_error *err) {
    trace_row *row;
    trace_entry *entry;
    TRY(arena_take(arena, tag, (size_t)n_rows * sizeof *row, &row, err));
    TRY(arena_take(arena, tag, (size_t)n_rows * (size_t)capacity * sizeof *entry, &entry, err));
    for (int i = 0; row != NULL && i < n_rows; i++) {
        row[i] = (trace_row){.entry = entry + (int64_t)i * capacity, .capacity = capacity};
    }
    *out = row;
    return LS_OK;
}

trace_row *trace_rank_row(const ls_engine *engine, int rank, int thread) {
    if (engine->host.trace == NULL) {
        return NULL;
    }
    trace_row *row = &engine->rank[rank].trace[thread];
    row->step = engine->host.trace->step;
    return row;
}

int64_t trace_now(const ls_engine *engine) {
    return engine->host.trace != NULL ? clock_ns() : 0;
}

int64_t trace_stage_end(const ls_engine *engine, trace_stage stage, int n_rows, int64_t start_ns) {
    trace_row *row = engine->host.trace;
    if (row == NULL) {
        return 0;
    }
    int64_t now = clock_ns();
    trace_add(row, (int32_t)stage, n_rows, start_ns, now);
    row->step += stage == TRACE_STEP;
    return now;
}

/* ---- Reading it ---- */

typedef struct trace_reader {
    ls_trace_fn fn;
    void *user;
    int64_t origin_ns; /* time 0 */
    int64_t n_lost;
} trace_reader;

static void give_stage(const trace_reader *reader, const char *name, int64_t start_ns, int64_t us) {
    ls_trace_event event = {.name = name,
                            .rank = -1,
                            .thread = -1,
                            .layer = -1,
                            .step = -1,
                            .start_us = (double)(start_ns - reader->origin_ns) / 1000,
                            .duration_us = (double)us};
    reader->fn(reader->user, &event);
}

/* One row, oldest first. program is NULL for the engine's own. */
static void give_row(trace_reader *reader, const trace_row *row, const ls_program *program, int rank, int thread) {
    static const char *const stages[TRACE_STAGES] = {"step", "schedule", "run", "sample and publish"};
    int64_t first = row->n > row->capacity ? row->n - row->capacity : 0;
    reader->n_lost += first;
    for (int64_t i = first; i < row->n; i++) {
        const trace_entry *entry = &row->entry[i % row->capacity];
        const ls_op *op = program != NULL ? &program->op[entry->what] : NULL;
        ls_trace_event event = {.name = op != NULL ? op_kind_name(op->kind) : stages[entry->what],
                                .rank = rank,
                                .thread = thread,
                                .layer = op != NULL ? op->layer : -1,
                                .rows = entry->rows,
                                .step = entry->step,
                                .start_us = (double)(entry->start_ns - reader->origin_ns) / 1000,
                                .duration_us = (double)(entry->end_ns - entry->start_ns) / 1000};
        reader->fn(reader->user, &event);
    }
}

ls_status ls_engine_get_trace(ls_engine *engine, ls_trace_fn fn, void *user, int64_t *n_lost, ls_error *err) {
    if (engine->host.trace == NULL) {
        return error_set(err, LS_EINVAL, "the engine keeps no trace: open it with trace_events, or --trace");
    }
    engine_lock_idle(engine);
    trace_reader reader = {.fn = fn, .user = user, .origin_ns = engine->model->open_ns};
    give_stage(&reader, "load", engine->model->open_ns, engine->model->load_us);
    give_stage(&reader, "plan", engine->open_ns, engine->plan_us);
    give_stage(&reader, "shard", engine->open_ns + engine->plan_us * 1000, engine->shard_us);
    give_row(&reader, engine->host.trace, NULL, -1, -1);
    const int n_rows = engine->config.on_device ? 1 : engine->config.n_threads;
    for (int rank = first_rank(engine); rank < end_rank(engine); rank++) {
        for (int thread = 0; thread < n_rows; thread++) {
            give_row(&reader, &engine->rank[rank].trace[thread], engine->program[rank], rank, thread);
        }
    }
    pthread_mutex_unlock(&engine->lock);
    *n_lost = reader.n_lost;
    return LS_OK;
}
