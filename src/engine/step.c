/*
 * The step: schedule, run, sample, publish. Everything else hangs off it; what it needs was allocated when the engine was
 * opened.
 *
 * One step behind. On a device the host's share of a step would leave the ranks idle, so where it can
 * (config.runs_ahead, schedule_ahead) the engine submits step n + 1 before it looks at the results of step n:
 *
 *     device   ... | step n              | step n + 1          | step n + 2
 *     host         | submit n+1, wait    | publish n, submit n+2, wait
 *
 * Step n + 1 takes the tokens that step n draws on the device (LS_TOKEN_DRAWN), and each of its sequences has room for that
 * token in its pages. It is `engine->ahead` from its submission until the next call of engine_step collects it; callers of
 * the engine see nothing of it. A sequence that ends in between (a stop, a cancel) leaves the step ahead: its row there is
 * computed for nobody. Its pages can be handed out at once, because steps run in order. Where step n + 1 depends on more
 * than those tokens (a row that the host draws, a prompt that waits, no free page) there is no step ahead, and what follows
 * is scheduled when step n has been published.
 */
#include <stdio.h>

#include "backend/sample_math.h"
#include "base/clock.h"
#include "engine/engine.h"
#include "engine/profile.h"
#include "engine/ranges.h"

/* ---- run ---- */

typedef struct step_job {
    ls_engine *engine;
    const ls_step *step;
    const ls_plan *plan;
    atomic_bool aborted;
    int64_t exchange_ns; /* of thread 0 of the first rank here */
} step_job;

static void run_rank(void *arg, int local, const ls_team *team) {
    step_job *job = arg;
    ls_engine *engine = job->engine;
    const int rank = first_rank(engine) + local;
    int64_t *exchange_ns = local == 0 && team->thread == 0 ? &job->exchange_ns : NULL;
    int64_t *op_ns = team->thread == 0 && engine->profile != NULL
                         ? engine->profile->op_ns + (ptrdiff_t)local * engine->program[0]->n_ops
                         : NULL;
    if (!plan_run(job->plan, &engine->rank[rank].bind, job->step, engine->exchange, team, exchange_ns, op_ns,
                  trace_rank_row(engine, rank, team->thread))) {
        atomic_store(&job->aborted, true);
    }
}

ls_status cpu_submit(ls_engine *engine, step_batch *batch, ls_error *err) {
    step_job job = {.engine = engine, .step = &batch->step};
    TRY(plan_get_or_build(&engine->plans, (plan_key){PLAN_WALK, 0}, &job.plan, err));
    TRY(host_step_send(engine, batch, err));
    rank_group_run(engine->group, run_rank, &job);
    batch->exchange_ns = job.exchange_ns;
    if (hosts_lost(engine->hosts)) {
        return hosts_why(engine->hosts, err);
    }
    if (atomic_load(&job.aborted)) {
        return error_set(err, LS_EABORTED, "step aborted: another rank failed");
    }
    cpu_profile_step(engine, batch);
    return host_step_gather(engine, batch, err);
}

ls_status cpu_collect(ls_engine *engine, step_batch *batch, ls_error *err) {
    (void)engine, (void)err; /* it ran when it was submitted */
    batch->ended_ns = clock_ns();
    return LS_OK;
}

static ls_status submit(ls_engine *engine, step_batch *batch, ls_error *err) {
    batch->submitted_ns = clock_ns();
    return engine->backend->submit(engine, batch, err);
}

/* The forward pass, without the lock: submits `now` unless it runs already, then the step ahead if there is one, and waits
 * for `now`. A step's time begins when it is submitted, or when the one before it has ended, and ends before the host reads
 * its results. Where no step is ahead, what lies between two steps is the host's time, and counts to the second of them. */
static ls_status run(ls_engine *engine, step_batch *now, bool runs_already, ls_error *err) {
    const int64_t free_ns = engine->free_ns;
    engine->in_step = true;
    pthread_mutex_unlock(&engine->lock);
    range_begin_rows(now->step.n_pre > 0 ? "prefill" : "decode", now->step.n_rows);
    ls_status st = runs_already ? LS_OK : submit(engine, now, err);
    if (st == LS_OK && engine->ahead != NULL) {
        st = submit(engine, engine->ahead, err);
    }
    if (st == LS_OK) {
        st = engine->backend->collect(engine, now, err);
    }
    range_end();
    now->host_ns = runs_already ? 0 : now->submitted_ns - free_ns;
    pthread_mutex_lock(&engine->lock);
    engine->in_step = false;
    pthread_cond_broadcast(&engine->step_over);
    TRY(st);
    stats_add_step(engine, now, now->ended_ns - (runs_already ? engine->ended_ns : now->submitted_ns));
    engine->ended_ns = now->ended_ns;
    engine->free_ns = engine->ahead != NULL ? 0 : now->ended_ns;
    engine->stats.ahead_steps += engine->ahead != NULL;
    return LS_OK;
}

/* ---- sample ---- */

