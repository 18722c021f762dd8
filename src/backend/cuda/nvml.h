/*
 * The state of a GPU by libnvidia-ml.so.1, the library behind nvidia-smi, opened for one reading: optional, and nothing
 * depends on it but what people are told.
 */
#ifndef LS_BACKEND_CUDA_NVML_H
#define LS_BACKEND_CUDA_NVML_H

#include <stdbool.h>
#include <stdint.h>

/* What the library or the GPU does not tell is -1, or "" for text. */
typedef struct nvml_state {
    char driver[32];    /* release, "580.95.05" */
    int ecc;            /* 1 on, 0 off */
    int64_t ecc_errors; /* of memory, uncorrected, since the driver was loaded */
    int sm_clock_mhz, max_sm_clock_mhz, memory_clock_mhz, max_memory_clock_mhz;
    char slowed_by[96]; /* what holds the clocks down: "power cap, heat"; "" nothing, or unknown */
    int temperature_c, power_w, power_limit_w;
    int pcie_generation, pcie_lanes; /* now: links slow down when idle */
    int n_processes;                 /* with a context on it */
} nvml_state;

/* bus: as cuDeviceGetPCIBusId has it. False if there is no such library or it does not know the GPU; all is unknown then. */
bool nvml_read(const char *bus, nvml_state *out);

#endif
