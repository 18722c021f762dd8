/* One step on a GPU: pack, launch, read back. See cuda_engine.h. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "backend/cuda/flash.h"
#include "backend/sample_math.h"
#include "base/clock.h"
#include "engine/cuda_engine.h"

/* ---- The step's input, packed ---- */

/* Room for n bytes in the image, on a border of 16; *offset is from the image's start, as cuda_step wants it. */
static void *take(uint8_t *image, size_t *used, size_t n, int64_t *offset) {
    *used = (*used + 15) / 16 * 16;
    *offset = (int64_t)*used;
    *used += n;
    return image + *offset;
}

static void pack_sequences(const ls_step *step, uint8_t *image, size_t *used) {
    cuda_step *head = (cuda_step *)image;
    cuda_seq *seq = take(image, used, (size_t)step->n_seqs * sizeof *seq, &head->seq);
    int32_t *page = take(image, used, 0, &head->page);
    int32_t n_pages = 0;
    for (int i = 0; i < step->n_seqs; i++) {
        const ls_step_seq *from = &step->seq[i];
        int n_tokens = from->n_past + from->n_rows, n = pages_for(n_tokens);
        seq[i] = (cuda_seq){from->first_row, from->n_rows, from->n_past, n_pages};
        memcpy(page + n_pages, from->page, (size_t)n * sizeof *page);
        n_pages += n;
    }
    *used += (size_t)n_pages * sizeof *page;
}

static void pack_draws(const ls_step *step, const step_output *output, int n_vocab, uint8_t *image, size_t *used) {
    cuda_draw *draw = take(image, used, (size_t)step->n_out * sizeof *draw, &((cuda_step *)image)->draw);
    for (int i = 0; i < step->n_out; i++) {
        const ls_sample_params *how = &step->sample[i];
        draw[i] = (cuda_draw){.temperature = how->temperature,
                              .position = how->position,
                              .choice = how->choice,
                              .on_host = output != NULL && output[i].on_host,
                              .seed = how->seed,
                              .is_filtered = sample_is_filtered(how),
                              .top_k = how->top_k < n_vocab ? how->top_k : 0,
                              .top_p = how->top_p,
                              .min_p = how->min_p};
    }
}

/* Each row of its own sequence: decode, and prompts of which one token is left. */
static bool is_decode_only(const ls_step *step) {
    return step->n_seqs == step->n_rows && step->n_rows <= CUDA_MAX_WIDE;
}

/* What attention of prefill takes its work from. */
static void pack_tiles(const ls_engine *engine, const ls_step *step, uint8_t *image, size_t *used) {
    const ls_program *program = engine->program[0];
    const ls_op *op = program->op;
    while (op < program->op + program->n_ops && op->kind != OP_ATTN) {
        op++;
    }
    if (op < program->op + program->n_ops) {
        cuda_tile *tile = take(image, used, 0, &((cuda_step *)image)->tile);
        *used += (size_t)flash_tiles(&op->attn, step, tile) * sizeof *tile;
    }
}

/* Bytes of the image. step_image_bytes() is its room: no page belongs to two sequences. output: what the rows are for;
 * NULL: for their tokens alone. */
