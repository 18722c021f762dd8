/* Text without weights: tokenizer and chat templates of a folder. The public functions are described in lockstep.h. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/json.h"
#include "engine/engine.h"
#include "text/chat_template.h"

struct ls_text {
    ls_tokenizer *tokenizer;
    chat_templates *templates; /* NULL: the folder has none */
};

ls_status ls_text_open(const char *folder, const char *cache_folder, ls_text **out, ls_error *err) {
    char path[4096];
    TRY(path_join(path, sizeof path, folder, "tokenizer.json", err));
    ls_text *text = calloc(1, sizeof *text);
    ls_status st = LS_OK;
    if (text == NULL) {
        return error_set(err, LS_ENOMEM, "text: out of memory");
    }
    TRY_GOTO(tokenizer_open(&text->tokenizer, path, cache_folder, err), fail);
    ls_error why = {0};
    st = chat_templates_open(&text->templates, folder, NULL, &why);
    if (st != LS_OK && st != LS_ENOTFOUND) {
        if (err != NULL) {
            *err = why;
        }
        goto fail;
    }
    *out = text;
    return LS_OK;
fail:
    ls_text_close(&text);
    return st;
}

void ls_text_close(ls_text **text) {
    if (*text == NULL) {
        return;
    }
    chat_templates_close(&(*text)->templates);
    tokenizer_close(&(*text)->tokenizer);
    free(*text);
    *text = NULL;
}

void ls_free(void *memory) {
    free(memory);
}

ls_status ls_text_encode(const ls_text *text, const char *bytes, size_t n_bytes, unsigned flags, ls_token **out,
                         size_t *n_out, ls_error *err) {
    unsigned how = TOKENIZER_SPANS | (flags & LS_ENCODE_PARSE_SPECIAL ? TOKENIZER_PARSE_SPECIAL : 0) |
                   (flags & LS_ENCODE_ADD_SPECIAL ? TOKENIZER_ADD_SPECIAL : 0);
    token_list list = {0};
    ls_status st = LS_OK;
    TRY_GOTO(tokenizer_encode(text->tokenizer, bytes, n_bytes, how, &list, err), done);
    ls_token *token = malloc((list.n + 1) * sizeof *token); /* never of size 0 */
    if (token == NULL) {
        TRY_GOTO(error_set(err, LS_ENOMEM, "text: out of memory for %zu tokens", list.n), done);
    }
    for (size_t i = 0; i < list.n; i++) {
        token[i] = (ls_token){list.id[i], list.span[i].start, list.span[i].end};
    }
    *out = token;
    *n_out = list.n;
done:
    token_list_deinit(&list);
    return st;
}

/* The bytes of a buffer become the caller's. */
static void give(text_buffer *buffer, char **out, size_t *out_bytes) {
    *out = buffer->data;
    *out_bytes = buffer->n;
}

ls_status ls_text_decode(const ls_text *text, const int32_t *ids, size_t n_ids, bool skip_special, char **out,
                         size_t *out_bytes, ls_error *err) {
    text_buffer buffer = {0};
    detokenizer stream;
    ls_status st = LS_OK;
    detokenizer_init(&stream, text->tokenizer, skip_special);
    TRY_GOTO(text_buffer_append(&buffer, "", 0, err), fail);
    for (size_t i = 0; i < n_ids; i++) {
        TRY_GOTO(detokenizer_push(&stream, ids[i], &buffer, err), fail);
    }
    TRY_GOTO(detokenizer_flush(&stream, &buffer, err), fail);
    give(&buffer, out, out_bytes);
    return LS_OK;
fail:
    text_buffer_deinit(&buffer);
    return st;
}

bool ls_text_token_bytes(const ls_text *text, int32_t id, const char **bytes, size_t *n_bytes) {
    return tokenizer_token_bytes(text->tokenizer, id, bytes, n_bytes);
}

static ls_status parse_json(json_doc *doc, const char *name, const char *json, ls_error *err) {
    return json == NULL ? LS_OK : json_doc_parse(doc, name, json, strlen(json), err);
}

ls_status ls_text_render_chat(const ls_text *text, const ls_chat_params *params, char **out, size_t *out_bytes,
                              ls_error *err) {
    TRY(check_struct_size("ls_chat_params", params->struct_size, sizeof *params, err));
    ls_chat_params known = {0};
    memcpy(&known, params, params->struct_size);
    params = &known;
    if (params->messages_json == NULL) {
        return error_set(err, LS_EINVAL, "ls_chat_params: messages_json is missing");
    }
    if (text->templates == NULL) {
        return error_set(err, LS_ENOTFOUND,
                         "the model has no chat template: neither chat_template.jinja nor "
                         "chat_template in tokenizer_config.json");
    }
    json_doc messages = {0}, tools = {0}, variables = {0};
    text_buffer buffer = {0};
    const chat_template *template;
    time_t now = time(NULL);
    struct tm local;
    localtime_r(&now, &local);
    ls_status st = LS_OK;
    TRY_GOTO(parse_json(&messages, "messages", params->messages_json, err), fail);
    TRY_GOTO(parse_json(&tools, "tools", params->tools_json, err), fail);
    TRY_GOTO(parse_json(&variables, "variables", params->variables_json, err), fail);
    TRY_GOTO(chat_templates_get(text->templates, params->template_name, tools.root != NULL, &template, err), fail);
    chat_render_params render = {.messages = messages.root,
                                 .tools = tools.root,
                                 .variables = variables.root,
                                 .add_generation_prompt = params->add_generation_prompt,
                                 .now = &local};
    TRY_GOTO(text_buffer_append(&buffer, "", 0, err), fail);
    TRY_GOTO(chat_template_render(template, chat_templates_special_tokens(text->templates), &render, &buffer, err),
             fail);
    give(&buffer, out, out_bytes);
    buffer = (text_buffer){0};
fail:
    text_buffer_deinit(&buffer);
    json_doc_deinit(&messages);
    json_doc_deinit(&tools);
    json_doc_deinit(&variables);
    return st;
}
