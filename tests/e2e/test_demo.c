/*
 * The demo model against transformers (tests/golden/demo_greedy.json): 50 prompts, 200 greedy tokens each, f32, through
 * the public API as one queue over 16 seats. Tokens, prompt ids and text; streamed pieces add up to the text. Under a
 * sanitizer a few prompts and tokens.
 */
#include <jansson.h>

#include "e2e.h"

enum { PROMPTS = 50, NEW_TOKENS = 200 };

typedef struct demo_golden {
    json_t *root;
    size_t n; /* prompts used */
    int n_new;
    const char *text[PROMPTS];
    int32_t *id[PROMPTS], *prompt_id[PROMPTS];
    int n_prompt[PROMPTS];
} demo_golden;

static int32_t *read_ids(const json_t *array, int *n) {
    *n = (int)json_array_size(array);
    int32_t *id = malloc((size_t)*n * sizeof *id);
    assert_non_null(id);
    for (int i = 0; i < *n; i++) {
        id[i] = (int32_t)json_integer_value(json_array_get(array, (size_t)i));
    }
    return id;
}

static int open_golden(void **state) {
    demo_golden *g = calloc(1, sizeof *g);
    assert_non_null(g);
    json_error_t why;
    g->root = json_load_file("tests/golden/demo_greedy.json", JSON_ALLOW_NUL, &why);
    assert_non_null(g->root);
    const json_t *prompts = json_object_get(g->root, "prompts");
    assert_int_equal(json_array_size(prompts), PROMPTS);
    g->n = sanitized() ? 6 : PROMPTS;
    g->n_new = sanitized() ? 30 : NEW_TOKENS;
    for (size_t i = 0; i < PROMPTS; i++) {
        const json_t *prompt = json_array_get(prompts, i);
        int n_new;
        g->text[i] = json_string_value(json_object_get(prompt, "text"));
        g->prompt_id[i] = read_ids(json_object_get(prompt, "prompt_ids"), &g->n_prompt[i]);
        g->id[i] = read_ids(json_object_get(prompt, "ids"), &n_new);
        assert_non_null(g->text[i]);
        assert_int_equal(n_new, NEW_TOKENS);
    }
    *state = g;
    return 0;
}

static int close_golden(void **state) {
    demo_golden *g = *state;
    for (size_t i = 0; i < PROMPTS; i++) {
        free(g->prompt_id[i]);
        free(g->id[i]);
    }
    json_decref(g->root);
    free(g);
    return 0;
}

static void compare(const demo_golden *g, size_t i, const job *j) {
    assert_int_equal(j->finish, LS_FINISH_LENGTH);
    assert_int_equal(j->n_prompt, g->n_prompt[i]);
    assert_memory_equal(j->prompt_token, g->prompt_id[i], (size_t)j->n_prompt * sizeof *j->prompt_token);
    assert_int_equal(j->n_token, g->n_new);
    for (int t = 0; t < j->n_token; t++) {
        if (j->token[t] != g->id[i][t]) {
            fail_msg("prompt %zu, token %d: %d, transformers' is %d (%s)", i, t, j->token[t], g->id[i][t], g->text[i]);
        }
    }
    assert_true(j->n_pieces == j->n_answer);
    assert_memory_equal(j->pieces, j->answer, j->n_answer);
}

static void greedy_text_is_transformers(void **state) {
    const demo_golden *g = *state;
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.dtype = LS_F32;
    params.max_model_len_tokens = 512;
    ls_engine *engine = engine_open(model, &params);
    job jobs[PROMPTS] = {{0}};
    for (size_t i = 0; i < g->n; i++) {
        jobs[i] = (job){.text = g->text[i], .max_tokens = g->n_new};
    }
    jobs_run(engine, jobs, g->n);
    size_t n_text = 0;
    for (size_t i = 0; i < g->n; i++) {
        compare(g, i, &jobs[i]);
        n_text += jobs[i].n_answer;
    }
    assert_true(n_text > g->n * (size_t)g->n_new); /* words, not only ids */
    jobs_clear(jobs, g->n);
    ls_engine_close(&engine);
    ls_model_close(&model);
}

/* Without ignore_eos the same text ends at the first end-of-text token, which is the last token and gives no text. */
static void stops_at_end_of_text(void **state) {
    const demo_golden *g = *state;
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.dtype = LS_F32;
    ls_engine *engine = engine_open(model, &params);
    int n_stopped = 0;
    for (size_t i = 0; i < PROMPTS && n_stopped < (sanitized() ? 1 : 5); i++) {
        int end = 0; /* generation_config.json: ids 0 and 2 end the text */
        while (end < NEW_TOKENS && g->id[i][end] != 0 && g->id[i][end] != 2) {
            end++;
        }
        if (end == NEW_TOKENS || end < 10) {
            continue;
        }
        job j = {.text = g->text[i], .max_tokens = NEW_TOKENS, .stop_at_eos = true};
        jobs_run(engine, &j, 1);
        assert_int_equal(j.finish, LS_FINISH_STOP);
        assert_int_equal(j.n_token, end + 1);
        assert_memory_equal(j.token, g->id[i], (size_t)j.n_token * sizeof *j.token);
        assert_null(strstr(j.answer, "<|"));
        assert_string_equal(j.pieces, j.answer);
        jobs_clear(&j, 1);
        n_stopped++;
    }
    assert_true(n_stopped > 0);
    ls_engine_close(&engine);
    ls_model_close(&model);
}

/*
 * A model whose tokens are single bytes from 0xbd on: beginnings of characters and stray middles of them. Whatever it
 * draws is broken text, often at the end; streamed or whole, it is the same.
 */
static void broken_characters_stream_like_the_whole(void **state) {
    (void)state;
    enum { N = 60, FIRST_BYTE = 0xbd };
    static const int32_t prompt[] = {3, 4}; /* bytes c0 and c1, which begin nothing */
    golden_list list;
    golden_open(&list);
    const golden_case *c = &list.item[2];
    assert_string_equal(c->name, "ckpt_f32");
    tokenizer_write(c->folder, FIRST_BYTE, c->n_vocab);
    ls_model *model = golden_model(c);
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_engine *engine = engine_open(model, &params);
    job jobs[N] = {{0}};
    int n_held = 0;
    for (size_t i = 0; i < N; i++) {
        jobs[i] = (job){.id = prompt, .n_id = 2, .max_tokens = 1 + (int)i % 5, .temperature = 5, .seed = i};
    }
    jobs_run(engine, jobs, N);
    for (size_t i = 0; i < N; i++) {
        const job *j = &jobs[i];
        int last = FIRST_BYTE + j->token[j->n_token - 1];
        assert_true(j->n_answer >= 3 && memcmp(j->answer + j->n_answer - 3, "\xef\xbf\xbd", 3) == 0);
        assert_int_equal(j->n_pieces, j->n_answer);
        assert_string_equal(j->pieces, j->answer);
        n_held += last >= 0xc2 && last <= 0xf4; /* begins a character that never comes */
    }
    assert_true(n_held > N / 2);
    jobs_clear(jobs, N);
    ls_engine_close(&engine);
    ls_model_close(&model);
    golden_close(&list);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_text_is_transformers),
        cmocka_unit_test(stops_at_end_of_text),
        cmocka_unit_test(broken_characters_stream_like_the_whole),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
