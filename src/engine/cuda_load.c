/*
 * Weights onto a GPU. Some threads of the rank's team take pieces in turn: each copies the piece's rows, as they lie in the
 * mapped file, into one of its slots of the ring in pinned memory, and launches a kernel on its own stream that fetches
 * them over the bus, converts or quantises them and stores them in their place; meanwhile the thread fills its other slot.
 * So the bus carries the file's bytes once, and conversion costs no core. Dummy weights need no file: they are made on the
 * device. Each rank has a job, a ring and threads of its own.
 *
 * The ring is where the logits that the host looks at will be (host_memory.ring): loading is over before the first step. Its
 * first words are not part of a slot: a kernel that meets an infinity or a NaN leaves the number of its piece there, and
 * the CPU's own loader then finds the element and says which it is.
 */
#include <stdlib.h>

#include "base/clock.h"
#include "engine/cuda_engine.h"

enum { SLOTS = 2 };

typedef struct load_job {
    ls_engine *engine;
    cuda_engine *cuda; /* the rank's */
    int rank;
    weight_source source;
    weight_raw *raw;                      /* [n_weights] */
    int *piece_end;                       /* [n_weights]: pieces [piece_end[i - 1], piece_end[i]) are weight i's */
    CUevent cleared;                      /* the memory of the weights is zero: they may come */
    volatile uint32_t *fault;             /* piece + 1, or 0 */
    uint8_t *slots;                       /* [n_readers][SLOTS][slot_bytes] */
    CUdeviceptr fault_there, slots_there; /* as the device sees them */
    size_t slot_bytes;
    int n_readers, n_pieces;
    atomic_int next;
    atomic_bool failed;
    pthread_mutex_t lock; /* of error: the first failure is the one told */
    ls_error error;
} load_job;

/* ---- Pieces ---- */

static int64_t raw_row_bytes(const load_job *job, int i) {
    return load_bytes(&job->engine->program[job->rank]->weight[i], &job->raw[i], 1);
}

/* As many as a slot holds; in sixteens, if it can be, so that each piece begins on a border of 16 bytes. */
static int64_t rows_per_piece(const load_job *job, int i) {
    int64_t n = (int64_t)job->slot_bytes / (raw_row_bytes(job, i) + (raw_row_bytes(job, i) == 0));
    return n >= 16 ? n / 16 * 16 : n;
}

/* The ring cut up for as many readers as it feeds: a slot holds the longest row at least. */
static ls_status cut_ring(load_job *job, ls_error *err) {
    ls_engine *engine = job->engine;
    const cuda_rank *rank = &job->cuda->rank;
    const ls_program *program = engine->program[job->rank];
    const size_t bytes = load_ring_bytes(engine->program[0]) - ARENA_ALIGN;
    size_t longest = ARENA_ALIGN;
    for (int i = 0; i < program->n_weights; i++) {
        size_t row = (size_t)raw_row_bytes(job, i);
        longest = row > longest ? row : longest;
    }
    int n = engine->config.n_threads < LOAD_MAX_READERS ? engine->config.n_threads : LOAD_MAX_READERS;
    while (n > 1 && bytes / (size_t)(n * SLOTS) < arena_round(longest)) {
        n--;
    }
    job->n_readers = n;
    job->slot_bytes = bytes / (size_t)(n * SLOTS) / ARENA_ALIGN * ARENA_ALIGN;
    uint8_t *ring = engine->host.ring + (size_t)job->rank * load_ring_bytes(engine->program[0]);
    CUdeviceptr there;
    TRY(cuda_check(rank, rank->driver->cuMemHostGetDevicePointer(&there, ring, 0), "mapping pinned memory", err));
    job->fault = (volatile uint32_t *)ring;
    *job->fault = 0;
    job->slots = ring + ARENA_ALIGN;
    job->fault_there = there;
    job->slots_there = there + ARENA_ALIGN;
    return LS_OK;
}

static ls_status cut(load_job *job, ls_error *err) {
    const ls_program *program = job->engine->program[job->rank];
    const size_t n_weights = (size_t)program->n_weights;
    job->piece_end = calloc(n_weights, sizeof *job->piece_end);
    job->raw = calloc(n_weights, sizeof *job->raw);
    if (job->piece_end == NULL || job->raw == NULL) {
        return error_set(err, LS_ENOMEM, "loading: out of memory");
    }
    for (int i = 0; i < program->n_weights; i++) {
        TRY(weight_raw_find(program, &job->source, i, &job->raw[i], err));
    }
    TRY(cut_ring(job, err));
    int n = 0;
    for (int i = 0; i < program->n_weights && job->source.checkpoint != NULL; i++) {
        int64_t per_piece = rows_per_piece(job, i);
        n += (int)((program->weight[i].row.count + per_piece - 1) / per_piece);
        job->piece_end[i] = n;
    }
    job->n_pieces = n;
    return LS_OK;
}

