/*
 * What goes wrong, through the public API: broken folders and weights, parameters out of range, requests that cannot run,
 * activations that overflow, ranks that give up, engines and requests that end early. Every error has its status and names
 * the file, the tensor, the field or the flag; a bad request hurts only itself. The last test asks that every status of
 * lockstep.h was produced by one of the tests before it.
 */
#include <jansson.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arena.h"
#include "delayed.h"
#include "edit.h"

static uint32_t produced; /* a bit for each status: 1 << (status + 16) */

static ls_status note(ls_status st) {
    produced |= 1u << (st + 16);
    return st;
}

/* A call whose last arguments are (&out, &err), of the function around; checks the failure and that out was left alone. */
#define REFUSED(call, out, status, ...)                                                                                \
    do {                                                                                                               \
        err = (ls_error){0};                                                                                           \
        ASSERT_FAILS(note(call), &err, status, __VA_ARGS__);                                                           \
        assert_null(out);                                                                                              \
    } while (0)

/* ---- Models ---- */

static void assert_model_refused(const char *folder, ls_load_format format, ls_status expected, const char *word1,
                                 const char *word2) {
    ls_model_params params = LS_MODEL_PARAMS_INIT;
    ls_model *model = NULL;
    ls_error err;
    params.model = folder;
    params.load_format = format;
    REFUSED(ls_model_open(&params, &model, &err), model, expected, word1, word2);
    assert_int_equal(ls_model_open(&params, &model, NULL), expected); /* err may be NULL */
}

static void remove_file(const golden_case *c, const char *name) {
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", c->folder, name);
    assert_int_equal(unlink(path), 0);
}

/* Replaces the first occurrence of a text in a file by another, of the same length if the file is binary. */
static void replace_text(const golden_case *c, const char *name, const char *from, const char *to) {
    size_t n, n_from = strlen(from), n_to = strlen(to);
    uint8_t *bytes = file_read(c->folder, name, &n);
    uint8_t *at = memmem(bytes, n, from, n_from);
    assert_non_null(at);
    uint8_t *out = malloc(n + n_to);
    assert_non_null(out);
    size_t before = (size_t)(at - bytes);
    memcpy(out, bytes, before);
    memcpy(out + before, to, n_to);
    memcpy(out + before + n_to, at + n_from, n - before - n_from);
    file_write(c->folder, name, out, n - n_from + n_to);
    free(out);
    free(bytes);
}

static void set_element(const golden_case *c, const char *name, const char *tensor, size_t index, const void *value,
                        size_t element_bytes) {
    opened_file file;
    file.bytes = file_read(c->folder, name, &file.n);
    memcpy(tensor_data(&file, tensor) + index * element_bytes, value, element_bytes);
    file_write(c->folder, name, file.bytes, file.n);
    free(file.bytes);
}

static void files_that_are_missing(void **state) {
    (void)state;
    golden_list list;
    golden_case *c = open_copy(&list, "ckpt_bf16_sharded");
    assert_model_refused("/nowhere/at all", LS_LOAD_SAFETENSORS, LS_ENOTFOUND, "/nowhere/at all", "no such folder");
    assert_model_refused("gpt-7", LS_LOAD_DUMMY, LS_ENOTFOUND, "gpt-7", "Qwen3-4B");
    remove_file(c, "model-00003-of-00004.safetensors");
    assert_model_refused(c->folder, LS_LOAD_SAFETENSORS, LS_ENOTFOUND, "model-00003-of-00004.safetensors", "");
    remove_file(c, "model.safetensors.index.json");
    assert_model_refused(c->folder, LS_LOAD_SAFETENSORS, LS_ENOTFOUND, "model.safetensors", "");
    remove_file(c, "tokenizer.json");
    assert_model_refused(c->folder, LS_LOAD_SAFETENSORS, LS_ENOTFOUND, "tokenizer.json", "");
    remove_file(c, "config.json");
    assert_model_refused(c->folder, LS_LOAD_SAFETENSORS, LS_ENOTFOUND, "config.json", "");
    assert_model_refused(c->folder, LS_LOAD_DUMMY, LS_ENOTFOUND, "config.json", "");
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/config.json", c->folder);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_model_refused(c->folder, LS_LOAD_SAFETENSORS, LS_EIO, "config.json", "");
    golden_close(&list);
    ls_model_params params = LS_MODEL_PARAMS_INIT;
    ls_model *model = NULL;
    ls_error err;
    REFUSED(ls_model_open(&params, &model, &err), model, LS_EINVAL, "model is missing");
    params.model = "demo";
    params.struct_size++;
    REFUSED(ls_model_open(&params, &model, &err), model, LS_EINVAL, "struct_size");
}

