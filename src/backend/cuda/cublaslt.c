/* See cublaslt.h. cuBLAS is column-major: y^T [n][m] = w^T^T [n][k] x^T [k][m], so w is A (transposed), x is B, y is D. */
#include "backend/cuda/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SHAPES = 32, MAX_BUCKETS = 16, FIRST_BUCKET = 16, MAX_CHOICES = 8 };

#define CUBLASLT_MAP(X)                                                                                                \
    X(cublasLtCreate)                                                                                                  \
    X(cublasLtDestroy)                                                                                                 \
    X(cublasLtGetStatusName)                                                                                           \
    X(cublasLtMatmul)                                                                                                  \
    X(cublasLtMatmulAlgoGetHeuristic)                                                                                  \
    X(cublasLtMatmulAlgoConfigGetAttribute)                                                                            \
    X(cublasLtMatmulDescCreate)                                                                                        \
    X(cublasLtMatmulDescDestroy)                                                                                       \
    X(cublasLtMatmulDescSetAttribute)                                                                                  \
    X(cublasLtMatrixLayoutCreate)                                                                                      \
    X(cublasLtMatrixLayoutDestroy)                                                                                     \
    X(cublasLtMatrixLayoutSetAttribute)                                                                                \
    X(cublasLtMatmulPreferenceCreate)                                                                                  \
    X(cublasLtMatmulPreferenceDestroy)                                                                                 \
    X(cublasLtMatmulPreferenceSetAttribute)

/* Bucket i: up to FIRST_BUCKET << i rows. */
typedef struct lt_shape {
    cublaslt_shape is;
    cublasLtMatrixLayout_t w, x, y;
    bool has_algo[MAX_BUCKETS];
    cublasLtMatmulAlgo_t algo[MAX_BUCKETS];
} lt_shape;

struct cublaslt {
    void *library;
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t matmul;
    cublasLtMatmulPreference_t preference;
    int passed; /* see cublaslt_pass_over */
    int n_shapes;
    lt_shape shape[MAX_SHAPES];
#define X(name) __typeof__(&(name)) name;
    CUBLASLT_MAP(X)
#undef X
};

/* ---- Opening ---- */

static void *open_first_of(const char *pattern) {
    glob_t found;
    void *library = NULL;
    if (glob(pattern, GLOB_BRACE, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc && library == NULL; i++) {
            library = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        }
    }
    globfree(&found);
    return library;
}

static ls_status open_library(void **out, ls_error *err) {
    *out = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (*out == NULL) { /* the text of dlerror must outlive the tries below */
        error_set(err, LS_ENOTFOUND, "cuBLASLt: %s", dlerror());
        *out = open_first_of("{/usr/local/cuda/lib64,/usr/{local/,}lib/python3*/{site,dist}-packages/nvidia/cu13/lib}"
                             "/libcublasLt.so.13");
    }
    return *out != NULL ? LS_OK : LS_ENOTFOUND;
}

void cublaslt_preload(void) {
    void *library;
    if (open_library(&library, NULL) == LS_OK) {
        dlclose(library); /* it stays */
    }
}

