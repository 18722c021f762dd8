/*
 * lockstep chat, through a pipe and on a terminal of its own (forkpty): turns through the model's template, commands,
 * thinking, the history, Ctrl-C and Ctrl-D; and, here and in lockstep generate, the bar of a long prompt.
 *
 * The models are the demo's weights behind other templates and tokenizers: "plain" has a template that only joins the
 * messages, so that answers are the demo's stories; in "thinker" the words " there" and " named" are <think> and </think>.
 */
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "cli_run.h"

#define JOINED                                                                                                         \
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% else %}{{ "          \
    "m.content "                                                                                                       \
    "}}{% endif %}{% endfor %}"
#define STORY " there was a little girl named Lily."
#define THOUGHT "<think> was a little girl</think> Lily."

/* ---- Models ---- */

typedef struct folders {
    char plain[PATH_BYTES], thinker[2][PATH_BYTES], mute[PATH_BYTES], scratch[PATH_BYTES], cache[PATH_BYTES + 32];
} folders;

static void make_model(char folder[PATH_BYTES], const char *template, bool tokenizer) {
    static const char *const parts[] = {"config.json",
                                        "generation_config.json",
                                        "model.safetensors.index.json",
                                        "model-00001-of-00003.safetensors",
                                        "model-00002-of-00003.safetensors",
                                        "model-00003-of-00003.safetensors",
                                        "tokenizer.json"};
    folder_make(folder);
    for (size_t i = 0; i < COUNT(parts) - !tokenizer; i++) {
        char from[4096], from_name[64], to[PATH_BYTES + 64];
        snprintf(from_name, sizeof from_name, "demo/%s", parts[i]);
        snprintf(to, sizeof to, "%s/%s", folder, parts[i]);
        assert_non_null(realpath(from_name, from));
        assert_int_equal(symlink(from, to), 0);
    }
    if (template != NULL) {
        file_write(folder, "chat_template.jinja", template, strlen(template));
    }
}