static sampler_row output_row(const ls_engine *engine, int i_out) {
    sampler_row row = {.n_ranks = engine->config.n_ranks};
    for (int r = 0; r < row.n_ranks; r++) {
        shard_range vocab = shard_leaves(engine->model->spec.n_vocab, engine->rank[r].bind.group);
        row.part[r] = engine->rank[r].offers + i_out;
        row.logits[r] = engine->rank[r].logits + (int64_t)i_out * vocab.count;
        row.vocab_first[r] = (int)vocab.first;
        row.vocab_count[r] = (int)vocab.count;
    }
    return row;
}

/* One row of logits in the order of token ids. */
static const float *gather_logits(ls_engine *engine, const sampler_row *row) {
    for (int r = 0; r < row->n_ranks; r++) {
        memcpy(engine->host.row + row->vocab_first[r], row->logits[r],
               (size_t)row->vocab_count[r] * sizeof *engine->host.row);
    }
    return engine->host.row;
}

static uint64_t hash_floats(uint64_t hash, const float *value, int n) {
    for (int i = 0; i < n; i++) {
        hash = (hash ^ f32_bits(value[i])) * 0x100000001b3;
        hash ^= hash >> 29;
    }
    return hash;
}

/* ---- publish ---- */

/* Whether what a step computed for it still counts. */
static bool is_wanted(const ls_request *request) {
    return request != NULL && request->state != REQUEST_FINISHED;
}

static void emit(ls_request *request, int32_t token) {
    ls_engine *engine = request->engine;
    if (request->params.on_text != NULL) {
        request->params.on_text(request->params.user, request, token, engine->piece.data, engine->piece.n);
    }
}

static void clear_piece(ls_engine *engine) {
    engine->piece.n = 0;
    engine->piece.data[0] = '\0';
}

static void end_request(ls_request *request, ls_finish finish) {
    ls_engine *engine = request->engine;
    request_finish(request, finish);
    clear_piece(engine);
    if (request->watched && answer_flush(&request->live, &engine->scratch, &engine->piece, NULL) == LS_OK &&
        engine->piece.n > 0) {
        emit(request, -1);
    }
}

static bool ends_answer(const ls_request *request, int32_t token) {
    for (int i = 0; i < request->n_ending; i++) {
        if (request->ending[i] == token) {
            return true;
        }
    }
    return false;
}

static void publish_token(ls_request *request, int32_t token) {
    ls_engine *engine = request->engine;
    request->token[request->n_tokens++] = token;
    engine->stats.generated_tokens++;
    if (request->first_token_ns < 0) {
        request->first_token_ns = clock_ns();
    }
    if (engine->first_token_ns == 0) {
        engine->first_token_ns = request->first_token_ns;
    }
    logit_edits_push(&request->edits, token, true);
    bool ends = ends_answer(request, token);
    clear_piece(engine);
    if (request->watched) {
        bool shown = !ends || request->params.include_stop;
        if (answer_push(&request->live, token, shown, &engine->scratch, &engine->piece, &request->stop_string,
                        &request->error) != LS_OK) {
            end_request(request, LS_FINISH_ERROR);
            return;
        }
        emit(request, token);
    }
    if (ends) {
        request->stop_token = token;
        end_request(request, LS_FINISH_STOP);
    } else if (request->stop_string >= 0) {
        end_request(request, LS_FINISH_STOP);
    } else if (request->n_tokens == request->token_capacity) {
        end_request(request, LS_FINISH_LENGTH);
    } else {
        driver_tell(engine, request);
    }
}

/* Draws the next token of a sequence. */
static void choose(ls_engine *engine, const step_batch *batch, int i_out, const sampler_row *row) {
    ls_request *request = batch->output[i_out].request;
    int32_t token = sampler_pick(row, &batch->sample[i_out], engine->host.candidate, engine->host.row);
    if (token < 0) {
        error_set(&request->error, LS_EINVAL,
                  "every token is forbidden at position %d: logit_bias, bad_words, min_tokens and allowed_tokens leave "
                  "nothing to draw",
                  request->n_tokens);
        end_request(request, LS_FINISH_ERROR);
        return;
    }
    if (wants_logprobs(request, request->n_tokens)) {
        logprobs_store(request, row, request->n_tokens, token);
    }
    publish_token(request, token);
}

static void publish_output(ls_engine *engine, const step_batch *batch, int i_out) {
    const step_output *output = &batch->output[i_out];
    ls_request *request = output->request;
    if (!is_wanted(request)) {
        return; /* or failed in this step */
    }
    int pos = batch->pos[batch->out_row[i_out]];
    sampler_row row = output_row(engine, i_out);
    bool chooses = output->chooses && request->n_tokens < request->token_capacity;
    bool reports = request->params.on_logits != NULL;
    bool hashes = request->params.hash_logits && chooses;
    if (reports || hashes) {
        const float *logits = gather_logits(engine, &row);
        if (hashes) {
            request->logits_hash = hash_floats(request->logits_hash, logits, engine->model->spec.n_vocab);
        }
        if (reports) {
            request->params.on_logits(request->params.user, request, pos, logits, engine->model->spec.n_vocab);
        }
    }
    if (pos < request->n_prompt && pos >= request->n_logits_seen) {
        if (pos + 1 < request->n_prompt && wants_logprobs(request, pos + 1)) {
            logprobs_store(request, &row, pos + 1, request->token[pos + 1]);
        }
        request->n_logits_seen = pos + 1;
    }
    if (chooses) {
        choose(engine, batch, i_out, &row);
    } else if (output->chooses) {
        end_request(request, LS_FINISH_LENGTH); /* max_tokens 0: only the prompt was asked for */
    }
}

