/*
 * Steps of ranks on several hosts: the scheduler is host 0's, the others follow.
 *
 *     host 0    schedule, send the step | run its ranks | gather | sample, publish
 *     others    receive the step        | run theirs    | send what they have for it
 *
 * A step travels as its arrays one behind the other, so that on arrival pointers into the message are the step. Back come,
 * of each rank, its offers, its faults, and the rows of logits that the host asked for (step_output.on_host). Processes are
 * of the same version (host_compare.c), so structs are sent as they are.
 *
 * Room for messages grows when a step needs more than any before it: long lists of logit edits alone have no bound that is
 * worth reserving.
 */
#include <stdlib.h>

#include "engine/engine.h"

enum { ALIGN = 16 };
static const int64_t STEP_TIMEOUT_NS = (int64_t)300 * 1000000000, END_TIMEOUT_NS = (int64_t)3 * 1000000000;

typedef enum head_kind { HEAD_STEP = 1, HEAD_END } head_kind;

typedef struct step_head {
    int32_t kind, n_rows, n_dec, n_pre, n_seqs, n_out;
    int64_t bytes; /* of the body */
} step_head;

struct host_steps {
    const float *local[LS_MAX_RANKS]; /* of the exchange: BUF_PART of the ranks here, and the hosts' nodes */
    float *node[LS_MAX_RANKS];
    uint8_t *body;
    size_t bytes, capacity;
    int64_t n_steps;
    int n_results;
    host_transfer result[]; /* [n_ranks * (2 + n_out_max)] */
};

/* ---- Opening ---- */

ls_status host_device_check(device_choice *choice, const ls_engine_params *params, ls_error *err) {
    if (params->hosts == NULL) {
        return LS_OK;
    }
    const bool by_nccl =
        params->exchange == NULL || strcmp(params->exchange, "auto") == 0 || strcmp(params->exchange, "nccl") == 0;
    if (!choice->may_be_cpu && !by_nccl) {
        return error_set(err, LS_EUNSUPPORTED,
                         "--exchange %s: GPUs of several hosts exchange by NCCL; leave it at auto", params->exchange);
    }
    choice->may_be_cuda =
        !choice->may_be_cpu; /* auto is the CPU: a GPU that one host lacks is no choice for it alone */
    const int32_t ours = choice->may_be_cuda;
    int32_t all[HOSTS_MAX];
    TRY(hosts_swap(params->hosts, &ours, all, sizeof ours, err));
    for (int host = 0; host < hosts_count(params->hosts); host++) {
        if (all[host] != ours) {
            return error_set(err, LS_EINVAL, "%s runs on %s, this host on %s: give all hosts the same --device",
                             hosts_label(params->hosts, host), all[host] ? "GPUs" : "the CPU",
                             ours ? "GPUs" : "the CPU");
        }
    }
    return LS_OK;
}

/* What the exchange op and the sampler see of other hosts' ranks. */
void host_ranks_bind(ls_engine *engine) {
    const engine_config *config = &engine->config;
    host_memory *host = &engine->host;
    if (config->n_hosts == 1) {
        return;
    }
    for (int r = 0; r < config->n_ranks; r++) {
        rank_memory *rank = &engine->rank[r];
        rank->bind.group = (ls_group){r, config->n_ranks};
        if (r < first_rank(engine) || r >= end_rank(engine)) {
            rank->logits = host->far_logits[r];
            rank->offers = host->far_offers[r];
            continue;
        }
        rank->bind.n_parts = config->n_hosts;
        for (int h = 0; h < config->n_hosts; h++) {
            rank->bind.peer_part[h] = host->node[h] != NULL ? host->node[h] : rank->bind.buf[BUF_PART];
        }
    }
}

ls_status host_exchange_create(ls_engine *engine, ls_error *err) {
    const engine_config *config = &engine->config;
    const size_t n_results = (size_t)config->n_ranks * (2 + (size_t)config->n_out_max);
    struct host_steps *steps = calloc(1, sizeof *steps + n_results * sizeof *steps->result);
    if (steps == NULL) {
        return error_set(err, LS_ENOMEM, "engine: out of memory");
    }
    engine->host_steps = steps;
    for (int r = 0; r < config->rank_count; r++) {
        steps->local[r] = engine->rank[first_rank(engine) + r].bind.buf[BUF_PART];
    }
    for (int h = 0; h < config->n_hosts; h++) {
        float *part = engine->rank[first_rank(engine)].bind.buf[BUF_PART];
        steps->node[h] = engine->host.node[h] != NULL ? engine->host.node[h] : part;
    }
    return exchange_hosts_create(&engine->exchange, engine->hosts, engine->group, steps->local, steps->node, err);
}

