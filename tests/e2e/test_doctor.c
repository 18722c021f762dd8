/*
 * Doctor: what it says is there and makes sense, a broken model is a problem that names the file, and the measurements are
 * of this machine: more than nothing, less than no processor does.
 */
#include <math.h>
#include <unistd.h>

#include "tool.h"

#include "backend/cpu/measure.h"

/* ---- The library ---- */

static void machine_info(void **state) {
    (void)state;
    ls_machine_info info = LS_MACHINE_INFO_INIT;
    ls_error err = {0};
    ASSERT_OK(ls_machine_get_info(&info, &err), &err);
    assert_non_null(strstr(info.os, "Linux"));
    assert_true(strlen(info.compiler) > 4);
    assert_int_equal(strcmp(info.sanitizer, "none") != 0, getenv("LS_SAN") != NULL && getenv("LS_SAN")[0] != '\0');
    assert_string_equal(info.isas + strlen(info.isas) - 3, "ref");
    assert_int_equal(strstr(info.isas, "avx2") != NULL, cpu_isa_find("avx2") != NULL);
    assert_true(cpu_isa_find("avx2") == NULL || (strstr(info.features, "avx2") && strstr(info.features, "fma")));
    assert_int_equal(strncmp(info.isas, cpu_isa_best()->name, strlen(cpu_isa_best()->name)), 0);
    assert_int_equal(info.n_allowed_threads, core_count());
    assert_true(info.n_cores == -1 || (info.n_cores >= 1 && info.n_hardware_threads >= info.n_cores));
    assert_int_equal(info.memory_bytes / (1 << 20),
                     (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE) / (1 << 20));
    assert_true(info.available_memory_bytes > 0 && info.available_memory_bytes <= info.memory_bytes);
    assert_true(info.max_open_files >= 3);
    assert_int_equal(info.n_libraries, 7);
    for (int i = 0; i < info.n_libraries; i++) {
        assert_true(strlen(info.library[i].name) > 3);
        assert_non_null(strpbrk(info.library[i].version, "0123456789"));
    }
    info.struct_size = 0;
    ASSERT_FAILS(ls_machine_get_info(&info, &err), &err, LS_EINVAL, "ls_machine_info");
}

static void machine_speed_refuses(void **state) {
    (void)state;
    ls_machine_speed speed = LS_MACHINE_SPEED_INIT;
    ls_error err = {0};
    ASSERT_FAILS(ls_machine_measure(0, "mmx", &speed, &err), &err, LS_EINVAL, "--cpu-isa mmx");
    ASSERT_FAILS(ls_machine_measure(-1, NULL, &speed, &err), &err, LS_EINVAL, "--threads -1");
    speed.struct_size = 0;
    ASSERT_FAILS(ls_machine_measure(1, NULL, &speed, &err), &err, LS_EINVAL, "ls_machine_speed");
}

/* The chains really are multiply-adds of the width they claim: they arrive where x = x / 2 + 1 / 4 goes, 0.5 each. */
static void multiply_adds(void **state) {
    (void)state;
    static const struct {
        const char *isa;
        int flops;
    } loops[] = {{"ref", 24}, {"avx2", 192}, {"avx512", 384}};
    for (size_t i = 0; i < COUNT(loops); i++) {
        const cpu_isa *isa = cpu_isa_find(loops[i].isa);
        float sink = 0.0F;
        if (isa == NULL) {
            continue;
        }
        assert_int_equal(cpu_multiply_add(isa, 0, &sink), loops[i].flops);
        assert_true(sink == 78.0F); /* 12 chains that start at 1, 2, ... 12 */
        cpu_multiply_add(isa, 1, &sink);
        assert_true(sink == 42.0F);
        cpu_multiply_add(isa, 100, &sink);
        assert_true(sink == 6.0F);
    }
}

/* ---- The command ---- */

static void assert_rates(const json_t *speed, const char *name, double most) {
    static const char *const pairs[][2] = {{"one_best", "one_median"}, {"all_best", "all_median"}};
    for (size_t i = 0; i < COUNT(pairs); i++) {
        char best[64], median[64];
        snprintf(best, sizeof best, "%s.%s", name, pairs[i][0]);
        snprintf(median, sizeof median, "%s.%s", name, pairs[i][1]);
        assert_true(json_number(speed, best) < most);
        assert_true(json_number(speed, median) > 0 && json_number(speed, median) <= json_number(speed, best));
    }
}

static const json_t *find_check(const json_t *report, const char *name) {
    size_t i;
    const json_t *check;
    json_array_foreach(json_object_get(report, "checks"), i, check) {
        if (strcmp(json_string_value(json_object_get(check, "name")), name) == 0) {
            return check;
        }
    }
    print_error("no check called %s\n", name);
    fail();
    return NULL;
}

