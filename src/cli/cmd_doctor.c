/*
 * lockstep doctor: what this machine can do, and whether it is well. Every line is a check with a verdict; what is not
 * well says what to do. Everything is measured or read now; what cannot be read is unknown. Exit code 1 if there is a
 * problem. With --json one object.
 */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/json.h"
#include "cli/cli.h"

enum { MAX_CHECKS = 256, MAX_GPUS = 16, MAX_PAIRS = MAX_GPUS * (MAX_GPUS - 1) / 2 };

typedef enum check_verdict { GOOD, WARNING, PROBLEM } check_verdict;

typedef struct check {
    const char *name;
    check_verdict verdict;
    char text[1024];
    char advice[256]; /* what to do; "" where there is nothing to do */
} check;

typedef struct gpu {
    ls_gpu_info info;
    ls_gpu_speed speed;
    bool known, measured; /* info, speed */
} gpu;

typedef struct gpu_pair {
    int a, b;
    ls_gpu_pair is;
} gpu_pair;

typedef struct doctor {
    ls_options options;
    ls_machine_info info;
    ls_machine_speed speed;
    check checks[MAX_CHECKS];
    int n_checks;
    int n_gpus;
    gpu gpus[MAX_GPUS];
    int n_pairs; /* measured */
    gpu_pair pairs[MAX_PAIRS];
    ls_model *model;
    bool planned;
    ls_plan_report plan;
    double expected_ms; /* for each token; 0: no model */
} doctor;

/* ---- Saying things ---- */

__attribute__((format(printf, 3, 4))) static check *say(doctor *d, const char *name, const char *format, ...) {
    check *c = &d->checks[d->n_checks < MAX_CHECKS ? d->n_checks++ : MAX_CHECKS - 1];
    va_list args;
    *c = (check){.name = name, .verdict = GOOD};
    va_start(args, format);
    vsnprintf(c->text, sizeof c->text, format, args);
    va_end(args);
    return c;
}

__attribute__((format(printf, 2, 3))) static void add(check *c, const char *format, ...) {
    size_t n = strlen(c->text);
    va_list args;
    va_start(args, format);
    vsnprintf(c->text + n, sizeof c->text - n, format, args);
    va_end(args);
}

__attribute__((format(printf, 3, 4))) static void judge(check *c, check_verdict verdict, const char *advice, ...) {
    va_list args;
    va_start(args, advice);
    c->verdict = verdict;
    vsnprintf(c->advice, sizeof c->advice, advice, args);
    va_end(args);
}

static const char *or_unknown(const char *text) {
    return text[0] != '\0' ? text : "unknown";
}

/* A count or "unknown"; scratch holds it. */
static const char *count_text(int n, char scratch[16]) {
    if (n < 0) {
        return "unknown";
    }
    snprintf(scratch, 16, "%d", n);
    return scratch;
}

static const char *gb_text(int64_t bytes, char scratch[32]) {
    if (bytes < 0) {
        return "unknown";
    }
    snprintf(scratch, 32, bytes >= 10000000 ? "%.2f GB" : "%.3g GB", (double)bytes / 1e9);
    return scratch;
}

/* ---- The machine ---- */

static void check_build(doctor *d) {
    check *c = say(d, "build", "lockstep %s, %s, back ends %s, sanitizer %s", ls_version(), d->info.compiler,
                   d->info.back_ends, d->info.sanitizer);
    if (strcmp(d->info.sanitizer, "none") != 0) {
        judge(c, WARNING, "a sanitizer makes everything slow: use a build made without SAN=");
    }
    say(d, "system", "%s", or_unknown(d->info.os));
}

static void check_processor(doctor *d) {
    say(d, "processor", "%s", or_unknown(d->info.cpu));
    check *c = say(d, "features", "%s; inner loops that run here: %s; in use: %s", or_unknown(d->info.features),
                   d->info.isas, d->speed.isa);
    if (strncmp(d->info.isas, "ref", 3) == 0) {
        judge(c, WARNING, "without AVX2 and FMA the portable loops are used, which are slow");
    } else if (strncmp(d->info.isas, d->speed.isa, strlen(d->speed.isa)) != 0) {
        judge(c, WARNING, "--cpu-isa auto would take faster ones");
    }
}