/* The token of this id gets another text, as an added token; merges that made the old one go. */
static void rename_token(json_t *root, int id, const char *content, bool special) {
    json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab"), *value;
    json_t *merges = json_object_get(model, "merges"), *kept = json_array();
    const char *key;
    char old[64] = "";
    json_object_foreach(vocab, key, value) {
        if (json_integer_value(value) == id) {
            snprintf(old, sizeof old, "%s", key);
        }
    }
    json_object_del(vocab, old);
    json_object_set_new(vocab, content, json_integer(id));
    size_t i;
    json_array_foreach(merges, i, value) {
        const char *a = json_string_value(json_array_get(value, 0)), *b = json_string_value(json_array_get(value, 1));
        char both[256];
        snprintf(both, sizeof both, "%s%s", a, b);
        if (strcmp(both, old) != 0) {
            json_array_append(kept, value);
        }
    }
    assert_int_equal(json_array_size(kept) + 1, json_array_size(merges));
    json_object_set_new(model, "merges", kept);
    json_array_append_new(json_object_get(root, "added_tokens"),
                          json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", id, "content", content, "single_word",
                                    0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", special));
}

static int make_models(void **state) {
    folders *f = calloc(1, sizeof *f);
    assert_non_null(f);
    make_model(f->plain, JOINED, true);
    make_model(f->mute, NULL, true);
    for (int special = 0; special < 2; special++) {
        make_model(f->thinker[special], JOINED, false);
        json_t *root = json_load_file("demo/tokenizer.json", 0, NULL);
        assert_non_null(root);
        rename_token(root, 400, "<think>", special);
        rename_token(root, 438, "</think>", special);
        char path[PATH_BYTES + 32];
        snprintf(path, sizeof path, "%s/tokenizer.json", f->thinker[special]);
        assert_int_equal(json_dump_file(root, path, 0), 0);
        json_decref(root);
    }
    folder_make(f->scratch);
    snprintf(f->cache, sizeof f->cache, "%s/cache", f->scratch);
    *state = f;
    return cli_find_program(state) != 0;
}

static int remove_models(void **state) {
    folders *f = *state;
    folder_remove(f->plain);
    folder_remove(f->mute);
    folder_remove(f->thinker[0]);
    folder_remove(f->thinker[1]);
    if (access(f->cache, F_OK) == 0) {
        folder_remove(f->cache);
    }
    folder_remove(f->scratch);
    free(f);
    return 0;
}

/* ---- Through a pipe ---- */

#define CHAT(model) "chat", (model), "--temp", "0", "-n", "8"

static cli_run piped(cli_run run, const char *input, int code) {
    run.input = input;
    cli(&run);
    assert_code(&run, code);
    return run;
}

/* The saved conversation: roles and contents must be these, NULL at the end. */
static void assert_messages(const char *path, const char *const *wanted) {
    json_t *messages = json_load_file(path, JSON_REJECT_DUPLICATES, NULL), *message;
    assert_non_null(messages);
    size_t i;
    json_array_foreach(messages, i, message) {
        assert_non_null(wanted[2 * i]);
        assert_string_equal(json_string_value(json_object_get(message, "role")), wanted[2 * i]);
        assert_string_equal(json_string_value(json_object_get(message, "content")), wanted[2 * i + 1]);
    }
    assert_null(wanted[2 * i]);
    json_decref(messages);
}

static void turns_follow_one_another(void **state) {
    const folders *f = *state;
    char path[PATH_BYTES + 16], input[2 * PATH_BYTES];
    snprintf(path, sizeof path, "%s/c.json", f->scratch);
    snprintf(input, sizeof input, "Once upon a time,\n\n She loved to\n/save %s\n/reset\nOnce upon a time,\n", path);
    cli_run run = piped(CLI(CHAT(f->plain)), input, 0);
    /* The second turn goes on with the story, and after /reset the first comes again. */
    char second[256];
    json_lines whole = generate(
        CLI("generate", "-m", "demo", "-p", "Once upon a time," STORY " She loved to", "--temp", "0", "-n", "8"), 0);
    snprintf(second, sizeof second, "%s", text_of(&whole, 0, "text"));
    lines_free(&whole);
    char wanted[512];
    snprintf(wanted, sizeof wanted, "%s\n%s\n%s\n", STORY, second, STORY);
    assert_string_equal(run.out, wanted);
    assert_messages(path, (const char *const[]){"user", "Once upon a time,", "assistant", STORY, "user",
                                                " She loved to", "assistant", second, NULL});
    cli_free(&run);
    assert_int_equal(unlink(path), 0);
}

static void a_system_message(void **state) {
    const folders *f = *state;
    char path[PATH_BYTES + 16], input[2 * PATH_BYTES];
    snprintf(path, sizeof path, "%s/c.json", f->scratch);
    snprintf(input, sizeof input, " a time,\n/reset\n/save %s\n", path);
    cli_run run = piped(CLI(CHAT(f->plain), "--system", "Once upon"), input, 0);
    assert_string_equal(run.out, STORY "\n");
    assert_messages(path, (const char *const[]){"system", "Once upon", NULL});
    cli_free(&run);
    assert_int_equal(unlink(path), 0);
    cli_run demo = piped(CLI(CHAT("demo"), "-v"), "Hello\n", 0); /* it has a template of its own */
    assert_true(demo.n_out > 1);
    cli_free(&demo);
}

static void commands(void **state) {
    const folders *f = *state;
    char path[PATH_BYTES + 16], input[4 * PATH_BYTES], text[2 * PATH_BYTES];
    snprintf(path, sizeof path, "%s/c.json", f->scratch);
    file_write(f->scratch, "c.json", "keep", 4);
    snprintf(input, sizeof input, "/help\n/load x\n/save\n/save %s\n/save /nowhere/c.json\n\xff\n/quit\nnever read\n",
             path);
    cli_run run = piped(CLI(CHAT(f->plain)), input, 1); /* something failed */
    assert_non_null(strstr(run.out, "/save! FILE"));
    assert_null(strstr(run.out, "never"));
    assert_non_null(strstr(run.err, "/load is no command; /help lists them"));
    assert_non_null(strstr(run.err, "/save needs the name of a file"));
    assert_non_null(strstr(run.err, "/save /nowhere/c.json: cannot be written: No such file"));
    assert_non_null(strstr(run.err, "not valid UTF-8"));
    snprintf(text, sizeof text, "%s: the file exists; /save! ", path);
    assert_non_null(strstr(run.err, text));
    cli_free(&run);
    size_t n;
    uint8_t *kept = file_read(f->scratch, "c.json", &n);
    assert_string_equal((char *)kept, "keep");
    free(kept);
    snprintf(input, sizeof input, "/save!  %s \n", path);
    run = piped(CLI(CHAT(f->plain)), input, 0);
    assert_messages(path, (const char *const[]){NULL});
    cli_free(&run);
    assert_int_equal(unlink(path), 0);
}

static void lines_that_go_on(void **state) {
    const folders *f = *state;
    char path[PATH_BYTES + 16], input[2 * PATH_BYTES];
    snprintf(path, sizeof path, "%s/c.json", f->scratch);
    snprintf(input, sizeof input, "Once\\\nupon\\\n\\\na time\n/save %s\nThe end\\", path);
    cli_run run = piped(CLI(CHAT(f->plain), "-n", "1"), input, 0);
    json_t *messages = json_load_file(path, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(json_array_get(messages, 0), "content")),
                        "Once\nupon\n\na time");
    json_decref(messages);
    cli_free(&run);
    assert_int_equal(unlink(path), 0);
}

