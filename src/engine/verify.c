/*
 * See verify.h. Both engines walk the same steps side by side, one op at a time, in two runs:
 *
 *   isolated:  before each op the tested engine gets the reference's inputs, and behind each qkv the reference's keys and
 *              values, so that what differs afterwards is this op's doing;
 *   running:   the tested engine goes on with what it computed, as it does in use.
 *
 * A GPU runs decode steps by kernels that do not stop at every op: there a STRETCH of ops, up to the next border where all
 * lies as ops.h says, takes the place of one op. It is launched as in use, and what its ops wrote is compared in their order.
 *
 * Steps: a prompt, its decode steps one row at a time, then shorter prompts of further sequences as one step, and decode
 * steps with a row of each.
 */
#include "engine/verify.h"

#include <stdio.h>
#include <stdlib.h>

#include "backend/cuda/kern/step.h"

/* Which views an op reads and writes; attn also reads the cache, which is kept equal behind qkv. */
static const uint32_t inputs_of[OP_KINDS] = {
    [OP_QKV] = 1u << VIEW_H,    [OP_ATTN] = 1u << VIEW_Q,
    [OP_OUT] = 1u << VIEW_ATT,  [OP_EXCHANGE] = 1u << VIEW_PART | 1u << VIEW_H,
    [OP_FFN_IN] = 1u << VIEW_H, [OP_FFN_OUT] = 1u << VIEW_ACT,
    [OP_HEAD] = 1u << VIEW_H,   [OP_SAMPLE] = 1u << VIEW_LOGITS,
};
static const uint32_t outputs_of[OP_KINDS] = {
    [OP_EMBED] = 1u << VIEW_PART,    [OP_QKV] = 1u << VIEW_X | 1u << VIEW_Q | 1u << VIEW_K | 1u << VIEW_V,
    [OP_ATTN] = 1u << VIEW_ATT,      [OP_OUT] = 1u << VIEW_PART,
    [OP_EXCHANGE] = 1u << VIEW_H,    [OP_FFN_IN] = 1u << VIEW_X | 1u << VIEW_ACT,
    [OP_FFN_OUT] = 1u << VIEW_PART,  [OP_HEAD] = 1u << VIEW_X | 1u << VIEW_LOGITS,
    [OP_SAMPLE] = 1u << VIEW_SAMPLE,
};

typedef struct verify_run {
    const verify_pair *pair;
    ls_verify_report *report;
    bool running;
    double margin;       /* by which a best logit leads to count, of the row's max|b| */
    const char *kernels; /* of the stretch that is compared; "" on the CPU */
    int n_seqs, pages_per_seq;
    int n_past[VERIFY_SEQS];   /* of each sequence */
    int32_t next[VERIFY_SEQS]; /* token of each, by the reference's choice */
    int i_step;
    ls_step step;
    ls_step_seq seq[VERIFY_SEQS];
    int32_t *token, *pos, *seq_of, *page, *out_row; /* one allocation */
    ls_sample_params *sample;
    float *tested, *reference, *parts; /* scratch: rows of a view; what ranks hold of them */
} verify_run;

/* ---- Running one op on all ranks ---- */

typedef struct op_job {
    const ls_engine *engine;
    const ls_step *step;
    int index;
} op_job;

static void run_rank(void *arg, int rank, const ls_team *team) {
    const op_job *job = arg;
    const ls_engine *engine = job->engine;
    const ls_op *op = &engine->program[rank]->op[job->index];
    const ls_bind *bind = &engine->rank[rank].bind;
    if (op->kind != OP_EXCHANGE ||
        engine->exchange->share(engine->exchange, bind, op->exchange.slot, job->step->n_rows)) {
        engine->plans.table->fn[op->kind](op, job->index, bind, job->step, team);
        team_wait(team);
    }
}

/* An engine that fails here is dead, which verify_engines tells. */
static void run_op(ls_engine *engine, const ls_step *step, int index) {
    if (engine->config.on_device) {
        ls_error why = {0};
        if (engine_check_alive(engine, NULL) == LS_OK && engine->backend->run_op(engine, step, index, &why) != LS_OK) {
            engine->death = why;
        }
        return;
    }
    op_job job = {engine, step, index};
    rank_group_run(engine->group, run_rank, &job);
}

