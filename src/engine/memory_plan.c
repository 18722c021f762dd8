/* See memory_plan.h. */
#include "engine/memory_plan.h"

#include "backend/cuda/kern/exchange_args.h"
#include "backend/cuda/kern/persist_args.h"
#include "engine/engine.h"

const char *memory_tag_name(memory_tag tag) {
    static const char *const names[MEM_TAGS] = {"weights", "KV cache",   "activations", "exchange", "logits",
                                                "RoPE",    "step input", "scheduler",   "trace"};
    return (unsigned)tag < MEM_TAGS ? names[tag] : "unknown";
}

static int kv_heads_loc(const engine_config *config, const ls_spec *spec) {
    return (int)shard_kv_heads(spec->n_kv_heads, (ls_group){0, config->n_ranks}).count;
}

int64_t kv_page_bytes(const engine_config *config, const ls_spec *spec) {
    return (int64_t)config->n_ranks * 2 * spec->n_layers * kv_heads_loc(config, spec) * LS_PAGE_TOKENS * spec->d_head *
           (int64_t)ls_dtype_bytes(config->kv_dtype);
}

size_t step_image_bytes(const engine_config *config) {
    const size_t m = (size_t)config->m_max, n_out = (size_t)config->n_out_max, n_seqs = (size_t)config->max_seqs;
    const size_t pieces = 9; /* each may begin on a border of 16 bytes */
    return sizeof(cuda_step) + pieces * 16 + (3 * m + n_out + (size_t)config->n_pages) * sizeof(int32_t) +
           n_seqs * sizeof(cuda_seq) + n_out * sizeof(cuda_draw) + m * sizeof(cuda_tile);
}

size_t load_ring_bytes(const ls_program *program) {
    const size_t most = (size_t)(2 * LOAD_MAX_READERS) * (2U << 20);
    int64_t longest = 0;
    for (int i = 0; i < program->n_weights; i++) {
        longest = program->weight[i].col.count > longest ? program->weight[i].col.count : longest;
    }
    size_t least = 2 * arena_round((size_t)longest * sizeof(float)), bytes = arena_round((size_t)program->weight_bytes);
    bytes = bytes > most ? most : bytes;
    return ARENA_ALIGN + (bytes > least ? bytes : least);
}

/* What only ranks on devices have. */
static ls_status place_on_device(rank_memory *out, const engine_config *config, const ls_spec *spec, ls_arena *arena,
                                 ls_error *err) {
    enum { COUNTERS = 1 << 16, WORKSPACE_ALIGN = 256 }; /* = CUDA_COUNTERS, CUBLASLT_WORKSPACE_ALIGN */
    uint8_t *workspace;
    size_t rope_bytes = (size_t)config->max_len * (size_t)spec->d_head * sizeof *out->bind.rope;
    TRY(arena_take(arena, MEM_ROPE, rope_bytes, &out->bind.rope, err));
    TRY(arena_take(arena, MEM_STEP, step_image_bytes(config), &out->step, err));
    TRY(arena_take(arena, MEM_STEP, COUNTERS * sizeof(uint32_t), &out->counters, err));
    TRY(arena_take(arena, MEM_STEP, result_words(config) * sizeof *out->result, &out->result, err));
    out->bind.fault = (atomic_int *)(out->result + result_faults(config));
    if (config->n_ranks > 1) {
        const size_t box_bytes = (size_t)exchange_layout_of(spec->d_model, config->n_out_max).bytes;
        const size_t n_epochs = (size_t)exchange_epochs(config->n_out_max);
        TRY(arena_take(arena, MEM_EXCHANGE, n_epochs * sizeof(uint32_t), &out->epochs, err));
        TRY(config->staged ? LS_OK : arena_take(arena, MEM_EXCHANGE, box_bytes, &out->box, err));
    }
    TRY(arena_take(arena, MEM_ACTIVATIONS, config->persist_bytes, &out->persist, err));
    const size_t workspace_bytes = config->workspace_bytes + WORKSPACE_ALIGN - ARENA_ALIGN;
    TRY(arena_take(arena, MEM_ACTIVATIONS, workspace_bytes, &workspace, err));
    out->workspace = workspace + -(uintptr_t)workspace % WORKSPACE_ALIGN;
    return LS_OK;
}

