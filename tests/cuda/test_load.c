/*
 * Weights on a GPU (LS_DEVICE=cuda, `make gpu-check`): every byte and every scale in the device's memory is what the CPU's
 * engine holds, for checkpoints of each dtype and dummy weights, in each run dtype and in int8; what the CPU refuses is
 * refused here, with the same words; progress rises to the end; the plan's bytes are the arenas'.
 */
#include "../e2e/e2e.h"

#include "engine/engine.h"

static const ls_dtype DTYPES[] = {LS_F32, LS_BF16, LS_F16};

/* An engine on a GPU keeps the driver's context alive, which takes the longest of opening the others. */
static ls_engine *keep;

static ls_engine *open_with(ls_model *model, const char *device, ls_dtype dtype, bool int8) {
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.device = device;
    params.dtype = dtype;
    params.quantization = int8 ? LS_QUANTIZATION_W8A16 : LS_QUANTIZATION_NONE;
    params.graph_sizes = "none";
    params.max_model_len_tokens = 64;
    params.max_num_seqs = 1;
    return engine_open(model, &params);
}

static void assert_same_bytes(const ls_engine *gpu, const void *there, const void *here, size_t bytes,
                              const weight_slot *slot, const char *what) {
    uint8_t *copy = malloc(bytes + 1);
    ls_error err;
    assert_non_null(copy);
    ASSERT_OK(gpu->backend->copy_out(gpu, there, copy, bytes, &err), &err);
    for (size_t i = 0; i < bytes; i++) {
        if (copy[i] != ((const uint8_t *)here)[i]) {
            fail_msg("%s: byte %zu of its %s (%s) is %02x, on the CPU %02x", slot->name, i, what,
                     ls_dtype_name(slot->format), copy[i], ((const uint8_t *)here)[i]);
        }
    }
    free(copy);
}

static int64_t compare_weights(ls_model *model, ls_dtype dtype, bool int8) {
    ls_engine *gpu = open_with(model, "cuda", dtype, int8), *cpu = open_with(model, "cpu", dtype, int8);
    const ls_program *program = gpu->program[0];
    int64_t n_bytes = 0;
    assert_int_equal(program->n_weights, cpu->program[0]->n_weights);
    for (int i = 0; i < program->n_weights; i++) {
        const weight_slot *slot = &program->weight[i];
        const ls_weight *there = &gpu->rank[0].weight[i], *here = &cpu->rank[0].weight[i];
        size_t scale_bytes = (size_t)slot_scale_bytes(slot), data_bytes = (size_t)slot_bytes(slot) - scale_bytes;
        assert_same_bytes(gpu, there->data, here->data, data_bytes, slot, "values");
        if (scale_bytes > 0) {
            assert_same_bytes(gpu, there->scale, here->scale, scale_bytes, slot, "scales");
        }
        n_bytes += slot_bytes(slot);
    }
    ls_memory_plan plan;
    ls_error err;
    ASSERT_OK(memory_plan_make(&plan, &gpu->config, (const ls_program *const *)gpu->program, &err), &err);
    for (int tag = 0; tag < MEM_TAGS; tag++) {
        assert_int_equal(plan.rank[0][tag], gpu->rank_arena[0].by_tag[tag]);
        assert_int_equal(plan.host[tag], gpu->host_arena.by_tag[tag]);
    }
    ls_engine_close(&gpu);
    ls_engine_close(&cpu);
    return n_bytes;
}

static void compare_all_formats(ls_model *model, const char *name) {
    int64_t n_bytes = 0;
    for (size_t d = 0; d < COUNT(DTYPES); d++) {
        n_bytes += compare_weights(model, DTYPES[d], false);
        n_bytes += compare_weights(model, DTYPES[d], true);
    }
    print_message("%-20s %lld bytes are the CPU's\n", name, (long long)n_bytes);
}

