/* Sections about single runs: what was read, the headline, where the time of a run and of a start goes, sampling, peers. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/report/report.h"

/* ---- Where it comes from ---- */

void section_sources(page *p, const report_data *data) {
    page_heading(p, "sources", "Sources");
    page_text(p, "Every figure below is from one of these files and no other place: the median of its runs, with the "
                 "least and the most of them in brackets.");
    if (p->gnuplot != NULL) {
        page_text(p, "There are tables only: %s.", p->gnuplot);
    }
    page_table(p, "file|what|model|machine|driver|lockstep|date|command");
    for (size_t i = 0; i < data->n_docs; i++) {
        const json_t *root = data->doc[i].root, *device = json_object_get(root, "device");
        page_cell(p, "%s", data->doc[i].name);
        page_cell(p, "%s", results_text(root, "what"));
        page_cell(p, "%s", results_text(json_object_get(root, "model"), "name"));
        page_cell(p, "%s", results_text(device, "name"));
        page_cell(p, "%s", results_text(device, "driver"));
        page_cell(p, "%s (%s)", results_text(root, "version"), results_text(root, "commit"));
        page_cell(p, "%s", results_text(root, "date"));
        page_cell(p, "%s", results_text(root, "command"));
    }
    page_table_end(p);
}

/* ---- Headline ---- */

/* The row of the same document and settings of model and engine, with this test; NULL: none. */
static const result_row *sibling(const report_data *data, const result_row *r, const char *test) {
    size_t at = 0;
    for (const result_row *s; (s = data_next(data, &at, r->what, test)) != NULL;) {
        if (s->doc == r->doc && strcmp(s->test, test) == 0) {
            return s;
        }
    }
    return NULL;
}

/* The document's longest prompt that was measured. */
static const result_row *longest_prompt(const report_data *data, const result_row *r) {
    size_t at = 0;
    const result_row *longest = NULL;
    for (const result_row *s; (s = data_next(data, &at, r->what, "pp")) != NULL;) {
        longest =
            s->doc == r->doc && (longest == NULL || row_int(s, "input") > row_int(longest, "input")) ? s : longest;
    }
    return longest;
}

static void metric_cell(page *p, const result_row *r, const char *name) {
    char text[128];
    row_text(r, name, text, sizeof text);
    page_cell(p, "%s", text);
}

static void number_cell(page *p, double value) {
    char text[48] = "";
    if (isfinite(value)) {
        number_text(value, text, sizeof text);
    }
    page_cell(p, "%s", text);
}

void section_headline(page *p, const report_data *data) {
    size_t at = 0;
    int n = 0;
    page_heading(p, "models", "Models");
    for (const result_row *r; (r = data_next(data, &at, "latency", "tg")) != NULL;) {
        char label[160], test[48] = "", rate[128];
        const result_row *longest = longest_prompt(data, r);
        const json_t *layers = json_object_get(json_object_get(r->doc, "model"), "layers");
        if (n++ == 0) {
            page_text(p,
                      "One sequence. Prefill counts from submission to the first token; the total is 26 tokens and 20 "
                      "more, in a new engine and in one that has answered before.");
            page_table(p,
                       "model|layers|device|first token of 26, ms|longest prompt, tokens/s|decode, ms a token|tokens/s|"
                       "% of the limit|total first, ms|total later, ms");
        }
        row_label(r, label, sizeof label);
        page_cell(p, "%s", label);
        page_cell(p, "%lld", (long long)json_integer_value(layers));
        page_cell(p, "%s", r->device);
        metric_cell(p, sibling(data, r, "pp26"), "first_token_ms");
        row_text(longest, "tokens_per_s", rate, sizeof rate);
        if (longest != NULL) {
            snprintf(test, sizeof test, "%s: ", longest->test);
        }
        page_cell(p, "%s%s", test, rate);
        metric_cell(p, r, "step_ms");
        metric_cell(p, r, "tokens_per_s");
        metric_cell(p, r, "limit_percent");
        metric_cell(p, sibling(data, r, "total20 first"), "total_ms");
        metric_cell(p, sibling(data, r, "total20"), "total_ms");
    }
    page_table_close(p, n > 0, "Prefill, decode and total of a model", "lockstep bench latency -m MODEL");
}

/* ---- A run as a bar ---- */

