/*
 * Chat templates: from messages to the text that a model was trained on, as Hugging Face's apply_chat_template renders it
 * (tokenize=False). The language is in jinja/jinja.h.
 *
 * A chat_templates holds what a model folder says: one or several named templates and the special tokens that they use.
 * Immutable once open; any thread may render from it.
 */
#ifndef LS_TEXT_CHAT_TEMPLATE_H
#define LS_TEXT_CHAT_TEMPLATE_H

#include <jansson.h>
#include <time.h>

#include "base/error.h"
#include "text/text_buffer.h"

typedef struct chat_template chat_template;
typedef struct chat_templates chat_templates;

/* Bounds for templates and data that nobody vouches for; 0 in a field is the default. */
typedef struct chat_template_limits {
    size_t source_bytes;
    size_t output_bytes;
    size_t memory_bytes; /* of one rendering's values */
    uint64_t steps;      /* about one per expression and 64 bytes of text */
    int depth;
} chat_template_limits;

/* One template. `name` is for messages ("tokenizer_config.json"), the source is copied. limits may be NULL. Errors:
 * LS_EFORMAT "<name>:<line>: <cause>", LS_EUNSUPPORTED what is not supported, LS_ETOOLONG, LS_ENOMEM. */
ls_status chat_template_parse(chat_template **out, const char *name, const char *source, size_t n_bytes,
                              const chat_template_limits *limits, ls_error *err);
void chat_template_close(chat_template **t); /* accepts NULL inside; sets it to NULL */

/* Does it have {% generation %} blocks? */
bool chat_template_has_generation(const chat_template *t);

typedef struct chat_span {
    size_t from, to; /* bytes of the rendered text */
} chat_span;

typedef struct chat_render_params {
    const json_t *messages;  /* array of objects, at least one */
    const json_t *tools;     /* array, or NULL: the template sees none */
    const json_t *documents; /* array, or NULL: the template sees none */
    const json_t *variables; /* object, or NULL: enable_thinking and the like; they win over special tokens */
    bool add_generation_prompt;
    const struct tm *now; /* local time for strftime_now; NULL: a template that asks for it fails */
    /* What {% generation %} blocks wrote, in order; NULL: not wanted. To be freed with free(). */
    chat_span **spans;
    size_t *n_spans;
} chat_render_params;

/* Appends the text to out, which is untouched on failure. special_tokens: object of strings ("bos_token"), or NULL. All
 * JSON is borrowed for the call. Errors: LS_EINVAL with the message of the template's raise_exception as it is, or for bad
 * arguments; LS_EFORMAT "<name>:<line>: <cause>" for all else that the template does wrong with this data; LS_ETOOLONG for
 * limits; LS_EUNSUPPORTED; LS_ENOMEM. */
ls_status chat_template_render(const chat_template *t, const json_t *special_tokens, const chat_render_params *params,
                               text_buffer *out, ls_error *err);

/* Reads chat_template.jinja and additional_chat_templates/NAME.jinja of a model folder or, where there is no such file,
 * chat_template of tokenizer_config.json (a string, or a list of named ones), and the special tokens of
 * tokenizer_config.json. LS_ENOTFOUND if the folder has no template; otherwise as chat_template_parse and json_doc_read. */
ls_status chat_templates_open(chat_templates **out, const char *folder, const chat_template_limits *limits,
                              ls_error *err);
void chat_templates_close(chat_templates **templates); /* accepts NULL inside; sets it to NULL */

/* Names in the order of the folder; borrowed. */
size_t chat_templates_count(const chat_templates *templates);
const char *chat_templates_name(const chat_templates *templates, size_t i);
const json_t *chat_templates_special_tokens(const chat_templates *templates); /* borrowed */

/* The template to use, borrowed. `name` NULL chooses as Hugging Face does: "tool_use" if there are tools and it exists, else
 * "default", else the only one. LS_ENOTFOUND names those that there are. */
ls_status chat_templates_get(const chat_templates *templates, const char *name, bool has_tools,
                             const chat_template **out, ls_error *err);

#endif