void host_steps_free(ls_engine *engine) {
    if (engine->host_steps != NULL) {
        free(engine->host_steps->body);
        free(engine->host_steps);
    }
}

/* Host 0 waits for all, however long they load. */
ls_status hosts_loaded(ls_engine *engine, ls_error *err) {
    host_transfer transfer[HOSTS_MAX];
    char done[HOSTS_MAX] = {0};
    int n = 0;
    if (engine->hosts == NULL) {
        return LS_OK;
    }
    if (engine->config.host > 0) {
        transfer[n++] = (host_transfer){.host = 0, .sends = true, .data = done, .bytes = 1};
    }
    for (int host = 1; host < engine->config.n_hosts && engine->config.host == 0; host++) {
        transfer[n++] = (host_transfer){.host = host, .data = &done[host], .bytes = 1};
    }
    TRY(hosts_transfer(engine->hosts, transfer, n, 0, err));
    hosts_set_phase(engine->hosts, PHASE_IDLE, 1);
    return LS_OK;
}

/* ---- The message ---- */

static ls_status reserve(struct host_steps *steps, size_t bytes, ls_error *err) {
    if (bytes <= steps->capacity) {
        return LS_OK;
    }
    uint8_t *body = realloc(steps->body, 2 * bytes);
    if (body == NULL) {
        return error_set(err, LS_ENOMEM, "step: out of memory for a message of %zu bytes", bytes);
    }
    steps->body = body;
    steps->capacity = 2 * bytes;
    return LS_OK;
}