static size_t pack_step(ls_engine *engine, const ls_step *step, const step_output *output, uint8_t *image) {
    cuda_engine *cuda = engine_cuda(engine);
    const size_t m = (size_t)step->n_rows, n_out = (size_t)step->n_out;
    cuda_step *head = (cuda_step *)image;
    size_t used = sizeof *head;
    *head = (cuda_step){.n_rows = step->n_rows,
                        .n_dec = step->n_dec,
                        .n_pre = step->n_pre,
                        .n_seqs = step->n_seqs,
                        .n_out = step->n_out,
                        .epoch = ++cuda->epoch,
                        .drawn = (int64_t)(cuda->rank.drawn - cuda->rank.step)};
    memcpy(take(image, &used, m * sizeof(int32_t), &head->token), step->token, m * sizeof(int32_t));
    memcpy(take(image, &used, m * sizeof(int32_t), &head->pos), step->pos, m * sizeof(int32_t));
    memcpy(take(image, &used, m * sizeof(int32_t), &head->seq_of), step->seq_of, m * sizeof(int32_t));
    memcpy(take(image, &used, n_out * sizeof(int32_t), &head->out_row), step->out_row, n_out * sizeof(int32_t));
    pack_sequences(step, image, &used);
    pack_draws(step, output, engine->model->spec.n_vocab, image, &used);
    if (cuda->rank.flash && (output == NULL || !is_decode_only(step))) { /* verify may run any step by any kernels */
        pack_tiles(engine, step, image, &used);
    }
    return used;
}

/* Between the device and pinned memory, which has the same address there. */
static ls_status copy_words(cuda_engine *cuda, CUdeviceptr from, CUdeviceptr to, size_t n, ls_error *err) {
    enum { THREADS = 256 };
    int32_t n_words = (int32_t)n;
    return cuda_launch(&cuda->rank, cuda->copy_words, "copy_words", (unsigned)((n + THREADS - 1) / THREADS), 1, 1,
                       THREADS, 0, (void *[]){&from, &to, &n_words}, err);
}

/* To the ranks of a GPU. */
static ls_status copy_in_step(cuda_engine *leader, uint8_t *image, size_t bytes, ls_error *err) {
    for (int i = 0; i < leader->n_here; i++) {
        cuda_engine *cuda = cuda_of(leader->engine, leader->here[i]);
        TRY(copy_words(cuda, (CUdeviceptr)(uintptr_t)image, cuda->rank.step, (bytes + 3) / 4, err));
    }
    return LS_OK;
}

/* ---- Launching ---- */

/* Op `first` of the program for decode-only steps of at most `rows` rows; padding may not pass the buffers' ends. */
static ls_status launch_decode(ls_engine *engine, int first, int rows, int *n_taken, ls_error *err) {
    const engine_config *config = &engine->config;
    const ls_program *program = engine->program[0];
    cuda_rank *rank = &engine_cuda(engine)->rank;
    if (rows <= CUDA_MAX_DECODE) {
        return decode_launch(rank, program->op, program->n_ops, first, rows, n_taken, err);
    }
    const int n_rows = rows < config->m_max ? rows : config->m_max;
    return prefill_launch_decode(rank, program->op, program->n_ops, first, n_rows,
                                 n_rows < config->n_out_max ? n_rows : config->n_out_max, n_taken, err);
}

/* Op `first` on the ranks of a GPU. */
static ls_status launch_op(cuda_engine *leader, int first, const ls_step *step, int rows, int *n_taken, ls_error *err) {
    ls_engine *engine = leader->engine;
    const ls_program *program = engine->program[0];
    *n_taken = 1;
    if (engine->config.n_ranks > 1) {
        return cuda_ranks_launch(leader, first, step, rows, err);
    }
    return rows > 0 ? launch_decode(engine, first, rows, n_taken, err)
                    : prefill_launch(&leader->rank, program->op, program->n_ops, first, step, false, n_taken, err);
}

/* Every op of the program, on the ranks of a GPU, by the launchers for decode steps of at most `rows` rows, or (rows = 0) those
 * for any step. */
static ls_status launch_ops(cuda_engine *leader, const ls_step *step, int rows, ls_error *err) {
    const ls_program *program = leader->engine->program[0];
    for (int first = 0, n_taken = 0; first < program->n_ops; first += n_taken) {
        const ls_op *op = &program->op[first];
        TRY(cuda_profile_mark(leader, first, err));
        ls_status st = launch_op(leader, first, step, rows, &n_taken, err);
        if (st < 0) {
            return error_prefix(err, st, "op %s, layer %d", op_kind_name(op->kind), op->layer);
        }
        if (n_taken < 1) {
            return error_set(err, LS_EINTERNAL, "op %s, layer %d: no kernel took it", op_kind_name(op->kind),
                             op->layer);
        }
    }
    return cuda_profile_mark(leader, program->n_ops, err);
}

