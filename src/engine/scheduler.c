/*
 * The scheduler: which rows make up the next step. First come, first served.
 *
 *   1. Each running sequence that generates gets its decode row. If it needs a page and none is free, the sequence that
 *      was admitted last is preempted: its pages go back, and it waits at the front of the queue to be computed again
 *      from its tokens. The oldest is never preempted, and one sequence alone always fits (ls_request_submit checks), so
 *      every request finishes.
 *      Before that, finished requests that keep their pages for a later one lose them, oldest first.
 *   2. The rest of the step's rows go to prompts: first of running sequences, then of waiting ones, which are admitted
 *      while there are pages for all their tokens and a free seat.
 *
 * Decode rows come first in the step. What is computed again gives the same bits (ops.h section 3), so preemption and
 * chunk borders never show in the text.
 */
#include <string.h>

#include "base/clock.h"
#include "engine/engine.h"

void scheduler_add(ls_engine *engine, ls_request *request) {
    request->state = REQUEST_WAITING;
    request->next_waiting = NULL;
    *engine->waiting_end = request;
    engine->waiting_end = &request->next_waiting;
}

/* ---- Pages ---- */

void scheduler_drop_kept(ls_engine *engine, ls_request *request) {
    if (!request->is_kept) {
        return;
    }
    ls_request **link = &engine->kept;
    while (*link != request) {
        link = &(*link)->next_kept;
    }
    *link = request->next_kept;
    request->is_kept = false;
    request->n_computed = 0;
    pages_shrink(&engine->pages, request->page, &request->n_pages, 0);
}

static void keep_pages(ls_engine *engine, ls_request *request) {
    ls_request **link = &engine->kept;
    while (*link != NULL) {
        link = &(*link)->next_kept;
    }
    *link = request;
    request->next_kept = NULL;
    request->is_kept = true;
}

/* Pages for all of the request's tokens, if need be those that finished requests keep. */
static bool take_pages(ls_engine *engine, ls_request *request) {
    while (!pages_grow(&engine->pages, request->page, &request->n_pages, pages_for(request->n_tokens))) {
        if (engine->kept == NULL) {
            return false;
        }
        scheduler_drop_kept(engine, engine->kept);
    }
    return true;
}

/* Takes over the pages of the request that this one goes on from, as far as their tokens are the same. The last token of
 * the prompt is computed in any case: its logits are wanted. */
static void take_over(ls_engine *engine, ls_request *request) {
    ls_request *from = request->params.reuse;
    request->params.reuse = NULL;
    if (from == NULL || !from->is_kept || request->params.prompt_logits || request->params.prompt_logprobs >= 0) {
        return;
    }
    int n = 0;
    while (n < from->n_computed && n < request->n_prompt - 1 && from->token[n] == request->token[n]) {
        n++;
    }
    int n_pages = pages_for(n);
    memcpy(request->page, from->page, (size_t)n_pages * sizeof *request->page);
    memmove(from->page, from->page + n_pages, (size_t)(from->n_pages - n_pages) * sizeof *from->page);
    from->n_pages -= n_pages;
    request->n_pages = n_pages;
    request->n_computed = request->n_reused = n;
    scheduler_drop_kept(engine, from);
}

/* ---- Queues ---- */

static void leave_running(ls_engine *engine, ls_request *request) {
    int i = 0;
    while (engine->running[i] != request) {
        i++;
    }
    engine->n_running--;
    for (; i < engine->n_running; i++) {
        engine->running[i] = engine->running[i + 1];
    }
}

static void give_back(ls_engine *engine, ls_request *request) {
    pages_shrink(&engine->pages, request->page, &request->n_pages, 0);
    request->n_computed = 0;
}

static void leave_waiting(ls_engine *engine, ls_request *request) {
    ls_request **link = &engine->waiting;
    while (*link != request) {
        link = &(*link)->next_waiting;
    }
    *link = request->next_waiting;
    if (engine->waiting_end == &request->next_waiting) {
        engine->waiting_end = link;
    }
}

void scheduler_remove(ls_engine *engine, ls_request *request, bool keep) {
    if (request->state == REQUEST_RUNNING) {
        leave_running(engine, request);
        if (keep) {
            keep_pages(engine, request);
        } else {
            give_back(engine, request);
        }
    } else if (request->state == REQUEST_WAITING) {
        leave_waiting(engine, request);
    }
    request->state = REQUEST_FINISHED;
}

static void preempt(ls_engine *engine, ls_request *request) {
    leave_running(engine, request);
    give_back(engine, request);
    request->state = REQUEST_WAITING;
    request->next_waiting = engine->waiting;
    if (engine->waiting == NULL) {
        engine->waiting_end = &request->next_waiting;
    }
    engine->waiting = request;
    request->n_preempted++;
    engine->stats.preemptions++;
}

