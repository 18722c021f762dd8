/* See measure.h. */
#include "backend/cuda/measure.h"

#include <stdlib.h>

enum { MAX_PASSES = 8, TIMEOUT_S = 30 };

/* ---- Timing ---- */

/* One unit of what is timed, enqueued on rank->stream. */
typedef ls_status (*timed_work)(cuda_rank *rank, void *arg, ls_error *err);

typedef struct timer {
    CUevent begin, end;
} timer;

static void timer_close(const cuda_rank *rank, timer *t) {
    if (t->begin != NULL) {
        rank->driver->cuEventDestroy(t->begin);
    }
    if (t->end != NULL) {
        rank->driver->cuEventDestroy(t->end);
    }
}

static ls_status timer_open(const cuda_rank *rank, timer *t, ls_error *err) {
    *t = (timer){NULL, NULL};
    ls_status st = cuda_check(rank, rank->driver->cuEventCreate(&t->begin, CU_EVENT_DEFAULT), "creating an event", err);
    if (st == LS_OK) {
        st = cuda_check(rank, rank->driver->cuEventCreate(&t->end, CU_EVENT_DEFAULT), "creating an event", err);
    }
    if (st != LS_OK) {
        timer_close(rank, t);
    }
    return st;
}

/* Microseconds of n runs of work. */
static ls_status time_pass(cuda_rank *rank, const timer *t, timed_work work, void *arg, int n, double *us,
                           ls_error *err) {
    const cuda_driver *api = rank->driver;
    float ms = 0;
    TRY(cuda_check(rank, api->cuEventRecord(t->begin, rank->stream), "timing", err));
    for (int i = 0; i < n; i++) {
        TRY(work(rank, arg, err));
    }
    TRY(cuda_check(rank, api->cuEventRecord(t->end, rank->stream), "timing", err));
    TRY(cuda_rank_wait(rank, "a measurement", TIMEOUT_S, err));
    TRY(cuda_check(rank, api->cuEventElapsedTime(&ms, t->begin, t->end), "timing", err));
    *us = (double)ms * 1000;
    return LS_OK;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts us[n]; the shortest and the median. */
static ls_rate summarise(double *us, int n) {
    qsort(us, (size_t)n, sizeof *us, compare_doubles);
    return (ls_rate){us[0], us[n / 2]};
}

/* The shortest and the median of n_passes times n runs, in microseconds of one run. A first pass is not counted. */
static ls_status time_work(cuda_rank *rank, timed_work work, void *arg, int n_passes, int n, ls_rate *out,
                           ls_error *err) {
    double us[MAX_PASSES];
    timer t;
    ls_status st = LS_OK;
    TRY(timer_open(rank, &t, err));
    for (int pass = -1; pass < n_passes && st == LS_OK; pass++) {
        st = time_pass(rank, &t, work, arg, n, &us[pass < 0 ? 0 : pass], err);
    }
    timer_close(rank, &t);
    TRY(st);
    *out = summarise(us, n_passes);
    out->best /= n;
    out->median /= n;
    return LS_OK;
}

static ls_rate per_second(double units, ls_rate us) {
    return (ls_rate){us.best > 0 ? units * 1e6 / us.best : 0, us.median > 0 ? units * 1e6 / us.median : 0};
}

/* ---- Reading ---- */

typedef struct read_job {
    CUfunction read_all;
    CUdeviceptr data, sink;
    int64_t n_words;
    unsigned n_blocks;
} read_job;

static ls_status read_once(cuda_rank *rank, void *arg, ls_error *err) {
    enum { BLOCK = 512 };
    read_job *job = arg;
    void *args[] = {&job->data, &job->n_words, &job->sink};
    return cuda_launch(rank, job->read_all, "read_all", job->n_blocks, 1, 1, BLOCK, 0, args, err);
}

ls_status cuda_measure_read(cuda_rank *rank, CUdeviceptr data, int64_t bytes, CUdeviceptr sink, ls_rate *out,
                            ls_error *err) {
    const int64_t enough_bytes = (int64_t)1 << 30;
    int n = (int)(enough_bytes / (bytes + 1));
    n = n < 1 ? 1 : n > 100 ? 100 : n;
    read_job job = {.data = data, .sink = sink, .n_words = bytes / 16};
    ls_rate best = {0, 0};
    TRY(cuda_rank_kernel(rank, "read_all", &job.read_all, err));
    for (unsigned per_sm = 1; per_sm <= 4; per_sm *= 2) { /* 64 to 256 KB in flight: how much it is matters */
        ls_rate us;
        job.n_blocks = per_sm * (unsigned)rank->facts.sm_count;
        TRY(time_work(rank, read_once, &job, 6, n, &us, err));
        ls_rate rate = per_second((double)bytes, us);
        best = rate.best > best.best ? rate : best;
    }
    *out = best;
    return LS_OK;
}

/* ---- Copies ---- */

typedef struct copy_job {
    CUdeviceptr data;
    void *pinned;
    size_t bytes;
} copy_job;

static ls_status copy_in(cuda_rank *rank, void *arg, ls_error *err) {
    const copy_job *job = arg;
    return cuda_check(rank, rank->driver->cuMemcpyHtoDAsync(job->data, job->pinned, job->bytes, rank->stream),
                      "copying to the device", err);
}

static ls_status copy_out(cuda_rank *rank, void *arg, ls_error *err) {
    const copy_job *job = arg;
    return cuda_check(rank, rank->driver->cuMemcpyDtoHAsync(job->pinned, job->data, job->bytes, rank->stream),
                      "copying from the device", err);
}

static ls_status copy_within(cuda_rank *rank, void *arg, ls_error *err) {
    const copy_job *job = arg;
    return cuda_check(rank,
                      rank->driver->cuMemcpyDtoDAsync(job->data + job->bytes, job->data, job->bytes, rank->stream),
                      "copying within the device", err);
}

ls_status cuda_measure_copy(cuda_rank *rank, CUdeviceptr data, int64_t bytes, ls_rate *out, ls_error *err) {
    copy_job job = {data, NULL, (size_t)bytes / 2};
    ls_rate us;
    TRY(time_work(rank, copy_within, &job, 5, 4, &us, err));
    *out = per_second(2 * (double)job.bytes, us);
    return LS_OK;
}

ls_status cuda_measure_copies(cuda_rank *rank, CUdeviceptr data, void *pinned, int64_t bytes, ls_rate *to_device,
                              ls_rate *to_host, ls_error *err) {
    copy_job job = {data, pinned, (size_t)bytes};
    ls_rate in, out;
    TRY(time_work(rank, copy_in, &job, 5, 1, &in, err));
    TRY(time_work(rank, copy_out, &job, 5, 1, &out, err));
    *to_device = per_second((double)bytes, in);
    *to_host = per_second((double)bytes, out);
    return LS_OK;
}

/* ---- From kernel to kernel ---- */

enum { CHAIN = 1000, CHAIN_PASSES = 5 };

static ls_status enqueue_chain(cuda_rank *rank, CUfunction fn, bool overlap, CUdeviceptr count, ls_error *err) {
    CUlaunchAttribute attribute = {.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                                   .value.programmaticStreamSerializationAllowed = 1};
    const CUlaunchConfig config = {.gridDimX = 1,
                                   .gridDimY = 1,
                                   .gridDimZ = 1,
                                   .blockDimX = 32,
                                   .blockDimY = 1,
                                   .blockDimZ = 1,
                                   .hStream = rank->stream,
                                   .attrs = overlap ? &attribute : NULL,
                                   .numAttrs = overlap ? 1 : 0};
    void *args[] = {&count};
    for (int i = 0; i < CHAIN; i++) {
        TRY(cuda_check(rank, rank->driver->cuLaunchKernelEx(&config, fn, args, NULL), "count_launch", err));
    }
    return LS_OK;
}

static ls_status capture_chain(cuda_rank *rank, CUfunction fn, bool overlap, CUdeviceptr count, CUgraphExec *out,
                               ls_error *err) {
    const cuda_driver *api = rank->driver;
    CUgraph graph = NULL;
    TRY(cuda_check(rank, api->cuStreamBeginCapture(rank->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
                   "capturing launches", err));
    ls_status st = enqueue_chain(rank, fn, overlap, count, err);
    CUresult rc = api->cuStreamEndCapture(rank->stream, &graph); /* in any case: it ends the stream's capturing */
    TRY(st);
    TRY(cuda_check(rank, rc, "capturing launches", err));
    rc = api->cuGraphInstantiate(out, graph, 0);
    api->cuGraphDestroy(graph);
    return cuda_check(rank, rc, "making a graph", err);
}

static ls_status launch_graph(cuda_rank *rank, void *arg, ls_error *err) {
    return cuda_check(rank, rank->driver->cuGraphLaunch(*(CUgraphExec *)arg, rank->stream), "starting a graph", err);
}

ls_status cuda_measure_chain(cuda_rank *rank, bool overlap, CUdeviceptr count, ls_rate *out_us, ls_error *err) {
    const cuda_driver *api = rank->driver;
    CUfunction fn;
    CUgraphExec graph = NULL;
    ls_rate us;
    uint32_t n = 0;
    TRY(cuda_rank_kernel(rank, "count_launch", &fn, err));
    TRY(cuda_check(rank, api->cuMemsetD8Async(count, 0, sizeof n, rank->stream), "clearing a counter", err));
    TRY(capture_chain(rank, fn, overlap, count, &graph, err));
    ls_status st = time_work(rank, launch_graph, &graph, CHAIN_PASSES, 1, &us, err);
    api->cuGraphExecDestroy(graph);
    TRY(st);
    TRY(cuda_check(rank, api->cuMemcpyDtoH(&n, count, sizeof n), "reading a counter", err));
    if (n != CHAIN * (CHAIN_PASSES + 1)) {
        return error_set(err, LS_EINTERNAL, "a chain of %d kernels counted %u%s", CHAIN * (CHAIN_PASSES + 1), n,
                         overlap ? " with overlap" : "");
    }
    *out_us = (ls_rate){us.best / CHAIN, us.median / CHAIN};
    return LS_OK;
}

/* ---- Matmul ---- */

typedef struct gemm_job {
    cublaslt *lt;
    const cuda_gemm *gemm;
    int n_runs;
} gemm_job;

enum { GEMM_RUNS = 6, GEMM_PASSES = 5 };

static cublaslt_shape shape_of(const cuda_gemm *g) {
    return (cublaslt_shape){g->dtype, g->n, g->n, g->n, 1, 0};
}

static ls_status multiply(cuda_rank *rank, void *arg, ls_error *err) {
    gemm_job *job = arg;
    const cuda_gemm *g = job->gemm;
    if (!cublaslt_matmul(job->lt, shape_of(g), g->n, g->x, g->w, g->y, g->workspace, rank->stream)) {
        return error_set(err, LS_EUNSUPPORTED, "cuBLASLt refuses a matmul of %d x %d x %d in %s", g->n, g->n, g->n,
                         ls_dtype_name(g->dtype));
    }
    if (++job->n_runs == GEMM_RUNS * GEMM_PASSES && g->meanwhile != NULL) {
        g->meanwhile(g->arg);
    }
    return LS_OK;
}

ls_status cuda_measure_gemm(cuda_rank *rank, cublaslt *lt, const cuda_gemm *g, ls_rate *out, ls_error *err) {
    gemm_job job = {.lt = lt, .gemm = g};
    ls_rate us;
    TRY(cublaslt_plan(lt, shape_of(g), g->n, g->w, g->y, g->workspace, rank->stream, err));
    TRY(time_work(rank, multiply, &job, GEMM_PASSES, GEMM_RUNS, &us, err));
    *out = per_second(2.0 * g->n * g->n * g->n, us);
    return LS_OK;
}

ls_status cuda_measure_fill(cuda_rank *rank, CUdeviceptr out, int64_t n, ls_error *err) {
    load_args a = {.out = (uint64_t)out,
                   .rows = 1,
                   .cols = n,
                   .all_cols = n,
                   .hash = 1,
                   .factor = 1.0F,
                   .dtype = LOAD_BF16,
                   .format = LOAD_BF16};
    cuda_load_kernels kernels;
    TRY(cuda_load_open(&kernels, rank, err));
    return cuda_load_rows(rank, &kernels, rank->stream, &a, err);
}
