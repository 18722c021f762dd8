/* See e2e.h. */
#include "e2e.h"

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "file/safetensors.h"

bool sanitized(void) {
    const char *name = getenv("LS_SAN");
    return name != NULL && name[0] != '\0';
}

double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void assert_ok_at(ls_status st, const ls_error *err, const char *file, int line) {
    if (st != LS_OK) {
        print_error("%s:%d: %s: %s (%s)\n", file, line, ls_status_name(st), err->text, err->trace);
        _fail(file, line);
    }
}

void assert_fails_at(ls_status st, const ls_error *err, ls_status expected, const char *const *words, const char *file,
                     int line) {
    bool good = st == expected && err->status == expected;
    while (good && *words != NULL) {
        good = strstr(err->text, *words) != NULL;
        words += good;
    }
    if (!good) {
        print_error("%s:%d: expected %s%s%s, got %s: %s\n", file, line, ls_status_name(expected),
                    *words != NULL ? " with " : "", *words != NULL ? *words : "", ls_status_name(st), err->text);
        _fail(file, line);
    }
}

/* ---- Programs ---- */

void build_folder(char path[PATH_BYTES]) {
    const char *bin = getenv("LS_BIN");
    bin = bin != NULL ? bin : "build/lockstep";
    const char *slash = strrchr(bin, '/');
    assert_non_null(slash);
    assert_true(snprintf(path, PATH_BYTES, "%.*s", (int)(slash - bin), bin) < PATH_BYTES);
}

static int run_shell(char *out, size_t out_bytes, const char *format, va_list args) {
    char line[8192], command[sizeof line + 32];
    assert_in_range(vsnprintf(line, sizeof line, format, args), 1, sizeof line - 1);
    snprintf(command, sizeof command, "{ %s\n} 2>&1 </dev/null", line);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t n = fread(out, 1, out_bytes - 1, pipe);
    out[n] = '\0';
    int status = pclose(pipe);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

int shell(char *out, size_t out_bytes, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int code = run_shell(out, out_bytes, format, args);
    va_end(args);
    return code;
}

void shell_good(char *out, size_t out_bytes, const char *file, int line, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int code = run_shell(out, out_bytes, format, args);
    va_end(args);
    if (code != 0) {
        print_error("%s:%d: exit code %d: %s\n", file, line, code, out);
        _fail(file, line);
    }
}

bool has_program(const char *name) {
    char out[PATH_BYTES];
    return shell(out, sizeof out, "command -v %s", name) == 0;
}

/* ---- Folders ---- */

static void path_of(char path[PATH_BYTES], const char *folder, const char *name) {
    assert_true(snprintf(path, PATH_BYTES, "%s/%s", folder, name) < PATH_BYTES);
}

void folder_make(char path[PATH_BYTES]) {
    strcpy(path, "/tmp/lockstep-e2e-XXXXXX");
    assert_non_null(mkdtemp(path));
}

void folder_remove(const char *path) {
    DIR *dir = opendir(path);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char file[PATH_BYTES];
        path_of(file, path, entry->d_name);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 && unlink(file) != 0) {
            assert_int_equal(rmdir(file), 0);
        }
    }
    closedir(dir);
    assert_int_equal(rmdir(path), 0);
}

