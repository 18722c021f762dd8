/*
 * What the GPUs of this machine are and can do, one by one and without an engine. Described in lockstep.h; the measurements
 * are backend/cuda/measure.h's. Without CUDA every function says so.
 */
#include "engine/engine.h"

#ifdef LS_CUDA

#include <stdio.h>

#include "backend/cuda/images.h"
#include "backend/cuda/measure.h"
#include "backend/cuda/nvml.h"
#include "base/clock.h"

/* The driver and one of its devices; with a context and kernels (`open`) or without. */
typedef struct gpu {
    cuda_driver *driver;
    cuda_rank rank;
    char bus[16];
} gpu;

static void gpu_close(gpu *g) {
    if (g->driver != NULL) {
        cuda_rank_close(&g->rank);
    }
    cuda_driver_close(&g->driver);
}

/* *g may be closed whatever came of it. */
static ls_status gpu_find(gpu *g, int device, bool open, ls_error *err) {
    *g = (gpu){0};
    TRY(cuda_driver_open(&g->driver, err));
    if (device < 0) {
        return error_set(err, LS_EINVAL, "GPU %d: they are counted from 0", device);
    }
    TRY(open ? cuda_rank_open(&g->rank, g->driver, device, false, err)
             : cuda_rank_facts(&g->rank, g->driver, device, err));
    return cuda_check(&g->rank, g->driver->cuDeviceGetPCIBusId(g->bus, (int)sizeof g->bus, g->rank.device),
                      "its PCI address", err);
}

/* ---- What it is ---- */

ls_status ls_gpu_count(int *out, ls_error *err) {
    cuda_driver *driver = NULL;
    int n = 0;
    TRY(cuda_driver_open(&driver, err));
    CUresult rc = driver->cuDeviceGetCount(&n);
    ls_status st =
        rc == CUDA_SUCCESS ? LS_OK : error_set(err, LS_EABORTED, "counting GPUs: %s", cuda_error_text(driver, rc));
    cuda_driver_close(&driver);
    TRY(st);
    *out = n;
    return LS_OK;
}

static uint32_t read_peers(const gpu *g) {
    uint32_t peers = 0;
    int n = 0;
    g->driver->cuDeviceGetCount(&n);
    for (int i = 0; i < n && i < 32; i++) {
        CUdevice other;
        int can = 0;
        if (i != g->rank.facts.device && g->driver->cuDeviceGet(&other, i) == CUDA_SUCCESS &&
            g->driver->cuDeviceCanAccessPeer(&can, g->rank.device, other) == CUDA_SUCCESS && can != 0) {
            peers |= 1U << i;
        }
    }
    return peers;
}

static void fill_info(const gpu *g, ls_gpu_info *info) {
    const cuda_facts *facts = &g->rank.facts;
    nvml_state state;
    snprintf(info->name, sizeof info->name, "%s", facts->name);
    snprintf(info->chip, sizeof info->chip, "sm_%d%d", facts->cc_major, facts->cc_minor);
    snprintf(info->bus, sizeof info->bus, "%s", g->bus);
    info->n_sms = facts->sm_count;
    info->l2_bytes = (int64_t)facts->l2_bytes;
    info->memory_bytes = (int64_t)facts->memory_bytes;
    const cuda_image *image =
        n_cuda_images > 0 ? cuda_image_best(cuda_images[0].file, facts->cc_major, facts->cc_minor, false) : NULL;
    if (image != NULL) {
        snprintf(info->kernels, sizeof info->kernels, "%s_%s", image->is_ptx ? "compute" : "sm", image->arch);
    }
    if (g->driver->cuDriverGetVersion(&info->cuda_version) != CUDA_SUCCESS) {
        info->cuda_version = -1;
    }
    info->peers = read_peers(g);
    nvml_read(g->bus, &state);
    snprintf(info->driver, sizeof info->driver, "%s", state.driver);
    info->ecc = state.ecc;
    info->ecc_errors = state.ecc_errors;
    info->sm_clock_mhz = state.sm_clock_mhz;
    info->max_sm_clock_mhz = state.max_sm_clock_mhz;
    info->memory_clock_mhz = state.memory_clock_mhz;
    info->max_memory_clock_mhz = state.max_memory_clock_mhz;
    snprintf(info->slowed_by, sizeof info->slowed_by, "%s", state.slowed_by);
    info->temperature_c = state.temperature_c;
    info->power_w = state.power_w;
    info->power_limit_w = state.power_limit_w;
    info->pcie_generation = state.pcie_generation;
    info->pcie_lanes = state.pcie_lanes;
    info->n_processes = state.n_processes;
}

