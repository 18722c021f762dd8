/* See chat_answer.h. */
#include "cli/chat_answer.h"

#include <stdlib.h>
#include <string.h>

enum { OPEN, CLOSE };

static const char *const tags[] = {"<think>", "</think>"};

/* The id of a tag that is one special token, else -1. */
static int32_t special_tag(const ls_text *text, const char *tag) {
    ls_token *token = NULL;
    char *shown = NULL;
    size_t n = 0, n_shown = 0;
    int32_t id = -1;
    if (ls_text_encode(text, tag, strlen(tag), LS_ENCODE_PARSE_SPECIAL, &token, &n, NULL) == LS_OK && n == 1 &&
        ls_text_decode(text, &token[0].id, 1, true, &shown, &n_shown, NULL) == LS_OK && n_shown == 0) {
        id = token[0].id;
    }
    ls_free(token);
    ls_free(shown);
    return id;
}

void chat_answer_init(chat_answer *answer, const ls_text *text, chat_show_fn show, void *user) {
    *answer = (chat_answer){
        .show = show, .user = user, .tag = {special_tag(text, tags[OPEN]), special_tag(text, tags[CLOSE])}};
}

void chat_answer_deinit(chat_answer *answer) {
    free(answer->message);
    *answer = (chat_answer){0};
}

static void append(chat_answer *answer, const char *bytes, size_t n) {
    if (answer->n + n + 1 > answer->room) {
        size_t room = (answer->n + n + 1) * 2;
        char *grown = realloc(answer->message, room);
        if (grown == NULL) {
            answer->failed = true;
            return;
        }
        answer->message = grown;
        answer->room = room;
    }
    memcpy(answer->message + answer->n, bytes, n);
    answer->n += n;
    answer->message[answer->n] = '\0';
}

static bool is_blank(char c) {
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

void chat_answer_begin(chat_answer *answer, const char *prompt, size_t n_bytes) {
    answer->n = answer->n_shown = 0;
    answer->place = CHAT_BEFORE;
    answer->failed = false;
    append(answer, "", 0);
    while (n_bytes > 0 && is_blank(prompt[n_bytes - 1])) {
        n_bytes--;
    }
    size_t n = strlen(tags[OPEN]);
    if (n_bytes >= n && memcmp(prompt + n_bytes - n, tags[OPEN], n) == 0) {
        answer->place = CHAT_THINKING;
    }
}

static void show_to(chat_answer *answer, size_t end) {
    if (end > answer->n_shown) {
        answer->show(answer->user, answer->message + answer->n_shown, end - answer->n_shown,
                     answer->place == CHAT_THINKING);
        answer->n_shown = end;
    }
}

/* Bytes at the end of what was not shown yet that may become the tag. */
static size_t begun_tag(const chat_answer *answer, const char *tag) {
    size_t n = answer->n - answer->n_shown;
    size_t most = strlen(tag) - 1;
    for (size_t held = n < most ? n : most; held > 0; held--) {
        if (memcmp(answer->message + answer->n - held, tag, held) == 0) {
            return held;
        }
    }
    return 0;
}

/* Blanks, then perhaps the opening tag: thinking starts there, or never. */
static void look_for_open(chat_answer *answer) {
    size_t at = answer->n_shown;
    while (at < answer->n && is_blank(answer->message[at])) {
        at++;
    }
    size_t n = strlen(tags[OPEN]), left = answer->n - at;
    if (memcmp(answer->message + at, tags[OPEN], left < n ? left : n) != 0) {
        answer->place = CHAT_ANSWERING;
    } else if (left >= n) {
        answer->place = CHAT_THINKING;
        show_to(answer, at + n);
    }
}

static void show_more(chat_answer *answer) {
    if (answer->place == CHAT_BEFORE) {
        look_for_open(answer);
    }
    if (answer->place == CHAT_THINKING) {
        const char *close =
            memmem(answer->message + answer->n_shown, answer->n - answer->n_shown, tags[CLOSE], strlen(tags[CLOSE]));
        if (close == NULL) {
            show_to(answer, answer->n - begun_tag(answer, tags[CLOSE]));
            return;
        }
        show_to(answer, (size_t)(close - answer->message) + strlen(tags[CLOSE]));
        answer->place = CHAT_ANSWERING;
    }
    if (answer->place == CHAT_ANSWERING) {
        show_to(answer, answer->n);
    }
}

void chat_answer_feed(chat_answer *answer, int32_t token, const char *bytes, size_t n_bytes) {
    if (answer->failed) {
        return;
    }
    append(answer, bytes, n_bytes);
    for (int i = OPEN; i <= CLOSE; i++) {
        if (token >= 0 && token == answer->tag[i]) {
            append(answer, tags[i], strlen(tags[i]));
        }
    }
    show_more(answer);
}

void chat_answer_end(chat_answer *answer) {
    bool cut = answer->place == CHAT_THINKING;
    show_to(answer, answer->n);
    if (cut) {
        append(answer, "\n</think>\n\n", strlen("\n</think>\n\n"));
        answer->n_shown = answer->n;
    }
}