static void weights_are_the_cpus(void **state) {
    (void)state;
    static const char *const names[] = {"ckpt_f32", "ckpt_bf16_sharded", "ckpt_f16", "qwen2_older", "qwen3_gqa4_d80"};
    golden_list list;
    golden_open(&list);
    for (size_t i = 0; i < COUNT(names); i++) {
        size_t k = 0;
        while (k < list.n && strcmp(list.item[k].name, names[i]) != 0) {
            k++;
        }
        assert_true(k < list.n);
        ls_model *model = golden_model(&list.item[k]);
        compare_all_formats(model, names[i]);
        ls_model_close(&model);
    }
    golden_close(&list);
    ls_model *demo = demo_model();
    compare_all_formats(demo, "demo");
    ls_model_close(&demo);
}

/* The last tensor of a file, its last element: NaN. */
static void break_file(const golden_case *c, const char *file) {
    size_t n;
    uint8_t *bytes = file_read(c->folder, file, &n);
    memset(bytes + n - 2, 0xff, 2);
    file_write(c->folder, file, bytes, n);
    free(bytes);
}

static void bad_weights_are_refused_in_the_same_words(void **state) {
    (void)state;
    golden_list list;
    golden_open(&list);
    int n_tried = 0;
    for (size_t i = 0; i < list.n; i++) {
        const golden_case *c = &list.item[i];
        if (strcmp(c->name, "ckpt_f16") != 0 && strcmp(c->name, "ckpt_f32") != 0) {
            continue;
        }
        break_file(c, "model.safetensors");
        ls_model *model = golden_model(c);
        for (size_t d = 0; d < 2 * COUNT(DTYPES); d++) {
            ls_error on_cpu = {0}, on_gpu = {0};
            for (int run = 0; run < 2; run++) {
                ls_engine *engine = NULL;
                ls_engine_params params = LS_ENGINE_PARAMS_INIT;
                params.device = run == 0 ? "cpu" : "cuda";
                params.dtype = DTYPES[d / 2];
                params.quantization = d % 2 == 1 ? LS_QUANTIZATION_W8A16 : LS_QUANTIZATION_NONE;
                ASSERT_FAILS(ls_engine_open(model, &params, &engine, run == 0 ? &on_cpu : &on_gpu),
                             run == 0 ? &on_cpu : &on_gpu, LS_ENUMERIC, "safetensors", "element");
                assert_null(engine);
            }
            assert_string_equal(on_cpu.text, on_gpu.text);
            n_tried++;
        }
        ls_model_close(&model);
    }
    assert_int_equal(n_tried, 12);
    golden_close(&list);
}

typedef struct seen {
    int n_calls;
    int64_t bytes, total_bytes;
} seen;

static void note_progress(void *user, const ls_load_progress *progress) {
    seen *s = user;
    assert_true(progress->bytes >= s->bytes && progress->bytes <= progress->total_bytes);
    *s = (seen){s->n_calls + 1, progress->bytes, progress->total_bytes};
}

static void progress_rises_to_the_end(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    seen s = {0};
    params.progress_fn = note_progress;
    params.progress_user = &s;
    ls_engine *engine = engine_open(model, &params);
    ls_timeline line = LS_TIMELINE_INIT;
    assert_int_equal(ls_engine_get_timeline(engine, &line, NULL), LS_OK);
    assert_true(s.n_calls >= 1 && s.bytes == s.total_bytes && s.bytes == line.load_bytes);
    assert_true(line.driver_us > 0 && line.context_us > 0 && line.weights_us <= line.shard_us);
    ls_engine_close(&engine);
    ls_model_close(&model);
}

static int open_keeper(void **state) {
    *state = demo_model();
    keep = open_with(*state, "cuda", LS_BF16, false);
    return 0;
}

static int close_keeper(void **state) {
    ls_engine_close(&keep);
    ls_model_close((ls_model **)state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_the_cpus),
        cmocka_unit_test(bad_weights_are_refused_in_the_same_words),
        cmocka_unit_test(progress_rises_to_the_end),
    };
    return cmocka_run_group_tests(tests, open_keeper, close_keeper);
}
