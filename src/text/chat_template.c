/* See chat_template.h. */
#include "text/chat_template.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "text/jinja/jinja.h"

struct chat_template {
    jinja_template jinja;
};

typedef struct named_template {
    char *name;
    chat_template *t;
} named_template;

struct chat_templates {
    named_template *named;
    size_t n;
    json_t *special_tokens;
};

enum { MAX_CONFIG_BYTES = 64 << 20, MAX_TEMPLATES = 64 };

static ls_status no_memory(ls_error *err) {
    return error_set(err, LS_ENOMEM, "out of memory for chat templates");
}

/* ---- one template ---- */

ls_status chat_template_parse(chat_template **out, const char *name, const char *source, size_t n_bytes,
                              const chat_template_limits *limits, ls_error *err) {
    jinja_limits bounds = JINJA_LIMITS_DEFAULT;
    if (limits != NULL) {
        bounds.source_bytes = limits->source_bytes ? limits->source_bytes : bounds.source_bytes;
        bounds.output_bytes = limits->output_bytes ? limits->output_bytes : bounds.output_bytes;
        bounds.heap_bytes = limits->memory_bytes ? limits->memory_bytes : bounds.heap_bytes;
        bounds.steps = limits->steps ? limits->steps : bounds.steps;
        bounds.depth = limits->depth > 0 && limits->depth < bounds.depth ? limits->depth : bounds.depth;
    }
    chat_template *t = calloc(1, sizeof *t);
    if (t == NULL) {
        return no_memory(err);
    }
    ls_status st = jinja_template_init(&t->jinja, name, source, n_bytes, &bounds, err);
    if (st < 0) {
        free(t);
        return st;
    }
    *out = t;
    return LS_OK;
}

void chat_template_close(chat_template **t) {
    if (*t != NULL) {
        jinja_template_deinit(&(*t)->jinja);
        free(*t);
        *t = NULL;
    }
}

bool chat_template_has_generation(const chat_template *t) {
    return t->jinja.tree.has_generation;
}

static ls_status check_params(const chat_render_params *params, ls_error *err) {
    if (!json_is_array(params->messages)) {
        return error_set(err, LS_EINVAL, "messages: expected an array");
    }
    if (json_array_size(params->messages) == 0) {
        return error_set(err, LS_EINVAL, "messages: empty; a chat template needs at least one");
    }
    for (size_t i = 0; i < json_array_size(params->messages); i++) {
        if (!json_is_object(json_array_get(params->messages, i))) {
            return error_set(err, LS_EINVAL, "messages[%zu]: expected an object", i);
        }
    }
    if (params->tools != NULL && !json_is_array(params->tools) && !json_is_null(params->tools)) {
        return error_set(err, LS_EINVAL, "tools: expected an array");
    }
    if (params->documents != NULL && !json_is_array(params->documents) && !json_is_null(params->documents)) {
        return error_set(err, LS_EINVAL, "documents: expected an array");
    }
    if (params->variables != NULL && !json_is_object(params->variables)) {
        return error_set(err, LS_EINVAL, "template variables: expected an object");
    }
    return LS_OK;
}

static ls_status set_all(jinja_render *r, const json_t *variables, ls_error *err) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)variables, name, value) { /* jansson's macro wants it writable and writes nothing */
        TRY(jinja_render_set(r, name, value, err));
    }
    return LS_OK;
}

static ls_status set_variables(jinja_render *r, const json_t *special_tokens, const chat_render_params *params,
                               ls_error *err) {
    json_t *none = json_null(); /* one for all, not counted */
    TRY(set_all(r, special_tokens, err));
    TRY(jinja_render_set(r, "documents", params->documents != NULL ? params->documents : none, err));
    TRY(jinja_render_set(r, "add_generation_prompt", json_boolean(params->add_generation_prompt), err));
    TRY(set_all(r, params->variables, err)); /* these may be among them */
    TRY(jinja_render_set(r, "messages", params->messages, err));
    return jinja_render_set(r, "tools", params->tools != NULL ? params->tools : none, err);
}

static ls_status copy_spans(const jinja_spans *spans, const chat_render_params *params, ls_error *err) {
    if (params->spans == NULL) {
        return LS_OK;
    }
    chat_span *copy = calloc(spans->n + 1, sizeof *copy);
    if (copy == NULL) {
        return no_memory(err);
    }
    for (size_t i = 0; i < spans->n; i++) {
        copy[i] = (chat_span){.from = spans->span[i].from, .to = spans->span[i].to};
    }
    *params->spans = copy;
    *params->n_spans = spans->n;
    return LS_OK;
}

