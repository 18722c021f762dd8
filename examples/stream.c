/*
 * Several prompts at once: the engine steps in a thread of its own, and this one waits for whichever request has news.
 *
 *     cc examples/stream.c $(pkg-config --cflags --libs lockstep) -o stream
 *     ./stream demo "Once upon a time" "The cat" "A dragon"
 */
#include <lockstep.h>
#include <stdio.h>
#include <string.h>

enum { MAX_PROMPTS = 16 };

/* Prints what is new of each request; how many of them have ended. */
static size_t print_news(ls_request *const *news, size_t n, ls_request *const *request, size_t *shown) {
    size_t n_ended = 0;
    for (size_t i = 0; i < n; i++) {
        ls_result result = LS_RESULT_INIT;
        size_t number = 0;
        while (request[number] != news[i]) {
            number++;
        }
        if (ls_request_get_result(news[i], &result, NULL) != LS_OK) {
            continue;
        }
        if (result.text_bytes > shown[number]) {
            printf("%zu: %s\n", number + 1, result.text + shown[number]);
            shown[number] = result.text_bytes;
        }
        if (result.finish != LS_FINISH_NONE) {
            printf("%zu: (%zu tokens, %s%s%s)\n", number + 1, result.n_tokens - result.n_prompt_tokens,
                   ls_finish_name(result.finish), result.error[0] != '\0' ? ": " : "", result.error);
            n_ended++;
        }
    }
    fflush(stdout);
    return n_ended;
}

int main(int argc, char **argv) {
    size_t n_prompts = argc > 2 ? (size_t)argc - 2 : 0;
    if (n_prompts == 0 || n_prompts > MAX_PROMPTS) {
        fprintf(stderr, "usage: %s MODEL_FOLDER PROMPT... (at most %d)\n", argv[0], MAX_PROMPTS);
        return 2;
    }
    ls_error error = {0};
    ls_model *model = NULL;
    ls_engine *engine = NULL;
    ls_request *request[MAX_PROMPTS] = {NULL};
    size_t shown[MAX_PROMPTS] = {0};

    ls_model_params model_params = LS_MODEL_PARAMS_INIT;
    model_params.model = argv[1];
    ls_engine_params engine_params = LS_ENGINE_PARAMS_INIT;
    ls_status st = ls_model_open(&model_params, &model, &error);
    if (st == LS_OK) {
        st = ls_engine_open(model, &engine_params, &engine, &error);
    }
    if (st == LS_OK) {
        st = ls_engine_start(engine, &error);
    }
    for (size_t i = 0; i < n_prompts && st == LS_OK; i++) {
        ls_request_params params = LS_REQUEST_PARAMS_INIT;
        params.prompt = argv[2 + i];
        params.prompt_bytes = strlen(argv[2 + i]);
        params.max_tokens = 32;
        params.temperature = 0;
        st = ls_request_submit(engine, &params, &request[i], &error);
    }
    for (size_t n_ended = 0; n_ended < n_prompts && st == LS_OK;) {
        ls_request *news[MAX_PROMPTS];
        size_t n = 0;
        st = ls_engine_poll(engine, -1, news, MAX_PROMPTS, &n, &error);
        n_ended += st == LS_OK ? print_news(news, n, request, shown) : 0;
    }
    if (st < 0) {
        fprintf(stderr, "%s\n", error.text);
    }
    for (size_t i = 0; i < n_prompts; i++) {
        ls_request_free(&request[i]);
    }
    ls_engine_close(&engine); /* ends its thread as well */
    ls_model_close(&model);
    return st < 0;
}
