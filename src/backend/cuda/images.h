/*
 * The kernels inside the binary: each kern/ *.cu compiled for each chip in the Makefile's ARCHS, and to PTX for chips that
 * are not among them.
 */
#ifndef LS_BACKEND_CUDA_IMAGES_H
#define LS_BACKEND_CUDA_IMAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct cuda_image {
    const char *file; /* "decode_matmul" of kern/decode_matmul.cu */
    const char *arch; /* "90a": a cubin for sm_90a; of PTX the lowest chip that it serves */
    bool is_ptx;
    const uint8_t *data, *end; /* behind the end lies a NUL, which PTX needs */
} cuda_image;

extern const cuda_image cuda_images[];
extern const int n_cuda_images;
extern const char cuda_archs[]; /* "sm_90a compute_80" */

/* How well an image fits a chip: 0 not at all, then PTX, then a cubin of the same generation, then the chip's own. */
int cuda_image_fit(const cuda_image *image, int cc_major, int cc_minor);
/* The file's image that fits a chip best, or NULL; generic: among those that the driver compiles. */
const cuda_image *cuda_image_best(const char *file, int cc_major, int cc_minor, bool generic);

#endif
