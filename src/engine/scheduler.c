/*
 * The scheduler: which rows make up the next step. By priority, then first come, first served.
 *
 *   1. Each running sequence that generates gets its decode row. If it needs a page and none is free, the sequence of the
 *      lowest priority, of several the one that was admitted last, is preempted: its pages go back, and it waits at the
 *      front of its equals to be computed again from its tokens. Of the highest priority the oldest is never preempted, and
 *      one sequence alone always fits (ls_request_submit checks), so every request finishes once no higher ones come.
 *      Before that, finished requests that keep their pages for a later one lose them, oldest first.
 *   2. The rest of the step's rows go to prompts: first of running sequences, then of waiting ones, which are admitted
 *      while there are pages for all their tokens and a free seat. While others wait behind it, a prompt takes no more than
 *      half of the rows that are left, so that a long one does not hold up short ones until it is through. What the prefix cache holds of an admitted one is not computed again.
 *
 * Decode rows come first in the step. What is computed again gives the same bits (ops.h section 3), so preemption and
 * chunk borders never show in the text.
 *
 * The step ahead (schedule_ahead) needs no tokens: the same sequences, each at its next position, but for those that the
 * step before it brings to their full length. It never preempts, admits or takes what finished requests keep, and where
 * one of these is due it is left to schedule(), which sees all that came of the step before.
 */
#include <string.h>

#include "backend/sample_math.h"
#include "base/clock.h"
#include "engine/engine.h"

/* Behind those of higher priority and, unless it goes first among them, behind its equals. */
static void enqueue(ls_engine *engine, ls_request *request, bool first_of_equals) {
    const int32_t priority = request->params.priority;
    ls_request **link = &engine->waiting;
    while (*link != NULL &&
           ((*link)->params.priority < priority || (!first_of_equals && (*link)->params.priority == priority))) {
        link = &(*link)->next_waiting;
    }
    request->state = REQUEST_WAITING;
    request->next_waiting = *link;
    *link = request;
}

void scheduler_add(ls_engine *engine, ls_request *request) {
    if (engine->n_running == 0 && engine->waiting == NULL) {
        engine->free_ns = 0; /* there was nothing to do until now */
    }
    enqueue(engine, request, false);
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
    if (n % LS_PAGE_TOKENS != 0 && !pages_own(&engine->pages, from->page[n / LS_PAGE_TOKENS])) {
        n -= n % LS_PAGE_TOKENS; /* others read what this one would write over */
    }
    int n_pages = pages_for(n);
    memcpy(request->page, from->page, (size_t)n_pages * sizeof *request->page);
    memmove(from->page, from->page + n_pages, (size_t)(from->n_pages - n_pages) * sizeof *from->page);
    from->n_pages -= n_pages;
    request->n_pages = n_pages;
    request->n_computed = request->n_reused = n;
    scheduler_drop_kept(engine, from);
}

/* ---- The prefix cache ---- */

void scheduler_remember(ls_engine *engine, ls_request *request) {
    while (engine->config.prefix_cache && (request->n_remembered + 1) * LS_PAGE_TOKENS <= request->n_computed) {
        int i = request->n_remembered++;
        request->remembered = pages_remember(&engine->pages, request->page[i], request->remembered,
                                             request->token + (ptrdiff_t)i * LS_PAGE_TOKENS);
    }
}

/* Whether the logits of every prompt position are asked for. */
static bool uses_prompt(const ls_request *request) {
    return request->params.prompt_logits || request->params.prompt_logprobs >= 0;
}

