/* See results.h. */
#include "cli/bench/results.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 64 << 20, MOST_RUNS = 1000000 };

static const char *const senses[] = {"less", "more", "neither"};

/* ---- Making rows ---- */

json_t *results_row(json_t *rows, const char *test) {
    json_t *row = json_pack("{s:s, s:{}, s:{}}", "test", test, "settings", "metrics");
    json_array_append_new(rows, row);
    return row;
}

void results_set(json_t *row, const char *setting, json_t *value) {
    json_object_set_new(json_object_get(row, "settings"), setting, value);
}

void results_absent(json_t *row, const char *why) {
    json_object_del(row, "metrics");
    json_object_set_new(row, "absent", json_string(why));
}

void results_add(json_t *row, const char *name, metric_sense sense, double value) {
    json_t *metrics = json_object_get(row, "metrics"), *m = json_object_get(metrics, name);
    if (!isfinite(value)) {
        return; /* JSON has none */
    }
    if (m == NULL) {
        m = json_pack("{s:s, s:[]}", "better", senses[sense], "runs");
        json_object_set_new(metrics, name, m);
    }
    json_array_append_new(json_object_get(m, "runs"), json_real(value));
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void finish_metric(json_t *m) {
    json_t *runs = json_object_get(m, "runs");
    size_t n = json_array_size(runs);
    double *value = malloc((n + 1) * sizeof *value);
    if (value == NULL || n == 0) {
        free(value);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        value[i] = json_number_value(json_array_get(runs, i));
    }
    qsort(value, n, sizeof *value, by_value);
    json_object_set_new(m, "n", json_integer((json_int_t)n));
    json_object_set_new(m, "median", json_real(n % 2 == 1 ? value[n / 2] : (value[n / 2 - 1] + value[n / 2]) / 2));
    json_object_set_new(m, "min", json_real(value[0]));
    json_object_set_new(m, "max", json_real(value[n - 1]));
    free(value);
}

void results_finish(json_t *rows) {
    size_t i;
    json_t *row, *m;
    const char *name;
    json_array_foreach(rows, i, row) {
        json_object_foreach(json_object_get(row, "metrics"), name, m) {
            finish_metric(m);
        }
    }
}

/* ---- Reading ---- */

/* error_set with the row's place before it. */
#define BAD(format, ...) error_set(err, LS_EFORMAT, "%s: row %zu: " format, doc->name, i_row + 1, __VA_ARGS__)

static ls_status check_metric(const json_doc *doc, size_t i_row, const char *name, const json_t *m, ls_error *err) {
    static const char *const numbers[] = {"median", "min", "max"};
    const char *better = NULL;
    int64_t n = 0;
    double value[3];
    if (!json_is_object(m)) {
        return BAD("metrics.%s: must be an object", name);
    }
    TRY(json_find_string(doc, m, "better", &better, err));
    bool known = false;
    for (size_t i = 0; better != NULL && i < sizeof senses / sizeof *senses; i++) {
        known = known || strcmp(better, senses[i]) == 0;
    }
    if (!known) {
        return BAD("metrics.%s.better: must be less, more or neither", name);
    }
    TRY(json_get_int(doc, m, "n", 1, MOST_RUNS, &n, err));
    for (size_t i = 0; i < 3; i++) {
        const json_t *number = json_object_get(m, numbers[i]);
        if (!json_is_number(number)) {
            return BAD("metrics.%s.%s: must be a number", name, numbers[i]);
        }
        value[i] = json_number_value(number);
    }
    if (!(value[1] <= value[0] && value[0] <= value[2])) {
        return BAD("metrics.%s: its median is not between min and max", name);
    }
    return LS_OK;
}

static ls_status check_row(const json_doc *doc, size_t i_row, json_t *row, ls_error *err) {
    json_t *settings = NULL, *metrics = NULL, *value;
    const char *test = NULL, *absent = NULL, *name;
    if (!json_is_object(row)) {
        return error_set(err, LS_EFORMAT, "%s: row %zu: must be an object", doc->name, i_row + 1);
    }
    TRY(json_find_string(doc, row, "test", &test, err));
    TRY(json_find_string(doc, row, "absent", &absent, err));
    TRY(json_find_object(doc, row, "settings", &settings, err));
    TRY(json_find_object(doc, row, "metrics", &metrics, err));
    if (test == NULL || settings == NULL || (metrics == NULL) == (absent == NULL)) {
        return BAD("%s", "needs test, settings, and either metrics or absent");
    }
    json_object_foreach(settings, name, value) {
        if (!json_is_string(value) && !json_is_number(value)) {
            return BAD("settings.%s: must be a text or a number", name);
        }
    }
    json_object_foreach(metrics, name, value) {
        TRY(check_metric(doc, i_row, name, value, err));
    }
    return LS_OK;
}

static ls_status check(const json_doc *doc, ls_error *err) {
    int64_t version = 0;
    json_t *rows = NULL, *device = NULL, *model = NULL, *row;
    const char *what = NULL, *text = NULL;
    size_t i;
    if (!json_is_object(doc->root) || json_object_get(doc->root, "lockstep_results") == NULL) {
        return error_set(err, LS_EFORMAT, "%s: no results of lockstep bench (lockstep_results is missing)", doc->name);
    }
    TRY(json_get_int(doc, doc->root, "lockstep_results", 1, INT32_MAX, &version, err));
    if (version > RESULTS_VERSION) {
        return error_set(err, LS_EUNSUPPORTED, "%s: results of version %lld; this lockstep reads up to %d", doc->name,
                         (long long)version, RESULTS_VERSION);
    }
    TRY(json_find_string(doc, doc->root, "what", &what, err));
    static const char *const texts[] = {"version", "commit", "date", "command"};
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
        TRY(json_find_string(doc, doc->root, texts[k], &text, err));
    }
    TRY(json_find_object(doc, doc->root, "device", &device, err));
    TRY(json_find_object(doc, doc->root, "model", &model, err));
    TRY(json_find_array(doc, doc->root, "rows", &rows, err));
    if (what == NULL || rows == NULL || device == NULL) {
        return error_set(err, LS_EFORMAT, "%s: needs what, device and rows", doc->name);
    }
    json_array_foreach(rows, i, row) {
        TRY(check_row(doc, i, row, err));
    }
    return LS_OK;
}

