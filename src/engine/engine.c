/*
 * Opening and closing an engine. The public functions are described in lockstep.h.
 *
 * Order: resolve every default (engine_config), build each rank's program, plan the memory and compare it with the
 * machine's, reserve and carve the arenas, start the ranks, load the weights in parallel. After that the step path
 * allocates nothing. ls_engine_close undoes it in reverse and takes a half-built engine.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/engine.h"
#include "engine/profile.h"
#include "engine/ranges.h"
#ifdef LS_CUDA
#include "backend/cuda/images.h"
#endif

/* ---- Configuration ---- */

static int or_default(int value, int fallback) {
    return value != 0 ? value : fallback;
}

static ls_status check_params(const ls_engine_params *p, ls_error *err) {
    const struct {
        const char *flag;
        int64_t value, max;
    } range[] = {{"--threads", p->threads, 1024},
                 {"--max-model-len", p->max_model_len_tokens, 1 << 24},
                 {"--max-num-seqs", p->max_num_seqs, 4096},
                 {"--max-num-batched-tokens", p->max_num_batched_tokens, 1 << 20},
                 {"--kv-cache-memory-bytes", p->kv_cache_memory_bytes, (int64_t)1 << 50},
                 {"trace_events", p->trace_events, 1 << 24}};
    for (size_t i = 0; i < sizeof range / sizeof *range; i++) {
        if (range[i].value < 0 || range[i].value > range[i].max) {
            return error_set(err, LS_EINVAL, "%s %lld: must be from 1 to %lld", range[i].flag,
                             (long long)range[i].value, (long long)range[i].max);
        }
    }
    if ((unsigned)p->dtype > LS_F16 || (unsigned)p->kv_cache_dtype > LS_F16) {
        return error_set(err, LS_EINVAL, "--dtype, --kv-cache-dtype: must be auto, f32, bf16 or f16");
    }
    if ((unsigned)p->quantization > LS_QUANTIZATION_W8A8) {
        return error_set(err, LS_EINVAL, "--quantization: must be none, w8a16 or w8a8");
    }
    if (p->async_scheduling != NULL && strcmp(p->async_scheduling, "auto") != 0 &&
        strcmp(p->async_scheduling, "off") != 0) {
        return error_set(err, LS_EINVAL, "--async-scheduling %s: must be auto or off", p->async_scheduling);
    }
    return LS_OK;
}

bool wants_async_scheduling(const ls_engine_params *params) {
    return params->async_scheduling == NULL || strcmp(params->async_scheduling, "off") != 0;
}

/* How many pages: what was asked for, else room for all seats at full length, but at most 4 GiB. A context that was not
 * asked for shrinks to what that holds. */
static ls_status count_pages(engine_config *config, const ls_spec *spec, const ls_engine_params *p, ls_error *err) {
    const int64_t default_bytes = (int64_t)4 << 30;
    int64_t page_bytes = kv_page_bytes(config, spec);
    int64_t affordable = (p->kv_cache_memory_bytes > 0 ? p->kv_cache_memory_bytes : default_bytes) / page_bytes;
    if (p->kv_cache_memory_bytes > 0 && affordable < 1) {
        return error_set(err, LS_EINVAL, "--kv-cache-memory-bytes %lld: one page of %d tokens takes %lld",
                         (long long)p->kv_cache_memory_bytes, LS_PAGE_TOKENS, (long long)page_bytes);
    }
    affordable = affordable < 1 ? 1 : affordable;
    if (p->max_model_len_tokens == 0 && pages_for(config->max_len) > affordable) {
        config->max_len = (int)(affordable * LS_PAGE_TOKENS);
    }
    int64_t one = pages_for(config->max_len);
    int64_t pages = one * config->max_seqs;
    pages = affordable < pages ? affordable : pages;
    if (p->kv_cache_memory_bytes == 0 && pages < one) {
        pages = one;
    }
    config->n_pages = (int)pages;
    return LS_OK;
}