static void thinking_is_not_sent_back(void **state) {
    const folders *f = *state;
    char path[PATH_BYTES + 16], input[2 * PATH_BYTES], second[2][256];
    snprintf(path, sizeof path, "%s/c.json", f->scratch);
    snprintf(input, sizeof input, "Once upon a time,\n She loved to\n/save %s\n", path);
    for (int special = 0; special < 2; special++) { /* special tokens have no text, and are put back */
        cli_run run = piped(CLI(CHAT(f->thinker[special])), input, 0);
        assert_memory_equal(run.out, THOUGHT "\n", strlen(THOUGHT "\n"));
        json_t *messages = json_load_file(path, 0, NULL);
        assert_string_equal(json_string_value(json_object_get(json_array_get(messages, 1), "content")), THOUGHT);
        snprintf(second[special], sizeof second[special], "%s",
                 json_string_value(json_object_get(json_array_get(messages, 3), "content")));
        json_decref(messages);
        cli_free(&run);
        assert_int_equal(unlink(path), 0);
    }
    /* What the template was given: the thought; what it made of it: the rest. */
    json_lines whole = generate(
        CLI("generate", "-m", f->plain, "-p", "Once upon a time, Lily. She loved to", "--temp", "0", "-n", "8"), 0);
    assert_string_equal(second[0], text_of(&whole, 0, "text"));
    assert_string_equal(second[0], second[1]);
    lines_free(&whole);
    /* A thought that max-tokens cut off is closed in the conversation. */
    snprintf(input, sizeof input, "Once upon a time,\n/save %s\n", path);
    cli_run run = piped(CLI(CHAT(f->thinker[0]), "-n", "3"), input, 0);
    assert_messages(
        path, (const char *const[]){"user", "Once upon a time,", "assistant", "<think> was a\n</think>\n\n", NULL});
    cli_free(&run);
    assert_int_equal(unlink(path), 0);
}

static void the_context_ends(void **state) {
    const folders *f = *state;
    cli_run run = CLI("chat", f->plain, "--temp", "0", "--max-model-len", "16", "--ignore-eos");
    run = piped(run, "Once upon a time,\nMore\n/reset\nOnce upon a time,\n", 1);
    assert_memory_equal(run.out, STORY, strlen(STORY)); /* without -n it goes on to the end */
    assert_non_null(strstr(run.err, "the context is full: /reset begins a new conversation"));
    assert_non_null(strstr(run.err, "tokens and the context ends at 16: /reset begins a new one"));
    const char *again = strstr(run.out + 1, STORY);
    assert_non_null(again);
    assert_int_equal(strlen(again), (size_t)(again - run.out)); /* the same answer twice */
    cli_free(&run);
}

