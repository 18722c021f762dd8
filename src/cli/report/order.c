/* The order of a report: what was to be reached, then runs, what they are made of, what bounds them, and the sources. */
#include <string.h>

#include "cli/report/report.h"

/* NULL if there are several. */
static const char *only_device(const report_data *data) {
    for (size_t i = 1; i < data->n_rows; i++) {
        if (strcmp(data->row[i].device, data->row[0].device) != 0) {
            return NULL;
        }
    }
    return data->n_rows > 0 ? data->row[0].device : NULL;
}

static const char *const contents[][2] = {
    {"targets", "Targets"},     {"models", "Models"},     {"timeline", "A run"},
    {"bandwidth", "Bandwidth"}, {"roofline", "Roofline"}, {"batch", "Batch"},
    {"precision", "Precision"}, {"context", "Context"},   {"plans", "Plans"},
    {"exchange", "Exchange"},   {"share", "Its share"},   {"start", "Start"},
    {"sampling", "Sampling"},   {"gains", "Gains"},       {"ops", "Ops"},
    {"limits", "Limits"},       {"serving", "Serving"},   {"peers", "Other programs"},
    {"sources", "Sources"},
};

void page_sections(page *p, const report_data *data, int *n_missed) {
    p->device = only_device(data);
    page_begin(p, "lockstep: measured");
    if (p->device != NULL) {
        page_text(p, "All of it on one machine: %s.", p->device);
    }
    page_contents(p, contents, sizeof contents / sizeof *contents);
    section_targets(p, data, n_missed);
    section_headline(p, data);
    section_timeline(p, data);
    section_bandwidth(p, data);
    section_roofline(p, data);
    section_batch(p, data);
    section_precision(p, data);
    section_context(p, data);
    section_plans(p, data);
    section_exchange(p, data);
    section_share(p, data);
    section_start(p, data);
    section_sampling(p, data);
    section_gains(p, data);
    section_ops(p, data);
    section_limits(p, data);
    section_serving(p, data);
    section_peers(p, data);
    section_sources(p, data);
    page_end(p);
}
