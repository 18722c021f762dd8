/*
 * Metrics in Prometheus' text format, by vLLM's names under a prefix of ours. Counters that the engine keeps (steps, pages,
 * preemptions) are read from it when somebody asks; what a client sees (times, lengths, ends) is kept here.
 */
#ifndef LS_SERVER_METRICS_H
#define LS_SERVER_METRICS_H

#include <event2/buffer.h>

#include "lockstep.h"

enum { HISTOGRAM_BUCKETS = 28 };

typedef struct histogram {
    int64_t bucket[HISTOGRAM_BUCKETS + 1]; /* the last one: more than the largest bound */
    double sum;
    int64_t n;
} histogram;

/* Name, bounds, help. */
#define METRICS_HISTOGRAMS(X)                                                                                          \
    X(time_to_first_token_seconds, TIME, "From the request's arrival to its first token")                              \
    X(inter_token_latency_seconds, TIME, "Between two tokens of an answer")                                            \
    X(request_time_per_output_token_seconds, TIME, "Mean over the tokens of an answer behind its first")               \
    X(e2e_request_latency_seconds, TIME, "From a request's arrival to its end")                                        \
    X(request_queue_time_seconds, TIME, "From a request's arrival to its first step")                                  \
    X(request_prefill_time_seconds, TIME, "From a request's first step to its first token")                            \
    X(request_decode_time_seconds, TIME, "From a request's first token to its end")                                    \
    X(request_inference_time_seconds, TIME, "From a request's first step to its end")                                  \
    X(request_prompt_tokens, COUNT, "Tokens of a prompt")                                                              \
    X(request_generation_tokens, COUNT, "Tokens of an answer")                                                         \
    X(request_params_n, COUNT, "Answers asked for by one request")                                                     \
    X(request_params_max_tokens, COUNT, "max_tokens of a request")

typedef enum metrics_end { END_STOP, END_LENGTH, END_ABORT, END_ERROR, END_COUNT } metrics_end;

typedef struct metrics {
#define X(name, bounds, help) histogram name;
    METRICS_HISTOGRAMS(X)
#undef X
    int64_t ended[END_COUNT];
    int64_t generation_tokens;
    int64_t rejected_queue, rejected_state, rejected_key; /* 429, 503, 401 */
    int64_t http_by_class[6];                             /* answers with 1xx .. 5xx */
} metrics;

void metrics_time(histogram *h, double seconds);
void metrics_count(histogram *h, double n);

/* What is not kept in `metrics`. */
typedef struct metrics_view {
    const char *prefix, *model;
    const ls_engine_stats *stats; /* NULL: no engine yet */
    const ls_timeline *timeline;
    const char *state;
    int n_calls, n_stalls;
    double uptime_s;
} metrics_view;
void metrics_write(const metrics *m, const metrics_view *view, struct evbuffer *out);

#endif
