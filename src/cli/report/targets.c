/* Targets: what has to be reached, and whether the results reach it. */
#include <math.h>
#include <string.h>

#include "cli/report/report.h"

typedef enum target_kind { AT_MOST, AT_LEAST } target_kind;

/* NULL and 0: any. */
typedef struct target {
    const char *name, *what, *test, *metric;
    target_kind kind;
    double limit;
    const char *unit, *model, *device, *dtype, *quantization;
    int batch;
    int64_t input;
    bool ratio; /* to the same at batch 1 */
} target;

#define QWEN "Qwen3-4B", "H100"
#define MISTRAL "Mistral-7B", "H100"

static const target targets[] = {
    {"interactive", "latency", "tg", "step_ms", AT_MOST, 50, "ms a token", NULL, NULL, NULL, NULL, 0, 0, false},
    {"first token", "latency", "pp26", "first_token_ms", AT_MOST, 500, "ms", NULL, NULL, NULL, NULL, 0, 0, false},
    {"throughput", "throughput", "batch", "tokens_per_s", AT_LEAST, 500, "tokens/s", NULL, NULL, NULL, NULL, 8, 0,
     false},
    {"first token of 26", "latency", "pp26", "first_token_ms", AT_MOST, 7, "ms", QWEN, "bf16", "none", 0, 0, false},
    {"throughput, batch 8", "throughput", "batch", "tokens_per_s", AT_LEAST, 2500, "tokens/s", QWEN, "bf16", "none", 8,
     0, false},
    {"decode, bf16", "latency", "tg", "limit_percent", AT_LEAST, 72, "% of the limit", QWEN, "bf16", "none", 0, 0,
     false},
    {"decode, f32", "latency", "tg", "limit_percent", AT_LEAST, 82, "% of the limit", QWEN, "f32", "none", 0, 0, false},
    {"decode, int8", "latency", "tg", "limit_percent", AT_LEAST, 55, "% of the limit", QWEN, "bf16", "w8a16", 0, 0,
     false},
    {"decode, bf16", "latency", "tg", "limit_percent", AT_LEAST, 80, "% of the limit", MISTRAL, "bf16", "none", 0, 0,
     false},
    {"batch 8 over batch 1", "throughput", "batch", "step_ms", AT_MOST, 1.15, "x", QWEN, "bf16", "none", 8, 0, true},
    {"batch 16 over batch 1", "throughput", "batch", "step_ms", AT_MOST, 1.3, "x", QWEN, "bf16", "none", 16, 0, true},
    {"context 8192", "sweep", "", "limit_percent", AT_LEAST, 70, "% of the limit", QWEN, "bf16", "none", 1, 8192,
     false},
};
enum { N_TARGETS = sizeof targets / sizeof *targets };

static bool applies(const target *t, const result_row *r) {
    return (t->model == NULL || strstr(r->model, t->model) != NULL) &&
           (t->device == NULL || (strstr(r->device, t->device) != NULL && row_is(r, "device", "cuda"))) &&
           (t->dtype == NULL || row_is(r, "dtype", t->dtype)) &&
           (t->quantization == NULL || row_is(r, "quantization", t->quantization)) &&
           (t->batch == 0 || row_int(r, "batch") == t->batch) && (t->input == 0 || row_int(r, "input") == t->input) &&
           (t->model == NULL || row_int(r, "tp") == 1);
}

/* Over the step of batch 1 with all else the same. */
static double value_of(const target *t, const report_data *data, const result_row *r) {
    double value = row_value(r, t->metric), base = NAN;
    size_t at = 0;
    for (const result_row *one; t->ratio && (one = data_next(data, &at, t->what, t->test)) != NULL;) {
        if (row_int(one, "batch") == 1 && rows_pair(one, r, "batch", NULL)) {
            base = row_value(one, t->metric);
        }
    }
    return t->ratio ? value / base : value;
}

static void target_row(page *p, const target *t, const char *who, const char *device, double value, int *n_missed) {
    char number[48];
    page_cell(p, "%s%s%s", t->model != NULL ? t->model : "", t->model != NULL ? ": " : "", t->name);
    page_cell(p, "%s %g %s", t->kind == AT_MOST ? "at most" : "at least", t->limit, t->unit);
    page_cell(p, "%s", who);
    page_cell(p, "%s", device);
    if (!isfinite(value)) {
        page_cell(p, "%s", "");
        page_cell(p, "not measured");
        return;
    }
    const bool good = t->kind == AT_MOST ? value <= t->limit : value >= t->limit;
    *n_missed += !good;
    number_text(value, number, sizeof number);
    page_cell(p, "%s", number);
    page_cell(p, "%s", good ? "pass" : "MISSED");
}

void section_targets(page *p, const report_data *data, int *n_missed) {
    *n_missed = 0;
    page_heading(p, "targets", "Targets");
    page_text(p, "Those of any model and device first, then ours for one H100.");
    page_table(p, "target|limit|model|where|measured|verdict");
    for (int i = 0; i < N_TARGETS; i++) {
        const target *t = &targets[i];
        size_t at = 0;
        int n = 0;
        for (const result_row *r; (r = data_next(data, &at, t->what, t->test)) != NULL;) {
            const double value = applies(t, r) ? value_of(t, data, r) : NAN;
            if (isfinite(value)) {
                char label[160];
                row_label(r, label, sizeof label);
                target_row(p, t, label, r->device, value, n_missed);
                n++;
            }
        }
        if (n == 0) {
            target_row(p, t, "", t->device != NULL ? t->device : "", NAN, n_missed);
        }
    }
    page_table_end(p);
}