/* Begins a sequence with the pages that are there already. The last token is computed in any case: its logits are wanted. */
static void find_prefix(ls_engine *engine, ls_request *request) {
    bool first_time = request->first_step_ns < 0;
    if (!engine->config.prefix_cache || request->n_pages > 0 || uses_prompt(request)) {
        return;
    }
    while ((request->n_pages + 1) * LS_PAGE_TOKENS < request->n_tokens) {
        int32_t page = pages_find(&engine->pages, &request->remembered,
                                  request->token + (ptrdiff_t)request->n_pages * LS_PAGE_TOKENS);
        if (page < 0) {
            break;
        }
        request->page[request->n_pages++] = page;
    }
    request->n_remembered = request->n_pages;
    request->n_computed = request->n_pages * LS_PAGE_TOKENS;
    if (first_time) {
        request->n_reused = request->n_computed;
    }
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
    request->n_computed = request->n_remembered = 0;
    request->remembered = 0;
}

static void leave_waiting(ls_engine *engine, ls_request *request) {
    ls_request **link = &engine->waiting;
    while (*link != request) {
        link = &(*link)->next_waiting;
    }
    *link = request->next_waiting;
}

/* The step ahead may run: its row of this sequence becomes nobody's. What it writes to the cache lies behind the computed
 * tokens, and whoever gets these pages writes later. A step that is nobody's at all is forgotten. */
static void leave_ahead(ls_engine *engine, const ls_request *request) {
    step_batch *ahead = engine->ahead;
    int n_left = 0;
    for (int i = 0; ahead != NULL && i < ahead->step.n_seqs; i++) {
        if (ahead->request[i] == request) {
            ahead->request[i] = ahead->output[i].request = NULL;
        }
        n_left += ahead->request[i] != NULL;
    }
    engine->ahead = n_left > 0 ? ahead : NULL;
}

void scheduler_remove(ls_engine *engine, ls_request *request, bool keep) {
    leave_ahead(engine, request);
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
    enqueue(engine, request, true);
    request->n_preempted++;
    engine->stats.preemptions++;
}

static bool in_decode(const ls_request *request) {
    return request->n_tokens > request->n_prompt && request->n_computed == request->n_tokens - 1;
}

/* Whether the host has to see the logits of a row. */
static bool needs_logits(const ls_engine *engine, const ls_request_params *params, const ls_sample_params *how,
                         bool chooses) {
    bool as_they_came = how->n_edits == 0 && how->allowed == NULL;
    return !as_they_came || (sample_is_filtered(how) && !engine->config.draws_filtered) || how->n_top >= 0 ||
           params->on_logits != NULL || (params->hash_logits && chooses);
}

static void add_output(const ls_engine *engine, step_batch *batch, ls_request *request, int row, int pos) {
    int i = batch->step.n_out++;
    batch->out_row[i] = row;
    batch->output[i] = (step_output){.request = request, .chooses = pos == request->n_tokens - 1};
    ls_sample_params *sample = &batch->sample[i];
    if (batch->output[i].chooses) {
        logit_edits_prepare(&request->edits, request->token, request->n_prompt, request->n_tokens);
        *sample = request->sample;
        sample->n_edits = request->edits.n;
        sample->position = pos + 1;
    } else { /* nothing is drawn here: the cheapest offer */
        *sample = (ls_sample_params){.top_p = 1.0F, .n_top = request->params.prompt_logprobs};
    }
    batch->output[i].on_host = needs_logits(engine, &request->params, sample, batch->output[i].chooses);
}

/* Adds the next n rows of a sequence whose pages are there. */
static void add_rows(const ls_engine *engine, step_batch *batch, ls_request *request, int n, bool decode) {
    ls_step *step = &batch->step;
    int i_seq = step->n_seqs++;
    batch->request[i_seq] = request;
    batch->seq[i_seq] = (ls_step_seq){step->n_rows, n, request->n_computed, request->page};
    for (int i = 0; i < n; i++) {
        int row = step->n_rows++;
        int pos = request->n_computed + i;
        batch->token[row] = request->token[pos];
        batch->pos[row] = pos;
        batch->seq_of[row] = i_seq;
        bool wanted = uses_prompt(request) && pos >= request->n_logits_seen && pos < request->n_prompt;
        if (pos == request->n_tokens - 1 || wanted) {
            add_output(engine, batch, request, row, pos);
        }
    }
    *(decode ? &step->n_dec : &step->n_pre) += n;
}

