/* What the commands share. The only layer that prints, reads argv and exits. */
#ifndef LS_CLI_CLI_H
#define LS_CLI_CLI_H

#include "base/options.h"

/* Exit codes. */
enum { EXIT_GOOD = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

/* Parses argv[1..] of a command against the options table. Prints help and exits by itself (argp). */
ls_status args_parse(ls_options *options, unsigned command, const char *name, const char *doc, int argc, char **argv,
                     ls_error *err);

/* Each command: argv[0] is its name. Returns the exit code. */
int cmd_generate(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_template(int argc, char **argv);

/* "lockstep: <text>" on stderr, with the trace if asked for. Returns EXIT_FAILED or EXIT_USAGE by status. */
int cli_fail(const ls_error *error, bool verbose);
/* For ls_model_params.log_fn: one line on stderr. */
void cli_log(void *user, ls_log_level level, const char *text);

/* The folder of the built-in model if the name is "demo" (beside the binary, one level up, or in share/), else the name
 * itself. */
ls_status cli_find_model(char *out, size_t out_bytes, const char *name, ls_error *err);

#endif
