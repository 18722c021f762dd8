/* How fast the cores multiply and add, with the instructions of an inner loop and nothing else. */
#ifndef LS_BACKEND_CPU_MEASURE_H
#define LS_BACKEND_CPU_MEASURE_H

#include "backend/cpu/cpu.h"

/* Runs n rounds of independent f32 multiply-adds in registers; returns the operations of one round (a multiply-add is
 * two). *sink gets a value that depends on all of them. */
int64_t cpu_multiply_add(const cpu_isa *isa, int64_t n, float *sink);

#endif
