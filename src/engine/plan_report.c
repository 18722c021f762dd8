/*
 * Plans for people: what an engine would take, and what fits into a budget. The public functions are described in
 * lockstep.h.
 *
 * There is no second arithmetic of memory here: parameters are resolved, programs built and bytes counted by the
 * functions that ls_engine_open uses. What fits is found by bisection over such plans, since memory only grows with
 * context and batch.
 */
#include "base/machine.h"
#include "engine/engine.h"
#ifdef LS_CUDA
#include "engine/cuda_engine.h"
#endif

_Static_assert((int)LS_MEMORY_KINDS == (int)MEM_TAGS && (int)LS_PLAN_RANKS == (int)LS_MAX_RANKS,
               "public names of memory tags");

const char *ls_memory_name(ls_memory kind) {
    return memory_tag_name((memory_tag)kind);
}

/* ---- One plan ---- */

typedef struct planned {
    bool on_gpu;
    gpu_memory gpu;
    engine_config config;
    ls_program *program[LS_MAX_RANKS];
    ls_memory_plan memory;
} planned;

static void planned_deinit(planned *plan) {
    for (int r = 0; r < LS_MAX_RANKS; r++) {
        program_destroy(&plan->program[r]);
    }
}

#ifdef LS_CUDA
static ls_status find_gpu(const ls_engine_params *params, const device_choice *choice, gpu_memory *out, ls_error *err) {
    const int n_ranks = params->tensor_parallel_size;
    if (n_ranks < 0 || n_ranks > LS_MAX_RANKS) { /* plan_again says more */
        return LS_OK;
    }
    return cuda_find_memory(params, choice, n_ranks > 0 ? n_ranks : 1, out, err);
}

static ls_status check_for_gpu(const engine_config *config, const ls_engine_params *params, ls_error *err) {
    return cuda_config_check(config, params, err);
}

static ls_status complete_for_gpu(planned *plan, const ls_engine_params *params, ls_error *err) {
    return cuda_config_complete(&plan->config, plan->program[0], params, &plan->gpu, err);
}
#else
static ls_status find_gpu(const ls_engine_params *params, const device_choice *choice, gpu_memory *out, ls_error *err) {
    (void)params, (void)choice, (void)out;
    return error_set(err, LS_EUNSUPPORTED,
                     "--device cuda: this program was built without CUDA; build it where make finds nvcc");
}

static ls_status check_for_gpu(const engine_config *config, const ls_engine_params *params, ls_error *err) {
    (void)config, (void)params, (void)err;
    return LS_OK;
}

static ls_status complete_for_gpu(planned *plan, const ls_engine_params *params, ls_error *err) {
    (void)plan, (void)params, (void)err;
    return LS_OK;
}
#endif

/* The device, which stays the same however often the plan is made. Where the size of the KV cache is given, the device's
 * memory does not matter. */
static ls_status plan_device(planned *plan, const ls_engine_params *params, bool with_memory, ls_error *err) {
    device_choice choice;
    TRY(device_choice_read(&choice, params->device, err));
    plan->on_gpu = !choice.may_be_cpu;
    return plan->on_gpu && with_memory ? find_gpu(params, &choice, &plan->gpu, err) : LS_OK;
}

/* The programs depend on ranks and formats alone: a plan that has them is made again without. */
static ls_status plan_again(planned *plan, const ls_spec *spec, const ls_engine_params *params, ls_error *err) {
    plan->config = (engine_config){0};
    TRY(engine_config_resolve(&plan->config, spec, params, err));
    if (plan->on_gpu) {
        TRY(check_for_gpu(&plan->config, params, err));
    }
    if (plan->program[0] == NULL) {
        TRY(engine_programs_build(plan->program, spec, &plan->config, err));
    }
    if (plan->on_gpu) {
        TRY(complete_for_gpu(plan, params, err));
    }
    return memory_plan_make(&plan->memory, &plan->config, (const ls_program *const *)plan->program, err);
}

static ls_status known_params(const ls_engine_params *params, ls_engine_params *known, ls_error *err) {
    TRY(check_struct_size("ls_engine_params", params->struct_size, sizeof *params, err));
    *known = (ls_engine_params){0};
    memcpy(known, params, params->struct_size);
    return device_choice_ranks(known, err);
}