static void files_that_are_broken(void **state) {
    (void)state;
    golden_list list;
    golden_case *c = open_copy(&list, "ckpt_f32");
    size_t n;
    uint8_t *good = file_read(c->folder, "model.safetensors", &n);
    for (size_t cut = 1; cut < n; cut *= 3) { /* from one missing byte to nearly all */
        file_write(c->folder, "model.safetensors", good, n - cut);
        assert_model_refused(c->folder, LS_LOAD_SAFETENSORS, LS_EFORMAT, "model.safetensors", "");
    }
    file_write(c->folder, "model.safetensors", good, n);
    replace_text(c, "model.safetensors", "layers.1.mlp.up_proj", "layers.1.mlp.UP_proj");
    assert_model_refused(c->folder, LS_LOAD_SAFETENSORS, LS_ENOTFOUND, "model.layers.1.mlp.up_proj.weight", "");
    file_write(c->folder, "model.safetensors", good, n);
    replace_text(c, "model.safetensors", "\"F32\"", "\"I32\"");
    assert_model_refused(c->folder, LS_LOAD_SAFETENSORS, LS_EUNSUPPORTED, "model.safetensors", "dtype I32");
    file_write(c->folder, "model.safetensors", good, n);

    uint8_t *config = file_read(c->folder, "config.json", &n);
    replace_text(c, "config.json", "\"intermediate_size\": 48", "\"intermediate_size\": 64");
    assert_model_refused(c->folder, LS_LOAD_SAFETENSORS, LS_EFORMAT, "expected [64, 32], found [48, 32]", "mlp.");
    file_write(c->folder, "config.json", config, n);
    replace_text(c, "config.json", "\"model_type\": \"llama\"", "\"model_type\": \"mamba\"");
    assert_model_refused(c->folder, LS_LOAD_SAFETENSORS, LS_EUNSUPPORTED, "model_type", "mamba");
    file_write(c->folder, "config.json", config, n / 2);
    assert_model_refused(c->folder, LS_LOAD_DUMMY, LS_EFORMAT, "config.json", "");
    file_write(c->folder, "config.json", config, n);
    tokenizer_write(c->folder, 60, 68); /* one id more than the model has */
    assert_model_refused(c->folder, LS_LOAD_SAFETENSORS, LS_EFORMAT, "tokenizer.json", "vocab_size is 67");
    free(config);
    free(good);
    golden_close(&list);
}

/* ---- Weights: read when the engine opens ---- */

static void assert_weights_refused(const golden_case *c, ls_dtype dtype, int n_ranks, const char *const *words) {
    ls_model *model = golden_model(c);
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_engine *engine = NULL;
    ls_error err;
    params.dtype = dtype;
    params.tensor_parallel_size = n_ranks;
    REFUSED(ls_engine_open(model, &params, &engine, &err), engine, LS_ENUMERIC, words[0], words[1], words[2]);
    ls_model_close(&model);
}