static ls_status checked(json_doc *doc, ls_error *err) {
    ls_status st = check(doc, err);
    if (st != LS_OK) {
        json_doc_deinit(doc);
    }
    return st;
}

ls_status results_parse(json_doc *doc, const char *name, const char *text, size_t n_bytes, ls_error *err) {
    TRY(json_doc_parse(doc, name, text, n_bytes, err));
    return checked(doc, err);
}

ls_status results_read(json_doc *doc, const char *path, ls_error *err) {
    TRY(json_doc_read(doc, path, MOST_BYTES, err));
    return checked(doc, err);
}

bool results_metric(const json_t *row, const char *name, metric *out) {
    const json_t *m = json_object_get(json_object_get(row, "metrics"), name);
    if (m == NULL) {
        return false;
    }
    *out = (metric){.median = json_number_value(json_object_get(m, "median")),
                    .min = json_number_value(json_object_get(m, "min")),
                    .max = json_number_value(json_object_get(m, "max")),
                    .n = json_integer_value(json_object_get(m, "n"))};
    const char *better = json_string_value(json_object_get(m, "better"));
    for (int i = 0; better != NULL && i < 3; i++) {
        out->sense = strcmp(better, senses[i]) == 0 ? (metric_sense)i : out->sense;
    }
    return true;
}

const char *results_text(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

static void value_text(const json_t *value, char *out, size_t out_bytes) {
    if (json_is_string(value)) {
        snprintf(out, out_bytes, "%s", json_string_value(value));
    } else if (json_is_integer(value)) {
        snprintf(out, out_bytes, "%lld", (long long)json_integer_value(value));
    } else {
        snprintf(out, out_bytes, "%s", "");
        if (json_is_real(value)) {
            number_text(json_real_value(value), out, out_bytes);
        }
    }
}

void results_setting(const json_t *row, const char *name, char *out, size_t out_bytes) {
    value_text(json_object_get(json_object_get(row, "settings"), name), out, out_bytes);
}

void results_name(const json_t *row, char *out, size_t out_bytes) {
    const char *key;
    json_t *value;
    size_t n = (size_t)snprintf(out, out_bytes, "%s", results_text(row, "test"));
    json_object_foreach(json_object_get(row, "settings"), key, value) {
        char text[128];
        value_text(value, text, sizeof text);
        if (n < out_bytes) {
            n += (size_t)snprintf(out + n, out_bytes - n, " %s=%s", key, text);
        }
    }
}
