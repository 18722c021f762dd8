/*
 * Plots by gnuplot, as SVG inside of the page. It is told through a script on its standard input and writes to a pipe;
 * nothing of a result file reaches it but numbers, and names cut down to letters without a meaning in its language.
 *
 * Colours are agreed on by number: gnuplot writes what we ask for as rgb(...), and each such colour becomes a variable of
 * the page's style, so that one plot serves light and dark.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/report/report.h"

enum { SVG_BYTES = 4 << 20 };

/* Series n is the colour #01000n, the grid #01000e. Black is text and axes. */
static const char *colour_of(const char *rgb, size_t *n_bytes, char scratch[24]) {
    int red, green, blue, n = 0;
    if (sscanf(rgb, "rgb( %d, %d, %d)%n", &red, &green, &blue, &n) != 3 || n == 0) {
        return NULL;
    }
    *n_bytes = (size_t)n;
    if (red == 0 && green == 0 && blue == 0) {
        return "var(--fg)";
    }
    if (red != 1 || green != 0) {
        return NULL;
    }
    snprintf(scratch, 24, blue == 14 ? "var(--line)" : "var(--s%d)", blue);
    return scratch;
}

/* gnuplot's document without its head, colours as variables. */
static void put_svg(const char *svg, const char *title, FILE *out) {
    const char *at = strstr(svg, "<svg");
    const char *inside = at != NULL ? strchr(at, '>') : NULL;
    double width = 760, height = 380;
    const char *box = at != NULL ? strstr(at, "viewBox=\"") : NULL;
    if (inside == NULL) {
        return;
    }
    if (box != NULL) {
        sscanf(box, "viewBox=\"0 0 %lf %lf", &width, &height);
    }
    fprintf(out, "<svg viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"", width, height);
    page_html(title, out);
    fputs("\">", out);
    for (at = inside + 1; *at != '\0'; at++) {
        char scratch[24];
        size_t n = 0;
        const char *colour = *at == 'r' ? colour_of(at, &n, scratch) : NULL;
        if (strncmp(at, "<title>", 7) == 0 && strstr(at, "</title>") != NULL) {
            at = strstr(at, "</title>") + 7; /* "Gnuplot", "gnuplot_plot_1" */
        } else if (strncmp(at, "\"black\"", 7) == 0 || strncmp(at, "'black'", 7) == 0) {
            fputs("'var(--fg)'", out);
            at += 6;
        } else if (colour != NULL) {
            fputs(colour, out);
            at += n - 1;
        } else {
            fputc(*at, out);
        }
    }
}

/* ---- Running it ---- */

static char *run_gnuplot(FILE *script) {
    int out[2], status = -1;
    pid_t pid;
    posix_spawn_file_actions_t actions;
    char *const argv[] = {"gnuplot", "-d", NULL}, *svg = calloc(1, SVG_BYTES);
    if (svg == NULL || pipe2(out, O_CLOEXEC) != 0) {
        free(svg);
        return NULL;
    }
    rewind(script);
    lseek(fileno(script), 0, SEEK_SET);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fileno(script), STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    int failed = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    size_t got = 0;
    for (ssize_t n; failed == 0 && got < SVG_BYTES - 1;) {
        n = read(out[0], svg + got, SVG_BYTES - 1 - got);
        if (n == 0 || (n < 0 && errno != EINTR)) {
            break;
        }
        got += n > 0 ? (size_t)n : 0;
    }
    close(out[0]);
    while (failed == 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (failed != 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0 || got == 0) {
        free(svg);
        return NULL;
    }
    return svg;
}

const char *plot_missing(void) {
    FILE *script = tmpfile();
    if (script == NULL) {
        return "no temporary file can be made";
    }
    fputs("set terminal svg\nplot 1\n", script);
    fflush(script);
    char *svg = run_gnuplot(script);
    fclose(script);
    free(svg);
    return svg != NULL ? NULL : "gnuplot is not installed (Debian: gnuplot-nox)";
}

/* Letters, digits and a few signs: nothing that gnuplot, XML or a shell would act on. */
static void put_word(const char *name, FILE *script) {
    for (; *name != '\0'; name++) {
        fputc(isalnum((unsigned char)*name) || strchr(" .,:/()+-%_=", *name) != NULL ? *name : '_', script);
    }
}

static void put_name(const char *name, FILE *script) {
    fputc('\'', script);
    put_word(name, script);
    fputc('\'', script);
}

static FILE *begin_script(const char *title, const char *x, int height) {
    FILE *script = tmpfile();
    if (script != NULL) {
        fprintf(script,
                "set terminal svg size 760,%d dynamic noenhanced font 'system-ui,sans-serif,13' lw 1.6 "
                "\nset encoding utf8\nset border 3\nset tics nomirror\nset grid lc rgb '#01000e' lw 0.5\n"
                "set key outside bottom center horizontal noenhanced spacing 1.5\nset title ",
                height);
        put_name(title, script);
        fputs("\nset xlabel ", script);
        put_name(x, script);
        fputs(" offset 0,0.4\n", script);
    }
    return script;
}

static void end_script(page *out, FILE *script, const char *title) {
    fflush(script);
    char *svg = run_gnuplot(script);
    fclose(script);
    if (svg == NULL) {
        fputs("<p class=\"absent\">", out->html);
        page_html(title, out->html);
        fputs(": gnuplot made no plot of it.</p>\n", out->html);
        return;
    }
    out->n_plots++;
    fputs("<figure>\n", out->html);
    put_svg(svg, title, out->html);
    fputs("</figure>\n", out->html);
    free(svg);
}

/* ---- Lines and points ---- */

plot_series *plot_add(plot *p, const char *name) {
    for (int i = 0; i < p->n; i++) {
        if (strcmp(p->series[i].name, name) == 0) {
            return &p->series[i];
        }
    }
    if (p->n == PLOT_SERIES) {
        return NULL;
    }
    plot_series *s = &p->series[p->n++];
    *s = (plot_series){0};
    snprintf(s->name, sizeof s->name, "%s", name);
    return s;
}

void series_add(plot_series *s, double x, double y, const char *label) {
    if (s != NULL && s->n < PLOT_POINTS && isfinite(x) && isfinite(y)) {
        s->x[s->n] = x;
        s->y[s->n] = y;
        snprintf(s->label[s->n++], sizeof s->label[0], "%s", label != NULL ? label : "");
    }
}

/* A point takes its label to an earlier one that it would cover. */
static void join_labels(plot_series *s) {
    for (int i = 1; i < s->n; i++) {
        for (int k = 0; k < i && s->label[i][0] != '\0'; k++) {
            const bool near = fabs(log(s->x[i] / s->x[k])) < 0.3 && fabs(log(s->y[i] / s->y[k])) < 0.35;
            const size_t n = strlen(s->label[k]);
            if (n > 0 && near && strstr(s->label[k], s->label[i]) == NULL) {
                snprintf(s->label[k] + n, sizeof s->label[k] - n, ", %s", s->label[i]);
            }
            s->label[i][0] = n > 0 && near ? '\0' : s->label[i][0];
        }
    }
}

static void put_series(const plot_series *s, int i, FILE *script) {
    fprintf(script, "$s%d << END\n", i);
    for (int k = 0; k < s->n; k++) {
        fprintf(script, "%.9g %.9g \"", s->x[k], s->y[k]);
        put_word(s->label[k], script);
        fputs("\"\n", script);
    }
    fputs("END\n", script);
}

/* Counts double from tick to tick; bytes and rates rise by tens. */
static void put_x_axis(const plot *p, FILE *script) {
    bool counts = true;
    double most = 0;
    for (int i = 0; i < p->n; i++) {
        for (int k = 0; k < p->series[i].n; k++) {
            counts = counts && p->series[i].x[k] == floor(p->series[i].x[k]);
            most = fmax(most, p->series[i].x[k]);
        }
    }
    fputs(counts && most < 1e5 ? "set logscale x 2\nset format x '%g'\n" : "set logscale x\n", script);
    fputs(most > 1e5 ? "set format x '%.0s%c'\n" : "", script);
}

void page_plot(page *out, plot *p) {
    if (out->gnuplot != NULL || p->n == 0) {
        return;
    }
    FILE *script = begin_script(p->title, p->x, 400);
    if (script == NULL) {
        return;
    }
    fputs("set ylabel ", script);
    put_name(p->y, script);
    fprintf(script, "\nset offsets graph 0.03, graph 0.08, graph 0.06, 0\n%s",
            p->log_y ? "set logscale y\n" : "set yrange [0:*]\n");
    if (p->log_x) {
        put_x_axis(p, script);
    }
    if (p->log_y) {
        fputs("set format y '%.0s%c'\n", script);
    }
    for (int i = 0; i < p->n; i++) {
        join_labels(&p->series[i]);
        put_series(&p->series[i], i, script);
    }
    fputs("plot ", script);
    for (int i = 0; i < p->n; i++) {
        const plot_series *s = &p->series[i];
        fprintf(script, "%s$s%d using 1:2 with %s lc rgb '#01000%d' %s title ", i > 0 ? ", " : "", i,
                s->points_only ? "points"
                : s->dashed    ? "lines"
                               : "linespoints",
                i + 1, s->dashed ? "dt 2" : "pt 7 ps 0.6");
        put_name(s->name, script);
        fprintf(script, ", $s%d using 1:2:3 with labels offset 0.6,0.6 left font ',10' notitle", i);
    }
    fputc('\n', script);
    end_script(out, script, p->title);
}

/* ---- Bars ---- */

void page_bars(page *out, const bar_plot *p) {
    if (out->gnuplot != NULL || p->n == 0) {
        return;
    }
    int longest = 8;
    for (int i = 0; i < p->n; i++) {
        const int n = (int)strlen(p->name[i]);
        longest = n > longest ? n : longest;
    }
    longest = longest < 40 ? longest : 40;
    FILE *script = begin_script(p->title, p->x, 170 + 36 * p->n);
    if (script == NULL) {
        return;
    }
    fprintf(script, "set style fill solid 0.9 noborder\nset xrange [0:*]\nset yrange [%d:-0.6]\nset lmargin %d\n", p->n,
            longest + 2);
    fputs("set key maxrows 1\nunset ylabel\nset grid noy\nset ytics scale 0 (", script);
    for (int i = 0; i < p->n; i++) {
        fputs(i > 0 ? ", " : "", script);
        put_name(p->name[i], script);
        fprintf(script, " %d", i);
    }
    fputs(")\n", script);
    for (int part = 0; part < p->n_parts; part++) {
        fprintf(script, "$p%d << END\n", part);
        for (int i = 0; i < p->n; i++) {
            double from = 0;
            for (int k = 0; k < part; k++) {
                from += isfinite(p->value[i][k]) ? p->value[i][k] : 0;
            }
            double to = from + (isfinite(p->value[i][part]) ? p->value[i][part] : 0);
            fprintf(script, "%.9g %d %.9g %.9g %.9g %.9g\n", to, i, from, to, i - 0.32, i + 0.32);
        }
        fputs("END\n", script);
    }
    fputs("plot ", script);
    for (int part = 0; part < p->n_parts; part++) {
        fprintf(script, "%s$p%d using 1:2:3:4:5:6 with boxxyerror lc rgb '#01000%d' title ", part > 0 ? ", " : "", part,
                part + 1);
        put_name(p->part[part], script);
    }
    fputc('\n', script);
    end_script(out, script, p->title);
}