static void check_cores(doctor *d) {
    const ls_machine_info *i = &d->info;
    char packages[16], cores[16], threads[16];
    check *c = say(d, "cores", "packages %s, cores %s, hardware threads %s (SMT %s), allowed here %d, cgroup limit ",
                   count_text(i->n_packages, packages), count_text(i->n_cores, cores),
                   count_text(i->n_hardware_threads, threads),
                   i->n_cores < 0 || i->n_hardware_threads < 0 ? "unknown"
                   : i->n_hardware_threads > i->n_cores        ? "on"
                                                               : "off",
                   i->n_allowed_threads);
    if (i->cgroup_cpus > 0) {
        add(c, "%.2f", i->cgroup_cpus);
    } else {
        add(c, "%s", i->cgroup_cpus < 0 ? "unknown" : "none");
    }
    if (i->cgroup_cpus > 0 && i->cgroup_cpus < i->n_allowed_threads) {
        judge(c, WARNING, "more threads than the limit are stopped and started: use -t %d (divided by the ranks)",
              i->cgroup_cpus < 1 ? 1 : (int)i->cgroup_cpus);
    } else if (i->n_cores > 0 && i->n_hardware_threads > i->n_cores && i->n_allowed_threads > i->n_cores) {
        judge(c, WARNING, "two threads on one core rarely help: try -t %d (divided by the ranks)", i->n_cores);
    }
    c = say(d, "caches", "%s", i->n_caches == 0 ? "unknown" : "");
    for (int k = 0; k < i->n_caches; k++) {
        double kib = (double)i->cache[k].bytes / 1024;
        add(c, "%sL%d %d x %g %s", k > 0 ? ", " : "", i->cache[k].level, i->cache[k].count,
            kib < 1024 ? kib : kib / 1024, kib < 1024 ? "KiB" : "MiB");
    }
}

static void check_memory(doctor *d) {
    const ls_machine_info *i = &d->info;
    char a[32], b[32];
    check *c = say(d, "memory", "%s, available %s", gb_text(i->memory_bytes, a), gb_text(i->available_memory_bytes, b));
    if (i->memory_bytes > 0 && i->available_memory_bytes >= 0 && i->available_memory_bytes < i->memory_bytes / 10) {
        judge(c, WARNING, "less than a tenth is free: end other programs, or a model will be slow or fail to open");
    }
    c = say(d, "memory limit", "%s", i->cgroup_memory_bytes == 0 ? "none (cgroup)" : "");
    if (i->cgroup_memory_bytes != 0) {
        add(c, "%s (cgroup), in use %s", gb_text(i->cgroup_memory_bytes, a), gb_text(i->cgroup_used_bytes, b));
    }
    char nodes[16];
    c = say(d, "NUMA", "nodes %s", count_text(i->n_nodes, nodes));
    for (int k = 0; k < i->n_nodes && k < LS_MACHINE_NODES; k++) {
        add(c, "%s%s", k == 0 ? ": " : ", ", gb_text(i->node_memory_bytes[k], a));
    }
    if (i->n_nodes > 1) {
        judge(c, WARNING, "ranks are not bound to nodes: for one node use numactl -N 0 -m 0, for all numactl -i all");
    }
    c = say(d, "huge pages", "%s", or_unknown(i->huge_pages));
    if (strcmp(i->huge_pages, "never") == 0) {
        judge(c, WARNING,
              "weights are read faster from large pages: as root, echo madvise > "
              "/sys/kernel/mm/transparent_hugepage/enabled");
    }
}

static void add_limit(check *c, const char *name, int64_t value) {
    if (value < 0 || value == INT64_MAX) {
        add(c, "%s %s", name, value < 0 ? "unknown" : "unlimited");
    } else {
        add(c, "%s %" PRId64, name, value);
    }
}

static void check_limits(doctor *d) {
    check *c = say(d, "limits", "%s", "");
    add_limit(c, "locked memory bytes", d->info.memlock_bytes);
    add_limit(c, ", open files", d->info.max_open_files);
    if (d->info.max_open_files >= 0 && d->info.max_open_files < 256) {
        judge(c, WARNING, "large checkpoints have many files: raise it with ulimit -n 1024");
    }
}

static void check_libraries(doctor *d) {
    check *c = say(d, "libraries", "%s", "");
    for (int i = 0; i < d->info.n_libraries; i++) {
        add(c, "%s%s %s", i > 0 ? ", " : "", d->info.library[i].name, d->info.library[i].version);
    }
}

/* ---- GPUs ---- */

static void check_gpu_itself(doctor *d, int n) {
    const ls_gpu_info *g = &d->gpus[n].info;
    check *c = say(d, "GPU", "%d: %s, %s, %" PRId64 " SMs, L2 %g MiB, PCI %s; driver %s for CUDA %d.%d; kernels %s", n,
                   g->name, g->chip, g->n_sms, (double)g->l2_bytes / (1 << 20), g->bus, or_unknown(g->driver),
                   g->cuda_version / 1000, g->cuda_version % 1000 / 10, g->kernels[0] != '\0' ? g->kernels : "none");
    if (g->kernels[0] == '\0') {
        judge(c, WARNING, "this build has kernels for %s only: models run on the CPU; build it with ARCHS=\"%s %s\"",
              ls_cuda_archs(), ls_cuda_archs(), g->chip);
    } else if (strncmp(g->kernels, "sm_", 3) != 0) {
        judge(c, WARNING,
              "this build has no kernels for %s: the driver compiles others, which are slower; build it with "
              "ARCHS=\"%s %s\"",
              g->chip, ls_cuda_archs(), g->chip);
    }
}

