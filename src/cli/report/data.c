/* Rows of all results, and questions to them. See report.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/report/report.h"

ls_status data_read(report_data *data, const char *const *paths, size_t n, ls_error *err) {
    *data = (report_data){.doc = calloc(n + 1, sizeof *data->doc)};
    if (data->doc == NULL) {
        return error_set(err, LS_ENOMEM, "report: out of memory");
    }
    for (size_t i = 0; i < n; i++) {
        TRY(results_read(&data->doc[i], paths[i], err));
        data->n_docs++;
    }
    return data_index(data, err);
}

ls_status data_index(report_data *data, ls_error *err) {
    size_t n_rows = 0;
    for (size_t i = 0; i < data->n_docs; i++) {
        n_rows += json_array_size(json_object_get(data->doc[i].root, "rows"));
    }
    data->row = calloc(n_rows + 1, sizeof *data->row);
    if (data->row == NULL) {
        return error_set(err, LS_ENOMEM, "report: out of memory");
    }
    for (size_t i = 0; i < data->n_docs; i++) {
        const json_t *root = data->doc[i].root;
        size_t k;
        json_t *row;
        json_array_foreach(json_object_get(root, "rows"), k, row) {
            data->row[data->n_rows++] = (result_row){.doc = root,
                                                     .row = row,
                                                     .what = results_text(root, "what"),
                                                     .test = results_text(row, "test"),
                                                     .device = results_text(json_object_get(root, "device"), "name"),
                                                     .model = results_text(json_object_get(root, "model"), "name")};
        }
    }
    return LS_OK;
}

void data_deinit(report_data *data) {
    for (size_t i = 0; i < data->n_docs; i++) {
        json_doc_deinit(&data->doc[i]);
    }
    free(data->doc);
    free(data->row);
    *data = (report_data){0};
}

const result_row *data_next(const report_data *data, size_t *at, const char *what, const char *test) {
    while (*at < data->n_rows) {
        const result_row *r = &data->row[(*at)++];
        if (json_object_get(r->row, "metrics") != NULL && (what == NULL || strcmp(r->what, what) == 0) &&
            strncmp(r->test, test, strlen(test)) == 0) {
            return r;
        }
    }
    return NULL;
}

double row_value(const result_row *r, const char *name) {
    metric m;
    return r != NULL && results_metric(r->row, name, &m) ? m.median : NAN;
}

void row_text(const result_row *r, const char *name, char *out, size_t out_bytes) {
    metric m;
    out[0] = '\0';
    if (r != NULL && results_metric(r->row, name, &m)) {
        metric_text(&m, out, out_bytes);
    }
}

bool row_is(const result_row *r, const char *setting, const char *value) {
    char text[128];
    results_setting(r->row, setting, text, sizeof text);
    return strcmp(text, value) == 0;
}

double row_temperature(const result_row *r) {
    char text[48];
    results_setting(r->row, "temp", text, sizeof text);
    return text[0] != '\0' ? strtod(text, NULL) : NAN;
}

int64_t row_int(const result_row *r, const char *setting) {
    const json_t *value = json_object_get(json_object_get(r->row, "settings"), setting);
    return json_is_integer(value) ? (int64_t)json_integer_value(value) : -1;
}

static bool is_one_of(const char *key, const char *a, const char *b) {
    return strcmp(key, a) == 0 || (b != NULL && strcmp(key, b) == 0);
}

static bool has_all(const json_t *a, const json_t *b, const char *setting, const char *also) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)a, key, value) {
        if (!is_one_of(key, setting, also) && json_equal(value, json_object_get(b, key)) == 0) {
            return false;
        }
    }
    return true;
}

bool rows_pair(const result_row *a, const result_row *b, const char *setting, const char *also) {
    const json_t *x = json_object_get(a->row, "settings"), *y = json_object_get(b->row, "settings");
    return strcmp(a->what, b->what) == 0 && strcmp(a->test, b->test) == 0 && strcmp(a->model, b->model) == 0 &&
           strcmp(a->device, b->device) == 0 && has_all(x, y, setting, also) && has_all(y, x, setting, also);
}

const char *const step_ways[] = {"plan", "graph-sizes", "kernels", "async-scheduling", NULL};

bool row_is_plain(const result_row *r) {
    const json_t *settings = json_object_get(r->row, "settings");
    bool plain = !(row_temperature(r) > 0);
    for (size_t i = 0; step_ways[i] != NULL; i++) {
        plain = plain && json_object_get(settings, step_ways[i]) == NULL;
    }
    return plain;
}

bool row_was_there(const report_data *data, const result_row *r) {
    const json_t *mine = json_object_get(r->row, "settings");
    for (const result_row *s = data->row; s < r; s++) {
        const json_t *its = json_object_get(s->row, "settings");
        if (json_object_get(s->row, "metrics") != NULL && isfinite(row_value(s, "step_ms")) &&
            strcmp(s->what, "peers") != 0 && strcmp(s->model, r->model) == 0 && strcmp(s->device, r->device) == 0 &&
            has_all(mine, its, "output", NULL) && has_all(its, mine, "output", NULL)) {
            return true;
        }
    }
    return false;
}

void row_label(const result_row *r, char *out, size_t out_bytes) {
    char dtype[32], quantization[32];
    const int64_t tp = row_int(r, "tp");
    results_setting(r->row, "dtype", dtype, sizeof dtype);
    results_setting(r->row, "quantization", quantization, sizeof quantization);
    int n = snprintf(out, out_bytes, "%s%s%s", r->model, r->model[0] != '\0' && dtype[0] != '\0' ? " " : "", dtype);
    if (n >= 0 && (size_t)n < out_bytes && quantization[0] != '\0' && strcmp(quantization, "none") != 0) {
        n += snprintf(out + n, out_bytes - (size_t)n, " %s", quantization);
    }
    if (n >= 0 && (size_t)n < out_bytes && tp > 1) {
        snprintf(out + n, out_bytes - (size_t)n, " TP %lld", (long long)tp);
    }
}
