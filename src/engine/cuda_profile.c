/* Times of launches, by events between them. See cuda_engine.h. */
#include <stdio.h>
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

/* "exchange+qkv": the kinds of ops [first, last), repetitions left out. */
static void name_ops(const ls_program *program, int first, int last, char *out, size_t out_bytes) {
    size_t n = 0;
    out[0] = '\0';
    for (int i = first; i < last && n < out_bytes; i++) {
        n += (size_t)snprintf(out + n, out_bytes - n, "%s%s", i > first ? "+" : "", op_kind_name(program->op[i].kind));
    }
}

static double bytes_of(const ls_engine *engine, const step_batch *batch, const ls_op *op) {
    if (op->kind != OP_ATTN) {
        return (double)op->weight_bytes;
    }
    int64_t tokens = 0;
    for (int i = 0; i < batch->step.n_seqs; i++) {
        int64_t full = (int64_t)batch->seq[i].n_past + batch->seq[i].n_rows;
        int64_t window = op->attn.window_tokens;
        tokens += window > 0 && window < full ? window : full;
    }
    return (double)(tokens * 2 * op->attn.n_kv_loc * op->attn.d_head *
                    (int64_t)ls_dtype_bytes(engine->config.kv_dtype));
}

static ls_profile_line *line_of(cuda_profile *profile, const char *ops, bool decode) {
    for (int i = 0; i < profile->n_lines; i++) {
        if (profile->line[i].decode == decode && strcmp(profile->line[i].ops, ops) == 0) {
            return &profile->line[i];
        }
    }
    if (profile->n_lines == PROFILE_LINES) {
        return &profile->line[PROFILE_LINES - 1];
    }
    ls_profile_line *line = &profile->line[profile->n_lines++];
    snprintf(line->ops, sizeof line->ops, "%s", ops);
    line->decode = decode;
    return line;
}

ls_status cuda_profile_end(ls_engine *engine, step_batch *batch, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    cuda_profile *profile = cuda->profile;
    const ls_program *program = engine->program[0];
    trace_row *trace = trace_rank_row(engine, 0, 0);
    double begin_ms = 0;
    for (int i = 0; profile != NULL && i + 1 < profile->n_launches; i++) {
        char ops[sizeof profile->line->ops];
        float ms;
        TRY(cuda_check(&cuda->rank, cuda->driver->cuEventElapsedTime(&ms, profile->event[i], profile->event[i + 1]),
                       "timing a launch", err));
        if (trace != NULL) {
            trace_add(trace, profile->first[i], batch->step.n_rows, profile->begin_ns + (int64_t)(begin_ms * 1e6),
                      profile->begin_ns + (int64_t)((begin_ms + (double)ms) * 1e6));
        }
        begin_ms += (double)ms;
        name_ops(program, profile->first[i], profile->first[i + 1], ops, sizeof ops);
        ls_profile_line *line = line_of(profile, ops, batch->step.n_pre == 0);
        line->launches++;
        line->total_us += (double)ms * 1000;
        batch->exchange_ns += program->op[profile->first[i]].kind == OP_EXCHANGE ? (int64_t)((double)ms * 1e6) : 0;
        for (int op = profile->first[i]; op < profile->first[i + 1]; op++) {
            line->bytes += bytes_of(engine, batch, &program->op[op]);
        }
    }
    return LS_OK;
}
