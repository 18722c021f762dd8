/*
 * lockstep template: what a model's chat template makes of messages. With --json an object {"text", "tokens"}.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/cli.h"

static ls_status print_chat(const ls_text *text, const char *chat, size_t n_bytes, bool json, ls_error *err) {
    if (!json) {
        fwrite(chat, 1, n_bytes, stdout);
        return LS_OK;
    }
    ls_token *token;
    size_t n;
    /* The template has written the special tokens: nothing is to be added. */
    TRY(ls_text_encode(text, chat, n_bytes, LS_ENCODE_PARSE_SPECIAL, &token, &n, err));
    json_t *ids = json_array();
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(ids, json_integer(token[i].id));
    }
    ls_free(token);
    json_t *object = json_pack("{s:s%, s:o}", "text", chat, n_bytes, "tokens", ids);
    if (object == NULL) {
        return error_set(err, LS_EINTERNAL, "cannot write JSON");
    }
    json_dumpf(object, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(object);
    return LS_OK;
}

typedef struct template_run {
    ls_options options;
    ls_text *text;
    char *messages, *tools, *variables, *chat;
} template_run;

static ls_status template_all(template_run *run, int argc, char **argv, ls_error *err) {
    TRY(options_init(&run->options, err));
    TRY(args_parse(&run->options, COMMAND_TEMPLATE, argc, argv, err));
    const option_value *v = run->options.value;
    if (!v[OPT_MODEL].set || !v[OPT_MESSAGES].set) {
        return error_set(err, LS_EINVAL,
                         "template needs a model and messages: lockstep template -m demo --messages "
                         "'[{\"role\": \"user\", \"content\": \"Hi\"}]'");
    }
    char folder[4096], cache[4096];
    TRY(cli_find_text(&run->options, folder, sizeof folder, err));
    TRY(cli_read_argument(&v[OPT_MESSAGES], &run->messages, err));
    TRY(cli_read_argument(&v[OPT_TOOLS], &run->tools, err));
    TRY(cli_read_argument(&v[OPT_CHAT_TEMPLATE_KWARGS], &run->variables, err));
    TRY(ls_text_open(folder, options_cache_folder(&run->options, cache, sizeof cache), &run->text, err));
    ls_chat_params params = LS_CHAT_PARAMS_INIT;
    params.messages_json = run->messages;
    params.tools_json = run->tools;
    params.variables_json = run->variables;
    params.template_name = v[OPT_CHAT_TEMPLATE_NAME].text;
    params.add_generation_prompt = v[OPT_NO_GENERATION_PROMPT].integer == 0;
    size_t n_bytes;
    TRY(ls_text_render_chat(run->text, &params, &run->chat, &n_bytes, err));
    return print_chat(run->text, run->chat, n_bytes, v[OPT_JSON].integer != 0, err);
}

int cmd_template(int argc, char **argv) {
    template_run run = {0};
    ls_error error = {0};
    ls_status st = template_all(&run, argc, argv, &error);
    int code = st < 0 ? cli_fail(&error, run.options.value[OPT_VERBOSE].integer != 0) : EXIT_GOOD;
    ls_free(run.chat);
    free(run.messages);
    free(run.tools);
    free(run.variables);
    ls_text_close(&run.text);
    options_deinit(&run.options);
    return code;
}