/* Behind it all that the ops before it wrote lies as ops.h says, whoever ran them: a decode kernel's exchange goes on with
 * the norm of what follows, and what follows qkv's matmul is part of attention. */
static bool is_border(ls_op_kind kind) {
    return kind != OP_EXCHANGE && kind != OP_QKV;
}

/* What the tested engine has decode kernels for. */
static bool by_decode_kernels(const verify_run *run) {
    return run->pair->tested->backend->run_decode != NULL && run->step.n_seqs == run->step.n_rows &&
           run->step.n_rows <= CUDA_MAX_DECODE;
}

/* Ops [first, *last) on the tested engine: one, or a stretch. */
static void run_stretch(const verify_run *run, int first, int *last) {
    ls_engine *tested = run->pair->tested;
    const ls_program *program = tested->program[0];
    *last = first + 1;
    if (!by_decode_kernels(run)) {
        run_op(tested, &run->step, first);
        return;
    }
    ls_error why = {0};
    int n_taken = 1;
    for (*last = first; *last == first || (*last < program->n_ops && !is_border(program->op[*last - 1].kind));
         *last += n_taken) {
        if (engine_check_alive(tested, NULL) == LS_OK &&
            tested->backend->run_decode(tested, &run->step, *last, &n_taken, &why) != LS_OK) {
            tested->death = why;
            n_taken = 1;
        }
    }
}

/* ---- Views of all ranks ---- */

static bool same_ranks(const verify_run *run) {
    return run->pair->tested->config.n_ranks == run->pair->reference->config.n_ranks;
}

/* The whole of a view that ranks hold parts of. */
static void gather(const verify_run *run, const ls_engine *engine, const ls_op *op, verify_view view, float *out) {
    for (int r = 0; r < engine->config.n_ranks; r++) {
        verify_part part = verify_part_of(engine, r, op, view, &run->step);
        verify_read(engine, r, op, view, &run->step, run->parts);
        for (int m = 0; m < part.n_rows; m++) {
            memcpy(out + m * part.whole + part.first, run->parts + m * part.count, (size_t)part.count * sizeof *out);
        }
    }
}

/* The sum of all ranks' partial sums, up the leaf tree. */
static void gather_sum(const verify_run *run, const ls_engine *engine, const ls_op *op, float *out) {
    const int n_ranks = engine->config.n_ranks;
    const int64_t n = (int64_t)run->step.n_rows * engine->model->spec.d_model;
    for (int r = 0; r < n_ranks; r++) {
        verify_read(engine, r, op, VIEW_PART, &run->step, run->parts + r * n);
    }
    for (int64_t i = 0; i < n; i++) {
        float node[LS_MAX_RANKS] = {0};
        for (int r = 0; r < n_ranks; r++) {
            node[r] = run->parts[r * n + i];
        }
        out[i] = leaf_tree(node, n_ranks);
    }
}

/* The best logit of each row over all ranks, and its token. */
static void gather_choice(const verify_run *run, const ls_engine *engine, const ls_op *op, float *out, int32_t *token) {
    for (int r = 0; r < engine->config.n_ranks; r++) {
        verify_read(engine, r, op, VIEW_SAMPLE, &run->step, run->parts);
        for (int i = 0; i < run->step.n_out; i++) {
            float z = run->parts[2 * i];
            if (r == 0 || z > out[i]) { /* ranks come by rising ids: a tie is the lower one's */
                out[i] = z;
                token[i] = (int32_t)run->parts[2 * i + 1];
            }
        }
    }
}

static bool is_copied(verify_view view) {
    return view == VIEW_H || view == VIEW_X;
}

