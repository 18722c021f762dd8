/*
 * lockstep bench startup: whole processes, from exec to the first token. Each is `lockstep generate` with the same options;
 * its stages are those of the timeline that it prints, and the whole is also timed from outside, from before the fork to the
 * first byte of the answer.
 *
 * Cold means that the kernel was asked to forget the pages of the model's files. It keeps those that others use, so what was
 * left of them is a figure too (resident_percent).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "cli/bench/bench.h"

enum { MOST_ARGS = 2 * OPTION_COUNT + 16, SAID_BYTES = 65536 };
static const char PROMPT[] = "26 bytes are 26 tokens ...";

/* ---- The page cache ---- */

typedef struct pages_count {
    int64_t all, resident;
} pages_count;

static void visit_file(const char *path, bool drop, pages_count *count) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size == 0) {
        if (fd >= 0) {
            close(fd);
        }
        return;
    }
    if (drop) {
        fdatasync(fd); /* pages that are not on disk cannot go */
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    }
    const size_t bytes = (size_t)status.st_size, page = (size_t)sysconf(_SC_PAGESIZE), n = (bytes + page - 1) / page;
    unsigned char *resident = malloc(n);
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED) {
        if (resident != NULL && mincore(map, bytes, resident) == 0) {
            for (size_t i = 0; i < n; i++) {
                count->resident += resident[i] & 1;
            }
            count->all += (int64_t)n;
        }
        munmap(map, bytes);
    }
    free(resident);
    close(fd);
}

/* Drops the pages of a folder's files, or only counts; percent that are in memory then. -1: nothing to count. */
static double visit_folder(const char *folder, bool drop) {
    pages_count count = {0};
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        char path[4096];
        if (entry->d_name[0] != '.' && path_join(path, sizeof path, folder, entry->d_name, NULL) == LS_OK) {
            visit_file(path, drop, &count);
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return count.all > 0 ? (double)count.resident * 100 / (double)count.all : -1;
}

/* ---- A child ---- */

typedef struct child {
    char *argv[MOST_ARGS];
    int argc;
    char names[OPTION_COUNT][64];
    size_t echo_bytes; /* that it prints before the answer */
    double first_byte_s, all_s;
    json_t *timeline; /* owned */
} child;

static void add_arg(child *c, const char *text) {
    c->argv[c->argc++] = (char *)(uintptr_t)text;
    c->argv[c->argc] = NULL;
}

/* lockstep generate with what of our options is its own. What comes from the environment is there already. */
static void make_args(const bench *b, child *c) {
    add_arg(c, "lockstep");
    add_arg(c, "generate");
    for (int id = 0; id < OPTION_COUNT; id++) {
        const option_def *def = &option_table[id];
        const option_value *v = &b->options.value[id];
        const bool passed = (def->commands & COMMAND_GENERATE) != 0 && def->type != OPTION_LIST &&
                            (def->group == GROUP_MODEL || def->group == GROUP_ENGINE);
        if (passed && options_given(&b->options, (option_id)id) && !v->from_env) {
            snprintf(c->names[id], sizeof c->names[id], "--%s", def->name);
            add_arg(c, c->names[id]);
            if (def->type != OPTION_FLAG) {
                add_arg(c, v->text);
            }
        }
    }
    static const char *const rest[] = {"-p", PROMPT, "-n", "2", "--temp", "0", "--ignore-eos", "--timeline", "json"};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) {
        add_arg(c, rest[i]);
    }
}

/* Reads stdout up to the first byte behind the echo, notes when, then all of it. */
static void read_answer(child *c, int fd, int64_t start_ns) {
    char scratch[4096];
    size_t got = 0;
    for (ssize_t n; (n = read(fd, scratch, sizeof scratch)) != 0;) {
        if (n < 0 && errno != EINTR) {
            break;
        }
        got += n > 0 ? (size_t)n : 0;
        if (got > c->echo_bytes && c->first_byte_s == 0) {
            c->first_byte_s = (double)(clock_ns() - start_ns) / 1e9;
        }
    }
}

/* The last line of what it said is {"timeline": {...}, ...}. */
static ls_status read_said(child *c, FILE *said, int status, ls_error *err) {
    char *text = calloc(1, SAID_BYTES);
    json_doc doc = {0};
    ls_status st = LS_OK;
    if (text == NULL) {
        return error_set(err, LS_ENOMEM, "bench: out of memory");
    }
    rewind(said);
    size_t n = fread(text, 1, SAID_BYTES - 1, said);
    while (n > 0 && text[n - 1] == '\n') {
        text[--n] = '\0';
    }
    char *line = strrchr(text, '\n') != NULL ? strrchr(text, '\n') + 1 : text;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != EXIT_GOOD) {
        st = error_set(err, WIFEXITED(status) && WEXITSTATUS(status) == EXIT_USAGE ? LS_EINVAL : LS_EUNSUPPORTED,
                       "lockstep generate failed: %s", line);
    } else {
        TRY_GOTO(json_doc_parse(&doc, "the timeline of lockstep generate", line, strlen(line), err), done);
        c->timeline = json_incref(json_object_get(doc.root, "timeline"));
        json_doc_deinit(&doc);
        st = c->timeline != NULL ? LS_OK : error_set(err, LS_EINTERNAL, "lockstep generate printed no timeline");
    }
done:
    free(text);
    return st;
}

