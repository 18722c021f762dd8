/* Results as text: Markdown, CSV, JSON, and two of them compared. See results.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench/results.h"

/* Four figures; millions and more with M, G or T. */
void number_text(double value, char *out, size_t out_bytes) {
    const char *suffix = "";
    for (int i = 0; fabs(value) >= (i == 0 ? 1e6 : 1e3) && i < 3; i++) {
        static const char *const suffixes[] = {"M", "G", "T"};
        value /= i == 0 ? 1e6 : 1e3;
        suffix = suffixes[i];
    }
    double size = fabs(value);
    if (size == 0 || (size >= 1e15 || size < 1e-4)) {
        snprintf(out, out_bytes, "%.4g%s", value, suffix);
        return;
    }
    int before = (int)floor(log10(size)) + 1;
    snprintf(out, out_bytes, "%.*f%s", before >= 4 ? 0 : before < 1 ? 4 : 4 - before, value, suffix);
}

void metric_text(const metric *m, char *out, size_t out_bytes) {
    char median[40], min[40], max[40];
    number_text(m->median, median, sizeof median);
    number_text(m->min, min, sizeof min);
    number_text(m->max, max, sizeof max);
    if (m->n > 1 && m->min < m->max) {
        snprintf(out, out_bytes, "%s (%s to %s)", median, min, max);
    } else {
        snprintf(out, out_bytes, "%s", median);
    }
}

/* ---- Columns: of rows that may each have others, in the order in which they turn up ---- */

enum { MOST_COLUMNS = 64 };

typedef struct columns {
    const char *name[MOST_COLUMNS];
    int n, n_settings; /* settings first */
} columns;

static void add_column(columns *c, const char *name) {
    for (int i = 0; i < c->n; i++) {
        if (strcmp(c->name[i], name) == 0) {
            return;
        }
    }
    if (c->n < MOST_COLUMNS) {
        c->name[c->n++] = name;
    }
}

/* Metrics that are better as neither more nor less explain others; they are left to CSV and JSON. */
static bool explains(const json_t *value) {
    return strcmp(results_text(value, "better"), "neither") == 0;
}

static void find_columns(const json_t *rows, columns *c) {
    static const char *const parts[] = {"settings", "metrics"};
    for (int part = 0; part < 2; part++) {
        size_t i;
        json_t *row, *value;
        const char *key;
        json_array_foreach(rows, i, row) {
            json_object_foreach(json_object_get(row, parts[part]), key, value) {
                if (part == 0 || !explains(value)) {
                    add_column(c, key);
                }
            }
        }
        c->n_settings = part == 0 ? c->n : c->n_settings;
    }
}

/* A cell of a Markdown table: no line's end, no bar. */
static void put_cell(const char *text, FILE *out) {
    fputs("| ", out);
    for (; *text != '\0'; text++) {
        *text == '|' ? fputs("\\|", out) : fputc((unsigned char)*text < ' ' ? ' ' : *text, out);
    }
    fputc(' ', out);
}

/* Settings that are the same in every row stand above the table. */
static bool is_same(const json_t *rows, const char *setting, char *out, size_t out_bytes) {
    size_t i;
    json_t *row;
    out[0] = '\0';
    json_array_foreach(rows, i, row) {
        char text[128];
        results_setting(row, setting, text, sizeof text);
        if (i == 0) {
            snprintf(out, out_bytes, "%s", text);
        } else if (strcmp(out, text) != 0) {
            return false;
        }
    }
    return json_array_size(rows) > 0;
}

static void write_head(const json_t *root, FILE *out) {
    const json_t *device = json_object_get(root, "device"), *model = json_object_get(root, "model");
    const char *driver = results_text(device, "driver");
    fprintf(out, "lockstep bench %s: %s%s%s%s%s\n", results_text(root, "what"), results_text(device, "name"),
            driver[0] != '\0' ? ", driver " : "", driver, model != NULL ? ", " : "", results_text(model, "name"));
    fprintf(out, "%s, lockstep %s (%s); median (min to max) of up to %lld\n", results_text(root, "date"),
            results_text(root, "version"), results_text(root, "commit"),
            (long long)json_integer_value(json_object_get(root, "repetitions")));
    fprintf(out, "%s\n", results_text(root, "command"));
}

