/*
 * Tokenizer: what its contract says, small models, and every refusal of a malformed or unknown tokenizer.json. Ids against
 * Hugging Face `tokenizers` are in test_token_vectors.c.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "text/tokenizer.h"

#define DEMO "demo/tokenizer.json"
#define QWEN3 "../shared/data/tokenizers/Qwen3/tokenizer.json"
#define GPT2 "../shared/data/tokenizers/gpt2/tokenizer.json"
#define SHERLOCK "../shared/data/text/sherlock.txt"

static ls_tokenizer *open_tokenizer(const char *path) {
    ls_tokenizer *tokenizer = NULL;
    ls_error err = {0};
    if (!file_exists(path)) {
        print_message("%s is absent\n", path);
        skip();
    }
    if (tokenizer_open(&tokenizer, path, NULL, &err) < 0) {
        fail_msg("%s", err.text);
    }
    return tokenizer;
}

static token_list encode(const ls_tokenizer *tokenizer, const char *text, size_t n, unsigned flags) {
    token_list ids = {0};
    ls_error err = {0};
    if (tokenizer_encode(tokenizer, text, n, flags, &ids, &err) < 0) {
        fail_msg("%s", err.text);
    }
    return ids;
}

/* FNV-1a over the ids as little-endian 32-bit words. */
static uint64_t hash_ids(const token_list *ids) {
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < ids->n; i++) {
        for (int shift = 0; shift < 32; shift += 8) {
            h = (h ^ ((uint32_t)ids->id[i] >> shift & 0xFF)) * 0x100000001B3u;
        }
    }
    return h;
}

/* A whole book, and the hash of what `tokenizers` 0.23.3 makes of it. */
static void check_book(const char *tokenizer_path, size_t n_ids, uint64_t hash) {
    ls_tokenizer *tokenizer = open_tokenizer(tokenizer_path);
    ls_file book;
    assert_int_equal(file_map(&book, SHERLOCK, NULL), LS_OK);
    token_list ids = encode(tokenizer, (const char *)book.data, book.bytes, TOKENIZER_PARSE_SPECIAL);
    assert_int_equal(ids.n, n_ids);
    assert_int_equal(hash_ids(&ids), hash);
    token_list_deinit(&ids);
    file_unmap(&book);
    tokenizer_close(&tokenizer);
}

static void test_book_qwen3(void **state) {
    (void)state;
    check_book(QWEN3, 141711, 0xDE48BA05FAE376EEu);
}

static void test_book_gpt2(void **state) {
    (void)state;
    check_book(GPT2, 159582, 0x1C0A52ED97A790C1u);
}

static void test_invalid_utf8(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        const char *same_as;
    } cases[] = {
        {"\xFF", "\uFFFD"},
        {"a\x80z", "a\uFFFDz"},
        {"\xC0\xAF", "\uFFFD\uFFFD"},                     /* a long spelling of '/' */
        {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},           /* a surrogate */
        {"\xF0\x9F\x98", "\uFFFD"},                       /* an emoji cut by the end */
        {"\xF0\x9F\x98!", "\uFFFD!"},                     /* and by another character */
        {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"}, /* above U+10FFFF */
        {"\xE4\xBD\xE4\xBD\xA0", "\uFFFD\u4F60"},
        {"12345678\xC3", "12345678\uFFFD"},
    };
    ls_tokenizer *tokenizer = open_tokenizer(DEMO);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        token_list got = encode(tokenizer, cases[i].bytes, strlen(cases[i].bytes), 0);
        token_list expected = encode(tokenizer, cases[i].same_as, strlen(cases[i].same_as), 0);
        assert_int_equal(got.n, expected.n);
        assert_memory_equal(got.id, expected.id, got.n * sizeof *got.id);
        token_list_deinit(&got);
        token_list_deinit(&expected);
    }
    tokenizer_close(&tokenizer);
}

static void test_encode_appends(void **state) {
    (void)state;
    ls_tokenizer *tokenizer = open_tokenizer(DEMO);
    token_list ids = encode(tokenizer, "one", 3, 0);
    size_t n = ids.n;
    int32_t first = ids.id[0];
    assert_int_equal(tokenizer_encode(tokenizer, " two", 4, 0, &ids, NULL), LS_OK);
    assert_true(ids.n > n);
    assert_int_equal(ids.id[0], first);
    n = ids.n;
    ls_error err = {0};
    assert_int_equal(tokenizer_encode(tokenizer, "x", (size_t)1 << 40, 0, &ids, &err), LS_ETOOLONG);
    assert_int_equal(ids.n, n);
    token_list_deinit(&ids);
    tokenizer_close(&tokenizer);
}