void file_write(const char *folder, const char *name, const void *bytes, size_t n) {
    char path[PATH_BYTES];
    path_of(path, folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

uint8_t *file_read(const char *folder, const char *name, size_t *n) {
    char path[PATH_BYTES];
    path_of(path, folder, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    *n = (size_t)ftell(file);
    rewind(file);
    uint8_t *bytes = malloc(*n + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *n, file), *n);
    bytes[*n] = '\0';
    fclose(file);
    return bytes;
}

void file_copy(const char *from_folder, const char *to_folder, const char *name) {
    size_t n;
    uint8_t *bytes = file_read(from_folder, name, &n);
    file_write(to_folder, name, bytes, n);
    free(bytes);
}

/* The code point that stands for a byte in the byte-level alphabet: printable Latin-1 is itself, others follow U+0100. */
static unsigned byte_level(int byte) {
    unsigned n_others = 0;
    for (int b = 0; b <= byte; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte) {
            return printable ? (unsigned)b : 256 + n_others;
        }
        n_others += !printable;
    }
    return 0;
}

void tokenizer_write(const char *folder, int first_byte, int n_vocab) {
    char json[8192];
    int n = snprintf(json, sizeof json,
                     "{\"version\": \"1.0\", \"added_tokens\": [], \"normalizer\": null, \"pre_tokenizer\": {\"type\": "
                     "\"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}, "
                     "\"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\"}, "
                     "\"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {");
    assert_true(first_byte + n_vocab <= 256);
    for (int id = 0; id < n_vocab; id++) {
        n += snprintf(json + n, sizeof json - (size_t)n, "%s\"\\u%04x\": %d", id > 0 ? ", " : "",
                      byte_level(first_byte + id), id);
    }
    n += snprintf(json + n, sizeof json - (size_t)n, "}}}");
    assert_true((size_t)n < sizeof json);
    file_write(folder, "tokenizer.json", json, (size_t)n);
}

/* ---- Golden cases ---- */

/* A copy of the tensor "<stem>_<i>", whose elements have 4 bytes; NULL if there is none. */
static void *copy_tensor(const ls_checkpoint *file, const char *stem, int i, tensor_dtype dtype, int *rows, int *cols) {
    char name[64];
    snprintf(name, sizeof name, "%s_%d", stem, i);
    const ls_tensor *tensor = checkpoint_find(file, name);
    if (tensor == NULL) {
        return NULL;
    }
    assert_int_equal(tensor->dtype, dtype);
    *rows = (int)tensor->shape[0];
    *cols = tensor->n_dims == 2 ? (int)tensor->shape[1] : 1;
    assert_int_equal(tensor->bytes, (size_t)*rows * (size_t)*cols * 4);
    void *copy = malloc(tensor->bytes);
    assert_non_null(copy);
    return memcpy(copy, tensor->data, tensor->bytes);
}

void golden_read(golden_case *c, const char *path) {
    ls_checkpoint *file;
    ls_error err = {0};
    ASSERT_OK(checkpoint_open_file(&file, path, &err), &err);
    for (c->n_prompts = 0; c->n_prompts < GOLDEN_PROMPTS; c->n_prompts++) {
        golden_prompt *p = &c->prompt[c->n_prompts];
        int cols, i = c->n_prompts;
        p->id = copy_tensor(file, "prompt", i, TENSOR_I32, &p->n, &cols);
        if (p->id == NULL) {
            break;
        }
        p->logits = copy_tensor(file, "logits", i, TENSOR_F32, &p->n_logits, &c->n_vocab);
        if (p->logits == NULL) {
            p->logits = copy_tensor(file, "logits_tail", i, TENSOR_F32, &p->n_logits, &c->n_vocab);
        }
        assert_non_null(p->logits);
        int32_t *greedy = copy_tensor(file, "greedy", i, TENSOR_I32, &p->n_greedy, &cols);
        if (greedy != NULL) {
            p->greedy_logits = copy_tensor(file, "greedy_logits", i, TENSOR_F32, &p->n_greedy, &cols);
            assert_non_null(p->greedy_logits);
            assert_int_equal(p->n_greedy, GOLDEN_GREEDY);
            p->id = realloc(p->id, (size_t)(p->n + p->n_greedy) * sizeof *p->id);
            assert_non_null(p->id);
            memcpy(p->id + p->n, greedy, (size_t)p->n_greedy * sizeof *p->id);
            free(greedy);
        }
    }
    assert_true(c->n_prompts > 0);
    checkpoint_close(&file);
}

void golden_free(golden_case *c) {
    for (int i = 0; i < c->n_prompts; i++) {
        free(c->prompt[i].id);
        free(c->prompt[i].logits);
        free(c->prompt[i].greedy_logits);
    }
}

/* The same checkpoint with a tokenizer beside it, without which a real model does not open. */
static void copy_checkpoint(golden_case *c, const char *folder) {
    folder_make(c->folder);
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] != '.' && strcmp(entry->d_name, "golden.safetensors") != 0) {
            file_copy(folder, c->folder, entry->d_name);
        }
    }
    closedir(dir);
    tokenizer_write(c->folder, 60, c->n_vocab); /* the letters among them */
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

void golden_open(golden_list *list) {
    struct dirent **entry;
    int n = scandir("tests/golden", &entry, NULL, by_name);
    assert_true(n > 0);
    *list = (golden_list){.item = calloc((size_t)n, sizeof *list->item)};
    assert_non_null(list->item);
    for (int i = 0; i < n; i++) {
        golden_case *c = &list->item[list->n];
        char path[PATH_BYTES + 32], folder[PATH_BYTES];
        path_of(folder, "tests/golden", entry[i]->d_name);
        snprintf(path, sizeof path, "%s/golden.safetensors", folder);
        if (entry[i]->d_name[0] != '.' && access(path, R_OK) == 0) {
            *c = (golden_case){.is_checkpoint = strncmp(entry[i]->d_name, "ckpt_", 5) == 0};
            snprintf(c->name, sizeof c->name, "%s", entry[i]->d_name);
            strcpy(c->folder, folder);
            golden_read(c, path);
            assert_int_equal(c->n_prompts, GOLDEN_PROMPTS);
            if (c->is_checkpoint) {
                copy_checkpoint(c, folder);
            }
            list->n++;
        }
        free(entry[i]);
    }
    free(entry);
    assert_true(list->n >= 23);
}

