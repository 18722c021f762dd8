/* The prompts of a command line: texts of -p in their order, then files of -f in theirs, all of them --repeat-prompt
 * times. */
#ifndef LS_CLI_PROMPTS_H
#define LS_CLI_PROMPTS_H

#include "base/file.h"
#include "base/options.h"

/* Any bytes, NUL among them. */
typedef struct prompt_text {
    const char *bytes;
    size_t n_bytes;
} prompt_text;

typedef struct prompt_list {
    prompt_text *item; /* [n] */
    size_t n;
    ls_file *file; /* [n_files] maps of regular files */
    size_t n_files;
    char *input; /* all of standard input, or NULL */
} prompt_list;

/* Errors name the file. What was read before one is the caller's to deinit. */
ls_status prompts_read(prompt_list *out, const ls_options *options, ls_error *err);
void prompts_deinit(prompt_list *list); /* accepts a zeroed one */

#endif