static void test_tokens(void **state) {
    (void)state;
    ls_tokenizer *tokenizer = open_tokenizer(DEMO);
    const char *bytes = NULL;
    size_t n = 0;
    assert_int_equal(tokenizer_max_id(tokenizer), 4095);
    int32_t end = tokenizer_find(tokenizer, "<|im_end|>");
    assert_int_equal(end, 2);
    assert_true(tokenizer_is_special(tokenizer, end));
    assert_true(tokenizer_token_bytes(tokenizer, end, &bytes, &n));
    assert_int_equal(n, 10);
    assert_memory_equal(bytes, "<|im_end|>", 10);
    int32_t the = tokenizer_find(tokenizer, " the"); /* "Ġthe" in the file */
    assert_true(the > 2);
    assert_false(tokenizer_is_special(tokenizer, the));
    assert_true(tokenizer_token_bytes(tokenizer, the, &bytes, &n));
    assert_int_equal(n, 4);
    assert_memory_equal(bytes, " the", 4);
    assert_int_equal(tokenizer_find(tokenizer, "no such token"), -1);
    assert_int_equal(tokenizer_find(tokenizer, ""), -1);
    for (int k = 0; k < 3; k++) {
        static const int32_t outside[] = {-1, 4096, INT32_MAX};
        assert_false(tokenizer_token_bytes(tokenizer, outside[k], &bytes, &n));
        assert_false(tokenizer_is_special(tokenizer, outside[k]));
    }
    tokenizer_close(&tokenizer);
}

/* No text takes more than n log n: 1 MB of each in well under a second (10 allowed, for sanitizers). */
static void test_long_inputs(void **state) {
    (void)state;
    static const char *const units[] = {"a", "the",       " ",      "\n", "e\u0301", "a \n", "\u0301\u0316",
                                        "<", "<|im_end|", "\u4F60", "0"};
    ls_tokenizer *tokenizer = open_tokenizer(DEMO);
    size_t n = 1 << 20;
    char *text = malloc(n);
    assert_non_null(text);
    for (size_t k = 0; k < sizeof units / sizeof *units; k++) {
        size_t unit = strlen(units[k]);
        for (size_t i = 0; i < n; i++) {
            text[i] = units[k][i % unit];
        }
        struct timespec start, end;
        clock_gettime(CLOCK_MONOTONIC, &start);
        token_list ids = encode(tokenizer, text, n, TOKENIZER_PARSE_SPECIAL);
        clock_gettime(CLOCK_MONOTONIC, &end);
        double seconds = (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
        print_message("1 MB of unit %zu: %.3f s, %zu ids\n", k, seconds, ids.n);
        assert_true(seconds < 10);
        token_list_deinit(&ids);
    }
    free(text);
    tokenizer_close(&tokenizer);
}

static void *encode_many(void *argument) {
    static const char text[] = "It's caf\u00E9 e\u0301 time, 3 o'clock\n\n \u4F60\u597D<|im_end|>";
    uintptr_t sum = 0;
    for (int i = 0; i < 200; i++) {
        token_list ids = encode(argument, text, sizeof text - 1, TOKENIZER_PARSE_SPECIAL);
        for (size_t k = 0; k < ids.n; k++) {
            sum = sum * 31 + (uintptr_t)ids.id[k];
        }
        token_list_deinit(&ids);
    }
    return (void *)sum;
}

static void test_threads(void **state) {
    (void)state;
    ls_tokenizer *tokenizer = open_tokenizer(DEMO);
    pthread_t thread[3];
    void *expected = encode_many(tokenizer);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pthread_create(&thread[i], NULL, encode_many, tokenizer), 0);
    }
    for (int i = 0; i < 3; i++) {
        void *got = NULL;
        assert_int_equal(pthread_join(thread[i], &got), 0);
        assert_ptr_equal(got, expected);
    }
    tokenizer_close(&tokenizer);
}

