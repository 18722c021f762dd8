/*
 * Weights onto a GPU. Each thread of the rank's team takes pieces of up to PIECE_BYTES in turn: weight_load() reads rows
 * from the mapped file into one of the thread's two pinned buffers, converted and checked as for the CPU, and a copy takes
 * them to the device while the thread fills the other. Dummy weights are made on the device.
 */
#include <stdlib.h>

#include "backend/cuda/kern/load.h"
#include "engine/cuda_engine.h"

enum { PIECE_BYTES = 2 << 20, BUFFERS = 2 };

typedef struct load_job {
    ls_engine *engine;
    weight_source source;
    size_t buffer_bytes;
    int n_pieces;
    int *piece_end; /* [n_weights]: pieces [piece_end[i - 1], piece_end[i]) are weight i's */
    atomic_int next;
    atomic_bool failed;
    pthread_mutex_t lock; /* of error: the first failure is the one told */
    ls_error error;
} load_job;

/* ---- Pieces ---- */

static int64_t row_bytes(const weight_slot *slot) {
    return slot_bytes(slot) / (slot->row.count > 0 ? slot->row.count : 1); /* with the row's scales */
}

static int64_t rows_per_piece(const weight_slot *slot) {
    int64_t n = PIECE_BYTES / (row_bytes(slot) + 1);
    return n > 0 ? n : 1;
}

static bool made_on_device(const load_job *job, const weight_slot *slot) {
    return job->source.checkpoint == NULL && slot->format != LS_INT8;
}

static ls_status cut(load_job *job, const ls_program *program, ls_error *err) {
    job->piece_end = calloc((size_t)program->n_weights, sizeof *job->piece_end);
    if (job->piece_end == NULL) {
        return error_set(err, LS_ENOMEM, "loading: out of memory");
    }
    int n = 0;
    for (int i = 0; i < program->n_weights; i++) {
        const weight_slot *slot = &program->weight[i];
        if (!made_on_device(job, slot)) {
            int64_t per_piece = rows_per_piece(slot);
            size_t bytes = (size_t)(per_piece * row_bytes(slot)) + 2 * ARENA_ALIGN;
            n += (int)((slot->row.count + per_piece - 1) / per_piece);
            job->buffer_bytes = bytes > job->buffer_bytes ? bytes : job->buffer_bytes;
        }
        job->piece_end[i] = n;
    }
    job->n_pieces = n;
    return LS_OK;
}

/* ---- One thread ---- */

typedef struct loader {
    const cuda_rank *rank;
    uint8_t *buffer[BUFFERS];
    CUevent copied[BUFFERS];
    int n_made; /* buffers and events that exist */
    int turn;
} loader;

static ls_status loader_open(loader *l, const cuda_rank *rank, size_t bytes, ls_error *err) {
    const cuda_driver *api = rank->driver;
    *l = (loader){.rank = rank};
    TRY(cuda_rank_enter(rank, err));
    for (int i = 0; i < BUFFERS; i++) {
        void *pinned;
        TRY(cuda_check(rank, api->cuEventCreate(&l->copied[i], CU_EVENT_DISABLE_TIMING), "creating an event", err));
        CUresult rc = api->cuMemHostAlloc(&pinned, bytes, CU_MEMHOSTALLOC_PORTABLE);
        if (rc != CUDA_SUCCESS) {
            api->cuEventDestroy(l->copied[i]);
            return cuda_check(rank, rc, "reserving pinned memory for loading", err);
        }
        l->buffer[i] = pinned;
        l->n_made++;
    }
    return LS_OK;
}

/* Waits for the thread's own copies, which is why nothing of theirs is in flight when the buffers go. */
static ls_status loader_close(loader *l, ls_error *err) {
    const cuda_driver *api = l->rank->driver;
    ls_status st = LS_OK;
    for (int i = 0; i < l->n_made; i++) {
        CUresult rc = api->cuEventSynchronize(l->copied[i]); /* one that was never recorded is done */
        st = st == LS_OK ? cuda_check(l->rank, rc, "copying weights", err) : st;
        api->cuEventDestroy(l->copied[i]);
        api->cuMemFreeHost(l->buffer[i]);
    }
    return st;
}

static ls_status copy(const cuda_rank *rank, const void *to, int64_t skip, const void *from, int64_t bytes,
                      ls_error *err) {
    CUdeviceptr at = (CUdeviceptr)(uintptr_t)to + (CUdeviceptr)skip;
    return bytes == 0 ? LS_OK
                      : cuda_check(rank, rank->driver->cuMemcpyHtoDAsync(at, from, (size_t)bytes, rank->stream),
                                   "copying weights", err);
}