static size_t rounded(size_t bytes) {
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static ls_status put(struct host_steps *steps, const void *data, size_t n, size_t element, ls_error *err) {
    const size_t bytes = n * element;
    TRY(reserve(steps, steps->bytes + rounded(bytes), err));
    if (bytes > 0) {
        memcpy(steps->body + steps->bytes, data, bytes);
    }
    steps->bytes += rounded(bytes);
    return LS_OK;
}

/* The next n elements; NULL if the message ends before. */
static void *take(struct host_steps *steps, size_t *at, size_t n, size_t element) {
    const size_t left = steps->bytes - *at;
    if (n > left / element || rounded(n * element) > left) {
        return NULL;
    }
    void *data = steps->body + *at;
    *at += rounded(n * element);
    return data;
}

static size_t seq_pages(const ls_step_seq *seq) {
    return (size_t)pages_for(seq->n_past + seq->n_rows);
}

static ls_status pack(struct host_steps *steps, const step_batch *batch, ls_error *err) {
    const ls_step *step = &batch->step;
    const size_t m = (size_t)step->n_rows, n_seqs = (size_t)step->n_seqs, n_out = (size_t)step->n_out;
    steps->bytes = 0;
    TRY(put(steps, step->token, m, sizeof *step->token, err));
    TRY(put(steps, step->pos, m, sizeof *step->pos, err));
    TRY(put(steps, step->seq_of, m, sizeof *step->seq_of, err));
    TRY(put(steps, step->seq, n_seqs, sizeof *step->seq, err));
    TRY(put(steps, step->out_row, n_out, sizeof *step->out_row, err));
    TRY(put(steps, step->sample, n_out, sizeof *step->sample, err));
    TRY(put(steps, batch->output, n_out, sizeof *batch->output, err));
    for (size_t i = 0; i < n_seqs; i++) {
        TRY(put(steps, step->seq[i].page, seq_pages(&step->seq[i]), sizeof *step->seq[i].page, err));
    }
    for (size_t i = 0; i < n_out; i++) {
        const ls_sample_params *sample = &step->sample[i];
        const size_t n_allowed = sample->allowed != NULL ? (size_t)sample->n_allowed : 0;
        TRY(put(steps, sample->edit, (size_t)sample->n_edits, sizeof *sample->edit, err));
        TRY(put(steps, sample->allowed, n_allowed, sizeof *sample->allowed, err));
    }
    return LS_OK;
}

/* Pointers of the arrays' elements, which came as addresses of another process. */
static bool unpack_lists(struct host_steps *steps, size_t *at, const ls_step *step, ls_step_seq *seq,
                         ls_sample_params *sample) {
    bool good = true;
    for (int i = 0; good && i < step->n_seqs; i++) {
        seq[i].page =
            seq[i].n_past < 0 || seq[i].n_rows < 0 ? NULL : take(steps, at, seq_pages(&seq[i]), sizeof *seq[i].page);
        good = seq[i].page != NULL;
    }
    for (int i = 0; good && i < step->n_out; i++) {
        const bool lists = sample[i].allowed != NULL;
        sample[i].edit = take(steps, at, (size_t)sample[i].n_edits, sizeof *sample[i].edit);
        sample[i].allowed = take(steps, at, lists ? (size_t)sample[i].n_allowed : 0, sizeof *sample[i].allowed);
        good = sample[i].edit != NULL && sample[i].allowed != NULL;
        sample[i].allowed = lists ? sample[i].allowed : NULL;
    }
    return good;
}

static ls_status unpack(struct host_steps *steps, const step_head *head, step_batch *batch, ls_error *err) {
    ls_step *step = &batch->step;
    const size_t m = (size_t)head->n_rows, n_seqs = (size_t)head->n_seqs, n_out = (size_t)head->n_out;
    size_t at = 0;
    *step = (ls_step){.n_rows = head->n_rows,
                      .n_dec = head->n_dec,
                      .n_pre = head->n_pre,
                      .n_seqs = head->n_seqs,
                      .n_out = head->n_out};
    step->token = take(steps, &at, m, sizeof *step->token);
    step->pos = take(steps, &at, m, sizeof *step->pos);
    step->seq_of = take(steps, &at, m, sizeof *step->seq_of);
    ls_step_seq *seq = take(steps, &at, n_seqs, sizeof *seq);
    step->out_row = take(steps, &at, n_out, sizeof *step->out_row);
    ls_sample_params *sample = take(steps, &at, n_out, sizeof *sample);
    const step_output *output = take(steps, &at, n_out, sizeof *output);
    if (output == NULL || sample == NULL || seq == NULL || !unpack_lists(steps, &at, step, seq, sample)) {
        return error_set(err, LS_EABORTED, "host 0 sent a step that is cut short");
    }
    step->seq = seq;
    step->sample = sample;
    memcpy(batch->output, output, n_out * sizeof *output);
    return LS_OK;
}

/* ---- Host 0 ---- */

static ls_status send_all(ls_engine *engine, step_head *head, int64_t timeout_ns, ls_error *err) {
    host_transfer transfer[2 * HOSTS_MAX];
    int n = 0;
    for (int host = 1; host < engine->config.n_hosts; host++) {
        transfer[n++] = (host_transfer){.host = host, .sends = true, .data = head, .bytes = sizeof *head};
        transfer[n++] = (host_transfer){
            .host = host, .sends = true, .data = engine->host_steps->body, .bytes = (size_t)head->bytes};
    }
    return hosts_transfer(engine->hosts, transfer, n, timeout_ns, err);
}

ls_status host_step_send(ls_engine *engine, const step_batch *batch, ls_error *err) {
    struct host_steps *steps = engine->host_steps;
    if (engine->hosts == NULL || engine->config.host > 0) {
        return LS_OK;
    }
    hosts_set_phase(engine->hosts, PHASE_STEP, ++steps->n_steps);
    TRY(pack(steps, batch, err));
    const ls_step *step = &batch->step;
    step_head head = {HEAD_STEP,    step->n_rows, step->n_dec,          step->n_pre,
                      step->n_seqs, step->n_out,  (int64_t)steps->bytes};
    return send_all(engine, &head, STEP_TIMEOUT_NS, err);
}

void hosts_end_steps(ls_engine *engine) {
    step_head head = {.kind = HEAD_END};
    if (engine->is_open && engine->hosts != NULL && engine->config.host == 0 && engine->death.status == LS_OK) {
        send_all(engine, &head, END_TIMEOUT_NS, NULL);
    }
}

/* ---- Results ---- */

static void add_result(struct host_steps *steps, int host, bool sends, const void *data, size_t bytes) {
    steps->result[steps->n_results++] =
        (host_transfer){.host = host, .sends = sends, .data = (void *)(uintptr_t)data, .bytes = bytes};
}

/* What a rank has for the step, to or from a host. */
static void add_rank(ls_engine *engine, const step_batch *batch, int rank, int host, bool sends) {
    struct host_steps *steps = engine->host_steps;
    const rank_memory *memory = &engine->rank[rank];
    const ls_group group = {rank, engine->config.n_ranks};
    const int64_t n_vocab = shard_leaves(engine->model->spec.n_vocab, group).count;
    const size_t n_out = (size_t)batch->step.n_out, m = (size_t)batch->step.n_rows;
    add_result(steps, host, sends, memory->offers, n_out * sizeof *memory->offers);
    add_result(steps, host, sends, engine->host.fault[rank], m * sizeof *engine->host.fault[rank]);
    for (size_t i = 0; i < n_out; i++) {
        if (batch->output[i].on_host) {
            add_result(steps, host, sends, memory->logits + (int64_t)i * n_vocab, (size_t)n_vocab * sizeof(float));
        }
    }
}

ls_status host_step_gather(ls_engine *engine, const step_batch *batch, ls_error *err) {
    const engine_config *config = &engine->config;
    if (engine->hosts == NULL) {
        return LS_OK;
    }
    engine->host_steps->n_results = 0;
    if (config->host == 0) {
        for (int r = config->rank_count; r < config->n_ranks; r++) {
            add_rank(engine, batch, r, r / config->rank_count, false);
        }
    } else {
        for (int r = first_rank(engine); r < end_rank(engine); r++) {
            add_rank(engine, batch, r, 0, true);
        }
    }
    TRY(hosts_transfer(engine->hosts, engine->host_steps->result, engine->host_steps->n_results, STEP_TIMEOUT_NS, err));
    hosts_set_phase(engine->hosts, PHASE_IDLE, engine->host_steps->n_steps + 1);
    return LS_OK;
}

/* ---- The others ---- */

static ls_status receive(ls_engine *engine, void *data, size_t bytes, int64_t timeout_ns, ls_error *err) {
    host_transfer transfer = {.host = 0, .data = data, .bytes = bytes};
    return hosts_transfer(engine->hosts, &transfer, 1, timeout_ns, err);
}

static bool is_sound(const step_head *head, const engine_config *config) {
    return head->n_rows >= 0 && head->n_rows <= config->m_max && head->n_seqs >= 0 &&
           head->n_seqs <= config->max_seqs && head->n_out >= 0 && head->n_out <= config->n_out_max &&
           head->bytes >= 0 && head->kind == HEAD_STEP;
}

static ls_status follow_step(ls_engine *engine, const step_head *head, ls_error *err) {
    struct host_steps *steps = engine->host_steps;
    step_batch *batch = &engine->batch[0];
    hosts_set_phase(engine->hosts, PHASE_STEP, ++steps->n_steps);
    TRY(reserve(steps, (size_t)head->bytes, err));
    steps->bytes = (size_t)head->bytes;
    TRY(receive(engine, steps->body, steps->bytes, STEP_TIMEOUT_NS, err));
    TRY(unpack(steps, head, batch, err));
    TRY(engine->backend->submit(engine, batch, err));
    TRY(engine->backend->collect(engine, batch, err));
    for (int r = first_rank(engine); r < end_rank(engine); r++) { /* host 0 has them */
        memset(engine->host.fault[r], 0, (size_t)head->n_rows * sizeof *engine->host.fault[r]);
    }
    return LS_OK;
}

ls_status ls_engine_follow(ls_engine *engine, ls_error *err) {
    if (engine->config.host == 0) {
        return error_set(err, LS_EINVAL, "ls_engine_follow: host 0 steps, the others follow");
    }
    for (;;) {
        step_head head;
        TRY(receive(engine, &head, sizeof head, 0, err));
        if (head.kind == HEAD_END) {
            return LS_OK;
        }
        if (!is_sound(&head, &engine->config)) {
            return error_set(err, LS_EABORTED, "host 0 sent what is no step");
        }
        TRY(follow_step(engine, &head, err));
    }
}