static void what_it_refuses(void **state) {
    const folders *f = *state;
    expect(CLI("chat"), 2, "chat needs a model");
    expect(CLI("chat", f->mute), 1, "cannot chat, lockstep generate continues a text: the model has no chat template");
    expect(CLI("chat", "/nowhere"), 1, "/nowhere");
    expect(CLI("chat", f->plain, "-n", "0"), 2, "--max-tokens 0");
    expect(CLI("chat", f->plain, "--chat-template-kwargs", "[1"), 1, "variables: not valid JSON");
    expect(CLI("chat", f->plain, "--chat-template-name", "rag"), 1, "rag");
    expect(CLI("chat", f->plain, "--stop-token-ids", "x"), 2, "--stop-token-ids x");
    expect(CLI("chat", f->plain, "-p", "Hi"), 2, "p");
}

static void interrupted_in_a_pipe(void **state) {
    const folders *f = *state;
    cli_run run = CLI("chat", f->plain, "--temp", "0", "--ignore-eos");
    run.input = "Once upon a time,\nnever read\n";
    cli_start(&run);
    struct stat info = {0};
    for (double end = now_s() + 60; info.st_size < 20 && now_s() < end;) {
        usleep(2000);
        assert_int_equal(fstat(fileno(run.out_file), &info), 0);
    }
    assert_int_equal(kill(run.child, SIGINT), 0);
    cli_wait(&run);
    assert_code(&run, 130);
    assert_memory_equal(run.out, STORY, 15);
    cli_free(&run);
}

/* ---- On a terminal ---- */

typedef struct terminal {
    int fd;
    pid_t child;
    char seen[1 << 18];
    size_t n, at; /* what was expected lies before at */
} terminal;

static terminal *terminal_open(const char *const *args, const char *const *env) {
    terminal *t = calloc(1, sizeof *t);
    assert_non_null(t);
    fflush(NULL);
    t->child = forkpty(&t->fd, NULL, NULL, &(struct winsize){.ws_row = 24, .ws_col = 200});
    assert_true(t->child >= 0);
    if (t->child == 0) {
        alarm(120); /* a child that hangs fails its test, not the whole run */
        putenv((char *)"TERM=xterm");
        putenv((char *)"LC_ALL=C.UTF-8");
        for (; *env != NULL; env++) {
            putenv((char *)*env);
        }
        execv(cli_program(), (char *const *)args);
        _exit(127);
    }
    return t;
}

/* Reads until this text has come behind the last one expected. */
static void terminal_expect(terminal *t, const char *text) {
    for (double end = now_s() + 60;;) {
        const char *found = strstr(t->seen + t->at, text);
        if (found != NULL) {
            t->at = (size_t)(found - t->seen) + strlen(text);
            return;
        }
        struct pollfd ready = {t->fd, POLLIN, 0};
        ssize_t n = poll(&ready, 1, 1000) > 0 ? read(t->fd, t->seen + t->n, sizeof t->seen - t->n - 1) : 0;
        for (ssize_t i = 0; i < n; i++) {
            if (t->seen[t->n + (size_t)i] == '\0') {
                t->seen[t->n + (size_t)i] = '0'; /* strstr goes on */
            }
        }
        t->n += n > 0 ? (size_t)n : 0;
        t->seen[t->n] = '\0';
        if (n < 0 || now_s() > end || t->n + 1 == sizeof t->seen) {
            kill(t->child, SIGKILL);
            fail_msg("expected %s behind: %s", text, t->seen + t->at);
        }
    }
}

static void terminal_send(terminal *t, const char *text) {
    assert_int_equal(write(t->fd, text, strlen(text)), (ssize_t)strlen(text));
}

static void terminal_close(terminal *t, int code) {
    int status;
    while (read(t->fd, t->seen, sizeof t->seen) > 0) {
    }
    assert_int_equal(waitpid(t->child, &status, 0), t->child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), code);
    close(t->fd);
    free(t);
}