ls_status engine_config_resolve(engine_config *config, const ls_spec *spec, const ls_engine_params *p, ls_error *err) {
    enum { MAX_SEQS = 16, BATCHED_TOKENS = 512, SPARE_OUTPUTS = 64 };
    TRY(check_params(p, err));
    config->n_ranks = or_default(p->tensor_parallel_size, 1);
    TRY(shard_check(config->n_ranks, spec->n_heads, spec->n_kv_heads, err));
    config->n_hosts = hosts_count(p->hosts);
    config->host = ls_hosts_self(p->hosts);
    if (config->n_ranks % config->n_hosts != 0) {
        return error_set(err, LS_EINVAL, "--tensor-parallel-size %d: %d hosts share the ranks, each the same number",
                         config->n_ranks, config->n_hosts);
    }
    config->rank_count = config->n_ranks / config->n_hosts;
    config->rank_first = config->host * config->rank_count;
    int cores = core_count() / config->rank_count;
    config->n_threads = or_default(p->threads, cores > 0 ? cores : 1);
    config->dtype = p->dtype != LS_AUTO ? p->dtype : spec->dtype;
    config->quantization = p->quantization;
    config->kv_dtype = p->kv_cache_dtype != LS_AUTO ? p->kv_cache_dtype : config->dtype;
    config->max_len = or_default(p->max_model_len_tokens, spec->max_position_tokens);
    if (config->max_len > spec->max_position_tokens) {
        return error_set(err, LS_EINVAL, "--max-model-len %d: the model's max_position_embeddings is %d",
                         config->max_len, spec->max_position_tokens);
    }
    config->trace_events = p->trace_events;
    config->prefix_cache = p->prefix_cache;
    config->max_seqs = or_default(p->max_num_seqs, MAX_SEQS);
    config->m_max = or_default(p->max_num_batched_tokens, BATCHED_TOKENS);
    if (config->m_max < config->max_seqs) {
        if (p->max_num_batched_tokens != 0) {
            return error_set(err, LS_EINVAL, "--max-num-batched-tokens %d: must be at least --max-num-seqs, %d",
                             config->m_max, config->max_seqs);
        }
        config->m_max = config->max_seqs;
    }
    int outputs = config->max_seqs + SPARE_OUTPUTS;
    config->n_out_max = outputs < config->m_max ? outputs : config->m_max;
    return count_pages(config, spec, p, err);
}

ls_status engine_programs_build(ls_program **program, const ls_spec *spec, const engine_config *config, ls_error *err) {
    for (int r = 0; r < config->n_ranks; r++) {
        TRY(program_build(&program[r], spec, (ls_group){r, config->n_ranks}, config->dtype, config->quantization, err));
    }
    return LS_OK;
}

/* ---- Memory ---- */

static ls_status compare_with_machine(const ls_memory_plan *plan, ls_error *err) {
    size_t have = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    if (plan->total <= have) {
        return LS_OK;
    }
    double weights = 0, kv = 0;
    for (int r = 0; r < LS_MAX_RANKS; r++) {
        weights += (double)plan->rank[r][MEM_WEIGHTS];
        kv += (double)plan->rank[r][MEM_KV_CACHE];
    }
    return error_set(err, LS_ENOMEM,
                     "the plan needs %.2f GB (weights %.2f, KV cache %.2f), the machine has %.2f GB: lower "
                     "--max-model-len, --max-num-seqs or --kv-cache-memory-bytes, or use a 16-bit --dtype",
                     (double)plan->total / 1e9, weights / 1e9, kv / 1e9, (double)have / 1e9);
}

size_t memory_tags_sum(const size_t by_tag[MEM_TAGS]) {
    size_t sum = 0;
    for (int i = 0; i < MEM_TAGS; i++) {
        sum += by_tag[i];
    }
    return sum;
}

