/* lockstep report: results as pages of tables and plots. The sections are in report/. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/report/report.h"

typedef struct report {
    ls_options options;
    report_data data;
    char *text[2]; /* HTML, Markdown */
    size_t n[2];
    int n_missed;
} report;

static ls_status save(const char *path, const char *text, size_t n, ls_error *err) {
    if (strcmp(path, "-") == 0) {
        fwrite(text, 1, n, stdout);
        return LS_OK;
    }
    FILE *file = fopen(path, "we");
    if (file == NULL || fwrite(text, 1, n, file) != n || fclose(file) != 0) {
        return error_set(err, LS_EIO, "%s: cannot be written: %s", path, strerror(errno));
    }
    return LS_OK;
}

static ls_status make(report *r, ls_error *err) {
    const option_value *v = r->options.value;
    page p = {.html = open_memstream(&r->text[0], &r->n[0]), .markdown = open_memstream(&r->text[1], &r->n[1])};
    if (p.html != NULL && p.markdown != NULL) {
        p.gnuplot = v[OPT_HTML].set ? plot_missing() : "plots are in the page alone (--html)";
        page_sections(&p, &r->data, &r->n_missed);
    }
    bool failed = p.html == NULL || p.markdown == NULL || ferror(p.html) != 0 || ferror(p.markdown) != 0;
    for (int i = 0; i < 2; i++) {
        FILE *file = i == 0 ? p.html : p.markdown;
        failed = (file != NULL && fclose(file) != 0) || failed;
    }
    if (failed) {
        return error_set(err, LS_ENOMEM, "report: out of memory");
    }
    if (v[OPT_HTML].set) {
        TRY(save(v[OPT_HTML].text, r->text[0], r->n[0], err));
    }
    return v[OPT_MARKDOWN].set || !v[OPT_HTML].set
               ? save(v[OPT_MARKDOWN].set ? v[OPT_MARKDOWN].text : "-", r->text[1], r->n[1], err)
               : LS_OK;
}

static ls_status report_all(report *r, int argc, char **argv, ls_error *err) {
    TRY(options_init(&r->options, err));
    TRY(args_parse(&r->options, COMMAND_REPORT, argc, argv, err));
    if (r->options.n_list[OPT_RESULTS] == 0) {
        return error_set(err, LS_EINVAL,
                         "report needs results: lockstep bench latency -m demo --output-json a.json; "
                         "lockstep report a.json --html report.html");
    }
    TRY(data_read(&r->data, r->options.list[OPT_RESULTS], r->options.n_list[OPT_RESULTS], err));
    return make(r, err);
}

int cmd_report(int argc, char **argv) {
    report r = {0};
    ls_error error = {0};
    ls_status st = report_all(&r, argc, argv, &error);
    int code = st < 0 ? cli_fail(&error, r.options.value[OPT_VERBOSE].integer != 0) : EXIT_GOOD;
    if (st == LS_OK && r.n_missed > 0) {
        fprintf(stderr, "lockstep: %d %s missed\n", r.n_missed, r.n_missed == 1 ? "target was" : "targets were");
        code = EXIT_FAILED;
    }
    data_deinit(&r.data);
    free(r.text[0]);
    free(r.text[1]);
    options_deinit(&r.options);
    return code;
}