static void lines_are_edited_and_remembered(void **state) {
    const folders *f = *state;
    const char *const args[] = {"lockstep", CHAT(f->plain), "--cache-folder", f->cache, NULL};
    for (int run = 0; run < 2; run++) {
        terminal *t = terminal_open(args, (const char *const[]){NULL});
        terminal_expect(t, "/help");
        terminal_expect(t, "> ");
        if (run == 0) {
            terminal_send(t, "Once upox\177n a time,\r"); /* a backspace */
        } else {
            terminal_send(t, "\033[A\r"); /* the last line of the run before */
        }
        terminal_expect(t, STORY);
        terminal_expect(t, "\033[2m[8 tokens, ");
        terminal_expect(t, " tokens/s; prompt 5]\033[0m");
        terminal_expect(t, "> ");
        terminal_send(t, "\004");
        terminal_close(t, 0);
        size_t n;
        uint8_t *history = file_read(f->cache, "chat_history", &n);
        assert_non_null(strstr((char *)history, "Once\\040upon\\040a\\040time,"));
        free(history);
        char path[PATH_BYTES + 64];
        struct stat info;
        snprintf(path, sizeof path, "%s/chat_history", f->cache);
        assert_int_equal(stat(path, &info), 0);
        assert_int_equal(info.st_mode & 0777, 0600);
    }
}