/* ---- Graphs ---- */

static const int graph_sizes[CUDA_GRAPHS] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, CUDA_MAX_WIDE};

static bool is_graph_size(long rows) {
    bool found = false;
    for (int i = 0; i < CUDA_GRAPHS; i++) {
        found = found || graph_sizes[i] == rows;
    }
    return found;
}

ls_status cuda_graphs_read(cuda_engine *cuda, const char *sizes, int max_seqs, ls_error *err) {
    const char *at = sizes != NULL ? sizes : CUDA_GRAPH_SIZES;
    if (strcmp(at, "none") == 0) {
        return LS_OK;
    }
    bool enough = false;
    int before = 0;
    do {
        char *end;
        long rows = strtol(at, &end, 10);
        if (end == at || !is_graph_size(rows) || rows <= before || (*end != ',' && *end != '\0') ||
            (*end == ',' && end[1] == '\0')) {
            return error_set(err, LS_EINVAL,
                             "--graph-sizes %s: must be none, or rising numbers out of " CUDA_GRAPH_SIZES, sizes);
        }
        if (!enough) { /* a larger one would never be used */
            cuda->graph_rows[cuda->n_graphs++] = (int)rows;
        }
        enough = enough || rows >= max_seqs;
        before = (int)rows;
        at = *end == ',' ? end + 1 : end;
    } while (*at != '\0');
    return LS_OK;
}

