/* See cli_run.h. */
#include "cli_run.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_OUTPUT = 1 << 20 };

static char program[4096];

int cli_find_program(void **state) {
    (void)state;
    const char *given = getenv("LS_BIN");
    return realpath(given != NULL ? given : "build/lockstep", program) == NULL;
}

const char *cli_program(void) {
    return program;
}

static void run_child(const cli_run *run) {
    const char *argv[MAX_ARGS + 2] = {program};
    memcpy(argv + 1, run->args, sizeof run->args);
    for (size_t i = 0; i < COUNT(run->env) && run->env[i] != NULL; i++) {
        putenv((char *)run->env[i]);
    }
    if (run->input != NULL) {
        FILE *input = tmpfile();
        size_t n = run->n_input > 0 ? run->n_input : strlen(run->input);
        if (input == NULL || fwrite(run->input, 1, n, input) != n || fflush(input) != 0) {
            _exit(127);
        }
        lseek(fileno(input), 0, SEEK_SET);
        dup2(fileno(input), STDIN_FILENO);
    }
    signal(SIGINT, SIG_DFL); /* ignored where a shell runs the tests in the background */
    dup2(fileno(run->err_file), STDERR_FILENO);
    if (run->stdout_path == NULL) {
        dup2(fileno(run->out_file), STDOUT_FILENO);
    } else if (strcmp(run->stdout_path, "-") == 0) {
        close(STDOUT_FILENO);
    } else {
        dup2(open(run->stdout_path, O_WRONLY), STDOUT_FILENO);
    }
    if (run->folder == NULL || chdir(run->folder) == 0) {
        execv(program, (char *const *)argv);
    }
    _exit(127);
}

static char *read_back(FILE *file, size_t *n) {
    char *text = malloc(MAX_OUTPUT);
    assert_non_null(text);
    rewind(file);
    *n = fread(text, 1, MAX_OUTPUT - 1, file);
    text[*n] = '\0';
    fclose(file);
    return text;
}

void cli_start(cli_run *run) {
    run->out_file = tmpfile();
    run->err_file = tmpfile();
    assert_non_null(run->out_file);
    assert_non_null(run->err_file);
    fflush(NULL);
    run->child = fork();
    assert_true(run->child >= 0);
    if (run->child == 0) {
        run_child(run);
    }
}

void cli_wait(cli_run *run) {
    int status;
    size_t n_err;
    assert_int_equal(waitpid(run->child, &status, 0), run->child);
    run->code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    run->out = read_back(run->out_file, &run->n_out);
    run->err = read_back(run->err_file, &n_err);
}

void cli(cli_run *run) {
    cli_start(run);
    cli_wait(run);
}

void cli_free(cli_run *run) {
    free(run->out);
    free(run->err);
}

void assert_code(const cli_run *run, int code) {
    if (run->code != code) {
        print_error("exit code %d instead of %d; stderr: %s\n", run->code, code, run->err);
        fail();
    }
}

void expect(cli_run run, int code, const char *text) {
    cli(&run);
    assert_code(&run, code);
    bool in_out = text[0] == '>';
    if (strstr(in_out ? run.out : run.err, text + in_out) == NULL) {
        print_error("expected %s in: %s\n", text, in_out ? run.out : run.err);
        fail();
    }
    if (code == 2) {
        assert_int_equal(run.n_out, 0); /* usage errors leave stdout alone */
    }
    cli_free(&run);
}

json_lines lines_read(const char *text) {
    json_lines lines = {.n = 0};
    for (const char *at = text; *at != '\0';) {
        const char *end = strchr(at, '\n');
        json_error_t why;
        assert_non_null(end);
        assert_true(lines.n < MAX_LINES);
        lines.line[lines.n] = json_loadb(at, (size_t)(end - at), JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
        if (lines.line[lines.n] == NULL) {
            fail_msg("no JSON: %s in %.*s", why.text, (int)(end - at), at);
        }
        lines.n++;
        at = end + 1;
    }
    return lines;
}

json_lines generate(cli_run run, int code) {
    size_t n_args = 0;
    while (run.args[n_args] != NULL) {
        n_args++;
    }
    run.args[n_args] = "--json";
    cli(&run);
    assert_code(&run, code);
    json_lines lines = lines_read(run.out);
    cli_free(&run);
    return lines;
}

void lines_free(json_lines *lines) {
    for (size_t i = 0; i < lines->n; i++) {
        json_decref(lines->line[i]);
    }
}

const char *text_of(const json_lines *lines, size_t i, const char *key) {
    const char *text = json_string_value(json_object_get(lines->line[i], key));
    if (text == NULL) {
        fail_msg("line %zu has no text %s", i, key);
    }
    return text;
}

double number_of(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value)) {
        fail_msg("no number %s", key);
    }
    return json_number_value(value);
}