static void fill_report(ls_plan_report *report, const planned *plan, const ls_spec *spec,
                        const ls_engine_params *params) {
    const engine_config *config = &plan->config;
    report->n_ranks = config->n_ranks;
    report->n_threads = config->n_threads;
    report->dtype = config->dtype;
    report->kv_cache_dtype = config->kv_dtype;
    report->quantization = params->quantization;
    report->max_model_len_tokens = config->max_len;
    report->max_num_seqs = config->max_seqs;
    report->max_num_batched_tokens = config->m_max;
    report->n_pages = config->n_pages;
    report->page_tokens = LS_PAGE_TOKENS;
    for (int tag = 0; tag < MEM_TAGS; tag++) {
        for (int r = 0; r < config->n_ranks; r++) {
            report->rank_bytes[r][tag] = (int64_t)plan->memory.rank[r][tag];
        }
        report->shared_bytes[tag] = (int64_t)plan->memory.host[tag];
    }
    report->total_bytes = (int64_t)plan->memory.total;
    report->kv_bytes_per_token = kv_page_bytes(config, spec) / LS_PAGE_TOKENS;
    report->on_gpu = plan->on_gpu;
    report->driver_measured = plan->gpu.measured;
    report->driver_bytes = plan->gpu.used_bytes;
    for (int r = 0; r < config->n_ranks; r++) {
        report->weight_read_bytes_per_step += plan->program[r]->read_bytes;
    }
}

ls_status ls_plan_make(const ls_model *model, const ls_engine_params *params, ls_plan_report *out, ls_error *err) {
    ls_engine_params known;
    TRY(check_struct_size("ls_plan_report", out->struct_size, SIZE_MAX, err));
    TRY(known_params(params, &known, err));
    planned plan = {0};
    ls_plan_report report = {.struct_size = out->struct_size};
    ls_status st = LS_OK;
    TRY_GOTO(plan_device(&plan, &known, true, err), fail);
    TRY_GOTO(plan_again(&plan, &model->spec, &known, err), fail);
    fill_report(&report, &plan, &model->spec, &known);
    memcpy(out, &report, out->struct_size < sizeof report ? out->struct_size : sizeof report);
fail:
    planned_deinit(&plan);
    return st;
}

/* ---- Budgets ---- */

/* Total and used memory of the machine, or of the control group that leaves less. */
static ls_status read_machine(int64_t *total, int64_t *used, ls_error *err) {
    machine_memory memory;
    machine_cgroup group;
    machine_read_memory("/", &memory);
    machine_read_cgroup("/", &group);
    if (memory.total_bytes < 0 || memory.available_bytes < 0) {
        return error_set(err, LS_EIO,
                         "/proc/meminfo does not say how much memory this machine has: use "
                         "--device-memory-bytes");
    }
    bool limited = group.memory_bytes > 0 && group.memory_bytes < memory.total_bytes && group.memory_used_bytes >= 0;
    *total = limited ? group.memory_bytes : memory.total_bytes;
    *used = limited ? group.memory_used_bytes : memory.total_bytes - memory.available_bytes;
    return LS_OK;
}

ls_status ls_plan_get_budget(int64_t device_memory_bytes, double utilization, int n_ranks, ls_plan_budget *out,
                             ls_error *err) {
    TRY(check_struct_size("ls_plan_budget", out->struct_size, SIZE_MAX, err));
    if (device_memory_bytes < 0 || n_ranks < 1 || n_ranks > LS_MAX_RANKS) {
        return error_set(err, LS_EINVAL, "a budget needs memory of 0 or more bytes and 1 to %d ranks", LS_MAX_RANKS);
    }
    if (!(utilization >= 0 && utilization <= 1)) {
        return error_set(err, LS_EINVAL, "--gpu-memory-utilization %g: must be more than 0 and at most 1", utilization);
    }
    ls_plan_budget budget = {.struct_size = out->struct_size,
                             .machine = device_memory_bytes == 0,
                             .total_bytes = device_memory_bytes,
                             .utilization = utilization > 0 ? utilization : 0.9};
    if (budget.machine) {
        TRY(read_machine(&budget.total_bytes, &budget.used_by_others_bytes, err));
        budget.total_bytes /= n_ranks;
        budget.used_by_others_bytes /= n_ranks;
    }
    budget.budget_bytes = (int64_t)(budget.utilization * (double)budget.total_bytes) - budget.used_by_others_bytes;
    memcpy(out, &budget, out->struct_size < sizeof budget ? out->struct_size : sizeof budget);
    return LS_OK;
}