/* A small tokenizer.json; each part can be replaced. Spelling "Ġ" is a space. */
typedef struct parts {
    const char *normalizer, *pre_tokenizer, *added, *vocab, *merges, *model, *rest, *decoder;
} parts;

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false}"
#define FLAGS "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true"
#define NORMALIZED "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":true,\"special\":true"
#define SPLIT(regex)                                                                                                   \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex                    \
    "\"},\"behavior\":\"Isolated\",\"invert\":false}," BYTE_LEVEL "]}"

static ls_status parse(parts p, ls_tokenizer **out, ls_error *err) {
    char json[4096];
    int n = snprintf(json, sizeof json,
                     "{\"normalizer\":%s,\"pre_tokenizer\":%s,\"added_tokens\":%s,\"decoder\":%s,%s"
                     "\"model\":{\"type\":\"BPE\",%s\"vocab\":%s,\"merges\":%s}}",
                     p.normalizer ? p.normalizer : "null", p.pre_tokenizer ? p.pre_tokenizer : BYTE_LEVEL,
                     p.added ? p.added : "[{\"id\":7,\"content\":\"<x>\"," FLAGS "}]",
                     p.decoder ? p.decoder : "{\"type\":\"ByteLevel\"}", p.rest ? p.rest : "", p.model ? p.model : "",
                     p.vocab ? p.vocab : "{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4,\"\u0120\":5,\"bc\":6}",
                     p.merges ? p.merges : "[\"a b\",[\"ab\",\"c\"],\"b c\"]");
    assert_true(n > 0 && (size_t)n < sizeof json);
    return tokenizer_parse(out, "t/tokenizer.json", json, (size_t)n, err);
}

/* `expected` is the ids, each with a space behind it. */
static void assert_encodes(parts p, const char *text, unsigned flags, const char *expected) {
    ls_tokenizer *tokenizer = NULL;
    ls_error err = {0};
    if (parse(p, &tokenizer, &err) < 0) {
        fail_msg("%s", err.text);
    }
    token_list ids = encode(tokenizer, text, strlen(text), flags);
    char got[256] = "";
    for (size_t i = 0; i < ids.n; i++) {
        snprintf(got + strlen(got), sizeof got - strlen(got), "%d ", (int)ids.id[i]);
    }
    assert_string_equal(got, expected);
    token_list_deinit(&ids);
    tokenizer_close(&tokenizer);
}

static void test_small_models(void **state) {
    (void)state;
    assert_encodes((parts){0}, "abcbca", 0, "4 6 0 ");
    assert_encodes((parts){.merges = "[\"b c\",\"a b\",[\"ab\",\"c\"]]"}, "abc", 0, "0 6 "); /* rank decides */
    assert_encodes((parts){.merges = "[\"a b\",\"b c\",\"a b\"]"}, "abc", 0, "0 6 "); /* the last of two counts */
    assert_encodes((parts){.merges = "[\"#version: 0.2\",\"a b\"]"}, "ab", 0, "3 ");
    assert_encodes((parts){.merges = "[]"}, "ab", 0, "0 1 ");
    assert_encodes((parts){.merges = "[]", .model = "\"ignore_merges\":true,"}, "ab", 0, "3 ");
    assert_encodes((parts){0}, "azb", 0, "3 "); /* a byte that the vocabulary lacks is dropped before merging */
    assert_encodes((parts){.pre_tokenizer = SPLIT("b")}, "abc", 0, "0 1 2 ");
    assert_encodes((parts){.pre_tokenizer = SPLIT("(?=b)")}, "abc", 0, "0 6 "); /* empty matches split too */
    assert_encodes((parts){.pre_tokenizer = SPLIT("")}, "abc", 0, "0 1 2 ");
    assert_encodes((parts){.pre_tokenizer = SPLIT("\\\\s")}, "a\u180Eb", 0,
                   "3 "); /* no white space: dropped with the rest */
    assert_encodes((parts){.pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true}"},
                   "ab<x>ab ab", TOKENIZER_PARSE_SPECIAL, "5 3 7 5 3 5 3 ");
    assert_encodes((parts){.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]}"}, "ab", 0,
                   "3 ");
}

