/*
 * What of GPUs can be tested without one: the words of --device, memory plans of ranks on devices, arenas in memory of
 * others, which kernels fit which chip, sizes of graphs, and what is said where there is no driver.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/engine.h"
#ifdef LS_CUDA
#include <dlfcn.h>

#include "backend/cuda/flash.h"
#include "backend/cuda/images.h"
#include "engine/cuda_engine.h"
#endif

static void words_of_device(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool cuda, cpu;
        int ordinal;
    } good[] = {{NULL, true, true, 0},    {"auto", true, true, 0},      {"cpu", false, true, 0},
                {"cuda", true, false, 0}, {"cuda:0", true, false, 0},   {"cuda:12", true, false, 12},
                {"1,0", true, false, 1},  {"cuda:3,3", true, false, 3}, {"7", true, false, 7}};
    static const char *const bad[] = {"",      "gpu",   "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "CPU",
                                      "cudas", "cpu:0", "0,",    ",0",     "0,,1",    "0,x",     "0,1,2,3,4,5,6,7,0",
                                      "1000",  "cuda,1"};
    device_choice choice;
    ls_error err = {0};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(device_choice_read(&choice, good[i].text, &err), LS_OK);
        assert_int_equal(choice.may_be_cuda, good[i].cuda);
        assert_int_equal(choice.may_be_cpu, good[i].cpu);
        assert_int_equal(choice.ordinal, good[i].ordinal);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(device_choice_read(&choice, bad[i], &err), LS_EINVAL);
        assert_non_null(strstr(err.text, "auto, cpu, cuda or cuda:N"));
    }
}

static void borrowed_memory_is_left_alone(void **state) {
    (void)state;
    static _Alignas(64) uint8_t memory[256];
    ls_arena arena;
    ls_error err = {0};
    void *piece;
    memset(memory, 7, sizeof memory);
    arena_init_at(&arena, memory, sizeof memory);
    assert_int_equal(arena_take(&arena, 1, 100, &piece, &err), LS_OK);
    assert_ptr_equal(piece, memory);
    assert_int_equal(arena_take(&arena, 2, 100, &piece, &err), LS_OK);
    assert_ptr_equal(piece, memory + 128);
    assert_int_equal(arena_take(&arena, 2, 1, &piece, &err), LS_EINTERNAL);
    arena_deinit(&arena);
    assert_null(arena.base);
    for (size_t i = 0; i < sizeof memory; i++) {
        assert_int_equal(memory[i], 7); /* neither touched nor unmapped */
    }
}

static ls_model *dummy(void) {
    ls_model_params params = LS_MODEL_PARAMS_INIT;
    ls_model *model = NULL;
    params.model = "Qwen/Qwen3-4B";
    params.load_format = LS_LOAD_DUMMY;
    assert_int_equal(ls_model_open(&params, &model, NULL), LS_OK);
    return model;
}

