/*
 * UTF-8 as Rust's String::from_utf8_lossy sees it, which is what Hugging Face `tokenizers` reads and writes.
 *
 * Bytes that are no character form maximal invalid parts (Unicode chapter 3, "substitution of maximal subparts"): the
 * longest beginning of a character there, or else one byte. Each such part is worth one U+FFFD.
 */
#ifndef LS_TEXT_UTF8_H
#define LS_TEXT_UTF8_H

#include "text/text_buffer.h"

#define UTF8_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */
enum { UTF8_MAX_BYTES = 4, UTF8_REPLACEMENT_BYTES = 3 };

typedef enum utf8_kind {
    UTF8_CHARACTER, /* a whole character */
    UTF8_INVALID,   /* a maximal invalid part */
    UTF8_CUT        /* all that is left begins a character: with more bytes it may become one */
} utf8_kind;

/* What s[0 .. n) begins with, n > 0; *n_bytes is how long that is. */
utf8_kind utf8_next(const char *s, size_t n, size_t *n_bytes);

/* Bytes of the longest run of whole characters that s begins with: n if s is valid. */
size_t utf8_valid_bytes(const char *s, size_t n);

/* Appends s with U+FFFD for every invalid part, and for one that is cut by the end. */
ls_status utf8_append_lossy(text_buffer *out, const char *s, size_t n, ls_error *err);

/* The code point of the character at s. The text must be valid; *n_bytes is its length. */
int32_t utf8_decode(const char *s, size_t *n_bytes);

/* Writes the UTF-8 of a code point and returns its length. */
size_t utf8_encode(int32_t point, char out[UTF8_MAX_BYTES]);

/* Unicode's White_Space, which is \s in Rust. */
bool utf8_is_space(int32_t c);
/* The first place at or after `at` without a space; the last place at or before `at`, and not before `low`, with none in
 * front of it. */
size_t utf8_skip_spaces(const char *text, size_t n, size_t at);
size_t utf8_skip_spaces_back(const char *text, size_t low, size_t at);

/* For valid text and a position in a character: true except on its first byte. */
static inline bool utf8_is_continuation(char byte) {
    return ((unsigned char)byte & 0xC0) == 0x80;
}

#endif
