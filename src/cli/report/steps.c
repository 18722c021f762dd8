/* Sections about decode steps: bandwidth, batches, precision, context, plans, gains. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/report/report.h"

static void metric_cell(page *p, const result_row *r, const char *name) {
    char text[128];
    row_text(r, name, text, sizeof text);
    page_cell(p, "%s", text);
}

static void number_cell(page *p, double value, double scale) {
    char text[48] = "";
    if (isfinite(value)) {
        number_text(value / scale, text, sizeof text);
    }
    page_cell(p, "%s", text);
}

/* Model, device, batch and prompt: how most tables begin. */
static void step_cells(page *p, const result_row *r) {
    char label[160];
    row_label(r, label, sizeof label);
    page_cell(p, "%s", label);
    page_cell(p, "%s", r->device);
    page_cell(p, "%lld", (long long)row_int(r, "batch"));
    page_cell(p, "%lld", (long long)row_int(r, "input"));
}

/* Rows of decode steps, of any measurement: plain ones, each once. */
static const result_row *next_step(const report_data *data, size_t *at) {
    const result_row *r;
    do {
        r = data_next(data, at, NULL, "");
    } while (r != NULL && (!isfinite(row_value(r, "step_ms")) || strcmp(r->what, "peers") == 0 || !row_is_plain(r) ||
                           row_was_there(data, r)));
    return r;
}

/* ---- Bandwidth ---- */

void section_bandwidth(page *p, const report_data *data) {
    size_t at = 0;
    int n = 0;
    page_heading(p, "bandwidth", "Memory bandwidth");
    for (const result_row *r; (r = next_step(data, &at)) != NULL;) {
        const double weights = row_value(r, "weight_bytes"), kv = row_value(r, "kv_bytes");
        if (n++ == 0) {
            page_text(p, "What a decode step has to read, and how fast it did, beside the same device reading the same "
                         "weights and doing nothing else.");
            page_table(p,
                       "model|device|batch|prompt|weights, MB a step|KV, MB a step|KV, %|reached, GB/s|possible, GB/s|"
                       "% of the limit");
        }
        step_cells(p, r);
        number_cell(p, weights, 1e6);
        number_cell(p, kv, 1e6);
        number_cell(p, kv / (weights + kv) * 100, 1);
        number_cell(p, (weights + kv) / row_value(r, "step_ms"), 1e6);
        number_cell(p, row_value(r, "read_bytes_per_s"), 1e9);
        metric_cell(p, r, "limit_percent");
    }
    page_table_close(p, n > 0, "Bytes and bandwidth of steps", "lockstep bench latency -m MODEL");
}

/* ---- Batches ---- */

void section_batch(page *p, const report_data *data) {
    size_t at = 0;
    plot *time = calloc(1, sizeof *time), *rate = calloc(1, sizeof *rate);
    page_heading(p, "batch", "Batch, time and throughput");
    if (time == NULL || rate == NULL) {
        free(time);
        free(rate);
        return;
    }
    *time = (plot){.title = "A decode step", .x = "batch", .y = "ms a step", .log_x = true};
    *rate = (plot){.title = "Throughput", .x = "batch", .y = "tokens/s", .log_x = true, .log_y = true};
    int n = 0;
    for (const result_row *r; (r = data_next(data, &at, "throughput", "batch")) != NULL;) {
        char label[160], series[96];
        if (n++ == 0) {
            page_table(p, "model|device|batch|prompt|ms a step|tokens/s|tokens/s of each|% of the limit|memory, GB");
        }
        step_cells(p, r);
        metric_cell(p, r, "step_ms");
        metric_cell(p, r, "tokens_per_s");
        number_cell(p, 1000 / row_value(r, "step_ms"), 1);
        metric_cell(p, r, "limit_percent");
        number_cell(p, row_value(r, "memory_bytes"), 1e9);
        row_label(r, label, sizeof label);
        snprintf(series, sizeof series, "%.70s, prompt %lld", label, (long long)row_int(r, "input"));
        series_add(plot_add(time, series), (double)row_int(r, "batch"), row_value(r, "step_ms"), NULL);
        series_add(plot_add(rate, series), (double)row_int(r, "batch"), row_value(r, "tokens_per_s"), NULL);
    }
    if (n > 0) {
        page_table_end(p);
        page_plot(p, time);
        page_plot(p, rate);
    } else {
        page_absent(p, "Steps of batches", "lockstep bench throughput -m MODEL");
    }
    free(time);
    free(rate);
}

/* ---- Precision ---- */

