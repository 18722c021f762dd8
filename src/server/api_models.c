/* GET /v1/models and /v1/models/NAME. */
#include <string.h>

#include "server/serving.h"

static json_t *describe(const server *s, const char *name) {
    json_t *model = json_pack("{s:s, s:s, s:I, s:s, s:s}", "id", name, "object", "model", "created",
                              (json_int_t)s->created_s, "owned_by", "lockstep", "root", s->params->name[0]);
    if (model != NULL && s->state != STATE_STARTING) {
        json_object_set_new(model, "max_model_len", json_integer(s->max_tokens));
    }
    return model;
}

void api_models(call *c, const char *name) {
    const server *s = c->server;
    json_t *list = json_array();
    for (size_t i = 0; i < s->params->n_names; i++) {
        if (name != NULL && strcmp(name, s->params->name[i]) == 0) {
            json_decref(list);
            call_reply_json(c, 200, describe(s, name));
            return;
        }
        json_array_append_new(list, describe(s, s->params->name[i]));
    }
    if (name == NULL) {
        call_reply_json(c, 200, json_pack("{s:s, s:o}", "object", "list", "data", list));
        return;
    }
    json_decref(list);
    call_fail(c, LS_ENOTFOUND, "there is no such model here; /v1/models lists what there is", "model");
}
