/* How something long goes, on stderr: a bar on a terminal, from time to time a line elsewhere. */
#ifndef LS_CLI_PROGRESS_H
#define LS_CLI_PROGRESS_H

#include "lockstep.h"

typedef struct progress_view {
    const char *name; /* of what goes on; borrowed */
    bool is_terminal, is_drawn;
    double start_s, told_s; /* told: when the last line was written */
} progress_view;

progress_view progress_begin(const char *name);
double progress_seconds(const progress_view *view); /* since then */
/* A bar instead of the one before, with a text behind it; of bytes: how many of how many, their rate, and a note. */
void progress_draw(progress_view *view, int64_t done, int64_t total, const char *text);
void progress_draw_bytes(progress_view *view, int64_t bytes, int64_t total_bytes, double bytes_per_s, const char *note);
/* Takes the bar away. */
void progress_clear(progress_view *view);
/* "8.04 GB" */
void progress_bytes(char *out, size_t out_bytes, double bytes);

/* ls_load_progress_fn with a view as `user`. What is over at once is not shown. */
void progress_of_loading(void *user, const ls_load_progress *progress);

#endif