ls_status ls_gpu_get_info(int device, ls_gpu_info *out, ls_error *err) {
    gpu g;
    ls_status st = LS_OK;
    TRY(check_struct_size("ls_gpu_info", out->struct_size, SIZE_MAX, err));
    ls_gpu_info info = {.struct_size = out->struct_size};
    TRY_GOTO(gpu_find(&g, device, false, err), fail);
    fill_info(&g, &info);
    memcpy(out, &info, out->struct_size < sizeof info ? out->struct_size : sizeof info);
fail:
    gpu_close(&g);
    return st;
}

/* ---- What it can do ---- */

enum { GEMM_N = 8192, GEMM_F32_N = 4096 };
static const int64_t buffer_bytes = (int64_t)1 << 30, pinned_bytes = (int64_t)128 << 20;

static void note_clock(void *arg) {
    const gpu *g = ((void **)arg)[0];
    ls_gpu_speed *speed = ((void **)arg)[1];
    nvml_state state;
    nvml_read(g->bus, &state);
    speed->gemm_sm_clock_mhz = state.sm_clock_mhz;
    snprintf(speed->gemm_slowed_by, sizeof speed->gemm_slowed_by, "%s", state.slowed_by);
}

/* In the buffer: w, x, y and cuBLASLt's workspace. */
static cuda_gemm gemm_in(CUdeviceptr buffer, ls_dtype dtype, int n) {
    const size_t matrix = (size_t)n * (size_t)n, bytes = matrix * ls_dtype_bytes(dtype);
    return (cuda_gemm){.dtype = dtype,
                       .n = n,
                       .w = buffer,
                       .x = buffer + bytes,
                       .y = buffer + 2 * bytes,
                       .workspace = buffer + 2 * bytes + matrix * sizeof(float)};
}

/* In bf16, then in f32 on the same random values: two of them are a float of about the size of the second one. */
static ls_status measure_gemms(gpu *g, CUdeviceptr buffer, ls_gpu_speed *speed, ls_error *err) {
    cuda_gemm in_bf16 = gemm_in(buffer, LS_BF16, GEMM_N), in_f32 = gemm_in(buffer, LS_F32, GEMM_F32_N);
    cublaslt *lt = NULL;
    in_bf16.meanwhile = note_clock;
    in_bf16.arg = (void *[]){g, speed};
    TRY(cuda_measure_fill(&g->rank, buffer, 2 * (int64_t)GEMM_N * GEMM_N, err));
    TRY(cublaslt_open(&lt, err));
    ls_status st = cuda_measure_gemm(&g->rank, lt, &in_bf16, &speed->gemm_flops, err);
    if (st == LS_OK) {
        st = cuda_measure_gemm(&g->rank, lt, &in_f32, &speed->gemm_f32_flops, err);
    }
    cublaslt_close(&lt);
    return st;
}

