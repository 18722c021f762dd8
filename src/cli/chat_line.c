/* See chat_line.h. */
#include "cli/chat_line.h"

#include <fcntl.h>
#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

struct chat_line {
    EditLine *edit; /* NULL: plain lines */
    History *history;
    char *history_path; /* NULL: not kept */
    bool interrupted, continues;
    char *plain; /* getline's */
    size_t plain_room;
    char *message; /* lines so far */
    size_t n, room;
};

/* ---- Terminal ---- */

static char *prompt(EditLine *edit) {
    chat_line *line;
    el_get(edit, EL_CLIENTDATA, &line);
    return line->continues ? ". " : "> ";
}

/* Ctrl-C comes as a character while a line is edited. */
static unsigned char interrupt(EditLine *edit, int key) {
    (void)key;
    chat_line *line;
    el_get(edit, EL_CLIENTDATA, &line);
    const LineInfo *typed = el_line(edit);
    line->interrupted = true;
    line->n = line->continues || typed->lastchar != typed->buffer ? 1 : 0;
    return CC_EOF;
}

static void open_history(chat_line *line, const char *path) {
    HistEvent event;
    line->history = history_init();
    if (line->history == NULL) {
        return; /* arrows do nothing then */
    }
    history(line->history, &event, H_SETSIZE, 1000);
    history(line->history, &event, H_SETUNIQUE, 1);
    el_set(line->edit, EL_HIST, history, line->history);
    int file = path != NULL ? open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (file >= 0) {
        close(file);
        line->history_path = strdup(path);
        history(line->history, &event, H_LOAD, path);
    }
}

static void remember(chat_line *line, const char *text) {
    HistEvent event;
    if (line->history != NULL && text[0] != '\0') {
        history(line->history, &event, H_ENTER, text);
        if (line->history_path != NULL) {
            history(line->history, &event, H_SAVE, line->history_path);
        }
    }
}

static ls_status open_terminal(chat_line *line, const char *history_path, ls_error *err) {
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8") != 0) {
        setlocale(LC_CTYPE, "C.UTF-8"); /* what we write is UTF-8 anyway */
    }
    line->edit = el_init("lockstep", stdin, stdout, stderr);
    if (line->edit == NULL) {
        return error_set(err, LS_EIO, "cannot edit lines on this terminal");
    }
    el_set(line->edit, EL_CLIENTDATA, line);
    el_set(line->edit, EL_PROMPT, prompt);
    el_set(line->edit, EL_EDITOR, "emacs");
    el_source(line->edit, NULL);                                                   /* ~/.editrc; what follows wins */
    el_set(line->edit, EL_SETTY, "-d", "-isig", NULL);                             /* only while a line is edited */
    el_wset(line->edit, EL_ADDFN, L"ls-interrupt", L"Leave this line", interrupt); /* el_set would leak copies */
    el_set(line->edit, EL_BIND, "^C", "ls-interrupt", NULL);
    open_history(line, history_path);
    return LS_OK;
}

/* ---- Lines ---- */

ls_status chat_line_open(chat_line **out, bool terminal, const char *history_path, ls_error *err) {
    chat_line *line = calloc(1, sizeof *line);
    if (line == NULL) {
        return error_set(err, LS_ENOMEM, "chat: out of memory");
    }
    ls_status st = terminal ? open_terminal(line, history_path, err) : LS_OK;
    if (st != LS_OK) {
        chat_line_close(&line);
        return st;
    }
    *out = line;
    return LS_OK;
}

void chat_line_close(chat_line **out) {
    chat_line *line = *out;
    if (line == NULL) {
        return;
    }
    if (line->history != NULL) {
        history_end(line->history);
    }
    if (line->edit != NULL) {
        el_end(line->edit);
    }
    free(line->history_path);
    free(line->plain);
    free(line->message);
    free(line);
    *out = NULL;
}

/* One line without its newline, or NULL at the end and after Ctrl-C. */
static const char *next_line(chat_line *line, size_t *n) {
    const char *text;
    if (line->edit != NULL) {
        int count = 0;
        line->interrupted = false;
        el_set(line->edit, EL_PREP_TERM, 1); /* before the prompt is seen: libedit itself does it after */
        text = el_gets(line->edit, &count);
        *n = count > 0 ? (size_t)count : 0;
    } else {
        ssize_t count = getline(&line->plain, &line->plain_room, stdin);
        text = count > 0 ? line->plain : NULL;
        *n = count > 0 ? (size_t)count : 0;
    }
    if (text != NULL && *n > 0 && text[*n - 1] == '\n') {
        (*n)--;
    }
    return *n > 0 || text != NULL ? text : NULL;
}

static bool append(chat_line *line, const char *bytes, size_t n) {
    if (line->n + n + 1 > line->room) {
        size_t room = (line->n + n + 1) * 2;
        char *grown = realloc(line->message, room);
        if (grown == NULL) {
            return false;
        }
        line->message = grown;
        line->room = room;
    }
    memcpy(line->message + line->n, bytes, n);
    line->n += n;
    line->message[line->n] = '\0';
    return true;
}

chat_input chat_line_read(chat_line *line, const char **bytes, size_t *n_bytes) {
    line->n = 0;
    line->continues = false;
    for (;;) {
        size_t n;
        const char *text = next_line(line, &n);
        if (text == NULL && line->interrupted) {
            *n_bytes = line->n;
            return CHAT_INTERRUPT;
        }
        if (text == NULL && !line->continues) {
            return CHAT_END;
        }
        bool more = text != NULL && n > 0 && text[n - 1] == '\\';
        if (text != NULL && (!append(line, text, n - more) || (more && !append(line, "\n", 1)))) {
            return CHAT_END; /* out of memory: there is no way to go on */
        }
        if (line->edit != NULL && text != NULL) {
            char *entry = strndup(text, n);
            if (entry != NULL) {
                remember(line, entry);
            }
            free(entry);
        }
        line->continues = more;
        if (!more) {
            *bytes = line->message;
            *n_bytes = line->n;
            return CHAT_MESSAGE;
        }
    }
}
