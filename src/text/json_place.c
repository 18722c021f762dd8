/* See json_place.h. */
#include "text/json_place.h"

#include <stdio.h>
#include <string.h>

ls_status place_malformed(const json_place *at, const char *key, const char *what, ls_error *err) {
    return error_set(err, LS_EFORMAT, "%s: %s%s: %s", at->doc->name, at->path, key, what);
}

ls_status place_unsupported(const json_place *at, const char *key, const char *value, ls_error *err) {
    size_t n = strspn(value, " _-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ");
    bool plain = n > 0 && n <= 60 && value[n] == '\0';
    return error_set(err, LS_EUNSUPPORTED, "%s: %s%s: %s is not supported", at->doc->name, at->path, key,
                     plain ? value : "this value");
}

const json_t *place_find(const json_place *at, const char *key) {
    const json_t *value = json_object_get(at->object, key);
    return json_is_null(value) ? NULL : value;
}

ls_status place_find_string(const json_place *at, const char *key, json_bytes *out, ls_error *err) {
    const json_t *value = place_find(at, key);
    if (value == NULL) {
        return LS_OK;
    }
    if (!json_is_string(value)) {
        return place_malformed(at, key, "expected a string", err);
    }
    *out = (json_bytes){json_string_value(value), json_string_length(value)};
    return LS_OK;
}

ls_status place_get_string(const json_place *at, const char *key, json_bytes *out, ls_error *err) {
    return place_find(at, key) ? place_find_string(at, key, out, err) : place_malformed(at, key, "missing", err);
}

ls_status place_find_bool(const json_place *at, const char *key, bool *out, ls_error *err) {
    const json_t *value = place_find(at, key);
    if (value != NULL && !json_is_boolean(value)) {
        return place_malformed(at, key, "expected true or false", err);
    }
    *out = value ? json_is_true(value) : *out;
    return LS_OK;
}

ls_status place_get_bool(const json_place *at, const char *key, bool *out, ls_error *err) {
    return place_find(at, key) ? place_find_bool(at, key, out, err) : place_malformed(at, key, "missing", err);
}

ls_status place_get_int(const json_place *at, const char *key, int64_t max, int64_t *out, ls_error *err) {
    const json_t *value = place_find(at, key);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > max) {
        return error_set(err, LS_EFORMAT, "%s: %s%s: expected an integer from 0 to %lld", at->doc->name, at->path, key,
                         (long long)max);
    }
    *out = json_integer_value(value);
    return LS_OK;
}

ls_status place_find_section(const json_place *at, const char *key, json_place *child, ls_error *err) {
    *child = (json_place){.doc = at->doc, .object = place_find(at, key)};
    snprintf(child->path, sizeof child->path, "%s%s.", at->path, key);
    if (child->object != NULL && !json_is_object(child->object)) {
        return place_malformed(at, key, "expected an object", err);
    }
    return LS_OK;
}

ls_status place_find_list(const json_place *at, const char *key, const json_t **list, ls_error *err) {
    *list = place_find(at, key);
    if (*list != NULL && !json_is_array(*list)) {
        return place_malformed(at, key, "expected a list", err);
    }
    return LS_OK;
}

ls_status place_get_item(const json_place *at, const char *key, const json_t *list, size_t i, json_place *item,
                         ls_error *err) {
    *item = (json_place){.doc = at->doc, .object = json_array_get(list, i)};
    snprintf(item->path, sizeof item->path, "%s%s[%zu].", at->path, key, i);
    if (!json_is_object(item->object)) {
        return error_set(err, LS_EFORMAT, "%s: %s%s[%zu]: expected an object", at->doc->name, at->path, key, i);
    }
    return LS_OK;
}

bool json_bytes_equal(json_bytes value, const char *text) {
    return value.n == strlen(text) && memcmp(value.data, text, value.n) == 0;
}

ls_status place_get_typed_item(const json_place *at, const char *key, const json_t *list, size_t i, json_place *item,
                               json_bytes *type, ls_error *err) {
    TRY(place_get_item(at, key, list, i, item, err));
    return place_get_string(item, "type", type, err);
}
