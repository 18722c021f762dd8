/*
 * lockstep tokenize: the tokens of a text, one a line: id, where it lies in the text, and that piece of it. With --json one
 * object for each text: {"text", "tokens", "pieces", "spans"}.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "cli/cli.h"

static ls_status print_tokens(const char *text, const ls_token *token, size_t n) {
    for (size_t i = 0; i < n; i++) {
        json_t *piece = json_stringn(text + token[i].begin, token[i].end - token[i].begin);
        char *quoted = piece != NULL ? json_dumps(piece, JSON_ENCODE_ANY) : NULL;
        printf("%8" PRId32 "  %6zu..%-6zu  %s\n", token[i].id, token[i].begin, token[i].end,
               quoted != NULL ? quoted : "(not UTF-8)");
        ls_free(quoted);
        json_decref(piece);
    }
    return LS_OK;
}

static ls_status print_tokens_json(const char *text, const ls_token *token, size_t n, ls_error *err) {
    json_t *ids = json_array(), *pieces = json_array(), *spans = json_array();
    for (size_t i = 0; i < n; i++) {
        json_t *piece = json_stringn(text + token[i].begin, token[i].end - token[i].begin);
        json_array_append_new(ids, json_integer(token[i].id));
        json_array_append_new(pieces, piece != NULL ? piece : json_null());
        json_array_append_new(spans, json_pack("[I, I]", (json_int_t)token[i].begin, (json_int_t)token[i].end));
    }
    json_t *whole = json_string(text);
    json_t *object = json_pack("{s:o, s:o, s:o, s:o}", "text", whole != NULL ? whole : json_null(), "tokens", ids,
                               "pieces", pieces, "spans", spans);
    if (object == NULL) {
        return error_set(err, LS_ENOMEM, "cannot write JSON: out of memory");
    }
    json_dumpf(object, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(object);
    return LS_OK;
}

static ls_status tokenize_all(ls_options *options, ls_text **text, int argc, char **argv, ls_error *err) {
    TRY(options_init(options, err));
    TRY(args_parse(options, COMMAND_TOKENIZE, argc, argv, err));
    const option_value *v = options->value;
    if (!v[OPT_MODEL].set || options->n_list[OPT_PROMPT] == 0) {
        return error_set(err, LS_EINVAL, "tokenize needs a model and a text: lockstep tokenize -m demo -p 'Once upon'");
    }
    char folder[4096], cache[4096];
    TRY(cli_find_text(options, folder, sizeof folder, err));
    TRY(ls_text_open(folder, options_cache_folder(options, cache, sizeof cache), text, err));
    unsigned flags = (v[OPT_NO_PARSE_SPECIAL].integer != 0 ? 0 : LS_ENCODE_PARSE_SPECIAL) |
                     (v[OPT_NO_ADD_SPECIAL].integer != 0 ? 0 : LS_ENCODE_ADD_SPECIAL);
    for (size_t i = 0; i < options->n_list[OPT_PROMPT]; i++) {
        const char *prompt = options->list[OPT_PROMPT][i];
        ls_token *token;
        size_t n;
        TRY(ls_text_encode(*text, prompt, strlen(prompt), flags, &token, &n, err));
        ls_status st =
            v[OPT_JSON].integer != 0 ? print_tokens_json(prompt, token, n, err) : print_tokens(prompt, token, n);
        ls_free(token);
        TRY(st);
    }
    return LS_OK;
}

int cmd_tokenize(int argc, char **argv) {
    ls_options options = {0};
    ls_text *text = NULL;
    ls_error error = {0};
    ls_status st = tokenize_all(&options, &text, argc, argv, &error);
    int code = st < 0 ? cli_fail(&error, options.value[OPT_VERBOSE].integer != 0) : EXIT_GOOD;
    ls_text_close(&text);
    options_deinit(&options);
    return code;
}