/* What the reference has of a view, whole rows: for comparison with, or as input of, one rank of the tested engine. */
static void read_reference(const verify_run *run, const ls_op *op, verify_view view, int tested_rank, float *out) {
    const ls_engine *reference = run->pair->reference;
    if (view == VIEW_PART && !same_ranks(run)) {
        gather_sum(run, reference, op, out);
    } else if (view == VIEW_PART || is_copied(view)) {
        verify_read(reference, same_ranks(run) ? tested_rank : 0, op, view, &run->step, out);
    } else {
        gather(run, reference, op, view, out);
    }
}

static void copy_view(const verify_run *run, const ls_op *op, verify_view view) {
    ls_engine *tested = run->pair->tested;
    for (int r = 0; r < tested->config.n_ranks; r++) {
        verify_part part = verify_part_of(tested, r, op, view, &run->step);
        read_reference(run, op, view, r, run->reference);
        for (int m = 0; m < part.n_rows; m++) {
            memcpy(run->tested + m * part.count, run->reference + m * part.whole + part.first,
                   (size_t)part.count * sizeof *run->tested);
        }
        if (view == VIEW_PART && !same_ranks(run) && r > 0) {
            memset(run->tested, 0, (size_t)(part.n_rows * part.count) * sizeof *run->tested);
        }
        verify_write(tested, r, op, view, &run->step, run->tested);
    }
}

static void copy_views(const verify_run *run, const ls_op *op, uint32_t views) {
    for (int view = 0; view < VIEWS; view++) {
        if (views >> view & 1) {
            copy_view(run, op, (verify_view)view);
        }
    }
}

/* ---- Comparing ---- */

/* max|a - b| over n elements / max|b| over the row's `whole`, whose part `a` stands against starts at `first`. */
static double row_error(const float *a, const float *row, int64_t first, int64_t n, int64_t whole) {
    float difference = 0.0F, scale = 0.0F;
    for (int64_t i = 0; i < whole; i++) {
        scale = fabsf(row[i]) > scale ? fabsf(row[i]) : scale;
    }
    for (int64_t i = 0; i < n; i++) {
        float apart = f32_bits(a[i]) == f32_bits(row[first + i]) ? 0.0F : fabsf(a[i] - row[first + i]);
        if (!isfinite(apart)) {
            return (double)INFINITY;
        }
        difference = apart > difference ? apart : difference;
    }
    return difference == 0.0F ? 0.0 : (double)difference / (double)scale; /* infinite where the reference is all zero */
}

static void note_first(ls_verify_place *first, const ls_verify_place *place) {
    if (!first->found) {
        *first = *place;
    }
}

static void note_breach(const verify_run *run, const ls_verify_place *place) {
    if (!run->report->first.found) {
        snprintf(run->report->first_kernels, sizeof run->report->first_kernels, "%s", run->kernels);
    }
    note_first(&run->report->first, place);
}

static void note(verify_run *run, const ls_op *op, verify_view view, int rank, int row, double error, bool bits_equal) {
    ls_verify_report *report = run->report;
    ls_verify_op *line = &(run->running ? report->running : report->isolated)[op->kind];
    const bool of_outputs = op->kind == OP_HEAD || op->kind == OP_SAMPLE;
    ls_verify_place place = {.found = true,
                             .running = run->running,
                             .op = op_kind_name(op->kind),
                             .buffer = verify_view_name(view),
                             .layer = op->layer,
                             .rank = rank,
                             .step = run->i_step,
                             .position = run->step.pos[of_outputs ? run->step.out_row[row] : row],
                             .error = error};
    line->n_compared++;
    if (!line->worst.found || error > line->worst.error) {
        line->worst = place;
    }
    if (!bits_equal) {
        line->bits_equal = false;
        note_first(&line->first_bits, &place);
    }
    if (!run->running && (error > report->tolerance || (report->bits_expected && !bits_equal))) {
        note_breach(run, &place);
    }
}

static void compare_rows(verify_run *run, const ls_op *op, verify_view view, int rank, const verify_part *part) {
    for (int m = 0; m < part->n_rows; m++) {
        const float *a = run->tested + m * part->count;
        const float *row = run->reference + m * part->whole;
        bool bits_equal = memcmp(a, row + part->first, (size_t)part->count * sizeof *a) == 0;
        note(run, op, view, rank, m, row_error(a, row, part->first, part->count, part->whole), bits_equal);
    }
}

