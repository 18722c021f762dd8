/*
 * Plans: equal to the arenas of engines really opened, at the longest contexts too, which are filled; what fits agrees with
 * plans made one by one; config.json alone is enough; errors by name; and one plan as text, so that a change of any number
 * shows.
 */
#include <unistd.h>

#include "tool.h"

#include "engine/engine.h"

/* ---- Plans are what engines take ---- */

static ls_plan_report plan_of(const ls_model *model, const ls_engine_params *params) {
    ls_plan_report report = LS_PLAN_REPORT_INIT;
    ls_error err = {0};
    ASSERT_OK(ls_plan_make(model, params, &report, &err), &err);
    return report;
}

static void assert_is_engine(const ls_plan_report *plan, const ls_engine *engine) {
    const engine_config *c = &engine->config;
    int64_t total = 0, read_bytes = 0;
    assert_int_equal(plan->n_ranks, c->n_ranks);
    assert_int_equal(plan->n_threads, c->n_threads);
    assert_int_equal(plan->dtype, c->dtype);
    assert_int_equal(plan->kv_cache_dtype, c->kv_dtype);
    assert_int_equal(plan->max_model_len_tokens, c->max_len);
    assert_int_equal(plan->max_num_seqs, c->max_seqs);
    assert_int_equal(plan->max_num_batched_tokens, c->m_max);
    assert_int_equal(plan->n_pages, c->n_pages);
    assert_int_equal(plan->page_tokens, LS_PAGE_TOKENS);
    for (int tag = 0; tag < MEM_TAGS; tag++) {
        for (int r = 0; r < LS_PLAN_RANKS; r++) {
            assert_int_equal(plan->rank_bytes[r][tag], engine->rank_arena[r].by_tag[tag]);
            total += plan->rank_bytes[r][tag];
        }
        assert_int_equal(plan->shared_bytes[tag], engine->host_arena.by_tag[tag]);
        total += plan->shared_bytes[tag];
    }
    int64_t bytes = (int64_t)engine->host_arena.bytes;
    for (int r = 0; r < c->n_ranks; r++) {
        bytes += (int64_t)engine->rank_arena[r].bytes;
        read_bytes += engine->program[r]->read_bytes;
    }
    assert_int_equal(plan->total_bytes, total);
    assert_int_equal(plan->total_bytes, bytes);
    assert_int_equal(plan->weight_read_bytes_per_step, read_bytes);
    assert_int_equal(plan->kv_bytes_per_token * LS_PAGE_TOKENS, kv_page_bytes(c, &engine->model->spec));
}

static void plans_equal_engines(void **state) {
    (void)state;
    static const int RANKS[] = {8, 4, 2, 1};
    static const ls_dtype DTYPES[] = {LS_BF16, LS_F32, LS_F16, LS_AUTO};
    golden_list list;
    golden_open(&list);
    int n_opened = 0, n_refused = 0;
    for (size_t i = 0; i < list.n * COUNT(RANKS); i++) {
        ls_engine_params params = LS_ENGINE_PARAMS_INIT;
        params.tensor_parallel_size = RANKS[i % COUNT(RANKS)];
        params.threads = 1 + (int)i % 2;
        params.dtype = DTYPES[i % COUNT(DTYPES)];
        params.kv_cache_dtype = DTYPES[i / 2 % COUNT(DTYPES)];
        params.max_num_seqs = (int)i % 7;
        params.max_model_len_tokens = i % 3 == 0 ? 0 : 60 + (int)i;
        params.kv_cache_memory_bytes = i % 5 == 0 ? 4 << 20 : 0;
        ls_model *model = golden_model(&list.item[i / COUNT(RANKS)]);
        ls_engine *engine = NULL;
        ls_plan_report plan = LS_PLAN_REPORT_INIT;
        ls_error opening = {0}, planning = {0};
        if (ls_engine_open(model, &params, &engine, &opening) == LS_OK) {
            plan = plan_of(model, &params);
            assert_is_engine(&plan, engine);
            ls_engine_close(&engine);
            n_opened++;
        } else { /* the same refusal, in the same words */
            assert_int_equal(ls_plan_make(model, &params, &plan, &planning), opening.status);
            assert_string_equal(planning.text, opening.text);
            assert_int_equal(plan.total_bytes, 0);
            n_refused++;
        }
        ls_model_close(&model);
    }
    assert_true(n_opened > 70 && n_refused > 5);
    golden_close(&list);
}