static void test_added_tokens(void **state) {
    (void)state;
    unsigned special = TOKENIZER_PARSE_SPECIAL;
    assert_encodes((parts){0}, "ab<x>c<x", special, "3 7 2 ");
    assert_encodes((parts){0}, "ab<x>c<x", 0, "4 "); /* "<x>" is text; "<", "x" and ">" are not in the vocabulary */
    parts longest = {.added = "[{\"id\":7,\"content\":\"ab\\u0000\"," FLAGS "},{\"id\":8,\"content\":\"aba\"," FLAGS
                              "},{\"id\":9,\"content\":\"ba\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                              "\"normalized\":true,\"special\":false}]"};
    assert_encodes(longest, "abab", special, "8 1 ");
    assert_encodes(longest, "cba", special, "2 9 "); /* of the second set */
    assert_encodes(longest, "cba", 0, "2 9 ");       /* not special: always cut out */
    parts strips = {.added = "[{\"id\":7,\"content\":\"<x>\",\"single_word\":false,\"lstrip\":true,\"rstrip\":true,"
                             "\"normalized\":false,\"special\":true}]"};
    assert_encodes(strips, "a  <x> \u3000 <x>\n b ", special, "0 7 7 1 5 ");
    parts spaces = {.added = "[{\"id\":7,\"content\":\" \",\"single_word\":false,\"lstrip\":true,\"rstrip\":true,"
                             "\"normalized\":false,\"special\":true}]"};
    assert_encodes(spaces, "a   b", special, "0 7 1 "); /* the first takes the others with it */
    parts ignoring = {.added = "[{\"id\":7,\"content\":\"ca\"," FLAGS "}]", .model = "\"ignore_merges\":true,"};
    assert_encodes(ignoring, "ca", special, "7 ");
    assert_encodes(ignoring, "ca", 0, "2 0 "); /* added tokens are not the model's */
    parts in_model = {.added = "[{\"id\":3,\"content\":\"ab\"," FLAGS "}]", .merges = "[]"};
    assert_encodes(in_model, "aabb", special, "0 3 1 ");
    assert_encodes(in_model, "aabb", 0, "0 0 1 1 ");
}

typedef struct refusal {
    parts p;
    ls_status status;
    const char *text; /* a part of the message */
} refusal;

#define POST(fields) "\"post_processor\":{" fields "},"
#define TEMPLATE(first, id)                                                                                            \
    "\"type\":\"TemplateProcessing\",\"single\":[" first                                                               \
    ",{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"x\":{\"ids\":[" id "]}}"

