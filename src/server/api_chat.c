/* POST /v1/chat/completions: messages, through the model's chat template. */
#include <stdlib.h>
#include <string.h>

#include "server/serving.h"

/* Content as an array of parts: their texts with newlines between them, as vLLM joins them. */
static ls_status join_parts(fields *f, const json_t *parts, json_t **out, ls_error *err) {
    struct evbuffer *text = evbuffer_new();
    ls_status st = text != NULL ? LS_OK : error_set(err, LS_ENOMEM, "messages: out of memory");
    for (size_t i = 0; st == LS_OK && i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        const json_t *piece = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        if (type != NULL && strcmp(type, "text") != 0) {
            st = fields_error(f, "messages", LS_EUNSUPPORTED, err, "content of type '%.40s': only text is supported",
                              type);
        } else if (type == NULL || !json_is_string(piece)) {
            st = fields_error(f, "messages", LS_EINVAL, err, "a part of content needs \"type\": \"text\" and a text");
        } else {
            evbuffer_add(text, "\n", i > 0 ? 1 : 0);
            evbuffer_add(text, json_string_value(piece), json_string_length(piece));
        }
    }
    if (st == LS_OK) {
        const char *bytes = (const char *)evbuffer_pullup(text, -1);
        *out = json_stringn(bytes != NULL ? bytes : "", evbuffer_get_length(text));
        st = *out != NULL ? LS_OK : error_set(err, LS_ENOMEM, "messages: out of memory");
    }
    if (text != NULL) {
        evbuffer_free(text);
    }
    return st;
}

/* One message as the template gets it: everything that came, with its content as one string. */
static ls_status read_message(fields *f, const json_t *message, json_t *out, ls_error *err) {
    const json_t *content = json_object_get(message, "content");
    json_t *copy = NULL, *text = NULL;
    if (!json_is_string(json_object_get(message, "role"))) {
        return fields_error(f, "messages", LS_EINVAL, err, "every message must be an object with a role, a string");
    }
    if (json_is_array(json_object_get(message, "tool_calls")) &&
        json_array_size(json_object_get(message, "tool_calls")) > 0) {
        return fields_error(f, "messages", LS_EUNSUPPORTED, err, "tool calls are not supported yet");
    }
    if (json_is_array(content)) {
        TRY(join_parts(f, content, &text, err));
    } else if (content != NULL && !json_is_null(content) && !json_is_string(content)) {
        return fields_error(f, "messages", LS_EINVAL, err, "content must be a string or an array of parts");
    }
    copy = json_copy((json_t *)message);
    if (text == NULL && !json_is_string(content)) {
        text = json_string("");
    }
    bool good = copy != NULL && (text == NULL || json_object_set_new(copy, "content", text) == 0) &&
                json_array_append_new(out, copy) == 0;
    return good ? LS_OK : error_set(err, LS_ENOMEM, "messages: out of memory");
}

static ls_status read_messages(fields *f, json_t **out, ls_error *err) {
    json_t *given = NULL;
    ls_status st = LS_OK;
    TRY(fields_array(f, "messages", &given, err));
    if (json_array_size(given) == 0) {
        return fields_error(f, "messages", LS_EINVAL, err, "%s", given == NULL ? "missing" : "the array is empty");
    }
    json_t *messages = json_array();
    for (size_t i = 0; st == LS_OK && i < json_array_size(given); i++) {
        st = read_message(f, json_array_get(given, i), messages, err);
    }
    if (st != LS_OK) {
        json_decref(messages);
        return st;
    }
    *out = messages;
    return LS_OK;
}

/* The server's defaults, then the request's chat_template_kwargs, then reasoning_effort. */
static ls_status read_variables(const server *s, fields *f, char **out, ls_error *err) {
    json_t *given = NULL;
    const char *effort = NULL;
    TRY(fields_object(f, "chat_template_kwargs", &given, err));
    TRY(fields_string(f, "reasoning_effort", &effort, err));
    json_t *all = s->template_kwargs != NULL ? json_copy(s->template_kwargs) : json_object();
    if (fields_find(f, "add_generation_prompt") != NULL) { /* goes before the server's default */
        json_object_del(all, "add_generation_prompt");
    }
    if (effort != NULL) {
        json_object_set_new(all, "reasoning_effort", json_string(effort));
    }
    bool good = given == NULL || json_object_update(all, given) == 0;
    char *text = good ? json_dumps(all, JSON_COMPACT) : NULL;
    json_decref(all);
    if (text == NULL) {
        return error_set(err, LS_ENOMEM, "chat_template_kwargs: out of memory");
    }
    *out = text;
    return LS_OK;
}

ls_status chat_render(const server *s, fields *body, char **out, size_t *out_bytes, ls_error *err) {
    ls_chat_params params = LS_CHAT_PARAMS_INIT;
    json_t *messages = NULL;
    char *json = NULL, *variables = NULL;
    ls_status st = LS_OK;
    if (s->model.text == NULL) {
        return error_set(err, LS_EUNSUPPORTED, "this model has no tokenizer, and so no chat template");
    }
    TRY_GOTO(read_messages(body, &messages, err), fail);
    TRY_GOTO(read_variables(s, body, &variables, err), fail);
    TRY_GOTO(fields_bool(body, "add_generation_prompt", &params.add_generation_prompt, err), fail);
    json = json_dumps(messages, JSON_COMPACT);
    if (json == NULL) {
        TRY_GOTO(error_set(err, LS_ENOMEM, "messages: out of memory"), fail);
    }
    params.messages_json = json;
    params.variables_json = variables;
    params.template_name = s->params->chat_template_name;
    st = ls_text_render_chat(s->model.text, &params, out, out_bytes, err);
    if (st == LS_ENOTFOUND || st == LS_EFORMAT) { /* the template's fault, not a wrong path */
        st = error_prefix(err, LS_EUNSUPPORTED, "chat template");
    } else if (st == LS_ETOOLONG) { /* its limits, which are not the context's */
        st = error_prefix(err, LS_EINVAL, "more than the chat template may read");
    }
    if (st != LS_OK) {
        body->param = "messages";
    }
fail:
    json_decref(messages);
    free(json);
    free(variables);
    return st;
}

static ls_status chat_ask(ask *a, const server *s, const json_t *body, ls_error *err) {
    char *prompt;
    size_t n_bytes;
    TRY(ask_read(a, s, body, true, err));
    TRY(chat_render(s, &a->body, &prompt, &n_bytes, err));
    ls_status st = ask_add_text(a, s, prompt, n_bytes, a->add_special, err);
    ls_free(prompt);
    return st;
}

const body_kind body_of_chat = {.ask = chat_ask};
