/* See json.h. */
#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"

static void set_name(json_doc *doc, const char *path) {
    /* The last two parts of a path say enough ("demo/config.json") and fit a message. */
    const char *start = path;
    const char *slash = NULL;
    for (const char *p = path; *p != '\0'; p++) {
        if (*p == '/') {
            start = slash ? slash + 1 : path;
            slash = p;
        }
    }
    snprintf(doc->name, sizeof doc->name, "%s", start);
}

static ls_status parse_with(json_doc *doc, const char *name, const char *text, size_t text_bytes, size_t flags,
                            ls_error *err) {
    json_error_t why;
    json_doc fresh = {0};
    set_name(&fresh, name);
    /* An empty file is mapped to NULL, which jansson takes for a bug of its caller. */
    fresh.root = json_loadb(text != NULL ? text : "", text_bytes,
                            JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY | flags, &why);
    if (fresh.root == NULL) {
        return error_set(err, LS_EFORMAT, "%s: not valid JSON at line %d, byte %d: %s", fresh.name, why.line,
                         why.position, why.text);
    }
    *doc = fresh;
    return LS_OK;
}

ls_status json_doc_parse(json_doc *doc, const char *name, const char *text, size_t text_bytes, ls_error *err) {
    return parse_with(doc, name, text, text_bytes, 0, err);
}

ls_status json_doc_parse_reals(json_doc *doc, const char *name, const char *text, size_t text_bytes, ls_error *err) {
    return parse_with(doc, name, text, text_bytes, JSON_DECODE_INT_AS_REAL, err);
}

static ls_status read_with(json_doc *doc, const char *path, size_t max_bytes, size_t flags, ls_error *err) {
    ls_file file;
    TRY(file_map(&file, path, err));
    ls_status st;
    if (file.bytes > max_bytes) {
        st = error_set(err, LS_EFORMAT, "%s: %zu bytes, more than the %zu that such a file may have", path, file.bytes,
                       max_bytes);
    } else {
        st = parse_with(doc, path, (const char *)file.data, file.bytes, flags, err);
    }
    file_unmap(&file);
    return st;
}

ls_status json_doc_read(json_doc *doc, const char *path, size_t max_bytes, ls_error *err) {
    return read_with(doc, path, max_bytes, 0, err);
}

ls_status json_doc_read_reals(json_doc *doc, const char *path, size_t max_bytes, ls_error *err) {
    return read_with(doc, path, max_bytes, JSON_DECODE_INT_AS_REAL, err);
}

void json_doc_deinit(json_doc *doc) {
    json_decref(doc->root);
    doc->root = NULL;
}

static json_t *value_of(const json_t *object, const char *key) {
    json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static ls_status wrong_type(const json_doc *doc, const char *key, const char *wanted, ls_error *err) {
    return error_set(err, LS_EFORMAT, "%s: %s: expected %s", doc->name, key, wanted);
}

ls_status json_find_int(const json_doc *doc, const json_t *object, const char *key, int64_t min, int64_t max,
                        int64_t *out, ls_error *err) {
    const json_t *value = value_of(object, key);
    if (value == NULL) {
        return LS_OK;
    }
    if (!json_is_integer(value)) {
        return wrong_type(doc, key, "an integer", err);
    }
    int64_t n = json_integer_value(value);
    if (n < min || n > max) {
        return error_set(err, LS_EFORMAT, "%s: %s: %lld is outside %lld..%lld", doc->name, key, (long long)n,
                         (long long)min, (long long)max);
    }
    *out = n;
    return LS_OK;
}

ls_status json_get_int(const json_doc *doc, const json_t *object, const char *key, int64_t min, int64_t max,
                       int64_t *out, ls_error *err) {
    if (value_of(object, key) == NULL) {
        return error_set(err, LS_EFORMAT, "%s: %s: missing", doc->name, key);
    }
    return json_find_int(doc, object, key, min, max, out, err);
}

ls_status json_find_real(const json_doc *doc, const json_t *object, const char *key, double *out, ls_error *err) {
    const json_t *value = value_of(object, key);
    if (value == NULL) {
        return LS_OK;
    }
    if (!json_is_number(value) || !isfinite(json_number_value(value))) {
        return wrong_type(doc, key, "a number", err);
    }
    *out = json_number_value(value);
    return LS_OK;
}

ls_status json_find_bool(const json_doc *doc, const json_t *object, const char *key, bool *out, ls_error *err) {
    const json_t *value = value_of(object, key);
    if (value == NULL) {
        return LS_OK;
    }
    if (!json_is_boolean(value)) {
        return wrong_type(doc, key, "true or false", err);
    }
    *out = json_is_true(value);
    return LS_OK;
}

ls_status json_find_string(const json_doc *doc, const json_t *object, const char *key, const char **out,
                           ls_error *err) {
    const json_t *value = value_of(object, key);
    if (value == NULL) {
        return LS_OK;
    }
    if (!json_is_string(value)) {
        return wrong_type(doc, key, "a string", err);
    }
    *out = json_string_value(value);
    return LS_OK;
}

ls_status json_find_object(const json_doc *doc, const json_t *object, const char *key, json_t **out, ls_error *err) {
    json_t *value = value_of(object, key);
    if (value == NULL) {
        return LS_OK;
    }
    if (!json_is_object(value)) {
        return wrong_type(doc, key, "an object", err);
    }
    *out = value;
    return LS_OK;
}

ls_status json_find_array(const json_doc *doc, const json_t *object, const char *key, json_t **out, ls_error *err) {
    json_t *value = value_of(object, key);
    if (value == NULL) {
        return LS_OK;
    }
    if (!json_is_array(value)) {
        return wrong_type(doc, key, "an array", err);
    }
    *out = value;
    return LS_OK;
}
