/* One rank's device: context, stream, modules, kernels. See cuda.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/cuda/cuda.h"
#include "backend/cuda/images.h"
#include "base/clock.h"

_Static_assert((int)CUDA_PAGE_TOKENS == (int)LS_PAGE_TOKENS, "kernels and engine share pages");

ls_status cuda_check(const cuda_rank *rank, CUresult rc, const char *what, ls_error *err) {
    if (rc == CUDA_SUCCESS) {
        return LS_OK;
    }
    ls_status status = rc == CUDA_ERROR_OUT_OF_MEMORY ? LS_ENOMEM : LS_EABORTED;
    const char *gpu = rank->facts.name[0] != '\0' ? rank->facts.name : "a GPU";
    const char *name = cuda_error_name(rank->driver, rc), *text = cuda_error_text(rank->driver, rc);
    return rank->bind.group.size == 0
               ? error_set(err, status, "%s on device %d (%s): %s: %s", what, rank->facts.device, gpu, name, text)
               : error_set(err, status, "%s on rank %d (%s, device %d): %s: %s", what, rank->bind.group.rank, gpu,
                           rank->facts.device, name, text);
}

ls_status cuda_launch(cuda_rank *rank, CUfunction fn, const char *name, unsigned grid_x, unsigned grid_y,
                      unsigned grid_z, unsigned block, unsigned shared_bytes, void **args, ls_error *err) {
    cuda_note_launch(rank, name);
    CUresult rc =
        rank->driver->cuLaunchKernel(fn, grid_x, grid_y, grid_z, block, 1, 1, shared_bytes, rank->stream, args, NULL);
    return rc == CUDA_SUCCESS ? LS_OK : cuda_check(rank, rc, name, err);
}

ls_status cuda_launch_overlapping(cuda_rank *rank, CUfunction fn, const char *name, unsigned grid_x, unsigned grid_y,
                                  unsigned grid_z, unsigned block, unsigned shared_bytes, void **args, ls_error *err) {
    if (!rank->overlap) {
        return cuda_launch(rank, fn, name, grid_x, grid_y, grid_z, block, shared_bytes, args, err);
    }
    cuda_note_launch(rank, name);
    CUlaunchAttribute overlap = {.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                                 .value.programmaticStreamSerializationAllowed = 1};
    const CUlaunchConfig config = {.gridDimX = grid_x,
                                   .gridDimY = grid_y,
                                   .gridDimZ = grid_z,
                                   .blockDimX = block,
                                   .blockDimY = 1,
                                   .blockDimZ = 1,
                                   .sharedMemBytes = shared_bytes,
                                   .hStream = rank->stream,
                                   .attrs = &overlap,
                                   .numAttrs = 1};
    CUresult rc = rank->driver->cuLaunchKernelEx(&config, fn, args, NULL);
    return rc == CUDA_SUCCESS ? LS_OK : cuda_check(rank, rc, name, err);
}

ls_status cuda_launch_together(cuda_rank *rank, CUfunction fn, const char *name, unsigned grid_x, unsigned grid_y,
                               unsigned block, unsigned shared_bytes, void **args, ls_error *err) {
    cuda_note_launch(rank, name);
    CUlaunchAttribute together = {.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE, .value.cooperative = 1};
    const CUlaunchConfig config = {.gridDimX = grid_x,
                                   .gridDimY = grid_y,
                                   .gridDimZ = 1,
                                   .blockDimX = block,
                                   .blockDimY = 1,
                                   .blockDimZ = 1,
                                   .sharedMemBytes = shared_bytes,
                                   .hStream = rank->stream,
                                   .attrs = &together,
                                   .numAttrs = 1};
    CUresult rc = rank->driver->cuLaunchKernelEx(&config, fn, args, NULL);
    return rc == CUDA_SUCCESS ? LS_OK : cuda_check(rank, rc, name, err);
}

/* ---- The device ---- */

