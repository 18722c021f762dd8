/*
 * Starting on the CPU: what loading tells on its way, on the callback, in the timeline and on stderr; a model that opens a
 * GPU which is not there; and the ranges that a profiler sees (by a small one of our own, which NVTX's header loads).
 */
#include "e2e.h"

#include <unistd.h>

#include "cli/progress.c"

enum { BAR_COLUMNS = 79 };

typedef struct seen {
    int n_calls;
    int64_t bytes, total_bytes, elapsed_us;
} seen;

static void note_progress(void *user, const ls_load_progress *p) {
    seen *s = user;
    assert_int_equal(p->struct_size, sizeof *p);
    assert_true(p->bytes >= s->bytes && p->bytes <= p->total_bytes && p->elapsed_us >= s->elapsed_us);
    *s = (seen){s->n_calls + 1, p->bytes, p->total_bytes, p->elapsed_us};
}

static seen load_seen(ls_model *model, int n_ranks, ls_dtype dtype, ls_timeline *line) {
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    seen s = {0};
    params.device = "cpu";
    params.tensor_parallel_size = n_ranks;
    params.dtype = dtype;
    params.progress_fn = note_progress;
    params.progress_user = &s;
    ls_engine *engine = engine_open(model, &params);
    assert_int_equal(ls_engine_get_timeline(engine, line, NULL), LS_OK);
    ls_engine_close(&engine);
    return s;
}

/* Bytes are the file's, whatever they become; each rank's are counted, and what is read by several once for each. */
static void progress_rises_to_the_end(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_timeline line = LS_TIMELINE_INIT;
    seen one = load_seen(model, 1, LS_AUTO, &line);
    assert_true(one.n_calls >= 1 && one.bytes == one.total_bytes && one.total_bytes > 1000000);
    assert_int_equal(line.load_bytes, one.total_bytes);
    assert_true(line.weights_us <= line.shard_us && line.first_token_us == -1 && line.age_us > line.load_us);
    assert_true(line.driver_us == 0 && line.context_us == 0);
    assert_int_equal(load_seen(model, 1, LS_F32, &line).total_bytes, one.total_bytes);
    seen four = load_seen(model, 4, LS_AUTO, &line);
    assert_true(four.bytes == four.total_bytes && four.total_bytes >= one.total_bytes &&
                four.total_bytes < one.total_bytes * 11 / 10);
    ls_model_close(&model);
}

/* Opening a GPU ahead is no promise that there is one. */
static void a_model_may_look_for_a_gpu(void **state) {
    (void)state;
    static const char *const devices[] = {"auto", "cuda:63", "cpu"};
    for (size_t i = 0; i < COUNT(devices); i++) {
        ls_model_params params = LS_MODEL_PARAMS_INIT;
        ls_engine_params on_cpu = LS_ENGINE_PARAMS_INIT;
        ls_model *model;
        ls_error err;
        params.model = "demo";
        params.device = devices[i];
        on_cpu.device = "cpu";
        ASSERT_OK(ls_model_open(&params, &model, &err), &err);
        ls_engine *engine = engine_open(model, &on_cpu);
        job told = {.text = "Once", .max_tokens = 2};
        jobs_run(engine, &told, 1);
        ls_timeline line = LS_TIMELINE_INIT;
        assert_int_equal(ls_engine_get_timeline(engine, &line, NULL), LS_OK);
        assert_true(line.first_token_us > line.load_us && line.first_token_us <= line.age_us);
        jobs_clear(&told, 1);
        ls_engine_close(&engine);
        ls_model_close(&model);
    }
    ls_model_params params = LS_MODEL_PARAMS_INIT;
    ls_model *model = NULL;
    ls_error err;
    params.model = "demo";
    params.device = "gpu";
    ASSERT_FAILS(ls_model_open(&params, &model, &err), &err, LS_EINVAL, "--device gpu");
}

/* What goes to stderr while `show` runs. */
static void capture(progress_view *view, const ls_load_progress *progress, char *out, size_t out_bytes) {
    char path[] = "/tmp/lockstep-progress-XXXXXX";
    int file = mkstemp(path), before = dup(STDERR_FILENO);
    assert_true(file >= 0 && before >= 0);
    fflush(stderr);
    dup2(file, STDERR_FILENO);
    progress_of_loading(view, progress);
    fflush(stderr);
    dup2(before, STDERR_FILENO);
    close(before);
    ssize_t n = pread(file, out, out_bytes - 1, 0);
    out[n > 0 ? n : 0] = '\0';
    close(file);
    unlink(path);
}

