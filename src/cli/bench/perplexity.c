/* The perplexity of --prompt-file's text, beside the speeds of a sweep. */
#include <math.h>
#include <stdlib.h>

#include "base/file.h"
#include "cli/bench/bench.h"
#include "cli/perplexity.h"

enum { WINDOW = 512, AT_ONCE = 8 };

static ls_status encode(bench *b, const ls_file *file, int32_t **out, size_t *n, ls_error *err) {
    char folder[4096], cache[4096];
    ls_text *text = NULL;
    ls_token *token = NULL;
    TRY(cli_find_text(&b->options, folder, sizeof folder, err));
    TRY(ls_text_open(folder, options_cache_folder(&b->options, cache, sizeof cache), &text, err));
    ls_status st = ls_text_encode(text, (const char *)file->data, file->bytes,
                                  LS_ENCODE_PARSE_SPECIAL | LS_ENCODE_ADD_SPECIAL, &token, n, err);
    *out = st == LS_OK ? malloc((*n + 1) * sizeof **out) : NULL;
    for (size_t i = 0; *out != NULL && i < *n; i++) {
        (*out)[i] = token[i].id;
    }
    ls_free(token);
    ls_text_close(&text);
    TRY(st);
    return *out != NULL ? LS_OK : error_set(err, LS_ENOMEM, "bench: out of memory");
}

ls_status bench_perplexity(bench *b, json_t *row, ls_error *err) {
    ls_file file;
    int32_t *token = NULL;
    size_t n = 0;
    perplexity_score score;
    TRY(file_map_or_read(&file, b->options.list[OPT_PROMPT_FILE][0], err));
    ls_status st = encode(b, &file, &token, &n, err);
    file_unmap(&file);
    st = st == LS_OK ? bench_open(b, (bench_room){AT_ONCE, WINDOW - 2, 1}, err) : st;
    st = st == LS_OK ? perplexity_measure(b->engine, token, n, AT_ONCE, false, &score, err) : st;
    free(token);
    TRY(st);
    results_add(row, "perplexity", LESS_IS_BETTER, exp(score.nll / (double)score.n_scored));
    return LS_OK;
}