/* On a device activations are in the run dtype, parts have room for all leaves, and what the host samples with is its. */
static void plans_of_devices(void **state) {
    (void)state;
    ls_model *model = dummy();
    engine_config config;
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_program *program[LS_MAX_RANKS] = {NULL};
    ls_memory_plan cpu, device;
    ls_error err = {0};
    params.threads = 4;
    memset(&config, 0, sizeof config);
    assert_int_equal(engine_config_resolve(&config, &model->spec, &params, &err), LS_OK);
    assert_int_equal(engine_programs_build(program, &model->spec, &config, &err), LS_OK);
    assert_int_equal(memory_plan_make(&cpu, &config, (const ls_program *const *)program, &err), LS_OK);
    config.on_device = true;
    config.workspace_bytes = 1 << 20;
    assert_int_equal(memory_plan_make(&device, &config, (const ls_program *const *)program, &err), LS_OK);

    const ls_spec *spec = &model->spec;
    const size_t m = (size_t)config.m_max, d = (size_t)spec->d_model, v = (size_t)spec->n_vocab;
    const size_t wide = (size_t)(spec->n_heads + 2 * spec->n_kv_heads) * (size_t)spec->d_head;
    const size_t act = (d + (size_t)spec->n_heads * (size_t)spec->d_head + (size_t)spec->d_ffn) * 2;
    assert_int_equal(config.dtype, LS_BF16);
    assert_int_equal(device.rank[0][MEM_WEIGHTS], cpu.rank[0][MEM_WEIGHTS]);
    assert_int_equal(device.rank[0][MEM_KV_CACHE], cpu.rank[0][MEM_KV_CACHE]);
    assert_int_equal(device.rank[0][MEM_ACTIVATIONS], m * (4 * d + 4 * wide + act) + (1 << 20) + (256 - 64));
    assert_int_equal(cpu.rank[0][MEM_ACTIVATIONS], m * (4 * d + 4 * wide + 2 * act));
    assert_int_equal(device.rank[0][MEM_EXCHANGE], 8 * cpu.rank[0][MEM_EXCHANGE]);
    assert_int_equal(device.rank[0][MEM_LOGITS], (size_t)config.n_out_max * v * 4);
    assert_int_equal(device.rank[0][MEM_ROPE], device.host[MEM_ROPE]);
    assert_true(device.rank[0][MEM_STEP] >= step_image_bytes(&config) + result_words(&config) * 4);
    assert_true(device.host[MEM_LOGITS] > device.rank[0][MEM_LOGITS]); /* a copy, and the sampler's scratch */
    program_destroy(&program[0]);
    ls_model_close(&model);
}

/* Without a GPU: an error that says why, or the CPU. */
static void no_gpu_is_told(void **state) {
    (void)state;
#ifdef LS_CUDA
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY);
    if (driver != NULL) {
        skip();
    }
    const char *why = "no NVIDIA driver";
    ls_status expected = LS_ENOTFOUND;
    assert_true(strlen(ls_cuda_archs()) > 0);
#else
    const char *why = "built without CUDA";
    ls_status expected = LS_EUNSUPPORTED;
    assert_string_equal(ls_cuda_archs(), "");
#endif
    ls_model_params params = LS_MODEL_PARAMS_INIT;
    ls_model *model = NULL;
    ls_engine *engine = NULL;
    ls_error err = {0};
    params.model = "demo";
    assert_int_equal(ls_model_open(&params, &model, &err), LS_OK);
    ls_engine_params on_gpu = LS_ENGINE_PARAMS_INIT;
    on_gpu.device = "cuda";
    assert_int_equal(ls_engine_open(model, &on_gpu, &engine, &err), expected);
    assert_non_null(strstr(err.text, why));
    assert_null(engine);
#ifdef LS_CUDA
    on_gpu.plan = "tape";
    assert_int_equal(ls_engine_open(model, &on_gpu, &engine, &err), LS_EINVAL);
    assert_non_null(strstr(err.text, "--plan tape"));
    on_gpu.plan = "persistent";
    on_gpu.tensor_parallel_size = 2;
    for (int i = 0; i < 2; i++) { /* exchanges that are not inside of a kernel */
        const char *by[] = {"host", "nccl"}, *says[] = {"persistent with --exchange host", "with --exchange nccl"};
        on_gpu.exchange = by[i];
        assert_int_equal(ls_engine_open(model, &on_gpu, &engine, &err), LS_EINVAL);
        assert_non_null(strstr(err.text, says[i]));
    }
    on_gpu.exchange = NULL;
    on_gpu.tensor_parallel_size = 1;
    on_gpu.kernels = "generic";
    assert_int_equal(ls_engine_open(model, &on_gpu, &engine, &err), LS_EINVAL);
    assert_non_null(strstr(err.text, "--kernels generic"));
    on_gpu.plan = on_gpu.kernels = NULL;