ls_status rank_memory_place(rank_memory *out, const engine_config *config, const ls_program *program, ls_arena *arena,
                            ls_error *err) {
    const ls_spec *spec = program->spec;
    ls_bind *bind = &out->bind;
    const size_t m = (size_t)config->m_max;
    const size_t heads_loc = (size_t)(spec->n_heads / config->n_ranks);
    const size_t kv_loc = (size_t)kv_heads_loc(config, spec);
    const size_t d_head = (size_t)spec->d_head;
    const size_t f_loc = (size_t)shard_leaves(spec->d_ffn, program->group).count;
    const size_t v_loc = (size_t)shard_leaves(spec->n_vocab, program->group).count;
    size_t k_max = (size_t)spec->d_model > f_loc ? (size_t)spec->d_model : f_loc; /* the longest row of a matmul */
    k_max = heads_loc * d_head > k_max ? heads_loc * d_head : k_max;
    const size_t xq_bytes =
        !config->on_device && config->quantization == LS_QUANTIZATION_W8A8 ? xq_row_bytes((int64_t)k_max) : 0;
    /* The CPU keeps activations in f32 words (ops.h section 1), and sums up all leaves of a part itself. */
    const size_t act = config->on_device ? ls_dtype_bytes(config->dtype) : sizeof(float);
    const size_t nodes = config->on_device ? LS_LEAVES : 1;
    const size_t on_host = config->on_device ? 0 : 1;
    const size_t kv_bytes_rank = (size_t)(kv_page_bytes(config, spec) / config->n_ranks / 2) * (size_t)config->n_pages;
    bind->group = program->group;
    bind->dtype = config->dtype;
    bind->kv_dtype = config->kv_dtype;
    bind->d_model = spec->d_model;
    bind->m_max = config->m_max;
    bind->n_pages = config->n_pages;
    TRY(weights_place(program, arena, MEM_WEIGHTS, out->weight, err));
    bind->weight = out->weight;
    TRY(arena_take(arena, MEM_KV_CACHE, kv_bytes_rank, &bind->k_cache, err));
    TRY(arena_take(arena, MEM_KV_CACHE, kv_bytes_rank, &bind->v_cache, err));
    const struct {
        ls_buf buf;
        memory_tag tag;
        size_t bytes;
    } piece[] = {
        {BUF_H, MEM_ACTIVATIONS, m * (size_t)spec->d_model * sizeof(float)},
        {BUF_X, MEM_ACTIVATIONS, m * (size_t)spec->d_model * act},
        {BUF_QKV, MEM_ACTIVATIONS, m * (heads_loc + 2 * kv_loc) * d_head * sizeof(float)},
        {BUF_ATT, MEM_ACTIVATIONS, m * heads_loc * d_head * act},
        {BUF_ACT, MEM_ACTIVATIONS, m * f_loc * act},
        {BUF_XQ, MEM_ACTIVATIONS, m * xq_bytes},
        {BUF_PART, MEM_EXCHANGE, 2 * nodes * m * (size_t)spec->d_model * sizeof(float)},
        {BUF_LOGITS, MEM_LOGITS, (size_t)config->n_out_max * v_loc * sizeof(float)},
        {BUF_SAMPLE, MEM_LOGITS, on_host * (size_t)config->n_out_max * sizeof(ls_sample_part)},
        {BUF_EDITED, MEM_LOGITS, on_host * (size_t)config->n_threads * v_loc * sizeof(float)},
        {BUF_SLICE, MEM_LOGITS, on_host * (size_t)config->n_threads * sizeof(ls_sample_part)},
    };
    for (size_t i = 0; i < sizeof piece / sizeof *piece; i++) {
        if (piece[i].buf != BUF_XQ || piece[i].bytes > 0) { /* NULL says that there is none */
            TRY(arena_take(arena, (int)piece[i].tag, piece[i].bytes, &bind->buf[piece[i].buf], err));
        }
    }
    out->logits = bind->buf[BUF_LOGITS];
    out->offers = bind->buf[BUF_SAMPLE];
    if (config->on_device) {
        return place_on_device(out, config, spec, arena, err);
    }
    return config->trace_events == 0
               ? LS_OK
               : trace_place(&out->trace, config->n_threads, config->trace_events, arena, MEM_TRACE, err);
}

