/* What the commands share. The only layer that prints, reads argv and exits. */
#ifndef LS_CLI_CLI_H
#define LS_CLI_CLI_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/options.h"

/* Exit codes. */
/* EXIT_LOST: ranks, a host or a device failed while all was well with what was asked for, so starting again may help. */
enum { EXIT_GOOD = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_LOST = 3, EXIT_INTERRUPTED = 130 };

/* Parses argv[1..] of a command (one bit of COMMAND_*) against the options table. A word without a flag is the model,
 * where command_table says so. Prints help and exits by itself (argp). */
ls_status args_parse(ls_options *options, unsigned command, int argc, char **argv, ls_error *err);

/* Each command: argv[0] is its name. Returns the exit code. */
int cmd_generate(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_report(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_template(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_perplexity(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_pull(int argc, char **argv);

/* "lockstep: <text>" on stderr, with the trace if asked for. Returns EXIT_FAILED, EXIT_USAGE or EXIT_LOST by status. */
int cli_fail(const ls_error *error, bool verbose);
/* For ls_model_params.log_fn: one line on stderr. */
void cli_log(void *user, ls_log_level level, const char *text);

/* The processes that share a command's ranks. Zeroed: this one is alone. Stays where it is between joining and leaving. */
enum { CLI_GPUS = 32 };
typedef struct cli_hosts {
    ls_hosts *group;
    _Atomic(ls_hosts *) named; /* the same, for the thread that waits for SIGTERM */
    pthread_t watch;
    bool watched;
    char gpus[CLI_GPUS]; /* what --device became, if it did: cli_hosts_join */
} cli_hosts;

/* open.c: an argument, or what is in the file it names with @. *out is malloc'ed; NULL for an option that was not given. */
ls_status cli_read_argument(const option_value *value, char **out, ls_error *err);
/* The folder of --model: found beside the binary if the name is "demo", in the cache or on the hub if it is a name
 * there. cli_find_text leaves out the weights: for commands that only read the config or the tokenizer. */
ls_status cli_find_model(const ls_options *options, char *out, size_t out_bytes, ls_error *err);
ls_status cli_find_text(const ls_options *options, char *out, size_t out_bytes, ls_error *err);
/* hub.c: the same for a name on the hub, with progress on stderr; and the hub's settings as options and environment give
 * them. text keeps the strings and must live as long as params. */
ls_status cli_hub_find(const ls_options *options, bool skip_weights, char *out, size_t out_bytes, ls_error *err);
ls_status cli_hub_params(ls_hub_params *params, options_hub_text *text, const ls_options *options, ls_error *err);
/* Opens --model; the same for an engine that is to run it; and that engine. What was opened before a failure is the caller's
 * to close. */
ls_status cli_open_model(const ls_options *options, ls_model **out, ls_error *err);
ls_status cli_open_to_run(const ls_options *options, ls_model **out, ls_error *err);
ls_status cli_open(const ls_options *options, ls_hosts *hosts, ls_model **model, ls_engine **engine, ls_error *err);
/* ls_engine_open with progress on stderr, unless --timeline none asks for silence. */
ls_status cli_open_engine(const ls_options *options, ls_model *model, const ls_engine_params *params, ls_engine **out,
                          ls_error *err);
/* hosts.c: meets the other processes if a launcher started several; out->group stays NULL if not. Where its number is not 0 the
 * command is host 0's, and cli_follow all that is left to do: params.hosts says whom. Then both leave, after their engine
 * is closed, with the error that ended them. */
ls_status cli_hosts_join(ls_options *options, cli_hosts *out, ls_error *err);
ls_status cli_follow(const ls_options *options, ls_engine_params params, ls_error *err);
void cli_hosts_leave(cli_hosts *hosts, ls_status st, const ls_error *why);
/* The engine's parameters as the options give them. */
ls_engine_params cli_engine_params(const ls_options *options, ls_hosts *hosts);

#endif
