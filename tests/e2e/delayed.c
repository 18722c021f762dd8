/* See delayed.h. */
#include "delayed.h"

#include <pthread.h>
#include <unistd.h>

enum { SLOTS = 2 };

/* One step: its input as it was submitted, and what came of it. */
typedef struct slot {
    step_batch input; /* arrays of our own */
    int32_t *page;    /* [n_pages] of all sequences */
    bool pending;     /* submitted, and not over */
    ls_status status;
    ls_error error;
    ls_sample_part *offers[LS_MAX_RANKS]; /* [n_out_max] */
    float *logits[LS_MAX_RANKS];          /* [n_out_max][V_loc] */
    atomic_int *fault[LS_MAX_RANKS];      /* [m_max] */
} slot;

typedef struct delayed {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool closing;
    atomic_int step_us;
    slot slot[SLOTS]; /* of engine->batch[i] */
    int queue[SLOTS], n_queued;
    /* The device's own. */
    int32_t *drawn; /* [n_out_max] by the last step */
    const ls_sample_part *offers[LS_MAX_RANKS];
    const float *logits[LS_MAX_RANKS];
    atomic_int *fault[LS_MAX_RANKS];
} delayed;

static void *take(size_t n, size_t bytes) {
    void *memory = calloc(n + 1, bytes);
    assert_non_null(memory);
    return memory;
}

static size_t vocab_of(const ls_engine *engine, int rank) {
    return (size_t)shard_leaves(engine->model->spec.n_vocab, engine->rank[rank].bind.group).count;
}

/* ---- The device's thread ---- */

/* As `sample` on a GPU: the token drawn from a whole row as it came, -1 where the host draws. */
static int32_t draw(const ls_engine *engine, const delayed *device, const ls_sample_params *how, int i_out) {
    sampler_row row = {.n_ranks = engine->config.n_ranks};
    for (int r = 0; r < row.n_ranks; r++) {
        row.part[r] = device->offers[r] + i_out;
    }
    bool on_host = how->n_edits > 0 || how->allowed != NULL ||
                   (how->temperature != 0 && (how->top_k > 0 || how->top_p < 1 || how->min_p > 0));
    return on_host ? -1 : sampler_pick(&row, how, NULL, NULL);
}

static void run_step(ls_engine *engine, slot *s) {
    delayed *device = engine->device;
    const ls_step *step = &s->input.step;
    for (int m = 0; m < step->n_rows; m++) {
        int32_t *token = &s->input.token[m];
        if (token_is_drawn(*token)) {
            *token = device->drawn[*token - LS_TOKEN_DRAWN];
            *token = *token < 0 ? 0 : *token; /* of a row that failed */
        }
    }
    usleep((useconds_t)atomic_load(&device->step_us));
    s->status = backend_cpu.submit(engine, &s->input, &s->error);
    for (int i = 0; i < step->n_out; i++) {
        device->drawn[i] = draw(engine, device, &step->sample[i], i);
    }
    for (int r = 0; r < engine->config.n_ranks; r++) {
        memcpy(s->offers[r], device->offers[r], (size_t)step->n_out * sizeof *s->offers[r]);
        memcpy(s->logits[r], device->logits[r], (size_t)step->n_out * vocab_of(engine, r) * sizeof *s->logits[r]);
        for (int m = 0; m < step->n_rows; m++) {
            atomic_store(&s->fault[r][m], atomic_exchange(&device->fault[r][m], 0));
        }
    }
}

static void *run_steps(void *arg) {
    ls_engine *engine = arg;
    delayed *device = engine->device;
    pthread_mutex_lock(&device->lock);
    while (!device->closing || device->n_queued > 0) {
        if (device->n_queued == 0) {
            pthread_cond_wait(&device->changed, &device->lock);
            continue;
        }
        slot *s = &device->slot[device->queue[0]];
        device->queue[0] = device->queue[--device->n_queued];
        pthread_mutex_unlock(&device->lock);
        run_step(engine, s);
        pthread_mutex_lock(&device->lock);
        s->pending = false;
        pthread_cond_broadcast(&device->changed);
    }
    pthread_mutex_unlock(&device->lock);
    return NULL;
}

/* ---- The back end ---- */

static ls_status delayed_open(ls_engine *engine, const ls_engine_params *params, int ordinal, ls_error *err) {
    (void)ordinal, (void)err;
    engine->config.runs_ahead = wants_async_scheduling(params);
    return LS_OK;
}

static ls_status delayed_load(ls_engine *engine, ls_error *err) {
    TRY(cpu_load(engine, err));
    const engine_config *config = &engine->config;
    const size_t m = (size_t)config->m_max, n_out = (size_t)config->n_out_max, n_seqs = (size_t)config->max_seqs;
    delayed *device = take(1, sizeof *device);
    engine->device = device;
    device->drawn = take(n_out, sizeof *device->drawn);
    for (int i = 0; i < SLOTS; i++) {
        slot *s = &device->slot[i];
        s->input = (step_batch){.token = take(m, sizeof(int32_t)),
                                .pos = take(m, sizeof(int32_t)),
                                .seq_of = take(m, sizeof(int32_t)),
                                .seq = take(n_seqs, sizeof(ls_step_seq)),
                                .out_row = take(n_out, sizeof(int32_t)),
                                .sample = take(n_out, sizeof(ls_sample_params))};
        s->page = take((size_t)config->n_pages, sizeof *s->page);
        for (int r = 0; r < config->n_ranks; r++) {
            s->offers[r] = take(n_out, sizeof *s->offers[r]);
            s->logits[r] = take(n_out * vocab_of(engine, r), sizeof *s->logits[r]);
            s->fault[r] = take(m, sizeof *s->fault[r]);
        }
    }
    for (int r = 0; r < config->n_ranks; r++) {
        device->offers[r] = engine->rank[r].offers;
        device->logits[r] = engine->rank[r].logits;
        device->fault[r] = engine->rank[r].bind.fault;
    }
    assert_int_equal(pthread_mutex_init(&device->lock, NULL), 0);
    assert_int_equal(pthread_cond_init(&device->changed, NULL), 0);
    assert_int_equal(pthread_create(&device->thread, NULL, run_steps, engine), 0);
    return LS_OK;
}

