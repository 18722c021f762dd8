/* Sections about what bounds steps: ops on the roofline, limits, exchanges and their share of a step. */
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

/* ---- Limits ---- */

void section_limits(page *p, const report_data *data) {
    int n = 0;
    page_heading(p, "limits", "Limits of the machine");
    for (size_t i = 0; i < data->n_rows; i++) {
        const result_row *r = &data->row[i];
        const char *absent = json_string_value(json_object_get(r->row, "absent"));
        char threads[32];
        if (strcmp(r->what, "limits") != 0) {
            continue;
        }
        if (n++ == 0) {
            page_table(p, "limit|device|threads|GB/s|GFLOP/s|latency, us");
        }
        results_setting(r->row, "threads", threads, sizeof threads);
        page_cell(p, "%s", r->test);
        page_cell(p, "%s", r->device);
        page_cell(p, "%s", strcmp(threads, "0") == 0 ? "" : threads);
        if (absent != NULL) {
            page_cell(p, "absent: %s", absent);
            page_cell(p, "%s", "");
            page_cell(p, "%s", "");
            continue;
        }
        number_cell(p, row_value(r, "bytes_per_s"), 1e9);
        number_cell(p, row_value(r, "flops_per_s"), 1e9);
        metric_cell(p, r, "latency_us");
    }
    page_table_close(p, n > 0, "What the machine can do at best", "lockstep bench limits");
}

/* ---- Ops ---- */

void section_ops(page *p, const report_data *data) {
    size_t at = 0;
    int n = 0;
    page_heading(p, "ops", "Ops");
    for (const result_row *r; (r = data_next(data, &at, "ops", "")) != NULL;) {
        char label[160], phase[32];
        if (n++ == 0) {
            page_table(p, "model|device|phase|batch|op|us each|share, %|MB each|GB/s|GFLOP/s");
        }
        row_label(r, label, sizeof label);
        results_setting(r->row, "phase", phase, sizeof phase);
        page_cell(p, "%s", label);
        page_cell(p, "%s", r->device);
        page_cell(p, "%s", phase);
        page_cell(p, "%lld", (long long)row_int(r, "batch"));
        page_cell(p, "%s", r->test);
        metric_cell(p, r, "op_us");
        number_cell(p, row_value(r, "share_percent"), 1);
        number_cell(p, row_value(r, "bytes"), 1e6);
        number_cell(p, row_value(r, "bytes_per_s"), 1e9);
        number_cell(p, row_value(r, "flops_per_s"), 1e9);
    }
    page_table_close(p, n > 0, "Times of ops", "lockstep bench ops -m MODEL");
}

/* ---- Roofline ---- */

typedef struct ceiling {
    double bytes_per_s, flops_per_s; /* the best of each that was measured on the device; NAN: none */
} ceiling;

static ceiling ceiling_of(const report_data *data, const char *device, bool on_gpu) {
    ceiling c = {NAN, NAN};
    size_t at = 0;
    for (const result_row *r; (r = data_next(data, &at, "limits", "")) != NULL;) {
        const bool is_gpu = strstr(r->test, "HBM") != NULL || strstr(r->test, "GPU") != NULL;
        if (strcmp(r->device, device) != 0 || is_gpu != on_gpu || strncmp(r->test, "PCIe", 4) == 0) {
            continue;
        }
        if (strstr(r->test, "read") != NULL) {
            c.bytes_per_s = fmax(c.bytes_per_s, row_value(r, "bytes_per_s"));
        }
        c.flops_per_s = fmax(c.flops_per_s, row_value(r, "flops_per_s"));
    }
    return c;
}

static void add_ceiling(plot *p, ceiling c) {
    plot_series *roof = plot_add(p, "measured ceiling");
    if (roof == NULL || roof->n > 0 || !isfinite(c.bytes_per_s) || !isfinite(c.flops_per_s)) {
        return;
    }
    const double ridge = c.flops_per_s / c.bytes_per_s;
    roof->dashed = true;
    series_add(roof, ridge / 256, c.bytes_per_s * ridge / 256, NULL);
    series_add(roof, ridge, c.flops_per_s, NULL);
    series_add(roof, ridge * 64, c.flops_per_s, NULL);
}

static void roofline_of(page *p, const report_data *data, const result_row *first) {
    plot *roof = calloc(1, sizeof *roof);
    if (roof == NULL) {
        return;
    }
    const ceiling c = ceiling_of(data, first->device, row_is(first, "device", "cuda"));
    *roof = (plot){.title = first->device, .x = "FLOP for each byte read", .y = "FLOP/s", .log_x = true, .log_y = true};
    add_ceiling(roof, c);
    page_text(p, "%s: ceilings %.4g GB/s and %.4g GFLOP/s, which meet at %.3g FLOP a byte.", first->device,
              c.bytes_per_s / 1e9, c.flops_per_s / 1e9, c.flops_per_s / c.bytes_per_s);
    page_table(p, "op|phase|batch|FLOP a byte|GFLOP/s|of what is possible there, %");
    for (size_t at = 0; at < data->n_rows;) {
        char phase[32];
        const result_row *r = data_next(data, &at, "ops", "");
        if (r == NULL) {
            break;
        }
        const double flops = row_value(r, "flops_per_s"), intensity = row_value(r, "flops") / row_value(r, "bytes");
        if (strcmp(r->device, first->device) != 0 || strcmp(r->model, first->model) != 0 || !(flops > 0) ||
            !isfinite(intensity)) {
            continue;
        }
        results_setting(r->row, "phase", phase, sizeof phase);
        page_cell(p, "%s", r->test);
        page_cell(p, "%s", phase);
        page_cell(p, "%lld", (long long)row_int(r, "batch"));
        number_cell(p, intensity, 1);
        number_cell(p, flops, 1e9);
        number_cell(p, flops / fmin(c.flops_per_s, intensity * c.bytes_per_s) * 100, 1);
        plot_series *s = plot_add(roof, phase);
        if (s != NULL) {
            s->points_only = true;
        }
        series_add(s, intensity, flops, r->test);
    }
    page_table_end(p);
    page_plot(p, roof);
    free(roof);
}

