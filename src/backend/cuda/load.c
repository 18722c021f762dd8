/* Launches kern/load.cu: weights as they lie in files, or made up, into the formats that ops read. */
#include "backend/cuda/cuda.h"

_Static_assert((int)LOAD_F32 == (int)LS_F32 && (int)LOAD_BF16 == (int)LS_BF16 && (int)LOAD_F16 == (int)LS_F16 &&
                   (int)LOAD_INT8 == (int)LS_INT8,
               "kernels and engine share dtypes");
_Static_assert((int)LOAD_LEAVES == (int)LS_LEAVES, "kernels and engine share leaves");

ls_status cuda_load_open(cuda_load_kernels *out, const cuda_rank *rank, ls_error *err) {
    TRY(cuda_rank_kernel(rank, "load_rows", &out->rows, err));
    return cuda_rank_kernel(rank, "load_int8", &out->int8, err);
}

ls_status cuda_load_rows(const cuda_rank *rank, const cuda_load_kernels *kernels, CUstream stream, load_args *args,
                         ls_error *err) {
    enum { WARPS = LOAD_THREADS / 32, BLOCKS_PER_SM = 8 };
    const bool int8 = args->format == LOAD_INT8;
    const int64_t n = args->rows * (int8 ? args->n_leaves : args->cols);
    const int64_t per_block = int8 ? WARPS : (int64_t)LOAD_THREADS * LOAD_GROUP * LOAD_UNROLL;
    const int64_t n_blocks = (n + per_block - 1) / per_block, most = (int64_t)BLOCKS_PER_SM * rank->facts.sm_count;
    void *list[] = {args};
    if (n_blocks == 0) {
        return LS_OK;
    }
    return cuda_check(rank,
                      rank->driver->cuLaunchKernel(int8 ? kernels->int8 : kernels->rows,
                                                   (unsigned)(n_blocks < most ? n_blocks : most), 1, 1, LOAD_THREADS, 1,
                                                   1, 0, stream, list, NULL),
                      int8 ? "load_int8" : "load_rows", err);
}