static void compare_view(verify_run *run, const ls_op *op, verify_view view) {
    const ls_engine *tested = run->pair->tested;
    if (view == VIEW_PART && !same_ranks(run)) {
        int64_t d = tested->model->spec.d_model;
        gather_sum(run, tested, op, run->tested);
        read_reference(run, op, view, 0, run->reference);
        compare_rows(run, op, view, -1, &(verify_part){run->step.n_rows, 0, d, d});
        return;
    }
    for (int r = 0; r < tested->config.n_ranks; r++) {
        verify_part part = verify_part_of(tested, r, op, view, &run->step);
        verify_read(tested, r, op, view, &run->step, run->tested);
        if (r == 0 || view == VIEW_PART || is_copied(view)) {
            read_reference(run, op, view, r, run->reference);
        }
        compare_rows(run, op, view, r, &part);
    }
}

/* Greedy choices. Alone, the op has the reference's logits and must choose as it does. */
static void compare_choices(verify_run *run, const ls_op *op) {
    int32_t *tested_token = run->out_row + run->step.n_out, *token = tested_token + run->step.n_out;
    gather_choice(run, run->pair->tested, op, run->tested, tested_token);
    gather_choice(run, run->pair->reference, op, run->reference, token);
    for (int i = 0; i < run->step.n_out; i++) {
        double error = row_error(&run->tested[i], &run->reference[i], 0, 1, 1);
        bool same = tested_token[i] == token[i];
        bool bits_equal = same && f32_bits(run->tested[i]) == f32_bits(run->reference[i]);
        error = same || run->running ? error : (double)INFINITY;
        note(run, op, VIEW_SAMPLE, run->pair->tested->config.n_ranks > 1 ? -1 : 0, i, error, bits_equal);
    }
}

/* q lies nowhere as ops.h says where attention makes it. */
static void compare_outputs(verify_run *run, const ls_op *op) {
    const uint32_t hidden = by_decode_kernels(run) ? 1U << VIEW_Q : 0;
    for (int view = 0; view < VIEW_SAMPLE; view++) {
        if ((outputs_of[op->kind] & ~hidden) >> view & 1) {
            compare_view(run, op, (verify_view)view);
        }
    }
    if (op->kind == OP_SAMPLE) {
        compare_choices(run, op);
    }
}

static int best_of(const float *row, int n) {
    int best = 0;
    for (int i = 1; i < n; i++) {
        best = row[i] > row[best] ? i : best;
    }
    return best;
}

/* Logits of the free run: their error, and the margin rule for the tokens they choose. */
static void judge_logits(verify_run *run, const ls_op *op) {
    const int n_vocab = run->pair->tested->model->spec.n_vocab;
    ls_verify_report *report = run->report;
    gather(run, run->pair->tested, op, VIEW_LOGITS, run->tested);
    gather(run, run->pair->reference, op, VIEW_LOGITS, run->reference);
    for (int i = 0; i < run->step.n_out; i++) {
        const float *a = run->tested + (int64_t)i * n_vocab, *b = run->reference + (int64_t)i * n_vocab;
        double error = row_error(a, b, 0, n_vocab, n_vocab);
        int best = best_of(b, n_vocab);
        float second = -INFINITY, scale = 0.0F;
        for (int j = 0; j < n_vocab; j++) {
            second = j != best && b[j] > second ? b[j] : second;
            scale = fabsf(b[j]) > scale ? fabsf(b[j]) : scale;
        }
        bool wide = (double)(b[best] - second) > run->margin * (double)scale;
        bool other = wide && best_of(a, n_vocab) != best;
        bool bits_equal = memcmp(a, b, (size_t)n_vocab * sizeof *a) == 0;
        report->n_logits_rows++;
        report->n_margin_rows += wide;
        report->n_other_choices += other;
        report->logits_error = error > report->logits_error ? error : report->logits_error;
        if (error > report->logits_tolerance || other || (report->bits_expected && !bits_equal)) {
            note_breach(run, &(ls_verify_place){.found = true,
                                                .running = true,
                                                .op = op_kind_name(op->kind),
                                                .buffer = verify_view_name(VIEW_LOGITS),
                                                .layer = -1,
                                                .rank = -1,
                                                .step = run->i_step,
                                                .position = run->step.pos[run->step.out_row[i]],
                                                .error = error});
        }
    }
}

