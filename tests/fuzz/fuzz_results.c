/*
 * Fuzz target: results files, as --compare and report read them. What is accepted can be written in every form and made into
 * a page, of which nothing that a file said is a tag; compared with itself nothing is worse.
 */
#include <stdlib.h>
#include <string.h>

#include "cli/report/report.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

static void write_all(const json_t *root, FILE *out) {
    int n_worse = -1;
    results_write(root, FORM_MARKDOWN, out);
    results_write(root, FORM_CSV, out);
    results_write(root, FORM_JSON, out);
    results_compare(root, root, "itself", out, &n_worse);
    require(n_worse == 0, "nothing is worse than itself");
}

/* Tags of ours alone: none with an attribute that runs or loads something. */
static void require_harmless(const char *html) {
    require(strstr(html, "<script") == NULL && strstr(html, "<img") == NULL && strstr(html, "<iframe") == NULL,
            "no tag of a file's");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ls_error err = {0};
    json_doc doc = {0};
    ls_status st = results_parse(&doc, "fuzz", (const char *)data, size, &err);
    require(st == LS_OK || (err.status == st && err.text[0] != '\0' && doc.root == NULL), "a failure has a text");
    if (st != LS_OK) {
        return 0;
    }
    char *text[2] = {NULL, NULL};
    size_t n[2];
    int n_missed = 0;
    report_data report = {.doc = malloc(sizeof doc), .n_docs = 1};
    page p = {.html = open_memstream(&text[0], &n[0]), .markdown = open_memstream(&text[1], &n[1]), .gnuplot = "no"};
    require(report.doc != NULL && p.html != NULL && p.markdown != NULL, "memory");
    report.doc[0] = doc;
    write_all(doc.root, p.markdown);
    require(data_index(&report, &err) == LS_OK, "rows");
    page_sections(&p, &report, &n_missed);
    fclose(p.html);
    fclose(p.markdown);
    require_harmless(text[0]);
    free(text[0]);
    free(text[1]);
    data_deinit(&report);
    return 0;
}
