/* See driver.h. */
#include "backend/cuda/driver.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* The name of a function's symbol: what cuda.h's map makes of it, cuMemAlloc -> "cuMemAlloc_v2". */
#define SYMBOL_TEXT(symbol) #symbol
#define SYMBOL(name) SYMBOL_TEXT(name)

static ls_status find(void *library, const char *symbol, void *out_function, ls_error *err) {
    void *address = dlsym(library, symbol);
    if (address == NULL) {
        return error_set(err, LS_EUNSUPPORTED,
                         "the NVIDIA driver has no %s: it is too old for this program, which was built with CUDA "
                         "%d.%d; update the driver",
                         symbol, CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10);
    }
    memcpy(out_function, &address, sizeof address);
    return LS_OK;
}

static ls_status find_all(cuda_driver *driver, ls_error *err) {
#define X(name) TRY(find(driver->library, SYMBOL(name), &driver->name, err));
    CUDA_DRIVER_MAP(X)
#undef X
    return LS_OK;
}

/* Kernels made by a CUDA of the driver's own major version or an older one run; those of a later one do not. */
static ls_status start(const cuda_driver *driver, ls_error *err) {
    int version = 0;
    CUresult rc = driver->cuInit(0);
    if (rc == CUDA_ERROR_NO_DEVICE) {
        return error_set(err, LS_ENOTFOUND,
                         "the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES or the container may hide it)");
    }
    if (rc != CUDA_SUCCESS) {
        return error_set(err, LS_ENOTFOUND, "the NVIDIA driver does not start: cuInit: %s (%s)",
                         cuda_error_name(driver, rc), cuda_error_text(driver, rc));
    }
    rc = driver->cuDriverGetVersion(&version);
    if (rc != CUDA_SUCCESS || version / 1000 < CUDA_VERSION / 1000) {
        return error_set(err, LS_EUNSUPPORTED,
                         "the NVIDIA driver is for CUDA %d.%d: it is too old for this program, which was built with "
                         "CUDA %d.%d; update the driver",
                         version / 1000, version % 1000 / 10, CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10);
    }
    return LS_OK;
}

ls_status cuda_driver_open(cuda_driver **out, ls_error *err) {
    cuda_driver *driver = calloc(1, sizeof *driver);
    ls_status st = LS_OK;
    if (driver == NULL) {
        return error_set(err, LS_ENOMEM, "CUDA driver: out of memory");
    }
    driver->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE); /* it has threads */
    if (driver->library == NULL) {
        TRY_GOTO(error_set(err, LS_ENOTFOUND, "no NVIDIA driver on this machine: %s", dlerror()), fail);
    }
    TRY_GOTO(find_all(driver, err), fail);
    TRY_GOTO(start(driver, err), fail);
    *out = driver;
    return LS_OK;
fail:
    cuda_driver_close(&driver);
    return st;
}

void cuda_driver_close(cuda_driver **driver) {
    if (*driver == NULL) {
        return;
    }
    if ((*driver)->library != NULL) {
        dlclose((*driver)->library);
    }
    free(*driver);
    *driver = NULL;
}

const char *cuda_error_name(const cuda_driver *driver, CUresult rc) {
    const char *name = NULL;
    return driver->cuGetErrorName(rc, &name) == CUDA_SUCCESS && name != NULL ? name : "unknown CUDA error";
}

const char *cuda_error_text(const cuda_driver *driver, CUresult rc) {
    const char *text = NULL;
    return driver->cuGetErrorString(rc, &text) == CUDA_SUCCESS && text != NULL ? text : "no text for it";
}