/* A folder with a config.json of one small layer. */
static void write_long_config(const char *folder, const char *class, const char *family, int positions, int window) {
    char json[1024], window_text[16] = "null";
    if (window > 0) {
        snprintf(window_text, sizeof window_text, "%d", window);
    }
    int n = snprintf(json, sizeof json,
                     "{\"architectures\": [\"%sForCausalLM\"], \"model_type\": \"%s\", \"hidden_size\": 32, "
                     "\"num_hidden_layers\": 1, \"num_attention_heads\": 1, \"num_key_value_heads\": 1, "
                     "\"head_dim\": 16, \"intermediate_size\": 32, \"vocab_size\": 64, \"rms_norm_eps\": 1e-6, "
                     "\"hidden_act\": \"silu\", \"max_position_embeddings\": %d, \"rope_theta\": 1000000.0, "
                     "\"sliding_window\": %s, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"}",
                     class, family, positions, window_text);
    file_write(folder, "config.json", json, (size_t)n);
}

/* The contexts of Qwen3-4B and of Mistral-7B: exact plans, and prompts whose bits do not depend on their chunks; to the
 * last position where a window keeps attention short, so that this takes no more than a second. */
static void long_contexts(void **state) {
    (void)state;
    enum { ANSWER = 4, LONGEST = 40960, WHOLE_ATTENTION = 4096 };
    static const struct {
        const char *class, *family;
        int positions, window;
    } models[] = {{"Qwen3", "qwen3", 40960, 0}, {"Mistral", "mistral", 40960, 512}, {"Mistral", "mistral", 32768, 512}};
    int32_t *id = malloc(LONGEST * sizeof *id);
    assert_non_null(id);
    for (int i = 0; i < LONGEST; i++) {
        id[i] = (int32_t)(((unsigned)i * 2654435761U >> 16) % 64);
    }
    for (size_t m = 0; m < COUNT(models); m++) {
        const int longest = models[m].positions, n = models[m].window > 0 ? longest - ANSWER : WHOLE_ATTENTION;
        char folder[PATH_BYTES];
        job jobs[2] = {{0}};
        folder_make(folder);
        write_long_config(folder, models[m].class, models[m].family, longest, models[m].window);
        ls_model *model = model_open(folder, LS_LOAD_DUMMY);
        for (int run = 0; run < 2; run++) {
            ls_engine_params params = LS_ENGINE_PARAMS_INIT;
            params.max_model_len_tokens = run == 0 ? 0 : longest;
            params.max_num_batched_tokens = run == 0 ? 512 : 2048;
            params.max_num_seqs = 1 + run;
            const ls_plan_report plan = plan_of(model, &params);
            assert_int_equal(plan.n_pages, (1 + run) * longest / plan.page_tokens);
            ls_engine *engine = engine_open(model, &params);
            assert_is_engine(&plan, engine);
            assert_int_equal(ls_engine_max_tokens(engine), longest);
            jobs[run] = (job){.id = id, .n_id = sanitized() ? 2100 : n, .max_tokens = ANSWER};
            const int n_chunks = (jobs[run].n_id + engine->config.m_max - 1) / engine->config.m_max;
            assert_int_equal(jobs_run(engine, &jobs[run], 1), n_chunks + ANSWER - 1);
            assert_int_equal(jobs[run].n_token, ANSWER);
            ls_engine_close(&engine);
        }
        assert_same_answer(&jobs[0], &jobs[1], models[m].family);
        jobs_clear(jobs, 2);
        ls_model_close(&model);
        folder_remove(folder);
    }
    free(id);
}

/* ---- What fits ---- */