static const refusal text_refusals[] = {
    {{.model = "\"type\":\"Unigram\","}, LS_EFORMAT, "duplicate"},
    {{.normalizer = "{\"type\":\"Nmt\"}"}, LS_EUNSUPPORTED, "normalizer.type: Nmt is not supported"},
    {{.normalizer = "{\"type\":\"Strip\"}"}, LS_EFORMAT, "normalizer.strip_left: missing"},
    {{.normalizer = "{\"type\":\"Replace\",\"content\":\"\"}"}, LS_EFORMAT, "normalizer.pattern: missing"},
    {{.normalizer = "{\"type\":\"Replace\",\"content\":\"\",\"pattern\":{\"Regex\":\"(\"}}"},
     LS_EUNSUPPORTED,
     "normalizer.pattern.Regex: PCRE2 refuses"},
    {{.normalizer = "{\"type\":\"Prepend\"}"}, LS_EFORMAT, "normalizer.prepend: missing"},
    {{.normalizer = "{\"type\":\"\\u001b[31m\"}"}, LS_EUNSUPPORTED, "normalizer.type: this value is not"},
    {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Precompiled\"}]}"},
     LS_EUNSUPPORTED,
     "normalizer.normalizers[1].type: Precompiled"},
    {{.normalizer = "[]"}, LS_EFORMAT, "normalizer: expected an object"},
    {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[1]}"}, LS_EFORMAT, "normalizers[0]: expected an object"},
    {{.pre_tokenizer = "null"}, LS_EUNSUPPORTED, "decoder: ByteLevel in only one of"},
    {{.pre_tokenizer = "{\"type\":\"Metaspace\"}"}, LS_EFORMAT, "pre_tokenizer.replacement: missing"},
    {{.pre_tokenizer = "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}"},
     LS_EFORMAT,
     "pre_tokenizer.replacement: expected one character"},
    {{.pre_tokenizer = "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"often\"}"},
     LS_EUNSUPPORTED,
     "pre_tokenizer.prepend_scheme: often"},
    {{.pre_tokenizer = "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"add_prefix_space\":false}"},
     LS_EFORMAT,
     "pre_tokenizer.add_prefix_space: false, but"},
    {{.pre_tokenizer = "{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL "," BYTE_LEVEL "]}"},
     LS_EUNSUPPORTED,
     "pretokenizers[1].type: a step behind ByteLevel"},
    {{.pre_tokenizer = "{\"type\":\"Split\",\"behavior\":\"Some\",\"pattern\":{\"String\":\"a\"}}"},
     LS_EUNSUPPORTED,
     "pre_tokenizer.behavior: Some"},
    {{.pre_tokenizer = "{\"type\":\"ByteLevel\"}"}, LS_EFORMAT, "pre_tokenizer.add_prefix_space: missing"},
    {{.pre_tokenizer = "{\"type\":\"Sequence\",\"pretokenizers\":[]}"},
     LS_EUNSUPPORTED,
     "decoder: ByteLevel in only one of"},
    {{.pre_tokenizer = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Sequence\"}]}"},
     LS_EUNSUPPORTED,
     "pre_tokenizer.pretokenizers[0].type: Sequence"},
    {{.pre_tokenizer = SPLIT("(a")}, LS_EUNSUPPORTED, "pretokenizers[0].pattern.Regex: PCRE2 refuses"},
    {{.pre_tokenizer = SPLIT("\\\\w+")}, LS_EUNSUPPORTED, "byte 0 of the pattern: this escape"},
    {{.pre_tokenizer = SPLIT("a{2}+")}, LS_EUNSUPPORTED, "byte 1 of the pattern: a counted repeat"},
    {{.pre_tokenizer = SPLIT("a{,2}")}, LS_EUNSUPPORTED, "byte 1 of the pattern: this use of a brace"},
    {{.pre_tokenizer = SPLIT("[a[b]]")}, LS_EUNSUPPORTED, "byte 2 of the pattern: a class in a class"},
    {{.pre_tokenizer = SPLIT("[a&&b]")}, LS_EUNSUPPORTED, "byte 2 of the pattern: &&"},
    {{.pre_tokenizer = SPLIT("[]a]")}, LS_EUNSUPPORTED, "byte 1 of the pattern: ]"},
    {{.pre_tokenizer = SPLIT("a(?m:.)")}, LS_EUNSUPPORTED, "byte 1 of the pattern: this kind of group"},
    {{.pre_tokenizer = SPLIT("(*LIMIT_MATCH=1)a")}, LS_EUNSUPPORTED, "this kind of group"},
    {{.pre_tokenizer = SPLIT("\\\\p{L")}, LS_EUNSUPPORTED, "an open brace"},
    {{.pre_tokenizer = SPLIT("a\\\\")}, LS_EUNSUPPORTED, "a backslash at the end"},
};

static const refusal model_refusals[] = {
    {{.vocab = "{\"a\":16777216}"}, LS_EFORMAT, "model.vocab: a token id is an integer from 0 to 16777215"},
    {{.vocab = "{\"a\":-1}"}, LS_EFORMAT, "model.vocab: a token id"},
    {{.vocab = "{\"a\":0.5}"}, LS_EFORMAT, "model.vocab: a token id"},
    {{.vocab = "{\"a\":0,\"b\":0}"}, LS_EFORMAT, "model.vocab: two tokens with id 0"},
    {{.vocab = "{}"}, LS_EFORMAT, "model.vocab: empty"},
    {{.vocab = "[]"}, LS_EFORMAT, "model.vocab: expected an object"},
    {{.merges = "null"}, LS_EFORMAT, "model.merges: missing"},
    {{.merges = "{}"}, LS_EFORMAT, "model.merges: expected a list"},
    {{.merges = "[\"a b\",\"a c\"]"}, LS_EFORMAT, "model.merges[1]: its parts"},
    {{.merges = "[\"a z\"]"}, LS_EFORMAT, "model.merges[0]: its parts"},
    {{.merges = "[\"a\"]"}, LS_EFORMAT, "model.merges[0]: expected"},
    {{.merges = "[\"a b c\"]"}, LS_EFORMAT, "model.merges[0]: expected"},
    {{.merges = "[[\"a\"]]"}, LS_EFORMAT, "model.merges[0]: expected"},
    {{.merges = "[[\"a\",1]]"}, LS_EFORMAT, "model.merges[0]: expected"},
    {{.merges = "[7]"}, LS_EFORMAT, "model.merges[0]: expected"},
    {{.model = "\"continuing_subword_prefix\":\"##\","}, LS_EUNSUPPORTED, "model.continuing_subword_prefix"},
    {{.model = "\"end_of_word_suffix\":\"x\","}, LS_EUNSUPPORTED, "model.end_of_word_suffix: x is not"},
    {{.model = "\"byte_fallback\":true,"}, LS_EUNSUPPORTED, "model.byte_fallback: true beside an incomplete"},
    {{.model = "\"byte_fallback\":1,"}, LS_EFORMAT, "model.byte_fallback: expected true or false"},
    {{.model = "\"dropout\":0.1,"}, LS_EUNSUPPORTED, "model.dropout"},
    {{.model = "\"unk_token\":\"u\","}, LS_EUNSUPPORTED, "model.unk_token: an unknown token that is not in"},
    {{.model = "\"unk_token\":1,"}, LS_EFORMAT, "model.unk_token: expected a string"},
};