static void weights_that_are_no_numbers(void **state) {
    (void)state;
    static const char DOWN[] = "model.layers.1.mlp.down_proj.weight";
    static const struct {
        float value;
        ls_dtype dtype;
        const char *words[3];
    } bad[] = {
        {NAN, LS_F32, {DOWN, "element 79", "nan"}},
        {-NAN, LS_BF16, {DOWN, "element 79", "nan"}},
        {INFINITY, LS_F16, {DOWN, "element 79", "is inf"}},
        {-INFINITY, LS_F32, {DOWN, "element 79", "-inf"}},
        {1e5F, LS_F16, {DOWN, "element 79 is 100000", "too large for f16"}},
        {-65520.0F, LS_F16, {DOWN, "element 79 is -65520", "too large for f16"}},
        {3.4e38F, LS_BF16, {DOWN, "element 79 is 3.4e+38", "too large for bf16"}},
    };
    golden_list list;
    golden_case *c = open_copy(&list, "ckpt_f32");
    for (size_t i = 0; i < COUNT(bad); i++) {
        set_element(c, "model.safetensors", DOWN, 79, &bad[i].value, sizeof bad[i].value);
        for (int n_ranks = 1; n_ranks <= 4; n_ranks *= 2) { /* the number is that of the whole tensor */
            assert_weights_refused(c, bad[i].dtype, n_ranks, bad[i].words);
        }
    }
    const float largest = 65519.0F; /* rounds to the largest f16 */
    set_element(c, "model.safetensors", DOWN, 79, &largest, sizeof largest);
    ls_model *model = golden_model(c);
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.dtype = LS_F16;
    ls_engine *engine = engine_open(model, &params);
    ls_engine_close(&engine);
    ls_model_close(&model);
    golden_close(&list);
}

static void bf16_weight_beyond_f16(void **state) {
    (void)state;
    golden_list list;
    golden_case *c = open_copy(&list, "ckpt_bf16_sharded");
    static const char NORM[] = "model.norm.weight", Q[] = "model.layers.0.self_attn.q_proj.weight";
    const uint16_t large = 0x47c0, nan = 0x7fc0; /* 98304, NaN */
    char shard[64] = "";
    size_t n;
    uint8_t *text = file_read(c->folder, "model.safetensors.index.json", &n);
    json_t *index = json_loads((const char *)text, 0, NULL);
    const json_t *map = json_object_get(index, "weight_map");
    snprintf(shard, sizeof shard, "%s", json_string_value(json_object_get(map, Q)));
    set_element(c, shard, Q, 5, &large, sizeof large);
    assert_weights_refused(c, LS_F16, 2, (const char *const[]){shard, Q, "element 5 is 98304, too large for f16"});
    set_element(c, shard, Q, 5, &(uint16_t){0}, sizeof large);
    snprintf(shard, sizeof shard, "%s", json_string_value(json_object_get(map, NORM)));
    set_element(c, shard, NORM, 31, &large, sizeof large); /* norms stay f32 in every dtype */
    ls_model *model = golden_model(c);
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.dtype = LS_F16;
    ls_engine *engine = engine_open(model, &params);
    ls_engine_close(&engine);
    ls_model_close(&model);
    set_element(c, shard, NORM, 31, &nan, sizeof nan);
    assert_weights_refused(c, LS_BF16, 8, (const char *const[]){shard, NORM, "element 31"});
    json_decref(index);
    free(text);
    golden_close(&list);
}

/* ---- Engine parameters ---- */

