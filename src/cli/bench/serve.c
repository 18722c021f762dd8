/* lockstep bench serve: a server under load, in the words of `vllm bench serve`. The load itself is in load.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/file.h"
#include "cli/bench/bench.h"
#include "cli/bench/load.h"

typedef struct serve_bench {
    const option_value *value; /* of options */
    bench_load load;
    char url[1024];
    double ttft_ms, tpot_ms, e2el_ms; /* of --goodput; infinity: no limit */
    uint64_t random;
} serve_bench;

static uint64_t next_u64(serve_bench *b) {
    uint64_t z = b->random += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static double uniform(serve_bench *b) {
    return (double)((next_u64(b) >> 11) + 1) * 0x1p-53; /* (0, 1] */
}

/* ---- Requests ---- */

static int random_length(serve_bench *b, option_id id) {
    double mean = (double)b->value[id].integer, ratio = b->value[OPT_RANDOM_RANGE_RATIO].real;
    double length = mean * (1 - ratio + 2 * ratio * uniform(b));
    return length < 1 ? 1 : (int)(length + 0.5);
}

/* Ids that every vocabulary has and no special token. */
static json_t *random_prompt(serve_bench *b) {
    enum { FIRST = 1000, END = 4000 };
    json_t *ids = json_array();
    for (int n = random_length(b, OPT_RANDOM_INPUT_LEN); n > 0; n--) {
        json_array_append_new(ids, json_integer(FIRST + (json_int_t)(next_u64(b) % (END - FIRST))));
    }
    return ids;
}

/* A line of --dataset. */
static ls_status read_item(serve_bench *b, const char *line, size_t n_bytes, bench_request *r, ls_error *err) {
    json_doc doc = {0};
    int64_t output_len = random_length(b, OPT_RANDOM_OUTPUT_LEN);
    ls_status st = LS_OK;
    TRY(json_doc_parse(&doc, "--dataset", line, n_bytes, err));
    json_t *prompt = json_object_get(doc.root, "prompt");
    if (!json_is_string(prompt) && !json_is_array(prompt)) {
        TRY_GOTO(error_set(err, LS_EFORMAT, "--dataset: a line without prompt, a text or an array of token ids"), done);
    }
    TRY_GOTO(json_find_int(&doc, doc.root, "output_len", 1, 10000000, &output_len, err), done);
    TRY_GOTO(json_find_real(&doc, doc.root, "arrival", &r->arrival_s, err), done);
    r->prompt = json_incref(prompt);
    r->output_len = (int)output_len;
done:
    json_doc_deinit(&doc);
    return st;
}

static ls_status read_dataset(serve_bench *b, const char *path, ls_error *err) {
    ls_file file;
    ls_status st = LS_OK;
    TRY(file_map_or_read(&file, path, err));
    const char *text = (const char *)file.data, *end = text + file.bytes, *at = text;
    for (size_t i = 0; st == LS_OK && i < b->load.n;) {
        const char *newline = at < end ? memchr(at, '\n', (size_t)(end - at)) : NULL;
        const char *stop = newline != NULL ? newline : end;
        if (stop > at) {
            st = read_item(b, at, (size_t)(stop - at), &b->load.request[i++], err);
        }
        at = newline != NULL ? newline + 1 : end;
        if (at >= end && i == 0) {
            st = error_set(err, LS_EFORMAT, "--dataset %s: there is no prompt in it", path);
        }
        at = at >= end ? text : at;
    }
    file_unmap(&file);
    return st;
}

static int by_arrival(const void *a, const void *b) {
    const bench_request *x = a, *y = b;
    return (x->arrival_s > y->arrival_s) - (x->arrival_s < y->arrival_s);
}

static ls_status make_requests(serve_bench *b, ls_error *err) {
    const option_value *v = b->value;
    b->load.n = (size_t)v[OPT_NUM_PROMPTS].integer;
    b->load.request = calloc(b->load.n, sizeof *b->load.request);
    if (b->load.request == NULL) {
        return error_set(err, LS_ENOMEM, "bench: out of memory");
    }
    if (v[OPT_DATASET].set) {
        TRY(read_dataset(b, v[OPT_DATASET].text, err));
    }
    double at_s = 0;
    for (size_t i = 0; i < b->load.n; i++) {
        bench_request *r = &b->load.request[i];
        if (!v[OPT_DATASET].set) {
            r->prompt = random_prompt(b);
            r->output_len = random_length(b, OPT_RANDOM_OUTPUT_LEN);
        }
        if (v[OPT_REQUEST_RATE].set) { /* a Poisson process */
            r->arrival_s = at_s;
            at_s += -log(uniform(b)) / v[OPT_REQUEST_RATE].real;
        }
    }
    qsort(b->load.request, b->load.n, sizeof *b->load.request, by_arrival);
    return LS_OK;
}

/* "ttft:200,tpot:20" */
static ls_status read_goodput(serve_bench *b, ls_error *err) {
    const option_value *v = &b->value[OPT_GOODPUT];
    b->ttft_ms = b->tpot_ms = b->e2el_ms = INFINITY;
    for (const char *at = v->set ? v->text : ""; *at != '\0';) {
        char name[8];
        double ms;
        int n = 0;
        bool good = sscanf(at, "%7[a-z0-9]:%lf%n", name, &ms, &n) == 2 && ms > 0 && (at[n] == ',' || at[n] == '\0');
        double *limit = !good                       ? NULL
                        : strcmp(name, "ttft") == 0 ? &b->ttft_ms
                        : strcmp(name, "tpot") == 0 ? &b->tpot_ms
                        : strcmp(name, "e2el") == 0 ? &b->e2el_ms
                                                    : NULL;
        if (limit == NULL) {
            return error_set(err, LS_EINVAL, "--goodput %s: expected limits in ms, such as ttft:200,tpot:20,e2el:5000",
                             v->text);
        }
        *limit = ms;
        at += at[n] == ',' ? n + 1 : n;
    }
    return LS_OK;
}

static ls_status read_options(serve_bench *b, const ls_options *options, ls_error *err) {
    const option_value *v = b->value = options->value;
    const char *base = v[OPT_BASE_URL].text;
    if (strncasecmp(base, "http://", 7) != 0 && strncasecmp(base, "https://", 8) != 0) {
        return error_set(err, LS_EINVAL, "--base-url %s: expected http:// or https://, such as http://127.0.0.1:8000",
                         base);
    }
    int n = snprintf(b->url, sizeof b->url, "%s%s", base, v[OPT_ENDPOINT].text);
    if (n < 0 || (size_t)n >= sizeof b->url) {
        return error_set(err, LS_EINVAL, "--base-url: too long");
    }
    b->random = (uint64_t)v[OPT_SEED].integer;
    b->load.url = b->url;
    b->load.model = v[OPT_MODEL].text;
    b->load.key = options->n_list[OPT_API_KEY] > 0 ? options->list[OPT_API_KEY][0] : NULL;
    b->load.temperature = v[OPT_TEMPERATURE].set ? v[OPT_TEMPERATURE].real : -1;
    b->load.seed = v[OPT_SEED].integer;
    b->load.max_concurrency = (int)v[OPT_MAX_CONCURRENCY].integer;
    TRY(read_goodput(b, err));
    return make_requests(b, err);
}

/* ---- Results ---- */

static int by_value(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* Of sorted times, in ms: the smallest that is not below `share` of them. */
static double percentile_ms(const bench_times *t, double share) {
    size_t i = t->n > 0 ? (size_t)ceil(share * (double)t->n) : 0;
    return t->n > 0 ? t->item[i > 0 ? i - 1 : 0] * 1e3 : 0;
}

static double mean_ms(const bench_times *t) {
    double sum = 0;
    for (size_t i = 0; i < t->n; i++) {
        sum += t->item[i];
    }
    return t->n > 0 ? sum / (double)t->n * 1e3 : 0;
}

typedef struct summary {
    bench_times ttft, tpot, itl, e2el;
    int64_t n_good, n_failed, n_in_time, input_tokens, output_tokens;
} summary;

static double tpot_of(const bench_request *r) {
    return r->n_output > 1 ? (r->last_s - r->first_s) / (r->n_output - 1) : 0;
}

static ls_status summarize(const serve_bench *b, summary *s, ls_error *err) {
    for (size_t i = 0; i < b->load.n; i++) {
        const bench_request *r = &b->load.request[i];
        if (!r->good) {
            s->n_failed++;
            continue;
        }
        double ttft = r->first_s - r->start_s, e2el = r->last_s - r->start_s;
        s->n_good++;
        s->input_tokens += r->n_prompt;
        s->output_tokens += r->n_output;
        s->n_in_time += ttft * 1e3 <= b->ttft_ms && tpot_of(r) * 1e3 <= b->tpot_ms && e2el * 1e3 <= b->e2el_ms;
        TRY(bench_times_add(&s->ttft, ttft, err));
        TRY(bench_times_add(&s->e2el, e2el, err));
        if (r->n_output > 1) {
            TRY(bench_times_add(&s->tpot, tpot_of(r), err));
        }
    }
    s->itl = b->load.gaps;
    bench_times *all[] = {&s->ttft, &s->tpot, &s->itl, &s->e2el};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i]->n > 0) {
            qsort(all[i]->item, all[i]->n, sizeof *all[i]->item, by_value);
        }
    }
    return LS_OK;
}

