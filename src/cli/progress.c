/* See progress.h. */
#include "cli/progress.h"

#include <stdio.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static double clock_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

progress_view progress_begin(const char *name) {
    double now = clock_s();
    return (progress_view){.name = name, .is_terminal = isatty(STDERR_FILENO) != 0, .start_s = now, .told_s = now};
}

double progress_seconds(const progress_view *view) {
    return clock_s() - view->start_s;
}

void progress_bytes(char *out, size_t out_bytes, double bytes) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    size_t i = 0;
    while (bytes >= 999.5 && i + 1 < sizeof units / sizeof *units) {
        bytes /= 1000;
        i++;
    }
    snprintf(out, out_bytes,
             i == 0 || bytes >= 99.95 ? "%.0f %s"
             : bytes >= 9.995         ? "%.1f %s"
                                      : "%.2f %s",
             bytes, units[i]);
}

void progress_clear(progress_view *view) {
    if (view->is_drawn) {
        fputs("\r\033[K", stderr);
        view->is_drawn = false;
    }
}

void progress_draw(progress_view *view, int64_t done, int64_t total, const char *text) {
    enum { BAR = 24 };
    char bar[BAR + 1], line[256];
    struct winsize size = {0};
    double share = total > 0 ? (double)done / (double)total : 0;
    for (int i = 0; i < BAR; i++) {
        bar[i] = i < (int)(share * BAR) ? '#' : '.';
    }
    bar[BAR] = '\0';
    snprintf(line, sizeof line, "%s [%s] %3d %% %s", view->name, bar, (int)(share * 100), text);
    int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1 : 79;
    progress_clear(view);
    fprintf(stderr, "%.*s", columns, line);
    fflush(stderr);
    view->is_drawn = true;
}

void progress_draw_bytes(progress_view *view, int64_t bytes, int64_t total_bytes, double bytes_per_s,
                         const char *note) {
    char have[24], total[24], rate[24], text[160];
    progress_bytes(have, sizeof have, (double)bytes);
    progress_bytes(total, sizeof total, (double)total_bytes);
    progress_bytes(rate, sizeof rate, bytes_per_s);
    snprintf(text, sizeof text, "%s of %s  %s/s  %s", have, total, rate, note);
    progress_draw(view, bytes, total_bytes, text);
}

void progress_of_loading(void *user, const ls_load_progress *p) {
    const double at_once_s = 0.3, between_lines_s = 5;
    progress_view *view = user;
    double seconds = (double)p->elapsed_us * 1e-6, per_s = seconds > 0 ? (double)p->bytes / seconds : 0;
    if (view->is_terminal && seconds > at_once_s) {
        progress_draw_bytes(view, p->bytes, p->total_bytes, per_s, "");
    } else if (!view->is_terminal && clock_s() - view->told_s > between_lines_s) {
        char have[24], total[24], rate[24];
        progress_bytes(have, sizeof have, (double)p->bytes);
        progress_bytes(total, sizeof total, (double)p->total_bytes);
        progress_bytes(rate, sizeof rate, per_s);
        fprintf(stderr, "lockstep: %s: %d %%, %s of %s, %s/s\n", view->name,
                p->total_bytes > 0 ? (int)((double)p->bytes * 100 / (double)p->total_bytes) : 100, have, total, rate);
        view->told_s = clock_s();
    }
}