#endif
    on_gpu.device = "auto";
    assert_int_equal(ls_engine_open(model, &on_gpu, &engine, &err), LS_OK);
    ls_timeline timeline = LS_TIMELINE_INIT;
    assert_int_equal(ls_engine_get_timeline(engine, &timeline, &err), LS_OK);
    assert_string_equal(timeline.device, "CPU");
    assert_true(expected != LS_ENOTFOUND ? timeline.no_gpu[0] == '\0' : strstr(timeline.no_gpu, why) != NULL);
    ls_profile_line line;
    size_t n = 7;
    assert_int_equal(ls_engine_get_profile(engine, &line, 1, &n, &err), LS_OK);
    assert_int_equal(n, 0);
    ls_engine_close(&engine);
    on_gpu.device = "cpu";
    assert_int_equal(ls_engine_open(model, &on_gpu, &engine, &err), LS_OK);
    assert_int_equal(ls_engine_get_timeline(engine, &timeline, &err), LS_OK);
    assert_string_equal(timeline.no_gpu, ""); /* the CPU was asked for */
    ls_engine_close(&engine);
    ls_model_close(&model);
    int n_gpus = 7;
    ls_gpu_info info = LS_GPU_INFO_INIT;
    ls_gpu_speed speed = LS_GPU_SPEED_INIT;
    assert_int_equal(ls_gpu_count(&n_gpus, &err), expected);
    assert_non_null(strstr(err.text, why));
    assert_int_equal(n_gpus, 7);
    assert_int_equal(ls_gpu_get_info(0, &info, &err), expected);
    assert_int_equal(ls_gpu_measure(0, &speed, &err), expected);
    assert_non_null(strstr(err.text, why));
}

