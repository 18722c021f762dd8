/* What prefill_check runs: shapes of a layer, and the sequences of a step. */
#ifndef LS_TESTS_CUDA_PREFILL_CASES_H
#define LS_TESTS_CUDA_PREFILL_CASES_H

#include <stdbool.h>

enum { MAX_SEQS = 6 };

typedef struct shape {
    const char *name;
    int d_model, n_heads, n_kv, d_head, window, f_total, vocab;
    bool bias, qk_norm;
    int n_ranks, rank;
} shape;

typedef struct seqs {
    const char *name;
    struct {
        int n_past, n_rows;
    } seq[MAX_SEQS];
    bool fault; /* the second sequence's first row is an input row with an infinity */
} seqs;

typedef struct how {
    bool int8, lt, few, only_attn, wide, gemm;
} how;

static const shape shapes[] = {
    {"odd D 97 d 16", 97, 6, 2, 16, 0, 75, 101, true, true, 1, 0},
    {"d 64 window 40", 256, 8, 2, 64, 40, 320, 500, false, false, 1, 0},
    {"d 80", 320, 4, 4, 80, 0, 200, 123, true, false, 1, 0},
    {"d 96 rank 1 of 4", 192, 6, 2, 96, 100, 1000, 140, false, true, 4, 1},
    {"d 128", 384, 8, 1, 128, 0, 512, 300, false, true, 1, 0},
    {"d 256 window 70", 128, 2, 1, 256, 70, 96, 77, true, true, 1, 0},
    {"d 40 rank 0 of 2", 136, 5, 1, 40, 0, 150, 64, true, false, 2, 0},
    {"d 128 group 7 window 150", 112, 14, 2, 128, 150, 64, 50, false, false, 1, 0},
    {"d 64 group 1", 128, 3, 3, 64, 0, 64, 50, false, true, 1, 0},
};

static const seqs lengths[] = {
    {.name = "1", .seq = {{0, 1}}},
    {.name = "2+15+16+17", .seq = {{0, 2}, {0, 15}, {0, 16}, {0, 17}}},
    {.name = "100+1, 300+1, 63, 100+64", .seq = {{100, 1}, {300, 1}, {0, 63}, {100, 64}}},
    {.name = "5, 9 (fault), 100+65, 3", .seq = {{0, 5}, {7, 9}, {100, 65}, {64, 3}}, .fault = true},
    {.name = "100+300", .seq = {{100, 300}}},
    {.name = "700+150, 900+1, 129, 640+1", .seq = {{700, 150}, {900, 1}, {0, 129}, {640, 1}}},
};

/* Every width of decode's matmul kernels, and rows that do not fill it. */
static const seqs few_lengths[] = {
    {.name = "17", .seq = {{0, 17}}},
    {.name = "5, 9 (fault), 3, 130+1", .seq = {{0, 5}, {7, 9}, {64, 3}, {130, 1}}, .fault = true},
    {.name = "60+20, 70+4", .seq = {{60, 20}, {70, 4}}},
    {.name = "26", .seq = {{0, 26}}},
    {.name = "31", .seq = {{0, 31}}},
    {.name = "100+32", .seq = {{100, 32}}},
    {.name = "9+1, 32", .seq = {{9, 1}, {0, 32}}},
    {.name = "10", .seq = {{0, 10}}},
    {.name = "64", .seq = {{0, 64}}},
};

/* Rows for each of wide.c's kernels, that fill it and that do not. */
static const seqs wide_lengths[] = {
    {.name = "17", .seq = {{0, 17}}},
    {.name = "5, 9 (fault), 3, 130+1", .seq = {{0, 5}, {7, 9}, {64, 3}, {130, 1}}, .fault = true},
    {.name = "100+32", .seq = {{100, 32}}},
    {.name = "9+1, 32", .seq = {{9, 1}, {0, 32}}},
    {.name = "60+20, 70+60", .seq = {{60, 20}, {70, 60}}},
    {.name = "128", .seq = {{0, 128}}},
};

/* Widths that leave no tile whole, or the last one. */
static const shape wide_shapes[] = {
    {"d 64 wide", 512, 8, 2, 64, 0, 1088, 1100, true, true, 1, 0},
    {"d 128 wide", 1032, 9, 1, 128, 0, 648, 1003, false, true, 1, 0},
    {"d 64 wide rank 1 of 2", 640, 10, 5, 64, 0, 2048, 2560, true, false, 2, 1},
};

/* Tiles that gemm.c's clusters fill and that they do not, in rows and in columns; halves of several matrices; k that ends
 * within a block, and that leaves cut; no 16-byte rows of act. The last has too many rows to be emulated. */
static const seqs gemm_lengths[] = {
    {.name = "129", .seq = {{0, 129}}},
    {.name = "5, 9 (fault), 3, 130+1", .seq = {{0, 5}, {7, 9}, {64, 3}, {130, 1}}, .fault = true},
    {.name = "70+256", .seq = {{70, 256}}},
    {.name = "100+1, 300", .seq = {{100, 1}, {0, 300}}},
    {.name = "60+20, 70+60, 200", .seq = {{60, 20}, {70, 60}, {0, 200}}},
    {.name = "2150", .seq = {{0, 2150}}},
};
static const shape gemm_shapes[] = {
    {"d 64 gemm", 512, 8, 2, 64, 0, 1088, 1100, true, true, 1, 0},
    {"d 128 gemm", 1032, 9, 1, 128, 0, 648, 1003, false, true, 1, 0},
    {"d 64 gemm odd", 264, 5, 1, 64, 0, 333, 515, true, false, 1, 0},
    {"d 128 gemm rank 1 of 2", 640, 6, 2, 128, 0, 2048, 260, true, true, 2, 1},
    {"d 80 gemm", 320, 4, 2, 80, 0, 168, 123, true, false, 1, 0},
};

/* A layer of a real model; decode's rows and a prompt, then prompts for wide.c and gemm.c. */
static const shape layer = {"qwen3-4b", 2560, 32, 8, 128, 0, 9728, 1000, false, true, 1, 0};
static const seqs layer_lengths[] = {{.name = "200+1, 40+16", .seq = {{200, 1}, {40, 16}}},
                                     {.name = "200+31", .seq = {{200, 31}}},
                                     {.name = "0+250", .seq = {{0, 250}}}};

static const seqs single_rows = {.name = "9, 600, 64, 127, 0, 1030 +1",
                                 .seq = {{9, 1}, {600, 1}, {64, 1}, {127, 1}, {0, 1}, {1030, 1}}};

#endif
