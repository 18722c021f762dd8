/* POST /v1/completions: prompts as text or token ids, one or many. */
#include "server/serving.h"

static ls_status add_prompts(ask *a, const server *s, const json_t *array, ls_error *err) {
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *item = json_array_get(array, i);
        if (json_is_string(item)) {
            TRY(ask_add_text(a, s, json_string_value(item), json_string_length(item), a->add_special, err));
        } else if (json_is_array(item)) {
            int32_t *id;
            size_t n;
            TRY(fields_read_ids(&a->body, "prompt", item, &id, &n, err));
            TRY(ask_add_ids(a, s, id, n, err));
        } else {
            return fields_error(&a->body, "prompt", LS_EINVAL, err,
                                "expected a string, an array of strings, of token ids, or of arrays of token ids");
        }
    }
    return a->n_prompts > 0 ? LS_OK : fields_error(&a->body, "prompt", LS_EINVAL, err, "the array is empty");
}

static ls_status read_prompt(ask *a, const server *s, ls_error *err) {
    const json_t *prompt = fields_find(&a->body, "prompt");
    if (json_is_string(prompt)) {
        return ask_add_text(a, s, json_string_value(prompt), json_string_length(prompt), a->add_special, err);
    }
    if (json_is_array(prompt) && json_is_integer(json_array_get(prompt, 0))) {
        int32_t *id;
        size_t n;
        TRY(fields_read_ids(&a->body, "prompt", prompt, &id, &n, err));
        return ask_add_ids(a, s, id, n, err);
    }
    if (json_is_array(prompt)) {
        return add_prompts(a, s, prompt, err);
    }
    return fields_error(&a->body, "prompt", LS_EINVAL, err, "%s",
                        prompt == NULL ? "missing" : "expected a string or an array");
}

static ls_status completion_ask(ask *a, const server *s, const json_t *body, ls_error *err) {
    TRY(ask_read(a, s, body, false, err));
    return read_prompt(a, s, err);
}

const body_kind body_of_completion = {.ask = completion_ask};