static void print_times(const char *name, const bench_times *t) {
    printf("%-6s %10.2f %10.2f %10.2f %10.2f %10.2f   ms\n", name, mean_ms(t), percentile_ms(t, 0.5),
           percentile_ms(t, 0.9), percentile_ms(t, 0.99), percentile_ms(t, 1));
}

static void print_text(const serve_bench *b, const summary *s) {
    double seconds = b->load.duration_s;
    printf("%lld requests good, %lld failed, in %.2f s; %lld input and %lld output tokens\n", (long long)s->n_good,
           (long long)s->n_failed, seconds, (long long)s->input_tokens, (long long)s->output_tokens);
    printf("%.2f requests/s, %.1f output tokens/s, %.1f tokens/s in all", (double)s->n_good / seconds,
           (double)s->output_tokens / seconds, (double)(s->input_tokens + s->output_tokens) / seconds);
    if (b->value[OPT_GOODPUT].set) {
        printf(", goodput %.2f requests/s", (double)s->n_in_time / seconds);
    }
    printf("\n\n%-6s %10s %10s %10s %10s %10s\n", "", "mean", "median", "p90", "p99", "max");
    print_times("TTFT", &s->ttft);
    print_times("TPOT", &s->tpot);
    print_times("ITL", &s->itl);
    print_times("E2E", &s->e2el);
}

