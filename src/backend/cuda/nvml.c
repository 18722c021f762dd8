/* See nvml.h. The functions and numbers are those of nvml.h of the CUDA toolkit, which is not everywhere that nvcc is. */
#include "backend/cuda/nvml.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef struct nvmlDevice_st *nvmlDevice_t;

enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2, NVML_UNCORRECTED = 1, NVML_VOLATILE = 0, NVML_INSUFFICIENT_SIZE = 7 };

#define NVML_MAP(X)                                                                                                    \
    X(nvmlInit_v2, (void))                                                                                             \
    X(nvmlShutdown, (void))                                                                                            \
    X(nvmlSystemGetDriverVersion, (char *, unsigned))                                                                  \
    X(nvmlDeviceGetHandleByPciBusId_v2, (const char *, nvmlDevice_t *))                                                \
    X(nvmlDeviceGetEccMode, (nvmlDevice_t, unsigned *, unsigned *))                                                    \
    X(nvmlDeviceGetTotalEccErrors, (nvmlDevice_t, int, int, unsigned long long *))                                     \
    X(nvmlDeviceGetClockInfo, (nvmlDevice_t, int, unsigned *))                                                         \
    X(nvmlDeviceGetMaxClockInfo, (nvmlDevice_t, int, unsigned *))                                                      \
    X(nvmlDeviceGetCurrentClocksThrottleReasons, (nvmlDevice_t, unsigned long long *))                                 \
    X(nvmlDeviceGetTemperature, (nvmlDevice_t, int, unsigned *))                                                       \
    X(nvmlDeviceGetPowerUsage, (nvmlDevice_t, unsigned *))                                                             \
    X(nvmlDeviceGetEnforcedPowerLimit, (nvmlDevice_t, unsigned *))                                                     \
    X(nvmlDeviceGetCurrPcieLinkGeneration, (nvmlDevice_t, unsigned *))                                                 \
    X(nvmlDeviceGetCurrPcieLinkWidth, (nvmlDevice_t, unsigned *))                                                      \
    X(nvmlDeviceGetComputeRunningProcesses_v3, (nvmlDevice_t, unsigned *, void *))

typedef struct nvml {
    void *library;
#define X(name, args) int(*name) args;
    NVML_MAP(X)
#undef X
} nvml;

static bool nvml_open(nvml *n) {
    n->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (n->library == NULL) {
        return false;
    }
    bool all = true;
#define X(name, args)                                                                                                  \
    *(void **)&n->name = dlsym(n->library, #name);                                                                     \
    all = all && n->name != NULL;
    NVML_MAP(X)
#undef X
    if (all && n->nvmlInit_v2() == 0) {
        return true;
    }
    dlclose(n->library);
    return false;
}

static int known(int rc, const unsigned *value) {
    return rc == 0 ? (int)*value : -1;
}

static int in_thousands(int value) {
    return value < 0 ? value : value / 1000;
}

static void read_slowdowns(const nvml *n, nvmlDevice_t gpu, char *out, size_t out_bytes) {
    static const struct {
        unsigned long long bit;
        const char *name;
    } known_reasons[] = {{0x02, "clocks set by hand"}, {0x04, "power cap"},
                         {0x08, "hardware slowdown"},  {0x20, "heat"},
                         {0x40, "heat (hardware)"},    {0x80, "power brake"},
                         {0x10, "sync boost"},         {0x100, "display clock limit"}};
    unsigned long long reasons = 0;
    size_t used = 0;
    if (n->nvmlDeviceGetCurrentClocksThrottleReasons(gpu, &reasons) != 0) {
        return;
    }
    for (size_t i = 0; i < sizeof known_reasons / sizeof *known_reasons; i++) {
        if ((reasons & known_reasons[i].bit) != 0 && used < out_bytes) {
            used += (size_t)snprintf(out + used, out_bytes - used, "%s%s", used > 0 ? ", " : "", known_reasons[i].name);
        }
    }
}

static void read_device(const nvml *n, nvmlDevice_t gpu, nvml_state *out) {
    unsigned value = 0, other = 0;
    unsigned long long errors = 0;
    out->ecc = known(n->nvmlDeviceGetEccMode(gpu, &value, &other), &value);
    out->ecc_errors =
        n->nvmlDeviceGetTotalEccErrors(gpu, NVML_UNCORRECTED, NVML_VOLATILE, &errors) == 0 ? (int64_t)errors : -1;
    out->sm_clock_mhz = known(n->nvmlDeviceGetClockInfo(gpu, NVML_CLOCK_SM, &value), &value);
    out->max_sm_clock_mhz = known(n->nvmlDeviceGetMaxClockInfo(gpu, NVML_CLOCK_SM, &value), &value);
    out->memory_clock_mhz = known(n->nvmlDeviceGetClockInfo(gpu, NVML_CLOCK_MEM, &value), &value);
    out->max_memory_clock_mhz = known(n->nvmlDeviceGetMaxClockInfo(gpu, NVML_CLOCK_MEM, &value), &value);
    out->temperature_c = known(n->nvmlDeviceGetTemperature(gpu, 0, &value), &value);
    out->power_w = in_thousands(known(n->nvmlDeviceGetPowerUsage(gpu, &value), &value));
    out->power_limit_w = in_thousands(known(n->nvmlDeviceGetEnforcedPowerLimit(gpu, &value), &value));
    out->pcie_generation = known(n->nvmlDeviceGetCurrPcieLinkGeneration(gpu, &value), &value);
    out->pcie_lanes = known(n->nvmlDeviceGetCurrPcieLinkWidth(gpu, &value), &value);
    value = 0; /* room for none: it says how many there are */
    int rc = n->nvmlDeviceGetComputeRunningProcesses_v3(gpu, &value, NULL);
    out->n_processes = rc == 0 || rc == NVML_INSUFFICIENT_SIZE ? (int)value : -1;
    read_slowdowns(n, gpu, out->slowed_by, sizeof out->slowed_by);
}

bool nvml_read(const char *bus, nvml_state *out) {
    nvml n = {0};
    nvmlDevice_t gpu = NULL;
    *out = (nvml_state){.ecc = -1,
                        .ecc_errors = -1,
                        .sm_clock_mhz = -1,
                        .max_sm_clock_mhz = -1,
                        .memory_clock_mhz = -1,
                        .max_memory_clock_mhz = -1,
                        .temperature_c = -1,
                        .power_w = -1,
                        .power_limit_w = -1,
                        .pcie_generation = -1,
                        .pcie_lanes = -1,
                        .n_processes = -1};
    if (!nvml_open(&n)) {
        return false;
    }
    if (n.nvmlSystemGetDriverVersion(out->driver, sizeof out->driver) != 0) {
        out->driver[0] = '\0';
    }
    bool found = n.nvmlDeviceGetHandleByPciBusId_v2(bus, &gpu) == 0;
    if (found) {
        read_device(&n, gpu, out);
    }
    n.nvmlShutdown();
    dlclose(n.library);
    return found;
}
