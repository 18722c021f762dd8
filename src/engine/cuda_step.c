/* One step on a GPU: pack, launch, read back. See cuda_engine.h. */
#include <stdio.h>
#include <stdlib.h>

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

static void pack_draws(const ls_step *step, const step_output *output, uint8_t *image, size_t *used) {
    cuda_draw *draw = take(image, used, (size_t)step->n_out * sizeof *draw, &((cuda_step *)image)->draw);
    for (int i = 0; i < step->n_out; i++) {
        const ls_sample_params *how = &step->sample[i];
        draw[i] = (cuda_draw){.temperature = how->temperature,
                              .position = how->position,
                              .choice = how->choice,
                              .on_host = output != NULL && output[i].on_host,
                              .seed = how->seed};
    }
}

/* Bytes of the image. step_image_bytes() is its room: no page belongs to two sequences. output: what the rows are for;
 * NULL: for their tokens alone. */
static size_t pack_step(cuda_engine *cuda, const ls_step *step, const step_output *output, uint8_t *image) {
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
    pack_draws(step, output, image, &used);
    return used;
}

/* Between the device and pinned memory, which has the same address there. */
static ls_status copy_words(cuda_engine *cuda, CUdeviceptr from, CUdeviceptr to, size_t n, ls_error *err) {
    enum { THREADS = 256 };
    int32_t n_words = (int32_t)n;
    return cuda_launch(&cuda->rank, cuda->copy_words, "copy_words", (unsigned)((n + THREADS - 1) / THREADS), 1, 1,
                       THREADS, 0, (void *[]){&from, &to, &n_words}, err);
}

static ls_status copy_in_step(cuda_engine *cuda, const step_batch *batch, const ls_step *step,
                              const step_output *output, ls_error *err) {
    size_t bytes = pack_step(cuda, step, output, batch->image);
    return copy_words(cuda, (CUdeviceptr)(uintptr_t)batch->image, cuda->rank.step, (bytes + 3) / 4, err);
}

/* ---- Launching ---- */

/* Every op of the program, by the launchers for decode steps of at most `rows` rows, or (rows = 0) those for any step. */
static ls_status launch_ops(ls_engine *engine, const ls_step *step, int rows, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    const ls_program *program = engine->program[0];
    for (int first = 0, n_taken = 0; first < program->n_ops; first += n_taken) {
        const ls_op *op = &program->op[first];
        TRY(cuda_profile_mark(cuda, first, err));
        ls_status st =
            rows > 0 ? decode_launch(&cuda->rank, program->op, program->n_ops, first, rows, &n_taken, err)
                     : prefill_launch(&cuda->rank, program->op, program->n_ops, first, step, false, &n_taken, err);
        if (st < 0) {
            return error_prefix(err, st, "op %s, layer %d", op_kind_name(op->kind), op->layer);
        }
        if (n_taken < 1) {
            return error_set(err, LS_EINTERNAL, "op %s, layer %d: no kernel took it", op_kind_name(op->kind),
                             op->layer);
        }
    }
    return cuda_profile_mark(cuda, program->n_ops, err);
}

/* ---- Graphs ---- */

