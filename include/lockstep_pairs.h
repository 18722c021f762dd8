/* Part of lockstep.h, which includes it: what two GPUs of a machine can do together. */
#ifndef LOCKSTEP_PAIRS_H
#define LOCKSTEP_PAIRS_H

enum { LS_PAIR_SIZES = 6 };

typedef struct ls_gpu_pair {
    size_t struct_size;
    int reach;                         /* 1: each can store to the other's memory */
    char why_not[256];                 /* "" if so */
    ls_rate there, back;               /* bytes/s of copies from the first to the second, and back */
    double word_us;                    /* a word's way, half of there and back; 0: they do not reach each other */
    int exchange_bytes[LS_PAIR_SIZES]; /* of f32 sums: rising */
    double fused_us[LS_PAIR_SIZES],
        host_us[LS_PAIR_SIZES]; /* an exchange by stores, and by pinned memory; 0: not measured */
    char exchange[16];          /* what an engine on the two takes: "fused" or "host" */
} ls_gpu_pair;
#define LS_GPU_PAIR_INIT LS_SIZED(ls_gpu_pair)
/* Tries and measures GPUs a and b: about a second. Errors: as ls_gpu_measure; LS_EINVAL: a is b; LS_EABORTED: the link between
 * them is broken, and how. */
LS_API ls_status ls_gpu_measure_pair(int a, int b, ls_gpu_pair *out, ls_error *err);

#endif /* LOCKSTEP_PAIRS_H */
