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
        host_us[LS_PAIR_SIZES];    /* an exchange by stores, and by pinned memory; 0: not measured */
    char exchange[16];             /* what an engine on the two takes: "fused" or "host" */
    double nccl_us[LS_PAIR_SIZES]; /* an exchange by NCCL; 0: not measured */
    char no_nccl[256];             /* why not; "" if so */
    int link_only;                 /* set by the caller: 1 leaves exchanges out */
} ls_gpu_pair;
#define LS_GPU_PAIR_INIT LS_SIZED(ls_gpu_pair)
/* Tries and measures GPUs a and b: about a second. Errors: as ls_gpu_measure; LS_EINVAL: a is b; LS_EABORTED: the link between
 * them is broken, and how. */
LS_API ls_status ls_gpu_measure_pair(int a, int b, ls_gpu_pair *out, ls_error *err);

/* Exchanges alone, of sizes of the caller's: multiples of 4 KiB up to 4 MiB, or of 64 bytes up to 32 KiB. */
typedef struct ls_gpu_exchange {
    int bytes;
    double fused_us, nccl_us, host_us; /* 0: not measured, and why is in no_fused, no_nccl */
} ls_gpu_exchange;
typedef struct ls_gpu_exchanges {
    size_t struct_size;
    ls_gpu_exchange *list; /* the caller's, [n] with `bytes` set */
    int n;
    char no_fused[256], no_nccl[256];
} ls_gpu_exchanges;
#define LS_GPU_EXCHANGES_INIT LS_SIZED(ls_gpu_exchanges)
/* Errors: as ls_gpu_measure_pair; LS_EINVAL: a size. */
LS_API ls_status ls_gpu_measure_exchanges(int a, int b, ls_gpu_exchanges *out, ls_error *err);

#endif /* LOCKSTEP_PAIRS_H */
