/*
 * Fuzz target: the bytes of a tokenizer.json. One that opens must encode any text into ids that it knows, and decode
 * any ids.
 */
#include "text/detokenize.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

static void try_encode(const ls_tokenizer *tokenizer, unsigned flags) {
    static const char text[] =
        "abc ab  <x>b\xC3\xA9 e\xCC\x81\xFF\n\n\xE2\x80\x83 \xF0\x9F\x98\x80 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        "bbbbbbbbbbbbbbbbbbbbbbbbbbabababababababababab\0c 'll 123";
    token_list ids = {0};
    text_buffer out = {0};
    ls_error err = {0};
    ls_status st = tokenizer_encode(tokenizer, text, sizeof text, flags, &ids, &err);
    for (size_t i = 0; st == LS_OK && (flags & TOKENIZER_SPANS) && i < ids.n; i++) {
        require(ids.span[i].start <= ids.span[i].end && ids.span[i].end <= sizeof text, "a span lies in the text");
    }
    require(st == LS_OK || (ids.n == 0 && err.text[0] != '\0'), "a failure leaves no ids and has a text");
    detokenizer d;
    detokenizer_init(&d, tokenizer, flags != 0);
    for (size_t i = 0; i < ids.n; i++) {
        const char *bytes;
        size_t n;
        require(tokenizer_token_bytes(tokenizer, ids.id[i], &bytes, &n), "an id is in the vocabulary");
        require(detokenizer_push(&d, ids.id[i], &out, &err) == LS_OK, "an id decodes");
    }
    require(detokenizer_flush(&d, &out, &err) == LS_OK, "the end decodes");
    text_buffer_deinit(&out);
    token_list_deinit(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ls_tokenizer *tokenizer = NULL;
    ls_error err = {0};
    ls_status st = tokenizer_parse(&tokenizer, "tokenizer.json", (const char *)data, size, &err);
    require((st == LS_OK) == (tokenizer != NULL), "a tokenizer exactly on success");
    require(st == LS_OK || (err.status == st && err.text[0] != '\0'), "a failure has a text");
    if (tokenizer != NULL) {
        try_encode(tokenizer, 0);
        try_encode(tokenizer, TOKENIZER_PARSE_SPECIAL | TOKENIZER_ADD_SPECIAL | TOKENIZER_SPANS);
        tokenizer_find(tokenizer, "ab");
        tokenizer_close(&tokenizer);
    }
    return 0;
}