static void add_part(check *c, const char *name, int value, const char *of, int most, const char *unit) {
    if (value >= 0) {
        add(c, ", %s %d", name, value);
        if (most >= 0) {
            add(c, "%s%d", of, most);
        }
        add(c, "%s", unit);
    }
}

static void check_gpu_state(doctor *d, int n) {
    const ls_gpu_info *g = &d->gpus[n].info;
    check *c = say(d, "GPU state", "%d: ECC %s", n, g->ecc < 0 ? "unknown" : g->ecc > 0 ? "on" : "off");
    if (g->ecc > 0 && g->ecc_errors >= 0) {
        add(c, " (%" PRId64 " uncorrected errors)", g->ecc_errors);
    }
    add_part(c, "SM clock", g->sm_clock_mhz, " of ", g->max_sm_clock_mhz, " MHz");
    add_part(c, "memory clock", g->memory_clock_mhz, " of ", g->max_memory_clock_mhz, " MHz");
    add_part(c, "at", g->temperature_c, "", -1, " C");
    add_part(c, "with", g->power_w, " of ", g->power_limit_w, " W");
    add_part(c, "PCIe", g->pcie_generation, ".0 x", g->pcie_lanes, "");
    if (g->slowed_by[0] != '\0') {
        add(c, ", clocks held down by: %s", g->slowed_by);
    }
    if (g->ecc_errors > 0) {
        judge(c, WARNING, "its memory has failed: see nvidia-smi -q -d ECC,PAGE_RETIREMENT,ROW_REMAPPER");
    } else if (strstr(g->slowed_by, "heat") != NULL || strstr(g->slowed_by, "hardware") != NULL ||
               strstr(g->slowed_by, "brake") != NULL) {
        judge(c, WARNING, "it is slow for its own protection: see to its cooling and power");
    } else if (g->n_processes > 0) {
        add(c, ", in use by %d other%s", g->n_processes, g->n_processes > 1 ? "s" : "");
        judge(c, WARNING, "others use this GPU: less memory is free, and it is slower (see nvidia-smi)");
    }
}

static void check_gpu_speed(doctor *d, int n) {
    const ls_gpu_info *g = &d->gpus[n].info;
    const ls_gpu_speed *s = &d->gpus[n].speed;
    char all[32], left[32];
    check *c =
        say(d, "GPU memory", "%d: %s, %s free once %s kernels were loaded, which took %.2f s", n,
            gb_text(g->memory_bytes, all), gb_text(s->free_bytes, left), g->kernels, (double)s->context_us / 1e6);
    if (s->jit_us > 0) {
        add(c, " (%.2f s of it by the driver's compiler)", (double)s->jit_us / 1e6);
    }
    if (s->free_bytes < g->memory_bytes / 2) {
        judge(c, WARNING, "more than half of it is in use: see nvidia-smi");
    }
    c = say(
        d, "GPU speed", "%d: read %.0f GB/s (median %.0f), copy %.0f; pinned memory to it %.1f GB/s, from it %.1f; ", n,
        s->read.best / 1e9, s->read.median / 1e9, s->copy.best / 1e9, s->to_device.best / 1e9, s->to_host.best / 1e9);
    add(c, "kernel to kernel in a graph %.2f us", s->kernel_us);
    if (s->overlapped_kernel_us > 0) {
        add(c, ", %.2f us where they overlap", s->overlapped_kernel_us);
    }
    if (s->gemm_flops.best <= 0) {
        add(c, "; no bf16 matmul: %s", s->no_gemm);
        judge(c, WARNING, "prompts run on kernels of lockstep's own: install CUDA 13's cuBLAS to run them faster");
        return;
    }
    add(c, "; bf16 matmul %d^3 %.0f TFLOP/s (median %.0f)", s->gemm_n, s->gemm_flops.best / 1e12,
        s->gemm_flops.median / 1e12);
    if (s->gemm_sm_clock_mhz >= 0) {
        add(c, " at %d MHz%s%s", s->gemm_sm_clock_mhz, s->gemm_slowed_by[0] != '\0' ? ", held down by " : "",
            s->gemm_slowed_by);
    }
    if (s->gemm_f32_flops.best > 0) {
        add(c, "; f32 matmul %d^3 %.1f", s->gemm_f32_n, s->gemm_f32_flops.best / 1e12);
    }
}

static void check_peers(doctor *d) {
    check *c = say(d, "GPU peers", "%s", "");
    for (int i = 0; i < d->n_gpus; i++) {
        add(c, "%s%d reaches", i > 0 ? "; " : "", i);
        for (int k = 0; k < d->n_gpus; k++) {
            if (d->gpus[i].info.peers >> k & 1) {
                add(c, " %d", k);
            }
        }
        add(c, "%s", d->gpus[i].info.peers == 0 ? " none" : "");
    }
}

