/* See images.h. The Makefile writes images.inc: IMAGE(symbol, file, arch, is_ptx, path) for each image. */
#include "backend/cuda/images.h"

#include <stdlib.h>
#include <string.h>

#define IMAGE(symbol, file, arch, is_ptx, path)                                                                        \
    __asm__(".pushsection .rodata\n.balign 64\n.hidden cuda_image_" #symbol ", cuda_image_" #symbol "_end\n"           \
            ".globl cuda_image_" #symbol ", cuda_image_" #symbol "_end\ncuda_image_" #symbol ":\n.incbin \"" path      \
            "\"\ncuda_image_" #symbol "_end:\n.byte 0\n.popsection\n");                                                \
    extern const uint8_t cuda_image_##symbol[], cuda_image_##symbol##_end[];
#include "images.inc"
#undef IMAGE

#define IMAGE(symbol, file, arch, is_ptx, path) {file, arch, is_ptx, cuda_image_##symbol, cuda_image_##symbol##_end},
const cuda_image cuda_images[] = {
#include "images.inc"
};
#undef IMAGE

const char cuda_archs[] =
#include "archs.inc"
    ;
const int n_cuda_images = (int)(sizeof cuda_images / sizeof *cuda_images);

int cuda_image_fit(const cuda_image *image, int cc_major, int cc_minor) {
    enum { NONE, PTX, SAME_GENERATION, OWN = SAME_GENERATION + 10 };
    char *end;
    int arch = (int)strtol(image->arch, &end, 10), chip = cc_major * 10 + cc_minor;
    bool exact_only = *end == 'a';
    if (arch > chip || (exact_only && arch != chip)) {
        return NONE;
    }
    if (image->is_ptx) {
        return PTX;
    }
    return arch == chip ? OWN + exact_only : arch / 10 == cc_major ? SAME_GENERATION + arch % 10 : NONE;
}

const cuda_image *cuda_image_best(const char *file, int cc_major, int cc_minor, bool generic) {
    const cuda_image *best = NULL;
    int best_fit = 0;
    for (int i = 0; i < n_cuda_images; i++) {
        int fit = cuda_image_fit(&cuda_images[i], cc_major, cc_minor);
        if (strcmp(cuda_images[i].file, file) == 0 && fit > best_fit && (!generic || cuda_images[i].is_ptx)) {
            best = &cuda_images[i];
            best_fit = fit;
        }
    }
    return best;
}
