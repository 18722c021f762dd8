/* See prompts.h. */
#include "cli/prompts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What cannot be mapped (a pipe, standard input) is read to its end. */
static ls_status read_stream(FILE *stream, const char *name, char **out, size_t *n_out, ls_error *err) {
    size_t n = 0, room = 0;
    char *bytes = NULL;
    do {
        if (n == room) {
            room = room * 2 + 65536;
            char *grown = realloc(bytes, room);
            if (grown == NULL) {
                free(bytes);
                return error_set(err, LS_ENOMEM, "--prompt-file %s: out of memory", name);
            }
            bytes = grown;
        }
        n += fread(bytes + n, 1, room - n, stream);
    } while (!feof(stream) && !ferror(stream));
    if (ferror(stream)) {
        free(bytes);
        return error_set(err, LS_EIO, "--prompt-file %s: cannot be read: %s", name, strerror(errno));
    }
    *out = bytes;
    *n_out = n;
    return LS_OK;
}

static ls_status read_file(prompt_list *list, const char *path, prompt_text *out, ls_error *err) {
    if (strcmp(path, "-") == 0) {
        if (list->input != NULL) {
            return error_set(err, LS_EINVAL, "--prompt-file -: standard input can be read only once");
        }
        TRY(read_stream(stdin, "-", &list->input, &out->n_bytes, err));
        out->bytes = list->input;
        return LS_OK;
    }
    ls_file *file = &list->file[list->n_files];
    ls_status st = file_map_or_read(file, path, err);
    if (st != LS_OK) {
        return error_prefix(err, st, "--prompt-file");
    }
    list->n_files++;
    *out = (prompt_text){file->data != NULL ? (const char *)file->data : "", file->bytes};
    return LS_OK;
}

ls_status prompts_read(prompt_list *out, const ls_options *options, ls_error *err) {
    size_t n_texts = options->n_list[OPT_PROMPT], n_files = options->n_list[OPT_PROMPT_FILE];
    size_t once = n_texts + n_files;
    size_t times = options->value[OPT_REPEAT_PROMPT].set ? (size_t)options->value[OPT_REPEAT_PROMPT].integer : 1;
    out->item = calloc(once * times + 1, sizeof *out->item);
    out->file = calloc(n_files + 1, sizeof *out->file);
    if (out->item == NULL || out->file == NULL) {
        return error_set(err, LS_ENOMEM, "prompts: out of memory");
    }
    for (size_t i = 0; i < n_texts; i++) {
        const char *text = options->list[OPT_PROMPT][i];
        out->item[i] = (prompt_text){text, strlen(text)};
    }
    for (size_t i = 0; i < n_files; i++) {
        TRY(read_file(out, options->list[OPT_PROMPT_FILE][i], &out->item[n_texts + i], err));
    }
    /* Each prompt's copies stand side by side: they end together. */
    for (size_t i = once; i-- > 0;) {
        for (size_t copy = 0; copy < times; copy++) {
            out->item[i * times + copy] = out->item[i];
        }
    }
    out->n = once * times;
    return LS_OK;
}

void prompts_deinit(prompt_list *list) {
    for (size_t i = 0; i < list->n_files; i++) {
        file_unmap(&list->file[i]);
    }
    free(list->file);
    free(list->item);
    free(list->input);
    *list = (prompt_list){0};
}
