/*
 * A model of random numbers on a device, for persist_check and persist_bench: the program of a config.json, its weights, and SIDES
 * of it, each with buffers, a KV cache and a rank of its own, so that two ways to run the program can be compared.
 */
#ifndef LS_TESTS_CUDA_PERSIST_MODEL_H
#define LS_TESTS_CUDA_PERSIST_MODEL_H

#include "../decode/decode_device.h"
#include "backend/cuda/persist.h"
#include "model/program.h"

enum { MODEL_ROWS = CUDA_MAX_DECODE, MODEL_STEP_BYTES = 1 << 16 };

/* One rank's part of the weights. */
typedef struct model {
    device *dev;
    const ls_spec *spec;
    ls_program *program;
    ls_weight *weight;
    float *rope;
    int rows, max_len, n_pages;
    uint8_t *block; /* fast: where all weights lie, one behind the other; NULL otherwise */
    size_t block_bytes;
} model;

typedef struct side {
    model *m;
    cuda_rank rank;
    size_t cache_bytes; /* of K, and of V */
    persist_plan plan;
    CUfunction fn;
    void *room;
} side;

/* A decode step of n rows, each of a sequence of its own; row i is at position pos[i]. */
typedef struct model_step {
    int n;
    int32_t token[MODEL_ROWS], pos[MODEL_ROWS];
    cuda_draw draw[MODEL_ROWS];
} model_step;

/* All exit after a message if something fails. Weights are a block of random numbers, again and again: an element depends on its
 * tensor and its place there alone, so that ranks agree. Memory is the device's: device_mark, device_release.
 * fast: numbers are made in a hurry and are alike in all tensors. */
void model_open(model *m, device *dev, const ls_spec *spec, ls_group group, ls_dtype dtype, bool int8, int rows,
                int max_len, bool fast);
void model_close(model *m);
void side_open(side *s, model *m);
/* The plan of the persistent kernel for this side. */
void side_plan(side *s, const persist_options *how);
void side_upload(side *s, const model_step *step);
void side_run_ops(side *s, int bucket);
void side_run_persistent(side *s);
/* Of n ranks whose plans are made: they know of one another. */
void sides_join(side *s, int n);
/* All of them in one launch, for plans that are for that (persist_options.here). */
void sides_run_persistent(side *s, int n);
/* Whether the last step of n ranks got to its end; *err says who was stuck. say: and stdout what every warp waited for. */
bool sides_are_well(side *s, int n, bool say, ls_error *err);
/* Whether some warp was left without that (PERSIST_WAIT_...) in this op of the program. */
bool side_waited(side *s, int what, int op);

#endif