/* ---- Steps ---- */

/* Tokens of a sequence's prompt: the first has all, the others less, and all together less than twice as many. */
static int prompt_tokens(const verify_run *run, int seq, int n_prompt) {
    return seq == 0 ? n_prompt : 1 + (n_prompt - 1) * seq / (run->n_seqs * run->n_seqs);
}

/* A step of sequences [first, first + n): their prompts, or (n_prompt 0) a token of each. Output rows are the last one of
 * each, or of a prompt alone as many as there is room for. */
static void set_step(verify_run *run, int first, int n, const int32_t *prompt, int n_prompt) {
    int n_rows = 0, n_out_max = run->pair->tested->config.n_out_max;
    for (int i = 0; i < n; i++) {
        int seq = first + i, n_tokens = n_prompt > 0 ? prompt_tokens(run, seq, n_prompt) : 1;
        run->seq[i] = (ls_step_seq){n_rows, n_tokens, run->n_past[seq], run->page + seq * run->pages_per_seq};
        run->out_row[i] = n_rows + n_tokens - 1;
        for (int k = 0; k < n_tokens; k++, n_rows++) {
            run->token[n_rows] = n_prompt > 0 ? prompt[(seq + k) % n_prompt] : run->next[seq];
            run->pos[n_rows] = run->n_past[seq] + k;
            run->seq_of[n_rows] = i;
        }
    }
    int n_out = n > 1 ? n : n_rows < n_out_max ? n_rows : n_out_max;
    for (int i = 0; i < n_out; i++) {
        run->out_row[i] = n > 1 ? run->out_row[i] : n_rows - n_out + i;
        run->sample[i] = (ls_sample_params){.top_p = 1.0F, .position = run->pos[run->out_row[i]] + 1, .n_top = -1};
    }
    run->step = (ls_step){.n_rows = n_rows,
                          .n_dec = n_prompt > 0 ? 0 : n_rows,
                          .n_pre = n_prompt > 0 ? n_rows : 0,
                          .n_seqs = n,
                          .n_out = n_out,
                          .token = run->token,
                          .pos = run->pos,
                          .seq_of = run->seq_of,
                          .seq = run->seq,
                          .out_row = run->out_row,
                          .sample = run->sample};
}

/* On a GPU a kernel may leave its sum as any number of nodes of the tree, and verify_read adds up all that there can be. */
static void clear_parts(const verify_run *run, const ls_op *op) {
    ls_engine *tested = run->pair->tested;
    if (tested->config.on_device && (outputs_of[op->kind] >> VIEW_PART & 1) != 0) {
        memset(run->tested, 0, (size_t)run->step.n_rows * (size_t)tested->model->spec.d_model * sizeof *run->tested);
        verify_write(tested, 0, op, VIEW_PART, &run->step, run->tested);
    }
}

static const char *launched(ls_engine *engine) {
    return engine->backend->kernels != NULL ? engine->backend->kernels(engine) : "";
}

/* One step on both engines. */
static void walk(verify_run *run) {
    ls_engine *tested = run->pair->tested, *reference = run->pair->reference;
    const ls_op *ops = reference->program[0]->op;
    for (int first = 0, last; first < reference->program[0]->n_ops; first = last) {
        if (!run->running) {
            copy_views(run, &ops[first], inputs_of[ops[first].kind]);
        }
        clear_parts(run, &ops[first]);
        launched(tested); /* what was launched before is no business of this stretch */
        run_stretch(run, first, &last);
        run->kernels = launched(tested);
        for (int i = first; i < last; i++) {
            run_op(reference, &run->step, i);
        }
        for (int i = first; i < last; i++) {
            compare_outputs(run, &ops[i]);
            if (!run->running && ops[i].kind == OP_QKV) {
                copy_views(run, &ops[i], 1u << VIEW_K | 1u << VIEW_V);
            }
            if (run->running && ops[i].kind == OP_HEAD) {
                judge_logits(run, &ops[i]);
            }
        }
    }
}

