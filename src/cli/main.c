/* lockstep: one binary, one command a file (cmd_*.c). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/cli.h"

static const struct {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"generate", "continue one or more prompts", cmd_generate},
    {"tokenize", "show the tokens of a text", cmd_tokenize},
    {"template", "show what a chat template makes of messages", cmd_template},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void print_usage(FILE *out) {
    fprintf(out,
            "lockstep %s: tensor-parallel inference for open-weight language models\n\n"
            "usage: lockstep COMMAND [OPTION...]\n\ncommands:\n",
            ls_version());
    for (int i = 0; i < COMMANDS; i++) {
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    }
    fprintf(out, "\n'lockstep COMMAND --help' lists its options. A first try: lockstep generate -m demo -p 'Once'\n");
}

int cli_fail(const ls_error *error, bool verbose) {
    fprintf(stderr, "lockstep: %s\n", error->text[0] != '\0' ? error->text : ls_status_text(error->status));
    if (verbose) {
        fprintf(stderr, "lockstep: %s at %s\n", ls_status_name(error->status), error->trace);
    }
    return error->status == LS_EINVAL ? EXIT_USAGE : EXIT_FAILED;
}

void cli_log(void *user, ls_log_level level, const char *text) {
    static const char *const names[] = {"error", "warning", "info", "debug", "trace"};
    (void)user;
    fprintf(stderr, "lockstep: %s: %s\n", names[level], text);
}

ls_status cli_find_model(char *out, size_t out_bytes, const char *name, ls_error *err) {
    if (strcmp(name, "demo") != 0) {
        if (strlen(name) >= out_bytes) {
            return error_set(err, LS_EINVAL, "--model: longer than %zu bytes", out_bytes - 1);
        }
        memcpy(out, name, strlen(name) + 1);
        return LS_OK;
    }
    static const char *const places[] = {"demo", "../demo", "../../demo", "../share/lockstep/demo"};
    char folder[4096];
    ssize_t n = readlink("/proc/self/exe", folder, sizeof folder - 1);
    if (n > 0) {
        folder[n] = '\0';
        *strrchr(folder, '/') = '\0';
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            char config[4096];
            TRY(path_join(out, out_bytes, folder, places[i], err));
            if (path_join(config, sizeof config, out, "config.json", NULL) == LS_OK && file_exists(config)) {
                return LS_OK;
            }
        }
    }
    return error_set(err, LS_ENOTFOUND, "the built-in model 'demo' is not beside the program; give its folder with -m");
}

static int run(int argc, char **argv) {
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage(argc < 2 ? stderr : stdout);
        return argc < 2 ? EXIT_USAGE : EXIT_GOOD;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("lockstep %s\n", ls_version());
        return EXIT_GOOD;
    }
    for (int i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    fprintf(stderr, "lockstep: unknown command '%s'\n\n", argv[1]);
    print_usage(stderr);
    return EXIT_USAGE;
}

/* Output that nobody received is a failure, not a success. Also runs when argp exits after --help. */
static void check_output(void) {
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "lockstep: cannot write to standard output: %s\n", strerror(errno));
        _exit(EXIT_FAILED);
    }
}

int main(int argc, char **argv) {
    atexit(check_output);
    return run(argc, argv);
}