#ifdef LS_CUDA
/* A GPU that is not there: what an engine would do with its memory. */
static void plans_for_gpus(void **state) {
    (void)state;
    enum { LEN = 8192, SEQS = 8 };
    const int64_t gpu = 80000000000;
    ls_model *model = dummy();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_plan_report plan = LS_PLAN_REPORT_INIT;
    ls_plan_budget budget = LS_PLAN_BUDGET_INIT;
    ls_plan_fit fit = LS_PLAN_FIT_INIT;
    ls_error err = {0};
    params.device = "cuda";
    params.device_memory_bytes = gpu;
    params.max_model_len_tokens = LEN;
    params.max_num_seqs = SEQS;
    assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_OK);
    assert_true(plan.on_gpu && !plan.driver_measured && plan.driver_bytes == 600000000);
    assert_int_equal(plan.n_pages, SEQS * LEN / LS_PAGE_TOKENS); /* all fit */
    assert_int_equal(plan.max_num_batched_tokens, 2048);         /* more than on CPUs */
    params.max_num_batched_tokens = 512;
    assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_OK);

    /* 36 layers, 8 KV heads of 128, two bytes; the run dtype for activations; all nodes of two slots of sums; attention's
     * partial results and wide.c's parts are less than cuBLASLt's scratch, which lies on a border of 256 bytes, with f32 sums of
     * gate and up */
    const ls_spec *spec = &model->spec;
    const int64_t m = 512, d = spec->d_model, f = spec->d_ffn, wide = (int64_t)(32 + 2 * 8) * 128;
    const int64_t workspace = (256 - 64) + (32 << 20) + 2 * m * f * 4;
    assert_int_equal(plan.rank_bytes[0][LS_MEMORY_KV_CACHE], (int64_t)SEQS * LEN * 36 * 2 * 8 * 128 * 2);
    assert_int_equal(plan.rank_bytes[0][LS_MEMORY_EXCHANGE], 2 * 8 * m * d * 4);
    const int64_t activations = m * (4 * d + 2 * d + 4 * wide + 2 * 32 * 128 + 2 * f) + workspace;
    assert_int_equal(plan.rank_bytes[0][LS_MEMORY_ACTIVATIONS], activations);
    assert_int_equal(plan.rank_bytes[0][LS_MEMORY_ROPE], (int64_t)LEN * 128 * 4);
    assert_int_equal(plan.shared_bytes[LS_MEMORY_ROPE], (int64_t)LEN * 128 * 4);
    assert_true(plan.shared_bytes[LS_MEMORY_LOGITS] > plan.rank_bytes[0][LS_MEMORY_LOGITS]);

    /* The persistent kernel's tables and words, for steps of 1, 2, 4 and 8 rows: at least two of h, qkv and what crosses
     * between FFN's halves, 8 bytes for two elements, one of h */
    params.plan = "persistent";
    assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_OK);
    const int64_t more = plan.rank_bytes[0][LS_MEMORY_ACTIVATIONS] - activations;
    assert_in_range(more, 8 * (1 + 2 + 4 + 8) * (2 * d + wide / 2 + f / 2), 64 << 20);

    /* 256 seats are more than fit: pages fill the budget, less what the driver takes later, to within one */
    params.max_num_seqs = 256;
    assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_OK);
    assert_int_equal(ls_plan_get_gpu_budget(&params, &budget, &err), LS_OK);
    assert_int_equal(budget.budget_bytes, gpu / 10 * 9 - 600000000);
    int64_t used = 0, page = (int64_t)LS_PAGE_TOKENS * plan.kv_bytes_per_token, later = (int64_t)64 << 20;
    for (int kind = 0; kind < LS_MEMORY_KINDS; kind++) {
        used += plan.rank_bytes[0][kind];
    }
    assert_true(used <= budget.budget_bytes - later && used + 2 * page > budget.budget_bytes - later);
    assert_int_equal(ls_plan_get_fit(model, &params, &budget, &fit, &err), LS_OK);
    assert_true(fit.short_bytes > 0 && fit.largest_num_seqs > SEQS && fit.largest_num_seqs < 256);
    params.max_num_seqs = fit.largest_num_seqs;
    assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_OK);
    assert_true(plan.n_pages >= (fit.largest_num_seqs - 1) * LEN / LS_PAGE_TOKENS);

    /* Ranks: each has about its part of the weights, and all fit on their GPU, or on the one that they share. */
    const int64_t weights = plan.rank_bytes[0][LS_MEMORY_WEIGHTS];
    params.max_num_seqs = 256;
    params.plan = NULL;
    for (int shared = 0; shared < 2; shared++) {
        params.device = shared ? "0,0,0,0" : "cuda";
        params.tensor_parallel_size = shared ? 0 : 4;
        assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_OK);
        assert_int_equal(ls_plan_get_gpu_budget(&params, &budget, &err), LS_OK);
        assert_int_equal(budget.budget_bytes, (gpu / 10 * 9 - 600000000) / (shared ? 4 : 1));
        assert_int_equal(plan.n_ranks, 4);
        for (int r = 0; r < 4; r++) {
            used = 0;
            for (int kind = 0; kind < LS_MEMORY_KINDS; kind++) {
                used += plan.rank_bytes[r][kind];
            }
            assert_true(used <= budget.budget_bytes && plan.rank_bytes[r][LS_MEMORY_WEIGHTS] < weights / 4 * 21 / 20 &&
                        plan.rank_bytes[r][LS_MEMORY_EXCHANGE] > plan.rank_bytes[r][LS_MEMORY_ROPE]);
        }
    }
    params.device = "cuda";
    params.tensor_parallel_size = 1;
    params.quantization = LS_QUANTIZATION_W8A8;
    assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_EUNSUPPORTED);
    params.device = "cpu";
    assert_int_equal(ls_plan_get_gpu_budget(&params, &budget, &err), LS_EINVAL);
    assert_non_null(strstr(err.text, "--device cpu"));
    ls_model_close(&model);
}

static void plans_for_exchanges(void **state) {
    (void)state;
    ls_model *model = dummy();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_plan_report plan = LS_PLAN_REPORT_INIT;
    ls_error err = {0};
    params.device_memory_bytes = 80000000000;
    params.max_model_len_tokens = 8192;
    params.max_num_seqs = 256;
    params.max_num_batched_tokens = 512;
    params.device = "0,1";
    params.tensor_parallel_size = 4;
    assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_EINVAL);
    assert_non_null(strstr(err.text, "names 2 GPUs for 4 ranks"));
    params.device = "cuda";
    params.exchange = "rings";
    assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_EINVAL);
    assert_non_null(strstr(err.text, "--exchange rings"));
    params.exchange = "nccl"; /* its own memory is the driver's affair */
    assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_OK);
    params.exchange = "host"; /* boxes are the host's then */
    assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_OK);
    assert_true(plan.shared_bytes[LS_MEMORY_EXCHANGE] > 4 * plan.rank_bytes[0][LS_MEMORY_EXCHANGE]);
    ls_model_close(&model);
}