ls_status chat_template_render(const chat_template *t, const json_t *special_tokens, const chat_render_params *params,
                               text_buffer *out, ls_error *err) {
    jinja_render r = {0};
    ls_status st;
    size_t before = out->n;
    TRY(check_params(params, err));
    TRY_GOTO(jinja_render_init(&r, &t->jinja, params->now, err), fail);
    TRY_GOTO(set_variables(&r, special_tokens, params, err), fail);
    TRY_GOTO(jinja_render_run(&r, params->spans != NULL, out, err), fail);
    for (size_t i = 0; i < r.spans.n; i++) { /* out may have held text before */
        r.spans.span[i].from += before;
        r.spans.span[i].to += before;
    }
    st = copy_spans(&r.spans, params, err);
    if (st < 0) {
        out->n = before;
        out->data[before] = '\0';
    }
fail:
    jinja_render_deinit(&r);
    return st;
}

/* ---- a folder's templates ---- */

void chat_templates_close(chat_templates **templates) {
    chat_templates *all = *templates;
    if (all == NULL) {
        return;
    }
    for (size_t i = 0; i < all->n; i++) {
        chat_template_close(&all->named[i].t);
        free(all->named[i].name);
    }
    free(all->named);
    json_decref(all->special_tokens);
    free(all);
    *templates = NULL;
}

static const chat_template *find_named(const chat_templates *all, const char *name) {
    for (size_t i = 0; i < all->n; i++) {
        if (strcmp(all->named[i].name, name) == 0) {
            return all->named[i].t;
        }
    }
    return NULL;
}

/* `file` is what messages call it. A name that is there already keeps its first template. */
static ls_status add_template(chat_templates *all, const char *name, const char *file, const char *source,
                              size_t n_bytes, const chat_template_limits *limits, ls_error *err) {
    if (find_named(all, name) != NULL) {
        return LS_OK;
    }
    if (all->n == MAX_TEMPLATES) {
        return error_set(err, LS_EFORMAT, "%s: more than %d chat templates", file, MAX_TEMPLATES);
    }
    named_template *named = realloc(all->named, (all->n + 1) * sizeof *named);
    if (named == NULL) {
        return no_memory(err);
    }
    all->named = named;
    named_template fresh = {.name = strdup(name)};
    if (fresh.name == NULL) {
        return no_memory(err);
    }
    ls_status st = chat_template_parse(&fresh.t, file, source, n_bytes, limits, err);
    if (st < 0) {
        free(fresh.name);
        return st;
    }
    all->named[all->n++] = fresh;
    return LS_OK;
}

static ls_status add_file(chat_templates *all, const char *name, const char *path, const char *file,
                          const chat_template_limits *limits, ls_error *err) {
    ls_file source;
    TRY(file_map(&source, path, err));
    ls_status st = add_template(all, name, file, (const char *)source.data, source.bytes, limits, err);
    file_unmap(&source);
    return st;
}

static int is_template_file(const struct dirent *entry) {
    size_t n = strlen(entry->d_name);
    return n > strlen(".jinja") && strcmp(entry->d_name + n - strlen(".jinja"), ".jinja") == 0;
}

/* additional_chat_templates/NAME.jinja */
static ls_status add_folder(chat_templates *all, const char *folder, const chat_template_limits *limits,
                            ls_error *err) {
    char inner[4096], path[4096], name[256];
    struct dirent **entry = NULL;
    TRY(path_join(inner, sizeof inner, folder, "additional_chat_templates", err));
    int n = scandir(inner, &entry, is_template_file, alphasort);
    ls_status st = LS_OK;
    for (int i = 0; i < n; i++) {
        if (st >= 0) {
            const char *file = entry[i]->d_name;
            snprintf(name, sizeof name, "%.*s", (int)(strlen(file) - strlen(".jinja")), file);
            st = path_join(path, sizeof path, inner, file, err);
            st = st < 0 ? st : add_file(all, name, path, file, limits, err);
        }
        free(entry[i]);
    }
    free(entry);
    return st;
}