/* cos and sin of every position, as transformers' RotaryEmbedding: angles in f32, then times the attention factor. */
static void fill_rope(void *arg, int local, const ls_team *team) {
    const ls_engine *engine = arg;
    const ls_spec *spec = &engine->model->spec;
    int half = spec->d_head / 2;
    float inv_freq[LS_MAX_HEAD / 2];
    float factor;
    int64_t first, last;
    team_range(team, local == 0 ? engine->config.max_len : 0, 16, &first, &last);
    rope_frequencies(&spec->rope, spec->d_head, spec->max_position_tokens, inv_freq, &factor);
    for (int64_t pos = first; pos < last; pos++) {
        for (int i = 0; i < half; i++) {
            float angle = (float)pos * inv_freq[i];
            float *cos_sin = engine->host.rope + (pos * half + i) * 2;
            cos_sin[0] = (float)cos((double)angle) * factor;
            cos_sin[1] = (float)sin((double)angle) * factor;
        }
    }
}

ls_status cpu_reserve(ls_engine *engine, const ls_memory_plan *plan, ls_error *err) {
    TRY(compare_with_machine(plan, err));
    TRY(arena_init(&engine->host_arena, memory_tags_sum(plan->host), err));
    for (int r = first_rank(engine); r < end_rank(engine); r++) {
        TRY(arena_init(&engine->rank_arena[r], memory_tags_sum(plan->rank[r]), err));
    }
    return LS_OK;
}

static ls_status place_memory(ls_engine *engine, ls_error *err) {
    const engine_config *config = &engine->config;
    ls_memory_plan plan;
    TRY(memory_plan_make(&plan, config, (const ls_program *const *)engine->program, err));
    TRY(engine->backend->reserve(engine, &plan, err));
    TRY(host_memory_place(&engine->host, engine->batch, &engine->pages, &engine->running, config, engine->program[0],
                          &engine->host_arena, err));
    for (int r = first_rank(engine); r < end_rank(engine); r++) {
        rank_memory *rank = &engine->rank[r];
        rank->weight = calloc((size_t)engine->program[r]->n_weights, sizeof *rank->weight);
        if (rank->weight == NULL) {
            return error_set(err, LS_ENOMEM, "engine: out of memory");
        }
        TRY(rank_memory_place(rank, config, engine->program[r], &engine->rank_arena[r], err));
        rank->bind.isa = engine->isa;
        if (config->on_device) {
            const size_t n_out = (size_t)config->n_out_max;
            const shard_range vocab = shard_leaves(engine->model->spec.n_vocab, rank->bind.group);
            rank->logits = engine->host.logits + n_out * (size_t)vocab.first;
            rank->offers = engine->host.offers + n_out * (size_t)r;
            rank->trace = engine->host.device_trace;
            continue;
        }
        /* Weights come first in the arena. The KV cache is left out: a short context touches little of it. */
        arena_large_pages(&engine->rank_arena[r], engine->rank_arena[r].by_tag[MEM_WEIGHTS]);
        rank->bind.rope = engine->host.rope;
        rank->bind.fault = engine->host.fault[r];
    }
    for (int r = first_rank(engine); r < end_rank(engine); r++) {
        engine->rank[r].bind.n_parts = config->n_ranks;
        for (int peer = 0; peer < config->n_ranks; peer++) {
            engine->rank[r].bind.peer_part[peer] = engine->rank[peer].bind.buf[BUF_PART];
        }
    }
    host_ranks_bind(engine);
    return LS_OK;
}

/* ---- Weights ---- */

typedef struct load_job {
    ls_engine *engine;
    weight_source source;
    atomic_bool failed;
    pthread_mutex_t lock; /* of error: the first failure is the one told */
    ls_error error;
} load_job;

