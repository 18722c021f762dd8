/*
 * Reading large flat parts of JSON without building a tree: tokenizer.json is ten megabytes of "token": id and of merges,
 * for which jansson takes ten times as long.
 *
 * Two ways through the text: json_skim_* only look for where values begin and end (whoever uses them must parse the rest
 * strictly), json_reader reads strictly, as jansson does: RFC 8259, valid UTF-8, no lone surrogates, NUL allowed.
 */
#ifndef LS_TEXT_JSON_SCAN_H
#define LS_TEXT_JSON_SCAN_H

#include "text/text_buffer.h"

typedef struct json_range {
    size_t start, end; /* bytes of a value; equal if there is none */
} json_range;

/* The value of a key of the object that begins at `at` (white space first), or an empty range. Keys with escapes are not
 * found; of two the first counts. */
json_range json_skim_member(const char *json, size_t n, size_t at, const char *key);
/* How many elements the list in the range has; right for every list that reads well. */
size_t json_skim_count(const char *json, json_range list);

typedef struct json_reader {
    const char *name;  /* of the file, for messages */
    const char *field; /* what is being read, for messages */
    const char *json;
    size_t n, at;
    text_buffer decoded[2]; /* strings with escapes */
} json_reader;

void json_reader_deinit(json_reader *r);

/* "name: field: byte N: what" with LS_EFORMAT. */
ls_status json_reader_error(const json_reader *r, const char *what, ls_error *err);
/* The next character that is not white space, not consumed; NUL at the end. */
char json_reader_peek(json_reader *r);
/* Consumes this character after white space, or fails. */
ls_status json_reader_expect(json_reader *r, char c, ls_error *err);
/* In a list or object, of which `first` elements were read: consumes the comma or the closing character. */
ls_status json_reader_more(json_reader *r, char close, bool first, bool *more, ls_error *err);
/* A string, borrowed from the text or from r->decoded[which]. */
ls_status json_reader_string(json_reader *r, int which, const char **data, size_t *n, ls_error *err);
/* An integer from 0 to max. *good is false for any other number, which is consumed as far as it is one. */
ls_status json_reader_integer(json_reader *r, int64_t max, int64_t *out, bool *good, ls_error *err);

#endif