static void write_row(const json_t *row, const columns *c, const bool *hidden, FILE *out) {
    char text[160];
    put_cell(results_text(row, "test"), out);
    const char *absent = json_string_value(json_object_get(row, "absent"));
    for (int i = 0; i < c->n; i++) {
        metric m;
        text[0] = '\0';
        if (hidden[i]) {
            continue;
        }
        if (i < c->n_settings) {
            results_setting(row, c->name[i], text, sizeof text);
        } else if (results_metric(row, c->name[i], &m)) {
            metric_text(&m, text, sizeof text);
        } else if (absent != NULL) {
            put_cell("", out);
            fputs("absent: ", out);
            fwrite(absent, 1, strcspn(absent, "|\n"), out);
            fputc(' ', out);
            absent = NULL;
            continue;
        }
        put_cell(text, out);
    }
    fputs("|\n", out);
    if (absent != NULL) {
        fprintf(out, "\n%s: absent: %s\n", results_text(row, "test"), absent);
    }
}

static void write_markdown(const json_t *root, FILE *out) {
    const json_t *rows = json_object_get(root, "rows");
    columns c = {0};
    bool hidden[MOST_COLUMNS] = {false};
    const char *gap = "";
    find_columns(rows, &c);
    write_head(root, out);
    for (int i = 0; i < c.n_settings; i++) {
        char text[128];
        hidden[i] = is_same(rows, c.name[i], text, sizeof text);
        if (hidden[i]) {
            fprintf(out, "%s%s=%s", gap, c.name[i], text);
            gap = ", ";
        }
    }
    fprintf(out, "%s\n| test ", gap[0] != '\0' ? "\n" : "");
    for (int i = 0; i < c.n; i++) {
        if (!hidden[i]) {
            put_cell(c.name[i], out);
        }
    }
    fputs("|\n|---", out);
    for (int i = 0; i < c.n; i++) {
        fputs(hidden[i] ? "" : "|---", out);
    }
    fputs("|\n", out);
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row) {
        write_row(row, &c, hidden, out);
    }
}

static void put_quoted(const char *text, FILE *out) {
    fputc('"', out);
    for (; *text != '\0'; text++) {
        fputs(*text == '"' ? "\"" : "", out);
        fputc(*text, out);
    }
    fputc('"', out);
}

/* A line for each metric of each row: what any table program can turn. */
static void write_csv(const json_t *root, FILE *out) {
    size_t i;
    json_t *row, *value;
    const char *key;
    fputs("what,test,settings,metric,median,min,max,n\n", out);
    json_array_foreach(json_object_get(root, "rows"), i, row) {
        char name[1024];
        results_name(row, name, sizeof name);
        json_object_foreach(json_object_get(row, "metrics"), key, value) {
            metric m;
            results_metric(row, key, &m);
            fprintf(out, "%s,%s,", results_text(root, "what"), results_text(row, "test"));
            put_quoted(strchr(name, ' ') != NULL ? strchr(name, ' ') + 1 : "", out);
            fprintf(out, ",%s,%.9g,%.9g,%.9g,%lld\n", key, m.median, m.min, m.max, (long long)m.n);
        }
    }
}