static void control_c(void **state) {
    const folders *f = *state;
    char path[PATH_BYTES + 16], save[PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/c.json", f->scratch);
    snprintf(save, sizeof save, "/save %s\r", path);
    const char *const args[] = {"lockstep",       "chat", f->plain,       "--temp", "0",
                                "--cache-folder", "",     "--ignore-eos", NULL};
    terminal *t = terminal_open(args, (const char *const[]){NULL});
    terminal_expect(t, "> ");
    terminal_send(t, "\003");
    terminal_expect(t, "Ctrl-D or /quit ends the conversation");
    terminal_expect(t, "> ");
    terminal_send(t, "not this\003");
    terminal_expect(t, "> ");
    terminal_send(t, "Once upon\\\r");
    terminal_expect(t, ". ");
    terminal_send(t, "\003");
    terminal_expect(t, "> ");
    terminal_send(t, "Once upon a time,\r");
    terminal_expect(t, STORY);
    terminal_send(t, "\003"); /* of some 2000 tokens */
    terminal_expect(t, "; stopped]");
    terminal_expect(t, "> ");
    terminal_send(t, save);
    terminal_expect(t, "2 messages saved");
    terminal_expect(t, "> ");
    terminal_send(t, "/quit\r");
    terminal_close(t, 0);
    json_t *messages = json_load_file(path, 0, NULL);
    const char *answer = json_string_value(json_object_get(json_array_get(messages, 1), "content"));
    assert_non_null(answer);
    assert_memory_equal(answer, STORY, strlen(STORY));
    assert_in_range(strlen(answer), strlen(STORY), 7000);
    assert_string_equal(json_string_value(json_object_get(json_array_get(messages, 0), "content")),
                        "Once upon a time,");
    json_decref(messages);
    assert_int_equal(unlink(path), 0);
}

static void colours(void **state) {
    const folders *f = *state;
    const char *const args[] = {"lockstep", CHAT(f->thinker[0]), "--cache-folder", "", NULL};
    terminal *t = terminal_open(args, (const char *const[]){NULL});
    terminal_expect(t, "> ");
    terminal_send(t, "Once upon a time,\r");
    terminal_expect(t, "\033[2m<think> was a little girl</think>\033[0m Lily.");
    terminal_expect(t, "> ");
    terminal_send(t, " She loved to\r");
    terminal_expect(t, ", 5 of them kept]"); /* "Once upon a time,": the template took the thought out behind it */
    terminal_expect(t, "> ");
    terminal_send(t, "\004");
    terminal_close(t, 0);
    t = terminal_open(args, (const char *const[]){"NO_COLOR=1", NULL});
    terminal_expect(t, "> ");
    terminal_send(t, "Once upon a time,\r");
    terminal_expect(t, THOUGHT);
    terminal_expect(t, "tokens/s");
    assert_null(strstr(t->seen, "\033[2m"));
    terminal_expect(t, "> ");
    terminal_send(t, "\004");
    terminal_close(t, 0);
}

/* ---- Long prompts ---- */

/* Of more than 1024 tokens; the demo's chunks are of 512 on the CPU. */
static char *long_text(void) {
    enum { WORDS = 1100 };
    char *text = calloc(1, 2 * WORDS + 2);
    assert_non_null(text);
    for (int i = 0; i < WORDS; i++) {
        memcpy(text + (ptrdiff_t)2 * i, "a ", 2);
    }
    return text;
}

/* The bar of a long prompt, from its first to its end. Gives the number of tokens. */
static long expect_bar(terminal *t) {
    terminal_expect(t, "reading [........................]   0 % 0 of ");
    terminal_expect(t, " tokens\r\033[Kreading [");
    terminal_expect(t, " % 512 of ");
    const long n = strtol(t->seen + t->at, NULL, 10);
    assert_in_range(n, 1025, 1535);
    terminal_expect(t, " tokens  ");
    assert_true(strtol(t->seen + t->at, NULL, 10) > 0);
    terminal_expect(t, " tokens/s\r\033[Kreading [");
    terminal_expect(t, " % 1024 of ");
    terminal_expect(t, " tokens/s\r\033[K");
    return n;
}

static void reading_a_long_prompt_shows_a_bar(void **state) {
    const folders *f = *state;
    char path[PATH_BYTES + 16], tokens[64];
    char *text = long_text();
    snprintf(path, sizeof path, "%s/p.txt", f->scratch);
    file_write(f->scratch, "p.txt", text, strlen(text));
#define GENERATE "generate", "-m", f->plain, "--temp", "0", "-n", "2"
    terminal *t = terminal_open((const char *const[]){"lockstep", GENERATE, "-f", path, NULL},
                                (const char *const[]){"LOCKSTEP_DEVICE=cpu", NULL});
    const long n = expect_bar(t);
    const size_t behind = t->at;
    snprintf(tokens, sizeof tokens, " ms  %ld tokens, ", n);
    terminal_expect(t, "a a a a "); /* the prompt, in the bar's place */
    terminal_expect(t, "\nprefill ");
    terminal_expect(t, tokens);
    assert_null(strstr(t->seen + behind, "reading"));
    terminal_close(t, 0);

    t = terminal_open((const char *const[]){"lockstep", GENERATE, "-p", "Once", NULL}, (const char *const[]){NULL});
    terminal_expect(t, "Once");
    terminal_expect(t, "\nprefill ");
    assert_null(strstr(t->seen, "reading"));
    terminal_close(t, 0);
    cli_run run = CLI(GENERATE, "-f", path); /* no terminal */
    cli(&run);
    assert_code(&run, 0);
    assert_null(strstr(run.err, "reading"));
    assert_memory_equal(run.out, text, strlen(text));
    cli_free(&run);
    assert_int_equal(unlink(path), 0);
    free(text);
}

static void reading_in_a_chat_shows_a_bar(void **state) {
    const folders *f = *state;
    char *text = long_text();
    const char *const args[] = {"lockstep", CHAT(f->plain), "--cache-folder", "", "--system", text, NULL};
    terminal *t = terminal_open(args, (const char *const[]){"LOCKSTEP_DEVICE=cpu", NULL});
    terminal_expect(t, "> ");
    terminal_send(t, "Once upon a time,\r");
    expect_bar(t);
    const size_t behind = t->at;
    terminal_expect(t, " tokens/s; prompt ");
    terminal_expect(t, "> ");
    terminal_send(t, "She\r"); /* little to read: the rest is kept */
    terminal_expect(t, " of them kept]");
    assert_null(strstr(t->seen + behind, "reading"));
    terminal_expect(t, "> ");
    terminal_send(t, "\004");
    terminal_close(t, 0);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turns_follow_one_another),
        cmocka_unit_test(a_system_message),
        cmocka_unit_test(commands),
        cmocka_unit_test(lines_that_go_on),
        cmocka_unit_test(thinking_is_not_sent_back),
        cmocka_unit_test(the_context_ends),
        cmocka_unit_test(what_it_refuses),
        cmocka_unit_test(interrupted_in_a_pipe),
        cmocka_unit_test(lines_are_edited_and_remembered),
        cmocka_unit_test(control_c),
        cmocka_unit_test(colours),
        cmocka_unit_test(reading_a_long_prompt_shows_a_bar),
        cmocka_unit_test(reading_in_a_chat_shows_a_bar),
    };
    return cmocka_run_group_tests(tests, make_models, remove_models);
}
