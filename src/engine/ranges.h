/*
 * Ranges of time with a name, for profilers that know NVTX (nsys): planning, loading, capturing, each step. NVTX's header
 * finds the tool by itself, through NVTX_INJECTION64_PATH; without one a range costs a load and a branch. A build without
 * CUDA's headers has none. Ranges of one thread nest.
 */
#ifndef LS_ENGINE_RANGES_H
#define LS_ENGINE_RANGES_H

#include <stdint.h>

void range_begin(const char *name);                    /* constant */
void range_begin_rows(const char *name, int32_t rows); /* of a step */
void range_end(void);

#endif
