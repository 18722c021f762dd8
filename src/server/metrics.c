/* See metrics.h. */
#include "server/metrics.h"

#include <stdio.h>
#include <string.h>

/* Decode steps of 2 to 8 ms need finer bounds than vLLM's, whose first is 10 ms. */
static const double time_bounds[HISTOGRAM_BUCKETS] = {
    0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02,
    0.03,    0.05,   0.075,   0.1,   0.2,    0.5,   1,     2,     5,     10,    30,    60,   300,   1800};
static const double count_bounds[HISTOGRAM_BUCKETS] = {1,    2,    5,     10,    20,    50,  100, 200, 500, 1000,
                                                       2000, 5000, 10000, 20000, 50000, 1e5, 2e5, 5e5, 1e6, 2e6,
                                                       5e6,  1e7,  2e7,   5e7,   1e8,   2e8, 5e8, 1e9};

static void add(histogram *h, const double *bounds, double value) {
    int i = 0;
    while (i < HISTOGRAM_BUCKETS && value > bounds[i]) {
        i++;
    }
    h->bucket[i]++;
    h->sum += value;
    h->n++;
}

void metrics_time(histogram *h, double seconds) {
    add(h, time_bounds, seconds);
}

void metrics_count(histogram *h, double n) {
    add(h, count_bounds, n);
}

/* ---- Writing ---- */

typedef struct writer {
    struct evbuffer *out;
    const char *prefix;
    char labels[600]; /* model_name="...",engine="0" */
} writer;

static void head(const writer *w, const char *name, const char *type, const char *help) {
    evbuffer_add_printf(w->out, "# HELP %s%s %s\n# TYPE %s%s %s\n", w->prefix, name, help, w->prefix, name, type);
}

static void line(const writer *w, const char *name, const char *more, double value) {
    evbuffer_add_printf(w->out, "%s%s{%s%s} %.17g\n", w->prefix, name, w->labels, more, value);
}

static void single(const writer *w, const char *name, const char *type, const char *help, double value) {
    head(w, name, type, help);
    line(w, name, "", value);
}

static void write_histogram(const writer *w, const char *name, const histogram *h, const double *bounds,
                            const char *help) {
    int64_t below = 0;
    head(w, name, "histogram", help);
    for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
        below += h->bucket[i];
        evbuffer_add_printf(w->out, "%s%s_bucket{%s,le=\"%.12g\"} %lld\n", w->prefix, name, w->labels, bounds[i],
                            (long long)below);
    }
    evbuffer_add_printf(w->out, "%s%s_bucket{%s,le=\"+Inf\"} %lld\n", w->prefix, name, w->labels, (long long)h->n);
    evbuffer_add_printf(w->out, "%s%s_sum{%s} %.17g\n", w->prefix, name, w->labels, h->sum);
    evbuffer_add_printf(w->out, "%s%s_count{%s} %lld\n", w->prefix, name, w->labels, (long long)h->n);
}

/* A label's value: backslash, quote and newline are escaped. */
static void set_labels(writer *w, const char *model) {
    size_t n = (size_t)snprintf(w->labels, sizeof w->labels, "model_name=\"");
    for (const char *p = model; *p != '\0' && n + 20 < sizeof w->labels; p++) {
        if (*p == '"' || *p == '\\' || *p == '\n') {
            w->labels[n++] = '\\';
        }
        w->labels[n++] = *p;
        if (*p == '\n') {
            w->labels[n - 1] = 'n';
        }
    }
    snprintf(w->labels + n, sizeof w->labels - n, "\",engine=\"0\"");
}

static void write_engine(const writer *w, const ls_engine_stats *stats) {
    int used = stats->n_pages - stats->n_free_pages;
    single(w, "num_requests_running", "gauge", "Requests in the engine's steps", stats->n_running);
    single(w, "num_requests_waiting", "gauge", "Requests that wait for a step", stats->n_waiting);
    single(w, "kv_cache_usage_perc", "gauge", "Share of the KV cache in use; 1 is all",
           stats->n_pages > 0 ? (double)used / stats->n_pages : 0);
    single(w, "kv_cache_pages", "gauge", "Pages of the KV cache, 64 tokens each", stats->n_pages);
    single(w, "num_preemptions_total", "counter", "Requests set aside for want of pages", (double)stats->preemptions);
    single(w, "engine_steps_total", "counter", "Forward passes", (double)stats->steps);
    single(w, "prompt_tokens_total", "counter", "Prompt tokens computed", (double)stats->prompt_tokens);
}

