/*
 * Models by name on the command line: finds or downloads them, and shows how that goes on stderr: a bar with rate and time
 * left on a terminal, a line for each file otherwise.
 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/progress.h"

static void draw_bar(progress_view *view, const ls_hub_progress *p) {
    char left[32] = "";
    double seconds = progress_seconds(view), per_s = seconds > 0 ? (double)p->fetched_bytes / seconds : 0;
    if (p->is_waiting) {
        snprintf(left, sizeof left, "another process downloads");
    } else if (per_s > 0 && seconds > 1) {
        long s = (long)((double)(p->total_bytes - p->bytes) / per_s);
        if (s >= 3600) {
            snprintf(left, sizeof left, "%ld h %02ld min left", s / 3600, s / 60 % 60);
        } else {
            snprintf(left, sizeof left, "%ld:%02ld left", s / 60, s % 60);
        }
    }
    progress_draw_bytes(view, p->bytes, p->total_bytes, per_s, left);
}

static bool show_progress(void *user, const ls_hub_progress *p) {
    progress_view *view = user;
    if (view->is_terminal) {
        draw_bar(view, p);
    } else if (p->file != NULL) {
        char bytes[24];
        progress_bytes(bytes, sizeof bytes, (double)p->file_bytes);
        fprintf(stderr, "lockstep: %s: %s, %s (%d of %d)\n", view->name, p->file, bytes, p->files, p->total_files);
    }
    return true;
}

static void log_below_bar(void *user, ls_log_level level, const char *text) {
    progress_clear(user);
    cli_log(NULL, level, text);
}

ls_status cli_hub_params(ls_hub_params *params, options_hub_text *text, const ls_options *options, ls_error *err) {
    *params = (ls_hub_params)LS_HUB_PARAMS_INIT;
    params->log_fn = cli_log;
    params->log_level = options->value[OPT_VERBOSE].integer != 0 ? LS_LOG_DEBUG : LS_LOG_WARN;
    return options_hub(params, text, err);
}

ls_status cli_hub_find(const ls_options *options, bool skip_weights, char *out, size_t out_bytes, ls_error *err) {
    const char *model = options->value[OPT_MODEL].text, *revision = options->value[OPT_REVISION].text;
    options_hub_text text;
    ls_hub_params params;
    char name[512];
    char *folder = NULL;
    bool has_revision = options->value[OPT_REVISION].set && revision[0] != '\0';
    if (has_revision && strchr(model, '@') != NULL) {
        return error_set(err, LS_EINVAL, "--revision %.100s: %.200s names a revision already", revision, model);
    }
    snprintf(name, sizeof name, "%s%s%s", model, has_revision ? "@" : "", has_revision ? revision : "");
    TRY(cli_hub_params(&params, &text, options, err));
    progress_view view = progress_begin(name);
    params.skip_weights = skip_weights;
    params.progress_fn = show_progress;
    params.log_fn = log_below_bar;
    params.user = &view;
    ls_status st = ls_hub_find(&params, name, &folder, err);
    progress_clear(&view);
    TRY(st);
    size_t n = strlen(folder);
    if (n < out_bytes) {
        memcpy(out, folder, n + 1);
    }
    ls_free(folder);
    return n < out_bytes ? LS_OK : error_set(err, LS_EINVAL, "%s: the path of its folder is too long", name);
}