/* The ways that engines on the two do not take of themselves: " (NCCL 20.1, host 12.3)". */
static void tell_others(check *c, const ls_gpu_pair *is, int i) {
    if (is->nccl_us[i] > 0) {
        add(c, " (NCCL %.1f", is->nccl_us[i]);
    }
    if (is->reach) {
        add(c, "%s %.1f", is->nccl_us[i] > 0 ? ", host" : " (host", is->host_us[i]);
    }
    add(c, "%s", is->reach || is->nccl_us[i] > 0 ? ")" : "");
}

static void tell_pair(doctor *d, const gpu_pair *pair) {
    const ls_gpu_pair *is = &pair->is;
    check *c = say(d, "GPU pair", "%d and %d: copies %.1f GB/s there, %.1f back, patterns came as they were sent; ",
                   pair->a, pair->b, is->there.best / 1e9, is->back.best / 1e9);
    if (is->reach) {
        add(c, "a word takes %.2f us; ", is->word_us);
    }
    add(c, "exchange of");
    for (int i = 0; i < LS_PAIR_SIZES; i++) {
        add(c, "%s %d KiB ", i > 0 ? "," : "", is->exchange_bytes[i] / 1024);
        add(c, "%.1f us", is->reach ? is->fused_us[i] : is->host_us[i]);
        tell_others(c, is, i);
    }
    if (is->no_nccl[0] != '\0') {
        add(c, "; NCCL is absent (%s)", is->no_nccl);
    }
    add(c, "; engines use %s", is->exchange);
    if (!is->reach) {
        judge(c, WARNING, "%s: exchanges go through the host's memory, which is slow", is->why_not);
    }
}

static void check_pairs(doctor *d) {
    ls_error error = {0};
    for (int a = 0; a < d->n_gpus; a++) {
        for (int b = a + 1; b < d->n_gpus; b++) {
            if (!d->gpus[a].known || !d->gpus[b].known || d->gpus[a].info.kernels[0] == '\0' ||
                d->gpus[b].info.kernels[0] == '\0') {
                continue;
            }
            gpu_pair *pair = &d->pairs[d->n_pairs];
            *pair = (gpu_pair){a, b, LS_GPU_PAIR_INIT};
            ls_status st = ls_gpu_measure_pair(a, b, &pair->is, &error);
            if (st == LS_OK) {
                tell_pair(d, pair);
                d->n_pairs++;
            } else {
                judge(say(d, "GPU pair", "%d and %d: %s", a, b, error.text), st == LS_EABORTED ? PROBLEM : WARNING,
                      "%s",
                      st == LS_EABORTED ? "no model may run on both: choose others with --devices"
                                        : "what lies between them is unknown");
            }
        }
    }
}

static void check_gpus(doctor *d) {
    ls_error error = {0};
    if (ls_gpu_count(&d->n_gpus, &error) < 0) {
        check *c = say(d, "GPU", "%s", error.text);
        if (d->info.has_cuda_driver) {
            judge(c, WARNING, "models run on the CPU only");
        }
        return;
    }
    d->n_gpus = d->n_gpus < MAX_GPUS ? d->n_gpus : MAX_GPUS;
    for (int n = 0; n < d->n_gpus; n++) {
        gpu *g = &d->gpus[n];
        g->info = (ls_gpu_info)LS_GPU_INFO_INIT;
        g->speed = (ls_gpu_speed)LS_GPU_SPEED_INIT;
        g->known = ls_gpu_get_info(n, &g->info, &error) == LS_OK;
        if (!g->known) {
            judge(say(d, "GPU", "%d: %s", n, error.text), WARNING, "see what nvidia-smi says of it");
            continue;
        }
        check_gpu_itself(d, n);
        check_gpu_state(d, n);
        if (g->info.kernels[0] == '\0') {
            continue;
        }
        g->measured = ls_gpu_measure(n, &g->speed, &error) == LS_OK;
        if (g->measured) {
            check_gpu_speed(d, n);
        } else {
            judge(say(d, "GPU speed", "%d: %s", n, error.text), WARNING, "models may not run on it");
        }
    }
    if (d->n_gpus > 1) {
        check_peers(d);
        check_pairs(d);
    }
}

/* ---- Speed ---- */

static void check_speed(doctor *d) {
    const ls_machine_speed *s = &d->speed;
    say(d, "read", "%.2f GB/s with 1 thread (median %.2f), %.2f GB/s with %d (median %.2f); buffer of %.2f GB",
        s->read_one.best / 1e9, s->read_one.median / 1e9, s->read_all.best / 1e9, s->n_threads,
        s->read_all.median / 1e9, (double)s->buffer_bytes / 1e9);
    say(d, "copy", "%.2f GB/s read and written with 1 thread (median %.2f), %.2f GB/s with %d (median %.2f)",
        s->copy_one.best / 1e9, s->copy_one.median / 1e9, s->copy_all.best / 1e9, s->n_threads,
        s->copy_all.median / 1e9);
    check *c =
        say(d, "f32", "%.1f GFLOP/s multiply-add with 1 thread (median %.1f), %.1f with %d (median %.1f), loops %s",
            s->flops_one.best / 1e9, s->flops_one.median / 1e9, s->flops_all.best / 1e9, s->n_threads,
            s->flops_all.median / 1e9, s->isa);
    if (s->n_threads > 1 && s->flops_all.best < 0.6 * s->n_threads * s->flops_one.best) {
        judge(c, WARNING, "%d threads do the work of %.1f: others use these cores, or there are fewer than it seems",
              s->n_threads, s->flops_all.best / s->flops_one.best);
    }
}

