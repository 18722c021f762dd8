/*
 * Thinking told apart from answers as they stream: tags as text in any pieces, as special tokens, opened by the template,
 * cut off, and where they are no tags. The code is the command line tool's, which no library holds: it is included.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "cli/chat_answer.c"

enum { NO_TOKEN = 7, OPEN_TOKEN = 100, CLOSE_TOKEN = 101 };

/* What was shown, thinking in square brackets. */
typedef struct shown {
    char text[512];
    size_t n;
    bool thinking;
} shown;

static void put(shown *s, const char *bytes, size_t n) {
    assert_true(s->n + n < sizeof s->text);
    memcpy(s->text + s->n, bytes, n);
    s->n += n;
    s->text[s->n] = '\0';
}

static void show(void *user, const char *bytes, size_t n_bytes, bool thinking) {
    shown *s = user;
    assert_true(n_bytes > 0);
    if (thinking != s->thinking) {
        put(s, thinking ? "[" : "]", 1);
        s->thinking = thinking;
    }
    put(s, bytes, n_bytes);
}

typedef struct answer_case {
    const char *prompt, *answer, *shown, *message;
} answer_case;

static void check(const answer_case *c, size_t piece) {
    shown s = {.n = 0};
    chat_answer answer = {.show = show, .user = &s, .tag = {-1, -1}};
    chat_answer_begin(&answer, c->prompt, strlen(c->prompt));
    for (size_t at = 0; at < strlen(c->answer); at += piece) {
        size_t left = strlen(c->answer) - at;
        chat_answer_feed(&answer, NO_TOKEN, c->answer + at, left < piece ? left : piece);
    }
    chat_answer_end(&answer);
    assert_string_equal(s.text, c->shown);
    assert_string_equal(answer.message, c->message);
    chat_answer_deinit(&answer);
}

static void tags_as_text(void **state) {
    (void)state;
    static const answer_case cases[] = {
        {"", "Hi.", "Hi.", "Hi."},
        {"", "", "", ""},
        {"", "<think>so</think>Hi.", "[<think>so</think>]Hi.", "<think>so</think>Hi."},
        {"", "\n <think>\nso\n</think>\n\nHi.", "[\n <think>\nso\n</think>]\n\nHi.",
         "\n <think>\nso\n</think>\n\nHi."}, /* blanks before the tag are part of the thought */
        {"u\n<think>\n", "so</think>Hi.", "[so</think>]Hi.", "so</think>Hi."},
        {"u<think>\n</think>\n", "so</think>Hi.", "so</think>Hi.", "so</think>Hi."},
        {"", "Say <think>so</think>", "Say <think>so</think>", "Say <think>so</think>"},
        {"", "<thin>so", "<thin>so", "<thin>so"},
        {"", "<think>a<b</thin</think>c</think>", "[<think>a<b</thin</think>]c</think>",
         "<think>a<b</thin</think>c</think>"},
        {"", "<think>so <", "[<think>so <", "<think>so <\n</think>\n\n"},
        {"<think>", "so", "[so", "so\n</think>\n\n"},
        {"", "<thi", "<thi", "<thi"},
        {"", "  ", "  ", "  "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t piece = 1; piece <= 20; piece++) {
            check(&cases[i], piece);
        }
    }
}

static void tags_as_special_tokens(void **state) {
    (void)state;
    shown s = {.n = 0};
    chat_answer answer = {.show = show, .user = &s, .tag = {OPEN_TOKEN, CLOSE_TOKEN}};
    chat_answer_begin(&answer, "", 0);
    chat_answer_feed(&answer, OPEN_TOKEN, "", 0);
    chat_answer_feed(&answer, NO_TOKEN, "so", 2);
    assert_string_equal(s.text, "[<think>so");        /* nothing is held back that need not be */
    chat_answer_feed(&answer, CLOSE_TOKEN, " on", 3); /* a piece that was held back comes with the tag */
    chat_answer_feed(&answer, -1, "Hi.", 3);
    chat_answer_end(&answer);
    assert_string_equal(s.text, "[<think>so on</think>]Hi.");
    assert_string_equal(answer.message, "<think>so on</think>Hi.");
    /* The next answer begins anew. */
    s = (shown){.n = 0};
    chat_answer_begin(&answer, "<think>", 7);
    chat_answer_feed(&answer, NO_TOKEN, "a\0b", 3);
    chat_answer_feed(&answer, CLOSE_TOKEN, "", 0);
    chat_answer_feed(&answer, NO_TOKEN, "c", 1);
    chat_answer_end(&answer);
    assert_int_equal(answer.n, 3 + 8 + 1);
    assert_memory_equal(s.text, "[a\0b</think>]c", 15);
    chat_answer_deinit(&answer);
}

static void models_say_how_they_write_tags(void **state) {
    (void)state;
    ls_text *text = NULL;
    ls_error err = {0};
    assert_int_equal(ls_text_open("demo", NULL, &text, &err), LS_OK);
    chat_answer answer;
    chat_answer_init(&answer, text, show, NULL);
    assert_int_equal(answer.tag[0], -1); /* several tokens */
    assert_int_equal(answer.tag[1], -1);
    assert_int_equal(special_tag(text, "<|im_end|>"), 2);
    ls_text_close(&text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tags_as_text),
        cmocka_unit_test(tags_as_special_tokens),
        cmocka_unit_test(models_say_how_they_write_tags),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
