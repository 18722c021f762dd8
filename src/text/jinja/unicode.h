/*
 * Python's view of characters: case mappings (also those to several characters), and the classes behind str.isspace() and
 * its like. From utf8proc's tables; the mappings to several characters are listed here.
 */
#ifndef LS_TEXT_JINJA_UNICODE_H
#define LS_TEXT_JINJA_UNICODE_H

#include "base/error.h"

enum { JINJA_MAX_CASED = 3 }; /* characters that one character may become */

typedef enum jinja_case { JINJA_UPPER, JINJA_LOWER, JINJA_TITLE, JINJA_FOLD } jinja_case;

/* What c becomes; returns how many. The lower case of a final sigma depends on its neighbours: see jinja_final_sigma. */
int jinja_char_case(int32_t c, jinja_case to, int32_t out[JINJA_MAX_CASED]);

bool jinja_char_is_space(int32_t c); /* str.isspace(), which str.strip() and str.split() use too */
bool jinja_char_is_alpha(int32_t c);
bool jinja_char_is_decimal(int32_t c);
bool jinja_char_is_digit(int32_t c);
bool jinja_char_is_numeric(int32_t c);
bool jinja_char_is_printable(int32_t c); /* repr() escapes all others */
bool jinja_char_is_upper(int32_t c);
bool jinja_char_is_lower(int32_t c);
bool jinja_char_is_title(int32_t c);
bool jinja_char_is_line_end(int32_t c); /* for str.splitlines() */
bool jinja_char_starts_name(int32_t c); /* identifiers */
bool jinja_char_continues_name(int32_t c);

/* Is the capital sigma at byte `at` of valid text s[0 .. n) the last letter of its word? */
bool jinja_final_sigma(const char *s, size_t n, size_t at);

#endif