/* What ranks on devices exchange by way of the host. */
static ls_status place_stage(host_memory *out, const engine_config *config, const ls_spec *spec, ls_arena *arena,
                             ls_error *err) {
    const size_t box_bytes = (size_t)exchange_layout_of(spec->d_model, config->n_out_max).bytes;
    const size_t part_bytes = 2 * LS_LEAVES * (size_t)config->m_max * (size_t)spec->d_model * sizeof(float);
    if (config->n_ranks == 1) {
        return LS_OK;
    }
    TRY(arena_take(arena, MEM_EXCHANGE, LS_MAX_RANKS * sizeof *out->stuck, &out->stuck, err));
    for (int r = 0; r < config->n_ranks && config->staged; r++) {
        TRY(arena_take(arena, MEM_EXCHANGE, box_bytes, &out->box[r], err));
        TRY(arena_take(arena, MEM_EXCHANGE, part_bytes, &out->staged[r], err));
    }
    return LS_OK;
}

/* The host's side of ranks on devices. */
static ls_status place_beside_device(host_memory *out, const engine_config *config, const ls_program *program,
                                     ls_arena *arena, ls_error *err) {
    const size_t v = (size_t)program->spec->n_vocab, n_ranks = (size_t)config->n_ranks;
    const size_t ring_bytes = n_ranks * load_ring_bytes(program);
    const size_t n_out = (size_t)config->n_out_max, n_threads = (size_t)config->n_threads;
    const size_t logits_bytes = n_out * v * sizeof *out->logits;
    TRY(arena_take(arena, MEM_LOGITS, logits_bytes > ring_bytes ? logits_bytes : ring_bytes, &out->logits, err));
    out->ring = (uint8_t *)out->logits;
    TRY(arena_take(arena, MEM_LOGITS, n_ranks * n_out * sizeof *out->offers, &out->offers, err));
    TRY(place_stage(out, config, program->spec, arena, err));
    TRY(arena_take(arena, MEM_LOGITS, n_threads * v * sizeof(float), &out->edited, err));
    if (config->persist_bytes > 0) {
        TRY(arena_take(arena, MEM_STEP, n_ranks * sizeof *out->persist_stuck, &out->persist_stuck, err));
    }
    if (config->trace_events > 0) {
        TRY(trace_place(&out->device_trace, 1, config->trace_events, arena, MEM_TRACE, err));
    }
    return arena_take(arena, MEM_LOGITS, n_ranks * n_threads * sizeof(ls_sample_part), &out->slices, err);
}

static ls_status place_batch(step_batch *batch, const engine_config *config, ls_arena *arena, ls_error *err) {
    const size_t m = (size_t)config->m_max, n_out = (size_t)config->n_out_max, n_seqs = (size_t)config->max_seqs;
    TRY(arena_take(arena, MEM_STEP, m * sizeof *batch->token, &batch->token, err));
    TRY(arena_take(arena, MEM_STEP, m * sizeof *batch->pos, &batch->pos, err));
    TRY(arena_take(arena, MEM_STEP, m * sizeof *batch->seq_of, &batch->seq_of, err));
    TRY(arena_take(arena, MEM_STEP, n_seqs * sizeof *batch->seq, &batch->seq, err));
    TRY(arena_take(arena, MEM_STEP, n_seqs * sizeof *batch->request, &batch->request, err));
    TRY(arena_take(arena, MEM_STEP, n_out * sizeof *batch->out_row, &batch->out_row, err));
    TRY(arena_take(arena, MEM_STEP, n_out * sizeof *batch->sample, &batch->sample, err));
    TRY(arena_take(arena, MEM_STEP, n_out * sizeof *batch->output, &batch->output, err));
    if (config->on_device) {
        TRY(arena_take(arena, MEM_STEP, step_image_bytes(config), &batch->image, err));
        TRY(arena_take(arena, MEM_STEP, (size_t)config->n_ranks * result_words(config) * sizeof *batch->result,
                       &batch->result, err));
    }
    return LS_OK;
}