static void engine_parameters(void **state) {
    (void)state;
#define BAD(field, value)                                                                                              \
    { .struct_size = sizeof(ls_engine_params), .field = (value) }
    const struct {
        ls_engine_params params;
        ls_status status;
        const char *words[3];
    } bad[] = {
        {BAD(tensor_parallel_size, 3), LS_EINVAL, {"--tensor-parallel-size 3", "1, 2, 4 or 8", ""}},
        {BAD(tensor_parallel_size, -1), LS_EINVAL, {"--tensor-parallel-size -1", "1, 2, 4 or 8", ""}},
        {BAD(tensor_parallel_size, 16), LS_EINVAL, {"--tensor-parallel-size 16", "1, 2, 4 or 8", ""}},
        {BAD(tensor_parallel_size, 8), LS_EUNSUPPORTED, {"4 query heads", "2 KV heads", "runs with 1, 2, 4"}},
        {BAD(threads, -1), LS_EINVAL, {"--threads -1", "from 1 to 1024", ""}},
        {BAD(threads, 1025), LS_EINVAL, {"--threads 1025", "", ""}},
        {BAD(max_model_len_tokens, -5), LS_EINVAL, {"--max-model-len -5", "", ""}},
        {BAD(max_model_len_tokens, 129), LS_EINVAL, {"--max-model-len 129", "max_position_embeddings is 128", ""}},
        {BAD(max_num_seqs, -1), LS_EINVAL, {"--max-num-seqs -1", "", ""}},
        {BAD(max_num_seqs, 4097), LS_EINVAL, {"--max-num-seqs 4097", "4096", ""}},
        {BAD(max_num_batched_tokens, -1), LS_EINVAL, {"--max-num-batched-tokens -1", "", ""}},
        {BAD(max_num_batched_tokens, (1 << 20) + 1), LS_EINVAL, {"--max-num-batched-tokens 1048577", "", ""}},
        {BAD(max_num_batched_tokens, 15), LS_EINVAL, {"--max-num-batched-tokens 15", "--max-num-seqs, 16", ""}},
        {BAD(kv_cache_memory_bytes, -1), LS_EINVAL, {"--kv-cache-memory-bytes -1", "", ""}},
        {BAD(kv_cache_memory_bytes, 1), LS_EINVAL, {"--kv-cache-memory-bytes 1", "one page of 64 tokens", ""}},
        {BAD(dtype, (ls_dtype)4), LS_EINVAL, {"--dtype", "auto, f32, bf16 or f16", ""}},
        {BAD(dtype, (ls_dtype)-1), LS_EINVAL, {"--dtype", "", ""}},
        {BAD(kv_cache_dtype, (ls_dtype)99), LS_EINVAL, {"--kv-cache-dtype", "", ""}},
        {BAD(quantization, (ls_quantization)3), LS_EINVAL, {"--quantization", "none, w8a16 or w8a8", ""}},
        {BAD(async_scheduling, "on"), LS_EINVAL, {"--async-scheduling on", "auto or off", ""}},
        {BAD(cpu_isa, "avx10"), LS_EINVAL, {"--cpu-isa avx10", "this machine has", "ref"}},
        {{.struct_size = sizeof(ls_engine_params) + 1}, LS_EINVAL, {"struct_size", "newer", ""}},
    };
#undef BAD
    golden_list list;
    ls_model *model = golden_model(open_copy(&list, "ckpt_f32"));
    ls_engine *engine = NULL;
    ls_error err;
    for (size_t i = 0; i < COUNT(bad); i++) {
        REFUSED(ls_engine_open(model, &bad[i].params, &engine, &err), engine, bad[i].status, bad[i].words[0],
                bad[i].words[1], bad[i].words[2]);
    }
    ls_model_close(&model);
    golden_close(&list);
}

/* ---- Requests ---- */

