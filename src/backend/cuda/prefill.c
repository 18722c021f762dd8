/* Launches prefill and mixed steps, an op at a time. See cuda.h, and kern/prefill_*.cu for the kernels. */
#include <string.h>

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/cuda.h"
#include "backend/cuda/flash.h"
#include "backend/cuda/gemm.h"
#include "backend/cuda/kern/prefill_args.h"
#include "backend/cuda/wide.h"

_Static_assert((int)PREFILL_LEAVES == (int)LS_LEAVES && (int)PREFILL_LEAF_ALIGN == (int)LS_LEAF_ALIGN &&
                   (int)PREFILL_MAX_HEAD == (int)LS_MAX_HEAD && (int)CUDA_PAGE_TOKENS == (int)LS_PAGE_TOKENS,
               "kernels and engine agree");
_Static_assert(LS_F32 == 1 && LS_BF16 == 2 && LS_F16 == 3 && LS_INT8 == 4, "kern/prefill.cuh has the same numbers");

enum {
    CHUNK_ROWS = 2048,        /* qkv and ffn_in pass their f32 sums through scratch, that many rows at a time */
    MOST_ROWS_OF_PARTS = 128, /* see nodes_of */
    MOST_GRID_Y = 65535
};

/* ---- Kernels ---- */

#define HEADS(X, kernel) X(kernel##_64) X(kernel##_80) X(kernel##_96) X(kernel##_128) X(kernel##_256)
#define GEMMS(X, kernel)                                                                                               \
    X(kernel##_qkv_256)                                                                                                \
    X(kernel##_silu_256)                                                                                               \
    X(kernel##_silu_240) X(kernel##_silu_160) X(kernel##_rows_256) X(kernel##_rows_160) X(kernel##_rows_96)
#define PREFILL_KERNELS(X)                                                                                             \
    X(prefill_qkv)                                                                                                     \
    X(prefill_silu)                                                                                                    \
    X(prefill_faults)                                                                                                  \
    X(prefill_widen)                                                                                                   \
    X(prefill_mm_bf16_32)                                                                                              \
    X(prefill_mm_bf16_128)                                                                                             \
    X(prefill_mm_f16_32)                                                                                               \
    X(prefill_mm_f16_128)                                                                                              \
    X(prefill_mm_bf16_int8_32)                                                                                         \
    X(prefill_mm_bf16_int8_64)                                                                                         \
    X(prefill_mm_f16_int8_32)                                                                                          \
    X(prefill_mm_f16_int8_64)                                                                                          \
    X(prefill_mm_f32)                                                                                                  \
    X(prefill_mm_f32_int8)                                                                                             \
    HEADS(X, prefill_attn_bf16)                                                                                        \
    HEADS(X, prefill_attn_f16)                                                                                         \
    X(prefill_attn_any)                                                                                                \
    HEADS(X, prefill_flash_bf16)                                                                                       \
    HEADS(X, prefill_flash_f16)                                                                                        \
    X(wide_bf16_32_long)                                                                                               \
    X(wide_bf16_32)                                                                                                    \
    X(wide_bf16_64_long)                                                                                               \
    X(wide_bf16_64)                                                                                                    \
    X(wide_bf16_128)                                                                                                   \
    X(wide_f16_32_long)                                                                                                \
    X(wide_f16_32)                                                                                                     \
    X(wide_f16_64_long)                                                                                                \
    X(wide_f16_64)                                                                                                     \
    X(wide_f16_128)                                                                                                    \
    GEMMS(X, gemm_bf16)                                                                                                \
    GEMMS(X, gemm_f16)

enum {
#define X(name) FN_##name,
    PREFILL_KERNELS(X)
#undef X
        N_KERNELS
};

const char *const prefill_kernel_names[] = {
#define X(name) #name,
    PREFILL_KERNELS(X)
#undef X
};
const int n_prefill_kernels = N_KERNELS;

/* Head sizes with an mma kernel, in the order of the list above. */
static const int mma_heads[] = {64, 80, 96, 128, 256};
enum { N_MMA_HEADS = sizeof mma_heads / sizeof *mma_heads };

static unsigned mm_shared_bytes(unsigned rows, bool int8) {
    unsigned x = rows * (PREFILL_MM_K + PREFILL_MM_PAD) * 2;
    unsigned w = PREFILL_MM_N * (int8 ? PREFILL_MM_K + PREFILL_MM_PAD_BYTES : (PREFILL_MM_K + PREFILL_MM_PAD) * 2);
    return PREFILL_MM_STAGES * (x + w);
}

/* q, and a page of K and of V. */
static unsigned attn_shared_bytes(int d_head) {
    return (PREFILL_ATTN_ROWS + 2 * CUDA_PAGE_TOKENS) * ((unsigned)d_head + PREFILL_ATTN_PAD) * 2;
}

/* Floats of a row in shared memory: 16-byte pieces of neighbouring rows lie on different banks. */
static int attn_any_stride(int d_head) {
    return (d_head + 3) / 4 * 4 + 4;
}

/* q, 32 keys, and the probabilities. */
static unsigned attn_any_shared_bytes(int d_head) {
    return (unsigned)((PREFILL_ATTN_ANY_ROWS + 32) * attn_any_stride(d_head) + PREFILL_ATTN_ANY_ROWS * 33) * 4;
}

/* The most rows of a step for which decode's matmul kernels are faster than what there is otherwise; engine_of is the one
 * place that asks. `prefill_bench rows` prints all sides. Where wide.c serves it begins
 * behind the rows that decode's kernels take in one tile. Time to first token of
 * Qwen3-4B on an H100 in ms, decode's kernels / cuBLASLt (int8: the kernel of prefill_matmul.cu, which the
 * head and shapes that cuBLASLt refuses still run; layers widen a weight and leave it to cuBLASLt, and 96 is reckoned from bf16's
 * times plus 3 bytes of memory traffic a weight):
 *
 *   rows       4          8          10         26         32         48         64         128        512
 *   bf16                             4.3/4.9    4.8/5.1    4.9/5.1    8.1/5.2    8.3/5.3
 *   f32        12/14      18/15      23/16      57/16                            124/20     215/33
 *   w8a16                            3.2/       3.7/       3.8/       5.9/17     6.1/18     11/20      39/44
 */
static int few_rows(const cuda_rank *rank, bool int8, bool is_widened) {
    const bool f32 = rank->bind.dtype == LS_F32;
    if (rank->wide && !int8) {
        return CUDA_MAX_DECODE;
    }
    if (is_widened) {
        return 96;
    }
    if (rank->cublaslt == NULL && !int8) {
        return f32 ? 16 : 64;
    }
    return f32 ? 4 : int8 ? 512 : 32;
}

static ls_status launch(cuda_rank *rank, int fn, unsigned grid_x, unsigned grid_y, unsigned block,
                        unsigned shared_bytes, void *args, ls_error *err) {
    return cuda_launch(rank, rank->prefill_fn[fn], prefill_kernel_names[fn], grid_x, grid_y, 1, block, shared_bytes,
                       (void *[]){args}, err);
}

/* qkv and attn, which wait for the kernels before them themselves. */
static ls_status launch_overlapping(cuda_rank *rank, int fn, unsigned grid_x, unsigned grid_y, unsigned block,
                                    unsigned shared_bytes, void *args, ls_error *err) {
    return cuda_launch_overlapping(rank, rank->prefill_fn[fn], prefill_kernel_names[fn], grid_x, grid_y, 1, block,
                                   shared_bytes, (void *[]){args}, err);
}

static unsigned divide_up(int64_t n, int64_t by) {
    return (unsigned)((n + by - 1) / by);
}

/* ---- Memory ---- */

static int chunk_rows(const ls_bind *bind) {
    return bind->m_max < CHUNK_ROWS ? bind->m_max : CHUNK_ROWS;
}

/* `rows` rows of `cols` floats, rounded up so that what follows is aligned. */
static int64_t scratch_floats(int64_t rows, int64_t cols) {
    return (rows * cols + 63) / 64 * 64;
}

static int64_t qkv_cols(const op_qkv *a) {
    return (int64_t)(a->n_heads_loc + 2 * a->n_kv_loc) * a->d_head;
}

/* What an int8 weight of a layer takes in the run dtype, for cuBLASLt; 0 where prefill_matmul.cu's kernel multiplies it. */
static int64_t widened_bytes(const ls_bind *bind, int i_weight) {
    const ls_weight *w = &bind->weight[i_weight];
    const bool can = w->format == LS_INT8 && bind->dtype != LS_F32 && w->cols % 16 == 0;
    return can ? (int64_t)w->rows * w->cols * (int64_t)ls_dtype_bytes(bind->dtype) : 0;
}

/* Of the largest, since they pass one at a time. The head is left out: it is the largest by far and sees few rows. */
static int64_t most_widened_bytes(const ls_op *op, int n_ops, const ls_bind *bind) {
    int64_t most = 0;
    for (int i = 0; i < n_ops; i++) {
        int weight[] = {-1, -1, -1};
        if (op[i].kind == OP_QKV) {
            memcpy(weight, (int[]){op[i].qkv.q, op[i].qkv.k, op[i].qkv.v}, sizeof weight);
        } else if (op[i].kind == OP_FFN_IN) {
            memcpy(weight, (int[]){op[i].ffn_in.gate, op[i].ffn_in.up, -1}, sizeof weight);
        } else if (op[i].kind == OP_OUT || op[i].kind == OP_FFN_OUT) {
            weight[0] = op[i].row.weight;
        }
        for (int j = 0; j < 3 && weight[j] >= 0; j++) {
            const int64_t bytes = widened_bytes(bind, weight[j]);
            most = bytes > most ? bytes : most;
        }
    }
    return most;
}

static int64_t scratch_of_sums(const ls_op *op, int n_ops, const ls_bind *bind) {
    int64_t floats = scratch_floats(1, bind->d_model); /* the trial runs of cublaslt_plan: a row of any width */
    for (int i = 0; i < n_ops; i++) {
        int64_t n = op[i].kind == OP_QKV      ? scratch_floats(chunk_rows(bind), qkv_cols(&op[i].qkv))
                    : op[i].kind == OP_FFN_IN ? 2 * scratch_floats(chunk_rows(bind), op[i].ffn_in.d_ffn_loc)
                    : op[i].kind == OP_HEAD   ? scratch_floats(1, op[i].head.vocab_count)
                                              : 0;
        floats = n > floats ? n : floats;
    }
    return floats;
}

/* cuBLASLt's scratch, or wide.c's. */
static size_t scratch_of_matmuls(const ls_op *op, int n_ops, const ls_bind *bind) {
    const size_t wide = (wide_workspace(op, n_ops, bind) + 255) / 256 * 256;
    return wide > CUBLASLT_WORKSPACE_BYTES ? wide : CUBLASLT_WORKSPACE_BYTES;
}

/* The matmuls' scratch, then f32 sums, then a widened weight. */
size_t prefill_workspace(const ls_op *op, int n_ops, const ls_bind *bind, int max_len) {
    (void)max_len;
    return scratch_of_matmuls(op, n_ops, bind) + (size_t)scratch_of_sums(op, n_ops, bind) * sizeof(float) +
           (size_t)most_widened_bytes(op, n_ops, bind);
}

static CUdeviceptr scratch_of(const cuda_rank *rank) {
    return rank->sums;
}

static CUdeviceptr address(const void *pointer) {
    return (CUdeviceptr)(uintptr_t)pointer;
}

/* Row `row` of a buffer of the run dtype. */
static void *act_row(const ls_bind *bind, ls_buf buf, int64_t row, int64_t cols) {
    return (uint8_t *)bind->buf[buf] + (size_t)(row * cols) * ls_dtype_bytes(bind->dtype);
}

/* This rank's first node of a slot; the next slot lies CUDA_NODES nodes on. */
static int64_t slot_at(const ls_bind *bind, int slot) {
    return (int64_t)slot * CUDA_NODES * bind->m_max * bind->d_model;
}

/* ---- Preparation ---- */

/* Equal parts of k whose sums cuBLASLt leaves apart: more blocks than few rows give, in a fixed order, where split-K has none
 * and tiles of all of k leave most of the chip idle. They are nodes of the leaf tree. */
typedef struct parts {
    int n;
    int64_t stride; /* floats from one's sums to the next one's */
} parts;

static const parts whole = {1, 0};

static cublaslt_shape shape_of(const ls_bind *bind, const ls_weight *w, int64_t y_stride, parts cut) {
    return (cublaslt_shape){bind->dtype, w->rows, w->cols, y_stride, cut.n, cut.stride};
}

/* The most parts that are equal and not too short, of columns that are leaves [first, first + count) of k_total. */
static int count_parts(const ls_bind *bind, int64_t k_total, int first, int count, int most) {
    const int64_t base = leaf_border(k_total, first), k = leaf_border(k_total, first + count) - base;
    const int shortest = bind->dtype == LS_F32 ? 256 : 1024;
    int n = count < most ? count : most;
    for (; n > 1; n /= 2) {
        bool equal = k % n == 0 && k / n >= shortest;
        for (int i = 1; i < n && equal; i++) {
            equal = leaf_border(k_total, first + i * count / n) - base == i * (k / n);
        }
        if (equal) {
            break;
        }
    }
    return n;
}

/* Of out and ffn_out: in BUF_PART. */
static parts row_parts(const ls_bind *bind, const op_row *a) {
    int n = count_parts(bind, a->k_total, a->leaf_first, a->leaf_count, CUDA_NODES / bind->group.size);
    return (parts){n, n > 1 ? (int64_t)bind->m_max * bind->d_model : 0};
}

/* Of qkv and ffn_in: in scratch, which then has room for fewer rows. In f32 alone: 16-bit tiles are fast enough whole. */
static parts column_parts(const ls_bind *bind, int64_t y_stride) {
    int n = bind->dtype == LS_F32 ? count_parts(bind, bind->d_model, 0, LS_LEAVES, LS_LEAVES) : 1;
    return n > 1 ? (parts){n, chunk_rows(bind) / n * y_stride} : whole;
}

static ls_status plan_matmul(cuda_rank *rank, int i_weight, int64_t y_stride, parts cut, CUdeviceptr y, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    const ls_weight *w = &bind->weight[i_weight];
    const bool is_widened = rank->widened != 0 && widened_bytes(bind, i_weight) > 0;
    if (w->format != bind->dtype && !is_widened) {
        return LS_OK;
    }
    return cublaslt_plan(rank->cublaslt, shape_of(bind, w, y_stride, cut), bind->m_max,
                         is_widened ? rank->widened : address(w->data), y, rank->workspace, rank->stream, err);
}

static ls_status plan_column(cuda_rank *rank, int i_weight, int64_t y_stride, ls_error *err) {
    TRY(plan_matmul(rank, i_weight, y_stride, column_parts(&rank->bind, y_stride), scratch_of(rank), err));
    return plan_matmul(rank, i_weight, y_stride, whole, scratch_of(rank), err);
}

static ls_status plan_row(cuda_rank *rank, const op_row *a, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    TRY(plan_matmul(rank, a->weight, bind->d_model, row_parts(bind, a), address(bind->buf[BUF_PART]), err));
    return plan_matmul(rank, a->weight, bind->d_model, whole, scratch_of(rank), err);
}

static ls_status plan_op(cuda_rank *rank, const ls_op *op, ls_error *err) {
    switch (op->kind) {
    case OP_QKV:
        TRY(plan_column(rank, op->qkv.q, qkv_cols(&op->qkv), err));
        TRY(plan_column(rank, op->qkv.k, qkv_cols(&op->qkv), err));
        return plan_column(rank, op->qkv.v, qkv_cols(&op->qkv), err);
    case OP_OUT:
    case OP_FFN_OUT:
        return plan_row(rank, &op->row, err);
    case OP_FFN_IN:
        TRY(plan_column(rank, op->ffn_in.gate, op->ffn_in.d_ffn_loc, err));
        return plan_column(rank, op->ffn_in.up, op->ffn_in.d_ffn_loc, err);
    case OP_HEAD:
        if (rank->bind.weight[op->head.weight].format != rank->bind.dtype) {
            return LS_OK;
        }
        return plan_matmul(rank, op->head.weight, op->head.vocab_count, whole, scratch_of(rank), err);
    default:
        return LS_OK;
    }
}

static ls_status allow_shared(cuda_rank *rank, int fn, unsigned bytes, ls_error *err) {
    return cuda_check(rank,
                      rank->driver->cuFuncSetAttribute(rank->prefill_fn[fn],
                                                       CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)bytes),
                      prefill_kernel_names[fn], err);
}

ls_status prefill_prepare(cuda_rank *rank, const ls_op *op, int n_ops, ls_error *err) {
    const struct {
        int fn;
        unsigned rows;
        bool int8;
    } matmul[] = {{FN_prefill_mm_bf16_32, 32, false},     {FN_prefill_mm_bf16_128, 128, false},
                  {FN_prefill_mm_f16_32, 32, false},      {FN_prefill_mm_f16_128, 128, false},
                  {FN_prefill_mm_bf16_int8_32, 32, true}, {FN_prefill_mm_bf16_int8_64, 64, true},
                  {FN_prefill_mm_f16_int8_32, 32, true},  {FN_prefill_mm_f16_int8_64, 64, true}};
    for (size_t i = 0; i < sizeof matmul / sizeof *matmul; i++) {
        TRY(allow_shared(rank, matmul[i].fn, mm_shared_bytes(matmul[i].rows, matmul[i].int8), err));
    }
    for (int i = 0; i < N_MMA_HEADS; i++) {
        unsigned bytes = attn_shared_bytes(mma_heads[i]);
        if (bytes <= (unsigned)rank->facts.shared_bytes_per_block) {
            TRY(allow_shared(rank, FN_prefill_attn_bf16_64 + i, bytes, err));
            TRY(allow_shared(rank, FN_prefill_attn_f16_64 + i, bytes, err));
        }
    }
    TRY(allow_shared(rank, FN_prefill_attn_any, attn_any_shared_bytes(LS_MAX_HEAD), err));
    TRY(flash_prepare(rank, op, n_ops, rank->prefill_fn + FN_prefill_flash_bf16_64, err));
    TRY(wide_prepare(rank, rank->prefill_fn + FN_wide_bf16_32_long, err));
    TRY(gemm_prepare(rank, rank->prefill_fn + FN_gemm_bf16_qkv_256, err));
    rank->sums = rank->workspace + scratch_of_matmuls(op, n_ops, &rank->bind);
    bool int8 = false;
    const bool is_widened = rank->cublaslt != NULL && most_widened_bytes(op, n_ops, &rank->bind) > 0;
    rank->widened =
        is_widened ? scratch_of(rank) + (CUdeviceptr)scratch_of_sums(op, n_ops, &rank->bind) * sizeof(float) : 0;
    for (int i = 0; i < n_ops; i++) {
        int8 = int8 || (op[i].kind == OP_QKV && rank->bind.weight[op[i].qkv.q].format == LS_INT8);
        if (rank->cublaslt != NULL) {
            TRY(plan_op(rank, &op[i], err));
        }
    }
    rank->few_rows = few_rows(rank, int8, is_widened);
    rank->few_out = few_rows(rank, int8, false);
    return LS_OK;
}

/* ---- Matmul ---- */

/* An int8 weight of a layer by cuBLASLt: widened first. *done: false if that is not to be had. */
static ls_status widen_and_multiply(cuda_rank *rank, int i_weight, prefill_leaves leaves, const void *x, int m,
                                    float *y, int64_t y_stride, bool *done, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    const ls_weight *w = &bind->weight[i_weight];
    const cublaslt_shape shape = shape_of(bind, w, y_stride, whole);
    *done = rank->widened != 0 && widened_bytes(bind, i_weight) > 0 && cublaslt_has(rank->cublaslt, shape, m) &&
            (address(w->data) | address(x) | address(y)) % CUBLASLT_ALIGN == 0;
    if (!*done) {
        return LS_OK;
    }
    prefill_widen_args args = {.w = w->data,
                               .scale = w->scale,
                               .out = (uint16_t *)(uintptr_t)rank->widened,
                               .cols = w->cols,
                               .dtype = bind->dtype,
                               .leaves = leaves};
    for (int row = 0; row < w->rows; row += MOST_GRID_Y) {
        const int n = w->rows - row < MOST_GRID_Y ? w->rows - row : MOST_GRID_Y;
        TRY(launch(rank, FN_prefill_widen, divide_up(w->cols, 16 * PREFILL_ROW_THREADS), (unsigned)n,
                   PREFILL_ROW_THREADS, 0, &args, err));
        args.w += (int64_t)n * w->cols;
        args.scale += (int64_t)n * leaves.count;
        args.out += (int64_t)n * w->cols;
    }
    *done =
        cublaslt_matmul(rank->cublaslt, shape, m, address(x), rank->widened, address(y), rank->workspace, rank->stream);
    if (*done) {
        cuda_note_launch(rank, "cuBLASLt");
    }
    return LS_OK;
}

/* y[m][n] = x[m] . w[n], in f32; the leaves matter to int8 alone. */
static ls_status matmul(cuda_rank *rank, int i_weight, prefill_leaves leaves, parts cut, const void *x, int m, float *y,
                        int64_t y_stride, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    const ls_weight *w = &bind->weight[i_weight];
    const bool int8 = w->format == LS_INT8, f32 = bind->dtype == LS_F32;
    if (w->rows == 0 || (!int8 && rank->cublaslt != NULL &&
                         cublaslt_matmul(rank->cublaslt, shape_of(bind, w, y_stride, cut), m, address(x),
                                         address(w->data), address(y), rank->workspace, rank->stream))) {
        cuda_note_launch(rank, "cuBLASLt");
        return LS_OK;
    }
    if (int8) {
        bool done;
        TRY(widen_and_multiply(rank, i_weight, leaves, x, m, y, y_stride, &done, err));
        if (done) {
            return LS_OK;
        }
    }
    for (int i = 1; i < cut.n; i++) { /* the whole sum is part 0's */
        TRY(cuda_check(rank,
                       rank->driver->cuMemsetD2D32Async(address(y + i * cut.stride), (size_t)y_stride * sizeof(float),
                                                        0, (size_t)w->rows, (size_t)m, rank->stream),
                       "clearing parts", err));
    }
    prefill_matmul_args args = {.x = x,
                                .w = w->data,
                                .scale = w->scale,
                                .y = y,
                                .y_stride = y_stride,
                                .m = m,
                                .n = w->rows,
                                .k = w->cols,
                                .x_aligned = (address(x) | (size_t)w->cols * ls_dtype_bytes(bind->dtype)) % 16 == 0,
                                .w_aligned = (address(w->data) | (size_t)w->cols * ls_dtype_bytes(w->format)) % 16 == 0,
                                .leaves = leaves};
    if (f32) {
        return launch(rank, int8 ? FN_prefill_mm_f32_int8 : FN_prefill_mm_f32, divide_up(m, PREFILL_MM_F32_TILE),
                      divide_up(w->rows, PREFILL_MM_F32_TILE), PREFILL_MM_THREADS, 0, &args, err);
    }
    /* Flat tiles where tall ones would leave most of the chip idle. */
    const unsigned tall = int8 ? 64 : 128, n_tiles = divide_up(w->rows, PREFILL_MM_N);
    const bool is_tall = m > 32 && divide_up(m, tall) * n_tiles > (unsigned)rank->facts.sm_count / 2;
    const unsigned rows = is_tall ? tall : 32;
    const int first = int8 ? bind->dtype == LS_BF16 ? FN_prefill_mm_bf16_int8_32 : FN_prefill_mm_f16_int8_32
                           : (bind->dtype == LS_BF16 ? FN_prefill_mm_bf16_32 : FN_prefill_mm_f16_32);
    return launch(rank, first + is_tall, divide_up(m, rows), n_tiles, PREFILL_MM_THREADS, mm_shared_bytes(rows, int8),
                  &args, err);
}

/* Of a COLUMN or VOCAB weight: all of K. */
static prefill_leaves all_leaves(const ls_bind *bind) {
    return (prefill_leaves){.k_total = bind->d_model, .first = 0, .count = LS_LEAVES};
}

/* ---- Ops ---- */

static const cuda_step *step_of(const cuda_rank *rank) {
    return (const cuda_step *)(uintptr_t)rank->step;
}

static const float *vector_of(const ls_bind *bind, int i_weight) {
    return i_weight < 0 ? NULL : bind->weight[i_weight].data;
}

/* What follows the projections of rows [row, row + n): q, and k and v in the cache. */
static ls_status finish_qkv(cuda_rank *rank, const op_qkv *a, int layer, const float *y, parts cut, int row, int n,
                            ls_error *err) {
    const ls_bind *bind = &rank->bind;
    prefill_qkv_args args = {.step = step_of(rank),
                             .y = y,
                             .q_bias = vector_of(bind, a->q_bias),
                             .k_bias = vector_of(bind, a->k_bias),
                             .v_bias = vector_of(bind, a->v_bias),
                             .q_norm = vector_of(bind, a->q_norm),
                             .k_norm = vector_of(bind, a->k_norm),
                             .rope = bind->rope,
                             .q = bind->buf[BUF_QKV],
                             .k_cache = bind->k_cache,
                             .v_cache = bind->v_cache,
                             .eps = a->eps,
                             .dtype = bind->dtype,
                             .kv_dtype = bind->kv_dtype,
                             .layer = layer,
                             .n_pages = bind->n_pages,
                             .n_heads = a->n_heads_loc,
                             .n_kv = a->n_kv_loc,
                             .d_head = a->d_head,
                             .row_first = row,
                             .n_rows = n,
                             .n_parts = cut.n,
                             .part_stride = cut.stride};
    unsigned grid = divide_up((int64_t)n * (a->n_heads_loc + 2 * a->n_kv_loc), PREFILL_HEAD_WARPS);
    return launch_overlapping(rank, FN_prefill_qkv, grid, 1, 32 * PREFILL_HEAD_WARPS, 0, &args, err);
}

/* BUF_X, which the exchange before has left already, unless that was none of these launchers'. */
static ls_status norm(cuda_rank *rank, const ls_op *op, int first, const ls_step *step, bool alone, ls_error *err) {
    return !alone && first > 0 && op[first - 1].kind == OP_EXCHANGE
               ? LS_OK
               : decode_launch_norm(rank, op, first, step->n_rows, err);
}

/* How qkv and ffn_in cut their sums in a step of n_rows. */
static parts cut_of(const cuda_rank *rank, const ls_weight *w, int64_t y_stride, int n_rows) {
    const parts cut = column_parts(&rank->bind, y_stride);
    const bool fits = cut.n > 1 && n_rows * y_stride <= cut.stride && rank->cublaslt != NULL &&
                      w->format == rank->bind.dtype &&
                      cublaslt_has(rank->cublaslt, shape_of(&rank->bind, w, y_stride, cut), n_rows);
    return fits ? cut : whole;
}

/* Decode-only steps: the sums as decode's attention takes them, without biases. */
static ls_status qkv_sums(cuda_rank *rank, const op_qkv *a, int n_rows, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    const int64_t cols = qkv_cols(a), q_cols = (int64_t)a->n_heads_loc * a->d_head,
                  kv_cols = (int64_t)a->n_kv_loc * a->d_head;
    const prefill_leaves leaves = all_leaves(bind);
    float *y = bind->buf[BUF_QKV];
    TRY(matmul(rank, a->q, leaves, whole, bind->buf[BUF_X], n_rows, y, cols, err));
    TRY(matmul(rank, a->k, leaves, whole, bind->buf[BUF_X], n_rows, y + q_cols, cols, err));
    return matmul(rank, a->v, leaves, whole, bind->buf[BUF_X], n_rows, y + q_cols + kv_cols, cols, err);
}

static ls_status qkv(cuda_rank *rank, const op_qkv *a, int layer, const ls_step *step, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    const int64_t cols = qkv_cols(a), q_cols = (int64_t)a->n_heads_loc * a->d_head,
                  kv_cols = (int64_t)a->n_kv_loc * a->d_head;
    const prefill_leaves leaves = all_leaves(bind);
    const parts cut = cut_of(rank, &bind->weight[a->q], cols, step->n_rows);
    float *y = (float *)(uintptr_t)scratch_of(rank);
    for (int row = 0; row < step->n_rows; row += CHUNK_ROWS) {
        const void *x = act_row(bind, BUF_X, row, bind->d_model);
        int n = step->n_rows - row < CHUNK_ROWS ? step->n_rows - row : CHUNK_ROWS;
        TRY(matmul(rank, a->q, leaves, cut, x, n, y, cols, err));
        TRY(matmul(rank, a->k, leaves, cut, x, n, y + q_cols, cols, err));
        TRY(matmul(rank, a->v, leaves, cut, x, n, y + q_cols + kv_cols, cols, err));
        TRY(finish_qkv(rank, a, layer, y, cut, row, n, err));
    }
    return LS_OK;
}

/* The mma kernel for the head size and dtype, or -1. */
static int attn_mma_kernel(const cuda_rank *rank, int d_head) {
    for (int i = 0; i < N_MMA_HEADS && rank->bind.dtype != LS_F32 && rank->bind.kv_dtype == rank->bind.dtype; i++) {
        if (mma_heads[i] == d_head && attn_shared_bytes(d_head) <= (unsigned)rank->facts.shared_bytes_per_block) {
            return (rank->bind.dtype == LS_BF16 ? FN_prefill_attn_bf16_64 : FN_prefill_attn_f16_64) + i;
        }
    }
    return -1;
}

static ls_status attn(cuda_rank *rank, const op_attn *a, int layer, const ls_step *step, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    if (rank->flash) {
        const int fn = FN_prefill_flash_bf16_64 + flash_kernel(bind->dtype, a->d_head);
        return flash_attn(rank, rank->prefill_fn[fn], prefill_kernel_names[fn], a, layer, step, err);
    }
    const int mma = attn_mma_kernel(rank, a->d_head);
    const int pairs = mma < 0 ? PREFILL_ATTN_ANY_ROWS : PREFILL_ATTN_ROWS, group = a->n_heads_loc / a->n_kv_loc;
    prefill_attn_args args = {.step = step_of(rank),
                              .q = bind->buf[BUF_QKV],
                              .k_cache = bind->k_cache,
                              .v_cache = bind->v_cache,
                              .out = bind->buf[BUF_ATT],
                              .scale = a->scale,
                              .dtype = bind->dtype,
                              .kv_dtype = bind->kv_dtype,
                              .layer = layer,
                              .n_pages = bind->n_pages,
                              .n_heads = a->n_heads_loc,
                              .n_kv = a->n_kv_loc,
                              .d_head = a->d_head,
                              .window = a->window_tokens,
                              .stride = attn_any_stride(a->d_head)};
    unsigned n_tiles = 0;
    for (int i = 0; i < step->n_seqs; i++) {
        n_tiles += divide_up((int64_t)step->seq[i].n_rows * group, pairs);
    }
    return mma < 0 ? launch_overlapping(rank, FN_prefill_attn_any, n_tiles, (unsigned)a->n_kv_loc,
                                        PREFILL_ATTN_ANY_THREADS, attn_any_shared_bytes(a->d_head), &args, err)
                   : launch_overlapping(rank, mma, n_tiles, (unsigned)a->n_kv_loc, PREFILL_ATTN_THREADS,
                                        attn_shared_bytes(a->d_head), &args, err);
}

/* Against cuBLASLt, by `prefill_bench decode`, which times whole layers, and for the head `rows`, on an H100: Qwen3-4B and Mistral 7B.
 * Behind those rows x passes L2 too often. */
static bool wide_is_faster(const cuda_rank *rank, ls_op_kind kind, int n_rows) {
    return rank->cublaslt == NULL || n_rows <= (kind == OP_FFN_IN ? 128 : 64);
}

/* ... Half of its tile's rows are empty in steps of fewer than 129, which costs qkv least. */
static bool gemm_is_faster(const cuda_rank *rank, ls_op_kind kind, int n_rows) {
    return rank->cublaslt == NULL ? n_rows > 128 : kind == OP_QKV ? n_rows > 64 : kind == OP_FFN_IN && n_rows > 128;
}

/* Who runs a matmul: decode.c, wide.c, gemm.c, or matmul() above. */
typedef enum engine { BY_DECODE, BY_WIDE, BY_GEMM, BY_LIBRARY } engine;

static engine engine_of(const cuda_rank *rank, const ls_op *op, const ls_step *step) {
    const bool is_head = op->kind == OP_HEAD;
    const int n_rows = is_head ? step->n_out : step->n_rows;
    if (n_rows <= (is_head ? rank->few_out : rank->few_rows)) {
        return BY_DECODE;
    }
    const cuda_matmul_by by = rank->matmul_by[op->kind];
    const bool has_room = op->kind != OP_QKV || n_rows <= CHUNK_ROWS || gemm_finishes(rank, &op->qkv); /* for sums */
    const bool gemm = by == CUDA_BY_CHOICE ? gemm_is_faster(rank, op->kind, n_rows) : by == CUDA_BY_GEMM;
    const bool wide = by == CUDA_BY_CHOICE ? wide_is_faster(rank, op->kind, n_rows) : by == CUDA_BY_WIDE;
    return gemm && has_room && gemm_serves(rank, op) ? BY_GEMM
           : wide && wide_serves(rank, op, n_rows)   ? BY_WIDE
                                                     : BY_LIBRARY;
}

static bool is_matmul(const ls_op *op) {
    return op->kind == OP_QKV || op->kind == OP_OUT || op->kind == OP_FFN_IN || op->kind == OP_FFN_OUT ||
           op->kind == OP_HEAD;
}

static bool is_row(const ls_op *op) {
    return op->kind == OP_OUT || op->kind == OP_FFN_OUT;
}

/* How many nodes of the leaf tree out or ffn_out leaves; alone it is what ops.h says, one. */
static int nodes_of(const cuda_rank *rank, const ls_op *op, const ls_step *step, bool alone) {
    const ls_bind *bind = &rank->bind;
    const ls_weight *w = &bind->weight[op->row.weight];
    const engine by = engine_of(rank, op, step);
    if (alone || by != BY_LIBRARY) {
        return alone             ? 1
               : by == BY_DECODE ? decode_row_nodes(rank, op, step->n_rows)
               : by == BY_WIDE   ? wide_row_nodes(rank, op, alone)
                                 : gemm_row_nodes(rank, op, step->n_rows, alone);
    }
    /* Many rows are enough for 16-bit tiles; in f32 parts are faster for any number. */
    const parts cut = row_parts(bind, &op->row);
    const bool fits = cut.n > 1 && w->format == bind->dtype && rank->cublaslt != NULL &&
                      (bind->dtype == LS_F32 || step->n_rows <= MOST_ROWS_OF_PARTS) &&
                      cublaslt_has(rank->cublaslt, shape_of(bind, w, bind->d_model, cut), step->n_rows);
    return fits ? cut.n : 1;
}

int prefill_row_nodes(const cuda_rank *rank, const ls_op *op, const ls_step *step) {
    return nodes_of(rank, op, step, false);
}

/* out, ffn_out. */
static ls_status row(cuda_rank *rank, const ls_op *op, int n_nodes, const ls_step *step, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    const op_row *a = &op->row;
    const prefill_leaves leaves = {.k_total = a->k_total, .first = a->leaf_first, .count = a->leaf_count};
    return matmul(rank, a->weight, leaves, n_nodes > 1 ? row_parts(bind, a) : whole,
                  bind->buf[op->kind == OP_OUT ? BUF_ATT : BUF_ACT], step->n_rows,
                  (float *)bind->buf[BUF_PART] + slot_at(bind, a->slot), bind->d_model, err);
}

static ls_status ffn_in(cuda_rank *rank, const op_ffn_in *a, const ls_step *step, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    const prefill_leaves leaves = all_leaves(bind);
    const parts cut = cut_of(rank, &bind->weight[a->gate], a->d_ffn_loc, step->n_rows);
    float *gate = (float *)(uintptr_t)scratch_of(rank), *up = gate + scratch_floats(chunk_rows(bind), a->d_ffn_loc);
    for (int row = 0; row < step->n_rows && a->d_ffn_loc > 0; row += CHUNK_ROWS) {
        int n = step->n_rows - row < CHUNK_ROWS ? step->n_rows - row : CHUNK_ROWS;
        const void *x = act_row(bind, BUF_X, row, bind->d_model);
        TRY(matmul(rank, a->gate, leaves, cut, x, n, gate, a->d_ffn_loc, err));
        TRY(matmul(rank, a->up, leaves, cut, x, n, up, a->d_ffn_loc, err));
        prefill_silu_args args = {.gate = gate,
                                  .up = up,
                                  .gate_bias = vector_of(bind, a->gate_bias),
                                  .up_bias = vector_of(bind, a->up_bias),
                                  .act = act_row(bind, BUF_ACT, row, a->d_ffn_loc),
                                  .dtype = bind->dtype,
                                  .d_ffn = a->d_ffn_loc,
                                  .n_parts = cut.n,
                                  .part_stride = cut.stride};
        TRY(launch(rank, FN_prefill_silu, divide_up(a->d_ffn_loc, 4 * PREFILL_ROW_THREADS), (unsigned)n,
                   PREFILL_ROW_THREADS, 0, &args, err));
    }
    return LS_OK;
}

/* Of logits that are no finite numbers. */
static ls_status note_faults(cuda_rank *rank, const op_head *a, int index, const ls_step *step, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    prefill_faults_args args = {.step = step_of(rank),
                                .logits = bind->buf[BUF_LOGITS],
                                .fault = (int32_t *)bind->fault,
                                .n = a->vocab_count,
                                .index = index};
    return launch(rank, FN_prefill_faults, divide_up(a->vocab_count, 16 * PREFILL_ROW_THREADS), (unsigned)step->n_out,
                  PREFILL_ROW_THREADS, 0, &args, err);
}

/* What decode's kernels do: embedding and exchanges of any step, matmuls of few rows. */
static bool is_of_decode(const cuda_rank *rank, const ls_op *op, const ls_step *step) {
    return op->kind == OP_EMBED || op->kind == OP_EXCHANGE || (is_matmul(op) && engine_of(rank, op, step) == BY_DECODE);
}

/* qkv leaves its sums at y, biases added. */
static ls_status by_wide(cuda_rank *rank, const ls_op *op, int first, const ls_step *step, bool alone, float *y,
                         ls_error *err) {
    const ls_op *o = &op[first];
    if (!is_row(o)) {
        TRY(norm(rank, op, first, step, alone, err));
    }
    return wide_matmul(rank, o, first, o->kind == OP_HEAD ? step->n_out : step->n_rows, alone, y, rank->workspace, err);
}

/* qkv's sums at y, biases added, become q and what the cache has. */
static ls_status finish_sums(cuda_rank *rank, const ls_op *op, const float *y, int n_rows, ls_error *err) {
    op_qkv rest = op->qkv;
    rest.q_bias = rest.k_bias = rest.v_bias = -1;
    return finish_qkv(rank, &rest, op->layer, y, whole, 0, n_rows, err);
}

static ls_status by_gemm(cuda_rank *rank, const ls_op *op, int first, const ls_step *step, bool alone, bool decode_only,
                         ls_error *err) {
    const ls_op *o = &op[first];
    const bool is_qkv = o->kind == OP_QKV, leaves_sums = is_qkv && (decode_only || !gemm_finishes(rank, &o->qkv));
    float *sums = !leaves_sums ? NULL : decode_only ? rank->bind.buf[BUF_QKV] : (float *)(uintptr_t)scratch_of(rank);
    if (!is_row(o)) {
        TRY(norm(rank, op, first, step, alone, err));
    }
    TRY(gemm_matmul(rank, o, o->kind == OP_HEAD ? step->n_out : step->n_rows, alone, sums, err));
    if (o->kind == OP_HEAD) {
        return note_faults(rank, &o->head, first, step, err);
    }
    return leaves_sums && !decode_only ? finish_sums(rank, o, sums, step->n_rows, err) : LS_OK;
}

/* decode_only: every row is the last of its sequence, and of `step` there is no more than how many. */
static ls_status launch_op(cuda_rank *rank, const ls_op *op, int n_ops, int first, const ls_step *step, bool alone,
                           bool decode_only, int *n_taken, ls_error *err) {
    const ls_op *o = &op[first], *of_nodes = is_row(o) ? o : first > 0 && is_row(o - 1) ? o - 1 : NULL;
    const int n_nodes = of_nodes != NULL ? nodes_of(rank, of_nodes, step, alone) : 1;
    *n_taken = 1;
    if ((o->kind == OP_HEAD && (step->n_out == 0 || o->head.vocab_count == 0)) ||
        (o->kind == OP_FFN_IN && o->ffn_in.d_ffn_loc == 0)) {
        return LS_OK;
    }
    const engine by = is_matmul(o) ? engine_of(rank, o, step) : BY_LIBRARY;
    if (by == BY_GEMM) {
        return by_gemm(rank, op, first, step, alone, decode_only, err);
    }
    if (by == BY_WIDE || is_of_decode(rank, o, step)) {
        float *y = decode_only ? rank->bind.buf[BUF_QKV] : (float *)(uintptr_t)scratch_of(rank);
        const decode_how how = {step->n_rows, step->n_out, n_nodes, alone, y};
        TRY(by == BY_WIDE ? by_wide(rank, op, first, step, alone, y, err)
                          : decode_launch_rows(rank, op, n_ops, first, &how, err));
        return o->kind == OP_QKV && !decode_only ? finish_sums(rank, o, y, step->n_rows, err) : LS_OK;
    }
    switch (o->kind) {
    case OP_QKV:
        TRY(norm(rank, op, first, step, alone, err));
        return decode_only ? qkv_sums(rank, &o->qkv, step->n_rows, err) : qkv(rank, &o->qkv, o->layer, step, err);
    case OP_ATTN:
        return decode_only ? decode_launch_attn(rank, op, first,
                                                first > 0 && op[first - 1].kind == OP_QKV &&
                                                    engine_of(rank, &op[first - 1], step) == BY_LIBRARY,
                                                step->n_rows, err)
                           : attn(rank, &o->attn, o->layer, step, err);
    case OP_OUT:
    case OP_FFN_OUT:
        return row(rank, o, n_nodes, step, err);
    case OP_FFN_IN:
        TRY(norm(rank, op, first, step, alone, err));
        return ffn_in(rank, &o->ffn_in, step, err);
    case OP_HEAD:
        TRY(norm(rank, op, first, step, alone, err));
        TRY(matmul(rank, o->head.weight, all_leaves(&rank->bind), whole, rank->bind.buf[BUF_X], step->n_out,
                   rank->bind.buf[BUF_LOGITS], o->head.vocab_count, err));
        return note_faults(rank, &o->head, first, step, err);
    case OP_SAMPLE: /* decode's kernel takes any number of rows: a line of blocks for each */
        if (step->n_out > CUDA_SAMPLE_ROWS) {
            return error_set(err, LS_EUNSUPPORTED, "sampling on the GPU: %d rows, more than %d", step->n_out,
                             CUDA_SAMPLE_ROWS);
        }
        return step->n_out == 0 ? LS_OK : decode_launch(rank, op, n_ops, first, step->n_out, n_taken, err);
    default:
        return error_set(err, LS_EINTERNAL, "prefill: op %d is of no known kind", first);
    }
}

ls_status prefill_launch(cuda_rank *rank, const ls_op *op, int n_ops, int first, const ls_step *step, bool alone,
                         int *n_taken, ls_error *err) {
    return launch_op(rank, op, n_ops, first, step, alone, false, n_taken, err);
}

ls_status prefill_launch_decode(cuda_rank *rank, const ls_op *op, int n_ops, int first, int n_rows, int n_out,
                                int *n_taken, ls_error *err) {
    const ls_step step = {.n_rows = n_rows, .n_dec = n_rows, .n_seqs = n_rows, .n_out = n_out};
    return launch_op(rank, op, n_ops, first, &step, false, true, n_taken, err);
}