static int64_t need(const ls_model *model, ls_engine_params params, int len, int seqs, bool machine) {
    params.max_model_len_tokens = len;
    params.max_num_seqs = seqs;
    params.kv_cache_memory_bytes = (int64_t)1 << 50;
    ls_plan_report plan = plan_of(model, &params);
    int64_t most = 0, shared = 0;
    for (int r = 0; r < plan.n_ranks; r++) {
        int64_t sum = 0;
        for (int kind = 0; kind < LS_MEMORY_KINDS; kind++) {
            sum += plan.rank_bytes[r][kind];
        }
        most = sum > most ? sum : most;
    }
    for (int kind = 0; kind < LS_MEMORY_KINDS; kind++) {
        shared += plan.shared_bytes[kind];
    }
    return most + (machine ? (shared + plan.n_ranks - 1) / plan.n_ranks : shared);
}

/* A value fits, and the next larger one does not or is not allowed. */
static void assert_largest(const ls_model *model, const ls_engine_params *params, const ls_plan_budget *budget,
                           int max_position_tokens) {
    ls_plan_fit fit = LS_PLAN_FIT_INIT;
    ls_error err = {0};
    ASSERT_OK(ls_plan_get_fit(model, params, budget, &fit, &err), &err);
    const int64_t room = budget->budget_bytes;
    const int len = params->max_model_len_tokens > 0 ? params->max_model_len_tokens : max_position_tokens;
    const int seqs = params->max_num_seqs;
    const int n = fit.largest_num_seqs, longest = fit.largest_model_len_tokens;
    assert_int_equal(fit.need_bytes, need(model, *params, len, seqs, budget->machine));
    assert_int_equal(fit.short_bytes, fit.need_bytes - room);
    assert_true(fit.short_bytes <= 0 || (n < seqs && longest < len));
    assert_true(fit.short_bytes > 0 || (n >= seqs && longest >= len));
    assert_true(longest == 0 || need(model, *params, longest, seqs, budget->machine) <= room);
    assert_true(longest == max_position_tokens || need(model, *params, longest + 1, seqs, budget->machine) > room);
    assert_true(n == 0 || need(model, *params, len, n, budget->machine) <= room);
    int most = params->max_num_batched_tokens > 0 ? params->max_num_batched_tokens : 4096;
    assert_true(n == most || need(model, *params, len, n + 1, budget->machine) > room);
}

static void what_fits(void **state) {
    (void)state;
    static const int64_t DEVICES[] = {1000000, 9000000, 30000000, 100000000, 600000000, 0};
    ls_model *model = demo_model();
    ls_error err = {0};
    for (size_t i = 0; i < COUNT(DEVICES); i++) {
        for (int n_ranks = 1; n_ranks <= 8; n_ranks *= 2) {
            ls_plan_budget budget = LS_PLAN_BUDGET_INIT;
            ls_engine_params params = LS_ENGINE_PARAMS_INIT;
            ASSERT_OK(ls_plan_get_budget(DEVICES[i], 0.5 + 0.1 * n_ranks / 2, n_ranks, &budget, &err), &err);
            params.tensor_parallel_size = n_ranks;
            params.dtype = n_ranks == 4 ? LS_F32 : LS_AUTO;
            params.max_num_seqs = 1 + (int)i * n_ranks;
            params.max_model_len_tokens = i % 2 == 0 ? 0 : 77;
            params.max_num_batched_tokens = i == 3 ? 300 : 0;
            assert_largest(model, &params, &budget, 2048);
        }
    }
    ls_model_close(&model);
}

