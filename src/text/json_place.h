/*
 * Reading sections of a JSON file: an object and the dotted path to it, so that every message can say where.
 * find_* leave *out alone and return LS_OK when the key is absent or null; get_* require it. All borrow from the document.
 */
#ifndef LS_TEXT_JSON_PLACE_H
#define LS_TEXT_JSON_PLACE_H

#include "base/json.h"

typedef struct json_place {
    const json_doc *doc;
    const json_t *object;
    char path[96]; /* "" or ends in a dot: a key goes behind it */
} json_place;

typedef struct json_bytes {
    const char *data; /* valid UTF-8, NUL behind it */
    size_t n;
} json_bytes;

bool json_bytes_equal(json_bytes value, const char *text);

/* "file: path.key: what" with LS_EFORMAT, and "...: value is not supported" with LS_EUNSUPPORTED. Values come from the
 * file: only short plain ones are repeated. */
ls_status place_malformed(const json_place *at, const char *key, const char *what, ls_error *err);
ls_status place_unsupported(const json_place *at, const char *key, const char *value, ls_error *err);

const json_t *place_find(const json_place *at, const char *key); /* NULL when absent or null */
ls_status place_find_string(const json_place *at, const char *key, json_bytes *out, ls_error *err);
ls_status place_get_string(const json_place *at, const char *key, json_bytes *out, ls_error *err);
ls_status place_find_bool(const json_place *at, const char *key, bool *out, ls_error *err);
ls_status place_get_bool(const json_place *at, const char *key, bool *out, ls_error *err);
ls_status place_get_int(const json_place *at, const char *key, int64_t max, int64_t *out, ls_error *err); /* >= 0 */
ls_status place_find_list(const json_place *at, const char *key, const json_t **list, ls_error *err);

/* The object under a key; child->object is NULL when it is absent or null. */
ls_status place_find_section(const json_place *at, const char *key, json_place *child, ls_error *err);
/* Element i, an object, of the list under a key. */
ls_status place_get_item(const json_place *at, const char *key, const json_t *list, size_t i, json_place *item,
                         ls_error *err);
/* The same, and its "type". */
ls_status place_get_typed_item(const json_place *at, const char *key, const json_t *list, size_t i, json_place *item,
                               json_bytes *type, ls_error *err);

#endif