static void load_rank(void *arg, int local, const ls_team *team) {
    load_job *job = arg;
    const int rank = first_rank(job->engine) + local;
    const ls_program *program = job->engine->program[rank];
    for (int i = 0; i < program->n_weights && !atomic_load(&job->failed) && !hosts_lost(job->engine->hosts); i++) {
        const ls_weight *weight = &job->engine->rank[rank].weight[i];
        ls_error error = {0};
        int64_t first, last;
        team_range(team, weight->rows, 1, &first, &last);
        if (weight_load(program, &job->source, i, weight, first, last, &error) != LS_OK) {
            pthread_mutex_lock(&job->lock);
            if (!atomic_exchange(&job->failed, true)) {
                job->error = error;
            }
            pthread_mutex_unlock(&job->lock);
        }
        weight_raw raw;
        if (weight_raw_find(program, &job->source, i, &raw, NULL) == LS_OK) {
            load_progress_add(&job->engine->progress, load_bytes(&program->weight[i], &raw, last - first));
        }
    }
}

ls_status cpu_load(ls_engine *engine, ls_error *err) {
    const ls_model *model = engine->model;
    load_job job = {.engine = engine,
                    .source = {model->checkpoint, model->dummy_seed, model->spec.dtype},
                    .lock = PTHREAD_MUTEX_INITIALIZER};
    rank_group_run(engine->group, load_rank, &job);
    if (!atomic_load(&job.failed)) {
        return hosts_lost(engine->hosts) ? hosts_why(engine->hosts, err) : LS_OK;
    }
    if (err != NULL) {
        *err = job.error;
    }
    return job.error.status;
}

/* ---- Opening and closing ---- */

/* The most text that one token can bring: what a decoder and a stop string held back, and the longest token, each of
 * whose bytes may become a U+FFFD. */
static size_t longest_piece(const ls_tokenizer *tokenizer) {
    size_t longest = 0;
    for (int32_t id = 0; tokenizer != NULL && id <= tokenizer_max_id(tokenizer); id++) {
        const char *bytes;
        size_t n;
        if (tokenizer_token_bytes(tokenizer, id, &bytes, &n)) {
            longest = n > longest ? n : longest;
        }
    }
    return 3 * (longest + DETOKENIZER_MAX_HELD) + STOP_MAX_BYTES;
}

static ls_status cpu_open(ls_engine *engine, const ls_engine_params *params, int ordinal, ls_error *err) {
    (void)ordinal;
    if (params->exchange != NULL && strcmp(params->exchange, "nccl") == 0 && engine->config.n_ranks > 1) {
        return error_set(
            err, LS_EUNSUPPORTED,
            "--exchange nccl: NCCL adds up between GPUs, and these ranks run on the CPU; leave it at auto");
    }
    return params->profile ? cpu_profile_open(engine, err) : LS_OK;
}

static void cpu_close(ls_engine *engine) {
    free(engine->profile);
}

static size_t cpu_profile_lines(const ls_engine *engine, const ls_profile_line **out) {
    *out = engine->profile != NULL ? engine->profile->lines.line : NULL;
    return engine->profile != NULL ? (size_t)engine->profile->lines.n : 0;
}

const ls_backend backend_cpu = {.name = "cpu",
                                .open = cpu_open,
                                .reserve = cpu_reserve,
                                .load = cpu_load,
                                .submit = cpu_submit,
                                .collect = cpu_collect,
                                .read_rate = cpu_read_rate,
                                .profile = cpu_profile_lines,
                                .close = cpu_close};

static ls_status load_weights(ls_engine *engine, const ls_engine_params *params, ls_error *err) {
    const ls_model *model = engine->model;
    const weight_source source = {model->checkpoint, model->dummy_seed, model->spec.dtype};
    int64_t total = 0;
    for (int r = first_rank(engine); r < end_rank(engine); r++) {
        int64_t bytes;
        TRY(load_total_bytes(engine->program[r], &source, &bytes, err));
        total += bytes;
    }
    load_progress_begin(&engine->progress, params->progress_fn, params->progress_user, total);
    ls_status st = engine->backend->load(engine, err);
    engine->weights_us = load_progress_end(&engine->progress);
    return st;
}

