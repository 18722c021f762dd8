/* Requests: submitting, cancelling, results, the end of one. The public functions are described in lockstep.h. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/engine.h"

const char *ls_finish_name(ls_finish finish) {
    static const char *const names[] = {"running", "stop", "length", "error", "cancelled"};
    return (unsigned)finish < sizeof names / sizeof *names ? names[finish] : "unknown";
}

/* ---- Submitting ---- */

static ls_status make_request(ls_engine *engine, const ls_request_params *params, ls_request **out, ls_error *err) {
    token_list prompt = {0};
    ls_request *request = calloc(1, sizeof *request);
    ls_status st = LS_OK;
    if (request == NULL) {
        return error_set(err, LS_ENOMEM, "request: out of memory");
    }
    request->engine = engine;
    request->stop_string = request->stop_token = -1;
    request->first_step_ns = request->first_token_ns = request->finished_ns = -1;
    request->params = (ls_request_params)LS_REQUEST_PARAMS_INIT; /* what an older header does not have */
    memcpy(&request->params, params, params->struct_size);
    TRY_GOTO(request_read_prompt(engine->model, &request->params, &prompt, err), fail);
    TRY_GOTO(request_read_params(request, &prompt, err), fail);
    token_list_deinit(&prompt);
    request->submitted_ns = clock_ns();
    *out = request;
    return LS_OK;
fail:
    token_list_deinit(&prompt);
    request_destroy(request);
    return st;
}

ls_status ls_request_submit(ls_engine *engine, const ls_request_params *params, ls_request **out, ls_error *err) {
    TRY(check_struct_size("ls_request_params", params->struct_size, sizeof *params, err));
    ls_request *request = NULL;
    TRY(make_request(engine, params, &request, err));
    pthread_mutex_lock(&engine->lock);
    ls_status st = engine_check_alive(engine, err);
    if (st == LS_OK) {
        request->next_of_engine = engine->requests;
        if (engine->requests != NULL) {
            engine->requests->prev_of_engine = request;
        }
        engine->requests = request;
        scheduler_add(engine, request);
        driver_wake(engine);
    }
    pthread_mutex_unlock(&engine->lock);
    if (st != LS_OK) {
        request_destroy(request);
        return st;
    }
    *out = request;
    return LS_OK;
}

/* ---- The end ---- */

void request_finish(ls_request *request, ls_finish finish) {
    engine_stats *stats = &request->engine->stats;
    request->finish = finish;
    request->finished_ns = clock_ns();
    stats->finished++;
    stats->failed += finish == LS_FINISH_ERROR;
    stats->cancelled += finish == LS_FINISH_CANCELLED;
    scheduler_remove(request->engine, request, request->params.keep_cache && finish != LS_FINISH_ERROR);
    driver_tell(request->engine, request);
}

void request_destroy(ls_request *request) {
    logit_edits_deinit(&request->edits);
    answer_deinit(&request->live);
    answer_deinit(&request->view);
    text_buffer_deinit(&request->text);
    for (size_t i = 0; i < request->n_stop; i++) {
        free(request->stop[i]);
    }
    free(request->stop);
    free(request->allowed);
    free(request->ending);
    free(request->logprobs);
    free(request->token);
    free(request->page);
    free(request);
}

void ls_request_cancel(ls_request *request) {
    ls_engine *engine = request->engine;
    pthread_mutex_lock(&engine->lock);
    if (request->state != REQUEST_FINISHED && engine->in_step) {
        request->cancel = true; /* the driver sees to it when the step is over */
        engine->n_cancels++;
    } else if (request->state != REQUEST_FINISHED) {
        request_finish(request, LS_FINISH_CANCELLED);
    }
    pthread_mutex_unlock(&engine->lock);
}