static ls_status measure(gpu *g, CUdeviceptr buffer, void *pinned, ls_gpu_speed *speed, ls_error *err) {
    cuda_rank *rank = &g->rank;
    ls_rate us;
    ls_error no_gemm = {0};
    memset(pinned, 1, (size_t)pinned_bytes);
    TRY(cuda_measure_copies(rank, buffer, pinned, pinned_bytes, &speed->to_device, &speed->to_host, err));
    TRY(cuda_measure_chain(rank, false, buffer, &us, err));
    speed->kernel_us = us.median;
    if (rank->overlap) {
        TRY(cuda_measure_chain(rank, true, buffer, &us, err));
        speed->overlapped_kernel_us = us.median;
    }
    TRY(cuda_measure_fill(rank, buffer, buffer_bytes / 2, err));
    TRY(cuda_measure_read(rank, buffer, buffer_bytes, buffer + (CUdeviceptr)buffer_bytes, &speed->read, err));
    TRY(cuda_measure_copy(rank, buffer, buffer_bytes, &speed->copy, err));
    if (measure_gemms(g, buffer, speed, &no_gemm) != LS_OK) {
        snprintf(speed->no_gemm, sizeof speed->no_gemm, "%s", no_gemm.text);
    }
    return LS_OK;
}

/* With what is measured in: a buffer on the device, its last words for what kernels write; and pinned memory. */
static ls_status measure_in_memory(gpu *g, ls_gpu_speed *speed, ls_error *err) {
    const cuda_driver *api = g->driver;
    const int64_t need = buffer_bytes + 256;
    size_t free_bytes, total_bytes;
    CUdeviceptr buffer = 0;
    void *pinned = NULL;
    ls_status st = LS_OK;
    TRY(cuda_rank_memory(&g->rank, &free_bytes, &total_bytes, err));
    speed->free_bytes = (int64_t)free_bytes;
    if ((int64_t)free_bytes < need) {
        return error_set(err, LS_ENOMEM,
                         "measuring %s, device %d, needs %.2f GB of its memory; %.2f GB of %.2f are free: other "
                         "programs use it (see nvidia-smi)",
                         g->rank.facts.name, g->rank.facts.device, (double)need / 1e9, (double)free_bytes / 1e9,
                         (double)total_bytes / 1e9);
    }
    TRY_GOTO(cuda_check(&g->rank, api->cuMemAlloc(&buffer, (size_t)need), "reserving memory to measure", err), fail);
    TRY_GOTO(cuda_check(&g->rank, api->cuMemHostAlloc(&pinned, (size_t)pinned_bytes, CU_MEMHOSTALLOC_PORTABLE),
                        "reserving pinned memory to measure", err),
             fail);
    TRY_GOTO(measure(g, buffer, pinned, speed, err), fail);
fail:
    if (pinned != NULL) {
        api->cuMemFreeHost(pinned);
    }
    if (buffer != 0) {
        api->cuMemFree(buffer);
    }
    return st;
}

ls_status ls_gpu_measure(int device, ls_gpu_speed *out, ls_error *err) {
    gpu g;
    ls_status st = LS_OK;
    TRY(check_struct_size("ls_gpu_speed", out->struct_size, SIZE_MAX, err));
    ls_gpu_speed speed = {.struct_size = out->struct_size,
                          .buffer_bytes = buffer_bytes,
                          .gemm_n = GEMM_N,
                          .gemm_f32_n = GEMM_F32_N,
                          .gemm_sm_clock_mhz = -1};
    int64_t start = clock_ns();
    TRY_GOTO(gpu_find(&g, device, true, err), fail);
    speed.context_us = (clock_ns() - start) / 1000;
    speed.jit_us = g.rank.jit_us;
    TRY_GOTO(measure_in_memory(&g, &speed, err), fail);
    memcpy(out, &speed, out->struct_size < sizeof speed ? out->struct_size : sizeof speed);
fail:
    gpu_close(&g);
    return st;
}

#else

static ls_status no_cuda(ls_error *err) {
    return error_set(err, LS_EUNSUPPORTED, "this program was built without CUDA; build it where make finds nvcc");
}

ls_status ls_gpu_count(int *out, ls_error *err) {
    (void)out;
    return no_cuda(err);
}

ls_status ls_gpu_get_info(int device, ls_gpu_info *out, ls_error *err) {
    (void)device, (void)out;
    return no_cuda(err);
}

ls_status ls_gpu_measure(int device, ls_gpu_speed *out, ls_error *err) {
    (void)device, (void)out;
    return no_cuda(err);
}

#endif
