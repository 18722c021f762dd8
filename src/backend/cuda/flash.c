/* See flash.h. */
#include "backend/cuda/flash.h"

#include <string.h>

#include "backend/cuda/kern/prefill_args.h"

static const int head_sizes[] = {64, 80, 96, 128, 256};
enum { N_HEAD_SIZES = sizeof head_sizes / sizeof *head_sizes };

int flash_kernel(ls_dtype dtype, int d_head) {
    for (int i = 0; i < N_HEAD_SIZES && (dtype == LS_BF16 || dtype == LS_F16); i++) {
        if (head_sizes[i] == d_head) {
            return dtype == LS_BF16 ? i : N_HEAD_SIZES + i;
        }
    }
    return -1;
}

bool flash_serves(const cuda_rank *rank, const op_attn *a) {
    const bool own_code = rank->facts.cc_major == 9 && rank->facts.cc_minor == 0 && rank->overlap;
    return own_code && rank->bind.kv_dtype == rank->bind.dtype && flash_kernel(rank->bind.dtype, a->d_head) >= 0 &&
           a->n_heads_loc / a->n_kv_loc <= PREFILL_FLASH_PAIRS;
}

/* ---- Preparation ---- */

/* A cache [layer][page][KV head][64 tokens][d] as rows of d elements. */
static ls_status map_cache(cuda_rank *rank, const void *cache, const op_attn *a, int n_layers, uint64_t out[16],
                           ls_error *err) {
    const ls_bind *bind = &rank->bind;
    const cuuint64_t size[] = {(cuuint64_t)a->d_head, (cuuint64_t)n_layers * (cuuint64_t)bind->n_pages *
                                                          (cuuint64_t)a->n_kv_loc * CUDA_PAGE_TOKENS};
    const cuuint64_t row_bytes = (cuuint64_t)a->d_head * ls_dtype_bytes(bind->kv_dtype);
    const cuuint32_t box[] = {64, CUDA_PAGE_TOKENS}, each[] = {1, 1};
    CUtensorMap map;
    _Static_assert(sizeof map == sizeof(prefill_map) && sizeof map == 16 * sizeof *out, "the kernel's map is CUDA's");
    TRY(cuda_check(
        rank,
        rank->driver->cuTensorMapEncodeTiled(
            &map, bind->kv_dtype == LS_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
            (void *)(uintptr_t)cache, size, &row_bytes, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE,
            CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
        "a map of the KV cache", err));
    memcpy(out, &map, sizeof map);
    return LS_OK;
}

ls_status flash_prepare(cuda_rank *rank, const ls_op *op, int n_ops, const CUfunction *fn, ls_error *err) {
    const op_attn *a = NULL;
    int n_layers = 0;
    rank->flash = false;
    for (int i = 0; i < n_ops; i++) {
        if (op[i].kind == OP_ATTN) {
            a = &op[i].attn;
            n_layers = op[i].layer >= n_layers ? op[i].layer + 1 : n_layers;
        }
    }
    if (a == NULL || !flash_serves(rank, a)) {
        return LS_OK;
    }
    TRY(map_cache(rank, rank->bind.k_cache, a, n_layers, rank->flash_map[0], err));
    TRY(map_cache(rank, rank->bind.v_cache, a, n_layers, rank->flash_map[1], err));
    TRY(cuda_check(rank,
                   rank->driver->cuFuncSetAttribute(fn[flash_kernel(rank->bind.dtype, a->d_head)],
                                                    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                    PREFILL_FLASH_SHARED_BYTES(a->d_head)),
                   "shared memory of attention", err));
    rank->flash = true;
    return LS_OK;
}

/* ---- Work ---- */

static int n_tiles_of(const ls_step_seq *seq, int group) {
    return (seq->n_rows * group + PREFILL_FLASH_PAIRS - 1) / PREFILL_FLASH_PAIRS;
}

/* Keys that the tile's rows pass, but for what a page's border adds. */
static int tile_keys(const op_attn *a, const ls_step_seq *seq, int index) {
    const int group = a->n_heads_loc / a->n_kv_loc;
    const int first = index * PREFILL_FLASH_PAIRS / group, last = ((index + 1) * PREFILL_FLASH_PAIRS - 1) / group;
    const int end = seq->n_past + (last < seq->n_rows ? last + 1 : seq->n_rows);
    const int lo = a->window_tokens > 0 ? seq->n_past + first - a->window_tokens + 1 : 0;
    return end - (lo > 0 ? lo : 0);
}

/* By keys, then by place: one order for one step. */
static bool comes_before(cuda_tile x, cuda_tile y) {
    return x.keys != y.keys ? x.keys > y.keys : x.seq != y.seq ? x.seq < y.seq : x.index > y.index;
}

int flash_tiles(const op_attn *a, const ls_step *step, cuda_tile *out) {
    const int group = a->n_heads_loc / a->n_kv_loc;
    int n = 0;
    for (int i = 0; i < step->n_seqs; i++) {
        for (int j = n_tiles_of(&step->seq[i], group) - 1; j >= 0; j--, n++) {
            if (out != NULL) {
                out[n] = (cuda_tile){i, j, tile_keys(a, &step->seq[i], j)};
            }
        }
    }
    static const int gaps[] = {1750, 701, 301, 132, 57, 23, 10, 4, 1};
    for (size_t g = 0; g < sizeof gaps / sizeof *gaps && out != NULL; g++) {
        for (int i = gaps[g]; i < n; i++) {
            cuda_tile tile = out[i];
            int j = i;
            for (; j >= gaps[g] && comes_before(tile, out[j - gaps[g]]); j -= gaps[g]) {
                out[j] = out[j - gaps[g]];
            }
            out[j] = tile;
        }
    }
    return n;
}

ls_status flash_attn(cuda_rank *rank, CUfunction fn, const char *name, const op_attn *a, int layer, const ls_step *step,
                     ls_error *err) {
    const ls_bind *bind = &rank->bind;
    prefill_flash_args args = {.step = (const cuda_step *)(uintptr_t)rank->step,
                               .q = bind->buf[BUF_QKV],
                               .out = bind->buf[BUF_ATT],
                               .scale = a->scale,
                               .layer = layer,
                               .n_pages = bind->n_pages,
                               .n_heads = a->n_heads_loc,
                               .n_kv = a->n_kv_loc,
                               .window = a->window_tokens,
                               .n_tiles = flash_tiles(a, step, NULL)};
    memcpy(&args.k_map, rank->flash_map[0], sizeof args.k_map);
    memcpy(&args.v_map, rank->flash_map[1], sizeof args.v_map);
    const int work = args.n_tiles * a->n_kv_loc, blocks = rank->facts.sm_count;
    return cuda_launch_overlapping(rank, fn, name, (unsigned)(work < blocks ? work : blocks), 1, 1,
                                   PREFILL_FLASH_THREADS, PREFILL_FLASH_SHARED_BYTES(a->d_head), (void *[]){&args},
                                   err);
}
