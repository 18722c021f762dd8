/* Command lines by glibc's argp, its options made from the options table. Long names also work with one dash: -tp 2. */
#include <argp.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"

enum { HELP_KEY = 'h', FIRST_LONG_KEY = 256 };

typedef struct args_state {
    const command_def *command;
    ls_options *options;
    ls_error *err;
    ls_status status;
} args_state;

static int key_of(const option_def *def) {
    return def->key != 0 ? def->key : FIRST_LONG_KEY + (int)def->id;
}

static error_t take(int key, char *arg, struct argp_state *state) {
    args_state *args = state->input;
    if (key == HELP_KEY) {
        argp_state_help(state, state->out_stream, ARGP_HELP_STD_HELP); /* ends the program, as --help does */
        return 0;
    }
    if (key == ARGP_KEY_ARG && args->command->command == COMMAND_REPORT) {
        args->status = options_set(args->options, OPT_RESULTS, arg, args->err);
        return args->status == LS_OK ? 0 : EINVAL;
    }
    if (key == ARGP_KEY_ARG && state->arg_num == 0 && args->command->word != NULL) {
        args->status = options_set(args->options, OPT_MODEL, arg, args->err);
        return args->status == LS_OK ? 0 : EINVAL;
    }
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

/* "Summary.\vText." as argp wants it. */
static void describe(const command_def *def, char *out, size_t out_bytes) {
    int n = snprintf(out, out_bytes, "%s.\v%s%sOptions can also be set in the environment: --top-k is LOCKSTEP_TOP_K.",
                     def->summary, def->text != NULL ? def->text : "", def->text != NULL ? "\n\n" : "");
    out[0] = n > 0 ? (char)toupper((unsigned char)out[0]) : '\0';
}

ls_status args_parse(ls_options *options, unsigned command, int argc, char **argv, ls_error *err) {
    struct argp_option table[2 * OPTION_COUNT + GROUP_COUNT + 2] = {0};
    char *help[OPTION_COUNT] = {0};
    char program[64], doc[4096], word[32] = "";
    const command_def *def_command = command_table;
    while (def_command->command != command) {
        def_command++;
    }
    describe(def_command, doc, sizeof doc);
    int n = 0, group = -1;
    for (int id = 0; id < OPTION_COUNT; id++) {
        const option_def *def = &option_table[id];
        if ((def->commands & command) == 0) {
            continue;
        }
        if ((int)def->group != group) {
            group = (int)def->group;
            table[n++] = (struct argp_option){.doc = option_group_name(def->group), .group = group + 1};
        }
        help[id] = help_of(def);
        table[n++] = (struct argp_option){
            .name = def->name, .key = key_of(def), .arg = def->arg, .doc = help[id], .group = group + 1};
        if (def->alias != NULL) {
            table[n++] = (struct argp_option){.name = def->alias, .flags = OPTION_ALIAS, .group = group + 1};
        }
    }
    /* A letter of its own: as the beginning of a long name, -h would be --host and --html as well. */
    table[n++] = (struct argp_option){.key = HELP_KEY, .flags = OPTION_HIDDEN, .doc = "Give this help list"};
    if (def_command->word != NULL) {
        snprintf(word, sizeof word, "[%s]", def_command->word);
    }
    struct argp argp = {.options = table, .parser = take, .args_doc = word[0] != '\0' ? word : NULL, .doc = doc};
    args_state state = {.command = def_command, .options = options, .err = err, .status = LS_OK};
    snprintf(program, sizeof program, "lockstep %s", def_command->name);
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