static ls_status load(cublaslt *lt, ls_error *err) {
    TRY(open_library(&lt->library, err));
#define X(name)                                                                                                        \
    *(void **)&lt->name = dlsym(lt->library, #name);                                                                   \
    if (lt->name == NULL) {                                                                                            \
        return error_set(err, LS_ENOTFOUND, "cuBLASLt: libcublasLt.so.13 has no %s", #name);                           \
    }
    CUBLASLT_MAP(X)
#undef X
    return LS_OK;
}

static ls_status lt_check(const cublaslt *lt, cublasStatus_t rc, const char *what, ls_error *err) {
    return rc == CUBLAS_STATUS_SUCCESS
               ? LS_OK
               : error_set(err, LS_EABORTED, "cuBLASLt: %s: %s", what, lt->cublasLtGetStatusName(rc));
}

ls_status cublaslt_open(cublaslt **out, ls_error *err) {
    ls_status st = LS_OK;
    cublaslt *lt = calloc(1, sizeof *lt);
    if (lt == NULL) {
        return error_set(err, LS_ENOMEM, "cuBLASLt: out of memory");
    }
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const uint64_t workspace = CUBLASLT_WORKSPACE_BYTES;
    const uint32_t no_reduction = CUBLASLT_REDUCTION_SCHEME_NONE, align = CUBLASLT_ALIGN;
    TRY_GOTO(load(lt, err), fail);
    TRY_GOTO(lt_check(lt, lt->cublasLtCreate(&lt->handle), "opening", err), fail);
    TRY_GOTO(lt_check(lt, lt->cublasLtMatmulDescCreate(&lt->matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F), "matmul", err),
             fail);
    TRY_GOTO(lt_check(lt,
                      lt->cublasLtMatmulDescSetAttribute(lt->matmul, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                         sizeof transposed),
                      "matmul", err),
             fail);
    TRY_GOTO(lt_check(lt, lt->cublasLtMatmulPreferenceCreate(&lt->preference), "preference", err), fail);
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        const void *value;
        size_t bytes;
    } want[] = {{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
                {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &no_reduction, sizeof no_reduction},
                {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align, sizeof align},
                {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align, sizeof align},
                {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align, sizeof align},
                {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align, sizeof align}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        TRY_GOTO(lt_check(lt,
                          lt->cublasLtMatmulPreferenceSetAttribute(lt->preference, want[i].attribute, want[i].value,
                                                                   want[i].bytes),
                          "preference", err),
                 fail);
    }
    *out = lt;
    return LS_OK;
fail:
    cublaslt_close(&lt);
    return st;
}

static void shape_deinit(cublaslt *lt, lt_shape *shape) {
    cublasLtMatrixLayout_t layout[] = {shape->w, shape->x, shape->y};
    for (size_t i = 0; i < sizeof layout / sizeof *layout; i++) {
        if (layout[i] != NULL) {
            lt->cublasLtMatrixLayoutDestroy(layout[i]);
        }
    }
}

void cublaslt_close(cublaslt **lt_) {
    cublaslt *lt = *lt_;
    *lt_ = NULL;
    if (lt == NULL) {
        return;
    }
    for (int i = 0; i < lt->n_shapes; i++) {
        shape_deinit(lt, &lt->shape[i]);
    }
    if (lt->preference != NULL) {
        lt->cublasLtMatmulPreferenceDestroy(lt->preference);
    }
    if (lt->matmul != NULL) {
        lt->cublasLtMatmulDescDestroy(lt->matmul);
    }
    if (lt->handle != NULL) {
        lt->cublasLtDestroy(lt->handle);
    }
    if (lt->library != NULL) {
        dlclose(lt->library);
    }
    free(lt);
}

/* ---- Planning ---- */

static lt_shape *find_shape(cublaslt *lt, cublaslt_shape shape) {
    for (int i = 0; i < lt->n_shapes; i++) {
        const cublaslt_shape *is = &lt->shape[i].is;
        if (is->dtype == shape.dtype && is->n == shape.n && is->k == shape.k && is->y_stride == shape.y_stride &&
            is->parts == shape.parts && is->part_stride == shape.part_stride) {
            return &lt->shape[i];
        }
    }
    return NULL;
}

static int bucket_of(int m) {
    int bucket = 0;
    while (FIRST_BUCKET << bucket < m && bucket < MAX_BUCKETS - 1) {
        bucket++;
    }
    return bucket;
}

static bool set_rows(const cublaslt *lt, const lt_shape *shape, uint64_t m) {
    return lt->cublasLtMatrixLayoutSetAttribute(shape->x, CUBLASLT_MATRIX_LAYOUT_COLS, &m, sizeof m) ==
               CUBLAS_STATUS_SUCCESS &&
           lt->cublasLtMatrixLayoutSetAttribute(shape->y, CUBLASLT_MATRIX_LAYOUT_COLS, &m, sizeof m) ==
               CUBLAS_STATUS_SUCCESS;
}

static bool run(const cublaslt *lt, const lt_shape *shape, int bucket, int m, CUdeviceptr x, CUdeviceptr w,
                CUdeviceptr y, CUdeviceptr workspace, CUstream stream) {
    const float one = 1.0F, zero = 0.0F;
    return set_rows(lt, shape, (uint64_t)m) &&
           lt->cublasLtMatmul(lt->handle, lt->matmul, &one, (const void *)w, shape->w, (const void *)x, shape->x, &zero,
                              (const void *)y, shape->y, (void *)y, shape->y, &shape->algo[bucket], (void *)workspace,
                              CUBLASLT_WORKSPACE_BYTES, (cudaStream_t)stream) == CUBLAS_STATUS_SUCCESS;
}

/* The heuristic's best without split-K. For few rows in 16 bits its best may be several times slower than what it has for
 * more rows, which costs few rows nothing: they wait for the weights. */
static bool choose(const cublaslt *lt, lt_shape *shape, int bucket) {
    enum { FEWEST_IN_16_BITS = 128 };
    cublasLtMatmulHeuristicResult_t choice[MAX_CHOICES];
    int n = 0;
    uint64_t rows = (uint64_t)FIRST_BUCKET << bucket;
    rows = shape->is.dtype != LS_F32 && rows < FEWEST_IN_16_BITS ? FEWEST_IN_16_BITS : rows;
    if (!set_rows(lt, shape, rows) ||
        lt->cublasLtMatmulAlgoGetHeuristic(lt->handle, lt->matmul, shape->w, shape->x, shape->y, shape->y,
                                           lt->preference, MAX_CHOICES, choice, &n) != CUBLAS_STATUS_SUCCESS) {
        return false;
    }
    int left = lt->passed;
    bool found = false;
    for (int i = 0; i < n && left >= 0; i++) {
        int32_t splits = 0;
        size_t written;
        if (choice[i].state == CUBLAS_STATUS_SUCCESS &&
            lt->cublasLtMatmulAlgoConfigGetAttribute(&choice[i].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits,
                                                     sizeof splits, &written) == CUBLAS_STATUS_SUCCESS &&
            splits <= 1) {
            shape->algo[bucket] = choice[i].algo;
            found = true;
            left--;
        }
    }
    return found;
}

void cublaslt_pass_over(cublaslt *lt, int passed) {
    lt->passed = passed;
}

/* The parts are a batch: part i of w's and x's columns. */
static ls_status set_parts(const cublaslt *lt, lt_shape *shape, ls_error *err) {
    const int32_t parts = shape->is.parts;
    const int64_t k_part = shape->is.k / parts;
    const struct {
        cublasLtMatrixLayout_t layout;
        int64_t stride;
    } each[] = {{shape->w, k_part}, {shape->x, k_part}, {shape->y, shape->is.part_stride}};
    for (size_t i = 0; i < sizeof each / sizeof *each; i++) {
        TRY(lt_check(lt,
                     lt->cublasLtMatrixLayoutSetAttribute(each[i].layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &parts,
                                                          sizeof parts),
                     "parts", err));
        TRY(lt_check(lt,
                     lt->cublasLtMatrixLayoutSetAttribute(each[i].layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                          &each[i].stride, sizeof each[i].stride),
                     "parts", err));
    }
    return LS_OK;
}

ls_status cublaslt_plan(cublaslt *lt, cublaslt_shape is, int m_max, CUdeviceptr w, CUdeviceptr y, CUdeviceptr workspace,
                        CUstream stream, ls_error *err) {
    const cudaDataType_t type = is.dtype == LS_BF16 ? CUDA_R_16BF : is.dtype == LS_F16 ? CUDA_R_16F : CUDA_R_32F;
    const int64_t k_part = is.k / is.parts, part_bytes = k_part * (int64_t)ls_dtype_bytes(is.dtype);
    if (is.n <= 0 || is.k <= 0 || part_bytes % CUBLASLT_ALIGN != 0 || is.k % is.parts != 0 ||
        is.y_stride * 4 % CUBLASLT_ALIGN != 0 || is.part_stride * 4 % CUBLASLT_ALIGN != 0 ||
        find_shape(lt, is) != NULL) {
        return LS_OK;
    }
    if (workspace % CUBLASLT_WORKSPACE_ALIGN != 0) {
        return error_set(err, LS_EINTERNAL, "cuBLASLt: its workspace lies on no border of %d bytes",
                         CUBLASLT_WORKSPACE_ALIGN);
    }
    if (lt->n_shapes == MAX_SHAPES) {
        return error_set(err, LS_EINTERNAL, "cuBLASLt: more than %d shapes", MAX_SHAPES);
    }
    lt_shape *shape = &lt->shape[lt->n_shapes++];
    *shape = (lt_shape){.is = is};
    TRY(lt_check(lt, lt->cublasLtMatrixLayoutCreate(&shape->w, type, (uint64_t)k_part, (uint64_t)is.n, is.k), "layout",
                 err));
    TRY(lt_check(lt, lt->cublasLtMatrixLayoutCreate(&shape->x, type, (uint64_t)k_part, 1, is.k), "layout", err));
    TRY(lt_check(lt, lt->cublasLtMatrixLayoutCreate(&shape->y, CUDA_R_32F, (uint64_t)is.n, 1, is.y_stride), "layout",
                 err));
    if (is.parts > 1) {
        TRY(set_parts(lt, shape, err));
    }
    for (int i = 0; i <= bucket_of(m_max); i++) {
        shape->has_algo[i] = choose(lt, shape, i);
        bool is_new = shape->has_algo[i] && (w | y) % CUBLASLT_ALIGN == 0 &&
                      (i == 0 || !shape->has_algo[i - 1] ||
                       memcmp(&shape->algo[i], &shape->algo[i - 1], sizeof shape->algo[i]) != 0);
        if (is_new) { /* loads its kernel; a row of w will do for x, and an algorithm that one row is too few for is left so */
            (void)run(lt, shape, i, 1, w, w, y, workspace, stream);
        }
    }
    return LS_OK;
}

bool cublaslt_has(cublaslt *lt, cublaslt_shape is, int m) {
    const lt_shape *shape = find_shape(lt, is);
    const int bucket = bucket_of(m);
    return shape != NULL && shape->has_algo[bucket] && m <= FIRST_BUCKET << bucket;
}

bool cublaslt_matmul(cublaslt *lt, cublaslt_shape is, int m, CUdeviceptr x, CUdeviceptr w, CUdeviceptr y,
                     CUdeviceptr workspace, CUstream stream) {
    const lt_shape *shape = find_shape(lt, is);
    const int bucket = bucket_of(m);
    return cublaslt_has(lt, is, m) && (x | w | y) % CUBLASLT_ALIGN == 0 &&
           run(lt, shape, bucket, m, x, w, y, workspace, stream);
}
