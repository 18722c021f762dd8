/*
 * Endless strings for tokenizers: string i of a series is the same here and in tools/make_token_vectors.py, so that only a
 * hash of what `tokenizers` made of it has to be kept. Both sides are one small random generator (splitmix64) and tables;
 * all characters are of Unicode 14 or older, and stay what they are in newer versions.
 */
#ifndef LS_TESTS_TOKEN_STRINGS_H
#define LS_TESTS_TOKEN_STRINGS_H

#include "text/text_buffer.h"

/* Replaces *out by string i. */
void token_string(uint64_t i, text_buffer *out);

/* FNV-1a: start with HASH_START. Values are taken as little-endian 32-bit words. */
#define HASH_START 0xCBF29CE484222325u
uint64_t hash_more(uint64_t hash, const void *bytes, size_t n);
uint64_t hash_word(uint64_t hash, uint32_t value);

#endif
