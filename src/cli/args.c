/* Command lines by glibc's argp, its options made from the options table. Long names also work with one dash: -tp 2. */
#include <argp.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"

enum { FIRST_LONG_KEY = 256 };

typedef struct args_state {
    ls_options *options;
    ls_error *err;
    ls_status status;
} args_state;

static int key_of(const option_def *def) {
    return def->key != 0 ? def->key : FIRST_LONG_KEY + (int)def->id;
}

static error_t take(int key, char *arg, struct argp_state *state) {
    args_state *args = state->input;
    if (key == ARGP_KEY_ARG) {
        argp_error(state, "unexpected argument '%s'", arg);
        return EINVAL;
    }
    for (int id = 0; id < OPTION_COUNT; id++) {
        if (key == key_of(&option_table[id])) {
            args->status = options_set(args->options, (option_id)id, arg, args->err);
            return args->status == LS_OK ? 0 : EINVAL;
        }
    }
    return ARGP_ERR_UNKNOWN;
}

/* The help text of an option, with its default. */
static char *help_of(const option_def *def) {
    char *text = NULL;
    int n = def->fallback != NULL ? asprintf(&text, "%s (default: %s)", def->help, def->fallback)
                                  : asprintf(&text, "%s", def->help);
    return n < 0 ? NULL : text;
}

ls_status args_parse(ls_options *options, unsigned command, const char *name, const char *doc, int argc, char **argv,
                     ls_error *err) {
    struct argp_option table[2 * OPTION_COUNT + 1] = {0};
    char *help[OPTION_COUNT] = {0};
    char program[64];
    int n = 0;
    for (int id = 0; id < OPTION_COUNT; id++) {
        const option_def *def = &option_table[id];
        if ((def->commands & command) == 0) {
            continue;
        }
        help[id] = help_of(def);
        table[n++] = (struct argp_option){.name = def->name, .key = key_of(def), .arg = def->arg, .doc = help[id]};
        if (def->alias != NULL) {
            table[n++] = (struct argp_option){.name = def->alias, .flags = OPTION_ALIAS};
        }
    }
    struct argp argp = {.options = table, .parser = take, .doc = doc};
    args_state state = {.options = options, .err = err, .status = LS_OK};
    snprintf(program, sizeof program, "lockstep %s", name);
    argv[0] = program;
    argp_err_exit_status = EXIT_USAGE;
    error_t rc = argp_parse(&argp, argc, argv, ARGP_LONG_ONLY, NULL, &state);
    for (int id = 0; id < OPTION_COUNT; id++) {
        free(help[id]);
    }
    argv[0] = NULL;
    if (state.status != LS_OK) {
        return state.status;
    }
    return rc == 0 ? LS_OK : error_set(err, LS_EINVAL, "cannot read the command line");
}