/* Rows of a prompt that fit into the step: by rows, half of them if `others` are to follow, and by outputs if every row wants
 * logits. */
static int chunk_rows(const ls_engine *engine, const ls_step *step, const ls_request *request, bool others) {
    int n = request->n_tokens - request->n_computed;
    int rows_left = engine->config.m_max - step->n_rows;
    int outputs_left = engine->config.n_out_max - step->n_out;
    rows_left -= others ? rows_left / 2 : 0;
    n = n < rows_left ? n : rows_left;
    int limit = uses_prompt(request) ? outputs_left : n;
    n = n < limit ? n : limit;
    return outputs_left > 0 ? n : 0;
}

/* Of the running sequences from the first-th on, which have no row yet: the one to preempt. */
static ls_request *least_of(const ls_engine *engine, int first) {
    ls_request *least = engine->running[first];
    for (int i = first + 1; i < engine->n_running; i++) {
        if (engine->running[i]->params.priority >= least->params.priority) {
            least = engine->running[i];
        }
    }
    return least;
}

static void schedule_decode(ls_engine *engine, step_batch *batch) {
    for (int i = 0; i < engine->n_running; i++) {
        ls_request *request = engine->running[i];
        if (!in_decode(request)) {
            continue;
        }
        bool seated = true;
        while (seated && !take_pages(engine, request)) {
            ls_request *victim = least_of(engine, i);
            seated = victim != request;
            preempt(engine, victim);
        }
        if (seated) {
            add_rows(engine, batch, request, 1, true);
        } else {
            i--; /* another one has its place */
        }
    }
}

/* Prompts that may have rows of this step: those that run, and those of the queue that there are seats and pages for. */
static int count_prompts(const ls_engine *engine, bool may_admit) {
    int n = 0, n_seats = may_admit ? engine->config.max_seqs - engine->n_running : 0, n_pages = engine->pages.n_free;
    for (int i = 0; i < engine->n_running; i++) {
        n += !in_decode(engine->running[i]);
    }
    for (const ls_request *request = engine->waiting; request != NULL && n_seats > 0; request = request->next_waiting) {
        n_pages -= pages_for(request->n_tokens);
        n_seats = n_pages >= 0 ? n_seats - 1 : 0;
        n += n_pages >= 0;
    }
    return n;
}

/* Moves the first of the queue to the running ones, with its pages; false if there is no room for it now. */
static bool admit(ls_engine *engine) {
    ls_request *request = engine->waiting;
    take_over(engine, request);
    find_prefix(engine, request);
    if (!take_pages(engine, request)) {
        give_back(engine, request); /* what it took over: a waiting request holds no pages */
        request->n_reused = request->first_step_ns < 0 ? 0 : request->n_reused;
        return false;
    }
    leave_waiting(engine, request);
    request->state = REQUEST_RUNNING;
    if (request->first_step_ns < 0) {
        request->first_step_ns = clock_ns();
        engine->stats.prefix_query_tokens += engine->config.prefix_cache ? request->n_prompt : 0;
        engine->stats.prefix_hit_tokens += engine->config.prefix_cache ? request->n_reused : 0;
    }
    engine->running[engine->n_running++] = request;
    return true;
}

static void schedule_prompts(ls_engine *engine, step_batch *batch, bool may_admit) {
    int n_left = count_prompts(engine, may_admit);
    for (int i = 0; i < engine->n_running; i++) {
        ls_request *request = engine->running[i];
        int n = in_decode(request) ? 0 : chunk_rows(engine, &batch->step, request, --n_left > 0);
        if (n > 0) {
            add_rows(engine, batch, request, n, false);
        }
    }
    while (may_admit && engine->waiting != NULL && engine->n_running < engine->config.max_seqs) {
        ls_request *request = engine->waiting;
        bool others = --n_left > 0;
        if (chunk_rows(engine, &batch->step, request, others) == 0 || !admit(engine)) {
            return;
        }
        add_rows(engine, batch, request, chunk_rows(engine, &batch->step, request, others), false);
    }
}

