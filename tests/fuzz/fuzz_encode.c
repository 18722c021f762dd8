/*
 * Fuzz target: text through the demo tokenizer and back. With special tokens read as text, decoding gives the NFC of
 * the text with U+FFFD for what is not UTF-8; so valid text in NFC comes back as it was. utf8proc's NFC is the judge.
 */
#include "text/detokenize.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/normalize.h"
#include "text/utf8.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static ls_tokenizer *tokenizer; /* opened once per process */

static void require(bool condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

static void close_tokenizer(void) {
    tokenizer_close(&tokenizer);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    require(tokenizer_open(&tokenizer, "demo/tokenizer.json", NULL) == LS_OK, "run from the repository root");
    atexit(close_tokenizer);
    return 0;
}

static void round_trip(const char *text, size_t n, unsigned flags, text_buffer *out) {
    token_list ids = {0};
    detokenizer d;
    require(tokenizer_encode(tokenizer, text, n, flags, &ids, NULL) == LS_OK, "any text can be encoded");
    detokenizer_init(&d, tokenizer, false);
    for (size_t i = 0; i < ids.n; i++) {
        size_t before = out->n;
        require(detokenizer_push(&d, ids.id[i], out, NULL) == LS_OK, "an id decodes");
        require(utf8_valid_bytes(out->data + before, out->n - before) == out->n - before, "never half a character");
    }
    require(detokenizer_flush(&d, out, NULL) == LS_OK, "the end decodes");
    token_list_deinit(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    text_buffer lossy = {0}, plain = {0}, parsed = {0};
    utf8proc_uint8_t *nfc = NULL;
    require(text_buffer_append(&lossy, "", 0, NULL) == LS_OK, "memory");
    require(text_buffer_append(&plain, "", 0, NULL) == LS_OK, "memory");
    require(utf8_append_lossy(&lossy, (const char *)data, size, NULL) == LS_OK, "memory");
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)lossy.data, (utf8proc_ssize_t)lossy.n, &nfc,
                                      UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    require(n >= 0, "utf8proc normalises");
    round_trip((const char *)data, size, 0, &plain);
    bool newer = false; /* there utf8proc is no judge */
    for (size_t at = 0, n_bytes; at < lossy.n; at += n_bytes) {
        newer = newer || normalize_is_newer_mark(utf8_decode(lossy.data + at, &n_bytes));
    }
    require(newer || (plain.n == (size_t)n && memcmp(plain.data, nfc, (size_t)n) == 0),
            "decode(encode(text)) is the NFC of text");
    round_trip((const char *)data, size, TOKENIZER_PARSE_SPECIAL, &parsed);
    free(nfc);
    text_buffer_deinit(&lossy);
    text_buffer_deinit(&plain);
    text_buffer_deinit(&parsed);
    return 0;
}