void golden_close(golden_list *list) {
    for (size_t i = 0; i < list->n; i++) {
        golden_free(&list->item[i]);
        if (list->item[i].is_checkpoint) {
            folder_remove(list->item[i].folder);
        }
    }
    free(list->item);
    *list = (golden_list){0};
}

ls_model *model_open(const char *folder, ls_load_format format) {
    ls_model_params params = LS_MODEL_PARAMS_INIT;
    params.model = folder;
    params.load_format = format;
    ls_model *model = NULL;
    ls_error err = {0};
    ASSERT_OK(ls_model_open(&params, &model, &err), &err);
    return model;
}

ls_model *golden_model(const golden_case *c) {
    return model_open(c->folder, c->is_checkpoint ? LS_LOAD_SAFETENSORS : LS_LOAD_DUMMY);
}

ls_model *demo_model(void) {
    return model_open("demo", LS_LOAD_SAFETENSORS);
}

double row_error(const float *a, const float *b, int n) {
    double worst = 0, scale = 0;
    for (int i = 0; i < n; i++) {
        double difference = fabs((double)a[i] - (double)b[i]);
        worst = difference > worst || isnan(difference) ? difference : worst;
        scale = fmax(scale, fabs((double)b[i]));
    }
    return scale > 0 ? worst / scale : INFINITY;
}

int row_argmax(const float *a, int n) {
    int best = 0;
    for (int i = 1; i < n; i++) {
        best = a[i] > a[best] ? i : best;
    }
    return best;
}

double row_gap(const float *a, int n) {
    int best = row_argmax(a, n);
    double second = -INFINITY, scale = 0;
    for (int i = 0; i < n; i++) {
        second = i != best ? fmax(second, (double)a[i]) : second;
        scale = fmax(scale, fabs((double)a[i]));
    }
    return ((double)a[best] - second) / scale;
}

/* ---- Running ---- */

/* An engine that lives as long as the program keeps the GPU's context and libraries: hundreds of others open quicker. */
static void keep_gpu_open(const char *device) {
    static ls_engine *kept;
    if (kept == NULL && device != NULL && strncmp(device, "cuda", 4) == 0) {
        ls_engine_params params = LS_ENGINE_PARAMS_INIT;
        ls_error err = {0};
        params.device = device;
        params.kernels = getenv("LS_KERNELS");
        params.max_num_seqs = 1;
        params.max_model_len_tokens = 64;
        ASSERT_OK(ls_engine_open(demo_model(), &params, &kept, &err), &err);
    }
}

ls_result result_of(ls_request *request) {
    ls_result result = LS_RESULT_INIT;
    ls_error err = {0};
    ASSERT_OK(ls_request_get_result(request, &result, &err), &err);
    return result;
}

ls_engine *engine_open(ls_model *model, const ls_engine_params *params) {
    ls_engine *engine = NULL;
    ls_error err = {0};
    ls_engine_params on_device = *params;
    const char *device = getenv("LS_DEVICE");
    keep_gpu_open(device);
    on_device.device = params->device != NULL ? params->device : device != NULL ? device : "cpu";
    on_device.kernels = params->kernels != NULL ? params->kernels : getenv("LS_KERNELS");
    ASSERT_OK(ls_engine_open(model, &on_device, &engine, &err), &err);
    return engine;
}

static void on_text(void *user, ls_request *request, int32_t token, const char *text, size_t text_bytes) {
    job *j = user;
    (void)token;
    assert_ptr_equal(request, j->request);
    assert_int_equal(text[text_bytes], 0);
    j->pieces = realloc(j->pieces, j->n_pieces + text_bytes + 1);
    assert_non_null(j->pieces);
    memcpy(j->pieces + j->n_pieces, text, text_bytes + 1);
    j->n_pieces += text_bytes;
}

static void on_logits(void *user, ls_request *request, int position, const float *logits, int n_vocab) {
    job *j = user;
    assert_ptr_equal(request, j->request);
    assert_in_range(position, 0, j->n_rows - 1);
    j->n_seen[position]++;
    memcpy(j->logits + (size_t)position * (size_t)n_vocab, logits, (size_t)n_vocab * sizeof *logits);
}

