/*
 * The command line tool (LS_BIN) run as a user would, for the tests of its commands. Every test program that uses it has
 * cli_find_program as its group set-up. Helpers assert, as those of e2e.h do.
 */
#ifndef LS_TESTS_CLI_RUN_H
#define LS_TESTS_CLI_RUN_H

#include <jansson.h>
#include <sys/types.h>

#include "e2e.h"

enum { MAX_ARGS = 48, MAX_LINES = 16 };

typedef struct cli_run {
    const char *args[MAX_ARGS]; /* behind the program's name */
    const char *env[4];         /* NAME=value, added to ours */
    const char *folder;         /* to run in */
    const char *stdout_path;    /* instead of our file; "-": closed */
    const char *input;          /* on standard input; NULL: ours */
    size_t n_input;             /* 0: all of a string */
    int code;                   /* exit code; -1: ended by a signal */
    char *out, *err;            /* what it wrote; NUL-terminated */
    size_t n_out;
    /* Between cli_start and cli_wait. */
    pid_t child;
    FILE *out_file, *err_file;
} cli_run;

#define CLI(...) ((cli_run){.args = {__VA_ARGS__}})
#define DEMO "generate", "-m", "demo"

int cli_find_program(void **state);
const char *cli_program(void); /* absolute path */

void cli_start(cli_run *run);
void cli_wait(cli_run *run);
void cli(cli_run *run); /* both */
void cli_free(cli_run *run);
void assert_code(const cli_run *run, int code);
/* Runs it; the exit code, and a text that stderr must hold (stdout if it starts with '>'). */
void expect(cli_run run, int code, const char *text);

typedef struct json_lines {
    json_t *line[MAX_LINES];
    size_t n;
} json_lines;

/* Every line is one JSON object. */
json_lines lines_read(const char *text);
/* Runs it with --json and reads its stdout. */
json_lines generate(cli_run run, int code);
void lines_free(json_lines *lines);
const char *text_of(const json_lines *lines, size_t i, const char *key);
double number_of(const json_t *object, const char *key);

#endif
