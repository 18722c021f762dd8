/*
 * lockstep report: results (cli/bench/results.h) as one HTML page and one Markdown text.
 *
 *     files -> report_data (every row with its document) -> sections -> page (both texts at once) and plots (gnuplot's SVG)
 *
 * A section shows what rows say and computes nothing that they do not hold; without rows it says so and names the command
 * that makes them. Texts of the files are never trusted: page_* escape them, plots keep to letters that mean nothing.
 */
#ifndef LS_CLI_REPORT_REPORT_H
#define LS_CLI_REPORT_REPORT_H

#include <stdio.h>

#include "cli/bench/results.h"

/* ---- Data ---- */

typedef struct result_row {
    const json_t *doc, *row;
    const char *what, *test, *device, *model; /* "" where there is none */
} result_row;

typedef struct report_data {
    json_doc *doc; /* [n_docs] */
    size_t n_docs;
    result_row *row; /* [n_rows] of all documents */
    size_t n_rows;
} report_data;

ls_status data_read(report_data *data, const char *const *paths, size_t n, ls_error *err);
ls_status data_index(report_data *data, ls_error *err); /* the rows of documents that were read */
void data_deinit(report_data *data);

/* The next row from *at on, of this measurement (NULL: any) and a test that begins with this, with figures; NULL at the
 * end. */
const result_row *data_next(const report_data *data, size_t *at, const char *what, const char *test);
/* A metric's median; NAN where there is none. */
double row_value(const result_row *r, const char *name);
/* "3.234 (3.230 to 3.241)", or "" */
void row_text(const result_row *r, const char *name, char *out, size_t out_bytes);
bool row_is(const result_row *r, const char *setting, const char *value);
double row_temperature(const result_row *r);               /* NAN: none */
int64_t row_int(const result_row *r, const char *setting); /* -1: none */
/* Run as an engine runs by itself: none of the ways to run a step (kernels, graphs, plans) was chosen, and nothing is drawn. */
bool row_is_plain(const result_row *r);
extern const char *const step_ways[]; /* the settings that choose one; NULL behind the last */
/* An earlier row has all settings of this one but the length of answers. */
bool row_was_there(const report_data *data, const result_row *r);
/* The rows are of one document's model and device, and all settings but `setting` (and `also`, or NULL) are the same. */
bool rows_pair(const result_row *a, const result_row *b, const char *setting, const char *also);
/* "Qwen/Qwen3-4B bf16 w8a16 TP 2" */
void row_label(const result_row *r, char *out, size_t out_bytes);

/* ---- Pages ---- */

typedef struct page {
    FILE *html, *markdown;
    const char *gnuplot;            /* why there are no plots, or NULL */
    const char *device;             /* of all results, told once instead of in each table; NULL: they have several */
    int n_cells, n_columns, hidden; /* of the table that is being written; hidden: the column of the device, or -1 */
    int n_plots;
} page;

void page_html(const char *text, FILE *out); /* escaped */
void page_begin(page *p, const char *title);
void page_end(page *p);
/* Links to headings: id and name. In HTML alone. */
void page_contents(page *p, const char *const (*item)[2], size_t n);
void page_heading(page *p, const char *id, const char *text);
__attribute__((format(printf, 2, 3))) void page_text(page *p, const char *format, ...);
/* "there are no results for this; COMMAND makes them" */
void page_absent(page *p, const char *what, const char *command);
void page_table(page *p, const char *columns); /* names with bars between */
__attribute__((format(printf, 2, 3))) void page_cell(page *p, const char *format, ...);
void page_table_end(page *p);
/* The same for a table that began with its first row: where there was none, says so. */
void page_table_close(page *p, bool begun, const char *what, const char *command);

/* ---- Plots ---- */

enum { PLOT_SERIES = 8, PLOT_POINTS = 128, PLOT_BARS = 24 };

typedef struct plot_series {
    char name[96];
    bool points_only, dashed;
    int n;
    double x[PLOT_POINTS], y[PLOT_POINTS];
    char label[PLOT_POINTS][64]; /* beside the points, or "": those that lie close share one */
} plot_series;

typedef struct plot {
    const char *title, *x, *y;
    bool log_x, log_y;
    int n;
    plot_series series[PLOT_SERIES];
} plot;

/* NULL when there are enough. */
plot_series *plot_add(plot *p, const char *name);
void series_add(plot_series *s, double x, double y, const char *label);
void page_plot(page *out, plot *p);

/* Bars of parts one behind the other. */
typedef struct bar_plot {
    const char *title, *x;
    int n_parts, n;
    const char *part[PLOT_SERIES];
    char name[PLOT_BARS][96];
    double value[PLOT_BARS][PLOT_SERIES]; /* NAN counts as none */
} bar_plot;
void page_bars(page *out, const bar_plot *p);

/* Whether gnuplot is there; else why not. */
const char *plot_missing(void);

/* ---- Sections ---- */

/* All of them, in their order. */
void page_sections(page *p, const report_data *data, int *n_missed);

void section_sources(page *p, const report_data *data);
void section_targets(page *p, const report_data *data, int *n_missed);
void section_headline(page *p, const report_data *data);
void section_timeline(page *p, const report_data *data);
void section_bandwidth(page *p, const report_data *data);
void section_roofline(page *p, const report_data *data);
void section_batch(page *p, const report_data *data);
void section_precision(page *p, const report_data *data);
void section_context(page *p, const report_data *data);
void section_plans(page *p, const report_data *data);
void section_exchange(page *p, const report_data *data);
void section_share(page *p, const report_data *data);
void section_start(page *p, const report_data *data);
void section_sampling(page *p, const report_data *data);
void section_gains(page *p, const report_data *data);
void section_ops(page *p, const report_data *data);
void section_limits(page *p, const report_data *data);
void section_serving(page *p, const report_data *data);
void section_peers(page *p, const report_data *data);

#endif