static void submit(ls_engine *engine, job *j) {
    ls_request_params params = LS_REQUEST_PARAMS_INIT;
    params.prompt_tokens = j->id;
    params.n_prompt_tokens = (size_t)j->n_id;
    params.prompt = j->text;
    params.prompt_bytes = j->text != NULL ? strlen(j->text) : 0;
    params.max_tokens = j->max_tokens;
    params.temperature = j->temperature;
    params.top_k = j->top_k;
    params.top_p = j->top_p > 0 ? j->top_p : 1;
    params.min_p = j->min_p;
    params.seed = j->seed;
    params.ignore_eos = !j->stop_at_eos;
    params.prompt_logits = j->prompt_logits;
    params.hash_logits = !j->no_hash;
    params.on_text = on_text;
    params.on_logits = j->logits != NULL ? on_logits : NULL;
    params.user = j;
    if (j->logits != NULL) {
        j->n_seen = calloc((size_t)j->n_rows, sizeof *j->n_seen);
        assert_non_null(j->n_seen);
    }
    ls_error err = {0};
    ASSERT_OK(ls_request_submit(engine, &params, &j->request, &err), &err);
}

static int32_t *copy_tokens(const int32_t *token, size_t n) {
    int32_t *copy = malloc((n + 1) * sizeof *copy);
    assert_non_null(copy);
    return memcpy(copy, token, n * sizeof *copy);
}

static void take_result(job *j) {
    ls_result result = LS_RESULT_INIT;
    ls_error err = {0};
    ASSERT_OK(ls_request_get_result(j->request, &result, &err), &err);
    j->finish = result.finish;
    j->status = result.status;
    snprintf(j->error, sizeof j->error, "%s", result.error);
    j->n_prompt = (int)result.n_prompt_tokens;
    j->n_token = (int)(result.n_tokens - result.n_prompt_tokens);
    j->prompt_token = copy_tokens(result.tokens, result.n_prompt_tokens);
    j->token = copy_tokens(result.tokens + result.n_prompt_tokens, (size_t)j->n_token);
    j->answer = malloc(result.text_bytes + 1);
    assert_non_null(j->answer);
    memcpy(j->answer, result.text, result.text_bytes + 1);
    j->n_answer = result.text_bytes;
    j->hash = result.logits_hash;
    j->first_token_us = result.first_token_us;
}

int jobs_run(ls_engine *engine, job *jobs, size_t n) {
    ls_error err = {0};
    int last_event = 0;
    for (size_t i = 0; i < n; i++) {
        last_event = jobs[i].join_step > last_event ? jobs[i].join_step : last_event;
        last_event = jobs[i].leave_step > last_event ? jobs[i].leave_step : last_event;
    }
    for (int step = 0;; step++) {
        for (size_t i = 0; i < n; i++) {
            job *j = &jobs[i];
            if (j->join_step == step) {
                submit(engine, j);
            }
            if (j->leave_step == step && step > 0) {
                take_result(j);
                ls_request_free(&j->request);
                assert_null(j->request);
                j->left = true;
            }
        }
        ls_status st = ls_engine_step(engine, &err);
        if (st == LS_IDLE && step >= last_event) {
            for (size_t i = 0; i < n; i++) {
                if (!jobs[i].left) {
                    take_result(&jobs[i]);
                    ls_request_free(&jobs[i].request);
                }
            }
            return step;
        }
        assert_true(st == LS_IDLE || st == LS_OK);
    }
}

void jobs_clear(job *jobs, size_t n) {
    for (size_t i = 0; i < n; i++) {
        job *j = &jobs[i];
        free(j->n_seen);
        free(j->token);
        free(j->prompt_token);
        free(j->answer);
        free(j->pieces);
        j->n_seen = NULL;
        j->token = j->prompt_token = NULL;
        j->answer = j->pieces = NULL;
        j->n_token = j->n_prompt = 0;
        j->n_answer = j->n_pieces = 0;
        j->left = false;
    }
}

void assert_same_answer(const job *a, const job *b, const char *what) {
    bool same = a->n_token == b->n_token && a->hash == b->hash &&
                memcmp(a->token, b->token, (size_t)a->n_token * sizeof *a->token) == 0;
    if (!same) {
        int i = 0;
        while (i < a->n_token && i < b->n_token && a->token[i] == b->token[i]) {
            i++;
        }
        print_error("%s: %d and %d tokens, equal up to %d; logits_hash %016llx and %016llx\n", what, a->n_token,
                    b->n_token, i, (unsigned long long)a->hash, (unsigned long long)b->hash);
        fail();
    }
}
