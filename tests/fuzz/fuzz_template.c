/*
 * Fuzz target: the source of a chat template, rendered with fixed data where it can be parsed. Whatever it says, it ends
 * within its limits, fails with a text or gives valid UTF-8, and does the same when rendered again.
 */
#include "text/chat_template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char DATA[] =
    "[{\"role\":\"system\",\"content\":\"Be brief. \"},"
    "{\"role\":\"user\",\"content\":\"\\u00dcber \\u03a3\\ud83d\\ude00?\\n\"},"
    "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"abcdefghi\",\"type\":\"function\",\"function\":"
    "{\"name\":\"f\",\"arguments\":{\"x\":[1,2.5,{\"y\":null}],\"z\":true}}}]},"
    "{\"role\":\"tool\",\"content\":\"<think>42</think> ok\",\"tool_call_id\":\"abcdefghi\"}]";

static void require(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const chat_template_limits limits = {
        .source_bytes = 1 << 16, .output_bytes = 1 << 18, .memory_bytes = 1 << 24, .steps = 100000};
    ls_error err = {0};
    chat_template *t = NULL;
    ls_status st = chat_template_parse(&t, "fuzz.jinja", (const char *)data, size, &limits, &err);
    require(st == LS_OK ? t != NULL : t == NULL && err.status == st && err.text[0] != '\0', "a failure has a text");
    if (st < 0) {
        return 0;
    }
    json_t *messages = json_loads(DATA, 0, NULL), *tools = json_loads("[{\"type\":\"function\"}]", 0, NULL);
    json_t *tokens = json_pack("{s:s, s:s}", "bos_token", "<s>", "eos_token", "</s>");
    struct tm now = {.tm_year = 124, .tm_mon = 6, .tm_mday = 26, .tm_wday = 5, .tm_yday = 207};
    chat_span *spans = NULL;
    size_t n_spans = 0;
    chat_render_params params = {.messages = messages,
                                 .tools = tools,
                                 .add_generation_prompt = true,
                                 .now = &now,
                                 .spans = &spans,
                                 .n_spans = &n_spans};
    text_buffer first = {0}, second = {0};
    ls_status st_first = chat_template_render(t, tokens, &params, &first, &err);
    require(st_first == LS_OK ? utf8_valid_bytes(first.data, first.n) == first.n : first.n == 0, "text or nothing");
    require(st_first == LS_OK || err.status == st_first, "a failure has a text");
    for (size_t i = 0; i < n_spans; i++) {
        require(spans[i].from <= spans[i].to, "spans run forwards");
    }
    free(spans);
    params.spans = NULL;
    ls_status st_second = chat_template_render(t, tokens, &params, &second, &err);
    require(st_first == st_second || st_first == LS_ETOOLONG || st_second == LS_ETOOLONG, "the same again");
    require(first.n == second.n && (first.n == 0 || memcmp(first.data, second.data, first.n) == 0), "the same again");
    text_buffer_deinit(&first);
    text_buffer_deinit(&second);
    json_decref(messages);
    json_decref(tools);
    json_decref(tokens);
    chat_template_close(&t);
    return 0;
}
