/*
 * Fuzz target: text through the demo tokenizer, and a SentencePiece-style one, and back. With special tokens read as text, decoding gives the NFC of
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

static ls_tokenizer *tokenizer, *pieces; /* opened once per process: byte-level, SentencePiece-style */

static void require(bool condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

static void close_tokenizer(void) {
    tokenizer_close(&tokenizer);
    tokenizer_close(&pieces);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    require(tokenizer_open(&tokenizer, "demo/tokenizer.json", NULL, NULL) == LS_OK, "run from the repository root");
    require(tokenizer_open(&pieces, "tests/golden/tokenizer_llama2.json", NULL, NULL) == LS_OK, "the same");
    atexit(close_tokenizer);
    return 0;
}

static void round_trip(const ls_tokenizer *t, const char *text, size_t n, unsigned flags, text_buffer *out) {
    token_list ids = {0};
    detokenizer d;
    require(tokenizer_encode(t, text, n, flags | TOKENIZER_SPANS, &ids, NULL) == LS_OK, "any text can be encoded");
    detokenizer_init(&d, t, false);
    for (size_t i = 0; i < ids.n; i++) {
        require(ids.span[i].start < ids.span[i].end && ids.span[i].end <= n, "a token has a place");
    }
    for (size_t i = 0; i < ids.n; i++) {
        size_t before = out->n;
        require(detokenizer_push(&d, ids.id[i], out, NULL) == LS_OK, "an id decodes");
        require(utf8_valid_bytes(out->data + before, out->n - before) == out->n - before, "never half a character");
    }
    require(detokenizer_flush(&d, out, NULL) == LS_OK, "the end decodes");
    token_list_deinit(&ids);
}

/* All bytes are tokens of `pieces`, so nothing is lost there but what spelled a space before. */
static bool check_pieces(const char *text, size_t n, const text_buffer *lossy) {
    text_buffer out = {0}, expected = {0};
    require(text_buffer_append(&out, "", 0, NULL) == LS_OK, "memory");
    require(text_buffer_append(&expected, "", 0, NULL) == LS_OK, "memory");
    for (size_t at = 0; at < lossy->n;) {
        bool mark = lossy->n - at >= 3 && memcmp(lossy->data + at, "\u2581", 3) == 0;
        require(text_buffer_append(&expected, mark ? " " : lossy->data + at, 1, NULL) == LS_OK, "memory");
        at += mark ? 3 : 1;
    }
    round_trip(pieces, text, n, 0, &out);
    bool same = out.n == expected.n && memcmp(out.data, expected.data, out.n) == 0;
    text_buffer_clear(&out);
    round_trip(pieces, text, n, TOKENIZER_PARSE_SPECIAL, &out);
    text_buffer_deinit(&out);
    text_buffer_deinit(&expected);
    return same;
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
    round_trip(tokenizer, (const char *)data, size, 0, &plain);
    bool newer = false; /* there utf8proc is no judge */
    for (size_t at = 0, n_bytes; at < lossy.n; at += n_bytes) {
        newer = newer || unicode_is_newer_mark(utf8_decode(lossy.data + at, &n_bytes));
    }
    require(newer || (plain.n == (size_t)n && memcmp(plain.data, nfc, (size_t)n) == 0),
            "decode(encode(text)) is the NFC of text");
    round_trip(tokenizer, (const char *)data, size, TOKENIZER_PARSE_SPECIAL, &parsed);
    require(check_pieces((const char *)data, size, &lossy), "decode(encode(text)) is the text");
    free(nfc);
    text_buffer_deinit(&lossy);
    text_buffer_deinit(&plain);
    text_buffer_deinit(&parsed);
    return 0;
}