static void request_parameters(void **state) {
    (void)state;
    static const int32_t ids[] = {1, 2, 3}, negative[] = {1, -1}, beyond[] = {66, 67};
    ls_request_params good = LS_REQUEST_PARAMS_INIT;
    good.prompt_tokens = ids;
    good.n_prompt_tokens = 3;
    const struct {
        double temperature, top_p;
        int max_tokens;
        const int32_t *id;
        size_t n_id, more; /* than the size of the struct */
        ls_status status;
        const char *words[2];
    } bad[] = {
        {101, 1, 9, ids, 3, 0, LS_EINVAL, {"temperature 101", "from 0.001 to 100"}},
        {1e-4, 1, 9, ids, 3, 0, LS_EINVAL, {"temperature 0.0001", ""}},
        {INFINITY, 1, 9, ids, 3, 0, LS_EINVAL, {"temperature inf", ""}},
        {NAN, 1, 9, ids, 3, 0, LS_EINVAL, {"temperature", "nan"}},
        {1, 0, 9, ids, 3, 0, LS_EINVAL, {"top_p 0", "at most 1"}},
        {1, 1.01, 9, ids, 3, 0, LS_EINVAL, {"top_p 1.01", ""}},
        {1, NAN, 9, ids, 3, 0, LS_EINVAL, {"top_p", "nan"}},
        {1, 1, -1, ids, 3, 0, LS_EINVAL, {"max_tokens -1", "negative"}},
        {1, 1, 126, ids, 3, 0, LS_ETOOLONG, {"prompt of 3 tokens and max_tokens 126 make 129", "at most 125"}},
        {1, 1, INT32_MAX, ids, 3, 0, LS_ETOOLONG, {"2147483650", "128 tokens"}},
        {1, 1, 9, ids, 0, 0, LS_EINVAL, {"empty prompt", ""}},
        {1, 1, 9, NULL, 3, 0, LS_EINVAL, {"prompt", ""}},
        {1, 1, 9, negative, 2, 0, LS_EINVAL, {"prompt token 1 has id -1", "ends at 66"}},
        {1, 1, 9, beyond, 2, 0, LS_EINVAL, {"prompt token 1 has id 67", "ends at 66"}},
        {1, 1, 9, ids, 3, 1, LS_EINVAL, {"struct_size", "newer"}},
    };
    golden_list list;
    ls_model *model = golden_model(open_copy(&list, "ckpt_f32"));
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_engine *engine = engine_open(model, &params);
    ls_request *request = NULL;
    ls_error err;
    for (size_t i = 0; i < COUNT(bad); i++) {
        ls_request_params p = good;
        p.temperature = bad[i].temperature;
        p.top_p = bad[i].top_p;
        p.max_tokens = bad[i].max_tokens;
        p.prompt_tokens = bad[i].id;
        p.n_prompt_tokens = bad[i].n_id;
        p.struct_size += bad[i].more;
        REFUSED(ls_request_submit(engine, &p, &request, &err), request, bad[i].status, bad[i].words[0],
                bad[i].words[1]);
        assert_int_equal(ls_request_submit(engine, &p, &request, NULL), bad[i].status);
    }
    ls_request_params empty = LS_REQUEST_PARAMS_INIT;
    empty.prompt = "";
    REFUSED(ls_request_submit(engine, &empty, &request, &err), request, LS_EINVAL, "empty prompt");
    assert_int_equal(note(ls_engine_step(engine, &err)), LS_IDLE); /* none of them was left behind */
    good.max_tokens = 125;                                         /* exactly the context */
    assert_int_equal(note(ls_request_submit(engine, &good, &request, &err)), LS_OK);
    ls_request_free(&request);
    ls_engine_close(&engine);

    params.kv_cache_memory_bytes = 2LL * 2 * 2 * 64 * 16 * 4; /* one page */
    params.max_model_len_tokens = 128;
    engine = engine_open(model, &params);
    good.max_tokens = 62;
    REFUSED(ls_request_submit(engine, &good, &request, &err), request, LS_ETOOLONG, "make 65", "(64 tokens)",
            "--kv-cache-memory-bytes");
    good.max_tokens = 61;
    ASSERT_OK(ls_request_submit(engine, &good, &request, &err), &err);
    ls_engine_close(&engine);
    ls_model_close(&model);
    golden_close(&list);
}

static void prompt_longer_than_the_context(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.max_model_len_tokens = 40;
    ls_engine *engine = engine_open(model, &params);
    ls_request_params p = LS_REQUEST_PARAMS_INIT;
    ls_request *request = NULL;
    ls_error err;
    char text[4000];
    memset(text, '.', sizeof text);
    for (size_t i = 1; i < sizeof text; i += 2) {
        text[i] = (char)('a' + i % 26);
    }
    p.prompt = text;
    p.prompt_bytes = sizeof text;
    p.max_tokens = 0;
    REFUSED(ls_request_submit(engine, &p, &request, &err), request, LS_ETOOLONG, "context of 40 tokens",
            "--max-model-len", "at most 0");
    ls_engine_close(&engine);
    ls_model_close(&model);
}

/* ---- Overflow of activations: only its own request fails ---- */

/* Three prompts, of which the middle one holds the hot token at position 2. */
static void run_three(bool one_behind, ls_model *model, ls_dtype dtype, int n_ranks, bool with_hot, job jobs[3]) {
    static const int32_t cold[] = {1, 2, 3, 4}, hot[] = {5, 6, HOT, 7}, other[] = {8, 9, 10};
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.dtype = dtype;
    params.tensor_parallel_size = n_ranks;
    ls_engine *engine = one_behind ? delayed_engine_open(model, &params) : engine_open(model, &params);
    jobs[0] = (job){.id = cold, .n_id = 4, .max_tokens = 6, .no_hash = one_behind};
    jobs[1] = (job){.id = hot, .n_id = 4, .max_tokens = 6, .no_hash = one_behind, .join_step = 1};
    jobs[2] = (job){.id = other, .n_id = 3, .max_tokens = 6, .no_hash = one_behind, .join_step = 1};
    if (!with_hot) {
        jobs[1].id = other;
        jobs[1].n_id = 3;
    }
    jobs_run(engine, jobs, 3);
    assert_int_equal(engine->pages.n_free, engine->pages.n_pages);
    assert_true(one_behind == (engine->stats.ahead_steps > 0));
    ls_engine_close(&engine);
}

