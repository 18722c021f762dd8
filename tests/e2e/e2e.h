/*
 * What the end-to-end tests share: golden cases as arrays, engines in one call, and batches of requests run to their end
 * with everything they gave collected.
 *
 * Helpers assert instead of returning errors: a test that calls them has nothing left to check about them. All run from
 * the root of the repository (tests/run).
 */
#ifndef LS_TESTS_E2E_H
#define LS_TESTS_E2E_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lockstep.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { PATH_BYTES = 512 };

bool sanitized(void); /* a sanitizer runs: slow tests do less */
double now_s(void);

/* The folder of the build under test: where LS_BIN lies. */
void build_folder(char path[PATH_BYTES]);
/* Runs a line of shell, printf's way; what it wrote to both outputs, and its exit code. */
int shell(char *out, size_t out_bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The same, of a line that must succeed. */
#define SHELL(out, ...) shell_good((out), sizeof(out), __FILE__, __LINE__, __VA_ARGS__)
void shell_good(char *out, size_t out_bytes, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
bool has_program(const char *name);

/* Prints err->text and fails unless st is LS_OK. */
#define ASSERT_OK(st, err) assert_ok_at((st), (err), __FILE__, __LINE__)
void assert_ok_at(ls_status st, const ls_error *err, const char *file, int line);
/* The status, and every NULL-terminated word in the text. */
#define ASSERT_FAILS(st, err, expected, ...)                                                                           \
    assert_fails_at((st), (err), (expected), (const char *const[]){__VA_ARGS__, NULL}, __FILE__, __LINE__)
void assert_fails_at(ls_status st, const ls_error *err, ls_status expected, const char *const *words, const char *file,
                     int line);

/* ---- Folders ---- */

/* A fresh folder under /tmp; folder_remove deletes it with the files in it. */
void folder_make(char path[PATH_BYTES]);
void folder_remove(const char *path);
void file_write(const char *folder, const char *name, const void *bytes, size_t n);
uint8_t *file_read(const char *folder, const char *name, size_t *n); /* NUL-terminated, the caller's */
void file_copy(const char *from_folder, const char *to_folder, const char *name);
/* A byte-level tokenizer.json, which the checkpoints in tests/golden lack: id i is byte first_byte + i, without merges. */
void tokenizer_write(const char *folder, int first_byte, int n_vocab);

/* ---- Golden cases: tests/golden/<name>/golden.safetensors, see tools/make_golden.py ---- */

enum { GOLDEN_PROMPTS = 3, GOLDEN_GREEDY = 12 };

typedef struct golden_prompt {
    int32_t *id; /* [n]: the prompt, and behind it its greedy continuation */
    int n, n_greedy;
    float *logits; /* [n_logits][V] of the last n_logits prompt positions */
    int n_logits;
    float *greedy_logits; /* [n_greedy][V]; row 0 is the last prompt position's */
} golden_prompt;

typedef struct golden_case {
    char name[64];
    char folder[PATH_BYTES]; /* what to open; a folder of ours for real checkpoints, which get a tokenizer there */
    bool is_checkpoint;
    int n_vocab, n_prompts;
    golden_prompt prompt[GOLDEN_PROMPTS];
} golden_case;

typedef struct golden_list {
    golden_case *item;
    size_t n;
} golden_list;

/* Every case, in name order. */
void golden_open(golden_list *list);
void golden_close(golden_list *list);
/* Prompts, greedy tokens and logits out of one file, of prompts 0, 1, ... while there are any. */
void golden_read(golden_case *c, const char *path);
void golden_free(golden_case *c);
ls_model *golden_model(const golden_case *c);
ls_model *model_open(const char *folder, ls_load_format format);
ls_model *demo_model(void);

/* max|a - b| / max|b|. */
double row_error(const float *a, const float *b, int n);
int row_argmax(const float *a, int n);
/* (top1 - top2) / max|a|. */
double row_gap(const float *a, int n);

/* ---- Running ---- */

/* On the device that LS_DEVICE names, else on the CPU, unless the parameters name one; the same of LS_KERNELS. */
ls_engine *engine_open(ls_model *model, const ls_engine_params *params);

ls_result result_of(ls_request *request);

/* A request and all that came of it. Zeroed inputs mean: greedy, no tokens, submitted before the first step. */
typedef struct job {
    const int32_t *id; /* the prompt as ids, or */
    int n_id;
    const char *text; /* as text */
    int max_tokens;
    double temperature;
    int top_k;
    double top_p, min_p; /* 0: off */
    uint64_t seed;
    bool stop_at_eos, prompt_logits;
    bool no_hash;   /* nor anything else that needs logits on the host */
    int join_step;  /* submitted before the step of this number */
    int leave_step; /* freed before the step of this number; 0: never */
    float *logits;  /* [n_rows][V] collected by position, or NULL */
    int n_rows;
    /* Results; job_clear frees them. */
    ls_request *request;
    bool left;
    int *n_seen; /* [n_rows] how often a position was reported */
    ls_finish finish;
    ls_status status;
    char error[512];
    int32_t *token; /* [n_token] the answer */
    int n_token;
    int32_t *prompt_token; /* [n_prompt] as tokenised */
    int n_prompt;
    char *answer;
    char *pieces; /* what on_text gave, concatenated */
    size_t n_answer, n_pieces;
    uint64_t hash;
    int64_t first_token_us;
} job;

/* Runs all jobs to their end in one engine; returns the number of steps. */
int jobs_run(ls_engine *engine, job *jobs, size_t n);
void jobs_clear(job *jobs, size_t n); /* frees results and collected logits' counts, keeps the inputs */
void assert_same_answer(const job *a, const job *b, const char *what);

#endif
