/* Times of launches, by events between them. See cuda_engine.h. */
#include <stdlib.h>

#include "base/clock.h"
#include "engine/cuda_engine.h"

static ls_status open_one(cuda_engine *cuda, int n_ops, ls_error *err) {
    cuda_profile *profile = calloc(1, sizeof *profile);
    cuda->profile = profile;
    if (profile == NULL) {
        return error_set(err, LS_ENOMEM, "profile: out of memory");
    }
    profile->event = calloc((size_t)n_ops + 1, sizeof(CUevent));
    profile->first = calloc((size_t)n_ops + 1, sizeof *profile->first);
    if (profile->event == NULL || profile->first == NULL) {
        return error_set(err, LS_ENOMEM, "profile: out of memory");
    }
    TRY(cuda_rank_enter(&cuda->rank, err));
    for (int i = 0; i <= n_ops; i++) {
        TRY(cuda_check(&cuda->rank, cuda->driver->cuEventCreate(&profile->event[i], CU_EVENT_DEFAULT),
                       "creating an event", err));
        profile->n_events++;
    }
    return LS_OK;
}

ls_status cuda_profile_open(ls_engine *engine, ls_error *err) {
    cuda_engine *first = engine_cuda(engine);
    int n_gpus = 0;
    for (int r = 0; r < first->n_ranks; r++) {
        if (first->of[r]->leader == first->of[r]) {
            TRY(open_one(first->of[r], engine->program[0]->n_ops, err));
            n_gpus++;
        }
    }
    first->profile->lines.n_runners = n_gpus;
    return cuda_rank_enter(&first->rank, err);
}

void cuda_profile_close(cuda_engine *cuda) {
    cuda_profile *profile = cuda->profile;
    if (profile == NULL) {
        return;
    }
    for (int i = 0; i < profile->n_events; i++) {
        cuda->driver->cuEventDestroy(profile->event[i]);
    }
    free(profile->event);
    free(profile->first);
    free(profile);
    cuda->profile = NULL;
}

void cuda_profile_begin(cuda_engine *cuda) {
    if (cuda->profile != NULL) {
        cuda->profile->n_launches = 0;
        cuda->profile->begin_ns = clock_ns();
    }
}

ls_status cuda_profile_mark(cuda_engine *cuda, int op, ls_error *err) {
    cuda_profile *profile = cuda->profile;
    if (profile == NULL) {
        return LS_OK;
    }
    int i = profile->n_launches++;
    profile->first[i] = op;
    return cuda_check(&cuda->rank, cuda->driver->cuEventRecord(profile->event[i], cuda->rank.stream), "timing a launch",
                      err);
}

/* A GPU's launches; those of the first one go to the trace and the timeline too. */
static ls_status end_one(ls_engine *engine, cuda_engine *cuda, step_batch *batch, int runner, ls_error *err) {
    cuda_profile *profile = cuda->profile;
    profile_lines *lines = &engine_cuda(engine)->profile->lines;
    trace_row *trace = runner == 0 ? trace_rank_row(engine, first_rank(engine), 0) : NULL;
    double begin_ms = 0;
    TRY(cuda_rank_enter(&cuda->rank, err));
    for (int i = 0; i + 1 < profile->n_launches; i++) {
        const int first = profile->first[i], last = profile->first[i + 1];
        float ms;
        TRY(cuda_check(&cuda->rank, cuda->driver->cuEventElapsedTime(&ms, profile->event[i], profile->event[i + 1]),
                       "timing a launch", err));
        if (trace != NULL) {
            trace_add(trace, first, batch->step.n_rows, profile->begin_ns + (int64_t)(begin_ms * 1e6),
                      profile->begin_ns + (int64_t)((begin_ms + (double)ms) * 1e6));
        }
        begin_ms += (double)ms;
        profile_add(lines, engine, batch, first, last, runner, (double)ms * 1000);
        if (runner == 0 && engine->program[0]->op[first].kind == OP_EXCHANGE) {
            batch->exchange_ns += (int64_t)((double)ms * 1e6);
        }
    }
    return LS_OK;
}

ls_status cuda_profile_end(ls_engine *engine, step_batch *batch, ls_error *err) {
    cuda_engine *first = engine_cuda(engine);
    int runner = 0;
    if (first->profile == NULL) {
        return LS_OK;
    }
    for (int r = 0; r < first->n_ranks; r++) {
        if (first->of[r]->leader == first->of[r]) {
            TRY(end_one(engine, first->of[r], batch, runner++, err));
        }
    }
    return cuda_rank_enter(&first->rank, err);
}