/* Rows where an infinity or NaN showed up fail their request, with the op and layer that first had it. */
static void publish_faults(ls_engine *engine, const step_batch *batch) {
    for (int m = 0; m < batch->step.n_rows; m++) {
        int first = 0, first_rank = 0;
        for (int r = 0; r < engine->config.n_ranks; r++) {
            int fault = atomic_exchange_explicit(&engine->host.fault[r][m], 0, memory_order_relaxed);
            if (fault != 0 && (first == 0 || fault < first)) {
                first = fault;
                first_rank = r;
            }
        }
        ls_request *request = batch->request[batch->seq_of[m]];
        if (first == 0 || !is_wanted(request)) {
            continue;
        }
        const ls_op *op = &engine->program[first_rank]->op[first - 1];
        char where[64] = "";
        if (op->layer >= 0) {
            snprintf(where, sizeof where, " of layer %d", op->layer);
        }
        error_set(&request->error, LS_ENUMERIC,
                  "infinity or NaN at position %d, first seen in op %s%s on rank %d: the model overflows %s%s",
                  batch->pos[m], op_kind_name(op->kind), where, first_rank, ls_dtype_name(engine->config.dtype),
                  engine->config.dtype == LS_F16    ? "; try --dtype bf16 or f32"
                  : engine->config.dtype == LS_BF16 ? "; try --dtype f32"
                                                    : "");
        end_request(request, LS_FINISH_ERROR);
    }
}

/* Requests that were cancelled while the step ran. */
static void see_to_cancelled(ls_engine *engine) {
    ls_request *next;
    for (ls_request *request = engine->requests; request != NULL && engine->n_cancels > 0; request = next) {
        next = request->next_of_engine;
        if (request->cancel && request->state != REQUEST_FINISHED) {
            end_request(request, LS_FINISH_CANCELLED);
        }
    }
    engine->n_cancels = 0;
}

static void publish(ls_engine *engine, const step_batch *batch) {
    for (int i = 0; i < batch->step.n_seqs; i++) {
        if (is_wanted(batch->request[i])) {
            batch->request[i]->n_computed += batch->seq[i].n_rows;
            scheduler_remember(engine, batch->request[i]);
        }
    }
    see_to_cancelled(engine);
    publish_faults(engine, batch);
    for (int i = 0; i < batch->step.n_out; i++) {
        publish_output(engine, batch, i);
    }
}

/* The ranks no longer agree on anything: every request fails with the reason, and so does whatever comes after. */
static void engine_die(ls_engine *engine, const ls_error *why) {
    engine->death = *why;
    engine->ahead = NULL;
    for (ls_request *request = engine->requests; request != NULL; request = request->next_of_engine) {
        if (request->state != REQUEST_FINISHED) {
            request->error = *why;
            end_request(request, LS_FINISH_ERROR);
        }
    }
}

ls_status engine_check_alive(const ls_engine *engine, ls_error *err) {
    return engine->death.status == LS_OK
               ? LS_OK
               : error_set(err, engine->death.status, "the engine has failed: %s", engine->death.text);
}

ls_status engine_step(ls_engine *engine, ls_error *err) {
    TRY(engine_check_alive(engine, err));
    if (engine->config.host > 0) {
        return error_set(err, LS_EINVAL, "host 0 steps; the others call ls_engine_follow");
    }
    int64_t begin = trace_now(engine);
    step_batch *now = engine->ahead != NULL ? engine->ahead : &engine->batch[0];
    step_batch *next = &engine->batch[now == &engine->batch[0]];
    const bool runs_already = now == engine->ahead;
    if (!runs_already) {
        engine->free_ns = engine->free_ns != 0 ? engine->free_ns : clock_ns();
        schedule(engine, now);
    }
    const int n_rows = now->step.n_rows;
    if (n_rows == 0) {
        return LS_IDLE;
    }
    engine->ahead = schedule_ahead(engine, now, next) ? next : NULL;
    int64_t scheduled = trace_stage_end(engine, TRACE_SCHEDULE, n_rows, begin);
    ls_error why = {0};
    if (run(engine, now, runs_already, &why) != LS_OK) {
        engine_die(engine, &why);
        return engine_check_alive(engine, err);
    }
    int64_t ran = trace_stage_end(engine, TRACE_RUN, n_rows, scheduled);
    publish(engine, now);
    trace_stage_end(engine, TRACE_PUBLISH, n_rows, ran);
    trace_stage_end(engine, TRACE_STEP, n_rows, begin);
    return LS_OK;
}