static void write_timeline(const writer *w, const ls_timeline *t) {
    single(w, "decode_steps_total", "counter", "Steps without prompt rows", (double)t->decode_steps);
    single(w, "decode_seconds_total", "counter", "Time in them", (double)t->decode_us * 1e-6);
    single(w, "prefill_steps_total", "counter", "Steps with prompt rows", (double)t->prefill_steps);
    single(w, "prefill_seconds_total", "counter", "Time in them", (double)t->prefill_us * 1e-6);
    single(w, "exchange_seconds_total", "counter", "Time of decode steps in exchanges between ranks",
           (double)t->exchange_us * 1e-6);
    single(w, "decode_host_seconds_total", "counter",
           "Before decode steps: requests had work, and the host had not given the ranks any yet",
           (double)t->decode_host_us * 1e-6);
    single(w, "prefill_host_seconds_total", "counter", "The same before steps with prompt rows",
           (double)t->prefill_host_us * 1e-6);
    single(w, "decode_limit_ratio", "gauge",
           "The least time that decode steps could take, by the memory's measured rate, over what they took",
           t->limit_ratio);
    single(w, "memory_read_bytes_per_second", "gauge", "The ranks reading their weights, measured at the start",
           t->read_bytes_per_s);
}

static void write_ends(const metrics *m, const writer *w) {
    static const char *const reasons[END_COUNT] = {"stop", "length", "abort", "error"};
    head(w, "request_success_total", "counter", "Answers by how they ended");
    for (int i = 0; i < END_COUNT; i++) {
        char more[48];
        snprintf(more, sizeof more, ",finished_reason=\"%s\"", reasons[i]);
        line(w, "request_success_total", more, (double)m->ended[i]);
    }
    head(w, "admission_rejections_total", "counter",
         "Requests refused: the queue is full, no time for new ones, no key");
    line(w, "admission_rejections_total", ",reason=\"queue\"", (double)m->rejected_queue);
    line(w, "admission_rejections_total", ",reason=\"state\"", (double)m->rejected_state);
    line(w, "admission_rejections_total", ",reason=\"key\"", (double)m->rejected_key);
    head(w, "http_responses_total", "counter", "Answers by the first digit of their HTTP status");
    for (int i = 1; i < 6; i++) {
        char more[24];
        snprintf(more, sizeof more, ",status=\"%dxx\"", i);
        line(w, "http_responses_total", more, (double)m->http_by_class[i]);
    }
}

static void write_state(const writer *w, const char *state) {
    static const char *const states[] = {"starting", "ok", "stalled", "draining", "dead"};
    head(w, "state", "gauge", "1 for the state that the server is in");
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        char more[32];
        snprintf(more, sizeof more, ",state=\"%s\"", states[i]);
        line(w, "state", more, strcmp(states[i], state) == 0);
    }
}

void metrics_write(const metrics *m, const metrics_view *view, struct evbuffer *out) {
    writer w = {.out = out, .prefix = view->prefix};
    set_labels(&w, view->model);
    write_state(&w, view->state);
    single(&w, "uptime_seconds", "gauge", "Since the server started", view->uptime_s);
    single(&w, "http_requests_active", "gauge", "HTTP requests under way", view->n_calls);
    single(&w, "stalls_total", "counter", "Times that work waited and no step ended", view->n_stalls);
    if (view->stats != NULL) {
        write_engine(&w, view->stats);
        single(&w, "prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache",
               (double)view->stats->prefix_query_tokens);
        single(&w, "prefix_cache_hits_total", "counter", "Of those: tokens found there, and not computed again",
               (double)view->stats->prefix_hit_tokens);
    }
    if (view->timeline != NULL) {
        write_timeline(&w, view->timeline);
    }
    single(&w, "generation_tokens_total", "counter", "Tokens of answers", (double)m->generation_tokens);
    write_ends(m, &w);
#define TIME time_bounds
#define COUNT count_bounds
#define X(name, bounds, help) write_histogram(&w, #name, &m->name, bounds, help);
    METRICS_HISTOGRAMS(X)
#undef X
#undef TIME
#undef COUNT
}