static json_t *times_json(const bench_times *t) {
    return json_pack("{s:f, s:f, s:f, s:f, s:f}", "mean", mean_ms(t), "median", percentile_ms(t, 0.5), "p90",
                     percentile_ms(t, 0.9), "p99", percentile_ms(t, 0.99), "max", percentile_ms(t, 1));
}

static void print_json(const serve_bench *b, const summary *s) {
    double seconds = b->load.duration_s;
    json_t *out = json_pack("{s:I, s:I, s:f, s:I, s:I, s:f, s:f, s:f, s:o, s:o, s:o, s:o}", "completed",
                            (json_int_t)s->n_good, "failed", (json_int_t)s->n_failed, "duration_s", seconds,
                            "total_input_tokens", (json_int_t)s->input_tokens, "total_output_tokens",
                            (json_int_t)s->output_tokens, "request_throughput", (double)s->n_good / seconds,
                            "output_throughput", (double)s->output_tokens / seconds, "request_goodput",
                            (double)s->n_in_time / seconds, "ttft_ms", times_json(&s->ttft), "tpot_ms",
                            times_json(&s->tpot), "itl_ms", times_json(&s->itl), "e2el_ms", times_json(&s->e2el));
    json_dumpf(out, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(out);
}

static void add_times(json_t *row, const char *name, const bench_times *t) {
    const struct {
        const char *which;
        double ms;
    } each[] = {{"mean", mean_ms(t)},
                {"p50", percentile_ms(t, 0.5)},
                {"p90", percentile_ms(t, 0.9)},
                {"p99", percentile_ms(t, 0.99)},
                {"max", percentile_ms(t, 1)}};
    for (size_t i = 0; i < sizeof each / sizeof *each && t->n > 0; i++) {
        char title[32];
        snprintf(title, sizeof title, "%s_%s_ms", name, each[i].which);
        results_add(row, title, LESS_IS_BETTER, each[i].ms);
    }
}

/* A row of results: the load that was asked for, and the same figures. */
static void add_row(const serve_bench *b, json_t *rows, const summary *s) {
    const option_value *v = b->value;
    const double seconds = b->load.duration_s;
    json_t *row = results_row(rows, "serve");
    results_set(row, "requests", json_integer((json_int_t)b->load.n));
    results_set(row, "concurrency", json_integer(b->load.max_concurrency));
    if (v[OPT_REQUEST_RATE].set) {
        results_set(row, "request_rate", json_real(v[OPT_REQUEST_RATE].real));
    }
    if (v[OPT_DATASET].set) {
        results_set(row, "dataset", json_string(v[OPT_DATASET].text));
    } else {
        results_set(row, "input", json_integer(v[OPT_RANDOM_INPUT_LEN].integer));
        results_set(row, "output", json_integer(v[OPT_RANDOM_OUTPUT_LEN].integer));
    }
    if (s->n_good == 0) {
        results_absent(row, "no request was answered");
        return;
    }
    results_add(row, "failed_percent", LESS_IS_BETTER, (double)s->n_failed / (double)b->load.n * 100);
    results_add(row, "requests_per_s", MORE_IS_BETTER, (double)s->n_good / seconds);
    results_add(row, "output_tokens_per_s", MORE_IS_BETTER, (double)s->output_tokens / seconds);
    results_add(row, "tokens_per_s", MORE_IS_BETTER, (double)(s->input_tokens + s->output_tokens) / seconds);
    if (v[OPT_GOODPUT].set) {
        results_add(row, "goodput_per_s", MORE_IS_BETTER, (double)s->n_in_time / seconds);
    }
    add_times(row, "ttft", &s->ttft);
    add_times(row, "tpot", &s->tpot);
    add_times(row, "itl", &s->itl);
    add_times(row, "e2e", &s->e2el);
}

/* The first failure stands for all. */
static bool tell_failures(const serve_bench *b, const summary *s) {
    for (size_t i = 0; i < b->load.n && s->n_failed > 0; i++) {
        if (!b->load.request[i].good) {
            fprintf(stderr, "lockstep: the first of %lld that failed: %s\n", (long long)s->n_failed,
                    b->load.request[i].error);
            return true;
        }
    }
    return false;
}

static ls_status run(serve_bench *b, bench *of, ls_error *err) {
    const char *form = b->value[OPT_OUTPUT].text;
    summary s = {0};
    TRY(bench_load_run(&b->load, err));
    ls_status st = summarize(b, &s, err);
    if (st == LS_OK) {
        add_row(b, of->rows, &s);
        if (b->value[OPT_JSON].integer != 0 || strcmp(form, "json") == 0) {
            print_json(b, &s);
        } else if (strcmp(form, "md") == 0) {
            print_text(b, &s);
        }
        of->failed = tell_failures(b, &s);
    }
    free(s.ttft.item);
    free(s.tpot.item);
    free(s.e2el.item);
    return st;
}

ls_status bench_serve(bench *b, ls_error *err) {
    serve_bench s = {0};
    ls_status st = read_options(&s, &b->options, err);
    st = st == LS_OK ? run(&s, b, err) : st;
    for (size_t i = 0; s.load.request != NULL && i < s.load.n; i++) {
        json_decref(s.load.request[i].prompt);
    }
    free(s.load.request);
    free(s.load.gaps.item);
    return st;
}
