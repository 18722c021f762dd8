/* lockstep: one binary, one command a file (cmd_*.c). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

static int cmd_help(int argc, char **argv);

/* By the order of command_table. */
static int (*const commands[COMMAND_COUNT])(int argc, char **argv) = {
    cmd_generate, cmd_chat,       cmd_serve,  cmd_bench, cmd_report, cmd_tokenize, cmd_template,
    cmd_plan,     cmd_perplexity, cmd_verify, cmd_pull,  cmd_doctor, cmd_help,
};

static void print_usage(FILE *out) {
    fprintf(out,
            "lockstep %s: tensor-parallel inference for open-weight language models\n\n"
            "usage: lockstep COMMAND [OPTION...]\n\ncommands:\n",
            ls_version());
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (commands[i] != NULL) {
            fprintf(out, "  %-10s %s\n", command_table[i].name, command_table[i].summary);
        }
    }
    fprintf(out, "\n'lockstep help COMMAND' lists its options. A first try: lockstep generate -m demo -p 'Once'\n");
}

int cli_fail(const ls_error *error, bool verbose) {
    fprintf(stderr, "lockstep: %s\n", error->text[0] != '\0' ? error->text : ls_status_text(error->status));
    if (verbose) {
        fprintf(stderr, "lockstep: %s at %s\n", ls_status_name(error->status), error->trace);
    }
    return error->status == LS_EINVAL ? EXIT_USAGE : error->status == LS_EABORTED ? EXIT_LOST : EXIT_FAILED;
}

static int run_command(int argc, char **argv) {
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(argv[0], command_table[i].name) == 0 && commands[i] != NULL) {
            return commands[i](argc, argv);
        }
    }
    fprintf(stderr, "lockstep: unknown command '%s'\n\n", argv[0]);
    print_usage(stderr);
    return EXIT_USAGE;
}

/* lockstep help: the commands. lockstep help COMMAND: what COMMAND --help says. */
static int cmd_help(int argc, char **argv) {
    if (argc > 2) {
        fprintf(stderr, "lockstep help: unexpected argument '%s'\n", argv[2]);
        return EXIT_USAGE;
    }
    if (argc < 2 || argv[1][0] == '-' || strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return EXIT_GOOD;
    }
    char *asked[] = {argv[1], "--help", NULL};
    return run_command(2, asked);
}

static int run(int argc, char **argv) {
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage(argc < 2 ? stderr : stdout);
        return argc < 2 ? EXIT_USAGE : EXIT_GOOD;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("lockstep %s\n", ls_version());
        printf("GPU kernels: %s\n", ls_cuda_archs()[0] != '\0' ? ls_cuda_archs() : "none, built without CUDA");
        return EXIT_GOOD;
    }
    return run_command(argc - 1, argv + 1);
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
    setenv("NCCL_NVLS_ENABLE", "0",
           0); /* before there are threads; what the user says goes. Why: backend/cuda/nccl.h */
    return run(argc, argv);
}
