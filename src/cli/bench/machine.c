/* lockstep bench ops, limits and exchange: what steps are made of, and what bounds them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench/bench.h"

/* ---- Where results come from ---- */

static int gpu_of(const ls_options *options) {
    const char *device = options->value[OPT_DEVICE].text, *colon = strchr(device, ':');
    int n = 0;
    if (strcmp(device, "cpu") == 0 || ls_gpu_count(&n, NULL) != LS_OK) {
        return -1;
    }
    return colon != NULL ? atoi(colon + 1) : 0;
}

json_t *bench_device(const ls_options *options) {
    ls_machine_info info = LS_MACHINE_INFO_INIT;
    ls_gpu_info gpu = LS_GPU_INFO_INIT;
    json_t *out = json_object();
    const int n = gpu_of(options);
    if (ls_machine_get_info(&info, NULL) != LS_OK) {
        snprintf(info.cpu, sizeof info.cpu, "unknown processor");
    }
    const bool has_gpu = n >= 0 && ls_gpu_get_info(n, &gpu, NULL) == LS_OK;
    json_object_set_new(out, "name", json_string(has_gpu ? gpu.name : info.cpu));
    json_object_set_new(out, "cpu", json_string(info.cpu));
    json_object_set_new(out, "threads", json_integer(info.n_allowed_threads));
    json_object_set_new(out, "memory_bytes", json_integer((json_int_t)info.memory_bytes));
    json_object_set_new(out, "os", json_string(info.os));
    if (has_gpu) {
        json_object_set_new(out, "driver", json_string(gpu.driver));
        json_object_set_new(out, "cuda_version", json_integer(gpu.cuda_version));
        json_object_set_new(out, "kernels", json_string(gpu.kernels));
    }
    return out;
}

/* ---- limits ---- */

static void add_rate(json_t *rows, const char *test, int threads, const char *name, double value) {
    json_t *row = NULL, *item;
    size_t i;
    json_array_foreach(rows, i, item) {
        char seen[32];
        results_setting(item, "threads", seen, sizeof seen);
        row = strcmp(results_text(item, "test"), test) == 0 && atoi(seen) == threads ? item : row;
    }
    if (row == NULL) {
        row = results_row(rows, test);
        results_set(row, "threads", json_integer(threads));
    }
    results_add(row, name, strcmp(name, "latency_us") == 0 ? LESS_IS_BETTER : MORE_IS_BETTER, value);
}

static ls_status cpu_limits(bench *b, ls_error *err) {
    const option_value *v = b->options.value;
    const char *isa = strcmp(v[OPT_CPU_ISA].text, "auto") == 0 ? NULL : v[OPT_CPU_ISA].text;
    ls_machine_speed s = LS_MACHINE_SPEED_INIT;
    TRY(ls_machine_measure((int)v[OPT_THREADS].integer, isa, &s, err));
    add_rate(b->rows, "DRAM read", 1, "bytes_per_s", s.read_one.best);
    add_rate(b->rows, "DRAM read", s.n_threads, "bytes_per_s", s.read_all.best);
    add_rate(b->rows, "DRAM copy", 1, "bytes_per_s", s.copy_one.best);
    add_rate(b->rows, "DRAM copy", s.n_threads, "bytes_per_s", s.copy_all.best);
    add_rate(b->rows, "CPU f32 multiply-add", 1, "flops_per_s", s.flops_one.best);
    add_rate(b->rows, "CPU f32 multiply-add", s.n_threads, "flops_per_s", s.flops_all.best);
    ls_exchange_params params = LS_EXCHANGE_PARAMS_INIT;
    ls_exchange_speed exchange = LS_EXCHANGE_SPEED_INIT;
    params.bytes = 64;
    params.threads = 1;
    TRY(ls_exchange_measure(&params, &exchange, err));
    add_rate(b->rows, "link of 2 CPU ranks", 1, "latency_us", exchange.median_us);
    return LS_OK;
}

