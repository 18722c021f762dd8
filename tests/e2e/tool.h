/* Running the command line tool for its output. */
#ifndef LS_TESTS_TOOL_H
#define LS_TESTS_TOOL_H

#include <jansson.h>

#include "e2e.h"

/* Runs $LS_BIN with arguments as a shell reads them; its standard output (add "2>&1" for both), NUL-terminated and the
 * caller's. *code is the exit code. */
char *tool(const char *args, int *code);
/* Runs it with --json, expects the exit code, and reads the one object it prints; the caller's. */
json_t *tool_json(const char *args, int code);
/* Runs it, expects the exit code and, in either output, each word of a NULL-terminated list. */
#define EXPECT_TOOL(args, code, ...) expect_tool((args), (code), (const char *const[]){__VA_ARGS__, NULL})
void expect_tool(const char *args, int code, const char *const *words);

/* A number at a path of keys with dots between ("budget.total_bytes"); fails if it is not there. */
double json_number(const json_t *object, const char *path);

#endif
