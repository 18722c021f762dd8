/*
 * Golden checkpoints that a test may break.
 */
#ifndef LS_TESTS_EDIT_H
#define LS_TESTS_EDIT_H

#include "e2e.h"

/* Opens the list; the copy of this name, whose folder is c->folder. */
golden_case *open_copy(golden_list *list, const char *name);

/* The file of a checkpoint with one tensor's elements at hand. */
typedef struct opened_file {
    uint8_t *bytes;
    size_t n;
} opened_file;

uint8_t *tensor_data(const opened_file *file, const char *tensor);

/* Makes ckpt_f32's copy overflow f16 in the first layer, at this token alone; bf16 bears it. */
enum { HOT = 13 };
void make_hot(const golden_case *c);

#endif
