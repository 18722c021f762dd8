/* One text in two forms: HTML and Markdown. See report.h. */
#include <ctype.h>
#include <stdarg.h>
#include <string.h>

#include "cli/report/report.h"

/* Colours by what they are for; plots refer to them too (plot.c). */
static const char STYLE[] =
    ":root{--bg:#fff;--fg:#1c2024;--soft:#5b6470;--line:#d9dee4;--panel:#f6f7f9;--good:#0a7a3d;--bad:#b3261e;"
    "--s1:#0b69a8;--s2:#c24e00;--s3:#0a7f5b;--s4:#a8447f;--s5:#8f6a00;--s6:#4b5bc9;--s7:#6b7280;--s8:#7a4b1f}\n"
    "@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e9ec;--soft:#9aa4af;--line:#343b43;--panel:#1c2126;"
    "--good:#5fd38d;--bad:#ff8a80;--s1:#62b5ee;--s2:#ff9d5c;--s3:#4fd1a5;--s4:#eb9dca;--s5:#e3bd4f;--s6:#a3adff;"
    "--s7:#a8b0ba;--s8:#d6a374}}\n"
    "*{box-sizing:border-box}body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:76rem;background:var(--bg);"
    "color:var(--fg);font:16px/1.5 system-ui,sans-serif}\n"
    "h1{font-size:1.7rem;margin:.5rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .4rem;padding-top:.6rem;"
    "border-top:1px solid var(--line)}p{margin:.4rem 0 .8rem;max-width:48rem}\n"
    ".scroll{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-size:.87rem;"
    "font-variant-numeric:tabular-nums}th,td{padding:.3rem .65rem;border-bottom:1px solid var(--line);text-align:left;"
    "vertical-align:top;white-space:nowrap}th{color:var(--soft);font-weight:600}td.n{text-align:right}"
    "td.w{white-space:normal;min-width:22rem;overflow-wrap:anywhere}tbody tr:hover{background:var(--panel)}\n"
    ".absent{color:var(--soft)}.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}"
    "code{background:var(--panel);padding:.1em .3em;border-radius:3px;font-size:.9em}\n"
    "figure{margin:1rem 0;padding:.6rem;background:var(--panel);border:1px solid var(--line);border-radius:6px}"
    "figure svg{display:block;width:100%;height:auto}figcaption{font-size:.85rem;color:var(--soft);"
    "padding:0 .3rem .3rem}\n"
    "nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.87rem}a{color:var(--s1);text-decoration:none}"
    "a:hover{text-decoration:underline}\n"
    "@media print{body{max-width:none}figure,tr{break-inside:avoid}}\n";

void page_html(const char *text, FILE *out) {
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '&':
            fputs("&amp;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc((unsigned char)*text < ' ' ? ' ' : *text, out);
        }
    }
}

/* What Markdown would read as more than text: tags, bars of tables, and lines of their own. */
static void put_markdown(const char *text, FILE *out) {
    for (; *text != '\0'; text++) {
        if (*text == '<') {
            fputs("&lt;", out);
        } else {
            fputs(*text == '|' ? "\\" : "", out);
            fputc((unsigned char)*text < ' ' ? ' ' : *text, out);
        }
    }
}

void page_begin(page *p, const char *title) {
    fprintf(p->html, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                     "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
                     "<meta name=\"color-scheme\" content=\"light dark\">\n<title>");
    page_html(title, p->html);
    fprintf(p->html, "</title>\n<style>\n%s</style>\n</head>\n<body>\n<h1>", STYLE);
    page_html(title, p->html);
    fputs("</h1>\n", p->html);
    fprintf(p->markdown, "# %s\n", title);
}

void page_end(page *p) {
    fputs("</body>\n</html>\n", p->html);
}

void page_contents(page *p, const char *const (*item)[2], size_t n) {
    fputs("<nav>\n", p->html);
    for (size_t i = 0; i < n; i++) {
        fprintf(p->html, "<a href=\"#%s\">%s</a>\n", item[i][0], item[i][1]);
    }
    fputs("</nav>\n", p->html);
}

void page_heading(page *p, const char *id, const char *text) {
    fprintf(p->html, "<h2 id=\"%s\">", id);
    page_html(text, p->html);
    fputs("</h2>\n", p->html);
    fprintf(p->markdown, "\n## %s\n", text);
}

void page_text(page *p, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fputs("<p>", p->html);
    page_html(text, p->html);
    fputs("</p>\n", p->html);
    fputc('\n', p->markdown);
    put_markdown(text, p->markdown);
    fputc('\n', p->markdown);
}

void page_absent(page *p, const char *what, const char *command) {
    fprintf(p->html, "<p class=\"absent\">%s: not measured. <code>%s</code> measures it.</p>\n", what, command);
    fprintf(p->markdown, "\n%s: not measured. `%s` measures it.\n", what, command);
}

static void put_column(page *p, const char *name, size_t n) {
    char text[128];
    snprintf(text, sizeof text, "%.*s", (int)n, name);
    if (p->device != NULL && strcmp(text, "device") == 0) {
        p->hidden = p->n_columns;
    } else {
        fputs("<th>", p->html);
        page_html(text, p->html);
        fputs("</th>", p->html);
        fprintf(p->markdown, "| %s ", text);
    }
    p->n_columns++;
}

void page_table(page *p, const char *columns) {
    p->n_cells = p->n_columns = 0;
    p->hidden = -1;
    fputs("<div class=\"scroll\"><table>\n<thead><tr>", p->html);
    fputc('\n', p->markdown);
    for (const char *at = columns; at != NULL; at = strchr(at, '|') != NULL ? strchr(at, '|') + 1 : NULL) {
        put_column(p, at, strcspn(at, "|"));
    }
    fputs("</tr></thead>\n<tbody>\n", p->html);
    fputs("|\n", p->markdown);
    for (int i = 0; i < p->n_columns - (p->hidden >= 0); i++) {
        fputs("|---", p->markdown);
    }
    fputs("|\n", p->markdown);
}

/* Verdicts stand out; numbers stand to the right. */
static const char *class_of(const char *text) {
    if (strcmp(text, "pass") == 0) {
        return " class=\"good\"";
    }
    if (strncmp(text, "MISSED", 6) == 0) {
        return " class=\"bad\"";
    }
    if (strncmp(text, "absent", 6) == 0 || strncmp(text, "not measured", 12) == 0) {
        return " class=\"absent\"";
    }
    if (strlen(text) > 60) {
        return " class=\"w\"";
    }
    return isdigit((unsigned char)text[0]) || (text[0] == '-' && isdigit((unsigned char)text[1])) ? " class=\"n\"" : "";
}

void page_cell(page *p, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const int column = p->n_cells++ % p->n_columns;
    const bool first = column == 0, last = column == p->n_columns - 1;
    if (column == p->hidden) { /* never the first or the last */
        return;
    }
    fprintf(p->html, "%s<td%s>", first ? "<tr>" : "", class_of(text));
    page_html(text, p->html);
    fprintf(p->html, "</td>%s", last ? "</tr>\n" : "");
    fputs("| ", p->markdown);
    put_markdown(text, p->markdown);
    fputs(last ? " |\n" : " ", p->markdown);
}

void page_table_end(page *p) {
    fputs("</tbody></table></div>\n", p->html);
}

void page_table_close(page *p, bool begun, const char *what, const char *command) {
    if (begun) {
        page_table_end(p);
    } else {
        page_absent(p, what, command);
    }
}
