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

/* Of this GPU and the next one. */
static ls_status link_limits(bench *b, int gpu, int n_gpus, ls_error *err) {
    static const char test[] = "link of 2 GPUs";
    ls_gpu_pair pair = LS_GPU_PAIR_INIT;
    if (n_gpus < 2) {
        results_absent(results_row(b->rows, test), "there is one GPU here");
        return LS_OK;
    }
    pair.link_only = 1;
    for (int i = 0; i < b->repetitions; i++) {
        ls_status st = ls_gpu_measure_pair(gpu, (gpu + 1) % n_gpus, &pair, err);
        if (st < 0) {
            results_absent(results_row(b->rows, test), err->text);
            return LS_OK;
        }
        if (pair.reach) {
            add_rate(b->rows, test, 0, "latency_us", pair.word_us);
        }
        add_rate(b->rows, test, 0, "bytes_per_s", pair.there.best);
    }
    return LS_OK;
}

ls_status bench_limits(bench *b, ls_error *err) {
    const int gpu = gpu_of(&b->options);
    int n_gpus = 0;
    for (int i = 0; i < b->repetitions; i++) {
        if (gpu >= 0) {
            TRY(gpu_limits(b, gpu, err));
        }
        TRY(cpu_limits(b, err));
    }
    if (gpu >= 0) {
        TRY(ls_gpu_count(&n_gpus, err));
        TRY(link_limits(b, gpu, n_gpus, err));
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

/* ---- exchange between GPUs ---- */

enum { FUSED, NCCL, HOST, WAYS };

/* A row for each way and size. */
static json_t *way_row(bench *b, int way, int64_t bytes) {
    static const char *const name[WAYS] = {"fused", "nccl", "host"};
    json_t *row = results_row(b->rows, "exchange");
    results_set(row, "device", json_string("cuda"));
    results_set(row, "tp", json_integer(2));
    results_set(row, "bytes", json_integer((json_int_t)bytes));
    results_set(row, "transport", json_string(name[way]));
    return row;
}

static void add_ways(json_t *const row[WAYS], const ls_gpu_exchange *is, const ls_gpu_exchanges *all) {
    const double us[WAYS] = {is->fused_us, is->nccl_us, is->host_us};
    const char *const why[WAYS] = {all->no_fused, all->no_nccl, ""};
    for (int way = 0; way < WAYS; way++) {
        if (us[way] > 0) {
            results_add(row[way], "exchange_us", LESS_IS_BETTER, us[way]);
            results_add(row[way], "bytes_per_s", MORE_IS_BETTER, (double)is->bytes * 1e6 / us[way]);
        } else {
            results_absent(row[way], why[way]);
        }
    }
}

/* Why a size is not measured between two GPUs; NULL: it is. */
static const char *no_exchange(int64_t bytes, int n_gpus, const ls_error *no_driver) {
    enum { MOST = 4 << 20, ROW = 4096, ONE_ROW = 32 << 10 };
    const bool fits = bytes <= MOST && (bytes % ROW == 0 || (bytes <= ONE_ROW && bytes % 64 == 0));
    return no_driver->status != LS_OK ? no_driver->text
           : n_gpus < 2               ? "there is one GPU here"
           : fits                     ? NULL
                  : "between GPUs, multiples of 4 KiB up to 4 MiB are measured, and of 64 bytes up to 32 KiB";
}

/* The GPU of --device and the next one, by every way that there is. */
static ls_status exchange_gpus(bench *b, const int_list *sizes, ls_error *err) {
    ls_gpu_exchange list[LIST_MOST];
    json_t *row[LIST_MOST][WAYS];
    ls_gpu_exchanges all = LS_GPU_EXCHANGES_INIT;
    ls_error no_driver = {0};
    const int gpu = gpu_of(&b->options);
    int n_gpus = 0;
    all.list = list;
    if (ls_gpu_count(&n_gpus, &no_driver) != LS_OK) {
        error_prefix(&no_driver, no_driver.status, "--device cuda");
    }
    for (int i = 0; i < sizes->n; i++) {
        const char *why = no_exchange(sizes->item[i], n_gpus, &no_driver);
        for (int way = 0; way < WAYS; way++) {
            row[all.n][way] = way_row(b, way, sizes->item[i]);
            if (why != NULL) {
                results_absent(row[all.n][way], why);
            }
        }
        list[all.n].bytes = (int)sizes->item[i];
        all.n += why == NULL;
    }
    for (int i = 0; i < b->repetitions && all.n > 0; i++) {
        ls_status st = ls_gpu_measure_exchanges(gpu, (gpu + 1) % n_gpus, &all, err);
        for (int k = 0; k < all.n; k++) {
            for (int way = 0; way < WAYS && st < 0; way++) {
                results_absent(row[k][way], err->text);
            }
            if (st == LS_OK) {
                add_ways(row[k], &list[k], &all);
            }
        }
        if (st < 0) {
            return LS_OK;
        }
    }
    return LS_OK;
}

ls_status bench_exchange(bench *b, ls_error *err) {
    int_list sizes;
    const bool given = options_given(&b->options, OPT_TENSOR_PARALLEL_SIZE);
    const int only = (int)b->options.value[OPT_TENSOR_PARALLEL_SIZE].integer;
    const bool only_gpus = strncmp(b->options.value[OPT_DEVICE].text, "cuda", 4) == 0;
    TRY(bench_list(b, OPT_EXCHANGE_SIZES, NULL, 64, (int64_t)1 << 30, &sizes, err));
    for (int n_ranks = 2; n_ranks <= 8 && !only_gpus; n_ranks *= 2) {
        for (int i = 0; i < sizes.n && (!given || only == n_ranks); i++) {
            TRY(exchange(b, n_ranks, sizes.item[i], "cpu", err));
        }
    }
    if ((only_gpus || gpu_of(&b->options) >= 0) && (!given || only == 2) && b->hosts.group == NULL) {
        TRY(exchange_gpus(b, &sizes, err));
    }
    return json_array_size(b->rows) > 0
               ? LS_OK
               : error_set(err, LS_EINVAL, "--tensor-parallel-size %d: an exchange has 2, 4 or 8 ranks%s", only,
                           only_gpus ? ", of GPUs 2" : "");
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