static void begin(step_batch *batch) {
    batch->step = (ls_step){.token = batch->token,
                            .pos = batch->pos,
                            .seq_of = batch->seq_of,
                            .seq = batch->seq,
                            .out_row = batch->out_row,
                            .sample = batch->sample};
    batch->exchange_ns = 0;
}

void schedule(ls_engine *engine, step_batch *batch) {
    begin(batch);
    int64_t preemptions = engine->stats.preemptions;
    schedule_decode(engine, batch);
    /* Pages that a preemption freed belong to the sequences that decode, not to the next in the queue. */
    schedule_prompts(engine, batch, engine->stats.preemptions == preemptions);
}

/* ---- The step ahead ---- */

/* Whether the step is all of the running sequences, each to get a token that is drawn where the next step runs. Then
 * output i is sequence i's. Whether the host must draw does not change while a request runs. */
static bool draws_for_all(const ls_engine *engine, const step_batch *now) {
    int n_wanted = 0;
    for (int i = 0; i < now->step.n_out; i++) {
        const step_output *output = &now->output[i];
        if (!output->chooses || output->on_host) {
            return false;
        }
        n_wanted += output->request != NULL;
    }
    return n_wanted == engine->n_running && now->step.n_out == now->step.n_seqs;
}

/* Whether a sequence of the step still runs when it is over, as far as its length tells. */
static bool goes_on(const ls_request *request) {
    return request != NULL && request->n_tokens + 1 < request->token_capacity;
}

/* Adds the row behind sequence i's: its token is what the step draws for it. */
static void add_row_ahead(ls_engine *engine, const step_batch *now, int i, step_batch *next) {
    ls_request *request = now->request[i];
    int row = next->step.n_rows++, pos = request->n_tokens;
    pages_grow(&engine->pages, request->page, &request->n_pages, pages_for(pos + 1));
    next->token[row] = LS_TOKEN_DRAWN + i;
    next->pos[row] = pos;
    next->seq_of[row] = next->out_row[row] = row;
    next->seq[row] = (ls_step_seq){row, 1, pos, request->page};
    next->request[row] = request;
    next->output[row] = now->output[i];
    next->sample[row] = now->sample[i];
    next->sample[row].position++;
}

/* Whether the next request in the queue might be seated if its turn came now, n sequences going on. */
static bool may_seat(const ls_engine *engine, int n) {
    const ls_request *first = engine->waiting;
    bool room = engine->kept != NULL || (first != NULL && pages_for(first->n_tokens) <= engine->pages.n_free);
    return first != NULL && (n < engine->n_running || (n < engine->config.max_seqs && room));
}

bool schedule_ahead(ls_engine *engine, const step_batch *now, step_batch *next) {
    if (!engine->config.runs_ahead || !draws_for_all(engine, now)) {
        return false;
    }
    int n = 0, n_pages = 0;
    for (int i = 0; i < now->step.n_seqs; i++) {
        const ls_request *request = now->request[i];
        if (goes_on(request)) {
            n++;
            n_pages += pages_for(request->n_tokens + 1) - request->n_pages;
        }
    }
    if (n == 0 || n_pages > engine->pages.n_free || may_seat(engine, n)) {
        return false;
    }
    begin(next);
    for (int i = 0; i < now->step.n_seqs; i++) {
        if (goes_on(now->request[i])) {
            add_row_ahead(engine, now, i, next);
        }
    }
    next->step.n_dec = next->step.n_seqs = next->step.n_out = n;
    return true;
}
