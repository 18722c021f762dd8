/*
 * What is said of drivers and GPUs that cannot serve, on machines that have neither: a libcuda.so.1 of a few lines, which
 * cc makes here, stands in. It knows every function that lockstep looks up; the environment says how it answers.
 *
 * It proves what is told and that a failure half way is cleaned up, not that anything runs.
 */
#include "tool.h"

#ifdef LS_CUDA
#include "backend/cuda/driver.h"

#define SYMBOL_TEXT(symbol) #symbol
#define SYMBOL(name) SYMBOL_TEXT(name)

/* Answers of one number each: FAKE_INIT, ...; what is not set is 0. */
static const char answers[] =
    "#include <stddef.h>\n#include <stdlib.h>\n#include <string.h>\n"
    "static long of(const char *name) { const char *value = getenv(name); return value ? atol(value) : 0; }\n"
    "int cuInit(unsigned flags) { return of(\"FAKE_INIT\"); }\n"
    "int cuDriverGetVersion(int *out) { *out = of(\"FAKE_VERSION\"); return 0; }\n"
    "int cuDeviceGetCount(int *out) { *out = 1; return 0; }\n"
    "int cuDeviceGet(int *out, int i) { *out = i; return 0; }\n"
    "int cuDeviceGetName(char *out, int n, int device) { strcpy(out, \"Paper GPU\"); return 0; }\n"
    "int cuDeviceTotalMem_v2(size_t *out, int device) { *out = 80000000000; return 0; }\n"
    "int cuDeviceGetAttribute(int *out, int what, int device) {\n"
    "    *out = what == 75 ? of(\"FAKE_CHIP\") / 10 : what == 76 ? of(\"FAKE_CHIP\") % 10 : 1000; return 0; }\n"
    "int cuDevicePrimaryCtxRetain(void **out, int device) { *out = out; return of(\"FAKE_CONTEXT\"); }\n"
    "int cuMemGetInfo_v2(size_t *left, size_t *all) { *left = 1000000; *all = 80000000000; return 0; }\n"
    "int cuGetErrorName(int rc, const char **out) { *out = rc == 2 ? \"CUDA_ERROR_OUT_OF_MEMORY\" : \"CUDA_ERROR_X\"; "
    "return 0; }\n"
    "int cuGetErrorString(int rc, const char **out) { *out = \"as the driver says it\"; return 0; }\n";

static void write_fake(const char *folder, bool whole) {
    char source[16384], out[1024];
    size_t n =
        (size_t)snprintf(source, sizeof source, "%s", whole ? answers : "int cuInit(unsigned flags) { return 0; }\n");
#define X(name)                                                                                                        \
    if (whole && strstr(answers, "int " SYMBOL(name) "(") == NULL) {                                                   \
        n += (size_t)snprintf(source + n, sizeof source - n, "int %s(void) { return 0; }\n", SYMBOL(name));            \
    }
    CUDA_DRIVER_MAP(X)
#undef X
    assert_true(n < sizeof source);
    file_write(folder, "cuda.c", source, n);
    SHELL(out, "cc -shared -fPIC -w -o %s/libcuda.so.1 %s/cuda.c", folder, folder);
}

/* Runs a command beside the fake, with its answers. */
static void expect_with(const char *folder, const char *fake, const char *args, int code, const char *const *words) {
    const char *bin = getenv("LS_BIN");
    char out[16384];
    int got = shell(out, sizeof out, "env LD_LIBRARY_PATH=%s %s '%s' %s 2>&1", folder, fake,
                    bin != NULL ? bin : "build/lockstep", args);
    bool good = got == code;
    for (; good && *words != NULL; words++) {
        good = strstr(out, *words) != NULL;
    }
    if (!good) {
        fail_msg("with %s, lockstep %s: exit code %d; it said: %s", fake, args, got, out);
    }
}
#define EXPECT_WITH(fake, args, code, ...)                                                                             \
    expect_with(folder, (fake), (args), (code), (const char *const[]){__VA_ARGS__, NULL})

#define GENERATE "generate -m demo -p Once -n 1 "