/* ---- Folders ---- */

static void check_folder(doctor *d, const char *name, const char *folder) {
    char path[4096];
    struct statvfs fs;
    snprintf(path, sizeof path, "%s", folder);
    while (statvfs(path, &fs) != 0) { /* not made yet: what holds it */
        char *slash = strrchr(path, '/');
        if (slash == NULL || slash == path) {
            judge(say(d, name, "%s: free space unknown", folder), WARNING, "check that the folder can be made");
            return;
        }
        *slash = '\0';
    }
    int64_t free_bytes = (int64_t)fs.f_bavail * (int64_t)fs.f_frsize;
    char free_text[32];
    check *c = say(d, name, "%s%s, free %s", folder, strcmp(path, folder) == 0 ? "" : " (not made yet)",
                   gb_text(free_bytes, free_text));
    if (free_bytes < 1000000000) {
        judge(c, WARNING, "less than 1 GB is free there");
    }
}

static void check_caches(doctor *d) {
    char scratch[4096];
    const char *folder = options_cache_folder(&d->options, scratch, sizeof scratch);
    if (folder == NULL) {
        judge(say(d, "tokenizers", "no cache folder"), WARNING,
              "models start faster with one: set HOME or --cache-folder");
    } else {
        check_folder(d, "tokenizers", folder);
    }
}

/* Everything about the hub: where downloads are kept, and whether it can be reached. */
static void check_hub(doctor *d) {
    ls_error error = {0};
    ls_hub_params params;
    options_hub_text text;
    ls_hub_state state = LS_HUB_STATE_INIT;
    if (cli_hub_params(&params, &text, &d->options, &error) < 0) {
        judge(say(d, "hub", "%s", error.text), WARNING, "set HF_HUB_CACHE or HOME to use models by their names");
        return;
    }
    check_folder(d, "hub cache", text.cache_folder);
    if (params.offline) {
        say(d, "hub", "not asked: HF_HUB_OFFLINE is set");
    } else if (ls_hub_check(&params, &state, &error) < 0 || !state.reachable) {
        judge(say(d, "hub", "not reachable: %s", state.text[0] != '\0' ? state.text : error.text), WARNING,
              "models in the cache and in folders still open");
    } else {
        say(d, "hub", "answers in %" PRId64 " ms (HTTP %d)", state.latency_us / 1000, state.http_status);
    }
}

/* ---- A model ---- */

/* Where a model would run that is asked for without more: the first GPU that works, else the CPU. */
static const gpu *first_gpu(const doctor *d) {
    return d->gpus[0].measured ? &d->gpus[0] : NULL;
}

/* What of a plan lies in the memory that its budget is of: the GPU's, or the machine's. */
static int64_t planned_bytes(const ls_plan_report *plan) {
    int64_t sum = 0;
    for (int kind = 0; kind < LS_MEMORY_KINDS; kind++) {
        sum += plan->rank_bytes[0][kind];
    }
    return plan->on_gpu ? sum : plan->total_bytes;
}

static void check_plan(doctor *d) {
    ls_error error = {0};
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_plan_budget budget = LS_PLAN_BUDGET_INIT;
    char need[32], room[32];
    params.device = first_gpu(d) != NULL ? "cuda" : "cpu";
    d->plan = (ls_plan_report)LS_PLAN_REPORT_INIT;
    if (ls_plan_make(d->model, &params, &d->plan, &error) < 0 ||
        (d->plan.on_gpu ? ls_plan_get_gpu_budget(&params, &budget, &error)
                        : ls_plan_get_budget(0, 0, 1, &budget, &error)) < 0) {
        judge(say(d, "model memory", "%s", error.text), PROBLEM, "see lockstep plan --help");
        return;
    }
    d->planned = true;
    const int64_t bytes = planned_bytes(&d->plan);
    check *c =
        say(d, "model memory", "%s%s with %d sequences in %s; a share of %g less what others use leaves %s",
            gb_text(bytes, need), d->plan.on_gpu ? " of GPU 0" : "", d->plan.max_num_seqs, ls_dtype_name(d->plan.dtype),
            budget.utilization, gb_text(budget.budget_bytes > 0 ? budget.budget_bytes : 0, room));
    if (bytes > budget.total_bytes) {
        judge(c, PROBLEM, "more than the %s has: lower --max-model-len, --max-num-seqs or --dtype; see lockstep plan",
              d->plan.on_gpu ? "GPU" : "machine");
    } else if (bytes > budget.budget_bytes) {
        judge(c, WARNING, "tight: end other programs, or lower --max-model-len or --max-num-seqs; see lockstep plan");
    }
}

