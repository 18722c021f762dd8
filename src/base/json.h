/*
 * JSON documents read from files, through jansson. The only place that includes jansson's reader.
 *
 * A json_doc remembers the file it came from, so that every error names file and key ("config.json: hidden_size: ...").
 * Keys are dotted paths only in messages; look-ups are one level deep on the object given.
 * Readers: json_find_* leave *out alone and return LS_OK when the key is absent or null; json_get_* require it.
 * Integers must be JSON integers within [min, max]; reals may be integers. All borrow from the document.
 */
#ifndef LS_BASE_JSON_H
#define LS_BASE_JSON_H

#include <jansson.h>

#include "base/error.h"

typedef struct json_doc {
    json_t *root;   /* owned */
    char name[256]; /* what messages call it: the last parts of the path */
} json_doc;

/* Parses exactly one value; duplicate keys, bad UTF-8, trailing bytes and files over max_bytes are errors. */
ls_status json_doc_parse(json_doc *doc, const char *name, const char *text, size_t text_bytes, ls_error *err);
ls_status json_doc_read(json_doc *doc, const char *path, size_t max_bytes, ls_error *err);
/* The same with all numbers read as reals, for files that hold integers beyond 64 bits (the model_max_length of many a
 * tokenizer_config.json is 10^30). */
ls_status json_doc_read_reals(json_doc *doc, const char *path, size_t max_bytes, ls_error *err);
ls_status json_doc_parse_reals(json_doc *doc, const char *name, const char *text, size_t text_bytes, ls_error *err);
void json_doc_deinit(json_doc *doc); /* accepts a zeroed document */

ls_status json_find_int(const json_doc *doc, const json_t *object, const char *key, int64_t min, int64_t max,
                        int64_t *out, ls_error *err);
ls_status json_get_int(const json_doc *doc, const json_t *object, const char *key, int64_t min, int64_t max,
                       int64_t *out, ls_error *err);
ls_status json_find_real(const json_doc *doc, const json_t *object, const char *key, double *out, ls_error *err);
ls_status json_find_bool(const json_doc *doc, const json_t *object, const char *key, bool *out, ls_error *err);
ls_status json_find_string(const json_doc *doc, const json_t *object, const char *key, const char **out, ls_error *err);
/* Objects and arrays: a value of another type is an error. */
ls_status json_find_object(const json_doc *doc, const json_t *object, const char *key, json_t **out, ls_error *err);
ls_status json_find_array(const json_doc *doc, const json_t *object, const char *key, json_t **out, ls_error *err);

#endif
