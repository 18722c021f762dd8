/* The families there are. A new one: a family_*.c file, its name in family.h, and a line here. */
#include <string.h>

#include "model/family.h"

const ls_family *const ls_families[] = {&family_qwen3, &family_mistral, &family_llama, &family_qwen2, NULL};

const ls_family *family_find(const char *model_type) {
    for (int i = 0; ls_families[i] != NULL; i++) {
        if (strcmp(ls_families[i]->model_type, model_type) == 0) {
            return ls_families[i];
        }
    }
    return NULL;
}