static ls_status load_piece(load_job *job, loader *l, int piece, ls_error *err) {
    const ls_engine *engine = job->engine;
    const ls_program *program = engine->program[0];
    int i = 0;
    while (job->piece_end[i] <= piece) {
        i++;
    }
    const weight_slot *slot = &program->weight[i];
    const ls_weight *weight = &engine->rank[0].weight[i];
    int64_t n = rows_per_piece(slot);
    int64_t first = (piece - (i > 0 ? job->piece_end[i - 1] : 0)) * n;
    int64_t last = first + n < slot->row.count ? first + n : slot->row.count;
    int turn = l->turn;
    l->turn = (turn + 1) % BUFFERS;
    TRY(cuda_check(l->rank, l->rank->driver->cuEventSynchronize(l->copied[turn]), "copying weights", err));
    uint8_t *buffer = l->buffer[turn];
    const int64_t n_rows = last - first, data_row = slot->col.count * (int64_t)ls_dtype_bytes(slot->format);
    const int64_t scale_row = slot->n_leaves * (int64_t)sizeof(float);
    float *scale = (float *)(buffer + arena_round((size_t)(n_rows * data_row)));
    TRY(weight_load_rows(program, &job->source, i, first, last, buffer, scale, err));
    TRY(copy(l->rank, weight->data, first * data_row, buffer, n_rows * data_row, err));
    TRY(copy(l->rank, weight->scale, first * scale_row, scale, n_rows * scale_row, err));
    return cuda_check(l->rank, l->rank->driver->cuEventRecord(l->copied[turn], l->rank->stream), "copying weights",
                      err);
}

static ls_status load_pieces(load_job *job, loader *l, ls_error *err) {
    for (;;) {
        int piece = atomic_fetch_add(&job->next, 1);
        if (piece >= job->n_pieces || atomic_load(&job->failed)) {
            return LS_OK;
        }
        TRY(load_piece(job, l, piece, err));
    }
}

static void load_thread(void *arg, int i_rank, const ls_team *team) {
    (void)i_rank;
    load_job *job = arg;
    if (team->thread >= job->n_pieces) {
        return; /* a small model needs fewer threads */
    }
    loader l;
    ls_error error = {0}, closing = {0};
    ls_status st = loader_open(&l, &engine_cuda(job->engine)->rank, job->buffer_bytes, &error);
    st = st == LS_OK ? load_pieces(job, &l, &error) : st;
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

/* ---- On the device ---- */

static ls_status make_dummy(const load_job *job, int i, ls_error *err) {
    enum { BLOCK = 256 };
    const ls_engine *engine = job->engine;
    cuda_engine *cuda = engine_cuda(engine);
    const weight_slot *slot = &engine->program[0]->weight[i];
    dummy_formula formula = weight_dummy(slot, job->source.dummy_seed);
    load_dummy_args a = {.out = (uint64_t)(uintptr_t)engine->rank[0].weight[i].data,
                         .hash = formula.hash,
                         .rows = slot->row.count,
                         .cols = slot->col.count,
                         .first_row = slot->row.first,
                         .first_col = slot->col.first,
                         .all_cols = slot->cols,
                         .offset = formula.offset,
                         .scale = formula.scale,
                         .dtype = (int32_t)job->source.dummy_dtype,
                         .format = (int32_t)slot->format};
    int64_t n_blocks = (a.rows * a.cols + BLOCK - 1) / BLOCK, most = 32 * (int64_t)cuda->rank.facts.sm_count;
    void *args[] = {&a};
    if (n_blocks == 0) {
        return LS_OK;
    }
    return cuda_launch(&cuda->rank, cuda->load_dummy, "load_dummy", (unsigned)(n_blocks < most ? n_blocks : most), 1, 1,
                       BLOCK, 0, args, err);
}

ls_status cuda_load_weights(ls_engine *engine, ls_error *err) {
    const ls_model *model = engine->model;
    const ls_program *program = engine->program[0];
    load_job job = {.engine = engine,
                    .source = {model->checkpoint, model->dummy_seed, model->spec.dtype},
                    .lock = PTHREAD_MUTEX_INITIALIZER};
    ls_status st = cut(&job, program, err);
    for (int i = 0; i < program->n_weights && st == LS_OK; i++) {
        st = made_on_device(&job, &program->weight[i]) ? make_dummy(&job, i, err) : LS_OK;
    }
    if (st == LS_OK && job.n_pieces > 0) {
        rank_group_run(engine->group, load_thread, &job);
        if (atomic_load(&job.failed)) {
            st = job.error.status;
            if (err != NULL) {
                *err = job.error;
            }
        }
    }
    free(job.piece_end);
    return st;
}
