/*
 * The lines of a profile: what ops took, by kind, in steps of decode alone and in others. Filled by back ends that time
 * their ops; read by ls_engine_get_profile.
 */
#ifndef LS_ENGINE_PROFILE_H
#define LS_ENGINE_PROFILE_H

#include "engine/engine.h"

enum { PROFILE_LINES = 48 };

typedef struct profile_lines {
    int n, n_runners;
    ls_profile_line line[PROFILE_LINES];
    double runner_us[PROFILE_LINES]
                    [LS_MAX_RANKS]; /* total_us of each that runs the program and is timed: GPUs, or CPU ranks */
} profile_lines;

/* Of ranks on the CPU: ls_engine.profile, NULL unless it was asked for. */
typedef struct cpu_profile {
    profile_lines lines;
    int64_t op_ns[]; /* [rank_count][n_ops] of the step that runs */
} cpu_profile;

ls_status cpu_profile_open(ls_engine *engine, ls_error *err);
/* A step is over: its times go to the lines. */
void cpu_profile_step(ls_engine *engine, const struct step_batch *batch);

/* Ops [first, last) of the program ran as one in `us`, in the step of `batch`: on `runner` of lines->n_runners, 0 first. */
void profile_add(profile_lines *lines, const ls_engine *engine, const struct step_batch *batch, int first, int last,
                 int runner, double us);

#endif
