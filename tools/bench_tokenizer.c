/*
 * Times of the tokenizer for tools/bench_tokenizer.py: seconds, one number for each run, on standard output.
 *
 *     bench_tokenizer encode TOKENIZER.json TEXT RUNS        [then the number of ids and their FNV-1a hash]
 *     bench_tokenizer open TOKENIZER.json CACHE_FOLDER|- RUNS
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "text/tokenizer.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t hash_ids(const token_list *ids) {
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < ids->n; i++) {
        for (int shift = 0; shift < 32; shift += 8) {
            h = (h ^ ((uint32_t)ids->id[i] >> shift & 0xFF)) * 0x100000001B3u;
        }
    }
    return h;
}

static ls_status encode(const char *path, const char *text_path, int runs, ls_error *err) {
    ls_status st;
    ls_tokenizer *tokenizer = NULL;
    ls_file text = {0};
    token_list ids = {0};
    TRY_GOTO(tokenizer_open(&tokenizer, path, NULL, err), fail);
    TRY_GOTO(file_map(&text, text_path, err), fail);
    for (int i = 0; i < runs; i++) {
        token_list_deinit(&ids);
        double start = now();
        TRY_GOTO(tokenizer_encode(tokenizer, (const char *)text.data, text.bytes, TOKENIZER_PARSE_SPECIAL, &ids, err),
                 fail);
        printf("%.6f ", now() - start);
    }
    printf("%zu %016llx\n", ids.n, (unsigned long long)hash_ids(&ids));
fail:
    token_list_deinit(&ids);
    file_unmap(&text);
    tokenizer_close(&tokenizer);
    return st;
}

static ls_status open_again(const char *path, const char *cache, int runs, ls_error *err) {
    for (int i = 0; i < runs; i++) {
        ls_tokenizer *tokenizer = NULL;
        double start = now();
        TRY(tokenizer_open(&tokenizer, path, strcmp(cache, "-") == 0 ? NULL : cache, err));
        printf("%.6f ", now() - start);
        tokenizer_close(&tokenizer);
    }
    printf("\n");
    return LS_OK;
}

int main(int argc, char **argv) {
    ls_error err = {0};
    bool encodes = argc == 5 && strcmp(argv[1], "encode") == 0;
    if (!encodes && (argc != 5 || strcmp(argv[1], "open") != 0)) {
        fprintf(stderr, "usage: see the head of tools/bench_tokenizer.c\n");
        return 2;
    }
    ls_status st =
        encodes ? encode(argv[2], argv[3], atoi(argv[4]), &err) : open_again(argv[2], argv[3], atoi(argv[4]), &err);
    if (st < 0) {
        fprintf(stderr, "%s\n", err.text);
    }
    return st < 0;
}