typedef struct load_piece {
    int weight;
    int64_t first, last; /* rows of the rank's part */
} load_piece;

static load_piece piece_at(const load_job *job, int piece) {
    int i = 0;
    while (job->piece_end[i] <= piece) {
        i++;
    }
    const int64_t n_rows = job->engine->program[job->rank]->weight[i].row.count, n = rows_per_piece(job, i);
    int64_t first = (piece - (i > 0 ? job->piece_end[i - 1] : 0)) * n;
    return (load_piece){i, first, first + n < n_rows ? first + n : n_rows};
}

/* What the kernel is told of rows [first, last) of weight i; `in` is missing. */
static load_args args_of(const load_job *job, int i, int64_t first, int64_t last) {
    const ls_program *program = job->engine->program[job->rank];
    const weight_slot *slot = &program->weight[i];
    const ls_weight *weight = &job->engine->rank[job->rank].weight[i];
    const dummy_formula formula = weight_dummy(slot, job->source.dummy_seed);
    const cpu_leaves leaves =
        leaves_of(slot->cols, slot->rule == SHARD_ROW ? shard_leaf_first(program->group) : 0, slot->n_leaves);
    load_args a = {.out = (uint64_t)(uintptr_t)weight->data +
                          (uint64_t)(first * slot->col.count) * ls_dtype_bytes(slot->format),
                   .scale = (uint64_t)(uintptr_t)weight->scale + (uint64_t)(first * slot->n_leaves) * sizeof(float),
                   .fault = job->fault_there,
                   .rows = last - first,
                   .cols = slot->col.count,
                   .dtype = (int32_t)job->raw[i].dtype,
                   .format = (int32_t)slot->format,
                   .n_leaves = slot->n_leaves,
                   .offset = formula.offset,
                   .factor = formula.scale,
                   .hash = formula.hash,
                   .first_row = slot->row.first + first,
                   .first_col = slot->col.first,
                   .all_cols = slot->cols};
    for (int leaf = 0; leaf <= slot->n_leaves && slot->n_leaves > 0; leaf++) {
        a.border[leaf] = (int32_t)leaves.border[leaf];
    }
    return a;
}

/* ---- One thread ---- */

typedef struct loader {
    load_job *job;
    const cuda_rank *rank;
    CUstream stream;
    CUevent fetched[SLOTS];
    uint8_t *slot[SLOTS];
    CUdeviceptr slot_there[SLOTS];
    int turn;
} loader;

static ls_status loader_open(loader *l, load_job *job, int i_reader, ls_error *err) {
    const cuda_rank *rank = &job->cuda->rank;
    const cuda_driver *api = rank->driver;
    *l = (loader){.job = job, .rank = rank};
    TRY(cuda_rank_enter(rank, err));
    TRY(cuda_check(rank, api->cuStreamCreate(&l->stream, CU_STREAM_NON_BLOCKING), "creating a stream", err));
    TRY(cuda_check(rank, api->cuStreamWaitEvent(l->stream, job->cleared, 0), "waiting for cleared memory", err));
    for (int i = 0; i < SLOTS; i++) {
        size_t offset = (size_t)(i_reader * SLOTS + i) * job->slot_bytes;
        TRY(cuda_check(rank, api->cuEventCreate(&l->fetched[i], CU_EVENT_DISABLE_TIMING), "creating an event", err));
        l->slot[i] = job->slots + offset;
        l->slot_there[i] = job->slots_there + offset;
    }
    return LS_OK;
}

/* Waits for the thread's own kernels, which is why none of them reads the ring any more. */
static ls_status loader_close(loader *l, ls_error *err) {
    const cuda_driver *api = l->rank->driver;
    ls_status st = LS_OK;
    if (l->stream != NULL) {
        st = cuda_check(l->rank, api->cuStreamSynchronize(l->stream), "loading weights", err);
        api->cuStreamDestroy(l->stream);
    }
    for (int i = 0; i < SLOTS; i++) {
        if (l->fetched[i] != NULL) {
            api->cuEventDestroy(l->fetched[i]);
        }
    }
    return st;
}

static ls_status load_one(loader *l, int i_piece, ls_error *err) {
    load_job *job = l->job;
    ls_engine *engine = job->engine;
    const cuda_driver *api = l->rank->driver;
    const load_piece piece = piece_at(job, i_piece);
    const weight_slot *slot = &engine->program[job->rank]->weight[piece.weight];
    const int turn = l->turn;
    l->turn = (turn + 1) % SLOTS;
    /* An event that was never recorded has happened. */
    TRY(cuda_check(l->rank, api->cuEventSynchronize(l->fetched[turn]), "loading weights", err));
    weight_raw_copy(slot, &job->raw[piece.weight], piece.first, piece.last, l->slot[turn]);
    load_args args = args_of(job, piece.weight, piece.first, piece.last);
    args.in = l->slot_there[turn];
    args.mark = (uint32_t)i_piece + 1;
    TRY(cuda_load_rows(l->rank, &job->cuda->load_kernels, l->stream, &args, err));
    load_progress_add(&engine->progress, load_bytes(slot, &job->raw[piece.weight], piece.last - piece.first));
    return cuda_check(l->rank, api->cuEventRecord(l->fetched[turn], l->stream), "loading weights", err);
}