/* Sequences [first, first + n) have one step behind them: where they stand, and what they go on with. */
static void advance(verify_run *run, int first, int n) {
    const ls_engine *reference = run->pair->reference;
    const ls_op *sample = &reference->program[0]->op[reference->program[0]->n_ops - 1];
    int32_t *token = run->out_row + run->step.n_out;
    gather_choice(run, reference, sample, run->reference, token);
    for (int i = 0; i < n; i++) {
        run->n_past[first + i] += run->seq[i].n_rows;
        run->next[first + i] = token[n > 1 ? i : run->step.n_out - 1];
    }
}

static void clear_faults(ls_engine *engine) {
    for (int r = 0; r < engine->config.n_ranks; r++) {
        for (int m = 0; m < engine->config.m_max; m++) {
            atomic_store_explicit(&engine->host.fault[r][m], 0, memory_order_relaxed);
        }
    }
}

static void walk_step(verify_run *run, int first, int n, const int32_t *prompt, int n_prompt) {
    set_step(run, first, n, prompt, n_prompt);
    walk(run);
    advance(run, first, n);
    run->i_step++;
}

static void walk_all(verify_run *run, const int32_t *prompt, int n_prompt, int n_decode) {
    memset(run->n_past, 0, sizeof run->n_past);
    run->i_step = 0;
    walk_step(run, 0, 1, prompt, n_prompt);
    while (run->i_step <= n_decode) {
        walk_step(run, 0, 1, NULL, 0);
    }
    if (run->n_seqs > 1) {
        walk_step(run, 1, run->n_seqs - 1, prompt, n_prompt);
        for (int i = 0; i < VERIFY_JOINT_STEPS; i++) {
            walk_step(run, 0, run->n_seqs, NULL, 0);
        }
    }
    clear_faults(run->pair->tested);
    clear_faults(run->pair->reference);
}

/* ---- The whole ---- */

/* Tolerances of ops.h by the coarser of the formats. In a free run the errors of all layers pile up: logits may be off ten
 * times as far in f32 and four times in coarser formats (what random weights were seen to need against transformers). A best
 * token counts where it leads by twice the format's tolerance of whole models. */
static void set_tolerances(verify_run *run) {
    const verify_pair *pair = run->pair;
    ls_verify_report *report = run->report;
    const engine_config *a = &pair->tested->config, *b = &pair->reference->config;
    const ls_dtype dtype[] = {a->dtype, a->kv_dtype, b->dtype, b->kv_dtype};
    bool same_quantization = pair->tested_quantization == pair->reference_quantization;
    report->bits_expected =
        !a->on_device && !b->on_device && a->dtype == b->dtype && a->kv_dtype == b->kv_dtype && same_quantization;
    report->tolerance = 1e-5;
    report->logits_tolerance = 1e-4;
    for (size_t i = 0; i < sizeof dtype / sizeof *dtype; i++) {
        double of_dtype = dtype[i] == LS_BF16 ? 2e-2 : dtype[i] == LS_F16 ? 2e-3 : 0;
        report->tolerance = of_dtype > report->tolerance ? of_dtype : report->tolerance;
    }
    /* With w8a8 a last bit of an input can move it by a whole step of 8 bits. */
    bool by_int8 = !same_quantization || (pair->tested_quantization == LS_QUANTIZATION_W8A8 && !report->bits_expected);
    report->tolerance = by_int8 ? 5e-2 : report->tolerance;
    bool coarse = report->tolerance > 1e-5;
    report->logits_tolerance = coarse ? 4 * report->tolerance : 1e-4;
    run->margin = 2 * (coarse ? report->tolerance : 1e-4);
}