/* Takes it out of every list. */
static void unlink_request(ls_engine *engine, ls_request *gone) {
    if (gone->state != REQUEST_FINISHED) {
        engine->stats.cancelled++;
        scheduler_remove(engine, gone, false);
    }
    scheduler_drop_kept(engine, gone);
    driver_forget(engine, gone);
    for (ls_request *other = engine->requests; other != NULL; other = other->next_of_engine) {
        if (other->params.reuse == gone) {
            other->params.reuse = NULL;
        }
    }
    if (gone->prev_of_engine != NULL) {
        gone->prev_of_engine->next_of_engine = gone->next_of_engine;
    } else {
        engine->requests = gone->next_of_engine;
    }
    if (gone->next_of_engine != NULL) {
        gone->next_of_engine->prev_of_engine = gone->prev_of_engine;
    }
}

void ls_request_free(ls_request **request) {
    ls_request *gone = *request;
    if (gone == NULL) {
        return;
    }
    ls_engine *engine = gone->engine;
    pthread_mutex_lock(&engine->lock);
    if (gone->state != REQUEST_FINISHED) { /* the step that runs may work on it: not on a finished one */
        if (engine->in_step) {
            gone->cancel = true;
            engine->n_cancels++;
        }
        pthread_mutex_unlock(&engine->lock);
        engine_lock_idle(engine);
    }
    unlink_request(engine, gone);
    pthread_mutex_unlock(&engine->lock);
    request_destroy(gone);
    *request = NULL;
}

void *ls_request_user(const ls_request *request) {
    return request->params.user; /* never changes */
}

/* ---- Results ---- */

/* The text of the answer is built when somebody asks for it, so that steps need not grow a buffer. */
static ls_status catch_up(ls_request *request, ls_error *err) {
    answer_text *view = &request->view;
    text_buffer scratch = {0};
    ls_status st = LS_OK;
    int stop_string = -1;
    bool finished = request->finish != LS_FINISH_NONE;
    while (request->n_prompt + view->n_tokens < request->n_tokens && !request->text_ended) {
        int i = request->n_prompt + view->n_tokens;
        bool shown = request->stop_token < 0 || i + 1 < request->n_tokens || request->params.include_stop;
        TRY_GOTO(answer_push(view, request->token[i], shown, &scratch, &request->text, &stop_string, err), fail);
    }
    if (finished && !request->text_ended) {
        TRY_GOTO(answer_flush(view, &scratch, &request->text, err), fail);
        request->text_ended = true;
    }
fail:
    text_buffer_deinit(&scratch);
    return st;
}

static int64_t us_between(int64_t from_ns, int64_t to_ns) {
    return to_ns < 0 ? -1 : (to_ns - from_ns) / 1000;
}

static ls_status get_result(ls_request *request, ls_result *out, ls_error *err) {
    TRY(catch_up(request, err));
    ls_result result = {
        .struct_size = out->struct_size,
        .finish = request->finish,
        .tokens = request->token,
        .n_prompt_tokens = (size_t)request->n_prompt,
        .n_tokens = (size_t)request->n_tokens,
        .text = request->text.data,
        .text_bytes = request->text.n,
        .logits_hash = request->logits_hash,
        .status = request->error.status,
        .error = request->error.text,
        .stop_string = request->stop_string >= 0 ? request->stop[request->stop_string] : NULL,
        .stop_token = request->stop_token,
        .preemptions = request->n_preempted,
        .n_reused_tokens = (size_t)request->n_reused,
        .queued_us = us_between(request->submitted_ns, request->first_step_ns),
        .first_token_us = us_between(request->submitted_ns, request->first_token_ns),
        .total_us = us_between(request->submitted_ns, request->finished_ns >= 0 ? request->finished_ns : clock_ns()),
    };
    memcpy(out, &result, out->struct_size < sizeof result ? out->struct_size : sizeof result);
    return LS_OK;
}

ls_status ls_request_get_result(ls_request *request, ls_result *out, ls_error *err) {
    TRY(check_struct_size("ls_result", out->struct_size, SIZE_MAX, err));
    pthread_mutex_lock(&request->engine->lock);
    ls_status st = get_result(request, out, err);
    pthread_mutex_unlock(&request->engine->lock);
    return st;
}
