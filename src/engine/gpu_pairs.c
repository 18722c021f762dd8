/* Two GPUs of this machine, without an engine: doctor's. Described in lockstep_pairs.h; the measurements are backend/cuda/pairs.h's. */
#include "engine/engine.h"

#ifdef LS_CUDA

#include <stdio.h>

#include "backend/cuda/pairs.h"

typedef struct open_pair {
    cuda_driver *driver;
    cuda_rank rank[2];
    cuda_pair pair;
    bool reach;
    ls_error why_not, no_nccl;
} open_pair;

static ls_status open_both(open_pair *p, int a, int b, ls_error *err) {
    if (a == b || a < 0 || b < 0) {
        return error_set(err, LS_EINVAL, "GPUs %d and %d are no pair", a, b);
    }
    TRY(cuda_driver_open(&p->driver, err));
    TRY(cuda_rank_open(&p->rank[1], p->driver, b, false, err));
    TRY(cuda_rank_open(&p->rank[0], p->driver, a, false, err));
    TRY(cuda_pair_open(&p->pair, &p->rank[0], &p->rank[1], err));
    return cuda_pair_enable(&p->pair, &p->reach, &p->why_not, err);
}

static void close_both(open_pair *p) {
    cuda_pair_close(&p->pair);
    for (int i = 1; i >= 0; i--) {
        if (p->rank[i].driver != NULL) {
            cuda_rank_close(&p->rank[i]);
        }
    }
    cuda_driver_close(&p->driver);
}

/* What is to be had here: NCCL's library is one that may not be, and its failures are its own. */
static ls_status measure_exchange(open_pair *p, ls_gpu_exchange *out, ls_error *err) {
    *out = (ls_gpu_exchange){.bytes = out->bytes};
    if (p->pair.nccl == NULL && p->no_nccl.status == LS_OK) {
        cuda_pair_join(&p->pair, &p->no_nccl);
    }
    if (p->no_nccl.status == LS_OK &&
        cuda_pair_exchange(&p->pair, out->bytes, PAIR_NCCL, &out->nccl_us, &p->no_nccl) != LS_OK) {
        nccl_close(&p->pair.nccl);
    }
    TRY(cuda_pair_exchange(&p->pair, out->bytes, PAIR_HOST, &out->host_us, err));
    return p->reach ? cuda_pair_exchange(&p->pair, out->bytes, PAIR_FUSED, &out->fused_us, err) : LS_OK;
}

static ls_status measure_all(open_pair *p, ls_gpu_pair *out, ls_error *err) {
    out->reach = p->reach;
    snprintf(out->why_not, sizeof out->why_not, "%s", p->reach ? "" : p->why_not.text);
    snprintf(out->exchange, sizeof out->exchange, "%s", p->reach ? "fused" : "host");
    TRY(cuda_pair_patterns(&p->pair, p->reach, err));
    TRY(cuda_pair_copies(&p->pair, &out->there, &out->back, err));
    if (p->reach) {
        TRY(cuda_pair_ping(&p->pair, &out->word_us, err));
    }
    for (int i = 0, bytes = 4096; i < LS_PAIR_SIZES && !out->link_only; i++, bytes *= 4) {
        ls_gpu_exchange exchange = {.bytes = bytes};
        TRY(measure_exchange(p, &exchange, err));
        out->exchange_bytes[i] = bytes;
        out->fused_us[i] = exchange.fused_us;
        out->host_us[i] = exchange.host_us;
        out->nccl_us[i] = exchange.nccl_us;
    }
    snprintf(out->no_nccl, sizeof out->no_nccl, "%s", p->no_nccl.text);
    return LS_OK;
}

ls_status ls_gpu_measure_pair(int a, int b, ls_gpu_pair *out, ls_error *err) {
    open_pair p = {0};
    TRY(check_struct_size("ls_gpu_pair", out->struct_size, SIZE_MAX, err));
    ls_gpu_pair found = {.struct_size = out->struct_size};
    found.link_only = out->struct_size >= sizeof found && out->link_only;
    ls_status st = open_both(&p, a, b, err);
    st = st == LS_OK ? measure_all(&p, &found, err) : st;
    close_both(&p);
    TRY(st);
    memcpy(out, &found, out->struct_size < sizeof found ? out->struct_size : sizeof found);
    return LS_OK;
}

ls_status ls_gpu_measure_exchanges(int a, int b, ls_gpu_exchanges *out, ls_error *err) {
    open_pair p = {0};
    TRY(check_struct_size("ls_gpu_exchanges", out->struct_size, sizeof *out, err));
    ls_status st = open_both(&p, a, b, err);
    for (int i = 0; i < out->n && st == LS_OK; i++) {
        st = measure_exchange(&p, &out->list[i], err);
    }
    close_both(&p);
    TRY(st);
    snprintf(out->no_fused, sizeof out->no_fused, "%s", p.reach ? "" : p.why_not.text);
    snprintf(out->no_nccl, sizeof out->no_nccl, "%s", p.no_nccl.text);
    return LS_OK;
}

#else

ls_status ls_gpu_measure_pair(int a, int b, ls_gpu_pair *out, ls_error *err) {
    (void)a, (void)b, (void)out;
    return error_set(err, LS_EUNSUPPORTED, "this program was built without CUDA; build it where make finds nvcc");
}

ls_status ls_gpu_measure_exchanges(int a, int b, ls_gpu_exchanges *out, ls_error *err) {
    (void)out;
    return ls_gpu_measure_pair(a, b, NULL, err);
}

#endif