static const refusal other_refusals[] = {
    {{.added = "{}"}, LS_EFORMAT, "added_tokens: expected a list"},
    {{.added = "[1]"}, LS_EFORMAT, "added_tokens[0]: expected an object"},
    {{.added = "[{\"id\":7,\"content\":\"\"," FLAGS "}]"}, LS_EFORMAT, "added_tokens[0].content: empty"},
    {{.added = "[{\"id\":7,\"content\":\"x\"}]"}, LS_EFORMAT, "added_tokens[0].special: missing"},
    {{.added = "[{\"id\":9,\"content\":\"x\"," FLAGS "}]"}, LS_EFORMAT, "added_tokens[0].id: 9, but by its"},
    {{.added = "[{\"id\":3,\"content\":\"a\"," FLAGS "}]"}, LS_EFORMAT, "added_tokens[0].id: 3, but by its"},
    {{.added = "[{\"id\":7,\"content\":\"x\"," FLAGS "},{\"id\":7,\"content\":\"x\"," FLAGS "}]"},
     LS_EFORMAT,
     "added_tokens[1].content: listed twice"},
    {{.vocab = "{\"a\":0,\"b\":2}", .merges = "[]", .added = "[{\"id\":2,\"content\":\"x\"," FLAGS "}]"},
     LS_EFORMAT,
     "added_tokens[0].id: taken by another token"},
    {{.normalizer = "{\"type\":\"NFC\"}",
      .added = "[{\"id\":7,\"content\":\"e\u0301\"," NORMALIZED "},{\"id\":8,\"content\":\"\u00E9\"," NORMALIZED "}]"},
     LS_EUNSUPPORTED,
     "added_tokens: two tokens with one normal form"},
    {{.normalizer = "{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}",
      .added = "[{\"id\":7,\"content\":\" \"," NORMALIZED "}]"},
     LS_EUNSUPPORTED,
     "added_tokens[0].content: a normal form of 0"},
    {{.decoder = "null"}, LS_EUNSUPPORTED, "decoder: no decoder"},
    {{.decoder = "{\"type\":\"WordPiece\"}"}, LS_EUNSUPPORTED, "decoder.type: WordPiece"},
    {{.decoder = "{\"type\":\"Fuse\"}"}, LS_EUNSUPPORTED, "decoder: ByteLevel in only one of"},
    {{.decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Strip\"}]}"},
     LS_EUNSUPPORTED,
     "decoders[0].type: a step at this place"},
    {{.decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}]}"},
     LS_EUNSUPPORTED,
     "decoder.decoders[1].type: a step at this place"},
    {{.decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" "
                 "\",\"start\":0,\"stop\":1}]}"},
     LS_EUNSUPPORTED,
     "decoder.decoders[1].stop: other than 0"},
    {{.rest = POST("\"type\":\"Some\"")}, LS_EUNSUPPORTED, "post_processor.type: Some"},
    {{.rest = POST("\"type\":\"TemplateProcessing\"")}, LS_EUNSUPPORTED, "post_processor.single: a template without"},
    {{.rest = POST(TEMPLATE("{\"SpecialToken\":{\"id\":\"y\"}}", "7"))},
     LS_EFORMAT,
     "single[0].SpecialToken.id: not in"},
    {{.rest = POST(TEMPLATE("{\"SpecialToken\":{\"id\":\"x\"}}", "70"))},
     LS_EFORMAT,
     "ids: expected the id of a token"},
    {{.rest = POST(TEMPLATE("{\"Sequence\":{\"id\":\"B\"}}", "7"))},
     LS_EUNSUPPORTED,
     "single[0].Sequence.id: a template"},
    {{.rest = POST("\"type\":\"BertProcessing\",\"cls\":[\"x\",99]")},
     LS_EFORMAT,
     "post_processor.cls: expected the id"},
    {{.rest = "\"truncation\":{},"}, LS_EUNSUPPORTED, "truncation: other than null"},
    {{.rest = "\"padding\":{},"}, LS_EUNSUPPORTED, "padding: other than null"},
};

