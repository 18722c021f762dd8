/*
 * Several ranks on GPUs (LS_DEVICE=cuda, `make gpu-check`): 2, 4 and 8 of them that share the first GPU, and one on each of
 * two GPUs where there are two.
 *
 *   decode      tokens and logits are those of one rank, bit for bit: any number of rows, greedy, drawn, filtered, by graphs
 *               and launch by launch, through the host's memory, and again; in one launch a step, where the chip can
 *   prefill     within the tolerance of one rank's
 *   plans       equal engines, for every rank
 *   refusals    by name
 *   pairs       of GPUs: patterns, words, exchanges both ways; who is no pair
 *   nccl        the bits of one rank, and larger steps within tolerance; its errors are told, within 5 s
 *   a rank that stays away is named by one that waits for it, within 5 s, and closing the engine does not wait for it: by
 *               graphs and in one launch
 */
#include <math.h>

#include "../e2e/edit.h"
#include "backend/cuda/pairs.h"
#include "base/clock.h"
#include "engine/cuda_engine.h"

static const struct {
    ls_dtype dtype;
    double tolerance;
} PRECISION[] = {{LS_F32, 1e-4}, {LS_BF16, 2e-2}, {LS_F16, 2e-3}};

enum { ROWS = 16 };
enum { LOOKED_AT, GREEDY, DRAWN, FILTERED, WAYS };

static const char STORY[] =
    "Once upon a time, there was a little dog named Max who lived near the old mill and one day he "
    "saw a big red ball that rolled down the hill. He ran and ran until";

/* Any weights will do. */
static ls_model *shapes_of_demo(void) {
    return model_open("demo", LS_LOAD_DUMMY);
}

static ls_engine *open_on(ls_model *model, const ls_engine_params *params) {
    ls_engine *engine = NULL;
    ls_error err = {0};
    ASSERT_OK(ls_engine_open(model, params, &engine, &err), &err);
    return engine;
}

static int n_gpus(void) {
    int n = 0;
    assert_int_equal(ls_gpu_count(&n, NULL), LS_OK);
    return n;
}

/* One-token prompts, so that decode's kernels run everything, of texts of different length. */
static void fill(job jobs[ROWS], int32_t id[ROWS], int how) {
    for (int i = 0; i < ROWS; i++) {
        id[i] = 300 + 17 * i;
        jobs[i] = (job){.id = &id[i],
                        .n_id = 1,
                        .max_tokens = 4 + 2 * i,
                        .temperature = how == DRAWN || how == FILTERED ? 0.9 : 0,
                        .top_k = how == FILTERED ? 30 : 0,
                        .no_hash = how == GREEDY || how == DRAWN, /* drawn on the GPUs */
                        .seed = (uint64_t)i};
    }
}

/* graphs: sizes, or that there is one launch a step. */
static const char ONE_LAUNCH[] = "persistent";

static void run_on(ls_model *model, ls_dtype dtype, const char *devices, const char *graphs, const char *exchange,
                   job jobs[ROWS]) {
    const bool one_launch = graphs == ONE_LAUNCH;
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.dtype = dtype;
    params.device = devices;
    params.graph_sizes = one_launch ? NULL : graphs;
    params.plan = one_launch ? ONE_LAUNCH : NULL;
    params.exchange = exchange;
    params.max_model_len_tokens = 256;
    ls_engine *engine = open_on(model, &params);
    assert_string_equal(engine->decode_plan, one_launch ? ONE_LAUNCH : "graph");
    jobs_run(engine, jobs, ROWS);
    ls_engine_close(&engine);
}

/* Whether this GPU and LS_KERNELS let the persistent kernel run. */
static bool has_one_launch(ls_model *model) {
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    const char *kernels = getenv("LS_KERNELS");
    params.device = "0";
    ls_engine *engine = open_on(model, &params);
    const cuda_rank *rank = &engine_cuda(engine)->rank;
    const bool can =
        rank->facts.cc_major >= 9 && rank->jit_us == 0 && (kernels == NULL || strcmp(kernels, "auto") == 0);
    ls_engine_close(&engine);
    return can;
}

