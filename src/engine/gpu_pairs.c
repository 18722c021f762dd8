/* Two GPUs of this machine, without an engine: doctor's. Described in lockstep_pairs.h; the measurements are backend/cuda/pairs.h's. */
#include "engine/engine.h"

#ifdef LS_CUDA

#include <stdio.h>

#include "backend/cuda/pairs.h"

/* By stores and by pinned memory; for an engine the first is to be had where they reach each other, and is what it takes. */
static ls_status measure_exchanges(const cuda_pair *pair, ls_gpu_pair *out, ls_error *err) {
    for (int i = 0, bytes = 4096; i < LS_PAIR_SIZES; i++, bytes *= 4) {
        out->exchange_bytes[i] = bytes;
        TRY(cuda_pair_exchange(pair, bytes, true, &out->host_us[i], err));
        if (out->reach) {
            TRY(cuda_pair_exchange(pair, bytes, false, &out->fused_us[i], err));
        }
    }
    return LS_OK;
}

static ls_status measure(const cuda_pair *pair, ls_gpu_pair *out, ls_error *err) {
    ls_error why = {0};
    bool can = false;
    TRY(cuda_pair_enable(pair, &can, &why, err));
    out->reach = can;
    snprintf(out->why_not, sizeof out->why_not, "%s", can ? "" : why.text);
    snprintf(out->exchange, sizeof out->exchange, "%s", can ? "fused" : "host");
    TRY(cuda_pair_patterns(pair, can, err));
    TRY(cuda_pair_copies(pair, &out->there, &out->back, err));
    if (can) {
        TRY(cuda_pair_ping(pair, &out->word_us, err));
    }
    return measure_exchanges(pair, out, err);
}

ls_status ls_gpu_measure_pair(int a, int b, ls_gpu_pair *out, ls_error *err) {
    cuda_driver *driver = NULL;
    cuda_rank rank[2] = {{0}};
    cuda_pair pair = {0};
    ls_status st = LS_OK;
    TRY(check_struct_size("ls_gpu_pair", out->struct_size, SIZE_MAX, err));
    ls_gpu_pair found = {.struct_size = out->struct_size};
    if (a == b || a < 0 || b < 0) {
        return error_set(err, LS_EINVAL, "GPUs %d and %d are no pair", a, b);
    }
    TRY(cuda_driver_open(&driver, err));
    TRY_GOTO(cuda_rank_open(&rank[1], driver, b, false, err), fail);
    TRY_GOTO(cuda_rank_open(&rank[0], driver, a, false, err), fail);
    TRY_GOTO(cuda_pair_open(&pair, &rank[0], &rank[1], err), fail);
    TRY_GOTO(measure(&pair, &found, err), fail);
    memcpy(out, &found, out->struct_size < sizeof found ? out->struct_size : sizeof found);
fail:
    cuda_pair_close(&pair);
    for (int i = 1; i >= 0; i--) {
        if (rank[i].driver != NULL) {
            cuda_rank_close(&rank[i]);
        }
    }
    cuda_driver_close(&driver);
    return st;
}

#else

ls_status ls_gpu_measure_pair(int a, int b, ls_gpu_pair *out, ls_error *err) {
    (void)a, (void)b, (void)out;
    return error_set(err, LS_EUNSUPPORTED, "this program was built without CUDA; build it where make finds nvcc");
}

#endif