ls_status cuda_rank_facts(cuda_rank *rank, const cuda_driver *driver, int ordinal, ls_error *err) {
    *rank = (cuda_rank){.driver = driver};
    const cuda_driver *cuda = driver;
    cuda_facts *facts = &rank->facts;
    int n = 0, l2 = 0;
    facts->device = ordinal;
    TRY(cuda_check(rank, cuda->cuDeviceGetCount(&n), "counting devices", err));
    if (ordinal >= n) {
        return error_set(err, LS_ENOTFOUND,
                         "no GPU %d: the NVIDIA driver shows %d (CUDA_VISIBLE_DEVICES may hide some)", ordinal, n);
    }
    TRY(cuda_check(rank, cuda->cuDeviceGet(&rank->device, ordinal), "opening the device", err));
    TRY(cuda_check(rank, cuda->cuDeviceGetName(facts->name, (int)sizeof facts->name, rank->device), "device name",
                   err));
    TRY(cuda_check(rank, cuda->cuDeviceTotalMem(&facts->memory_bytes, rank->device), "device memory", err));
    const struct {
        CUdevice_attribute attribute;
        int *value;
    } ask[] = {{CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &facts->sm_count},
               {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &facts->cc_major},
               {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &facts->cc_minor},
               {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &facts->shared_bytes_per_block},
               {CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, &l2}};
    for (size_t i = 0; i < sizeof ask / sizeof *ask; i++) {
        TRY(cuda_check(rank, cuda->cuDeviceGetAttribute(ask[i].value, ask[i].attribute, rank->device),
                       "device attributes", err));
    }
    facts->l2_bytes = (size_t)l2;
    return LS_OK;
}

/* ---- Kernels ---- */

static ls_status load_image(cuda_rank *rank, const char *file, bool generic, ls_error *err) {
    const cuda_facts *facts = &rank->facts;
    const cuda_image *image = cuda_image_best(file, facts->cc_major, facts->cc_minor, generic);
    if (image == NULL) {
        char wanted[16];
        snprintf(wanted, sizeof wanted, "sm_%d%d", facts->cc_major, facts->cc_minor);
        return error_set(err, LS_EUNSUPPORTED,
                         "%s is sm_%d%d; this program has %skernels for %s: build it with make ARCHS=\"%s%s%s\"",
                         facts->name, facts->cc_major, facts->cc_minor, generic ? "no generic ones among its " : "",
                         cuda_archs[0] != '\0' ? cuda_archs : "no chip", cuda_archs, cuda_archs[0] != '\0' ? " " : "",
                         generic ? "compute_80" : wanted);
    }
    char what[64];
    snprintf(what, sizeof what, "loading kernels %s.%s_%s", file, image->is_ptx ? "compute" : "sm", image->arch);
    int64_t start = clock_ns();
    TRY(cuda_check(rank, rank->driver->cuModuleLoadData(&rank->module[rank->n_modules], image->data), what, err));
    rank->n_modules++;
    rank->jit_us += image->is_ptx ? (clock_ns() - start) / 1000 : 0;
    return LS_OK;
}

/* One module for each file: images of a file follow one another. */
static ls_status load_modules(cuda_rank *rank, bool generic, ls_error *err) {
    rank->module = calloc((size_t)n_cuda_images + 1, sizeof(CUmodule));
    if (rank->module == NULL) {
        return error_set(err, LS_ENOMEM, "CUDA modules: out of memory");
    }
    for (int i = 0; i < n_cuda_images; i++) {
        if (i == 0 || strcmp(cuda_images[i].file, cuda_images[i - 1].file) != 0) {
            TRY(load_image(rank, cuda_images[i].file, generic, err));
        }
    }
    return LS_OK;
}

ls_status cuda_rank_kernel(const cuda_rank *rank, const char *name, CUfunction *out, ls_error *err) {
    for (int i = 0; i < rank->n_modules; i++) {
        CUresult rc = rank->driver->cuModuleGetFunction(out, rank->module[i], name);
        if (rc == CUDA_SUCCESS) {
            return cuda_check(rank, rank->driver->cuFuncLoad(*out), name, err);
        }
        if (rc != CUDA_ERROR_NOT_FOUND) {
            return cuda_check(rank, rc, name, err);
        }
    }
    return error_set(err, LS_EINTERNAL, "no kernel %s in this program's modules", name);
}

