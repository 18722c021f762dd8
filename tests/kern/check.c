/* All comparisons of one case. See harness.h. */
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- Comparing two results ---- */

static int find_row(const kern_result *result, int row) {
    int i = 0;
    while (i < result->n_rows && result->row[i] != row) {
        i++;
    }
    return i;
}

static bool same_words(const kern_output *a, int64_t a_row, const kern_output *b, int64_t b_row, const char *what,
                       kern_report *report) {
    const float *x = a->value + a_row * a->cols, *y = b->value + b_row * b->cols;
    if (a->cols == b->cols && memcmp(x, y, (size_t)a->cols * sizeof *x) == 0) {
        return true;
    }
    int i = 0;
    while (i < a->cols - 1 && memcmp(&x[i], &y[i], sizeof *x) == 0) {
        i++;
    }
    return kern_fail(report, "bits: %s: %s row %d element %d is %a, was %a", what, a->name, (int)b_row, i, (double)y[i],
                     (double)x[i]);
}

/* Each row of b has the bits that the same row has in a; rows with skip[row] may differ. */
static bool same_bits(const kern_result *a, const kern_result *b, const bool *skip, const char *what,
                      kern_report *report) {
    bool good = true;
    for (int o = 0; o < b->n_outputs && good; o++) {
        const kern_output *x = &a->out[o], *y = &b->out[o];
        if (x->per_rank) {
            bool alike = a->n_ranks == b->n_ranks && a->n_rows == b->n_rows && skip == NULL &&
                         memcmp(a->row, b->row, (size_t)a->n_rows * sizeof *a->row) == 0;
            for (int i = 0; i < y->rows && good && alike; i++) {
                good = same_words(x, i, y, i, what, report);
            }
            continue;
        }
        for (int i = 0; i < b->n_rows && good; i++) {
            if (skip == NULL || !skip[b->row[i]]) {
                good = same_words(x, find_row(a, b->row[i]), y, i, what, report);
            }
        }
    }
    return good;
}

static bool no_faults(const kern_problem *p, const kern_result *result, kern_report *report) {
    for (int r = 0; r < result->n_ranks; r++) {
        for (int m = 0; m < p->n_rows; m++) {
            if (result->fault[r][m] != 0) {
                return kern_fail(report, "fault: row %d is noted on rank %d, though all is finite", m, r);
            }
        }
    }
    return true;
}

/* ---- One run against another ---- */

static bool ranks_allowed(const kern_case *c, int n_ranks) {
    return c->n_heads == 0 || (c->n_heads % n_ranks == 0 && (c->n_kv % n_ranks == 0 || n_ranks % c->n_kv == 0));
}

/* Runs and compares the bits with those of `was`. */
static bool again(const kern_problem *p, const kern_run *run, const kern_result *was, const char *what,
                  kern_report *report) {
    kern_result now;
    char text[96];
    snprintf(text, sizeof text, "%s %s R=%d t=%d", run->impl->name, what, run->n_ranks, run->n_threads);
    bool good = kern_execute(p, run, &now, report);
    good = good && same_bits(was, &now, NULL, text, report) && no_faults(p, &now, report);
    result_deinit(&now);
    return good;
}

/* Every team and R gives the bits of one thread; at each R, parts are those of the reference. */
static bool check_groups(const kern_problem *p, const kern_impl *impl, const kern_impl *reference,
                         const kern_result *was, kern_report *report) {
    static const int all[][2] = {{1, 2}, {1, 3}, {2, 1}, {2, 2}, {4, 1}, {8, 1}, {8, 3}};
    static const int few[][2] = {{1, 3}, {2, 1}, {8, 1}};
    bool small = p->c->model != NULL || kern_sanitized();
    int n = small ? (int)(sizeof few / sizeof *few) : (int)(sizeof all / sizeof *all);
    bool good = true;
    for (int i = 0; i < n && good; i++) {
        const int *group = small ? few[i] : all[i];
        if (!ranks_allowed(p->c, group[0])) {
            continue;
        }
        kern_run run = {.impl = impl, .n_ranks = group[0], .n_threads = group[1]};
        good = again(p, &run, was, group[0] == 1 ? "other team" : "other ranks", report);
        if (good && group[0] > 1 && group[1] == 1 && strcmp(impl->name, reference->name) != 0) {
            kern_run reference_run = {.impl = reference, .n_ranks = group[0], .n_threads = 1};
            kern_result wanted;
            good = kern_execute(p, &reference_run, &wanted, report) &&
                   again(p, &run, &wanted, "not the reference", report);
            result_deinit(&wanted);
        }
    }
    return good;
}