/* The persistent kernel's words are each rank's own: h twice and nodes of the leaf tree, for steps of 1, 2, 4 and 8 rows; all ranks have
 * room for as many. */
static void plans_for_ranks_in_one_launch(void **state) {
    (void)state;
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_plan_report plan = LS_PLAN_REPORT_INIT;
    ls_error err = {0};
    int64_t of_graphs[4], of_kernel[4];
    ls_model *model = dummy();
    const int64_t d = model->spec.d_model;
    params.device = "cuda";
    params.device_memory_bytes = (int64_t)80 << 30;
    params.max_model_len_tokens = 2048;
    params.max_num_seqs = 8;
    params.tensor_parallel_size = 4;
    for (int persistent = 0; persistent < 2; persistent++) {
        params.plan = persistent ? "persistent" : NULL;
        assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_OK);
        for (int r = 0; r < 4; r++) {
            const int64_t all = plan.rank_bytes[r][LS_MEMORY_ACTIVATIONS];
            of_graphs[r] = persistent ? of_graphs[r] : all;
            of_kernel[r] = all - of_graphs[r];
        }
    }
    for (int r = 0; r < 4; r++) {
        assert_in_range(of_kernel[r], 8 * (1 + 2 + 4 + 8) * (2 + 2 * 8) * d, 64 << 20);
        assert_int_equal(of_kernel[r], of_kernel[0]);
    }
    params.exchange = "host";
    assert_int_equal(ls_plan_make(model, &params, &plan, &err), LS_EINVAL);
    assert_non_null(strstr(err.text, "--plan persistent with --exchange host"));
    ls_model_close(&model);
}

static void kernels_for_chips(void **state) {
    (void)state;
    const cuda_image sm_80 = {.arch = "80"}, sm_89 = {.arch = "89"}, sm_90a = {.arch = "90a"}, sm_120 = {.arch = "120"};
    const cuda_image ptx = {.arch = "80", .is_ptx = true};
    const struct {
        int major, minor;
        const cuda_image *best, *next, *never;
    } chips[] = {{8, 0, &sm_80, &ptx, &sm_89},   {8, 6, &sm_80, &ptx, &sm_89}, {8, 9, &sm_89, &sm_80, &sm_90a},
                 {9, 0, &sm_90a, &ptx, &sm_80},  {10, 3, &ptx, NULL, &sm_90a}, {12, 0, &sm_120, &ptx, &sm_90a},
                 {12, 1, &sm_120, &ptx, &sm_80}, {7, 5, NULL, NULL, &ptx}};
    for (size_t i = 0; i < sizeof chips / sizeof *chips; i++) {
        int best = chips[i].best != NULL ? cuda_image_fit(chips[i].best, chips[i].major, chips[i].minor) : 1;
        int next = chips[i].next != NULL ? cuda_image_fit(chips[i].next, chips[i].major, chips[i].minor) : 0;
        assert_true(best > next);
        assert_true(chips[i].next == NULL || next > 0);
        assert_int_equal(cuda_image_fit(chips[i].never, chips[i].major, chips[i].minor), 0);
    }
    assert_true(n_cuda_images > 0);
    for (int i = 0; i < n_cuda_images; i++) {
        assert_true(cuda_images[i].end - cuda_images[i].data > 100);
        assert_int_equal(*cuda_images[i].end, 0);
        assert_memory_equal(cuda_images[i].data, cuda_images[i].is_ptx ? "//" : "\177ELF",
                            cuda_images[i].is_ptx ? 2 : 4);
    }
}

static void sizes_of_graphs(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int max_seqs, n, last;
    } good[] = {{NULL, 16, 5, 16}, {NULL, 3, 3, 4},   {NULL, 1, 1, 1},      {"none", 16, 0, 0},      {"16", 16, 1, 16},
                {"2,8", 16, 2, 8}, {NULL, 17, 6, 24}, {NULL, 256, 13, 256}, {"16,64,256", 40, 2, 64}};
    static const char *const bad[] = {"", "3", "1,", "2,1", "1,1", "1 2", "33", "512", "1,2,none", "-1", "all"};
    ls_error err = {0};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        cuda_engine cuda = {0};
        assert_int_equal(cuda_graphs_read(&cuda, good[i].text, good[i].max_seqs, &err), LS_OK);
        assert_int_equal(cuda.n_graphs, good[i].n);
        assert_int_equal(cuda.n_graphs > 0 ? cuda.graph_rows[cuda.n_graphs - 1] : 0, good[i].last);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cuda_engine cuda = {0};
        assert_int_equal(cuda_graphs_read(&cuda, bad[i], 16, &err), LS_EINVAL);
        assert_non_null(strstr(err.text, "--graph-sizes"));
    }
}