/* Somebody asked what the type does: another row of the document differs in it alone, or the perplexity is there. */
static bool is_about_type(const report_data *data, const result_row *r) {
    bool found = isfinite(row_value(r, "perplexity"));
    size_t at = 0;
    for (const result_row *s; !found && (s = data_next(data, &at, "sweep", "")) != NULL;) {
        found = s != r && s->doc == r->doc &&
                (rows_pair(r, s, "quantization", NULL) || rows_pair(r, s, "dtype", "kv_cache_dtype"));
    }
    return found;
}

void section_precision(page *p, const report_data *data) {
    size_t at = 0;
    int n = 0;
    bool scored = false;
    page_heading(p, "precision", "Precision: memory, speed, perplexity");
    for (const result_row *r; (r = data_next(data, &at, "sweep", "")) != NULL;) {
        char dtype[32], quantization[32];
        if (row_int(r, "batch") != 1 || row_int(r, "tp") > 1 || !row_is_plain(r) || !is_about_type(data, r)) {
            continue;
        }
        if (n++ == 0) {
            page_table(
                p, "model|device|batch|prompt|type|weights|weights, GB|ms a step|tokens/s|% of the limit|perplexity");
        }
        results_setting(r->row, "dtype", dtype, sizeof dtype);
        results_setting(r->row, "quantization", quantization, sizeof quantization);
        step_cells(p, r);
        page_cell(p, "%s", dtype);
        page_cell(p, "%s", strcmp(quantization, "none") == 0 ? dtype : "int8");
        number_cell(p, row_value(r, "weights_memory_bytes"), 1e9);
        metric_cell(p, r, "step_ms");
        metric_cell(p, r, "tokens_per_s");
        metric_cell(p, r, "limit_percent");
        const double perplexity = row_value(r, "perplexity");
        isfinite(perplexity) ? page_cell(p, "%.4f", perplexity) : page_cell(p, "not measured");
        scored = scored || isfinite(perplexity);
    }
    if (n > 0) {
        page_table_end(p);
    }
    if (!scored) {
        page_absent(p, n > 0 ? "Perplexity" : "Speeds by type",
                    "lockstep bench sweep -m MODEL --vary dtype=f32,bf16,f16 --vary quantization=none,w8a16 -f TEXT");
    }
}

/* ---- Context ---- */

void section_context(page *p, const report_data *data) {
    size_t at = 0;
    int n = 0;
    plot *time = calloc(1, sizeof *time);
    page_heading(p, "context", "Context, memory and time");
    if (time == NULL) {
        return;
    }
    *time = (plot){.title = "A decode step behind a prompt", .x = "tokens before it", .y = "ms a step", .log_x = true};
    for (const result_row *r; (r = data_next(data, &at, "sweep", "")) != NULL;) {
        size_t other = 0;
        bool varies = false;
        for (const result_row *s; !varies && (s = data_next(data, &other, "sweep", "")) != NULL;) {
            varies = s->doc == r->doc && row_int(s, "input") != row_int(r, "input") && rows_pair(r, s, "input", NULL);
        }
        if (!varies || !row_is_plain(r)) {
            continue;
        }
        char label[160], series[96];
        if (n++ == 0) {
            page_table(p, "model|device|batch|prompt|prefill, ms|prefill, tokens/s|ms a step|KV read, MB a step|"
                          "KV cache, GB|% of the limit");
        }
        step_cells(p, r);
        metric_cell(p, r, "prefill_ms");
        metric_cell(p, r, "prefill_tokens_per_s");
        metric_cell(p, r, "step_ms");
        number_cell(p, row_value(r, "kv_bytes"), 1e6);
        number_cell(p, row_value(r, "kv_memory_bytes"), 1e9);
        metric_cell(p, r, "limit_percent");
        row_label(r, label, sizeof label);
        snprintf(series, sizeof series, "%.70s, batch %lld", label, (long long)row_int(r, "batch"));
        series_add(plot_add(time, series), (double)row_int(r, "input"), row_value(r, "step_ms"), NULL);
    }
    if (n > 0) {
        page_table_end(p);
        page_plot(p, time);
    } else {
        page_absent(p, "Steps behind longer prompts", "lockstep bench sweep -m MODEL --input-len 128,1024,4096,16384");
    }
    free(time);
}

/* ---- Ways to run a step ---- */