static void budgets(void **state) {
    (void)state;
    ls_error err = {0};
    ls_plan_budget b = LS_PLAN_BUDGET_INIT;
    ASSERT_OK(ls_plan_get_budget(80000000000, 0, 4, &b, &err), &err);
    assert_false(b.machine);
    assert_int_equal(b.budget_bytes, 72000000000); /* 0.9 of it */
    assert_int_equal(b.total_bytes, 80000000000);  /* of each rank's own */
    assert_int_equal(b.used_by_others_bytes, 0);
    ASSERT_OK(ls_plan_get_budget(0, 0.25, 1, &b, &err), &err);
    assert_true(b.machine);
    const int64_t total = b.total_bytes;
    assert_true(total > 0 && total <= (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE));
    assert_true(b.used_by_others_bytes > 0 && b.used_by_others_bytes < total);
    assert_int_equal(b.budget_bytes, (int64_t)(0.25 * (double)total) - b.used_by_others_bytes);
    ASSERT_OK(ls_plan_get_budget(0, 0.25, 4, &b, &err), &err);
    assert_int_equal(b.total_bytes, total / 4);
    ASSERT_FAILS(ls_plan_get_budget(0, 1.5, 1, &b, &err), &err, LS_EINVAL, "--gpu-memory-utilization", "1.5");
    ASSERT_FAILS(ls_plan_get_budget(0, 0, 9, &b, &err), &err, LS_EINVAL, "1 to 8 ranks");
    ASSERT_FAILS(ls_plan_get_budget(-1, 0, 1, &b, &err), &err, LS_EINVAL, "0 or more bytes");
    b.struct_size = 0;
    ASSERT_FAILS(ls_plan_get_budget(0, 0, 1, &b, &err), &err, LS_EINVAL, "LS_..._INIT");
}

static void older_headers(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_error err = {0};
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_plan_report whole = plan_of(model, &params), part = whole;
    memset(&part, 0xff, sizeof part);
    part.struct_size = offsetof(ls_plan_report, total_bytes);
    ASSERT_OK(ls_plan_make(model, &params, &part, &err), &err);
    assert_memory_equal(&part.n_ranks, &whole.n_ranks, offsetof(ls_plan_report, total_bytes) - sizeof(size_t));
    assert_int_equal(part.total_bytes, -1); /* what the caller does not know is left alone */
    params.struct_size = sizeof params + 8;
    ASSERT_FAILS(ls_plan_make(model, &params, &part, &err), &err, LS_EINVAL, "newer header");
    ls_model_close(&model);
}

/* ---- The command ---- */

static void golden_text(void **state) {
    (void)state;
    int code;
    char *text = tool("plan Qwen/Qwen3-4B -tp 2 -t 4 --max-model-len 8192 --device-memory-bytes 24G", &code);
    assert_int_equal(code, 0);
    size_t n;
    char *wanted = (char *)file_read("tests/golden", "plan_qwen3_4b.txt", &n);
    if (strcmp(text, wanted) != 0) {
        print_error("not as in tests/golden/plan_qwen3_4b.txt:\n%s\n", text);
        fail();
    }
    free(text);
    free(wanted);
}

static const json_t *find_fit(const json_t *plan, int n_ranks, const char *dtype) {
    size_t i;
    const json_t *row;
    json_array_foreach(json_object_get(plan, "what_fits"), i, row) {
        const char *of_row = json_string_value(json_object_get(row, "dtype"));
        if ((int)json_number(row, "tensor_parallel_size") == n_ranks && of_row != NULL && strcmp(of_row, dtype) == 0) {
            return row;
        }
    }
    fail();
    return NULL;
}

