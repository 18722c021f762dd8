/*
 * The template language of chat templates: Jinja2 as Hugging Face sets it up (ImmutableSandboxedEnvironment, trim_blocks,
 * lstrip_blocks, loop controls, the generation tag), rendered to the same bytes.
 *
 *   jinja_lex -> jinja_parse -> jinja_bind        once per template: tokens, tree, variables to slots
 *   jinja_render                                  walks the tree (exec.c, eval.c, call.c ...)
 *
 * Not supported, and refused by name: block, extends, include, import, autoescape, recursive loops; str.format and % on
 * strings, integers beyond 64 bits; the filters format, pprint, random, urlize, wordwrap, filesizeformat, xmlattr,
 * striptags. Templates and data are not trusted: everything is bounded by jinja_limits.
 */
#ifndef LS_TEXT_JINJA_H
#define LS_TEXT_JINJA_H

#include <jansson.h>

#include "text/jinja/ast.h"
#include "text/jinja/eval.h"
#include "text/text_buffer.h"

/* Large conversations fit with ease, runaway templates end in about a second. */
#define JINJA_LIMITS_DEFAULT                                                                                           \
    {                                                                                                                  \
        .source_bytes = 1 << 20, .output_bytes = 64 << 20, .heap_bytes = (size_t)1 << 30, .steps = 20 * 1000 * 1000,   \
        .depth = 1000                                                                                                  \
    }

typedef struct jinja_template {
    jinja_heap heap;
    jinja_tree tree;
    jinja_limits limits;
    char name[128];
} jinja_template;

/* `name` is for messages. The source need not be valid UTF-8 (it is checked). */
ls_status jinja_template_init(jinja_template *t, const char *name, const char *source, size_t n_bytes,
                              const jinja_limits *limits, ls_error *err);
void jinja_template_deinit(jinja_template *t); /* accepts a zeroed template */

/*
 * A rendering: init, set variables, render, deinit. Variables are copied from JSON. `now` is for strftime_now and may be
 * NULL; borrowed. Not for several threads, but the template may be shared by several runs.
 */
typedef struct jinja_render {
    jinja_run run;
    const jinja_template *t;
    jinja_value variables;
    jinja_spans spans;
} jinja_render;

ls_status jinja_render_init(jinja_render *r, const jinja_template *t, const struct tm *now, ls_error *err);
/* Strings of the JSON must be valid UTF-8 (jansson's own checks see to that), else LS_EINVAL. */
ls_status jinja_render_set(jinja_render *r, const char *name, const json_t *value, ls_error *err);
/* Appends to out. Errors: LS_EFORMAT with template and line for all that Python would raise; LS_EINVAL with the message of
 * raise_exception as it is; LS_ETOOLONG for limits; LS_EUNSUPPORTED; LS_ENOMEM. */
ls_status jinja_render_run(jinja_render *r, bool want_spans, text_buffer *out, ls_error *err);
void jinja_render_deinit(jinja_render *r); /* accepts a zeroed rendering */

#endif