static ls_status add_from_config(chat_templates *all, const json_doc *config, const chat_template_limits *limits,
                                 ls_error *err) {
    const json_t *value = json_object_get(config->root, "chat_template");
    if (json_is_string(value)) {
        return add_template(all, "default", config->name, json_string_value(value), json_string_length(value), limits,
                            err);
    }
    if (value != NULL && !json_is_null(value) && !json_is_array(value)) {
        return error_set(err, LS_EFORMAT, "%s: chat_template: expected a string or a list", config->name);
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *item = json_array_get(value, i), *name = json_object_get(item, "name");
        const json_t *source = json_object_get(item, "template");
        if (!json_is_string(name) || !json_is_string(source)) {
            return error_set(err, LS_EFORMAT, "%s: chat_template[%zu]: expected a name and a template, both strings",
                             config->name, i);
        }
        TRY(add_template(all, json_string_value(name), config->name, json_string_value(source),
                         json_string_length(source), limits, err));
    }
    return LS_OK;
}

/* "bos_token": "<s>" or {"content": "<s>", ...}; null and absent ones are not set, as in special_tokens_map. */
static ls_status read_special_tokens(chat_templates *all, const json_doc *config, ls_error *err) {
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const json_t *value = json_object_get(config->root, names[i]);
        if (json_is_object(value)) {
            value = json_object_get(value, "content");
        }
        if (value == NULL || json_is_null(value)) {
            continue;
        }
        if (!json_is_string(value)) {
            return error_set(err, LS_EFORMAT, "%s: %s: expected a string, or an object with content", config->name,
                             names[i]);
        }
        json_t *copy = json_stringn_nocheck(json_string_value(value), json_string_length(value));
        if (json_object_set_new(all->special_tokens, names[i], copy) < 0) {
            return no_memory(err);
        }
    }
    return LS_OK;
}

static ls_status read_folder(chat_templates *all, const char *folder, const chat_template_limits *limits,
                             json_doc *config, ls_error *err) {
    char path[4096];
    TRY(path_join(path, sizeof path, folder, "chat_template.jinja", err));
    if (file_exists(path)) {
        TRY(add_file(all, "default", path, "chat_template.jinja", limits, err));
    }
    TRY(add_folder(all, folder, limits, err));
    bool has_files = all->n > 0;
    TRY(path_join(path, sizeof path, folder, "tokenizer_config.json", err));
    if (file_exists(path)) {
        TRY(json_doc_read_reals(config, path, MAX_CONFIG_BYTES, err));
        if (!json_is_object(config->root)) {
            return error_set(err, LS_EFORMAT, "%s: expected an object", config->name);
        }
        TRY(read_special_tokens(all, config, err));
        if (!has_files) {
            TRY(add_from_config(all, config, limits, err));
        }
    }
    if (all->n == 0) {
        return error_set(err, LS_ENOTFOUND, "%s: no chat template in chat_template.jinja or tokenizer_config.json",
                         folder);
    }
    return LS_OK;
}

ls_status chat_templates_open(chat_templates **out, const char *folder, const chat_template_limits *limits,
                              ls_error *err) {
    ls_status st;
    json_doc config = {0};
    chat_templates *all = calloc(1, sizeof *all);
    if (all == NULL || (all->special_tokens = json_object()) == NULL) {
        free(all);
        return no_memory(err);
    }
    TRY_GOTO(read_folder(all, folder, limits, &config, err), fail);
    *out = all;
    all = NULL;
fail:
    json_doc_deinit(&config);
    chat_templates_close(&all);
    return st;
}

size_t chat_templates_count(const chat_templates *templates) {
    return templates->n;
}

const char *chat_templates_name(const chat_templates *templates, size_t i) {
    return i < templates->n ? templates->named[i].name : NULL;
}

const json_t *chat_templates_special_tokens(const chat_templates *templates) {
    return templates->special_tokens;
}

ls_status chat_templates_get(const chat_templates *templates, const char *name, bool has_tools,
                             const chat_template **out, ls_error *err) {
    const chat_template *found = NULL;
    if (name != NULL) {
        found = find_named(templates, name);
    } else {
        found = has_tools ? find_named(templates, "tool_use") : NULL;
        found = found != NULL ? found : find_named(templates, "default");
        found = found == NULL && templates->n == 1 ? templates->named[0].t : found;
    }
    if (found != NULL) {
        *out = found;
        return LS_OK;
    }
    char list[256] = "";
    for (size_t i = 0, at = 0; i < templates->n && at < sizeof list; i++) {
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", i ? ", " : "", templates->named[i].name);
    }
    return error_set(err, LS_ENOTFOUND, "no chat template is called '%s'; there are: %s", name ? name : "default",
                     list);
}