static void decode_with(ls_dtype dtype) {
    static const struct {
        const char *devices, *graphs, *exchange;
        int n_gpus;
    } runs[] = {{"0,0", NULL, NULL, 1},
                {"0,0,0,0", NULL, NULL, 1},
                {"0,0,0,0,0,0,0,0", NULL, NULL, 1},
                {"0,0", "none", NULL, 1},
                {"0,0", NULL, "host", 1},
                {"0,1", NULL, NULL, 2},
                {"1,0", "none", NULL, 2},
                {"0,1", NULL, "host", 2},
                {"0,1,0,1", NULL, NULL, 2},
                {"0,1", NULL, NULL, 2},
                {"0,0", ONE_LAUNCH, NULL, 1},
                {"0,0,0,0", ONE_LAUNCH, NULL, 1},
                {"0,0,0,0,0,0,0,0", ONE_LAUNCH, NULL, 1},
                {"0,1", ONE_LAUNCH, NULL, 2},
                {"1,0,1,0", ONE_LAUNCH, NULL, 2}};
    ls_model *model = shapes_of_demo();
    const bool one_launch = has_one_launch(model);
    for (int how = 0; how < WAYS; how++) {
        int32_t id[ROWS];
        job alone[ROWS], jobs[ROWS];
        fill(alone, id, how);
        run_on(model, dtype, "0", NULL, NULL, alone);
        for (size_t v = 0; v < COUNT(runs); v++) {
            if (runs[v].n_gpus > n_gpus() || (how > 0 && dtype != LS_BF16 && v > 2 && runs[v].graphs != ONE_LAUNCH) ||
                (runs[v].graphs == ONE_LAUNCH && !one_launch)) {
                continue;
            }
            fill(jobs, id, how);
            run_on(model, dtype, runs[v].devices, runs[v].graphs, runs[v].exchange, jobs);
            for (int i = 0; i < ROWS; i++) {
                char what[128];
                snprintf(what, sizeof what, "%s, devices %s, graphs %s, exchange %s, way %d, prompt %d",
                         ls_dtype_name(dtype), runs[v].devices, runs[v].graphs != NULL ? runs[v].graphs : "all",
                         runs[v].exchange != NULL ? runs[v].exchange : "auto", how, i);
                assert_same_answer(&alone[i], &jobs[i], what);
            }
            jobs_clear(jobs, ROWS);
        }
        jobs_clear(alone, ROWS);
    }
    ls_model_close(&model);
}

static void decode_bits_in_bf16(void **state) {
    (void)state;
    decode_with(LS_BF16);
}

static void decode_bits_in_f16(void **state) {
    (void)state;
    decode_with(LS_F16);
}

static void decode_bits_in_f32(void **state) {
    (void)state;
    decode_with(LS_F32);
}

static void prefill_agrees(void **state) {
    (void)state;
    static const char *const devices[] = {"0", "0,0", "0,0,0,0", "0,1"};
    ls_model_info info = LS_MODEL_INFO_INIT;
    ls_model *model = shapes_of_demo();
    assert_int_equal(ls_model_get_info(model, &info, NULL), LS_OK);
    for (size_t k = 0; k < COUNT(PRECISION); k++) {
        job told[COUNT(devices)];
        for (size_t v = 0; v < COUNT(devices) - (n_gpus() < 2); v++) {
            ls_engine_params params = LS_ENGINE_PARAMS_INIT;
            params.dtype = PRECISION[k].dtype;
            params.device = devices[v];
            params.max_model_len_tokens = 256;
            ls_engine *engine = open_on(model, &params);
            told[v] = (job){.text = STORY,
                            .max_tokens = 1,
                            .prompt_logits = true,
                            .n_rows = 128,
                            .logits = calloc((size_t)128 * (size_t)info.n_vocab, sizeof(float))};
            assert_non_null(told[v].logits);
            jobs_run(engine, &told[v], 1);
            ls_engine_close(&engine);
            double worst = 0;
            for (int pos = 0; pos < told[0].n_prompt; pos++) {
                const size_t at = (size_t)pos * (size_t)info.n_vocab;
                worst = fmax(worst, row_error(told[v].logits + at, told[0].logits + at, info.n_vocab));
            }
            print_message("%-4s devices %s: worst of %d prompt rows %.1e\n", ls_dtype_name(params.dtype), devices[v],
                          told[0].n_prompt, worst);
            assert_true(told[0].n_prompt > 16 && worst <= 2 * PRECISION[k].tolerance);
        }
        for (size_t v = 0; v < COUNT(devices) - (n_gpus() < 2); v++) {
            free(told[v].logits);
            jobs_clear(&told[v], 1);
        }
    }
    ls_model_close(&model);
}

