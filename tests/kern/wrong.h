/*
 * Implementations that are wrong on purpose: the harness must find each. One switch says what is wrong; it is read by
 * every thread and set only while none runs.
 */
#ifndef LS_TESTS_KERN_WRONG_H
#define LS_TESTS_KERN_WRONG_H

#include "harness.h"

typedef enum wrong_kind {
    WRONG_NOTHING,     /* the control */
    WRONG_VALUE,       /* a row is off by one in a thousand */
    WRONG_BITS,        /* a row is off by 4e-6: within the tolerance */
    WRONG_TEAM,        /* the same, with three threads only */
    WRONG_RANKS,       /* the same, on eight ranks only */
    WRONG_COMPANY,     /* the same, for a row alone only */
    WRONG_LEAVES,      /* out, ffn_out: two leaves swapped in the tree */
    WRONG_SCALES,      /* int8: the scales of two leaves swapped */
    WRONG_X_SCALE,     /* w8a8: x is not quantised */
    WRONG_ROUNDING,    /* an act that is not representable in the run dtype */
    WRONG_UNUSED_ROW,  /* writes the row behind the last */
    WRONG_BEHIND,      /* writes behind the buffer */
    WRONG_BEFORE,      /* writes before the buffer */
    WRONG_INPUT,       /* writes its input */
    WRONG_READ,        /* reads the row behind the last */
    WRONG_CACHE_WRITE, /* qkv: writes another position's K */
    WRONG_CACHE_READ,  /* attn: reads a V that is not in its window */
    WRONG_SILENT,      /* exchange, head: notes no fault */
    WRONG_NOISY,       /* notes a fault of row 0 too */
    WRONG_FORGETFUL,   /* overwrites what was noted before */
    WRONG_CONTAGIOUS,  /* a poisoned row changes the last */
    WRONG_KINDS
} wrong_kind;

typedef struct wrong_info {
    const char *name;
    bool in_faults;   /* found by kern_check_faults; else by kern_check */
    const char *word; /* that the report must contain */
    uint32_t ops;     /* 1 << kind: where it can be wrong so */
} wrong_info;

extern const wrong_info wrong_infos[WRONG_KINDS];
extern const ls_op_table wrong_ops;

/* What wrong_ops does wrong, in ops of which kind. */
void wrong_set(wrong_kind wrong, ls_op_kind kind);

#endif
