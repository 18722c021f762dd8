/*
 * The trace: which thread did what when, for people who ask why a step took so long.
 *
 * A row of events for each thread of each rank (the ops it ran) and one for the engine (the stages of its steps). Rows are
 * rings of a size planned at the start (memory tag "trace"): the newest events overwrite the oldest, nothing is ever
 * allocated, and nobody shares a row, so nothing is locked either. An engine without a trace has no rows (NULL); what it
 * pays is one branch an op.
 *
 * An op's event ends where the thread's own part of it ends: the gap up to the next one is waiting for the team. Waiting
 * for other ranks is inside of "exchange".
 */
#ifndef LS_ENGINE_TRACE_H
#define LS_ENGINE_TRACE_H

#include "base/arena.h"
#include "base/clock.h"

typedef enum trace_stage { TRACE_STEP, TRACE_SCHEDULE, TRACE_RUN, TRACE_PUBLISH, TRACE_STAGES } trace_stage;

typedef struct trace_entry {
    int64_t start_ns, end_ns;
    int32_t step; /* wraps round after 2^31 */
    int32_t what; /* index of an op in the program, or of the engine's row a trace_stage */
    int32_t rows;
    int32_t unused;
} trace_entry;

typedef struct trace_row {
    _Alignas(ARENA_ALIGN) trace_entry *entry; /* [capacity] ring */
    int64_t n;                                /* ever added: entry n lies at n % capacity */
    int32_t capacity;
    int32_t step; /* that is being run */
} trace_row;

/* Carves n_rows rows of `capacity` entries each; *out is their array, NULL on a counting arena. */
ls_status trace_place(trace_row **out, int n_rows, int capacity, ls_arena *arena, int tag, ls_error *err);

static inline void trace_add(trace_row *row, int32_t what, int32_t rows, int64_t start_ns, int64_t end_ns) {
    row->entry[row->n % row->capacity] = (trace_entry){start_ns, end_ns, row->step, what, rows, 0};
    row->n++;
}

struct ls_engine;

/* The row of a rank's thread, ready for the ops of this step; NULL without a trace. */
trace_row *trace_rank_row(const struct ls_engine *engine, int rank, int thread);
/* Notes a stage of a step of n_rows that began at start_ns and ends now; returns now. TRACE_STEP comes last and ends the
 * step. Without a trace it does nothing and returns 0, as does trace_now. */
int64_t trace_stage_end(const struct ls_engine *engine, trace_stage stage, int n_rows, int64_t start_ns);
int64_t trace_now(const struct ls_engine *engine);

#endif