static void drivers_that_do_not_serve(void **state) {
    (void)state;
    static const struct {
        const char *fake, *why;
    } cases[] = {{"FAKE_INIT=100", "the NVIDIA driver shows no GPU"},
                 {"FAKE_INIT=999", "the NVIDIA driver does not start: cuInit: CUDA_ERROR_X (as the driver says it)"},
                 {"FAKE_VERSION=12040", "the NVIDIA driver is for CUDA 12.4: it is too old for this program"},
                 {"FAKE_VERSION=99000 FAKE_CHIP=52", "Paper GPU is sm_52; this program has kernels for"},
                 {"FAKE_VERSION=99000 FAKE_CHIP=52 FAKE_CONTEXT=2", "creating a context on device 0 (Paper GPU"}};
    char folder[PATH_BYTES];
    if (!has_program("cc")) {
        skip();
    }
    folder_make(folder);
    write_fake(folder, false);
    EXPECT_WITH("", GENERATE "--device cuda", 1, "the NVIDIA driver has no cu", "too old", "update the driver");
    write_fake(folder, true);
    for (size_t i = 0; i < COUNT(cases); i++) {
        EXPECT_WITH(cases[i].fake, GENERATE "--device cuda", 1, cases[i].why);
        EXPECT_WITH(cases[i].fake, GENERATE "--device auto", 0, "no GPU", cases[i].why, "CPU"); /* the timeline */
    }
    EXPECT_WITH("FAKE_VERSION=99000", GENERATE "--device cuda:7", 1, "no GPU 7: the NVIDIA driver shows 1",
                "CUDA_VISIBLE_DEVICES");
    EXPECT_WITH(cases[2].fake, "verify demo --device cuda", 1, "the tested engine", cases[2].why);
    EXPECT_WITH(cases[2].fake, "plan demo --device cuda", 1, cases[2].why, "--device-memory-bytes");
    EXPECT_WITH(cases[2].fake, "plan demo --device cuda --device-memory 16G", 0, "GPU, 1 rank"); /* nobody is asked */
    folder_remove(folder);
}

static void doctor_names_what_is_wrong(void **state) {
    (void)state;
    char folder[PATH_BYTES];
    if (!has_program("cc")) {
        skip();
    }
    setenv("HF_HUB_OFFLINE", "1", 1);
    folder_make(folder);
    write_fake(folder, true);
    EXPECT_WITH("FAKE_VERSION=12040", "doctor -t 1", 0, "CUDA 12.4", ": warning", "models run on the CPU only");
    EXPECT_WITH("FAKE_VERSION=99000 FAKE_CHIP=52", "doctor -t 1", 0, "0: Paper GPU, sm_52, 1000 SMs", "for CUDA 99.0",
                "kernels none: warning", "models run on the CPU", "sm_52");
    EXPECT_WITH("FAKE_VERSION=99000 FAKE_CHIP=90", "doctor -t 1", 0, "GPU speed     0: measuring Paper GPU",
                "0.00 GB of 80.00 are free", ": warning");
    folder_remove(folder);
}

/* What is reserved is compared with what is free. With the kernels that the driver compiles, which it says it did, cuBLASLt
 * stays out of it. */
static void too_little_memory(void **state) {
    (void)state;
    char folder[PATH_BYTES];
    if (!has_program("cc") || strstr(ls_cuda_archs(), "compute_80") == NULL) {
        skip();
    }
    folder_make(folder);
    write_fake(folder, true);
    const char *fake = "FAKE_VERSION=99000 FAKE_CHIP=90";
    EXPECT_WITH(fake, GENERATE "--kernels generic --device cuda", 1, "the plan needs 0.", "weights 0.02",
                "Paper GPU, device 0, has 0.00 GB of 80.00 free", "--max-model-len", "--kv-cache-memory-bytes");
    EXPECT_WITH(fake, GENERATE "--kernels generic --device auto", 0, "no GPU", "the plan needs", "CPU");
    folder_remove(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(drivers_that_do_not_serve),
        cmocka_unit_test(doctor_names_what_is_wrong),
        cmocka_unit_test(too_little_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
static void without_cuda(void **state) {
    (void)state;
    EXPECT_TOOL("generate -m demo -p Once -n 1 --device cuda", 1, "built without CUDA");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(without_cuda)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