static void check_model(doctor *d) {
    ls_error error = {0};
    if (!d->options.value[OPT_MODEL].set) {
        return;
    }
    const char *name = d->options.value[OPT_MODEL].text;
    if (cli_open_model(&d->options, &d->model, &error) < 0) {
        judge(say(d, "model", "%s", error.text), PROBLEM, "mend or download the model again");
        return;
    }
    ls_model_info info = LS_MODEL_INFO_INIT;
    if (ls_model_get_info(d->model, &info, &error) < 0) {
        judge(say(d, "model", "%s: %s", name, error.text), PROBLEM, "mend or download the model again");
        return;
    }
    say(d, "model", "%s opens: %s, %d layers, %s; all tensors are there%s", name, info.family, info.n_layers,
        ls_dtype_name(info.dtype), info.has_tokenizer ? ", and a tokenizer" : "");
    check_plan(d);
    if (d->planned) {
        double bytes = (double)d->plan.weight_read_bytes_per_step;
        double rate = d->plan.on_gpu ? first_gpu(d)->speed.read.best : d->speed.read_all.best;
        d->expected_ms = bytes * 1e3 / rate;
        check *c = say(d, "model speed",
                       "%.3g ms for each token at best: %.3g GB of weights at %.2f GB/s (KV cache: %" PRId64
                       " bytes more for each token of context)",
                       d->expected_ms, bytes / 1e9, rate / 1e9, d->plan.kv_bytes_per_token);
        const ls_machine_info *i = &d->info;
        if (!d->plan.on_gpu && i->n_caches > 0 && bytes < (double)i->cache[i->n_caches - 1].bytes) {
            add(c, "; they fit into the L%d cache, which may be faster", i->cache[i->n_caches - 1].level);
        }
    }
}

/* ---- Output ---- */

static const char *verdict_name(check_verdict verdict) {
    static const char *const names[] = {"ok", "warning", "problem"};
    return names[verdict];
}

static int count_verdicts(const doctor *d, check_verdict wanted) {
    int n = 0;
    for (int i = 0; i < d->n_checks; i++) {
        n += d->checks[i].verdict == wanted;
    }
    return n;
}

static void print_text(const doctor *d) {
    for (int i = 0; i < d->n_checks; i++) {
        const check *c = &d->checks[i];
        printf("%-12s  %s: %s\n", c->name, c->text, verdict_name(c->verdict));
        if (c->advice[0] != '\0') {
            printf("%-12s  -> %s\n", "", c->advice);
        }
    }
    printf("%d checks: %d problems, %d warnings. GB are 10^9 bytes.\n", d->n_checks, count_verdicts(d, PROBLEM),
           count_verdicts(d, WARNING));
}

/* -1 is unknown: null. */
static json_t *known_json(int64_t value) {
    return value < 0 ? json_null() : json_integer(value);
}

static json_t *text_json(const char *text) {
    json_t *string = text[0] != '\0' ? json_string(text) : NULL;
    return string != NULL ? string : json_null();
}

static json_t *rate_json(ls_rate one, ls_rate all) {
    return json_pack("{s:f, s:f, s:f, s:f}", "one_best", one.best, "one_median", one.median, "all_best", all.best,
                     "all_median", all.median);
}

static json_t *machine_json(const ls_machine_info *i) {
    json_t *nodes = json_array(), *caches = json_array(), *libraries = json_object();
    for (int k = 0; k < i->n_nodes && k < LS_MACHINE_NODES; k++) {
        json_array_append_new(nodes, json_integer(i->node_memory_bytes[k]));
    }
    for (int k = 0; k < i->n_caches; k++) {
        json_array_append_new(caches, json_pack("{s:i, s:i, s:I}", "level", i->cache[k].level, "count",
                                                i->cache[k].count, "bytes", (json_int_t)i->cache[k].bytes));
    }
    for (int k = 0; k < i->n_libraries; k++) {
        json_object_set_new(libraries, i->library[k].name, json_string(i->library[k].version));
    }
    json_t *object = json_pack(
        "{s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:s, s:o, s:o, s:o, s:i, s:o, s:o, s:b}", "version", ls_version(),
        "compiler", i->compiler, "sanitizer", i->sanitizer, "back_ends", i->back_ends, "os", text_json(i->os), "cpu",
        text_json(i->cpu), "features", text_json(i->features), "isas", i->isas, "packages", known_json(i->n_packages),
        "cores", known_json(i->n_cores), "hardware_threads", known_json(i->n_hardware_threads), "allowed_threads",
        i->n_allowed_threads, "cgroup_cpus", i->cgroup_cpus < 0 ? json_null() : json_real(i->cgroup_cpus), "huge_pages",
        text_json(i->huge_pages), "cuda_driver", i->has_cuda_driver);
    json_object_set_new(object, "numa_nodes", known_json(i->n_nodes));
    json_object_set_new(object, "node_memory_bytes", nodes);
    json_object_set_new(object, "caches", caches);
    json_object_set_new(object, "memory_bytes", known_json(i->memory_bytes));
    json_object_set_new(object, "available_memory_bytes", known_json(i->available_memory_bytes));
    json_object_set_new(object, "cgroup_memory_bytes", known_json(i->cgroup_memory_bytes));
    json_object_set_new(object, "cgroup_used_bytes", known_json(i->cgroup_used_bytes));
    json_object_set_new(object, "memlock_bytes", known_json(i->memlock_bytes));
    json_object_set_new(object, "max_open_files", known_json(i->max_open_files));
    json_object_set_new(object, "libraries", libraries);
    return object;
}

