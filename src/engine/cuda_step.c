/* One step on a GPU: pack, launch, read back. See cuda_engine.h. */
#include <stdio.h>
#include <stdlib.h>

#include "backend/cuda/flash.h"
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
    pack_draws(step, output, image, &used);
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

/* Makes a rank's GPU the thread's; one rank's is already. */
static ls_status enter(const cuda_engine *first, const cuda_engine *cuda, ls_error *err) {
    return first->n_ranks == 1 ? LS_OK : cuda_rank_enter(&cuda->rank, err);
}

static ls_status copy_in_step(ls_engine *engine, const step_batch *batch, const ls_step *step,
                              const step_output *output, ls_error *err) {
    const cuda_engine *first = engine_cuda(engine);
    const size_t bytes = pack_step(engine, step, output, batch->image);
    for (int r = first->n_ranks - 1; r >= 0; r--) {
        cuda_engine *cuda = first->of[r];
        TRY(enter(first, cuda, err));
        TRY(copy_words(cuda, (CUdeviceptr)(uintptr_t)batch->image, cuda->rank.step, (bytes + 3) / 4, err));
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

/* Every op of the program, by the launchers for decode steps of at most `rows` rows, or (rows = 0) those for any step; on one
 * GPU, or (leader NULL) on all of them, which take their turns: none has to wait for what another one was not given yet. */
static ls_status launch_ops(ls_engine *engine, cuda_engine *leader, const ls_step *step, int rows, ls_error *err) {
    cuda_engine *all = engine_cuda(engine);
    const ls_program *program = engine->program[0];
    for (int first = 0, n_taken = 0; first < program->n_ops; first += n_taken) {
        const ls_op *op = &program->op[first];
        for (int r = all->n_ranks - 1; r >= 0; r--) {
            cuda_engine *cuda = all->of[r];
            if (cuda->leader != cuda || (leader != NULL && cuda != leader)) {
                continue;
            }
            TRY(enter(all, cuda, err));
            TRY(cuda_profile_mark(cuda, first, err));
            ls_status st = launch_op(cuda, first, step, rows, &n_taken, err);
            if (st < 0) {
                return error_prefix(err, st, "op %s, layer %d", op_kind_name(op->kind), op->layer);
            }
        }
        if (n_taken < 1) {
            return error_set(err, LS_EINTERNAL, "op %s, layer %d: no kernel took it", op_kind_name(op->kind),
                             op->layer);
        }
    }
    TRY(enter(all, leader != NULL ? leader : all, err));
    return cuda_profile_mark(leader != NULL ? leader : all, program->n_ops, err);
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
    ls_status st = launch_ops(cuda->engine, cuda, NULL, cuda->graph_rows[i], err);
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

static ls_status launch_graphs(const cuda_engine *first, int i, ls_error *err) {
    for (int r = first->n_ranks - 1; r >= 0; r--) {
        const cuda_engine *cuda = first->of[r];
        if (cuda->leader == cuda) {
            TRY(enter(first, cuda, err));
            TRY(cuda_check(&cuda->rank, cuda->driver->cuGraphLaunch(cuda->graph[i], cuda->rank.stream),
                           "starting a step's graph", err));
        }
    }
    return LS_OK;
}

/* Decode-only steps by their graph, or launch by launch where there is none; others by the general kernels. Up to
 * CUDA_MAX_DECODE rows have kernels, and bits, of their own: no larger graph serves them. */
static ls_status launch_step(ls_engine *engine, const ls_step *step, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    if (!is_decode_only(step)) {
        return launch_ops(engine, NULL, step, 0, err);
    }
    const bool is_wide = step->n_rows > CUDA_MAX_DECODE;
    for (int i = 0; i < cuda->n_graphs && cuda->profile == NULL; i++) {
        if (cuda->graph_rows[i] >= step->n_rows && (cuda->graph_rows[i] > CUDA_MAX_DECODE) == is_wide) {
            return launch_graphs(cuda, i, err);
        }
    }
    return launch_ops(engine, NULL, step, is_wide ? step->n_rows : bucket_of(step->n_rows), err);
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

static ls_status copy_results(ls_engine *engine, const step_batch *batch, ls_error *err) {
    const cuda_engine *first = engine_cuda(engine);
    const size_t words = result_faults(&engine->config) + (size_t)batch->step.n_rows;
    for (int r = first->n_ranks - 1; r >= 0; r--) {
        cuda_engine *cuda = first->of[r];
        const CUdeviceptr to = (CUdeviceptr)(uintptr_t)batch_result(batch, &engine->config, r);
        TRY(enter(first, cuda, err));
        TRY(copy_words(cuda, cuda->rank.drawn, to, words, err));
        TRY(copy_logits(engine, r, batch, err));
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
    for (int r = 0; r < engine->config.n_ranks; r++) {
        ls_sample_part *offer = (ls_sample_part *)(uintptr_t)&engine->rank[r].offers[i];
        const int32_t token = r == 0 ? batch->result[i] : -1;
        offer->drawn_id = token;
        offer->n_best = token >= 0 && batch->step.sample[i].temperature == 0.0F;
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

/* On every GPU. A rank that waited in vain for another is told rather than what came of it; that is known before the step
 * ends where a GPU does not come to its end. */
static ls_status wait_for_step(ls_engine *engine, const step_batch *batch, ls_error *err) {
    const cuda_engine *first = engine_cuda(engine);
    ls_status st = LS_OK;
    for (int r = 0; r < first->n_ranks && st == LS_OK; r++) {
        const cuda_engine *cuda = first->of[r];
        if (cuda->leader == cuda) {
            TRY(cuda_rank_enter(&cuda->rank, err));
            st = cuda_rank_wait_event(&cuda->rank, cuda->done[batch - engine->batch], "a step", CUDA_STEP_TIMEOUT_S,
                                      err);
        }
    }
    const ls_status waited = cuda_ranks_check(engine, err);
    return waited != LS_OK ? waited : st;
}

/* All of it goes to a GPU's one stream: the input, the ops, the results' way back. So a step that was submitted before its
 * predecessor was collected finds the device's copy of the input, the drawn tokens and the faults free for it; only the
 * host's ends of the copies are the batch's own. */
ls_status cuda_submit(ls_engine *engine, step_batch *batch, ls_error *err) {
    cuda_engine *first = engine_cuda(engine);
    const ptrdiff_t i = batch - engine->batch;
    TRY(wait_for_step(engine, batch, err));  /* one that nobody collected */
    TRY(cuda_rank_enter(&first->rank, err)); /* any thread may drive the engine */
    TRY(copy_in_step(engine, batch, &batch->step, batch->output, err));
    cuda_profile_begin(first);
    TRY(launch_step(engine, &batch->step, err));
    TRY(copy_results(engine, batch, err));
    for (int r = first->n_ranks - 1; r >= 0; r--) {
        cuda_engine *cuda = first->of[r];
        if (cuda->leader == cuda) {
            TRY(enter(first, cuda, err));
            TRY(cuda_check(&cuda->rank, cuda->driver->cuEventRecord(cuda->done[i], cuda->rank.stream),
                           "starting a step", err));
        }
    }
    return LS_OK;
}

ls_status cuda_collect(ls_engine *engine, step_batch *batch, ls_error *err) {
    TRY(wait_for_step(engine, batch, err));
    batch->ended_ns = clock_ns();
    TRY(cuda_profile_end(engine, batch, err));
    read_results(engine, batch);
    return LS_OK;
}

/* ---- For verify ---- */

/* Waits for it too: only decode_embed does, and an op alone may read the step before it waits for anything. */
static ls_status bring_step(ls_engine *engine, const ls_step *step, ls_error *err) {
    cuda_engine *cuda = engine_cuda(engine);
    cuda_rank *rank = &cuda->rank;
    TRY(cuda_rank_enter(rank, err));
    TRY(copy_in_step(engine, &engine->batch[0], step, NULL, err));
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