ls_status cuda_graphs_read(cuda_engine *cuda, const char *sizes, int max_seqs, ls_error *err) {
    const char *at = sizes != NULL ? sizes : "1,2,4,8,16";
    if (strcmp(at, "none") == 0) {
        return LS_OK;
    }
    bool enough = false;
    int before = 0;
    do {
        char *end;
        long rows = strtol(at, &end, 10);
        bool is_bucket = rows == 1 || rows == 2 || rows == 4 || rows == 8 || rows == 16;
        if (end == at || !is_bucket || rows <= before || (*end != ',' && *end != '\0') ||
            (*end == ',' && end[1] == '\0')) {
            return error_set(err, LS_EINVAL, "--graph-sizes %s: must be none, or rising numbers out of 1,2,4,8,16",
                             sizes);
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

static ls_status capture(ls_engine *engine, int i, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    const cuda_driver *api = cuda->driver;
    cuda_rank *rank = &cuda->rank;
    CUgraph graph = NULL;
    TRY(cuda_check(rank, api->cuStreamBeginCapture(rank->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
                   "capturing a step", err));
    ls_status st = launch_ops(engine, NULL, cuda->graph_rows[i], err);
    CUresult rc = api->cuStreamEndCapture(rank->stream, &graph); /* in any case: it ends the stream's capturing */
    TRY(st);
    TRY(cuda_check(rank, rc, "capturing a step", err));
    rc = api->cuGraphInstantiate(&cuda->graph[i], graph, 0);
    api->cuGraphDestroy(graph);
    TRY(cuda_check(rank, rc, "making a graph of a step", err));
    return cuda_check(rank, api->cuGraphUpload(cuda->graph[i], rank->stream), "putting a graph on the device", err);
}

ls_status cuda_graphs_capture(ls_engine *engine, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    int64_t start = clock_ns();
    for (int i = 0; i < cuda->n_graphs; i++) {
        TRY(capture(engine, i, err));
    }
    engine->n_graphs = cuda->n_graphs;
    engine->graphs_us = (clock_ns() - start) / 1000;
    return cuda_rank_wait(&cuda->rank, "capturing graphs", CUDA_STEP_TIMEOUT_S, err);
}

static int bucket_of(int n_rows) {
    int bucket = 1;
    while (bucket < n_rows) {
        bucket *= 2;
    }
    return bucket;
}

/* Steps of a few rows, each of its own sequence (decode, and prompts of which one token is left), by the persistent kernel,
 * by their graph, or launch by launch where there is neither; others by the general kernels. */
static ls_status launch_step(ls_engine *engine, const ls_step *step, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    if (step->n_seqs < step->n_rows || step->n_rows > CUDA_MAX_DECODE) {
        return launch_ops(engine, step, 0, err);
    }
    if (cuda_persist_takes(cuda, step->n_rows)) {
        return cuda_persist_launch(cuda, step->n_rows, err);
    }
    for (int i = 0; i < cuda->n_graphs && cuda->profile == NULL; i++) {
        if (cuda->graph_rows[i] >= step->n_rows) {
            return cuda_check(&cuda->rank, cuda->driver->cuGraphLaunch(cuda->graph[i], cuda->rank.stream),
                              "starting a step's graph", err);
        }
    }
    return launch_ops(engine, step, bucket_of(step->n_rows), err);
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

static ls_status copy_results(ls_engine *engine, const step_batch *batch, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    const cuda_driver *api = cuda->driver;
    const cuda_rank *rank = &cuda->rank;
    const size_t n_vocab = (size_t)engine->model->spec.n_vocab;
    size_t words = result_faults(&engine->config) + (size_t)batch->step.n_rows;
    TRY(copy_words(cuda, rank->drawn, (CUdeviceptr)(uintptr_t)batch->result, words, err));
    CUdeviceptr logits = (CUdeviceptr)(uintptr_t)rank->bind.buf[BUF_LOGITS];
    for (int first = 0, last = 0; next_host_rows(batch, &first, &last);) {
        size_t skipped = (size_t)first * n_vocab, n = (size_t)(last - first) * n_vocab;
        TRY(cuda_check(rank,
                       api->cuMemcpyDtoHAsync(engine->host.logits + skipped, logits + skipped * sizeof(float),
                                              n * sizeof(float), rank->stream),
                       "copying logits", err));
    }
    return LS_OK;
}

typedef struct host_draw {
    const ls_engine *engine;
    const step_batch *batch;
} host_draw;

/* The CPU's offers for the rows whose logits came back: what its own engine would make of these logits. */
static void sample_on_host(void *arg, int i_rank, const ls_team *team) {
    const host_draw *draw = arg;
    const ls_engine *engine = draw->engine;
    const ls_program *program = engine->program[i_rank];
    const ls_op *op = &program->op[program->n_ops - 1];
    const host_memory *host = &engine->host;
    ls_bind bind = engine->rank[i_rank].bind;
    bind.buf[BUF_EDITED] = host->edited;
    bind.buf[BUF_SLICE] = host->slices;
    for (int first = 0, last = 0; next_host_rows(draw->batch, &first, &last);) {
        ls_step step = draw->batch->step;
        step.n_out = last - first;
        step.sample += first;
        bind.buf[BUF_LOGITS] = host->logits + (int64_t)first * op->sample.vocab_count;
        bind.buf[BUF_SAMPLE] = host->offers + first;
        cpu_ref_ops.fn[OP_SAMPLE](op, program->n_ops - 1, &bind, &step, team);
        if (!team_wait(team)) {
            return;
        }
    }
}

static void read_results(ls_engine *engine, const step_batch *batch) {
    bool any_on_host = false;
    for (int i = 0; i < batch->step.n_out; i++) {
        ls_sample_part *offer = &engine->host.offers[i];
        int32_t token = batch->result[i];
        if (batch->output[i].on_host) {
            any_on_host = true;
        } else { /* as `sample` would offer it; its value is compared with no other */
            offer->drawn_id = token;
            offer->n_best = token >= 0 && batch->step.sample[i].temperature == 0.0F;
            offer->best[0] = (ls_candidate){0.0F, token};
            offer->n_top = 0;
        }
    }
    if (any_on_host) {
        rank_group_run(engine->group, sample_on_host, &(host_draw){engine, batch});
    }
    engine->host.fault[0] = batch_faults(batch, &engine->config);
}

/* ---- A step ---- */

/* All of it goes to one stream: the input, the ops, the results' way back. So a step that was submitted before its
 * predecessor was collected finds the device's copy of the input, the drawn tokens and the faults free for it; only the
 * host's ends of the copies are the batch's own. */
ls_status cuda_submit(ls_engine *engine, step_batch *batch, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    cuda_rank *rank = &cuda->rank;
    CUevent done = cuda->done[batch - engine->batch];
    TRY(cuda_rank_enter(rank, err));                                           /* any thread may drive the engine */
    TRY(cuda_rank_wait_event(rank, done, "a step", CUDA_STEP_TIMEOUT_S, err)); /* one that nobody collected */
    TRY(copy_in_step(cuda, batch, &batch->step, batch->output, err));
    cuda_profile_begin(cuda);
    TRY(launch_step(engine, &batch->step, err));
    TRY(copy_results(engine, batch, err));
    return cuda_check(rank, cuda->driver->cuEventRecord(done, rank->stream), "starting a step", err);
}

ls_status cuda_collect(ls_engine *engine, step_batch *batch, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    CUevent done = cuda->done[batch - engine->batch];
    TRY(cuda_rank_enter(&cuda->rank, err));
    TRY(cuda_rank_wait_event(&cuda->rank, done, "a step", CUDA_STEP_TIMEOUT_S, err));
    TRY(cuda_persist_check(engine, err));
    TRY(cuda_profile_end(engine, batch, err));
    read_results(engine, batch);
    return LS_OK;
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
    TRY(copy_in_step(cuda, &engine->batch[0], &step, NULL, err));
    TRY(cuda_persist_launch(cuda, 1, err));
    TRY(cuda_rank_wait(&cuda->rank, "a first step", CUDA_STEP_TIMEOUT_S, err));
    return cuda_persist_check(engine, err);
}

/* ---- For verify ---- */

/* Waits for it too: only decode_embed does, and an op alone may read the step before it waits for anything. */
static ls_status bring_step(ls_engine *engine, const ls_step *step, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    cuda_rank *rank = &cuda->rank;
    TRY(cuda_rank_enter(rank, err));
    TRY(copy_in_step(cuda, &engine->batch[0], step, NULL, err));
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