/* All but the weights. */
static ls_status plan(ls_engine *engine, const ls_engine_params *params, int ordinal, ls_error *err) {
    TRY(cpu_isa_choose(&engine->isa, params->cpu_isa, err));
    TRY(engine_config_resolve(&engine->config, &engine->model->spec, params, err));
    const engine_config *config = &engine->config;
    TRY(engine_programs_build(engine->program, &engine->model->spec, config, err));
    TRY(engine->backend->open(engine, params, ordinal, err));
    TRY(place_memory(engine, err));
    plan_cache_init(&engine->plans, &cpu_ref_ops, (const ls_program *const *)engine->program);
    TRY(rank_group_create(&engine->group, config->rank_count, config->n_threads, err));
    TRY(engine->hosts != NULL ? host_exchange_create(engine, err)
                              : exchange_threads_create(&engine->exchange, engine->group, err));
    rank_group_run(engine->group, fill_rope, engine);
    const size_t piece_bytes = longest_piece(engine->model->tokenizer);
    TRY(text_buffer_reserve(&engine->piece, piece_bytes, err));
    return text_buffer_reserve(&engine->scratch, piece_bytes, err);
}

static ls_status open_steps(ls_engine *engine, const ls_engine_params *params, int ordinal, ls_error *err) {
    int64_t start = clock_ns();
    range_begin("plan");
    ls_status st = plan(engine, params, ordinal, err);
    range_end();
    TRY(st);
    int64_t planned = clock_ns();
    TRY(hosts_compare(engine, err));
    range_begin("load");
    st = load_weights(engine, params, err);
    range_end();
    TRY(st);
    engine->open_ns = start;
    engine->plan_us = (planned - start) / 1000;
    engine->shard_us = (clock_ns() - planned) / 1000;
    TRY(hosts_loaded(engine, err));
    engine->is_open = true;
    return LS_OK;
}

ls_status engine_open_on(const ls_backend *backend, ls_model *model, const ls_engine_params *params, int ordinal,
                         ls_engine **out, ls_error *err) {
    ls_engine *engine = calloc(1, sizeof *engine);
    ls_status st = LS_OK;
    if (engine == NULL) {
        return error_set(err, LS_ENOMEM, "engine: out of memory");
    }
    engine->model = model;
    engine->backend = backend;
    engine->decode_plan = "";
    engine->hosts = params->hosts;
    if (driver_init(engine, err) != LS_OK) {
        free(engine);
        return LS_ENOMEM;
    }
    TRY_GOTO(open_steps(engine, params, ordinal, err), fail);
    *out = engine;
    return LS_OK;
fail:
    ls_engine_close(&engine);
    return st;
}

/* "0", "0,1", ...: numbers of GPUs. */
static bool read_device_list(device_choice *choice, const char *text) {
    for (;;) {
        char *end;
        const long device = strtol(text, &end, 10);
        if (*text < '0' || *text > '9' || device > 999 || choice->n_devices == LS_MAX_RANKS) {
            return false;
        }
        choice->device[choice->n_devices++] = (int)device;
        if (*end != ',') {
            return *end == '\0';
        }
        text = end + 1;
    }
}

ls_status device_choice_read(device_choice *out, const char *text, ls_error *err) {
    device_choice choice = {.may_be_cuda = true, .may_be_cpu = true};
    if (text == NULL || strcmp(text, "auto") == 0) {
        *out = choice;
        return LS_OK;
    }
    const bool prefixed = strncmp(text, "cuda:", 5) == 0, listed = prefixed || (*text >= '0' && *text <= '9');
    choice.may_be_cpu = strcmp(text, "cpu") == 0;
    choice.may_be_cuda = !choice.may_be_cpu;
    if (listed ? !read_device_list(&choice, prefixed ? text + 5 : text)
               : !choice.may_be_cpu && strcmp(text, "cuda") != 0) {
        return error_set(
            err, LS_EINVAL,
            "--device %s: must be auto, cpu, cuda or cuda:N; or --devices 0,1,... with a GPU for each rank, "
            "%d at most",
            text, LS_MAX_RANKS);
    }
    choice.ordinal = device_of_rank(&choice, 0);
    *out = choice;
    return LS_OK;
}