static void contexts_grow(void **state) {
    (void)state;
    json_t *plan = tool_json("plan Qwen3-14B -tp 8 -q none --dtype f16 --device-memory-bytes 80Gi", 0);
    const json_t *rows = json_object_get(plan, "contexts");
    assert_int_equal(json_array_size(rows), 10); /* the last: the model's longest, 40960 */
    for (size_t i = 0; i < 10; i++) {
        const json_t *row = json_array_get(rows, i), *last = json_array_get(rows, i > 0 ? i - 1 : 0);
        const int tokens = i < 9 ? 128 << i : 40960;
        assert_int_equal(json_number(row, "tokens"), tokens);
        /* 40 layers, one of 8 KV heads a rank, 128 wide, K and V, two bytes */
        assert_true(json_number(row, "kv_bytes_per_seq") == tokens * 40 * 1 * 128 * 2 * 2.0);
        assert_true(i == 0 || json_number(row, "need_bytes") > json_number(last, "need_bytes"));
        assert_true(i == 0 || json_number(row, "largest_num_seqs") <= json_number(last, "largest_num_seqs"));
    }
    assert_true(json_number(json_array_get(rows, 9), "largest_num_seqs") > 0);
    for (int n_ranks = 2; n_ranks <= 8; n_ranks *= 2) { /* more ranks need less each */
        for (int dtype = LS_F32; dtype <= LS_F16; dtype++) {
            const json_t *row = find_fit(plan, n_ranks, ls_dtype_name((ls_dtype)dtype));
            const json_t *half = find_fit(plan, n_ranks / 2, ls_dtype_name((ls_dtype)dtype));
            assert_true(json_number(row, "need_bytes") < json_number(half, "need_bytes"));
            assert_true(json_number(row, "weights_bytes") < 0.51 * json_number(half, "weights_bytes"));
            assert_true(json_number(row, "largest_num_seqs") >= json_number(half, "largest_num_seqs"));
        }
    }
    assert_true(json_number(plan, "budget.budget_bytes") == (double)(int64_t)(0.9 * 80 * 1024 * 1024 * 1024.0));
    double sum = 0;
    for (size_t r = 0; r < 8; r++) {
        sum += json_number(json_array_get(json_object_get(plan, "rank_bytes"), r), "total");
    }
    sum += json_number(plan, "shared_bytes.rope") + json_number(plan, "shared_bytes.step_input") +
           json_number(plan, "shared_bytes.scheduler");
    assert_true(sum == json_number(plan, "total_bytes"));
    json_decref(plan);
}

/* A folder with a config.json of 6 heads, and nothing else in it. */
static void write_config(const char *folder, int positions) {
    char json[1024];
    int n =
        snprintf(json, sizeof json,
                 "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 96, "
                 "\"num_hidden_layers\": 2, \"num_attention_heads\": 6, \"num_key_value_heads\": 2, "
                 "\"intermediate_size\": 192, \"vocab_size\": 300, \"rms_norm_eps\": 1e-6, \"hidden_act\": \"silu\", "
                 "\"max_position_embeddings\": %d, \"rope_theta\": 10000.0, \"tie_word_embeddings\": true, "
                 "\"torch_dtype\": \"float32\"}",
                 positions);
    file_write(folder, "config.json", json, (size_t)n);
}

static void config_is_enough(void **state) {
    (void)state;
    char folder[PATH_BYTES], args[1024];
    folder_make(folder);
    write_config(folder, 700);
    snprintf(args, sizeof args, "plan %s", folder);
    EXPECT_TOOL(
        args, 0, "llama, 2 layers", "1 rank, ", "f32", "fits", "1024 and more: beyond the model's",
        "  4 --tensor-parallel-size 4: the model's 6 query heads and 2 KV heads do not split so; it runs with 1, 2");
    json_t *plan = tool_json(args, 0);
    assert_int_equal(json_array_size(json_object_get(plan, "contexts")), 3); /* 128 256 512 */
    const json_t *last =
        json_array_get(json_object_get(plan, "what_fits"), json_array_size(json_object_get(plan, "what_fits")) - 1);
    assert_int_equal(json_number(last, "tensor_parallel_size"), 8);
    assert_non_null(strstr(json_string_value(json_object_get(last, "error")), "6 query heads"));
    json_decref(plan);
    snprintf(args, sizeof args, "plan %s --load-format safetensors", folder); /* asked for: then it is read */
    EXPECT_TOOL(args, 1, "tokenizer.json");
    folder_remove(folder);
}

static void more_than_the_machine(void **state) {
    (void)state;
    EXPECT_TOOL("plan Qwen3-32B --dtype f32 --kv-cache-memory-bytes 1000G --max-num-seqs 256", 0, "does not fit, ",
                "GB are missing", "It is more than this machine has", "an engine would not open here");
    EXPECT_TOOL("plan demo --device-memory-bytes 10M", 0, "does not fit, 0.29 GB are missing", "does not fit by 0.57");
    json_t *plan = tool_json("plan demo --device-memory-bytes 10M", 0);
    assert_true(json_is_false(json_object_get(plan, "fits")));
    const json_t *row = json_array_get(json_object_get(plan, "what_fits"), 0);
    assert_true(json_is_false(json_object_get(row, "fits")));
    assert_true(json_number(row, "short_bytes") == json_number(row, "need_bytes") - 9000000);
    assert_int_equal(json_number(row, "largest_num_seqs"), 0);
    json_decref(plan);
}