static void plans_equal_engines_of_ranks(void **state) {
    (void)state;
    ls_model *model = shapes_of_demo();
    const int n = has_one_launch(model) ? 3 : 2;
    for (int way = 0; way < n; way++) {
        ls_engine_params params = LS_ENGINE_PARAMS_INIT;
        ls_plan_report plan = LS_PLAN_REPORT_INIT;
        ls_error err = {0};
        params.device = "0,0,0,0";
        params.exchange = way == 1 ? "host" : "auto";
        params.plan = way == 2 ? ONE_LAUNCH : NULL;
        params.max_num_seqs = 5;
        params.kv_cache_memory_bytes = 8 << 20;
        ASSERT_OK(ls_plan_make(model, &params, &plan, &err), &err);
        ls_engine *engine = open_on(model, &params);
        assert_int_equal(plan.n_ranks, 4);
        for (int tag = 0; tag < MEM_TAGS; tag++) {
            for (int r = 0; r < 4; r++) {
                assert_int_equal(plan.rank_bytes[r][tag], engine->rank_arena[r].by_tag[tag]);
            }
            assert_int_equal(plan.shared_bytes[tag], engine->host_arena.by_tag[tag]);
        }
        ls_engine_close(&engine);
    }
    ls_model_close(&model);
}

static void what_cannot_be_is_refused(void **state) {
    (void)state;
    ls_model *model = shapes_of_demo();
    ls_engine *engine = NULL;
    ls_error err = {0};
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.device = "0,0";
    params.tensor_parallel_size = 4;
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_EINVAL, "names 2 GPUs for 4 ranks");
    params.device = "0,0,0";
    params.tensor_parallel_size = 0;
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_EINVAL, "must be 1, 2, 4 or 8");
    params.device = "0,99";
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_ENOTFOUND, "no GPU 99");
    params.device = "0,0";
    params.exchange = "nccl";
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_EUNSUPPORTED, "--exchange nccl",
                 "ranks 0 and 1 share GPU 0", "use fused");
    params.device = "cpu";
    params.tensor_parallel_size = 2;
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_EUNSUPPORTED, "--exchange nccl",
                 "run on the CPU");
    params.device = "0,0";
    params.tensor_parallel_size = 0;
    params.plan = "persistent";
    params.exchange = "host";
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_EINVAL, "--plan persistent",
                 "--exchange host");
    params.plan = NULL;
    params.exchange = "rings";
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_EINVAL, "--exchange rings");
    params.exchange = NULL;
    ls_verify_params verify = LS_VERIFY_PARAMS_INIT;
    ls_verify_report report = {.struct_size = sizeof report};
    params.tensor_parallel_size = 0;
    verify.tested = verify.reference = &params;
    ASSERT_FAILS(ls_verify(model, &verify, &report, &err), &err, LS_EUNSUPPORTED,
                 "verify: the tested engine has 2 ranks");
    params.device = "cuda";
    params.tensor_parallel_size = 8;
    if (n_gpus() < 8) {
        ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_ENOTFOUND, "--tensor-parallel-size 8",
                     "--devices 0,0,0,0,0,0,0,0");
    }
    assert_null(engine);
    ls_model_close(&model);
}

static bool has_nccl(void) {
    cuda_nccl *nccl = NULL;
    const bool has = nccl_open(&nccl, &(nccl_members){.count = 1}, NULL) == LS_OK;
    nccl_close(&nccl);
    return has;
}

/* As bench exchange and bench limits do. */
static void exchanges_are_measured(void **state) {
    (void)state;
    ls_gpu_exchange list[] = {{.bytes = 64}, {.bytes = 10240}};
    ls_gpu_exchanges all = LS_GPU_EXCHANGES_INIT;
    ls_error err = {0};
    all.list = list;
    all.n = 2;
    ASSERT_FAILS(ls_gpu_measure_exchanges(0, 0, &all, &err), &err, LS_EINVAL, "GPUs 0 and 0 are no pair");
    if (n_gpus() < 2) {
        skip();
    }
    ASSERT_OK(ls_gpu_measure_exchanges(0, 1, &all, &err), &err);
    for (int i = 0; i < 2; i++) {
        print_message("%d bytes: fused %.1f us, NCCL %.1f us, host %.1f us\n", list[i].bytes, list[i].fused_us,
                      list[i].nccl_us, list[i].host_us);
        assert_int_equal(list[i].fused_us > 0, all.no_fused[0] == '\0');
        assert_int_equal(list[i].nccl_us > 0, has_nccl());
        assert_int_equal(list[i].nccl_us > 0, all.no_nccl[0] == '\0');
        assert_true(list[i].host_us > 0);
    }
    ls_gpu_pair link = LS_GPU_PAIR_INIT;
    link.link_only = 1;
    ASSERT_OK(ls_gpu_measure_pair(0, 1, &link, &err), &err);
    assert_true(link.there.best > 0 && link.back.best > 0 && link.host_us[0] == 0 && link.exchange_bytes[0] == 0);
    list[1].bytes = 100;
    ASSERT_FAILS(ls_gpu_measure_exchanges(0, 1, &all, &err), &err, LS_EINVAL, "an exchange of 100 bytes between GPUs");
}

