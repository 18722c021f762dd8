/* Text under construction in a run's heap, and values as text: Python's str(), repr() and json.dumps(). */
#ifndef LS_TEXT_JINJA_TEXT_H
#define LS_TEXT_JINJA_TEXT_H

#include "text/jinja/value.h"

/* Start zeroed. The bytes belong to the run's heap. */
typedef struct jinja_text {
    char *s;
    size_t n, capacity;
} jinja_text;

/* A step for every 64 bytes; more than limits.output_bytes in one text is LS_ETOOLONG. */
ls_status jinja_text_add(jinja_run *run, jinja_text *text, const char *s, size_t n, ls_error *err);
ls_status jinja_text_add_c(jinja_run *run, jinja_text *text, const char *s, ls_error *err);
ls_status jinja_text_add_char(jinja_run *run, jinja_text *text, int32_t c, ls_error *err); /* as UTF-8 */
ls_status jinja_text_add_times(jinja_run *run, jinja_text *text, const char *s, size_t n, int64_t times, ls_error *err);
/* The finished string; the text must not be added to any more. */
ls_status jinja_text_done(jinja_run *run, jinja_text *text, jinja_value *out, ls_error *err);

/* str(value), repr(value). */
ls_status jinja_text_add_str(jinja_run *run, jinja_text *text, const jinja_value *value, ls_error *err);
ls_status jinja_text_add_repr(jinja_run *run, jinja_text *text, const jinja_value *value, ls_error *err);
/* str(value); strings are given back as they are. */
ls_status jinja_to_str(jinja_run *run, const jinja_value *value, jinja_value *out, ls_error *err);
/* HTML's five characters as markupsafe writes them. */
ls_status jinja_text_add_escaped(jinja_run *run, jinja_text *text, const char *s, size_t n, ls_error *err);

enum { JINJA_FLOAT_BYTES = 40 };
/* repr() of a float: the shortest decimal that reads back as the same number. */
void jinja_format_float(double f, char out[JINJA_FLOAT_BYTES]);
/* UTF-8 of a code point that is no surrogate; returns its bytes. */
size_t jinja_encode_utf8(int32_t c, char out[4]);

typedef struct jinja_json_style {
    bool ensure_ascii, sort_keys, pretty;
    const jinja_str *indent;        /* of one level, if pretty */
    const jinja_str *comma, *colon; /* NULL: the defaults */
} jinja_json_style;

/* json.dumps(value). */
ls_status jinja_text_add_json(jinja_run *run, jinja_text *text, const jinja_value *value, const jinja_json_style *style,
                              ls_error *err);

#endif