static void check_refusals(const refusal *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        ls_tokenizer *tokenizer = NULL;
        ls_error err = {0};
        ls_status st = parse(cases[i].p, &tokenizer, &err);
        if (st != cases[i].status || strstr(err.text, cases[i].text) == NULL) {
            fail_msg("case %zu: %s: \"%s\" lacks \"%s\"", i, ls_status_name(st), err.text, cases[i].text);
        }
        assert_non_null(strstr(err.text, "t/tokenizer.json: "));
        assert_null(tokenizer);
    }
}

static void test_refusals(void **state) {
    (void)state;
    check_refusals(text_refusals, sizeof text_refusals / sizeof *text_refusals);
    check_refusals(model_refusals, sizeof model_refusals / sizeof *model_refusals);
    check_refusals(other_refusals, sizeof other_refusals / sizeof *other_refusals);
    ls_tokenizer *tokenizer = NULL;
    assert_int_equal(tokenizer_parse(&tokenizer, "x", "[]", 2, NULL), LS_EFORMAT);
    assert_int_equal(tokenizer_parse(&tokenizer, "x", "{}", 2, NULL), LS_EFORMAT);
    assert_int_equal(tokenizer_parse(&tokenizer, "x", "", 0, NULL), LS_EFORMAT);
    assert_int_equal(tokenizer_open(&tokenizer, "no/such/tokenizer.json", NULL, NULL), LS_ENOTFOUND);
    assert_null(tokenizer);
    tokenizer_close(&tokenizer);
}

static void test_model_type(void **state) {
    (void)state;
    ls_tokenizer *tokenizer = NULL;
    ls_error err = {0};
    const char *json = "{\"pre_tokenizer\":" BYTE_LEVEL ",\"decoder\":{\"type\":\"ByteLevel\"},"
                       "\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}";
    assert_int_equal(tokenizer_parse(&tokenizer, "tokenizer.json", json, strlen(json), &err), LS_EUNSUPPORTED);
    assert_string_equal(err.text, "tokenizer.json: model.type: Unigram is not supported");
}

/* What is not JSON, or not UTF-8, is refused with its place in the file, wherever it is. */
static void test_syntax(void **state) {
    (void)state;
    static const struct {
        const char *vocab, *merges, *text;
    } cases[] = {
        {"{\"a\":0,,\"b\":1}", NULL, "model.vocab: byte 313: not valid JSON: expected '\"'"},
        {"{\"a\" 0}", NULL, "model.vocab: byte 311: not valid JSON: expected ':'"},
        {"{\"a\":\"0\"}", NULL, "model.vocab: byte 311: expected an integer"},
        {"{\"a\":00}", NULL, "an integer that begins with 0"},
        {"{\"\\ud800\":0}", NULL, "not valid JSON: a bad escape"},
        {"{\"\\q\":0}", NULL, "not valid JSON: a bad escape"},
        {"{\"\xFF\":0}", NULL, "model.vocab: byte 308: not valid UTF-8"},
        {"{\"a\nb\":0}", NULL, "a string that does not end"},
        {NULL, "[\"a b\" \"b c\"]", "model.merges: byte 371: not valid JSON: expected ','"},
        {NULL, "[\"a b\"}", "model.merges: byte 370: not valid JSON: expected ','"},
        {"{\"a\":0", NULL, "not valid JSON at line 1"},
        {"{\"a\":0}}", NULL, "not valid JSON at line 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ls_tokenizer *tokenizer = NULL;
        ls_error err = {0};
        assert_int_equal(parse((parts){.vocab = cases[i].vocab, .merges = cases[i].merges}, &tokenizer, &err),
                         LS_EFORMAT);
        if (strstr(err.text, cases[i].text) == NULL) {
            fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.text, cases[i].text);
        }
    }
    assert_encodes((parts){.vocab = "{ \"\\u0061\" : 0 ,\n\"b\":1,\"ab\":2,\"\\ud83d\\ude00\":3}",
                           .merges = " [ [ \"a\" , \"b\" ] ] ",
                           .added = "[]"},
                   "ab", 0, "2 ");
}