static void errors_by_name(void **state) {
    (void)state;
    EXPECT_TOOL("plan", 2, "plan needs a model");
    EXPECT_TOOL("plan /nowhere", 1, "/nowhere", "Qwen3-4B"); /* neither a folder nor a known name */
    EXPECT_TOOL("plan demo -tp 3", 2, "--tensor-parallel-size 3", "1, 2, 4 or 8");
    EXPECT_TOOL("plan demo --max-model-len 4096", 2, "--max-model-len 4096", "max_position_embeddings is 2048");
    EXPECT_TOOL("plan demo --kv-cache-memory-bytes 1000", 2, "--kv-cache-memory-bytes 1000", "one page");
    EXPECT_TOOL("plan demo --gpu-memory-utilization 1.5", 2, "--gpu-memory-utilization 1.5");
    EXPECT_TOOL("plan demo --device-memory-bytes 80Q", 2, "--device-memory-bytes 80Q");
    EXPECT_TOOL("plan demo --temp 1", 2, "--temp");
    EXPECT_TOOL("plan --help", 0, "minus", "10^9");
    EXPECT_TOOL("plan demo --device gpu", 2, "--device gpu", "auto, cpu, cuda or cuda:N");
}

/* The library's arithmetic is tests/unit/test_device.c's. */
static void a_gpu_that_is_not_here(void **state) {
    (void)state;
    if (ls_cuda_archs()[0] == '\0') {
        EXPECT_TOOL("plan demo --device cuda --device-memory 24G", 2, "built without CUDA");
        return;
    }
    EXPECT_TOOL("plan Qwen/Qwen3-4B --device cuda --device-memory 24G", 0, "GPU, 1 rank", "pinned",
                "assumed: the GPU is not here", "0.60 GB used by the driver and others", "fits, ");
    EXPECT_TOOL("plan Qwen/Qwen3-4B -tp 2 --device cuda --device-memory 24G", 0, "GPU, 2 ranks", "rank 1", "exchange");
    EXPECT_TOOL("plan Qwen/Qwen3-4B --devices 0,0 --device-memory 24G", 0, "GPU, 2 ranks",
                "Budget of a rank: 10.50 GB");
    EXPECT_TOOL("plan Qwen/Qwen3-4B -tp 2 --devices 0,0,0 --device-memory 24G", 2, "names 3 GPUs for 2 ranks");
    json_t *plan = tool_json("plan Qwen/Qwen3-4B --device cuda --device-memory 24G", 0);
    const json_t *rank = json_array_get(json_object_get(plan, "rank_bytes"), 0);
    assert_string_equal(json_string_value(json_object_get(plan, "device")), "cuda");
    assert_true(json_number(plan, "need_bytes") == json_number(rank, "total")); /* pinned memory is not the GPU's */
    assert_true(json_number(rank, "total") + json_number(plan, "driver_bytes") <= 0.9 * 24e9);
    assert_true(json_number(plan, "shared_bytes.logits") > 0 && json_number(rank, "rope") > 0);
    assert_true(json_is_false(json_object_get(plan, "driver_measured")));
    json_decref(plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_equal_engines),
        cmocka_unit_test(long_contexts),
        cmocka_unit_test(what_fits),
        cmocka_unit_test(budgets),
        cmocka_unit_test(older_headers),
        cmocka_unit_test(golden_text),
        cmocka_unit_test(contexts_grow),
        cmocka_unit_test(config_is_enough),
        cmocka_unit_test(more_than_the_machine),
        cmocka_unit_test(errors_by_name),
        cmocka_unit_test(a_gpu_that_is_not_here),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
