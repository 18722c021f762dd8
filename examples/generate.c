/*
 * The smallest program that uses lockstep: continues one prompt on two ranks and prints as it goes.
 *
 *     cc examples/generate.c -Iinclude build/liblockstep.a -ljansson -lpcre2-8 -lutf8proc -lm -pthread -o generate
 *     ./generate demo "Once upon a time"
 */
#include <lockstep.h>
#include <stdio.h>
#include <string.h>

static void print_text(void *user, ls_request *request, int32_t token, const char *text, size_t text_bytes) {
    (void)user, (void)request, (void)token;
    fwrite(text, 1, text_bytes, stdout);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL_FOLDER PROMPT\n", argv[0]);
        return 2;
    }
    ls_error error = {0};
    ls_model *model = NULL;
    ls_engine *engine = NULL;
    ls_request *request = NULL;

    ls_model_params model_params = LS_MODEL_PARAMS_INIT;
    model_params.model = argv[1];
    ls_engine_params engine_params = LS_ENGINE_PARAMS_INIT;
    engine_params.tensor_parallel_size = 2;
    ls_request_params params = LS_REQUEST_PARAMS_INIT;
    params.prompt = argv[2];
    params.prompt_bytes = strlen(argv[2]);
    params.max_tokens = 64;
    params.temperature = 0;
    params.on_text = print_text;

    ls_status st = ls_model_open(&model_params, &model, &error);
    if (st == LS_OK) {
        st = ls_engine_open(model, &engine_params, &engine, &error);
    }
    if (st == LS_OK) {
        st = ls_request_submit(engine, &params, &request, &error);
    }
    while (st == LS_OK) {
        st = ls_engine_step(engine, &error); /* LS_IDLE, a positive status, when all requests are done */
    }
    ls_result result = LS_RESULT_INIT;
    if (st == LS_IDLE && (st = ls_request_get_result(request, &result, &error)) == LS_OK) {
        printf("\n(%zu tokens, %s)\n", result.n_tokens - result.n_prompt_tokens, ls_finish_name(result.finish));
    }
    if (st < 0) {
        fprintf(stderr, "%s\n", error.text);
    }
    ls_request_free(&request);
    ls_engine_close(&engine);
    ls_model_close(&model);
    return st < 0;
}
