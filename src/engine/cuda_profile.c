/* Times of launches, by events between them. See cuda_engine.h. */
#include <stdlib.h>

#include "base/clock.h"
#include "engine/cuda_engine.h"

ls_status cuda_profile_open(cuda_engine *cuda, int n_ops, ls_error *err) {
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
    for (int i = 0; i <= n_ops; i++) {
        TRY(cuda_check(&cuda->rank, cuda->driver->cuEventCreate(&profile->event[i], CU_EVENT_DEFAULT),
                       "creating an event", err));
        profile->n_events++;
    }
    return LS_OK;
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

ls_status cuda_profile_end(ls_engine *engine, step_batch *batch, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    cuda_profile *profile = cuda->profile;
    trace_row *trace = trace_rank_row(engine, 0, 0);
    double begin_ms = 0;
    for (int i = 0; profile != NULL && i + 1 < profile->n_launches; i++) {
        float ms;
        TRY(cuda_check(&cuda->rank, cuda->driver->cuEventElapsedTime(&ms, profile->event[i], profile->event[i + 1]),
                       "timing a launch", err));
        if (trace != NULL) {
            trace_add(trace, profile->first[i], batch->step.n_rows, profile->begin_ns + (int64_t)(begin_ms * 1e6),
                      profile->begin_ns + (int64_t)((begin_ms + (double)ms) * 1e6));
        }
        begin_ms += (double)ms;
        profile_add(&profile->lines, engine, batch, profile->first[i], profile->first[i + 1], (double)ms * 1000);
        batch->exchange_ns +=
            engine->program[0]->op[profile->first[i]].kind == OP_EXCHANGE ? (int64_t)((double)ms * 1e6) : 0;
    }
    return LS_OK;
}
