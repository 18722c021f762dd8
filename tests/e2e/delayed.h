/*
 * The CPU as if it were a device: steps run in a thread of their own, in the order in which they were submitted, from a
 * copy of their input, and take tokens from those that the step before drew there. Results become the host's when they are
 * collected. So everything that engines do one step behind runs here too, under every sanitizer.
 */
#ifndef LS_TESTS_DELAYED_H
#define LS_TESTS_DELAYED_H

#include "e2e.h"

#include "engine/engine.h"

/* Closed with ls_engine_close. */
ls_engine *delayed_engine_open(ls_model *model, const ls_engine_params *params);
/* Makes a step last at least so long from now on: 0 at first. */
void delayed_engine_slow_down(ls_engine *engine, int step_us);

#endif
