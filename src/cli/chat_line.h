/*
 * Where the messages of a conversation come from: a terminal with line editing and history (libedit), or else plain lines
 * of standard input. A backslash at the end of a line continues the message on the next.
 */
#ifndef LS_CLI_CHAT_LINE_H
#define LS_CLI_CHAT_LINE_H

#include "base/error.h"

typedef enum chat_input { CHAT_MESSAGE, CHAT_INTERRUPT, CHAT_END } chat_input;

typedef struct chat_line chat_line;

/* history_path is a file that is made with mode 0600, or NULL: none is kept. Only a terminal has a history. */
ls_status chat_line_open(chat_line **out, bool terminal, const char *history_path, ls_error *err);
void chat_line_close(chat_line **line); /* accepts NULL inside */

/* The next message without its last newline, borrowed until the next call; any bytes. CHAT_INTERRUPT: Ctrl-C, *n_bytes is
 * 0 if nothing had been typed. CHAT_END: Ctrl-D, or the end of the input. */
chat_input chat_line_read(chat_line *line, const char **bytes, size_t *n_bytes);

#endif