static ls_status gpu_limits(bench *b, int n, ls_error *err) {
    ls_gpu_speed s = LS_GPU_SPEED_INIT;
    static const char *const tests[] = {"HBM read",      "HBM copy",        "PCIe to GPU",
                                        "PCIe from GPU", "GPU bf16 matmul", "GPU f32 matmul"};
    enum { N_TESTS = sizeof tests / sizeof *tests, FIRST_MATMUL = 4 };
    char name[40];
    ls_status st = ls_gpu_measure(n, &s, err);
    const double value[] = {s.read.best,    s.copy.best,       s.to_device.best,
                            s.to_host.best, s.gemm_flops.best, s.gemm_f32_flops.best};
    for (int i = 0; i < N_TESTS; i++) {
        snprintf(name, sizeof name, n == 0 ? "%s" : "%s, GPU %d", tests[i], n);
        if (st < 0 || value[i] <= 0) {
            results_absent(results_row(b->rows, name), st < 0 ? err->text : s.no_gemm);
        } else {
            add_rate(b->rows, name, 0, i < FIRST_MATMUL ? "bytes_per_s" : "flops_per_s", value[i]);
        }
    }
    if (st == LS_OK) {
        snprintf(name, sizeof name, n == 0 ? "%s" : "%s, GPU %d", "kernel to kernel", n);
        add_rate(b->rows, name, 0, "latency_us", s.kernel_us);
    }
    return LS_OK;
}

ls_status bench_limits(bench *b, ls_error *err) {
    const int gpu = gpu_of(&b->options);
    for (int i = 0; i < b->repetitions; i++) {
        if (gpu >= 0) {
            TRY(gpu_limits(b, gpu, err));
        }
        TRY(cpu_limits(b, err));
    }
    if (gpu >= 0) {
        results_absent(results_row(b->rows, "link of 2 GPUs"), "this build does not measure it");
    } else {
        results_absent(results_row(b->rows, "HBM read"), "no GPU here, or --device cpu");
    }
    return LS_OK;
}

/* ---- exchange ---- */

/* As many as take about as long at every size, the same number on every host. */
static int rounds_of(int64_t bytes) {
    int64_t n = ((int64_t)64 << 20) / bytes;
    return n < 5 ? 5 : n > 200 ? 200 : (int)n;
}

static ls_status exchange(bench *b, int n_ranks, int64_t bytes, const char *device, ls_error *err) {
    ls_exchange_params params = LS_EXCHANGE_PARAMS_INIT;
    ls_exchange_speed speed = LS_EXCHANGE_SPEED_INIT;
    json_t *row = results_row(b->rows, "exchange");
    params.device = device;
    params.n_ranks = n_ranks;
    params.threads = (int)b->options.value[OPT_THREADS].integer;
    params.bytes = bytes;
    params.n_rounds = rounds_of(bytes);
    params.hosts = b->hosts.group;
    results_set(row, "device", json_string(device));
    results_set(row, "tp", json_integer(n_ranks));
    results_set(row, "bytes", json_integer((json_int_t)bytes));
    for (int i = 0; i < b->repetitions; i++) {
        ls_status st = ls_exchange_measure(&params, &speed, err);
        if (st < 0 && bench_is_rows(st)) {
            results_absent(row, err->text);
            return LS_OK;
        }
        TRY(st);
        results_add(row, "exchange_us", LESS_IS_BETTER, speed.median_us);
        results_add(row, "bytes_per_s", MORE_IS_BETTER, (double)bytes * 1e6 / speed.median_us);
    }
    options_launch launch;
    const bool hosts = b->hosts.group != NULL && options_launch_read(&launch, NULL) == LS_OK;
    results_set(row, "transport",
                json_string(!hosts                      ? speed.transport
                            : launch.address[0] != '\0' ? "hosts, TCP"
                                                        : "hosts, MPI"));
    results_set(row, "threads", json_integer(speed.n_threads));
    return LS_OK;
}

ls_status bench_exchange(bench *b, ls_error *err) {
    int_list sizes;
    const bool given = options_given(&b->options, OPT_TENSOR_PARALLEL_SIZE);
    const int only = (int)b->options.value[OPT_TENSOR_PARALLEL_SIZE].integer;
    const bool gpu = strncmp(b->options.value[OPT_DEVICE].text, "cuda", 4) == 0;
    TRY(bench_list(b, OPT_EXCHANGE_SIZES, NULL, 64, (int64_t)1 << 30, &sizes, err));
    for (int n_ranks = 2; n_ranks <= 8; n_ranks *= 2) {
        for (int i = 0; i < sizes.n && (!given || only == n_ranks); i++) {
            TRY(exchange(b, n_ranks, sizes.item[i], gpu ? b->options.value[OPT_DEVICE].text : "cpu", err));
        }
    }
    int n_gpus = 0;
    if (!gpu && gpu_of(&b->options) >= 0 && ls_gpu_count(&n_gpus, NULL) == LS_OK && n_gpus > 1) {
        TRY(exchange(b, 2, sizes.item[0], "cuda", err));
    }
    return json_array_size(b->rows) > 0
               ? LS_OK
               : error_set(err, LS_EINVAL, "--tensor-parallel-size %d: an exchange has 2, 4 or 8 ranks", only);
}

