/* See profile.h. */
#include "engine/profile.h"

#include <stdio.h>
#include <stdlib.h>

/* "exchange+qkv": the kinds of ops [first, last). */
static void name_ops(const ls_program *program, int first, int last, char *out, size_t out_bytes) {
    size_t n = 0;
    out[0] = '\0';
    for (int i = first; i < last && n < out_bytes; i++) {
        n += (size_t)snprintf(out + n, out_bytes - n, "%s%s", i > first ? "+" : "", op_kind_name(program->op[i].kind));
    }
}

/* Tokens that a sequence's rows attend to, summed over the rows. */
static double attended_tokens(const ls_step_seq *seq, int64_t window) {
    double sum = 0;
    for (int64_t row = 1; row <= seq->n_rows; row++) {
        int64_t tokens = seq->n_past + row;
        sum += (double)(window > 0 && window < tokens ? window : tokens);
    }
    return sum;
}

/* The KV cache is read once for all rows of a sequence, its flops are each row's own. */
static void attention_work(const ls_engine *engine, const step_batch *batch, const ls_op *op, ls_profile_line *line) {
    const int64_t window = op->attn.window_tokens;
    double tokens = 0, attended = 0;
    for (int i = 0; i < batch->step.n_seqs; i++) {
        int64_t full = (int64_t)batch->seq[i].n_past + batch->seq[i].n_rows;
        tokens += (double)(window > 0 && window < full ? window : full);
        attended += attended_tokens(&batch->seq[i], window);
    }
    line->bytes +=
        tokens * 2 * (double)(op->attn.n_kv_loc * op->attn.d_head) * (double)ls_dtype_bytes(engine->config.kv_dtype);
    line->flops += attended * 4 * (double)(op->attn.n_heads_loc * op->attn.d_head);
}

static ls_profile_line *line_of(profile_lines *lines, const char *ops, bool decode) {
    for (int i = 0; i < lines->n; i++) {
        if (lines->line[i].decode == decode && strcmp(lines->line[i].ops, ops) == 0) {
            return &lines->line[i];
        }
    }
    if (lines->n == PROFILE_LINES) {
        return &lines->line[PROFILE_LINES - 1];
    }
    ls_profile_line *line = &lines->line[lines->n++];
    snprintf(line->ops, sizeof line->ops, "%s", ops);
    line->decode = decode;
    return line;
}

static void add_runner(profile_lines *lines, ls_profile_line *line, int runner, double us) {
    double *runner_us = lines->runner_us[line - lines->line];
    runner_us[runner] += us;
    line->least_us = line->most_us = runner_us[0];
    for (int i = 1; i < lines->n_runners; i++) {
        line->least_us = runner_us[i] < line->least_us ? runner_us[i] : line->least_us;
        line->most_us = runner_us[i] > line->most_us ? runner_us[i] : line->most_us;
    }
}

void profile_add(profile_lines *lines, const ls_engine *engine, const step_batch *batch, int first, int last,
                 int runner, double us) {
    const ls_program *program = engine->program[0];
    char ops[sizeof lines->line->ops];
    name_ops(program, first, last, ops, sizeof ops);
    ls_profile_line *line = line_of(lines, ops, batch->step.n_pre == 0);
    add_runner(lines, line, runner, us);
    if (runner > 0) {
        return;
    }
    line->launches++;
    line->total_us += us;
    for (int i = first; i < last; i++) {
        const ls_op *op = &program->op[i];
        if (op->kind == OP_ATTN) {
            attention_work(engine, batch, op, line);
            continue;
        }
        /* The head has a row for each token that is drawn. */
        const int n_rows = op->kind == OP_HEAD ? batch->step.n_out : batch->step.n_rows;
        line->bytes += (double)op->weight_bytes;
        line->flops += (double)op->flops_per_row * n_rows;
    }
}

ls_status cpu_profile_open(ls_engine *engine, ls_error *err) {
    const size_t n = (size_t)engine->program[0]->n_ops * (size_t)engine->config.rank_count;
    engine->profile = calloc(1, sizeof *engine->profile + n * sizeof *engine->profile->op_ns);
    if (engine->profile == NULL) {
        return error_set(err, LS_ENOMEM, "profile: out of memory");
    }
    engine->profile->lines.n_runners = engine->config.rank_count;
    return LS_OK;
}

void cpu_profile_step(ls_engine *engine, const step_batch *batch) {
    struct cpu_profile *profile = engine->profile;
    const int n_ops = engine->program[0]->n_ops;
    for (int i = 0; profile != NULL && i < n_ops * engine->config.rank_count; i++) {
        const int op = i % n_ops;
        profile_add(&profile->lines, engine, batch, op, op + 1, i / n_ops, (double)profile->op_ns[i] / 1000);
        profile->op_ns[i] = 0;
    }
}