/* Exchanges of 1 row by words and of 20 by their owners. */
static void pairs_are_measured(void **state) {
    (void)state;
    ls_gpu_pair found = LS_GPU_PAIR_INIT;
    ls_error err = {0};
    ASSERT_FAILS(ls_gpu_measure_pair(0, 0, &found, &err), &err, LS_EINVAL, "GPUs 0 and 0 are no pair");
    ASSERT_FAILS(ls_gpu_measure_pair(0, 99, &found, &err), &err, LS_ENOTFOUND, "no GPU 99");
    if (n_gpus() < 2) {
        return;
    }
    cuda_driver *driver = NULL;
    cuda_rank rank[2];
    cuda_pair pair;
    ls_error why = {0};
    bool can = false;
    ASSERT_OK(cuda_driver_open(&driver, &err), &err);
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(cuda_rank_open(&rank[i], driver, i, false, &err), &err);
    }
    ASSERT_OK(cuda_pair_open(&pair, &rank[0], &rank[1], &err), &err);
    ASSERT_OK(cuda_pair_enable(&pair, &can, &why, &err), &err);
    ASSERT_OK(cuda_pair_patterns(&pair, can, &err), &err);
    const bool joined = has_nccl();
    if (joined) {
        ASSERT_OK(cuda_pair_join(&pair, &err), &err);
    }
    for (int bytes = 4096; bytes <= 20 * 4096; bytes *= 20) {
        double us = 0, host_us = 0, word_us = 0, nccl_us = 0;
        ASSERT_OK(cuda_pair_exchange(&pair, bytes, PAIR_HOST, &host_us, &err), &err);
        if (can) {
            ASSERT_OK(cuda_pair_ping(&pair, &word_us, &err), &err);
            ASSERT_OK(cuda_pair_exchange(&pair, bytes, PAIR_FUSED, &us, &err), &err);
        }
        if (joined) {
            ASSERT_OK(cuda_pair_exchange(&pair, bytes, PAIR_NCCL, &nccl_us, &err), &err);
        }
        print_message("%d bytes: a word %.2f us, exchange %.1f us, by NCCL %.1f us, by the host %.1f us\n", bytes,
                      word_us, us, nccl_us, host_us);
        assert_true(host_us > 0 && can == (us > 0) && joined == (nccl_us > 0));
    }
    cuda_pair_close(&pair);
    for (int i = 0; i < 2; i++) {
        cuda_rank_close(&rank[i]);
    }
    cuda_driver_close(&driver);
}

/* Steps of up to 16 rows: the bits of one rank, by graphs and launch by launch. Longer prompts: within tolerance. */
static void nccl_agrees(void **state) {
    (void)state;
    static const char *const graphs[] = {NULL, "none"};
    if (n_gpus() < 2 || !has_nccl()) {
        skip();
    }
    ls_model *model = shapes_of_demo();
    ls_model_info info = LS_MODEL_INFO_INIT;
    assert_int_equal(ls_model_get_info(model, &info, NULL), LS_OK);
    for (int i = 0; i < 5; i++) {
        const bool is_long = i == 4; /* larger steps */
        const int n_ranks = n_gpus() >= 4 && i >= 2 ? 4 : i < 2 || is_long ? 2 : 0;
        const ls_dtype dtype = i % 2 == 0 ? LS_F32 : LS_BF16;
        job told[2];
        for (int v = 0; v < 2 && n_ranks > 0; v++) {
            ls_engine_params params = LS_ENGINE_PARAMS_INIT;
            params.dtype = dtype;
            params.device = v == 0 ? "0" : n_ranks == 2 ? "0,1" : "0,1,2,3";
            params.exchange = v == 0 ? NULL : "nccl";
            params.graph_sizes = graphs[i % 2];
            params.max_model_len_tokens = 64;
            params.max_num_seqs = 1;
            ls_engine *engine = open_on(model, &params);
            told[v] = (job){.text = is_long ? STORY : "Once",
                            .max_tokens = 3,
                            .prompt_logits = true,
                            .n_rows = 64,
                            .logits = calloc((size_t)64 * (size_t)info.n_vocab, sizeof(float))};
            assert_non_null(told[v].logits);
            jobs_run(engine, &told[v], 1);
            ls_engine_close(&engine);
        }
        if (n_ranks > 0 && !is_long) {
            assert_same_answer(&told[0], &told[1], "ranks by nccl");
        }
        double worst = 0;
        for (int pos = 0; n_ranks > 0 && pos < told[0].n_prompt; pos++) {
            const size_t at = (size_t)pos * (size_t)info.n_vocab;
            worst = fmax(worst, row_error(told[1].logits + at, told[0].logits + at, info.n_vocab));
        }
        print_message("%d ranks by nccl, %s, %d tokens: %.1e\n", n_ranks, ls_dtype_name(dtype),
                      n_ranks > 0 ? told[0].n_prompt : 0, worst);
        assert_true(!is_long || told[0].n_prompt > 16);
        assert_true(worst <= (dtype == LS_F32 ? 1e-4 : 2e-2));
        for (int v = 0; v < 2 && n_ranks > 0; v++) {
            free(told[v].logits);
            jobs_clear(&told[v], 1);
        }
    }
    ls_model_close(&model);
}

