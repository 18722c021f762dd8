/* See token_strings.h. Keep in step with tools/make_token_vectors.py. */
#include "token_strings.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "text/utf8.h"

/* First and last character of a run. */
static const int32_t scripts[][2] = {
    {0x20, 0x7E},       {0x61, 0x7A},       {0x01, 0x7F},       {0xA0, 0x24F},      {0x250, 0x2AF},
    {0x300, 0x36F},     {0x3B1, 0x3C9},     {0x400, 0x4FF},     {0x5D0, 0x5EA},     {0x5B0, 0x5BD},
    {0x620, 0x655},     {0x904, 0x939},     {0xE01, 0xE3A},     {0x1100, 0x11FF},   {0x1F00, 0x1F15},
    {0x2010, 0x2027},   {0x2190, 0x21FF},   {0x2460, 0x24FF},   {0x3041, 0x3096},   {0x30A1, 0x30FA},
    {0x3220, 0x3247},   {0x4E00, 0x9FA5},   {0x4E00, 0x4E80},   {0xAC00, 0xD7A3},   {0xF900, 0xFA2D},
    {0xFB00, 0xFB06},   {0xFF01, 0xFF5E},   {0x1D400, 0x1D454}, {0x1F1E6, 0x1F1FF}, {0x1F300, 0x1F64F},
    {0x1F680, 0x1F6C5}, {0x20000, 0x2A6D6}, {0xE000, 0xE0FF},   {0x0E31, 0x0E3A},   {0x2070, 0x2071},
};

static const char *const words[] = {
    "the",
    " the",
    "The quick brown fox",
    " jumps",
    "don't",
    "I'LL",
    "we've",
    "hello",
    "Hello, world!",
    " of",
    "king",
    "word",
    " word ",
    "swords",
    "The END",
    "#",
    "##",
    "<left>",
    " <left> ",
    "<right>  ",
    "\u2167",
    "<unk>",
    "<s>",
    "</s>",
    " </s> ",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "[INST]",
    "[/INST]",
    "<0x41>",
    "<|im_",
    "|>",
    "<think>",
    "</think>",
    "\u2581",
    "\u2581\u2581",
    "\u2581the",
    "a\u2581b",
    "def f(x):\n    return x ** 2\n",
    "for (int i = 0; i < n; i++) {",
    "\tif (a && b) {\r\n",
    "https://a.b/c?d=e&f=%20",
    "3.14159",
    "1,000,000",
    "0x1F",
    "2024-05-17T08:30:00Z",
    "\u00E9",
    "e\u0301",
    "a\u0323\u0301",
    "\u1100\u1161\u11A8",
    "\uAC01",
    "\u0130",
    "\uFB01",
    "\u212B",
    "\U0001F468\u200D\U0001F469\u200D\U0001F467",
    "\u2764\uFE0F",
    "\U0001F44D\U0001F3FD",
    "\u0645\u0631\u062D\u0628\u0627",
    "\u05E9\u05DC\u05D5\u05DD",
    "\u4F60\u597D\u3002",
    "\u3053\u3093\u306B\u3061\u306F",
    "\u00A0",
    "\u3000",
    "\u2003",
    "\u200B",
    "\uFEFF",
    "\uFFFD",
};

static const char *const spaces[] = {" ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", " \n ", "\x0B", "\x0C", "\x1C"};

/* ---- The same in Python ---- */

static uint64_t next(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static uint32_t below(uint64_t *state, uint32_t n) {
    return (uint32_t)((next(state) >> 32) % n);
}

static void append(text_buffer *out, const char *text, size_t n) {
    assert_int_equal(text_buffer_append(out, text, n, NULL), LS_OK);
}

static void append_character(uint64_t *state, text_buffer *out, size_t script, uint32_t times) {
    char bytes[UTF8_MAX_BYTES];
    uint32_t size = (uint32_t)(scripts[script][1] - scripts[script][0] + 1);
    size_t n = utf8_encode(scripts[script][0] + (int32_t)below(state, size), bytes);
    for (uint32_t i = 0; i < times; i++) {
        append(out, bytes, n);
    }
}

void token_string(uint64_t i, text_buffer *out) {
    uint64_t state = i * 1000003u + 12345;
    text_buffer_clear(out);
    append(out, "", 0);
    uint32_t n_scripts = sizeof scripts / sizeof *scripts, n_words = sizeof words / sizeof *words;
    for (uint32_t parts = 1 + below(&state, 8); parts > 0; parts--) {
        uint32_t kind = below(&state, 8), script = below(&state, n_scripts);
        if (kind < 3) {
            const char *word = words[below(&state, n_words)];
            append(out, word, strlen(word));
        } else if (kind == 3) {
            const char *space = spaces[below(&state, sizeof spaces / sizeof *spaces)];
            append(out, space, strlen(space));
        } else if (kind == 4) {
            append_character(&state, out, script, 1 + below(&state, 90));
        } else {
            for (uint32_t n = 1 + below(&state, 16); n > 0; n--) {
                append_character(&state, out, kind == 5 ? below(&state, n_scripts) : script, 1);
            }
        }
    }
}

/* ---- Hashes ---- */

uint64_t hash_more(uint64_t hash, const void *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        hash = (hash ^ ((const uint8_t *)bytes)[i]) * 0x100000001B3u;
    }
    return hash;
}

uint64_t hash_word(uint64_t hash, uint32_t value) {
    uint8_t bytes[4] = {(uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16), (uint8_t)(value >> 24)};
    return hash_more(hash, bytes, sizeof bytes);
}