void results_write(const json_t *root, results_form form, FILE *out) {
    if (form == FORM_MARKDOWN) {
        write_markdown(root, out);
    } else if (form == FORM_CSV) {
        write_csv(root, out);
    } else {
        json_dumpf(root, out, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
        fputc('\n', out);
    }
}

/* ---- Comparing ---- */

/* The runs lie on the wrong side of each other, and by more than 1 %, which is what a single run may be off. */
static bool is_worse(const metric *before, const metric *now) {
    if (before->sense == NEITHER_IS_BETTER) {
        return false;
    }
    double least = 0.01 * fabs(before->median);
    return before->sense == LESS_IS_BETTER
               ? now->median > before->max && now->min > before->median && now->median > before->median + least
               : now->median < before->min && now->max < before->median && now->median < before->median - least;
}

static bool is_better(const metric *before, const metric *now) {
    metric a = *before, b = *now;
    a.sense = before->sense == LESS_IS_BETTER ? MORE_IS_BETTER : LESS_IS_BETTER;
    return before->sense != NEITHER_IS_BETTER && is_worse(&a, &b);
}

static bool is_same_row(const json_t *a, const json_t *b) {
    return strcmp(results_text(a, "test"), results_text(b, "test")) == 0 &&
           json_equal(json_object_get(a, "settings"), json_object_get(b, "settings")) == 1;
}

/* The row of `rows` that is the same as row i of `all`; of several the one of the same number among them. */
static const json_t *same_row(const json_t *rows, const json_t *all, size_t i) {
    const json_t *wanted = json_array_get(all, i);
    size_t n_before = 0;
    for (size_t k = 0; k < i; k++) {
        n_before += is_same_row(json_array_get(all, k), wanted);
    }
    for (size_t k = 0; k < json_array_size(rows); k++) {
        const json_t *row = json_array_get(rows, k);
        if (is_same_row(row, wanted) && n_before-- == 0) {
            return row;
        }
    }
    return NULL;
}

static void compare_row(const json_t *before, const json_t *now, FILE *out, int *n_worse) {
    const char *key;
    json_t *value;
    char name[1024], was_text[128], is_text[128];
    results_name(now, name, sizeof name);
    json_object_foreach(json_object_get(now, "metrics"), key, value) {
        metric was, is;
        if (!results_metric(before, key, &was) || !results_metric(now, key, &is) || was.sense == NEITHER_IS_BETTER) {
            continue;
        }
        bool worse = is_worse(&was, &is);
        *n_worse += worse;
        metric_text(&was, was_text, sizeof was_text);
        metric_text(&is, is_text, sizeof is_text);
        put_cell(name, out);
        fprintf(out, "| %s | %s | %s | ", key, was_text, is_text);
        was.median != 0 ? fprintf(out, "%+.1f %%", (is.median / was.median - 1) * 100) : fputc('-', out);
        fprintf(out, " | %s |\n", worse ? "WORSE" : is_better(&was, &is) ? "better" : "same");
    }
}

void results_compare(const json_t *before, const json_t *now, const char *name, FILE *out, int *n_worse) {
    size_t i;
    json_t *row;
    int n_new = 0;
    const json_t *rows = json_object_get(now, "rows"), *old_rows = json_object_get(before, "rows");
    *n_worse = 0;
    fprintf(out, "\nCompared with %s (%s, %s, %s)\n", name, results_text(before, "date"),
            results_text(before, "commit"), results_text(json_object_get(before, "device"), "name"));
    fputs("\n| row | metric | before | now | change | |\n|---|---|---|---|---|---|\n", out);
    json_array_foreach(rows, i, row) {
        const json_t *old = same_row(old_rows, rows, i);
        n_new += old == NULL;
        if (old != NULL) {
            compare_row(old, row, out, n_worse);
        }
    }
    if (n_new > 0) {
        fprintf(out, "\n%d rows are not in %s\n", n_new, name);
    }
    json_array_foreach(old_rows, i, row) {
        char text[1024];
        const json_t *again = same_row(rows, old_rows, i);
        if (json_object_get(row, "metrics") != NULL && (again == NULL || json_object_get(again, "absent") != NULL)) {
            results_name(row, text, sizeof text);
            fprintf(out, "\nnot measured any more: %s\n", text);
        }
    }
}
