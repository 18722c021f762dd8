/*
 * Results: the JSON documents that measurements write, and that --compare and `lockstep report` read. docs/bench.md says
 * what is in them; RESULTS_VERSION counts changes that older readers would misread.
 *
 *     {"lockstep_results": 1, "what": "latency", "version", "commit", "date", "command", "repetitions",
 *      "device": {"name", "driver", ...}, "model": {...} or null,
 *      "rows": [{"test": "pp512", "settings": {"dtype": "bf16", ...},
 *                "metrics": {"first_token_ms": {"better": "less", "n", "median", "min", "max", "runs": []}}},
 *               {"test", "settings", "absent": "why"}]}
 */
#ifndef LS_CLI_BENCH_RESULTS_H
#define LS_CLI_BENCH_RESULTS_H

#include <stdio.h>

#include "base/json.h"

enum { RESULTS_VERSION = 1 };

typedef enum metric_sense { LESS_IS_BETTER, MORE_IS_BETTER, NEITHER_IS_BETTER } metric_sense;

/* ---- Making rows ---- */

/* A new row, borrowed from `rows`. */
json_t *results_row(json_t *rows, const char *test);
void results_set(json_t *row, const char *setting, json_t *value); /* steals value */
void results_absent(json_t *row, const char *why);
/* One more run of a metric. Its name ends in its unit: _ms, _us, _s, _bytes, _per_s, _percent, _ratio. */
void results_add(json_t *row, const char *name, metric_sense sense, double value);
/* Of all rows: n, median, min, max from the runs. */
void results_finish(json_t *rows);

/* ---- Reading ---- */

/* Parses and checks every part that is described above. Errors name file, row and key. */
ls_status results_parse(json_doc *doc, const char *name, const char *text, size_t n_bytes, ls_error *err);
ls_status results_read(json_doc *doc, const char *path, ls_error *err);

typedef struct metric {
    double median, min, max;
    int64_t n;
    metric_sense sense;
} metric;
/* False if the row has no such metric. */
bool results_metric(const json_t *row, const char *name, metric *out);
const char *results_text(const json_t *object, const char *key); /* "" where there is none */
/* A setting as text: strings and numbers; "" where there is none. */
void results_setting(const json_t *row, const char *name, char *out, size_t out_bytes);
/* "pp512 batch=1 dtype=bf16": test and settings. */
void results_name(const json_t *row, char *out, size_t out_bytes);

/* ---- Writing ---- */

typedef enum results_form { FORM_MARKDOWN, FORM_CSV, FORM_JSON } results_form;
void results_write(const json_t *root, results_form form, FILE *out);
/* "3.234 (3.230 to 3.241)" in digits that suit the size; without spread if n is 1. */
void metric_text(const metric *m, char *out, size_t out_bytes);
void number_text(double value, char *out, size_t out_bytes);

/* Prints a line for each metric that both have, and marks what is worse. *n_worse counts those. */
void results_compare(const json_t *before, const json_t *now, const char *name, FILE *out, int *n_worse);

#endif