static ls_status capture(cuda_engine *cuda, int i, ls_error *err) {
    const cuda_driver *api = cuda->driver;
    cuda_rank *rank = &cuda->rank;
    CUgraph graph = NULL;
    TRY(cuda_check(rank, api->cuStreamBeginCapture(rank->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
                   "capturing a step", err));
    ls_status st = launch_ops(cuda, NULL, cuda->graph_rows[i], err);
    CUresult rc = api->cuStreamEndCapture(rank->stream, &graph); /* in any case: it ends the stream's capturing */
    TRY(st);
    TRY(cuda_check(rank, rc, "capturing a step", err));
    rc = api->cuGraphInstantiate(&cuda->graph[i], graph, 0);
    api->cuGraphDestroy(graph);
    TRY(cuda_check(rank, rc, "making a graph of a step", err));
    return cuda_check(rank, api->cuGraphUpload(cuda->graph[i], rank->stream), "putting a graph on the device", err);
}

ls_status cuda_graphs_capture(cuda_engine *cuda, ls_error *err) {
    int64_t start = clock_ns();
    for (int i = 0; i < cuda->n_graphs; i++) {
        TRY(capture(cuda, i, err));
    }
    cuda->graphs_us = (clock_ns() - start) / 1000;
    return cuda_rank_wait(&cuda->rank, "capturing graphs", CUDA_STEP_TIMEOUT_S, err);
}

static int bucket_of(int n_rows) {
    int bucket = 1;
    while (bucket < n_rows) {
        bucket *= 2;
    }
    return bucket;
}

/* The graph that runs a step, or -1: decode-only steps have one. Up to CUDA_MAX_DECODE rows have kernels, and bits, of their
 * own: no larger graph serves them. */
static int graph_of(const cuda_engine *cuda, const ls_step *step) {
    const bool is_wide = step->n_rows > CUDA_MAX_DECODE;
    for (int i = 0; i < cuda->n_graphs && cuda->profile == NULL && is_decode_only(step); i++) {
        if (cuda->graph_rows[i] >= step->n_rows && (cuda->graph_rows[i] > CUDA_MAX_DECODE) == is_wide) {
            return i;
        }
    }
    return -1;
}

/* Whether the device draws a row with filters, of which the persistent kernel knows none. */
static bool filters_on_device(const step_batch *batch) {
    bool found = false;
    for (int i = 0; i < batch->step.n_out; i++) {
        found = found || (!batch->output[i].on_host && sample_is_filtered(&batch->step.sample[i]));
    }
    return found;
}

/* On a GPU. Decode-only steps by the persistent kernel, by their graph, or launch by launch where there is neither; others by the
 * general kernels. */
static ls_status launch_step(cuda_engine *leader, const step_batch *batch, ls_error *err) {
    const ls_step *step = &batch->step;
    const int i = graph_of(leader, step);
    if (is_decode_only(step) && cuda_persist_takes(leader, step->n_rows) && !filters_on_device(batch)) {
        return cuda_persist_launch(leader, step->n_rows, err);
    }
    if (i >= 0) {
        return cuda_check(&leader->rank, leader->driver->cuGraphLaunch(leader->graph[i], leader->rank.stream),
                          "starting a step's graph", err);
    }
    return launch_ops(leader, step,
                      !is_decode_only(step)            ? 0
                      : step->n_rows > CUDA_MAX_DECODE ? step->n_rows
                                                       : bucket_of(step->n_rows),
                      err);
}

/* ---- Results ---- */

/* The next rows [*first, *last) whose logits the host needs, from *last on; false if there are no more. */
static bool next_host_rows(const step_batch *batch, int *first, int *last) {
    const int n_out = batch->step.n_out;
    int i = *last;
    while (i < n_out && !batch->output[i].on_host) {
        i++;
    }
    *first = i;
    while (i < n_out && batch->output[i].on_host) {
        i++;
    }
    *last = i;
    return *first < *last;
}

static ls_status copy_logits(ls_engine *engine, int r, const step_batch *batch, ls_error *err) {
    const cuda_rank *rank = &cuda_of(engine, r)->rank;
    const size_t n_vocab = (size_t)shard_leaves(engine->model->spec.n_vocab, rank->bind.group).count;
    const CUdeviceptr logits = (CUdeviceptr)(uintptr_t)rank->bind.buf[BUF_LOGITS];
    float *to = (float *)(uintptr_t)engine->rank[r].logits;
    for (int first = 0, last = 0; next_host_rows(batch, &first, &last) && n_vocab > 0;) {
        size_t skipped = (size_t)first * n_vocab, n = (size_t)(last - first) * n_vocab;
        TRY(cuda_check(rank,
                       rank->driver->cuMemcpyDtoHAsync(to + skipped, logits + skipped * sizeof(float),
                                                       n * sizeof(float), rank->stream),
                       "copying logits", err));
    }
    return LS_OK;
}

static ls_status copy_results(cuda_engine *leader, const step_batch *batch, ls_error *err) {
    ls_engine *engine = leader->engine;
    const size_t words = result_faults(&engine->config) + (size_t)batch->step.n_rows;
    for (int i = 0; i < leader->n_here; i++) {
        const int r = leader->here[i];
        const CUdeviceptr to = (CUdeviceptr)(uintptr_t)batch_result(batch, &engine->config, r);
        TRY(copy_words(cuda_of(engine, r), cuda_of(engine, r)->rank.drawn, to, words, err));
        TRY(copy_logits(engine, r, batch, err));
    }
    return LS_OK;
}

typedef struct host_draw {
    const ls_engine *engine;
    const step_batch *batch;
} host_draw;

/* The CPU's offers for the rows whose logits came back: what its own engine would make of these logits. */
static void sample_on_host(void *arg, int local, const ls_team *team) {
    const host_draw *draw = arg;
    const ls_engine *engine = draw->engine;
    const int i_rank = first_rank(engine) + local;
    const ls_program *program = engine->program[i_rank];
    const ls_op *op = &program->op[program->n_ops - 1];
    const host_memory *host = &engine->host;
    ls_bind bind = engine->rank[i_rank].bind;
    float *logits = (float *)(uintptr_t)engine->rank[i_rank].logits;
    ls_sample_part *offers = (ls_sample_part *)(uintptr_t)engine->rank[i_rank].offers;
    bind.buf[BUF_EDITED] = (float *)host->edited + (size_t)engine->config.n_threads * (size_t)op->sample.vocab_first;
    bind.buf[BUF_SLICE] = (ls_sample_part *)host->slices + (size_t)engine->config.n_threads * (size_t)i_rank;
    for (int first = 0, last = 0; next_host_rows(draw->batch, &first, &last);) {
        ls_step step = draw->batch->step;
        step.n_out = last - first;
        step.sample += first;
        bind.buf[BUF_LOGITS] = logits + (int64_t)first * op->sample.vocab_count;
        bind.buf[BUF_SAMPLE] = offers + first;
        cpu_ref_ops.fn[OP_SAMPLE](op, program->n_ops - 1, &bind, &step, team);
        if (!team_wait(team)) {
            return;
        }
    }
}

/* A row that was drawn on the device, as `sample` would offer it; its value is compared with no other, since rank 0 alone has
 * an offer. */
static void offer_drawn(const ls_engine *engine, const step_batch *batch, int i) {
    for (int r = first_rank(engine); r < end_rank(engine); r++) {
        ls_sample_part *offer = (ls_sample_part *)(uintptr_t)&engine->rank[r].offers[i];
        const int32_t token = r == 0 ? batch->result[i] : -1;
        offer->drawn_id = token;
        offer->max = 0.0F;
        offer->sum = 1.0F;
        offer->n_best = token >= 0;
        offer->best[0] = (ls_candidate){0.0F, token};
        offer->n_top = 0;
    }
}

static void read_results(ls_engine *engine, const step_batch *batch) {
    bool any_on_host = false;
    for (int i = 0; i < batch->step.n_out; i++) {
        if (batch->output[i].on_host) {
            any_on_host = true;
        } else {
            offer_drawn(engine, batch, i);
        }
    }
    if (any_on_host) {
        rank_group_run(engine->group, sample_on_host, &(host_draw){engine, batch});
    }
    for (int r = 0; r < engine->config.n_ranks; r++) {
        engine->host.fault[r] = batch_faults(batch, &engine->config, r);
    }
}

/* ---- A step ---- */

/* Whether a GPU's step is over, or has failed. *st: LS_OK while it is under way. */
static bool is_over(const cuda_engine *cuda, ptrdiff_t i, ls_status *st, ls_error *err) {
    const CUresult rc = cuda->driver->cuEventQuery(cuda->done[i]);
    *st = rc == CUDA_ERROR_NOT_READY ? LS_OK : cuda_check(&cuda->rank, rc, "a step", err);
    return rc != CUDA_ERROR_NOT_READY;
}

/* For every GPU, all looked at in turn: one that fails is told at once, though others wait for it. NCCL's waiting has no end of
 * its own, so what NCCL itself has noticed is asked for too, and whether another host was lost. */
static ls_status wait_for_all(const ls_engine *engine, ptrdiff_t i, ls_error *err) {
    enum { LOOKS = 1000 };
    const cuda_engine *first = engine_cuda(engine);
    const int64_t begin = clock_ns(), patience_ns = 20000000;
    for (int look = 1;; look++) {
        const cuda_engine *late = NULL;
        for (int r = 0; r < first->n_ranks; r++) {
            ls_status st = LS_OK;
            const cuda_engine *cuda = first->of[r];
            late = cuda->leader == cuda && !is_over(cuda, i, &st, err) ? cuda : late;
            TRY(st);
        }
        if (late == NULL) {
            return LS_OK;
        }
        const int64_t waited = clock_ns() - begin;
        if (waited > (int64_t)CUDA_STEP_TIMEOUT_S * 1000000000) {
            return error_set(err, LS_EABORTED, "a step on rank %d (%s, device %d): no end after %d s",
                             late->rank.bind.group.rank, late->rank.facts.name, late->ordinal, CUDA_STEP_TIMEOUT_S);
        }
        if (first->nccl != NULL && look % LOOKS == 0) {
            TRY(nccl_check(first->nccl, err));
            TRY(hosts_lost(engine->hosts) ? hosts_why(engine->hosts, err) : LS_OK);
        }
        if (waited > patience_ns) {
            nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
        }
    }
}

/* A GPU has failed. In which op is not known of it, but those who need its sums notice in which one they wait in vain. */
static ls_status add_where(const ls_engine *engine, ls_error *failure, ls_error *err) {
    const int64_t until = clock_ns() + 4500000000;
    ls_error where = {0};
    while (engine->config.n_ranks > 1 && cuda_ranks_check(engine, &where) == LS_OK && clock_ns() < until) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return where.status == LS_OK ? error_set(err, failure->status, "%s", failure->text)
                                 : error_set(err, failure->status, "%s; %s", failure->text, where.text);
}

/* On every GPU. A rank that waited in vain for another is told rather than what came of it. */
static ls_status wait_for_step(ls_engine *engine, const step_batch *batch, ls_error *err) {
    const cuda_engine *first = engine_cuda(engine);
    ls_error failure = {0};
    ls_status st = wait_for_all(engine, batch - engine->batch, &failure);
    if (first->nccl != NULL) {
        if (st != LS_OK) {
            nccl_abort(first->nccl);
        }
        return st == LS_OK ? st : error_set(err, st, "%s", failure.text);
    }
    ls_status waited = st == LS_OK ? cuda_ranks_check(engine, err) : LS_OK;
    waited = waited == LS_OK ? cuda_persist_check(engine, err) : waited;
    return waited != LS_OK ? waited : st == LS_OK ? st : add_where(engine, &failure, err);
}

typedef struct submission {
    step_batch *batch;
    size_t image_bytes;
} submission;

/* All of it goes to a GPU's one stream: the input, the ops, the results' way back. So a step that was submitted before its
 * predecessor was collected finds the device's copy of the input, the drawn tokens and the faults free for it; only the
 * host's ends of the copies are the batch's own. */
static ls_status submit_on(cuda_engine *leader, const void *arg, ls_error *err) {
    const submission *what = arg;
    step_batch *batch = what->batch;
    TRY(cuda_rank_enter(&leader->rank, err)); /* any thread may drive the engine */
    TRY(copy_in_step(leader, batch->image, what->image_bytes, err));
    cuda_profile_begin(leader);
    TRY(launch_step(leader, batch, err));
    TRY(copy_results(leader, batch, err));
    CUevent done = leader->done[batch - leader->engine->batch];
    return cuda_check(&leader->rank, leader->driver->cuEventRecord(done, leader->rank.stream), "starting a step", err);
}

/* A graph is launched for one GPU after the other, unless NCCL is in it (nccl.h). Hundreds of launches are made for all GPUs at the same time, each by a
 * thread of its own: else the last GPU would wait for the launches of all, and work that waits for another GPU's could fill a
 * stream before that GPU was given any. */
ls_status cuda_submit(ls_engine *engine, step_batch *batch, ls_error *err) {
    cuda_engine *first = engine_cuda(engine);
    TRY(wait_for_step(engine, batch, err)); /* one that nobody collected */
    TRY(host_step_send(engine, batch, err));
    submission what = {batch, pack_step(engine, &batch->step, batch->output, batch->image)};
    if (graph_of(first, &batch->step) < 0 || first->nccl != NULL) {
        return cuda_crew_run(first, submit_on, &what, sizeof what, err);
    }
    for (int r = first->n_ranks - 1; r >= 0; r--) {
        cuda_engine *cuda = first->of[r];
        if (cuda->leader == cuda) {
            TRY(submit_on(cuda, &what, err));
        }
    }
    return LS_OK;
}

ls_status cuda_collect(ls_engine *engine, step_batch *batch, ls_error *err) {
    TRY(wait_for_step(engine, batch, err));
    batch->ended_ns = clock_ns();
    TRY(cuda_profile_end(engine, batch, err));
    read_results(engine, batch);
    return host_step_gather(engine, batch, err);
}

ls_status cuda_try_step(ls_engine *engine, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    int32_t zero = 0;
    ls_step_seq seq = {.n_rows = 1, .page = &zero};
    ls_sample_params greedy = {0};
    const ls_step step = {.n_rows = 1,
                          .n_dec = 1,
                          .n_seqs = 1,
                          .n_out = 1,
                          .token = &zero,
                          .pos = &zero,
                          .seq_of = &zero,
                          .seq = &seq,
                          .out_row = &zero,
                          .sample = &greedy};
    void *image = engine->batch[0].image;
    const size_t bytes = pack_step(engine, &step, NULL, image);
    for (int pass = 0; pass < 2; pass++) { /* on all GPUs; until it is over on all */
        for (int r = 0; r < cuda->n_ranks; r++) {
            cuda_engine *leader = cuda->of[r];
            if (leader->leader != leader) {
                continue;
            }
            TRY(cuda_rank_enter(&leader->rank, err));
            if (pass == 0) {
                TRY(copy_in_step(leader, image, bytes, err));
                TRY(cuda_persist_launch(leader, 1, err));
            } else {
                TRY(cuda_rank_wait(&leader->rank, "a first step", CUDA_STEP_TIMEOUT_S, err));
            }
        }
    }
    TRY(cuda_rank_enter(&cuda->rank, err));
    return cuda_persist_check(engine, err);
}

/* ---- For verify ---- */

/* Waits for it too: only decode_embed does, and an op alone may read the step before it waits for anything. */
static ls_status bring_step(ls_engine *engine, const ls_step *step, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    cuda_rank *rank = &cuda->rank;
    TRY(cuda_rank_enter(rank, err));
    uint8_t *image = engine->batch[0].image;
    TRY(copy_in_step(cuda, image, pack_step(engine, step, NULL, image), err));
    return cuda_rank_wait(rank, "a step's input", CUDA_STEP_TIMEOUT_S, err);
}

ls_status cuda_run_op(ls_engine *engine, const ls_step *step, int index, ls_error *err) {
    cuda_rank *rank = &engine_cuda(engine)->rank;
    const ls_program *program = engine->program[0];
    int n_taken;
    TRY(bring_step(engine, step, err));
    TRY(prefill_launch(rank, program->op, program->n_ops, index, step, true, &n_taken, err));
    return cuda_rank_wait(rank, op_kind_name(program->op[index].kind), CUDA_STEP_TIMEOUT_S, err);
}

ls_status cuda_run_decode(ls_engine *engine, const ls_step *step, int first, int *n_taken, ls_error *err) {
    cuda_rank *rank = &engine_cuda(engine)->rank;
    const ls_program *program = engine->program[0];
    TRY(bring_step(engine, step, err));
    TRY(decode_launch(rank, program->op, program->n_ops, first, bucket_of(step->n_rows), n_taken, err));
    return cuda_rank_wait(rank, op_kind_name(program->op[first].kind), CUDA_STEP_TIMEOUT_S, err);
}

const char *cuda_kernels(ls_engine *engine) {
    cuda_engine *cuda = engine_cuda(engine);
    size_t n = 0;
    cuda->kernels[0] = '\0';
    for (int i = 0; i < cuda->rank.n_launched && n < sizeof cuda->kernels; i++) {
        n += (size_t)snprintf(cuda->kernels + n, sizeof cuda->kernels - n, "%s%s", i > 0 ? ", " : "",
                              cuda->rank.launched[i]);
    }
    cuda->rank.n_launched = 0;
    return cuda->kernels;
}