static ls_status allocate(verify_run *run, int n_rows, ls_error *err) {
    const ls_engine *engine = run->pair->tested;
    const ls_spec *spec = &engine->model->spec;
    const size_t m = (size_t)n_rows, n_out = (size_t)engine->config.n_out_max;
    const int n_pages = run->n_seqs * run->pages_per_seq;
    size_t width = (size_t)spec->d_model * LS_MAX_RANKS; /* all ranks' parts */
    size_t heads = (size_t)spec->n_heads * (size_t)spec->d_head, ffn = (size_t)spec->d_ffn;
    width = heads > width ? heads : width;
    width = ffn > width ? ffn : width;
    size_t words = m * width, of_logits = n_out * (size_t)(spec->n_vocab > 2 ? spec->n_vocab : 2);
    words = of_logits > words ? of_logits : words;
    run->token = calloc(3 * m + (size_t)n_pages + 3 * n_out, sizeof *run->token);
    run->sample = calloc(n_out, sizeof *run->sample);
    run->tested = calloc(words, sizeof *run->tested);
    run->reference = calloc(words, sizeof *run->reference);
    run->parts = calloc(words, sizeof *run->parts);
    if (run->token == NULL || run->sample == NULL || run->tested == NULL || run->reference == NULL ||
        run->parts == NULL) {
        return error_set(err, LS_ENOMEM, "verify: out of memory");
    }
    run->pos = run->token + m;
    run->seq_of = run->pos + m;
    run->page = run->seq_of + m;
    run->out_row = run->page + n_pages; /* [3 n_out]: and two of tokens */
    for (int i = 0; i < n_pages; i++) {
        run->page[i] = i;
    }
    return LS_OK;
}

ls_status verify_engines(const verify_pair *pair, const int32_t *prompt, int n_prompt, int n_decode,
                         ls_verify_report *out, ls_error *err) {
    const ls_engine *tested = pair->tested, *reference = pair->reference;
    const int n_seqs = pair->n_seqs > 1 ? pair->n_seqs : 1;
    const int n_rows = verify_rows(n_prompt, n_seqs),
              pages_per_seq = pages_for(verify_tokens(n_prompt, n_decode, n_seqs));
    const engine_config *a = &tested->config, *b = &reference->config;
    if (tested->program[0]->n_ops != reference->program[0]->n_ops || n_prompt < 1 || n_rows > a->m_max ||
        n_rows > b->m_max || n_seqs * pages_per_seq > a->n_pages || n_seqs * pages_per_seq > b->n_pages ||
        n_seqs > VERIFY_SEQS || n_seqs > a->max_seqs || n_seqs > b->max_seqs || a->n_out_max > b->n_out_max) {
        return error_set(err, LS_EINTERNAL, "verify: engines of other programs or too small for the prompt");
    }
    ls_verify_report report = {.struct_size = out->struct_size,
                               .n_prompt_tokens = n_prompt,
                               .n_decode_steps = n_decode,
                               .n_sequences = n_seqs};
    for (int kind = 0; kind < OP_KINDS; kind++) {
        report.isolated[kind] = (ls_verify_op){.op = op_kind_name((ls_op_kind)kind), .bits_equal = true};
        report.running[kind] = report.isolated[kind];
    }
    verify_run run = {.pair = pair, .report = &report, .kernels = "", .n_seqs = n_seqs, .pages_per_seq = pages_per_seq};
    set_tolerances(&run);
    ls_status st = LS_OK;
    TRY_GOTO(allocate(&run, n_rows, err), fail);
    walk_all(&run, prompt, n_prompt, n_decode);
    run.running = true;
    walk_all(&run, prompt, n_prompt, n_decode);
    TRY_GOTO(engine_check_alive(tested, err), fail);
    TRY_GOTO(engine_check_alive(reference, err), fail);
    report.passed = !report.first.found;
    *out = report;
fail:
    free(run.token);
    free(run.sample);
    free(run.tested);
    free(run.reference);
    free(run.parts);
    return st;
}

_Static_assert((int)LS_VERIFY_OPS == (int)OP_KINDS, "public size of verify's tables");