static void overflow_fails_only_its_request(void **state) {
    (void)state;
    golden_list list;
    golden_case *c = open_copy(&list, "ckpt_f32");
    make_hot(c);
    ls_model *model = golden_model(c);
    for (int run = 0; run < 6; run++) {
        const int n_ranks = 1 << run / 2;
        const bool one_behind = run % 2 == 1; /* the row that overflows is in a step that runs when that shows */
        job without[3], with[3];
        run_three(one_behind, model, LS_F16, n_ranks, false, without);
        run_three(one_behind, model, LS_F16, n_ranks, true, with);
        for (int i = 0; i < 3; i += 2) {
            assert_int_equal(with[i].finish, LS_FINISH_LENGTH);
            assert_int_equal(with[i].status, LS_OK);
            assert_string_equal(with[i].error, "");
            assert_same_answer(&without[i], &with[i], "beside a request that overflows");
        }
        assert_int_equal(with[1].finish, LS_FINISH_ERROR);
        assert_int_equal(note(with[1].status), LS_ENUMERIC);
        assert_int_equal(with[1].n_token, 0);
        print_message("%s\n", with[1].error);
        assert_non_null(strstr(with[1].error, "position 2"));
        assert_non_null(strstr(with[1].error, "op exchange of layer 0"));
        assert_non_null(strstr(with[1].error, "overflows f16"));
        assert_non_null(strstr(with[1].error, "--dtype"));
        jobs_clear(without, 3);
        jobs_clear(with, 3);
    }
    job fine[3]; /* the same weights do not overflow bf16 */
    run_three(false, model, LS_BF16, 1, true, fine);
    assert_int_equal(fine[1].finish, LS_FINISH_LENGTH);
    jobs_clear(fine, 3);
    ls_model_close(&model);
    golden_close(&list);
}

/* ---- Ends ---- */

static void submit_text(ls_engine *engine, const char *text, int max_tokens, ls_request **out) {
    ls_request_params p = LS_REQUEST_PARAMS_INIT;
    ls_error err = {0};
    p.prompt = text;
    p.prompt_bytes = strlen(text);
    p.max_tokens = max_tokens;
    p.ignore_eos = true;
    p.temperature = 0;
    ASSERT_OK(ls_request_submit(engine, &p, out, &err), &err);
}

static void a_rank_that_gives_up_ends_the_engine(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.tensor_parallel_size = 4;
    params.threads = 2;
    ls_engine *engine = engine_open(model, &params);
    ls_request *running = NULL, *later = NULL;
    ls_error err = {0};
    submit_text(engine, "Once upon a time", 50, &running);
    for (int i = 0; i < 3; i++) {
        ASSERT_OK(ls_engine_step(engine, &err), &err);
    }
    engine->exchange->abort(engine->exchange);
    ASSERT_FAILS(note(ls_engine_step(engine, &err)), &err, LS_EABORTED, "");
    ls_result result = LS_RESULT_INIT;
    ASSERT_OK(ls_request_get_result(running, &result, &err), &err);
    assert_int_equal(result.finish, LS_FINISH_ERROR);
    assert_int_equal(result.status, LS_EABORTED);
    assert_int_equal(result.n_tokens - result.n_prompt_tokens, 3);
    ASSERT_FAILS(ls_engine_step(engine, &err), &err, LS_EABORTED, "the engine has failed");
    ls_request_params p = LS_REQUEST_PARAMS_INIT;
    p.prompt = "a";
    p.prompt_bytes = 1;
    REFUSED(ls_request_submit(engine, &p, &later, &err), later, LS_EABORTED, "the engine has failed");
    ls_request_free(&running);
    ls_engine_close(&engine);
    ls_model_close(&model);
}