/* Rows alone, and sequences in the opposite order. */
static bool check_company(const kern_problem *p, const kern_impl *impl, const kern_result *was, kern_report *report) {
    bool good = true;
    const int picked[] = {0, p->n_rows / 2, p->n_rows - 1};
    for (int i = 0; i < 3 && good && p->n_rows > 1; i++) {
        int row = picked[i], seq = p->row_seq[row];
        kern_span alone = {seq, row - p->seq_first[seq], 1};
        kern_run run = {.impl = impl, .n_ranks = 1, .n_threads = 1, .span = &alone, .n_spans = 1};
        good = again(p, &run, was, "row alone", report);
    }
    if (p->n_seqs > 1 && good) {
        kern_span backwards[KERN_MAX_SEQS];
        for (int s = 0; s < p->n_seqs; s++) {
            int seq = p->n_seqs - 1 - s;
            backwards[s] = (kern_span){seq, 0, p->c->seq[seq].n_rows};
        }
        kern_run run = {.impl = impl, .n_ranks = 1, .n_threads = 1, .span = backwards, .n_spans = p->n_seqs};
        good = again(p, &run, was, "other order", report);
    }
    return good;
}

/* ---- Coverage ---- */

static void note_coverage(kern_coverage *coverage, int i_impl, const kern_problem *p, double worst) {
    const kern_case *c = p->c;
    int longest = 0;
    for (int s = 0; s < p->n_seqs; s++) {
        longest = kern_positions(c, s) > longest ? kern_positions(c, s) : longest;
    }
    /* The sizes that an op of this kind is free in; 0: no such size. */
    const int size[] = {c->kind == OP_ATTN || c->kind == OP_SAMPLE ? 0 : c->d_model, c->n, c->n_heads,
                        c->kind == OP_ATTN ? longest : 0, p->n_rows};
    bool odd = true, one = true;
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        odd = odd && (size[i] == 0 || (size[i] % 2 == 1 && size[i] > 1));
        one = one && size[i] <= 1;
    }
    if (c->quantization != LS_QUANTIZATION_NONE) {
        coverage->n_quantized[i_impl][c->kind]++;
        return;
    }
    coverage->n[i_impl][c->kind][KERN_ODD] += odd;
    coverage->n[i_impl][c->kind][KERN_ONE] += one;
    coverage->n[i_impl][c->kind][KERN_PER_RANK] += c->model != NULL;
    double *most = &coverage->worst[c->kind][c->dtype];
    *most = worst > *most ? worst : *most;
}

/* ---- The checks ---- */

static bool check_impl(const kern_problem *p, const kern_impl *impl, const kern_impl *reference,
                       const kern_result *wanted, double *worst, kern_report *report) {
    kern_run run = {.impl = impl, .n_ranks = 1, .n_threads = 1};
    kern_result result;
    bool good = kern_execute(p, &run, &result, report) && oracle_check(p, &result, impl->exact, worst, report) &&
                no_faults(p, &result, report);
    if (good && impl->exact) {
        good = same_bits(wanted, &result, NULL, "not the reference", report) &&
               check_groups(p, impl, reference, &result, report) && check_company(p, impl, &result, report);
    }
    result_deinit(&result);
    return good;
}

bool kern_check(const kern_case *c, const kern_impl *impl, int n_impls, kern_coverage *coverage, kern_report *report) {
    kern_problem *p = problem_create(c);
    kern_impl known[KERN_MAX_IMPLS];
    kern_impls(known);
    kern_run run = {.impl = &known[0], .n_ranks = 1, .n_threads = 1};
    kern_result wanted;
    bool good = kern_execute(p, &run, &wanted, report);
    for (int i = 0; i < n_impls && good; i++) {
        double worst = 0;
        good = check_impl(p, &impl[i], &known[0], &wanted, &worst, report);
        if (good && coverage != NULL) {
            note_coverage(coverage, i, p, worst);
        }
        if (!good) {
            char text[256];
            size_t used = strlen(report->text);
            snprintf(report->text + used, sizeof report->text - used, " [%s of %s]", impl[i].name,
                     kern_case_text(c, text));
        }
    }
    result_deinit(&wanted);
    problem_destroy(p);
    return good;
}