/* Whether the host's node is the one of its one rank. */
static bool node_is_part(const engine_config *config, int host) {
    return host == config->host && config->rank_count == 1;
}

/* What there is for ranks of other hosts. */
static ls_status place_for_hosts(host_memory *out, const engine_config *config, const ls_spec *spec, ls_arena *arena,
                                 ls_error *err) {
    const size_t node = 2 * (size_t)config->m_max * (size_t)spec->d_model, n_out = (size_t)config->n_out_max;
    for (int host = 0; host < config->n_hosts && !config->on_device; host++) {
        if (!node_is_part(config, host)) {
            TRY(arena_take(arena, MEM_EXCHANGE, node * sizeof(float), &out->node[host], err));
        }
    }
    for (int r = config->rank_count; r < config->n_ranks && config->host == 0; r++) {
        const size_t v_loc = (size_t)shard_leaves(spec->n_vocab, (ls_group){r, config->n_ranks}).count;
        TRY(arena_take(arena, MEM_LOGITS, n_out * v_loc * sizeof(float), &out->far_logits[r], err));
        TRY(arena_take(arena, MEM_LOGITS, n_out * sizeof(ls_sample_part), &out->far_offers[r], err));
    }
    return LS_OK;
}

ls_status host_memory_place(host_memory *out, struct step_batch *batch, page_pool *pages, void *running,
                            const engine_config *config, const ls_program *program, ls_arena *arena, ls_error *err) {
    const ls_spec *spec = program->spec;
    const size_t m = (size_t)config->m_max, n_seqs = (size_t)config->max_seqs, v = (size_t)spec->n_vocab;
    TRY(arena_take(arena, MEM_ROPE, (size_t)config->max_len * (size_t)spec->d_head * sizeof *out->rope, &out->rope,
                   err));
    for (int i = 0; i < (config->runs_ahead ? 2 : 1); i++) {
        TRY(place_batch(&batch[i], config, arena, err));
    }
    for (int r = 0; r < config->n_ranks && !config->on_device; r++) {
        TRY(arena_take(arena, MEM_STEP, m * sizeof *out->fault[r], &out->fault[r], err));
    }
    if (config->on_device) {
        TRY(place_beside_device(out, config, program, arena, err));
    }
    if (config->trace_events > 0) {
        TRY(trace_place(&out->trace, 1, config->trace_events, arena, MEM_TRACE, err));
    }
    if (config->n_hosts > 1) {
        TRY(place_for_hosts(out, config, spec, arena, err));
    }
    TRY(page_pool_init(pages, config->n_pages, config->prefix_cache, arena, MEM_SCHEDULER, err));
    TRY(arena_take(arena, MEM_SCHEDULER, n_seqs * sizeof(ls_request *), running, err));
    TRY(arena_take(arena, MEM_SCHEDULER, v * sizeof *out->row, &out->row, err));
    return arena_take(arena, MEM_SCHEDULER, v * sizeof *out->candidate, &out->candidate, err);
}

ls_status memory_plan_make(ls_memory_plan *out, const engine_config *config, const ls_program *const *program,
                           ls_error *err) {
    ls_memory_plan plan = {0};
    ls_arena arena;
    step_batch batch[2];
    host_memory host;
    page_pool pages;
    ls_request **running;
    arena_init_counting(&arena);
    TRY(host_memory_place(&host, batch, &pages, &running, config, program[0], &arena, err));
    memcpy(plan.host, arena.by_tag, sizeof plan.host);
    plan.total = arena.used;
    for (int r = config->rank_first; r < config->rank_first + config->rank_count; r++) {
        rank_memory rank = {0};
        arena_init_counting(&arena);
        TRY(rank_memory_place(&rank, config, program[r], &arena, err));
        memcpy(plan.rank[r], arena.by_tag, sizeof plan.rank[r]);
        plan.total += arena.used;
    }
    *out = plan;
    return LS_OK;
}