static void wait_for_slot(delayed *device, const slot *s) {
    while (s->pending) {
        pthread_cond_wait(&device->changed, &device->lock);
    }
}

static void copy_input(slot *s, const ls_step *step) {
    step_batch *to = &s->input;
    int n_pages = 0;
    memcpy(to->token, step->token, (size_t)step->n_rows * sizeof *to->token);
    memcpy(to->pos, step->pos, (size_t)step->n_rows * sizeof *to->pos);
    memcpy(to->seq_of, step->seq_of, (size_t)step->n_rows * sizeof *to->seq_of);
    memcpy(to->out_row, step->out_row, (size_t)step->n_out * sizeof *to->out_row);
    memcpy(to->sample, step->sample, (size_t)step->n_out * sizeof *to->sample);
    for (int i = 0; i < step->n_seqs; i++) {
        int n = pages_for(step->seq[i].n_past + step->seq[i].n_rows);
        to->seq[i] = step->seq[i];
        to->seq[i].page = s->page + n_pages;
        memcpy(s->page + n_pages, step->seq[i].page, (size_t)n * sizeof *s->page);
        n_pages += n;
    }
    to->step = *step;
    to->step.token = to->token;
    to->step.pos = to->pos;
    to->step.seq_of = to->seq_of;
    to->step.seq = to->seq;
    to->step.out_row = to->out_row;
    to->step.sample = to->sample;
}

static ls_status delayed_submit(ls_engine *engine, step_batch *batch, ls_error *err) {
    (void)err;
    delayed *device = engine->device;
    int i = (int)(batch - engine->batch);
    pthread_mutex_lock(&device->lock);
    wait_for_slot(device, &device->slot[i]);
    copy_input(&device->slot[i], &batch->step);
    device->slot[i].pending = true;
    device->queue[device->n_queued++] = i;
    pthread_cond_broadcast(&device->changed);
    pthread_mutex_unlock(&device->lock);
    return LS_OK;
}

static ls_status delayed_collect(ls_engine *engine, step_batch *batch, ls_error *err) {
    delayed *device = engine->device;
    slot *s = &device->slot[batch - engine->batch];
    pthread_mutex_lock(&device->lock);
    wait_for_slot(device, s);
    pthread_mutex_unlock(&device->lock);
    batch->ended_ns = clock_ns();
    for (int r = 0; r < engine->config.n_ranks; r++) {
        engine->rank[r].offers = s->offers[r];
        engine->rank[r].logits = s->logits[r];
        engine->host.fault[r] = s->fault[r];
    }
    if (s->status != LS_OK && err != NULL) {
        *err = s->error;
    }
    return s->status;
}

static void delayed_close(ls_engine *engine) {
    delayed *device = engine->device;
    if (device == NULL) {
        return;
    }
    pthread_mutex_lock(&device->lock);
    device->closing = true;
    pthread_cond_broadcast(&device->changed);
    pthread_mutex_unlock(&device->lock);
    pthread_join(device->thread, NULL);
    pthread_cond_destroy(&device->changed);
    pthread_mutex_destroy(&device->lock);
    for (int i = 0; i < SLOTS; i++) {
        slot *s = &device->slot[i];
        for (int r = 0; r < engine->config.n_ranks; r++) {
            free(s->offers[r]);
            free(s->logits[r]);
            free(s->fault[r]);
        }
        free(s->input.token);
        free(s->input.pos);
        free(s->input.seq_of);
        free(s->input.seq);
        free(s->input.out_row);
        free(s->input.sample);
        free(s->page);
    }
    free(device->drawn);
    free(device);
}

static size_t no_profile(const ls_engine *engine, const ls_profile_line **out) {
    (void)engine;
    *out = NULL;
    return 0;
}

ls_engine *delayed_engine_open(ls_model *model, const ls_engine_params *params) {
    static const ls_backend backend = {.name = "delayed",
                                       .open = delayed_open,
                                       .reserve = cpu_reserve,
                                       .load = delayed_load,
                                       .submit = delayed_submit,
                                       .collect = delayed_collect,
                                       .read_rate = cpu_read_rate,
                                       .profile = no_profile,
                                       .close = delayed_close};
    ls_engine *engine = NULL;
    ls_error err = {0};
    ASSERT_OK(engine_open_on(&backend, model, params, 0, &engine, &err), &err);
    return engine;
}

void delayed_engine_slow_down(ls_engine *engine, int step_us) {
    delayed *device = engine->device;
    atomic_store(&device->step_us, step_us);
}