/* ---- Faults ---- */

enum { POISONED = 1 }; /* the row */

/* Where the poison goes: the middle of what the op reads of the row. */
static float *poison_place(kern_problem *p) {
    const int d = p->c->d_model;
    switch (p->c->kind) {
    case OP_EMBED:
        return &p->input_rows[(int64_t)(-1 - p->token[POISONED]) * d + d / 2];
    case OP_EXCHANGE:
        return &p->leaf[((int64_t)3 * p->n_rows + POISONED) * d + d / 2];
    default:
        return &p->in[(int64_t)POISONED * p->in_cols + p->in_cols / 2];
    }
}

static bool check_notes(const kern_problem *p, const kern_result *result, bool failed_before, kern_report *report) {
    const ls_op_kind kind = p->c->kind;
    const bool two_ops = kind == OP_EMBED || kind == OP_OUT || kind == OP_FFN_OUT;
    for (int r = 0; r < result->n_ranks; r++) {
        bool notes = two_ops || kind == OP_EXCHANGE || (kind == OP_HEAD && result->has_vocab[r]);
        int wanted = failed_before ? 1 + KERN_FAILED_BEFORE : notes ? 1 + KERN_OP_INDEX + two_ops : 0;
        for (int m = 0; m < p->n_rows; m++) {
            if (result->fault[r][m] != (m == POISONED ? wanted : 0)) {
                return kern_fail(report, "fault: rank %d row %d is noted as %d, not %d", r, m, result->fault[r][m],
                                 m == POISONED ? wanted : 0);
            }
        }
    }
    return true;
}

static bool shows(const kern_result *result) {
    const kern_output *out = &result->out[0];
    const float *value = out->value + (int64_t)find_row(result, POISONED) * out->cols;
    for (int i = 0; i < out->cols; i++) {
        if (!isfinite(value[i])) {
            return true;
        }
    }
    return false;
}

/* A run with poison in place: neighbours have the bits of the clean run. */
static bool check_poisoned(const kern_problem *p, const kern_impl *impl, int n_ranks, bool failed_before,
                           const kern_result *clean, const bool *skip, kern_report *report) {
    const int row = POISONED;
    kern_run run = {.impl = impl, .n_ranks = n_ranks, .n_threads = 2, .failed_row = failed_before ? &row : NULL};
    kern_result result;
    char text[96];
    snprintf(text, sizeof text, "%s beside a poisoned row R=%d", impl->name, n_ranks);
    bool good = kern_execute(p, &run, &result, report) && same_bits(clean, &result, skip, text, report) &&
                check_notes(p, &result, failed_before, report);
    if (good && p->c->kind != OP_SAMPLE && !shows(&result)) {
        good = kern_fail(report, "fault: the poison of row %d does not show in its output", POISONED);
    }
    result_deinit(&result);
    return good;
}

bool kern_check_faults(const kern_case *c, const kern_impl *impl, kern_report *report) {
    static const float poison[] = {INFINITY, -INFINITY, NAN};
    kern_problem *p = problem_create(c);
    const int n_ranks = ranks_allowed(c, 8) ? 8 : 1;
    bool own_row[KERN_MAX_ROWS] = {false}, own_sequence[KERN_MAX_ROWS] = {false};
    kern_run run = {.impl = impl, .n_ranks = 1, .n_threads = 1};
    kern_result clean;
    bool good = kern_execute(p, &run, &clean, report);
    own_row[POISONED] = true;
    float *place = poison_place(p), was = *place;
    for (size_t i = 0; i < sizeof poison / sizeof *poison && good; i++) {
        *place = poison[i];
        good = check_poisoned(p, impl, 1, false, &clean, own_row, report) &&
               check_poisoned(p, impl, n_ranks, false, &clean, own_row, report) &&
               check_poisoned(p, impl, 1, true, &clean, own_row, report);
        *place = was;
    }
    if (c->kind == OP_ATTN && good) { /* a poisoned cache is its own sequence's trouble */
        for (int m = 0; m < p->n_rows; m++) {
            own_sequence[m] = p->row_seq[m] == p->row_seq[POISONED];
        }
        p->v[p->row_seq[POISONED]][0] = NAN;
        good = check_poisoned(p, impl, 1, false, &clean, own_sequence, report);
    }
    result_deinit(&clean);
    problem_destroy(p);
    return good;
}
