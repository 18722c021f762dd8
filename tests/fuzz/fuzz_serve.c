/*
 * Fuzz target: the body of a request to the server, up to the queue of an engine. The first byte chooses the endpoint. Whatever it
 * holds, it is refused with a text, and a field where one is to blame, or it becomes requests that the engine takes, or an answer.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/serving.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static server fuzzed;
static server_params params;
static const char *const name = "demo";

static void require(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    ls_model_params model = LS_MODEL_PARAMS_INIT;
    ls_engine_params engine = LS_ENGINE_PARAMS_INIT;
    (void)argc, (void)argv;
    model.model = "demo";
    engine.device = "cpu";
    engine.threads = engine.max_num_seqs = 1;
    engine.prefix_cache = true;
    params = (server_params){.name = &name, .n_names = 1, .max_num_seqs = 1, .max_queued = 1000};
    fuzzed.params = &params;
    fuzzed.info = (ls_model_info)LS_MODEL_INFO_INIT;
    require(ls_model_open(&model, &fuzzed.model.model, NULL) == LS_OK &&
                ls_text_open("demo", NULL, &fuzzed.model.text, NULL) == LS_OK &&
                ls_engine_open(fuzzed.model.model, &engine, &fuzzed.model.engine, NULL) == LS_OK &&
                ls_model_get_info(fuzzed.model.model, &fuzzed.info, NULL) == LS_OK,
            "the demo model opens (run it in the root of the repository)");
    fuzzed.longest_token_bytes = 16;
    fuzzed.max_tokens = ls_engine_max_tokens(fuzzed.model.engine);
    return 0;
}

static void submit(const ask *a, const ask_prompt *prompt) {
    ls_request_params p = a->params;
    ls_request *request = NULL;
    ls_error err = {0};
    p.prompt_tokens = prompt->id;
    p.n_prompt_tokens = prompt->n;
    p.max_tokens = a->max_tokens >= 0 && a->max_tokens < 4 ? (int)a->max_tokens : 4;
    p.min_tokens = p.min_tokens < p.max_tokens ? p.min_tokens : p.max_tokens;
    ls_status st = ls_request_submit(fuzzed.model.engine, &p, &request, &err);
    require(st == LS_OK ? request != NULL : request == NULL && err.text[0] != '\0',
            "a refusal by the engine has a text");
    ls_request_free(&request);
}

static void read_ask(const body_kind *kind, const json_t *body) {
    ls_error err = {0};
    ask a;
    ls_status st = kind->ask(&a, &fuzzed, body, &err);
    require(st == LS_OK ? a.n_prompts > 0 && a.n >= 1 : err.status == st && err.text[0] != '\0',
            "prompts, or a failure with a text");
    for (size_t i = 0; st == LS_OK && i < a.n_prompts && i < 4; i++) {
        submit(&a, &a.prompt[i]);
    }
    ask_deinit(&a);
}

static void make_answer(const body_kind *kind, const json_t *body) {
    ls_error err = {0};
    fields f = {.object = body};
    json_t *out = NULL;
    ls_status st = kind->make(&fuzzed, &f, &out, &err);
    require(st == LS_OK ? out != NULL : err.status == st && err.text[0] != '\0', "an answer, or a failure with a text");
    json_decref(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ls_error err = {0};
    json_doc doc = {0};
    if (size == 0 || size > 1 << 16 ||
        json_doc_parse(&doc, "request", (const char *)data + 1, size - 1, &err) != LS_OK) {
        require(size == 0 || size > 1 << 16 || err.text[0] != '\0', "a failure has a text");
        return 0;
    }
    if (json_is_object(doc.root)) {
        static const body_kind *const kinds[] = {&body_of_chat, &body_of_completion, &body_of_tokenize,
                                                 &body_of_detokenize};
        const body_kind *kind = kinds[data[0] % 4];
        if (kind->ask != NULL) {
            read_ask(kind, doc.root);
        } else {
            make_answer(kind, doc.root);
        }
    }
    json_doc_deinit(&doc);
    return 0;
}