static ls_status run_child(child *c, ls_error *err) {
    int out[2], status = 0;
    pid_t pid;
    posix_spawn_file_actions_t actions;
    FILE *said = tmpfile();
    c->first_byte_s = 0;
    if (said == NULL || pipe2(out, O_CLOEXEC) != 0) {
        if (said != NULL) {
            fclose(said);
        }
        return error_set(err, LS_EIO, "bench: cannot make a pipe or a temporary file: %s", strerror(errno));
    }
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, fileno(said), STDERR_FILENO);
    int64_t start_ns = clock_ns();
    int failed = posix_spawn(&pid, "/proc/self/exe", &actions, NULL, c->argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    ls_status st = failed == 0 ? LS_OK : error_set(err, LS_EIO, "bench: cannot run lockstep: %s", strerror(failed));
    if (st == LS_OK) {
        read_answer(c, out[0], start_ns);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
        }
        c->all_s = (double)(clock_ns() - start_ns) / 1e9;
        st = read_said(c, said, status, err);
    }
    close(out[0]);
    fclose(said);
    return st;
}

/* ---- Rows ---- */

/* Stages one behind the other: they add up to the whole. driver, context and weights lie inside of others. */
static void add_stages(const child *c, json_t *row) {
    static const char *const inside[] = {"driver", "context", "weights", "graphs"};
    const json_t *t = c->timeline;
    char key[32], name[32];
    double stage[3], start_ms = (double)json_integer_value(json_object_get(t, "start_us")) / 1000,
                     first_ms = (double)json_integer_value(json_object_get(t, "first_token_us")) / 1000;
    static const char *const stages[] = {"load", "plan", "shard"};
    results_add(row, "exec_ms", LESS_IS_BETTER, start_ms > first_ms ? start_ms - first_ms : 0);
    for (int i = 0; i < 3; i++) {
        snprintf(key, sizeof key, "%s_us", stages[i]);
        snprintf(name, sizeof name, "%s_ms", stages[i]);
        stage[i] = (double)json_integer_value(json_object_get(t, key)) / 1000;
        results_add(row, name, LESS_IS_BETTER, stage[i]);
    }
    results_add(row, "first_step_ms", LESS_IS_BETTER, first_ms - stage[0] - stage[1] - stage[2]);
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++) {
        snprintf(key, sizeof key, "%s_us", inside[i]);
        snprintf(name, sizeof name, "inside_%s_ms", inside[i]);
        double us = (double)json_integer_value(json_object_get(t, key));
        if (us > 0) {
            results_add(row, name, LESS_IS_BETTER, us / 1000);
        }
    }
    results_add(row, "load_gb_per_s", MORE_IS_BETTER, json_number_value(json_object_get(t, "load_gb_per_s")));
    results_add(row, "first_byte_ms", LESS_IS_BETTER, c->first_byte_s * 1e3);
    results_add(row, "process_ms", LESS_IS_BETTER, c->all_s * 1e3);
}

static json_t *new_row(bench *b, const child *c, bool cold) {
    const option_value *v = b->options.value;
    json_t *row = results_row(b->rows, cold ? "cold" : "warm");
    results_set(row, "dtype", json_incref(json_object_get(c->timeline, "dtype")));
    results_set(row, "quantization", json_string(v[OPT_QUANTIZATION].text));
    results_set(row, "tp", json_integer((json_int_t)v[OPT_TENSOR_PARALLEL_SIZE].integer));
    results_set(row, "device", json_string(strcmp(results_text(c->timeline, "device"), "CPU") == 0 ? "cpu" : "cuda"));
    results_set(row, "load_format", json_string(v[OPT_LOAD_FORMAT].text));
    return row;
}

static ls_status measure(bench *b, child *c, const char *folder, bool cold, ls_error *err) {
    json_t *row = NULL;
    ls_status st = LS_OK;
    for (int i = cold ? 0 : -1; i < b->repetitions && st == LS_OK; i++) { /* warm: one before, that fills the cache */
        double resident = folder != NULL ? visit_folder(folder, cold) : -1;
        st = run_child(c, err);
        if (st == LS_OK && i >= 0) {
            row = row == NULL ? new_row(b, c, cold) : row;
            add_stages(c, row);
            if (resident >= 0) {
                results_add(row, "resident_percent", NEITHER_IS_BETTER, resident);
            }
        }
        json_decref(c->timeline);
        c->timeline = NULL;
    }
    if (st < 0 && bench_is_rows(st)) {
        row = row == NULL ? results_row(b->rows, cold ? "cold" : "warm") : row;
        results_absent(row, err->text);
        return LS_OK;
    }
    return st;
}

ls_status bench_startup(bench *b, ls_error *err) {
    char folder[4096] = "";
    child c = {0};
    const bool dummy = strcmp(b->options.value[OPT_LOAD_FORMAT].text, "dummy") == 0;
    const char *name = b->options.value[OPT_MODEL].text;
    const bool has_folder = !dummy || folder_exists(name) || strcmp(name, "demo") == 0;
    char tokenizer[4096];
    if (has_folder) {
        TRY(cli_find_model(&b->options, folder, sizeof folder, err));
        TRY(path_join(tokenizer, sizeof tokenizer, folder, "tokenizer.json", err));
        c.echo_bytes = file_exists(tokenizer) ? sizeof PROMPT - 1 : 0;
    }
    make_args(b, &c);
    if (has_folder) {
        TRY(measure(b, &c, folder, true, err));
    } else {
        results_absent(results_row(b->rows, "cold"), "made-up weights of built-in shapes are in no file");
    }
    return measure(b, &c, has_folder ? folder : NULL, false, err);
}