static void requests_end_early(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.max_num_seqs = 2;
    params.max_num_batched_tokens = 3;
    ls_engine *engine = engine_open(model, &params);
    enum { N = 6 };
    ls_request *request[N] = {NULL};
    ls_error err = {0};
    for (int i = 0; i < N; i++) {
        submit_text(engine, "One day, a small bird", 20, &request[i]);
    }
    ls_request_free(&request[3]); /* waiting, in the middle */
    ls_request_free(&request[5]); /* waiting, the last: what joins the queue now must be found */
    ASSERT_OK(ls_engine_step(engine, &err), &err);
    ls_request_free(&request[0]); /* in the middle of its prompt */
    submit_text(engine, "The", 5, &request[5]);
    for (int i = 0; i < 12; i++) {
        ASSERT_OK(ls_engine_step(engine, &err), &err);
    }
    ls_request_free(&request[1]); /* generating */
    while (ls_engine_step(engine, &err) != LS_IDLE) {
    }
    static const int finished[] = {2, 4, 5};
    for (size_t i = 0; i < COUNT(finished); i++) {
        ls_result result = LS_RESULT_INIT;
        ASSERT_OK(ls_request_get_result(request[finished[i]], &result, &err), &err);
        assert_int_equal(result.finish, LS_FINISH_LENGTH);
        assert_int_equal(result.n_tokens - result.n_prompt_tokens, finished[i] == 5 ? 5 : 20);
        assert_true(result.first_token_us >= 0);
    }
    assert_int_equal(engine->pages.n_free, engine->pages.n_pages);
    for (int i = 0; i < N; i++) {
        ls_request_free(&request[i]); /* NULL is fine */
        assert_null(request[i]);
    }
    assert_null(engine->requests);
    ls_engine_close(&engine);
    ls_engine_close(&engine);
    ls_model_close(&model);
    ls_model_close(&model);
}

static void engine_closes_with_live_requests(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.tensor_parallel_size = 2;
    params.max_num_seqs = 2;
    ls_error err = {0};
    for (int steps = 0; steps < 4; steps += 3) {
        ls_engine *engine = engine_open(model, &params);
        ls_request *request[4];
        for (int i = 0; i < 4; i++) {
            submit_text(engine, "Grandma made soup for", i == 0 ? 1 : 30, &request[i]);
        }
        for (int i = 0; i < steps; i++) {
            ASSERT_OK(ls_engine_step(engine, &err), &err);
        }
        ls_result result = LS_RESULT_INIT;
        ASSERT_OK(ls_request_get_result(request[0], &result, &err), &err); /* allocates its text */
        ls_engine_close(&engine);
        assert_null(engine);
    }
    ls_model_close(&model);
}

/* Two engines of one model and one of another take turns; each gives what it gives alone. */
static void engines_side_by_side(void **state) {
    (void)state;
    golden_list list;
    golden_case *c = open_copy(&list, "ckpt_f16");
    ls_model *demo = demo_model(), *small = golden_model(c);
    ls_engine_params one = LS_ENGINE_PARAMS_INIT, two = LS_ENGINE_PARAMS_INIT;
    two.tensor_parallel_size = 2;
    two.dtype = LS_F32;
    ls_engine *engine[3] = {engine_open(demo, &one), engine_open(demo, &two), engine_open(small, &one)};
    ls_request *request[3];
    ls_error err = {0};
    job alone[3] = {{.text = "Once upon a time", .max_tokens = 20},
                    {.text = "Once upon a time", .max_tokens = 20},
                    {.text = "abc", .max_tokens = 20}};
    for (int i = 0; i < 3; i++) {
        jobs_run(engine[i], &alone[i], 1);
        submit_text(engine[i], alone[i].text, 20, &request[i]);
    }
    for (int step = 0; step < 20; step++) {
        for (int i = 0; i < 3; i++) {
            ASSERT_OK(ls_engine_step(engine[i], &err), &err);
        }
    }
    for (int i = 0; i < 3; i++) {
        ls_result result = LS_RESULT_INIT;
        assert_int_equal(ls_engine_step(engine[i], &err), LS_IDLE);
        ASSERT_OK(ls_request_get_result(request[i], &result, &err), &err);
        assert_int_equal(result.n_tokens - result.n_prompt_tokens, 20);
        assert_memory_equal(result.tokens + result.n_prompt_tokens, alone[i].token, 20 * sizeof *alone[i].token);
        ls_engine_close(&engine[i]);
    }
    jobs_clear(alone, 3);
    ls_model_close(&demo);
    ls_model_close(&small);
    golden_close(&list);
}

