/*
 * How the reading of long prompts goes: a bar with its rate on stderr if that is a terminal, as of loading. It stands while
 * steps read prompts; whoever writes an answer takes it away first.
 */
#ifndef LS_CLI_READING_H
#define LS_CLI_READING_H

#include "base/options.h"
#include "cli/progress.h"

typedef struct reading {
    progress_view bar;
    ls_engine *engine;
    int64_t total_tokens;               /* to be read */
    int64_t before_tokens, done_tokens; /* read by the engine before these, and of these */
    double seconds, last_s;             /* of the steps that read; the last step's end */
} reading;

/* Before the first step. n_tokens: of all prompts, less what the KV cache has; total_tokens may be set later, when that is
 * known. engine is borrowed. Shows nothing for prompts that are short, or with --timeline none. */
reading reading_begin(const ls_options *options, ls_engine *engine, int64_t n_tokens);
/* There is a bar, or will be. */
bool reading_is_shown(const reading *r);
/* After each step. */
void reading_step(reading *r);
/* Takes the bar away. */
void reading_clear(reading *r);

#endif