static bool in_decode(const ls_request *request) {
    return request->n_tokens > request->n_prompt && request->n_computed == request->n_tokens - 1;
}

/* Whether the logits of every prompt position are asked for. */
static bool uses_prompt(const ls_request *request) {
    return request->params.prompt_logits || request->params.prompt_logprobs >= 0;
}

static void add_output(ls_engine *engine, ls_request *request, int row, int pos) {
    step_batch *batch = &engine->batch;
    int i = batch->step.n_out++;
    batch->out_row[i] = row;
    batch->output[i] = (step_output){request, pos == request->n_tokens - 1};
    ls_sample_params *sample = &batch->sample[i];
    if (batch->output[i].chooses) {
        logit_edits_prepare(&request->edits, request->token, request->n_prompt, request->n_tokens);
        *sample = request->sample;
        sample->n_edits = request->edits.n;
        sample->position = pos + 1;
    } else { /* nothing is drawn here: the cheapest offer */
        *sample = (ls_sample_params){.top_p = 1.0F, .n_top = request->params.prompt_logprobs};
    }
}

/* Adds the next n rows of a sequence whose pages are there. */
static void add_rows(ls_engine *engine, ls_request *request, int n) {
    step_batch *batch = &engine->batch;
    ls_step *step = &batch->step;
    int i_seq = step->n_seqs++;
    batch->request[i_seq] = request;
    batch->seq[i_seq] = (ls_step_seq){step->n_rows, n, request->n_computed, request->page};
    bool decode = in_decode(request);
    for (int i = 0; i < n; i++) {
        int row = step->n_rows++;
        int pos = request->n_computed + i;
        batch->token[row] = request->token[pos];
        batch->pos[row] = pos;
        batch->seq_of[row] = i_seq;
        bool wanted = uses_prompt(request) && pos >= request->n_logits_seen && pos < request->n_prompt;
        if (pos == request->n_tokens - 1 || wanted) {
            add_output(engine, request, row, pos);
        }
    }
    *(decode ? &step->n_dec : &step->n_pre) += n;
}

/* Rows of a prompt that fit into the step: by rows, and by outputs if every row wants logits. */
static int chunk_rows(const ls_engine *engine, const ls_request *request) {
    const ls_step *step = &engine->batch.step;
    int n = request->n_tokens - request->n_computed;
    int rows_left = engine->config.m_max - step->n_rows;
    int outputs_left = engine->config.n_out_max - step->n_out;
    n = n < rows_left ? n : rows_left;
    int limit = uses_prompt(request) ? outputs_left : n;
    n = n < limit ? n : limit;
    return outputs_left > 0 ? n : 0;
}

static void schedule_decode(ls_engine *engine) {
    for (int i = 0; i < engine->n_running; i++) {
        ls_request *request = engine->running[i];
        if (!in_decode(request)) {
            continue;
        }
        bool seated = true;
        while (seated && !take_pages(engine, request)) {
            ls_request *last = engine->running[engine->n_running - 1];
            seated = last != request;
            preempt(engine, last);
        }
        if (seated) {
            add_rows(engine, request, 1);
        }
    }
}

static void schedule_prompts(ls_engine *engine, bool may_admit) {
    for (int i = 0; i < engine->n_running; i++) {
        ls_request *request = engine->running[i];
        int n = in_decode(request) ? 0 : chunk_rows(engine, request);
        if (n > 0) {
            add_rows(engine, request, n);
        }
    }
    while (may_admit && engine->waiting != NULL && engine->n_running < engine->config.max_seqs) {
        ls_request *request = engine->waiting;
        if (chunk_rows(engine, request) == 0) {
            return;
        }
        take_over(engine, request);
        if (!take_pages(engine, request)) {
            give_back(engine, request); /* what it took over: a waiting request holds no pages */
            request->n_reused = 0;
            return;
        }
        int n = chunk_rows(engine, request);
        leave_waiting(engine, request);
        request->state = REQUEST_RUNNING;
        request->first_step_ns = request->first_step_ns < 0 ? clock_ns() : request->first_step_ns;
        engine->running[engine->n_running++] = request;
        add_rows(engine, request, n);
    }
}

void schedule(ls_engine *engine) {
    step_batch *batch = &engine->batch;
    batch->step = (ls_step){.token = batch->token,
                            .pos = batch->pos,
                            .seq_of = batch->seq_of,
                            .seq = batch->seq,
                            .out_row = batch->out_row,
                            .sample = batch->sample};
    int64_t preemptions = engine->stats.preemptions;
    schedule_decode(engine);
    /* Pages that a preemption freed belong to the sequences that decode, not to the next in the queue. */
    schedule_prompts(engine, engine->stats.preemptions == preemptions);
}
