/*
 * Fuzz target: the bytes of a cache file of the tokenizer. The checksum is put right first, as an attacker would, so that
 * what lies behind it is reached. A file that is taken must give a tokenizer that encodes and decodes anything.
 *
 * Inputs are patches to a good file, since libFuzzer would never find one of its own: groups of 7 bytes, where (4, little
 * endian, modulo the size) and what (1 byte, and 2 for how often). An empty input is the good file itself.
 */
#include "text/detokenize.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/tokenizer_cache.h"

#define JSON                                                                                                           \
    "{\"added_tokens\":[{\"id\":9,\"content\":\"<x>\",\"single_word\":false,\"lstrip\":true,\"rstrip\":false,"         \
    "\"normalized\":true,\"special\":true}],\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":"            \
    "\"Metaspace\","                                                                                                   \
    "\"replacement\":\"_\",\"prepend_scheme\":\"first\",\"split\":false},\"post_processor\":null,\"decoder\":{"        \
    "\"type\":"                                                                                                        \
    "\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]},\"model\":{\"type\":\"BPE\","        \
    "\"byte_fallback\":true,\"unk_token\":\"a\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"abb\":3,\"\\u00e9\":4,"          \
    "\"_\":5,\"_a\":6,\"<0xFF>\":7,\"aa\":8},\"merges\":[\"a b\",\"ab b\",\"_ a\",\"a a\"]}}"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *good;
static size_t n_good;
static cache_key key;

static void require(bool condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

/* The good file is the one that a real open writes. */
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    char folder[] = "/tmp/fuzz-cache-XXXXXX", path[128], json_path[128];
    ls_tokenizer *tokenizer = NULL;
    require(mkdtemp(folder) != NULL, "scratch folder made");
    snprintf(json_path, sizeof json_path, "%s/tokenizer.json", folder);
    FILE *file = fopen(json_path, "w");
    require(file != NULL && fputs(JSON, file) >= 0 && fclose(file) == 0, "scratch file written");
    require(tokenizer_open(&tokenizer, json_path, folder, NULL) == LS_OK, "the good file opens");
    tokenizer_close(&tokenizer);
    key = cache_key_of(JSON, strlen(JSON));
    snprintf(path, sizeof path, "%s/%016llx%016llx.tokenizer", folder, (unsigned long long)key.hash[0],
             (unsigned long long)key.hash[1]);
    file = fopen(path, "r");
    require(file != NULL, "the cache was written");
    good = malloc(1 << 16);
    n_good = good != NULL ? fread(good, 1, 1 << 16, file) : 0;
    require(n_good > 100 && n_good < 1 << 16 && fclose(file) == 0, "the cache was read");
    remove(path);
    remove(json_path);
    remove(folder);
    return 0;
}

static void use(ls_tokenizer *t, const char *rest, size_t n_rest) {
    static const char text[] = "ab abb<x> \xC3\xA9 \xFF _aaaab\0 b\xE2\x96\x81";
    token_list ids = {0};
    text_buffer out = {0};
    require(tokenizer_read_cached_rest(t, "t", rest, n_rest) || t->vocab.token == NULL, "all or nothing");
    if (t->vocab.token != NULL) {
        detokenizer d;
        require(tokenizer_encode(t, text, sizeof text, TOKENIZER_PARSE_SPECIAL | TOKENIZER_SPANS, &ids, NULL) == LS_OK,
                "any text can be encoded");
        detokenizer_init(&d, t, true);
        for (int32_t id = -1; id < 12; id++) {
            require(detokenizer_push(&d, id, &out, NULL) == LS_OK, "any id decodes");
        }
        require(detokenizer_flush(&d, &out, NULL) == LS_OK, "the end decodes");
    }
    text_buffer_deinit(&out);
    token_list_deinit(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t n = n_good;
    if (size % 7 == 1) { /* also cut short */
        n = n_good * data[--size] / 255;
    }
    char *image = aligned_alloc(16, (n + 31) / 16 * 16);
    require(image != NULL, "memory");
    memcpy(image, good, n);
    for (size_t i = 0; i + 7 <= size && n > 0; i += 7) {
        size_t at = (data[i] | (size_t)data[i + 1] << 8 | (size_t)data[i + 2] << 16 | (size_t)data[i + 3] << 24) % n;
        for (size_t k = 0; k <= data[i + 5] % 16u && at + k < n; k++) {
            image[at + k] = (char)(data[i + 4] + k * data[i + 6]);
        }
    }
    if (n >= 16) {
        uint64_t checksum = cache_checksum(image, n);
        memcpy(image + CACHE_CHECKSUM_AT, &checksum, sizeof checksum);
    }
    ls_tokenizer *t = calloc(1, sizeof *t);
    const char *rest;
    size_t n_rest;
    require(t != NULL, "memory");
    if (cache_use(t, image, n, &key, &rest, &n_rest)) {
        use(t, rest, n_rest);
    }
    tokenizer_close(&t);
    free(image);
    return 0;
}