ls_status device_choice_ranks(ls_engine_params *params, ls_error *err) {
    device_choice choice;
    TRY(device_choice_read(&choice, params->device, err));
    if (params->tensor_parallel_size == 0 && choice.n_devices > 1) {
        params->tensor_parallel_size = choice.n_devices * hosts_count(params->hosts);
    }
    return LS_OK;
}

#ifdef LS_CUDA
const char *ls_cuda_archs(void) {
    return cuda_archs;
}

/* What keeps an engine off the GPU without being wrong on the CPU. */
static bool may_fall_back(ls_status st) {
    return st == LS_ENOTFOUND || st == LS_EUNSUPPORTED || st == LS_ENOMEM;
}

static ls_status open_on_gpu(ls_model *model, const ls_engine_params *params, const device_choice *choice,
                             ls_engine **out, ls_error *why) {
    ls_status st = engine_open_on(&backend_cuda, model, params, choice->ordinal, out, why);
    if (st != LS_OK && choice->may_be_cpu && may_fall_back(st)) {
        log_line(&model->log, LS_LOG_INFO, "running on the CPU: %s", why->text);
        return LS_IDLE;
    }
    return st;
}
#else
const char *ls_cuda_archs(void) {
    return "";
}

static ls_status open_on_gpu(ls_model *model, const ls_engine_params *params, const device_choice *choice,
                             ls_engine **out, ls_error *why) {
    (void)model, (void)params, (void)out;
    return choice->may_be_cpu ? LS_IDLE
                              : error_set(why, LS_EUNSUPPORTED,
                                          "--device cuda: this program was built without CUDA; build it where make "
                                          "finds nvcc");
}
#endif

ls_status ls_engine_open(ls_model *model, const ls_engine_params *params, ls_engine **out, ls_error *err) {
    TRY(check_struct_size("ls_engine_params", params->struct_size, sizeof *params, err));
    ls_engine_params known = {0};
    device_choice choice;
    memcpy(&known, params, params->struct_size);
    TRY(device_choice_read(&choice, known.device, err));
    TRY(device_choice_ranks(&known, err));
    TRY(host_device_check(&choice, &known, err));
    ls_error why = {0};
    ls_status st = choice.may_be_cuda ? open_on_gpu(model, &known, &choice, out, &why) : LS_IDLE;
    if (st != LS_IDLE) {
        if (st != LS_OK && err != NULL) {
            *err = why;
        }
        return st;
    }
    TRY(engine_open_on(&backend_cpu, model, &known, 0, out, err));
    memcpy((*out)->no_gpu, why.text, sizeof why.text);
    return LS_OK;
}

void ls_engine_close(ls_engine **out) {
    ls_engine *engine = *out;
    if (engine == NULL) {
        return;
    }
    ls_engine_stop(engine);
    hosts_end_steps(engine);
    for (ls_request *request = engine->requests; request != NULL;) {
        ls_request *next = request->next_of_engine;
        request_destroy(request);
        request = next;
    }
    text_buffer_deinit(&engine->piece);
    text_buffer_deinit(&engine->scratch);
    engine->backend->close(engine); /* ends a step that runs still */
    if (engine->exchange != NULL) {
        engine->exchange->destroy(engine->exchange);
    }
    rank_group_destroy(&engine->group);
    for (int r = 0; r < LS_MAX_RANKS; r++) {
        free(engine->rank[r].weight);
        arena_deinit(&engine->rank_arena[r]);
        program_destroy(&engine->program[r]);
    }
    arena_deinit(&engine->host_arena);
    driver_deinit(engine);
    host_steps_free(engine);
    free(engine);
    *out = NULL;
}

int ls_engine_max_tokens(const ls_engine *engine) {
    int64_t cached = (int64_t)engine->config.n_pages * LS_PAGE_TOKENS;
    return cached < engine->config.max_len ? (int)cached : engine->config.max_len;
}