static json_t *speed_json(const ls_machine_speed *s) {
    return json_pack("{s:i, s:s, s:I, s:o, s:o, s:o}", "threads", s->n_threads, "isa", s->isa, "buffer_bytes",
                     (json_int_t)s->buffer_bytes, "read_bytes_per_s", rate_json(s->read_one, s->read_all),
                     "copy_bytes_per_s", rate_json(s->copy_one, s->copy_all), "flops",
                     rate_json(s->flops_one, s->flops_all));
}

static json_t *one_rate_json(ls_rate rate) {
    return json_pack("{s:f, s:f}", "best", rate.best, "median", rate.median);
}

static json_t *gpu_speed_json(const ls_gpu_speed *s) {
    json_t *object = json_pack(
        "{s:f, s:f, s:I, s:I, s:o, s:o, s:o, s:f, s:o}", "context_s", (double)s->context_us / 1e6, "jit_s",
        (double)s->jit_us / 1e6, "free_bytes", (json_int_t)s->free_bytes, "buffer_bytes", (json_int_t)s->buffer_bytes,
        "read_bytes_per_s", one_rate_json(s->read), "to_device_bytes_per_s", one_rate_json(s->to_device),
        "to_host_bytes_per_s", one_rate_json(s->to_host), "kernel_us", s->kernel_us, "overlapped_kernel_us",
        s->overlapped_kernel_us > 0 ? json_real(s->overlapped_kernel_us) : json_null());
    const bool any = s->gemm_flops.best > 0;
    json_object_set_new(object, "gemm_n", json_integer(s->gemm_n));
    json_object_set_new(object, "gemm_flops", any ? one_rate_json(s->gemm_flops) : json_null());
    json_object_set_new(object, "no_gemm", text_json(s->no_gemm));
    json_object_set_new(object, "copy_bytes_per_s", one_rate_json(s->copy));
    json_object_set_new(object, "gemm_f32_n", json_integer(s->gemm_f32_n));
    json_object_set_new(object, "gemm_f32_flops",
                        s->gemm_f32_flops.best > 0 ? one_rate_json(s->gemm_f32_flops) : json_null());
    json_object_set_new(object, "gemm_sm_clock_mhz", known_json(s->gemm_sm_clock_mhz));
    json_object_set_new(object, "gemm_slowed_by", text_json(s->gemm_slowed_by));
    return object;
}

static json_t *peers_json(uint32_t peers) {
    json_t *array = json_array();
    for (int i = 0; i < 32; i++) {
        if (peers >> i & 1) {
            json_array_append_new(array, json_integer(i));
        }
    }
    return array;
}

static json_t *gpus_json(const doctor *d) {
    json_t *gpus = json_array();
    for (int n = 0; n < d->n_gpus; n++) {
        const ls_gpu_info *g = &d->gpus[n].info;
        const struct {
            const char *key;
            int64_t value;
        } number[] = {{"sms", g->n_sms},
                      {"l2_bytes", g->l2_bytes},
                      {"memory_bytes", g->memory_bytes},
                      {"cuda_version", g->cuda_version},
                      {"ecc", g->ecc},
                      {"ecc_errors", g->ecc_errors},
                      {"sm_clock_mhz", g->sm_clock_mhz},
                      {"max_sm_clock_mhz", g->max_sm_clock_mhz},
                      {"memory_clock_mhz", g->memory_clock_mhz},
                      {"max_memory_clock_mhz", g->max_memory_clock_mhz},
                      {"temperature_c", g->temperature_c},
                      {"power_w", g->power_w},
                      {"power_limit_w", g->power_limit_w},
                      {"pcie_generation", g->pcie_generation},
                      {"pcie_lanes", g->pcie_lanes},
                      {"processes", g->n_processes}};
        if (!d->gpus[n].known) {
            json_array_append_new(gpus, json_pack("{s:i}", "device", n));
            continue;
        }
        json_t *object =
            json_pack("{s:i, s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:o}", "device", n, "name", g->name, "chip", g->chip,
                      "bus", g->bus, "kernels", text_json(g->kernels), "driver", text_json(g->driver), "slowed_by",
                      text_json(g->slowed_by), "peers", peers_json(g->peers), "speed",
                      d->gpus[n].measured ? gpu_speed_json(&d->gpus[n].speed) : json_null());
        for (size_t i = 0; i < sizeof number / sizeof *number; i++) {
            json_object_set_new(object, number[i].key, known_json(number[i].value));
        }
        json_array_append_new(gpus, object);
    }
    return gpus;
}