void section_roofline(page *p, const report_data *data) {
    size_t at = 0;
    page_heading(p, "roofline", "Roofline");
    const result_row *ops = data_next(data, &at, "ops", "");
    if (ops == NULL) {
        page_absent(p, "Points of the roofline", "lockstep bench ops -m MODEL");
        return;
    }
    const ceiling c = ceiling_of(data, ops->device, row_is(ops, "device", "cuda"));
    if (!isfinite(c.bytes_per_s) || !isfinite(c.flops_per_s)) {
        page_absent(p, "Ceilings of the same device", "lockstep bench limits");
        return;
    }
    roofline_of(p, data, ops);
}

/* ---- Exchange ---- */

void section_exchange(page *p, const report_data *data) {
    int n = 0;
    plot *time = calloc(1, sizeof *time);
    page_heading(p, "exchange", "Exchanges by link");
    if (time == NULL) {
        return;
    }
    *time = (plot){.title = "An exchange", .x = "bytes", .y = "us", .log_x = true, .log_y = true};
    const char *told = NULL; /* why, of the row before */
    for (size_t i = 0; i < data->n_rows; i++) {
        const result_row *r = &data->row[i];
        const char *absent = json_string_value(json_object_get(r->row, "absent"));
        char transport[64], device[32], series[96];
        if (strcmp(r->what, "exchange") != 0 || (told != NULL && absent != NULL && strcmp(told, absent) == 0)) {
            continue; /* what is not there is told once */
        }
        told = absent;
        if (n++ == 0) {
            page_text(p, "One vector of f32 added up over the ranks until all have the sum, waiting for the slowest "
                         "included.");
            page_table(p, "link|device|ranks|bytes|us|GB/s");
        }
        results_setting(r->row, "transport", transport, sizeof transport);
        results_setting(r->row, "device", device, sizeof device);
        page_cell(p, "%s%s%s", device, transport[0] != '\0' ? ", " : "", transport);
        page_cell(p, "%s", r->device);
        page_cell(p, "%lld", (long long)row_int(r, "tp"));
        page_cell(p, "%lld", (long long)row_int(r, "bytes"));
        if (absent != NULL) {
            page_cell(p, "absent: %s", absent);
            page_cell(p, "%s", "");
            continue;
        }
        metric_cell(p, r, "exchange_us");
        number_cell(p, row_value(r, "bytes_per_s"), 1e9);
        snprintf(series, sizeof series, "%s %s, %lld ranks", device, transport, (long long)row_int(r, "tp"));
        series_add(plot_add(time, series), (double)row_int(r, "bytes"), row_value(r, "exchange_us"), NULL);
    }
    if (n > 0) {
        page_table_end(p);
        page_plot(p, time);
    } else {
        page_absent(p, "Exchanges", "lockstep bench exchange");
    }
    free(time);
}

/* The old guide's table of two exchanges a layer. */
void section_share(page *p, const report_data *data) {
    size_t at = 0;
    int n = 0;
    page_heading(p, "share", "Exchanges in a step");
    for (const result_row *r; (r = data_next(data, &at, NULL, "")) != NULL;) {
        const double ms = row_value(r, "exchange_ms"), exchanges = row_value(r, "exchanges");
        if (row_int(r, "tp") < 2 || !isfinite(ms) || !isfinite(exchanges)) {
            continue;
        }
        char label[160];
        const json_t *layers = json_object_get(json_object_get(r->doc, "model"), "layers");
        if (n++ == 0) {
            page_text(p,
                      "Two exchanges a layer, and one for the embedding. Their time includes waiting for the slowest "
                      "rank; 0 where the steps do not time them.");
            page_table(p, "model|device|batch|layers|exchanges a step|us each|ms a step|step, ms|share, %");
        }
        row_label(r, label, sizeof label);
        page_cell(p, "%s", label);
        page_cell(p, "%s", r->device);
        page_cell(p, "%lld", (long long)row_int(r, "batch"));
        page_cell(p, "%lld", (long long)json_integer_value(layers));
        number_cell(p, exchanges, 1);
        number_cell(p, ms * 1000 / exchanges, 1);
        metric_cell(p, r, "exchange_ms");
        metric_cell(p, r, "step_ms");
        number_cell(p, ms / row_value(r, "step_ms") * 100, 1);
    }
    page_table_close(p, n > 0, "Steps of several ranks", "lockstep bench sweep -m MODEL --vary tp=1,2,4,8");
}