void section_plans(page *p, const report_data *data) {
    int n = 0;
    page_heading(p, "plans", "Graphs, one persistent kernel, plain launches");
    for (size_t k = 0; step_ways[k] != NULL; k++) {
        size_t at = 0;
        for (const result_row *r; (r = data_next(data, &at, "sweep", "")) != NULL;) {
            char value[128];
            results_setting(r->row, step_ways[k], value, sizeof value);
            if (value[0] == '\0') {
                continue;
            }
            if (n++ == 0) {
                page_table(p, "model|device|batch|prompt|option|value|ms a step|% of the limit");
            }
            step_cells(p, r);
            page_cell(p, "--%s", step_ways[k]);
            page_cell(p, "%s", value);
            metric_cell(p, r, "step_ms");
            metric_cell(p, r, "limit_percent");
        }
    }
    page_table_close(p, n > 0, "Ways to run a step", "lockstep bench sweep -m MODEL --vary graph-sizes=default,none");
}

/* ---- Gains ---- */

typedef struct gain {
    const char *name, *setting, *from, *to, *metric, *command;
    bool more; /* is better */
} gain;

static const gain gains[] = {
    {"int8 weights", "quantization", "none", "w8a16", "step_ms",
     "lockstep bench sweep -m MODEL --vary quantization=none,w8a16", false},
    {"kernels made for the chip: fusion and its own attention, decode", "kernels", "generic", "auto", "step_ms",
     "lockstep bench sweep -m MODEL --vary kernels=generic,auto", false},
    {"the same with flash attention of prompts, prefill", "kernels", "generic", "auto", "prefill_tokens_per_s",
     "lockstep bench sweep -m MODEL --input-len 2048 --vary kernels=generic,auto", true},
    {"graphs instead of launches", "graph-sizes", "none", "default", "step_ms",
     "lockstep bench sweep -m MODEL --vary graph-sizes=none,default", false},
    {"one kernel for the whole step", "plan", "graph", "persistent", "step_ms",
     "lockstep bench sweep -m MODEL --vary plan=graph,persistent", false},
};
enum { N_GAINS = sizeof gains / sizeof *gains };

static void gain_cells(page *p, const char *name, const result_row *from, const result_row *to, const char *metric_name,
                       bool more) {
    const double a = row_value(from, metric_name), b = row_value(to, metric_name);
    page_cell(p, "%s", name);
    step_cells(p, to);
    metric_cell(p, from, metric_name);
    metric_cell(p, to, metric_name);
    page_cell(p, "%.2fx", more ? b / a : a / b);
}

static int put_gain(page *p, const report_data *data, const gain *g) {
    size_t at = 0;
    int n = 0;
    for (const result_row *from; (from = data_next(data, &at, "sweep", "")) != NULL;) {
        size_t other = 0;
        for (const result_row *to;
             row_is(from, g->setting, g->from) && (to = data_next(data, &other, "sweep", "")) != NULL;) {
            if (to->doc == from->doc && row_is(to, g->setting, g->to) && rows_pair(from, to, g->setting, NULL)) {
                gain_cells(p, g->name, from, to, g->metric, g->more);
                n++;
            }
        }
    }
    return n;
}

/* Rows of "mixed static" and "mixed continuous" come in pairs. */
static int put_batching(page *p, const report_data *data) {
    size_t at = 0;
    int n = 0;
    for (const result_row *from; (from = data_next(data, &at, "throughput", "mixed static")) != NULL;) {
        size_t other = 0;
        for (const result_row *to; (to = data_next(data, &other, "throughput", "mixed continuous")) != NULL;) {
            if (to->doc == from->doc) {
                gain_cells(p, "continuous instead of static batches, tokens/s", from, to, "tokens_per_s", true);
                n++;
            }
        }
    }
    return n;
}

void section_gains(page *p, const report_data *data) {
    bool measured[N_GAINS + 1];
    page_heading(p, "gains", "What was once planned, measured");
    page_text(
        p, "The old guide's list of what was to come, each with the same run beside it that goes without. Attention of "
           "prompts and fused ops cannot be switched off one by one, so they are measured together with the kernels "
           "that have them.");
    page_table(p, "gain|model|device|batch|prompt|without|with|gain");
    for (int i = 0; i < N_GAINS; i++) {
        measured[i] = put_gain(p, data, &gains[i]) > 0;
    }
    measured[N_GAINS] = put_batching(p, data) > 0;
    page_table_end(p);
    for (int i = 0; i < N_GAINS; i++) {
        if (!measured[i]) {
            page_absent(p, gains[i].name, gains[i].command);
        }
    }
    if (!measured[N_GAINS]) {
        page_absent(p, "continuous instead of static batches", "lockstep bench throughput -m MODEL");
    }
}