static ls_status load_pieces(loader *l, ls_error *err) {
    load_job *job = l->job;
    for (;;) {
        int piece = atomic_fetch_add(&job->next, 1);
        if (piece >= job->n_pieces || atomic_load(&job->failed) || *job->fault != 0) {
            return LS_OK;
        }
        TRY(load_one(l, piece, err));
    }
}

static ls_status make_dummies(loader *l, ls_error *err) {
    load_job *job = l->job;
    const ls_program *program = job->engine->program[job->rank];
    for (int i = 0; i < program->n_weights; i++) {
        const weight_slot *slot = &program->weight[i];
        load_args args = args_of(job, i, 0, slot->row.count);
        TRY(cuda_load_rows(l->rank, &job->cuda->load_kernels, l->stream, &args, err));
        load_progress_add(&job->engine->progress, load_bytes(slot, &job->raw[i], slot->row.count));
    }
    return LS_OK;
}

static void load_thread(void *arg, int i_rank, const ls_team *team) {
    load_job *job = (load_job *)arg + i_rank;
    const bool dummies = job->source.checkpoint == NULL;
    if (dummies ? team->thread > 0 : team->thread >= job->n_readers || team->thread >= job->n_pieces) {
        return;
    }
    loader l;
    ls_error error = {0}, closing = {0};
    ls_status st = loader_open(&l, job, team->thread, &error);
    st = st != LS_OK ? st : dummies ? make_dummies(&l, &error) : load_pieces(&l, &error);
    if (loader_close(&l, &closing) != LS_OK && st == LS_OK) {
        st = closing.status;
        error = closing;
    }
    if (st != LS_OK) {
        pthread_mutex_lock(&job->lock);
        if (!atomic_exchange(&job->failed, true)) {
            job->error = error;
        }
        pthread_mutex_unlock(&job->lock);
    }
}

/* ---- All of them ---- */

/* What the CPU's loader says of the piece that a kernel refused. */
static ls_status explain_fault(const load_job *job, ls_error *err) {
    const ls_program *program = job->engine->program[job->rank];
    const load_piece piece = piece_at(job, (int)*job->fault - 1);
    const weight_slot *slot = &program->weight[piece.weight];
    const size_t n = (size_t)(piece.last - piece.first);
    void *data = malloc(n * (size_t)slot->col.count * sizeof(float));
    float *scale = malloc((n * (size_t)slot->n_leaves + 1) * sizeof *scale);
    ls_status st = data == NULL || scale == NULL ? error_set(err, LS_ENOMEM, "%s: out of memory", slot->name)
                                                 : weight_load_rows(program, &job->source, piece.weight, piece.first,
                                                                    piece.last, data, scale, err);
    free(data);
    free(scale);
    return st != LS_OK ? st
                       : error_set(err, LS_EINTERNAL, "%s: rows %lld to %lld are good, but not to the GPU", slot->name,
                                   (long long)piece.first, (long long)piece.last - 1);
}

/* What came of a rank's. */
static ls_status finish(load_job *job, ls_error *err) {
    if (*job->fault != 0) {
        return explain_fault(job, err);
    }
    if (!atomic_load(&job->failed)) {
        return LS_OK;
    }
    if (err != NULL) {
        *err = job->error;
    }
    return job->error.status;
}

ls_status cuda_load_weights(ls_engine *engine, ls_error *err) {
    const ls_model *model = engine->model;
    const int n_ranks = engine->config.rank_count;
    load_job job[LS_MAX_RANKS];
    ls_status st = LS_OK;
    for (int r = 0; r < n_ranks; r++) {
        job[r] = (load_job){.engine = engine,
                            .cuda = engine_cuda(engine)->of[r],
                            .rank = first_rank(engine) + r,
                            .source = {model->checkpoint, model->dummy_seed, model->spec.dtype},
                            .cleared = engine_cuda(engine)->of[r]->cleared,
                            .lock = PTHREAD_MUTEX_INITIALIZER};
    }
    for (int r = 0; r < n_ranks && st == LS_OK; r++) {
        st = cut(&job[r], err);
    }
    if (st == LS_OK) {
        rank_group_run(engine->group, load_thread, job);
    }
    for (int r = 0; r < n_ranks && st == LS_OK; r++) {
        st = finish(&job[r], err);
    }
    for (int r = 0; r < n_ranks; r++) {
        free(job[r].piece_end);
        free(job[r].raw);
    }
    return st;
}
