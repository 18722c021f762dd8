/*
 * The fields of a JSON object that somebody sent: absent and null are the same and leave *out alone; another type than the
 * one asked for is an error that names the field. Nothing is converted: "1" is no number, 1.0 no integer.
 */
#ifndef LS_SERVER_FIELDS_H
#define LS_SERVER_FIELDS_H

#include "base/json.h"

typedef struct fields {
    const json_t *object;
    const char *param; /* the field that the last error is about, or NULL; borrowed from the caller */
} fields;

/* The value, or NULL where it is absent or null. */
json_t *fields_find(const fields *f, const char *name);
/* An error about a field: "<name>: <format>". */
ls_status fields_error(fields *f, const char *name, ls_status status, ls_error *err, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

ls_status fields_bool(fields *f, const char *name, bool *out, ls_error *err);
ls_status fields_int(fields *f, const char *name, int64_t min, int64_t max, int64_t *out, ls_error *err);
ls_status fields_real(fields *f, const char *name, double min, double max, double *out, ls_error *err);
/* Borrowed from the object. fields_string refuses NUL characters, which C strings cannot hold. */
ls_status fields_string(fields *f, const char *name, const char **out, ls_error *err);
ls_status fields_text(fields *f, const char *name, const char **out, size_t *out_bytes, ls_error *err);
ls_status fields_object(fields *f, const char *name, json_t **out, ls_error *err);
ls_status fields_array(fields *f, const char *name, json_t **out, ls_error *err);
/* Arrays to be freed with free(); their strings are borrowed. A string stands for an array of one. */
ls_status fields_strings(fields *f, const char *name, const char ***out, size_t *n, ls_error *err);
ls_status fields_ids(fields *f, const char *name, int32_t **out, size_t *n, ls_error *err);
/* The ids in a JSON array, which `name` is called in errors. */
ls_status fields_read_ids(fields *f, const char *name, const json_t *array, int32_t **out, size_t *n, ls_error *err);

/* What we do not have is refused by name, but for the values that mean nothing: absent, null, false, 0, "", [], {}. */
ls_status fields_refuse(fields *f, const char *name, const char *why, ls_error *err);

#endif