/* ---- ops ---- */

enum { MOST_LINES = 48 };

typedef struct op_lines {
    ls_profile_line line[MOST_LINES];
    size_t n;
} op_lines;

/* What has come to a line since `before`, which had fewer or the same lines in the same order. */
static void add_line(bench *b, bench_room room, const ls_profile_line *now, const ls_profile_line *before,
                     double all_us, json_t **row) {
    const double n = (double)(now->launches - (before != NULL ? before->launches : 0));
    const double us = now->total_us - (before != NULL ? before->total_us : 0);
    const double bytes = now->bytes - (before != NULL ? before->bytes : 0);
    const double flops = now->flops - (before != NULL ? before->flops : 0);
    if (n <= 0 || us <= 0) {
        return;
    }
    if (*row == NULL) {
        *row = bench_engine_row(b, now->ops, room);
        results_set(*row, "phase", json_string(now->decode ? "decode" : "prefill"));
    }
    results_add(*row, "op_us", LESS_IS_BETTER, us / n);
    results_add(*row, "share_percent", NEITHER_IS_BETTER, us / all_us * 100);
    results_add(*row, "bytes", NEITHER_IS_BETTER, bytes / n);
    results_add(*row, "flops", NEITHER_IS_BETTER, flops / n);
    results_add(*row, "bytes_per_s", MORE_IS_BETTER, bytes * 1e6 / us);
    results_add(*row, "flops_per_s", MORE_IS_BETTER, flops * 1e6 / us);
}

static void add_lines(bench *b, bench_room room, const op_lines *now, const op_lines *before, json_t **rows) {
    double all_us[2] = {0, 0};
    for (size_t i = 0; i < now->n; i++) {
        all_us[now->line[i].decode] += now->line[i].total_us - (i < before->n ? before->line[i].total_us : 0);
    }
    for (size_t i = 0; i < now->n; i++) {
        add_line(b, room, &now->line[i], i < before->n ? &before->line[i] : NULL, all_us[now->line[i].decode],
                 &rows[i]);
    }
}

static ls_status ops_of(bench *b, bench_room room, ls_error *err) {
    op_lines before = {.n = 0}, now;
    json_t *rows[MOST_LINES] = {NULL};
    const int repetitions = b->repetitions;
    TRY(bench_open(b, room, err));
    ls_status st = LS_OK;
    for (int i = -1; i < repetitions && st == LS_OK; i++) {
        json_t *scratch = json_pack("{s:{}, s:{}}", "settings", "metrics");
        b->repetitions = 0; /* one run, that only warms up */
        st = bench_decode(b, room, scratch, err);
        b->repetitions = repetitions;
        json_decref(scratch);
        st = st == LS_OK ? ls_engine_get_profile(b->engine, now.line, MOST_LINES, &now.n, err) : st;
        if (st == LS_OK && i >= 0) {
            add_lines(b, room, &now, &before, rows);
        }
        before = st == LS_OK ? now : before;
    }
    return st;
}

ls_status bench_ops(bench *b, ls_error *err) {
    int_list batches, inputs;
    TRY(bench_list(b, OPT_BATCH_SIZE, "1", 1, 4096, &batches, err));
    TRY(bench_list(b, OPT_INPUT_LEN, "128", 1, 1 << 24, &inputs, err));
    TRY(options_set(&b->options, OPT_PROFILE, "1", err));
    for (int i = 0; i < inputs.n; i++) {
        for (int k = 0; k < batches.n; k++) {
            const bench_room room = {(int)batches.item[k], inputs.item[i], b->options.value[OPT_OUTPUT_LEN].integer};
            ls_status st = ops_of(b, room, err);
            if (st < 0 && bench_is_rows(st)) {
                bench_absent(b, "ops", room, err);
            } else {
                TRY(st);
            }
        }
    }
    return LS_OK;
}