static void every_status_was_produced(void **state) {
    (void)state;
    ls_arena arena;
    void *piece = NULL;
    ls_error err = {0};
    ASSERT_OK(arena_init(&arena, 64, &err), &err);
    ASSERT_FAILS(note(arena_take(&arena, 0, 65, &piece, &err)), &err, LS_EINTERNAL, "memory plan too small");
    arena_deinit(&arena);
    ls_model_params params = LS_MODEL_PARAMS_INIT;
    params.model = "Qwen/Qwen3-32B"; /* 131 GB in f32, at 16 TB of KV cache */
    params.load_format = LS_LOAD_DUMMY;
    ls_model *model = NULL;
    ASSERT_OK(ls_model_open(&params, &model, &err), &err);
    ls_engine_params big = LS_ENGINE_PARAMS_INIT;
    ls_engine *engine = NULL;
    big.max_num_seqs = 4096;
    big.kv_cache_memory_bytes = (int64_t)1 << 50;
    REFUSED(ls_engine_open(model, &big, &engine, &err), engine, LS_ENOMEM, "the plan needs", "the machine has");
    ls_model_close(&model);
    produced |= 1u << (LS_ENETWORK + 16) | 1u << (LS_EDENIED + 16); /* test_hub.c has the hub that these take */
#define X(name, value, text)                                                                                           \
    if ((produced >> (name + 16) & 1) == 0) {                                                                          \
        fail_msg("no test produced %s", #name);                                                                        \
    }
    LS_STATUS_MAP(X)
#undef X
}

/* A caller with an older, shorter struct: what lies behind it is not ours to read. */
static void shorter_structs_are_not_overread(void **state) {
    (void)state;
    ls_model_params full = LS_MODEL_PARAMS_INIT;
    full.model = "demo";
    full.struct_size = offsetof(ls_model_params, cache_folder);
    ls_model_params *params = malloc(full.struct_size); /* ASan watches its end */
    assert_non_null(params);
    memcpy(params, &full, full.struct_size);
    ls_model *model = NULL;
    assert_int_equal(ls_model_open(params, &model, NULL), LS_OK);
    ls_model_close(&model);
    free(params);
    ls_text *text = NULL;
    char *chat = NULL;
    size_t n_chat = 0;
    assert_int_equal(ls_text_open("demo", NULL, &text, NULL), LS_OK);
    ls_chat_params chat_full = LS_CHAT_PARAMS_INIT;
    chat_full.messages_json = "[{\"role\": \"user\", \"content\": \"Hi\"}]";
    chat_full.struct_size = offsetof(ls_chat_params, tools_json);
    ls_chat_params *chat_params = malloc(chat_full.struct_size);
    assert_non_null(chat_params);
    memcpy(chat_params, &chat_full, chat_full.struct_size);
    assert_int_equal(ls_text_render_chat(text, chat_params, &chat, &n_chat, NULL), LS_OK);
    assert_string_equal(chat, "<|im_start|>user\nHi<|im_end|>\n");
    ls_free(chat);
    chat_full.struct_size = 0;
    assert_int_equal(ls_text_render_chat(text, &chat_full, &chat, &n_chat, NULL), LS_EINVAL);
    free(chat_params);
    ls_text_close(&text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shorter_structs_are_not_overread),
        cmocka_unit_test(files_that_are_missing),
        cmocka_unit_test(files_that_are_broken),
        cmocka_unit_test(weights_that_are_no_numbers),
        cmocka_unit_test(bf16_weight_beyond_f16),
        cmocka_unit_test(engine_parameters),
        cmocka_unit_test(request_parameters),
        cmocka_unit_test(prompt_longer_than_the_context),
        cmocka_unit_test(overflow_fails_only_its_request),
        cmocka_unit_test(a_rank_that_gives_up_ends_the_engine),
        cmocka_unit_test(requests_end_early),
        cmocka_unit_test(engine_closes_with_live_requests),
        cmocka_unit_test(engines_side_by_side),
        cmocka_unit_test(every_status_was_produced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