void section_timeline(page *p, const report_data *data) {
    size_t at = 0;
    bar_plot *bars = calloc(1, sizeof *bars);
    page_heading(p, "timeline", "Where the time of a run goes");
    if (bars == NULL) {
        return;
    }
    *bars = (bar_plot){.title = "26 tokens and 20 more", .x = "ms", .n_parts = 2, .part = {"prefill", "decode"}};
    for (const result_row *r; (r = data_next(data, &at, "latency", "total20")) != NULL;) {
        char label[160];
        const double first = row_value(r, "first_token_ms"), all = row_value(r, "total_ms");
        if (bars->n == 0) {
            page_table(p, "model|device|run|prefill, ms|decode, ms|total, ms|prefill, %");
        }
        row_label(r, label, sizeof label);
        const char *run = strcmp(r->test, "total20") == 0 ? "later" : "first";
        page_cell(p, "%s", label);
        page_cell(p, "%s", r->device);
        page_cell(p, "%s", run);
        number_cell(p, first);
        number_cell(p, all - first);
        metric_cell(p, r, "total_ms");
        number_cell(p, first / all * 100);
        if (bars->n < PLOT_BARS) {
            snprintf(bars->name[bars->n], sizeof bars->name[0], "%.80s, %s", label, run);
            bars->value[bars->n][0] = first;
            bars->value[bars->n++][1] = all - first;
        }
    }
    if (bars->n > 0) {
        page_table_end(p);
        page_bars(p, bars);
    } else {
        page_absent(p, "The parts of a run", "lockstep bench latency -m MODEL");
    }
    free(bars);
}

/* ---- Start ---- */

void section_start(page *p, const report_data *data) {
    static const char *const metrics[] = {"exec_ms", "load_ms", "plan_ms", "shard_ms", "first_step_ms"};
    size_t at = 0;
    bar_plot *bars = calloc(1, sizeof *bars);
    page_heading(p, "start", "From exec to the first token");
    if (bars == NULL) {
        return;
    }
    *bars = (bar_plot){.title = "Start, stage by stage",
                       .x = "ms",
                       .n_parts = 5,
                       .part = {"exec", "load", "plan", "shard", "first step"}};
    for (const result_row *r; (r = data_next(data, &at, "startup", "")) != NULL;) {
        char label[160];
        if (bars->n == 0) {
            page_text(p,
                      "exec: the program itself; load: config, tokenizer, files mapped; plan: memory, threads, device; "
                      "shard: weights to the ranks, graphs; first step: the prompt and its token. Cold: the kernel was "
                      "asked to forget the model's files; it kept the share in the last column. The first byte is "
                      "timed from outside.");
            page_table(p, "model|device|page cache|exec, ms|load, ms|plan, ms|shard, ms|first step, ms|first byte, ms|"
                          "weights, GB/s|in memory before, %");
        }
        row_label(r, label, sizeof label);
        page_cell(p, "%s", label);
        page_cell(p, "%s", r->device);
        page_cell(p, "%s", r->test);
        for (int i = 0; i < 5; i++) {
            metric_cell(p, r, metrics[i]);
            if (bars->n < PLOT_BARS) {
                bars->value[bars->n][i] = row_value(r, metrics[i]);
            }
        }
        metric_cell(p, r, "first_byte_ms");
        metric_cell(p, r, "load_gb_per_s");
        metric_cell(p, r, "resident_percent");
        if (bars->n < PLOT_BARS) {
            snprintf(bars->name[bars->n++], sizeof bars->name[0], "%.80s, %s", label, r->test);
        }
    }
    if (bars->n > 0) {
        page_table_end(p);
        page_bars(p, bars);
    } else {
        page_absent(p, "The stages of a start", "lockstep bench startup -m MODEL");
    }
    free(bars);
}

/* ---- Greedy beside sampled ---- */

void section_sampling(page *p, const report_data *data) {
    size_t at = 0;
    int n = 0;
    page_heading(p, "sampling", "Greedy beside sampled");
    for (const result_row *greedy; (greedy = data_next(data, &at, "sweep", "")) != NULL;) {
        size_t other = 0;
        for (const result_row *r; row_temperature(greedy) == 0 && (r = data_next(data, &other, "sweep", "")) != NULL;) {
            char label[160];
            if (r->doc != greedy->doc || !(row_temperature(r) > 0) || !rows_pair(greedy, r, "temp", NULL)) {
                continue;
            }
            if (n++ == 0) {
                page_table(p,
                           "model|device|batch|temperature|greedy, ms a step|sampled, ms a step|sampled over greedy");
            }
            row_label(r, label, sizeof label);
            page_cell(p, "%s", label);
            page_cell(p, "%s", r->device);
            page_cell(p, "%lld", (long long)row_int(r, "batch"));
            number_cell(p, row_temperature(r));
            metric_cell(p, greedy, "step_ms");
            metric_cell(p, r, "step_ms");
            page_cell(p, "%.3fx", row_value(r, "step_ms") / row_value(greedy, "step_ms"));
        }
    }
    page_table_close(p, n > 0, "The cost of sampling", "lockstep bench sweep -m MODEL --vary temp=0,1");
}

/* ---- Serving ---- */

/* Less than 0: a comes before b. */
static int64_t load_order(const result_row *a, const result_row *b) {
    const int model = strcmp(a->model, b->model);
    const int64_t load = row_int(a, "concurrency") - row_int(b, "concurrency");
    return model != 0 ? model : load != 0 ? load : a - b;
}

