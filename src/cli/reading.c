/* See reading.h. */
#include "cli/reading.h"

#include <stdio.h>
#include <string.h>

enum { LONG_TOKENS = 1024 };

bool reading_is_shown(const reading *r) {
    return r->bar.is_terminal && r->total_tokens >= LONG_TOKENS;
}

static void draw(reading *r) {
    char text[96];
    int n = snprintf(text, sizeof text, "%lld of %lld tokens", (long long)r->done_tokens, (long long)r->total_tokens);
    if (r->seconds > 0) {
        snprintf(text + n, sizeof text - (size_t)n, "  %.0f tokens/s", (double)r->done_tokens / r->seconds);
    }
    progress_draw(&r->bar, r->done_tokens, r->total_tokens, text);
}

static int64_t tokens_read(const reading *r) {
    ls_engine_stats stats = LS_ENGINE_STATS_INIT;
    return ls_engine_get_stats(r->engine, &stats, NULL) == LS_OK ? stats.prompt_tokens - r->before_tokens : 0;
}

reading reading_begin(const ls_options *options, ls_engine *engine, int64_t n_tokens) {
    reading r = {.bar = progress_begin("reading"), .engine = engine, .total_tokens = n_tokens};
    r.bar.is_terminal = r.bar.is_terminal && strcmp(options->value[OPT_TIMELINE].text, "none") != 0;
    r.before_tokens = tokens_read(&r);
    if (reading_is_shown(&r)) {
        draw(&r);
    }
    return r;
}

void reading_step(reading *r) {
    if (!reading_is_shown(r)) {
        return;
    }
    const int64_t done = tokens_read(r);
    const double now = progress_seconds(&r->bar);
    const bool reads = done > r->done_tokens;
    r->seconds += reads ? now - r->last_s : 0;
    r->done_tokens = done;
    r->last_s = now;
    if (reads && done < r->total_tokens) {
        draw(r);
    } else {
        reading_clear(r);
    }
}

void reading_clear(reading *r) {
    progress_clear(&r->bar);
}