static ls_status load_kernels(cuda_rank *rank, const char *const *name, int n, CUfunction **out, ls_error *err) {
    *out = calloc((size_t)n + 1, sizeof(CUfunction));
    if (*out == NULL) {
        return error_set(err, LS_ENOMEM, "CUDA kernels: out of memory");
    }
    for (int i = 0; i < n; i++) {
        TRY(cuda_rank_kernel(rank, name[i], &(*out)[i], err));
    }
    return LS_OK;
}

/* ---- Opening and closing ---- */

ls_status cuda_rank_open(cuda_rank *rank, const cuda_driver *driver, int ordinal, bool generic, ls_error *err) {
    TRY(cuda_rank_facts(rank, driver, ordinal, err));
    TRY(cuda_check(rank, driver->cuDevicePrimaryCtxRetain(&rank->context, rank->device), "creating a context", err));
    TRY(cuda_rank_enter(rank, err));
    TRY(cuda_check(rank, driver->cuStreamCreate(&rank->stream, CU_STREAM_NON_BLOCKING), "creating a stream", err));
    TRY(load_modules(rank, generic, err));
    rank->overlap = rank->facts.cc_major >= 9 && rank->jit_us == 0;
    TRY(load_kernels(rank, decode_kernel_names, n_decode_kernels, &rank->decode_fn, err));
    return load_kernels(rank, prefill_kernel_names, n_prefill_kernels, &rank->prefill_fn, err);
}

void cuda_rank_open_beside(cuda_rank *rank, const cuda_rank *first) {
    *rank = *first;
    rank->borrowed = true;
    rank->n_launched = 0;
}

void cuda_rank_close(cuda_rank *rank) {
    if (rank->borrowed) {
        *rank = (cuda_rank){0};
        return;
    }
    if (rank->context != NULL) {
        const cuda_driver *cuda = rank->driver;
        cuda->cuCtxSetCurrent(rank->context);
        for (int i = 0; i < rank->n_modules; i++) {
            cuda->cuModuleUnload(rank->module[i]);
        }
        if (rank->stream != NULL) {
            cuda->cuStreamDestroy(rank->stream);
        }
        cuda->cuCtxSetCurrent(NULL);
        cuda->cuDevicePrimaryCtxRelease(rank->device);
    }
    free(rank->module);
    free(rank->decode_fn);
    free(rank->prefill_fn);
    *rank = (cuda_rank){0};
}

ls_status cuda_rank_enter(const cuda_rank *rank, ls_error *err) {
    return cuda_check(rank, rank->driver->cuCtxSetCurrent(rank->context), "entering the context", err);
}

ls_status cuda_rank_memory(const cuda_rank *rank, size_t *free_bytes, size_t *total_bytes, ls_error *err) {
    return cuda_check(rank, rank->driver->cuMemGetInfo(free_bytes, total_bytes), "reading the device's memory", err);
}

/* Steps take milliseconds: whoever waits longer than that need not burn a core. */
ls_status cuda_rank_wait_event(const cuda_rank *rank, CUevent event, const char *what, int timeout_s, ls_error *err) {
    const int64_t patience_ns = 20000000;
    int64_t start = clock_ns();
    for (;;) {
        CUresult rc = event != NULL ? rank->driver->cuEventQuery(event) : rank->driver->cuStreamQuery(rank->stream);
        if (rc != CUDA_ERROR_NOT_READY) {
            return cuda_check(rank, rc, what, err);
        }
        int64_t waited = clock_ns() - start;
        if (waited > (int64_t)timeout_s * 1000000000) {
            return error_set(err, LS_EABORTED, "%s on rank %d (%s, device %d): no end after %d s", what,
                             rank->bind.group.rank, rank->facts.name, rank->facts.device, timeout_s);
        }
        if (waited > patience_ns) {
            nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
        }
    }
}

ls_status cuda_rank_wait(const cuda_rank *rank, const char *what, int timeout_s, ls_error *err) {
    return cuda_rank_wait_event(rank, NULL, what, timeout_s, err);
}