static void loading_is_shown_where_it_takes_long(void **state) {
    (void)state;
    const ls_load_progress early = {sizeof early, 1000000, 8000000000, 100000};
    const ls_load_progress half = {sizeof half, 4000000000, 8000000000, 2000000};
    char text[256];
    progress_view bar = {.name = "loading", .is_terminal = true}, line = {.name = "loading", .told_s = clock_s()};
    capture(&bar, &early, text, sizeof text);
    assert_string_equal(text, "");
    capture(&bar, &half, text, sizeof text);
    assert_string_equal(text, "loading [############............]  50 % 4.00 GB of 8.00 GB  2.00 GB/s  ");
    assert_true(strlen(text) <= BAR_COLUMNS && bar.is_drawn);
    capture(&line, &half, text, sizeof text);
    assert_string_equal(text, "");
    line.told_s -= 6;
    capture(&line, &half, text, sizeof text);
    assert_string_equal(text, "lockstep: loading: 50 %, 4.00 GB of 8.00 GB, 2.00 GB/s\n");
    capture(&line, &half, text, sizeof text);
    assert_string_equal(text, ""); /* it has just been told */
}

#ifdef LS_CUDA
/* A profiler of one file: writes each range's name and payload as it begins, and "end". */
static const char TOOL[] =
    "#include <nvtx3/nvToolsExt.h>\n#include <stdio.h>\n#include <stdlib.h>\n"
    "static void say(const char *name, int rows) {\n"
    "    FILE *out = fopen(getenv(\"TOOL_OUT\"), \"a\");\n"
    "    fprintf(out, \"%s %d\\n\", name, rows);\n    fclose(out);\n}\n"
    "static int push_a(const char *name) {\n    say(name, -1);\n    return 0;\n}\n"
    "static int push_ex(const nvtxEventAttributes_t *a) {\n    say(a->message.ascii, a->payload.iValue);\n    return "
    "0;\n}\n"
    "static int pop(void) {\n    say(\"end\", -1);\n    return 0;\n}\n"
    "int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get) {\n"
    "    const NvtxExportTableCallbacks *calls = get(NVTX_ETID_CALLBACKS);\n"
    "    NvtxFunctionTable table;\n    unsigned n;\n"
    "    if (!calls->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &table, &n)) {\n        return 0;\n    }\n"
    "    *table[NVTX_CBID_CORE_RangePushA] = (NvtxFunctionPointer)push_a;\n"
    "    *table[NVTX_CBID_CORE_RangePushEx] = (NvtxFunctionPointer)push_ex;\n"
    "    *table[NVTX_CBID_CORE_RangePop] = (NvtxFunctionPointer)pop;\n    return 1;\n}\n";

static void a_profiler_sees_ranges(void **state) {
    (void)state;
    char folder[PATH_BYTES], out[4096], include[PATH_BYTES];
    if (sanitized() || !has_program("cc")) {
        skip();
    }
    shell(include, sizeof include,
          "for f in ${CUDA_HOME:+$CUDA_HOME/include} /usr/local/cuda/include; do "
          "[ -e $f/nvtx3/nvToolsExt.h ] && printf %%s $f && break; done");
    if (include[0] == '\0') {
        skip();
    }
    folder_make(folder);
    file_write(folder, "tool.c", TOOL, sizeof TOOL - 1);
    SHELL(out, "cc -shared -fPIC -isystem %s %s/tool.c -o %s/tool.so -ldl", include, folder, folder);
    SHELL(out,
          "TOOL_OUT=%s/ranges NVTX_INJECTION64_PATH=%s/tool.so $LS_BIN generate -m demo --device cpu -n 3 --temp 0 "
          "-p Once --timeline none",
          folder, folder);
    size_t n;
    char *ranges = (char *)file_read(folder, "ranges", &n);
    assert_string_equal(ranges,
                        "plan -1\nend -1\nload -1\nend -1\nprefill 1\nend -1\ndecode 1\nend -1\ndecode 1\nend -1\n");
    free(ranges);
    folder_remove(folder);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(progress_rises_to_the_end),
        cmocka_unit_test(a_model_may_look_for_a_gpu),
        cmocka_unit_test(loading_is_shown_where_it_takes_long),
#ifdef LS_CUDA
        cmocka_unit_test(a_profiler_sees_ranges),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