#define META(scheme) "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"" scheme "\",\"split\":false}"
#define FUSE "{\"type\":\"Fuse\"}"

static void test_characters(void **state) {
    (void)state;
    parts p = {.pre_tokenizer = META("first"),
               .decoder = FUSE,
               .merges = "[\"_ a\"]",
               .vocab = "{\"u\":0,\"a\":1,\"_\":2,\"_a\":3,\"<0xC3>\":4,\"<0xA9>\":5,\"b\":6}"};
    assert_encodes(p, "a ab", 0, "3 3 6 ");
    assert_encodes(p, "zaz", 0, "3 "); /* nothing stands for z: what is left is joined */
    p.model = "\"unk_token\":\"u\",";
    assert_encodes(p, "zza", 0, "2 0 0 1 ");
    p.model = "\"unk_token\":\"u\",\"fuse_unk\":true,";
    assert_encodes(p, "zza", 0, "2 0 1 ");
    p.model = "\"unk_token\":\"u\",\"fuse_unk\":true,\"byte_fallback\":true,";
    assert_encodes(p, "\u00E9a", 0, "2 4 5 1 ");
    assert_encodes(p, "z\u00E9a", 0, "2 4 5 0 1 "); /* bytes overtake a waiting unknown, as in `tokenizers` */
    p.pre_tokenizer = META("never");
    assert_encodes(p, "a a", 0, "1 3 ");
    p.rest = POST(TEMPLATE("{\"SpecialToken\":{\"id\":\"x\"}}", "7"));
    assert_encodes(p, "a", TOKENIZER_ADD_SPECIAL, "7 1 ");
    assert_encodes(p, "a", 0, "1 ");
}

static void test_spans(void **state) {
    (void)state;
    ls_tokenizer *tokenizer = open_tokenizer(DEMO);
    static const char text[] = "the \xFF\xFF"
                               "dog"; /* each byte that is no UTF-8 is the place of a U+FFFD */
    token_list ids = encode(tokenizer, "ab", 2, 0);
    size_t before = ids.n;
    assert_null(ids.span);
    assert_int_equal(tokenizer_encode(tokenizer, text, sizeof text - 1, TOKENIZER_SPANS, &ids, NULL), LS_OK);
    for (size_t i = 0; i < before; i++) {
        assert_int_equal(ids.span[i].end, 0); /* not asked for then */
    }
    assert_int_equal(ids.span[before].start, 0);
    assert_int_equal(ids.span[ids.n - 1].end, sizeof text - 1);
    for (size_t i = before + 1; i < ids.n; i++) {
        assert_true(ids.span[i].start <= ids.span[i - 1].end && ids.span[i].start < ids.span[i].end);
    }
    token_list_deinit(&ids);
    ids = encode(tokenizer, "", 0, TOKENIZER_SPANS);
    assert_true(ids.n == 0 && ids.span != NULL);
    token_list_deinit(&ids);
    tokenizer_close(&tokenizer);
}

/* A pattern that explodes ends in an error of that text alone. */
static void test_match_limit(void **state) {
    (void)state;
    ls_tokenizer *tokenizer = NULL;
    ls_error err = {0};
    assert_int_equal(parse((parts){.pre_tokenizer = SPLIT("(a|aa|a+)+$")}, &tokenizer, &err), LS_OK);
    char text[64];
    memset(text, 'a', sizeof text);
    text[63] = 'b';
    token_list ids = {0};
    assert_int_equal(tokenizer_encode(tokenizer, text, sizeof text, 0, &ids, &err), LS_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "match limit"));
    assert_int_equal(ids.n, 0);
    assert_int_equal(tokenizer_encode(tokenizer, "ab", 2, 0, &ids, &err), LS_OK);
    token_list_deinit(&ids);
    tokenizer_close(&tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_book_qwen3),     cmocka_unit_test(test_book_gpt2),    cmocka_unit_test(test_invalid_utf8),
        cmocka_unit_test(test_encode_appends), cmocka_unit_test(test_tokens),       cmocka_unit_test(test_long_inputs),
        cmocka_unit_test(test_small_models),   cmocka_unit_test(test_added_tokens), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_model_type),     cmocka_unit_test(test_match_limit),  cmocka_unit_test(test_syntax),
        cmocka_unit_test(test_characters),     cmocka_unit_test(test_spans),        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