/* LS_EMULATE_NCCL_FAILS (tests/cuda/driver): a rank's sum never ends, and its communicator tells why. */
static void an_error_of_nccl_is_told(void **state) {
    (void)state;
    if (n_gpus() < 2 || getenv("LS_EMULATE_NCCL_FAILS") == NULL) {
        skip();
    }
    ls_model *model = shapes_of_demo();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_error err = {0};
    params.device = "0,1";
    params.exchange = "nccl";
    params.max_model_len_tokens = 64;
    params.max_num_seqs = 1;
    ls_engine *engine = open_on(model, &params);
    ls_request_params ask = LS_REQUEST_PARAMS_INIT;
    ls_request *request = NULL;
    ask.prompt = "A";
    ask.prompt_bytes = 1;
    ask.max_tokens = 4;
    ASSERT_OK(ls_request_submit(engine, &ask, &request, &err), &err);
    const int64_t begin = clock_ns();
    ls_status st = ls_engine_step(engine, &err);
    const double seconds = (double)(clock_ns() - begin) / 1e9;
    print_message("after %.1f s: %s\n", seconds, err.text);
    assert_int_equal(st, LS_EABORTED);
    assert_non_null(strstr(err.text, "rank 1 (device 1): NCCL: a step: "));
    assert_true(seconds < 5);
    ls_engine_close(&engine);
    ls_model_close(&model);
}

/* The second rank's kernels are not launched: whoever needs its sums waits in vain. */
static void absent_rank(ls_model *model, const char *plan) {
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_error err = {0};
    params.device = "0,0";
    params.graph_sizes = "none";
    params.plan = plan;
    ls_engine *engine = open_on(model, &params);
    ls_request_params ask = LS_REQUEST_PARAMS_INIT;
    ls_request *request = NULL;
    ask.prompt = "A";
    ask.prompt_bytes = 1;
    ask.max_tokens = 4;
    ASSERT_OK(ls_request_submit(engine, &ask, &request, &err), &err);
    engine_cuda(engine)->n_here = 1;
    const int64_t begin = clock_ns();
    ls_status st = ls_engine_step(engine, &err);
    const double seconds = (double)(clock_ns() - begin) / 1e9;
    print_message("after %.1f s: %s\n", seconds, err.text);
    assert_int_equal(st, LS_EABORTED);
    assert_non_null(strstr(err.text, "rank 0 waited"));
    assert_non_null(strstr(err.text, "in op exchange"));
    assert_non_null(strstr(err.text, "for rank 1"));
    assert_true(seconds < 5);
    engine_cuda(engine)->n_here = 2;
    ls_engine_close(&engine);
}

static void an_absent_rank_is_named(void **state) {
    (void)state;
    ls_model *model = shapes_of_demo();
    absent_rank(model, NULL);
    ls_model_close(&model);
}

static void an_absent_rank_is_named_in_one_launch(void **state) {
    (void)state;
    ls_model *model = shapes_of_demo();
    if (!has_one_launch(model)) {
        ls_model_close(&model);
        skip();
    }
    absent_rank(model, ONE_LAUNCH);
    ls_model_close(&model);
}

/* One test, or those that a pattern names: an argument. */
int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_bits_in_bf16),
        cmocka_unit_test(decode_bits_in_f16),
        cmocka_unit_test(decode_bits_in_f32),
        cmocka_unit_test(prefill_agrees),
        cmocka_unit_test(plans_equal_engines_of_ranks),
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(pairs_are_measured),
        cmocka_unit_test(exchanges_are_measured),
        cmocka_unit_test(an_absent_rank_is_named),
        cmocka_unit_test(an_absent_rank_is_named_in_one_launch),
        cmocka_unit_test(nccl_agrees),
        cmocka_unit_test(an_error_of_nccl_is_told),
    };
    cmocka_set_test_filter(argc > 1 ? argv[1] : NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