/* Every (sequence, tile of 128 pairs) once, the most keys first, no more than there are rows. */
static void work_of_attention(void **state) {
    (void)state;
    static const struct { int n_heads, n_kv, window; } heads[] = {{8, 8, 0}, {8, 2, 0}, {14, 2, 100}, {128, 1, 0}};
    ls_step_seq seq[] = {{.n_rows = 1, .n_past = 9000}, {.n_rows = 700}, {.n_rows = 1}, {.n_rows = 33, .n_past = 640}};
    const ls_step step = {.n_seqs = 4, .n_rows = 735, .seq = seq};
    for (size_t h = 0; h < sizeof heads / sizeof *heads; h++) {
        const op_attn a = {heads[h].n_heads, heads[h].n_kv, 64, heads[h].window, 1};
        const int group = a.n_heads_loc / a.n_kv_loc;
        cuda_tile tile[735];
        int wanted = 0, n = flash_tiles(&a, &step, tile);
        bool seen[4][735] = {{false}};
        for (int i = 0; i < 4; i++) {
            wanted += (seq[i].n_rows * group + 127) / 128;
        }
        assert_int_equal(n, wanted);
        assert_int_equal(flash_tiles(&a, &step, NULL), wanted);
        assert_true(n <= step.n_rows);
        for (int i = 0; i < n; i++) {
            assert_true(tile[i].index * 128 < seq[tile[i].seq].n_rows * group);
            assert_false(seen[tile[i].seq][tile[i].index]);
            seen[tile[i].seq][tile[i].index] = true;
            assert_true(tile[i].keys > 0 && (i == 0 || tile[i].keys <= tile[i - 1].keys));
        }
        assert_int_equal(tile[0].seq, heads[h].window > 0 ? tile[0].seq : 0); /* 9001 keys */
        assert_int_equal(tile[0].keys, heads[h].window > 0 ? tile[0].keys : 9001);
    }
}

static void who_runs_attention(void **state) {
    (void)state;
    const cuda_rank hopper = {
        .overlap = true, .facts = {.cc_major = 9}, .bind = {.dtype = LS_BF16, .kv_dtype = LS_BF16}};
    const op_attn usual = {32, 8, 128, 0, 1}, odd_head = {32, 8, 40, 0, 1}, large_group = {129, 1, 64, 0, 1};
    assert_true(flash_serves(&hopper, &usual));
    assert_false(flash_serves(&hopper, &odd_head));
    assert_false(flash_serves(&hopper, &large_group));
    cuda_rank other = hopper;
    other.facts.cc_major = 10;
    assert_false(flash_serves(&other, &usual));
    other = hopper;
    other.overlap = false; /* kernels that the driver compiled */
    assert_false(flash_serves(&other, &usual));
    other = hopper;
    other.bind.kv_dtype = LS_F16;
    assert_false(flash_serves(&other, &usual));
    other.bind.dtype = other.bind.kv_dtype = LS_F32;
    assert_false(flash_serves(&other, &usual));
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_of_device),
        cmocka_unit_test(borrowed_memory_is_left_alone),
        cmocka_unit_test(plans_of_devices),
        cmocka_unit_test(no_gpu_is_told),
#ifdef LS_CUDA
        cmocka_unit_test(kernels_for_chips),
        cmocka_unit_test(sizes_of_graphs),
        cmocka_unit_test(work_of_attention),
        cmocka_unit_test(who_runs_attention),
        cmocka_unit_test(plans_for_gpus),
        cmocka_unit_test(plans_for_exchanges),
        cmocka_unit_test(plans_for_ranks_in_one_launch),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