ls_status ls_plan_get_gpu_budget(const ls_engine_params *params, ls_plan_budget *out, ls_error *err) {
    ls_engine_params known;
    planned plan = {0};
    TRY(check_struct_size("ls_plan_budget", out->struct_size, SIZE_MAX, err));
    TRY(known_params(params, &known, err));
    TRY(plan_device(&plan, &known, true, err));
    if (!plan.on_gpu) {
        return error_set(err, LS_EINVAL, "--device %s: is no GPU", known.device != NULL ? known.device : "auto");
    }
    ls_plan_budget budget = LS_PLAN_BUDGET_INIT;
    TRY(ls_plan_get_budget(plan.gpu.total_bytes, known.gpu_memory_utilization, 1, &budget, err));
    budget.struct_size = out->struct_size;
    budget.used_by_others_bytes = plan.gpu.used_bytes;
    budget.budget_bytes = (budget.budget_bytes - plan.gpu.used_bytes) / (plan.gpu.n_ranks > 1 ? plan.gpu.n_ranks : 1);
    memcpy(out, &budget, out->struct_size < sizeof budget ? out->struct_size : sizeof budget);
    return LS_OK;
}

/* ---- What fits ---- */

static int64_t need_of(const planned *plan, bool machine) {
    int64_t shared = 0, fullest = 0;
    for (int tag = 0; tag < MEM_TAGS && !plan->on_gpu; tag++) {
        shared += (int64_t)plan->memory.host[tag];
    }
    for (int r = 0; r < plan->config.n_ranks; r++) {
        int64_t bytes = 0;
        for (int tag = 0; tag < MEM_TAGS; tag++) {
            bytes += (int64_t)plan->memory.rank[r][tag];
        }
        fullest = bytes > fullest ? bytes : fullest;
    }
    int n_sharing = machine ? plan->config.n_ranks : 1;
    return fullest + (shared + n_sharing - 1) / n_sharing;
}

typedef struct fit_search {
    const ls_spec *spec;
    ls_engine_params params;
    planned plan;
    const ls_plan_budget *budget;
} fit_search;

static ls_status need_with(fit_search *search, int len, int seqs, int64_t *out, ls_error *err) {
    ls_engine_params params = search->params;
    params.max_model_len_tokens = len;
    params.max_num_seqs = seqs;
    params.kv_cache_memory_bytes = (int64_t)1 << 50; /* no bound: as many pages as all sequences need */
    TRY(plan_again(&search->plan, search->spec, &params, err));
    *out = need_of(&search->plan, search->budget->machine);
    return LS_OK;
}

/* The largest value up to `most` of context (or of sequences) whose plan fits; 0: not even 1. */
static ls_status bisect(fit_search *search, bool context, int fixed, int most, int *out, ls_error *err) {
    int fits = 0, beyond = most + 1;
    while (beyond - fits > 1) {
        int middle = fits + (beyond - fits) / 2;
        int64_t need;
        TRY(need_with(search, context ? middle : fixed, context ? fixed : middle, &need, err));
        *(need <= search->budget->budget_bytes ? &fits : &beyond) = middle;
    }
    *out = fits;
    return LS_OK;
}

static ls_status find_fit(fit_search *search, ls_plan_fit *fit, ls_error *err) {
    enum { MOST_SEQS = 4096 };
    const ls_spec *spec = search->spec;
    int len = search->params.max_model_len_tokens;
    len = len > 0 ? len : spec->max_position_tokens;
    TRY(need_with(search, len, search->params.max_num_seqs, &fit->need_bytes, err));
    const engine_config config = search->plan.config;
    fit->short_bytes = fit->need_bytes - search->budget->budget_bytes;
    fit->kv_bytes_per_seq = kv_page_bytes(&config, spec) / config.n_ranks * pages_for(len);
    int rows = search->params.max_num_batched_tokens;
    TRY(bisect(search, true, config.max_seqs, spec->max_position_tokens, &fit->largest_model_len_tokens, err));
    return bisect(search, false, len, rows > 0 && rows < MOST_SEQS ? rows : MOST_SEQS, &fit->largest_num_seqs, err);
}

ls_status ls_plan_get_fit(const ls_model *model, const ls_engine_params *params, const ls_plan_budget *budget,
                          ls_plan_fit *out, ls_error *err) {
    TRY(check_struct_size("ls_plan_fit", out->struct_size, SIZE_MAX, err));
    TRY(check_struct_size("ls_plan_budget", budget->struct_size, sizeof *budget, err));
    ls_plan_budget known_budget = {0};
    memcpy(&known_budget, budget, budget->struct_size);
    fit_search search = {.spec = &model->spec, .budget = &known_budget};
    TRY(known_params(params, &search.params, err));
    ls_plan_fit fit = {.struct_size = out->struct_size};
    ls_status st = LS_OK;
    TRY_GOTO(plan_device(&search.plan, &search.params, false, err), fail);
    TRY_GOTO(find_fit(&search, &fit, err), fail);
    memcpy(out, &fit, out->struct_size < sizeof fit ? out->struct_size : sizeof fit);
fail:
    planned_deinit(&search.plan);
    return st;
}