static json_t *pairs_json(const doctor *d) {
    json_t *pairs = json_array();
    for (int n = 0; n < d->n_pairs; n++) {
        const gpu_pair *pair = &d->pairs[n];
        const ls_gpu_pair *is = &pair->is;
        json_t *exchanges = json_array();
        for (int i = 0; i < LS_PAIR_SIZES; i++) {
            json_array_append_new(exchanges,
                                  json_pack("{s:i, s:o, s:o, s:f}", "bytes", is->exchange_bytes[i], "fused_us",
                                            is->reach ? json_real(is->fused_us[i]) : json_null(), "nccl_us",
                                            is->nccl_us[i] > 0 ? json_real(is->nccl_us[i]) : json_null(), "host_us",
                                            is->host_us[i]));
        }
        json_array_append_new(pairs, json_pack("{s:[i, i], s:b, s:o, s:o, s:o, s:o, s:o, s:s, s:o}", "devices", pair->a,
                                               pair->b, "reach", is->reach, "why_not", text_json(is->why_not),
                                               "no_nccl", text_json(is->no_nccl), "there_bytes_per_s",
                                               one_rate_json(is->there), "back_bytes_per_s", one_rate_json(is->back),
                                               "word_us", is->reach ? json_real(is->word_us) : json_null(), "exchange",
                                               is->exchange, "exchanges", exchanges));
    }
    return pairs;
}

static ls_status print_json(const doctor *d, ls_error *err) {
    json_t *checks = json_array();
    for (int i = 0; i < d->n_checks; i++) {
        const check *c = &d->checks[i];
        json_array_append_new(checks,
                              json_pack("{s:s, s:s, s:o, s:o}", "name", c->name, "verdict", verdict_name(c->verdict),
                                        "text", text_json(c->text), "advice", text_json(c->advice)));
    }
    json_t *object = json_pack("{s:o, s:o, s:o, s:o, s:o, s:i, s:i}", "machine", machine_json(&d->info), "speed",
                               speed_json(&d->speed), "gpus", gpus_json(d), "gpu_pairs", pairs_json(d), "checks",
                               checks, "problems", count_verdicts(d, PROBLEM), "warnings", count_verdicts(d, WARNING));
    if (object == NULL) {
        return error_set(err, LS_ENOMEM, "cannot write JSON: out of memory");
    }
    if (d->planned) {
        json_object_set_new(object, "model",
                            json_pack("{s:I, s:I, s:f}", "plan_bytes", (json_int_t)planned_bytes(&d->plan),
                                      "weight_read_bytes_per_step", (json_int_t)d->plan.weight_read_bytes_per_step,
                                      "expected_ms_per_token", d->expected_ms));
    }
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(object);
    return LS_OK;
}

/* ---- The command ---- */

static ls_status doctor_all(doctor *d, int argc, char **argv, ls_error *err) {
    TRY(options_init(&d->options, err));
    TRY(args_parse(&d->options, COMMAND_DOCTOR, argc, argv, err));
    ls_engine_params params = cli_engine_params(&d->options, NULL);
    d->info = (ls_machine_info)LS_MACHINE_INFO_INIT;
    d->speed = (ls_machine_speed)LS_MACHINE_SPEED_INIT;
    TRY(ls_machine_get_info(&d->info, err));
    TRY(ls_machine_measure(params.threads, params.cpu_isa, &d->speed, err));
    check_build(d);
    check_processor(d);
    check_cores(d);
    check_memory(d);
    check_limits(d);
    check_speed(d);
    check_libraries(d);
    check_gpus(d);
    check_caches(d);
    check_hub(d);
    check_model(d);
    if (d->options.value[OPT_JSON].integer != 0) {
        return print_json(d, err);
    }
    print_text(d);
    return LS_OK;
}

int cmd_doctor(int argc, char **argv) {
    doctor d = {0};
    ls_error error = {0};
    ls_status st = doctor_all(&d, argc, argv, &error);
    int code = st < 0                            ? cli_fail(&error, d.options.value[OPT_VERBOSE].integer != 0)
               : count_verdicts(&d, PROBLEM) > 0 ? EXIT_FAILED
                                                 : EXIT_GOOD;
    ls_model_close(&d.model);
    options_deinit(&d.options);
    return code;
}