/* The row of a server under load that comes behind this one (NULL: the first): by model, then by how many requests at a time. */
static const result_row *next_load(const report_data *data, const result_row *last) {
    const result_row *next = NULL;
    size_t at = 0;
    for (const result_row *r; (r = data_next(data, &at, "serve", "")) != NULL;) {
        if ((last == NULL || load_order(last, r) < 0) && (next == NULL || load_order(r, next) < 0)) {
            next = r;
        }
    }
    return next;
}

void section_serving(page *p, const report_data *data) {
    static const char *const metrics[] = {"output_tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms",
                                          "tpot_p99_ms",         "itl_p99_ms",  "e2e_p50_ms",  "failed_percent"};
    int n = 0;
    page_heading(p, "serving", "A server, as its clients see it");
    for (const result_row *r = NULL; (r = next_load(data, r)) != NULL;) {
        char lengths[64], input[32], output[32];
        if (n++ == 0) {
            page_text(
                p,
                "TTFT: to the first token. TPOT: the mean of an answer's further tokens. ITL: between two pieces of a "
                "stream. p50: half of them took no longer, p99: 99 in 100.");
            page_table(
                p, "model|device|requests|at a time|tokens in, out|output tokens/s|TTFT p50, ms|p99|TPOT p50, ms|p99|"
                   "ITL p99, ms|E2E p50, ms|failed, %");
        }
        results_setting(r->row, "input", input, sizeof input);
        results_setting(r->row, "output", output, sizeof output);
        snprintf(lengths, sizeof lengths, "%s%s%s", input, input[0] != '\0' ? ", " : "of a file", output);
        page_cell(p, "%s", r->model);
        page_cell(p, "%s", r->device);
        page_cell(p, "%lld", (long long)row_int(r, "requests"));
        page_cell(p, "%lld", (long long)row_int(r, "concurrency"));
        page_cell(p, "%s", lengths);
        for (size_t i = 0; i < sizeof metrics / sizeof *metrics; i++) {
            metric_cell(p, r, metrics[i]);
        }
    }
    page_table_close(p, n > 0, "What clients of a server see", "lockstep bench serve --base-url URL");
}

/* ---- Peers ---- */

/* lockstep's row with the same settings, of the same document. */
static const result_row *own_row(const report_data *data, const result_row *peer) {
    size_t at = 0;
    for (const result_row *r; (r = data_next(data, &at, "peers", "lockstep")) != NULL;) {
        if (r->doc == peer->doc && row_int(r, "batch") == row_int(peer, "batch") &&
            row_int(r, "input") == row_int(peer, "input") && row_int(r, "tp") == row_int(peer, "tp") &&
            json_equal(json_object_get(json_object_get(r->row, "settings"), "mode"),
                       json_object_get(json_object_get(peer->row, "settings"), "mode")) == 1) {
            return r;
        }
    }
    return NULL;
}

static void peer_row(page *p, const report_data *data, const result_row *r) {
    char mode[64], version[160];
    const char *absent = json_string_value(json_object_get(r->row, "absent"));
    const result_row *own = own_row(data, r);
    results_setting(r->row, "mode", mode, sizeof mode);
    results_setting(r->row, "version", version, sizeof version);
    page_cell(p, "%s", r->test);
    page_cell(p, "%s", mode);
    page_cell(p, "%lld", (long long)row_int(r, "tp"));
    page_cell(p, "%lld", (long long)row_int(r, "batch"));
    page_cell(p, "%lld", (long long)row_int(r, "input"));
    if (absent != NULL) {
        page_cell(p, "absent: %s", absent);
    } else {
        metric_cell(p, r, "step_ms");
    }
    metric_cell(p, r, "behind_ms");
    const double ratio = row_value(r, "step_ms") / row_value(own, "step_ms");
    isfinite(ratio) ? page_cell(p, "%.2fx", ratio) : page_cell(p, "%s", "");
    metric_cell(p, r, "prefill_ms");
    metric_cell(p, r, "compile_s");
    page_cell(p, "%s", version);
}

void section_peers(page *p, const report_data *data) {
    int n = 0;
    page_heading(p, "peers", "Beside other programs");
    for (size_t i = 0; i < data->n_rows; i++) {
        if (strcmp(data->row[i].what, "peers") != 0) {
            continue;
        }
        if (n++ == 0) {
            page_text(p,
                      "The same shapes, lengths and device, in turn. What was not there is listed as absent. Waiting: "
                      "each token is read before the next step begins; behind: while it runs.");
            page_table(p,
                       "program|weights|TP|batch|prompt|ms a step, waiting|behind|over lockstep|prefill, ms|compile, s|"
                       "version");
        }
        peer_row(p, data, &data->row[i]);
    }
    page_table_close(p, n > 0, "Other programs", "python3 bench/peers/run.py --model FOLDER --output-json FILE");
}
