/*
 * The memory plan: every byte of an engine, by rank and purpose, before anything is allocated or loaded.
 *
 * Plan and allocation are one function each for ranks and host (rank_memory_place, host_memory_place): run on a counting
 * arena it plans, run on a real one it carves. So the plan cannot drift from what the engine does.
 *
 *     rank arena:  [weights][KV cache][activations][parts][logits and offers]        one for each rank
 *     host arena:  [RoPE table][step input][scheduler, pages, sampler scratch]      shared by the ranks
 *
 * Ranks on devices (config.on_device) have their arena there, with a copy of the RoPE table and of the step's input and
 * with scratch for kernels; offers and the logits that the host looks at are in the host's, which is pinned. Activations
 * are in the run dtype there, and BUF_PART has room for all leaves (backend/cuda/cuda.h). The ring that weights go through on
 * their way there lies where the host's logits will.
 */
#ifndef LS_ENGINE_MEMORY_PLAN_H
#define LS_ENGINE_MEMORY_PLAN_H

#include "backend/cpu/cpu.h"
#include "engine/pages.h"
#include "engine/trace.h"
#include "model/weights.h"

typedef enum memory_tag {
    MEM_WEIGHTS,
    MEM_KV_CACHE,
    MEM_ACTIVATIONS,
    MEM_EXCHANGE,
    MEM_LOGITS,
    MEM_ROPE,
    MEM_STEP,
    MEM_SCHEDULER,
    MEM_TRACE, /* none unless it was asked for */
    MEM_TAGS
} memory_tag;

const char *memory_tag_name(memory_tag tag);

/* An engine's parameters with every default resolved. */
typedef struct engine_config {
    int n_ranks, n_threads;
    int n_hosts, host;          /* processes that share the ranks, and which one this is */
    int rank_first, rank_count; /* the ranks of this process: all of them on one host */
    ls_dtype dtype, kv_dtype;
    ls_quantization quantization;
    int max_len; /* tokens of one sequence */
    int max_seqs;
    int m_max;     /* rows of a step */
    int n_out_max; /* output rows of a step */
    int n_pages;
    bool prefix_cache;      /* pages are remembered, and used again */
    bool on_device;         /* ranks have memory that the host cannot look into */
    bool staged;            /* ranks on devices exchange through the host's memory */
    bool runs_ahead;        /* steps may be submitted while the one before them runs: two batches */
    bool draws_filtered;    /* rows with top-k, top-p or min-p are drawn on the device, as all others are */
    size_t workspace_bytes; /* scratch of the kernels of a device */
    size_t persist_bytes;   /* tables and words of its persistent kernel; 0: it does not run */
    int persist_blocks;     /* its grid, for each rank */
    bool must_persist;      /* nothing else may run decode steps */
    int trace_events;       /* kept for each thread; 0: no trace */
} engine_config;

/* One rank's memory, carved. */
typedef struct rank_memory {
    ls_weight *weight; /* [n_weights], in the host's memory: see weights_place */
    ls_bind bind;
    /* What the host reads after a step: the rank's own buffers, or copies in the host's arena. */
    const float *logits;          /* [n_out_max][V_loc] */
    const ls_sample_part *offers; /* [n_out_max] */
    /* Ranks on devices, addresses there: */
    void *step, *counters, *workspace, *persist;
    void *box, *epochs; /* of several: backend/cuda/kern/exchange_args.h */
    int32_t *result;    /* [result_words]: tokens drawn on the device, then faults */
    trace_row *trace;   /* [n_threads], one of a device, or NULL */
} rank_memory;

struct step_batch;

/* What all ranks share, carved. */
typedef struct host_memory {
    float *rope; /* [max_len][d/2][2] */
    atomic_int *fault[LS_MAX_RANKS];
    float *row; /* [V] one row of logits, gathered */
    /* With several hosts: each one's node of the leaf tree, [2][m_max][D], NULL where that is a rank's BUF_PART; and on host
     * 0 what the other hosts' ranks have for it: rank_memory's logits and offers. */
    float *node[LS_MAX_RANKS];
    float *far_logits[LS_MAX_RANKS];
    ls_sample_part *far_offers[LS_MAX_RANKS];
    ls_candidate *candidate; /* [V] sampler scratch */
    /* With ranks on devices, theirs one behind the other: */
    float *logits; /* [n_out_max][V_loc] rows that were asked for */
    uint8_t *ring; /* [load_ring_bytes] the same place, until the first step */
    ls_sample_part *offers;
    void *edited, *slices;               /* BUF_EDITED, BUF_SLICE of the host's sampler */
    volatile uint64_t *stuck;            /* [n_ranks] exchange_args.h */
    struct persist_stuck *persist_stuck; /* [n_ranks] with config.persist_bytes: persist_args.h */
    void *box[LS_MAX_RANKS];             /* with config.staged: theirs, and copies of their BUF_PART */
    float *staged[LS_MAX_RANKS];
    trace_row *device_trace;
    trace_row *trace; /* the engine's own row, or NULL */
} host_memory;

/* Pinned memory that weights are read into on their way to a device: two slots for each reader, of a length that the bus
 * likes, but no more than the weights take; and at least two of the longest rows. See cuda_load.c. */
enum { LOAD_MAX_READERS = 8 };
size_t load_ring_bytes(const ls_program *program);
/* Room for a step's input on a device; see backend/cuda/kern/step.h. */
size_t step_image_bytes(const engine_config *config);
/* A step's results: a drawn token for each output row, up to a border of 16 words, then a fault for each row. */
static inline size_t result_faults(const engine_config *config) {
    return ((size_t)config->n_out_max + 15) / 16 * 16;
}
static inline size_t result_words(const engine_config *config) {
    return result_faults(config) + (size_t)config->m_max;
}

/* Per-rank and total bytes by tag. */
typedef struct ls_memory_plan {
    size_t rank[LS_MAX_RANKS][MEM_TAGS];
    size_t host[MEM_TAGS];
    size_t total;
} ls_memory_plan;

ls_status rank_memory_place(rank_memory *out, const engine_config *config, const ls_program *program, ls_arena *arena,
                            ls_error *err);
/* program: any rank's. batch: two; without runs_ahead the second stays as it is. */
ls_status host_memory_place(host_memory *out, struct step_batch *batch, page_pool *pages, void *running,
                            const engine_config *config, const ls_program *program, ls_arena *arena, ls_error *err);

/* program[R]. */
ls_status memory_plan_make(ls_memory_plan *out, const engine_config *config, const ls_program *const *program,
                           ls_error *err);

/* Bytes of KV that one page takes on all ranks together. */
int64_t kv_page_bytes(const engine_config *config, const ls_spec *spec);

#endif
