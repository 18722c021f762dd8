/*
 * An answer as it streams: told apart into thinking and what is meant for the reader, and kept as the message that goes
 * into the conversation.
 *
 * Thinking is <think>...</think> at the beginning of an answer, or all up to </think> where the template itself wrote the
 * opening tag. Tags may be text, tokens, or special tokens, which have no text: those are put back, because templates look
 * for them. The message holds the answer with its thinking, as users of transformers give it to the template, which
 * leaves it out of later turns.
 */
#ifndef LS_CLI_CHAT_ANSWER_H
#define LS_CLI_CHAT_ANSWER_H

#include "base/error.h"

/* A piece to show. Borrowed for the call. */
typedef void (*chat_show_fn)(void *user, const char *bytes, size_t n_bytes, bool thinking);

typedef enum chat_place { CHAT_BEFORE, CHAT_THINKING, CHAT_ANSWERING } chat_place;

typedef struct chat_answer {
    chat_show_fn show;
    void *user;
    int32_t tag[2]; /* special tokens of <think> and </think>; -1: none, they are text */
    chat_place place;
    char *message; /* [n] all of it so far, NUL-terminated */
    size_t n, room, n_shown;
    bool failed; /* no memory for the rest */
} chat_answer;

/* Finds out how the model writes its tags. Zero-initialises the rest. */
void chat_answer_init(chat_answer *answer, const ls_text *text, chat_show_fn show, void *user);
void chat_answer_deinit(chat_answer *answer);

/* Begins a new answer to this prompt. */
void chat_answer_begin(chat_answer *answer, const char *prompt, size_t n_bytes);
/* As ls_text_fn gives them. What may be the beginning of a tag is shown later. */
void chat_answer_feed(chat_answer *answer, int32_t token, const char *bytes, size_t n_bytes);
/* Shows what is left. A thought that was cut off is closed in the message. */
void chat_answer_end(chat_answer *answer);

#endif
