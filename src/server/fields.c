/* See fields.h. */
#include "server/fields.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_EXACT 9007199254740992.0 /* 2^53: every integer up to here is a double of its own */

json_t *fields_find(const fields *f, const char *name) {
    json_t *value = json_object_get(f->object, name);
    return json_is_null(value) ? NULL : value;
}

ls_status fields_error(fields *f, const char *name, ls_status status, ls_error *err, const char *format, ...) {
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    f->param = name;
    return error_set(err, status, "%s: %s", name, text);
}

static ls_status wrong_type(fields *f, const char *name, const char *wanted, const json_t *value, ls_error *err) {
    static const char *const types[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};
    return fields_error(f, name, LS_EINVAL, err, "expected %s, not %s", wanted, types[json_typeof(value)]);
}

ls_status fields_bool(fields *f, const char *name, bool *out, ls_error *err) {
    const json_t *value = fields_find(f, name);
    if (value != NULL && !json_is_boolean(value)) {
        return wrong_type(f, name, "true or false", value, err);
    }
    *out = value != NULL ? json_is_true(value) : *out;
    return LS_OK;
}

ls_status fields_int(fields *f, const char *name, int64_t min, int64_t max, int64_t *out, ls_error *err) {
    const json_t *value = fields_find(f, name);
    if (value == NULL) {
        return LS_OK;
    }
    const double whole = json_is_real(value) ? json_real_value(value) : 0.5; /* 10.0 is 10 */
    const bool is_whole = fabs(whole) <= MAX_EXACT && whole == floor(whole);
    if (!json_is_integer(value) && !is_whole) {
        return wrong_type(f, name, "an integer", value, err);
    }
    int64_t n = is_whole ? (int64_t)whole : json_integer_value(value);
    if (n < min || n > max) {
        return fields_error(f, name, LS_EINVAL, err, "%lld must be from %lld to %lld", (long long)n, (long long)min,
                            (long long)max);
    }
    *out = n;
    return LS_OK;
}

ls_status fields_real(fields *f, const char *name, double min, double max, double *out, ls_error *err) {
    const json_t *value = fields_find(f, name);
    if (value == NULL) {
        return LS_OK;
    }
    if (!json_is_number(value)) {
        return wrong_type(f, name, "a number", value, err);
    }
    double x = json_number_value(value);
    if (!(x >= min && x <= max)) {
        return fields_error(f, name, LS_EINVAL, err, "%g must be from %g to %g", x, min, max);
    }
    *out = x;
    return LS_OK;
}

ls_status fields_text(fields *f, const char *name, const char **out, size_t *out_bytes, ls_error *err) {
    const json_t *value = fields_find(f, name);
    if (value == NULL) {
        return LS_OK;
    }
    if (!json_is_string(value)) {
        return wrong_type(f, name, "a string", value, err);
    }
    *out = json_string_value(value);
    *out_bytes = json_string_length(value);
    return LS_OK;
}

static bool has_nul(const json_t *string) {
    return strlen(json_string_value(string)) != json_string_length(string);
}

ls_status fields_string(fields *f, const char *name, const char **out, ls_error *err) {
    const json_t *value = fields_find(f, name);
    size_t n;
    if (value != NULL && json_is_string(value) && has_nul(value)) {
        return fields_error(f, name, LS_EINVAL, err, "a NUL character may not stand here");
    }
    return fields_text(f, name, out, &n, err);
}

ls_status fields_object(fields *f, const char *name, json_t **out, ls_error *err) {
    json_t *value = fields_find(f, name);
    if (value != NULL && !json_is_object(value)) {
        return wrong_type(f, name, "an object", value, err);
    }
    *out = value != NULL ? value : *out;
    return LS_OK;
}

ls_status fields_array(fields *f, const char *name, json_t **out, ls_error *err) {
    json_t *value = fields_find(f, name);
    if (value != NULL && !json_is_array(value)) {
        return wrong_type(f, name, "an array", value, err);
    }
    *out = value != NULL ? value : *out;
    return LS_OK;
}

ls_status fields_strings(fields *f, const char *name, const char ***out, size_t *n, ls_error *err) {
    const json_t *value = fields_find(f, name);
    if (value == NULL) {
        return LS_OK;
    }
    bool is_one = json_is_string(value);
    if (!is_one && !json_is_array(value)) {
        return wrong_type(f, name, "a string or an array of strings", value, err);
    }
    size_t n_strings = is_one ? 1 : json_array_size(value);
    const char **string = calloc(n_strings + 1, sizeof *string);
    if (string == NULL) {
        return error_set(err, LS_ENOMEM, "%s: out of memory", name);
    }
    for (size_t i = 0; i < n_strings; i++) {
        const json_t *item = is_one ? value : json_array_get(value, i);
        if (!json_is_string(item) || has_nul(item)) {
            free(string);
            return json_is_string(item) ? fields_error(f, name, LS_EINVAL, err, "a NUL character may not stand here")
                                        : wrong_type(f, name, "strings only", item, err);
        }
        string[i] = json_string_value(item);
    }
    *out = string;
    *n = n_strings;
    return LS_OK;
}

ls_status fields_read_ids(fields *f, const char *name, const json_t *array, int32_t **out, size_t *n, ls_error *err) {
    size_t n_ids = json_array_size(array);
    int32_t *id = malloc((n_ids + 1) * sizeof *id);
    if (id == NULL) {
        return error_set(err, LS_ENOMEM, "%s: out of memory", name);
    }
    for (size_t i = 0; i < n_ids; i++) {
        const json_t *item = json_array_get(array, i);
        int64_t value = json_is_integer(item) ? json_integer_value(item) : -1;
        if (value < 0 || value > INT32_MAX) {
            free(id);
            return json_is_integer(item)
                       ? fields_error(f, name, LS_EINVAL, err, "%lld is no token id", (long long)value)
                       : wrong_type(f, name, "token ids only", item, err);
        }
        id[i] = (int32_t)value;
    }
    *out = id;
    *n = n_ids;
    return LS_OK;
}

ls_status fields_ids(fields *f, const char *name, int32_t **out, size_t *n, ls_error *err) {
    json_t *array = NULL;
    TRY(fields_array(f, name, &array, err));
    return array != NULL ? fields_read_ids(f, name, array, out, n, err) : LS_OK;
}

ls_status fields_refuse(fields *f, const char *name, const char *why, ls_error *err) {
    const json_t *value = fields_find(f, name);
    bool means_nothing = value == NULL || json_is_false(value) ||
                         (json_is_number(value) && json_number_value(value) == 0) ||
                         (json_is_string(value) && json_string_length(value) == 0) ||
                         (json_is_array(value) && json_array_size(value) == 0) ||
                         (json_is_object(value) && json_object_size(value) == 0);
    return means_nothing ? LS_OK : fields_error(f, name, LS_EUNSUPPORTED, err, "%s", why);
}