static void assert_check(const json_t *report, const char *name, const char *verdict, const char *word) {
    const json_t *check = find_check(report, name);
    const char *said = json_string_value(json_object_get(check, "verdict"));
    const char *text = json_string_value(json_object_get(check, "text"));
    if (strcmp(said, verdict) != 0 || strstr(text, word) == NULL) {
        print_error("%s: %s: %s\n", name, text, said);
        fail();
    }
    assert_int_equal(json_is_string(json_object_get(check, "advice")), strcmp(verdict, "ok") != 0);
}

/* A folder whose config.json is cut off. */
static void a_broken_model(void **state) {
    (void)state;
    char folder[PATH_BYTES], args[1024], config[PATH_BYTES + 16];
    folder_make(folder);
    file_write(folder, "config.json", "{\"model_type\": \"qwen3\",", 23);
    snprintf(args, sizeof args, "doctor %s -t 2", folder);
    json_t *report = tool_json(args, 1);
    assert_int_equal(json_number(report, "problems"), 1);
    snprintf(config, sizeof config, "%s/config.json", strrchr(folder, '/') + 1);
    assert_check(report, "model", "problem", config);
    static const char *const sections[] = {"build",     "processor",    "features", "cores",      "caches",
                                           "memory",    "memory limit", "NUMA",     "huge pages", "limits",
                                           "libraries", "GPU",          "hub",      "hub cache",  "tokenizers"};
    for (size_t i = 0; i < COUNT(sections); i++) {
        assert_true(strlen(json_string_value(json_object_get(find_check(report, sections[i]), "text"))) > 3);
    }
    const json_t *speed = json_object_get(report, "speed");
    assert_rates(speed, "read_bytes_per_s", 1e13);
    assert_rates(speed, "copy_bytes_per_s", 1e13);
    assert_rates(speed, "flops", 1e15);
    assert_int_equal(json_number(speed, "threads"), 2);
    assert_true(json_number(speed, "buffer_bytes") >= 64 << 20);
    static const char *const keys[] = {"version",
                                       "compiler",
                                       "os",
                                       "cpu",
                                       "features",
                                       "isas",
                                       "cores",
                                       "allowed_threads",
                                       "cgroup_cpus",
                                       "huge_pages",
                                       "cuda_driver",
                                       "numa_nodes",
                                       "node_memory_bytes",
                                       "caches",
                                       "memory_bytes",
                                       "available_memory_bytes",
                                       "cgroup_memory_bytes",
                                       "memlock_bytes",
                                       "max_open_files",
                                       "libraries"};
    for (size_t i = 0; i < COUNT(keys); i++) {
        assert_non_null(json_object_get(json_object_get(report, "machine"), keys[i]));
    }
    assert_null(json_object_get(report, "model"));
    json_decref(report);
    folder_remove(folder);
}

static void a_good_model(void **state) {
    (void)state;
    if (sanitized()) {
        skip(); /* the same measurement again */
    }
    json_t *report = tool_json("doctor demo -t 1 --cpu-isa ref", 0);
    assert_int_equal(json_number(report, "problems"), 0);
    assert_check(report, "model", "ok", "demo opens: qwen3, 8 layers, bf16; all tensors are there, and a tokenizer");
    if (json_is_false(json_object_get(json_object_get(report, "machine"), "cuda_driver"))) {
        assert_check(report, "GPU", "ok", ls_cuda_archs()[0] != '\0' ? "no NVIDIA driver" : "built without CUDA");
        assert_int_equal(json_array_size(json_object_get(report, "gpus")), 0);
    }
    double ms = json_number(report, "model.weight_read_bytes_per_step") * 1e3 /
                json_number(report, "speed.read_bytes_per_s.all_best");
    assert_true(fabs(json_number(report, "model.expected_ms_per_token") - ms) < 1e-6 * ms);
    json_decref(report);
}

static void usage(void **state) {
    (void)state;
    EXPECT_TOOL("doctor --cpu-isa mmx", 2, "--cpu-isa mmx");
    EXPECT_TOOL("doctor -n 3", 2, "unrecognized option");
    EXPECT_TOOL("doctor --help", 0, "unknown", "warning");
}

int main(void) {
    setenv("HF_HUB_OFFLINE", "1", 1); /* tests use no network */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(machine_info),   cmocka_unit_test(machine_speed_refuses), cmocka_unit_test(multiply_adds),
        cmocka_unit_test(a_broken_model), cmocka_unit_test(a_good_model),          cmocka_unit_test(usage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
