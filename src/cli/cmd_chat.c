/*
 * lockstep chat: a conversation through the model's chat template.
 *
 * The conversation is a JSON array of messages. Each turn renders all of it, so that the template decides what the model
 * sees of earlier turns; what the new prompt has in common with the one before is in the KV cache already and not computed
 * again (ls_request_params.reuse). A turn that fails is taken back: the conversation stays as it was before it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "cli/chat_answer.h"
#include "cli/chat_line.h"
#include "cli/cli.h"
#include "cli/interrupt.h"
#include "cli/reading.h"
#include "cli/sampling_options.h"

typedef struct chat {
    ls_options options;
    sampling_options sampling;
    char *variables; /* --chat-template-kwargs, or NULL */
    ls_text *text;
    ls_model *model;
    ls_engine *engine;
    cli_hosts hosts;
    ls_request *previous; /* whose KV cache the next turn begins with, or NULL */
    chat_line *line;
    chat_answer answer;
    reading reading;
    json_t *messages;
    bool terminal, color, dimmed;
    bool failed; /* a turn did; only input that is no terminal is told so by the exit code */
    bool interrupted;
} chat;

static const char help_text[] =
    "/reset       forget the conversation; the system message stays\n"
    "/save FILE   write the conversation as a JSON array of messages; /save! FILE also over a file that exists\n"
    "/help        this list\n"
    "/quit        end, as Ctrl-D does\n"
    "A backslash at the end of a line continues the message on the next. Ctrl-C stops an answer; what there is of it\n"
    "stays in the conversation. A message that begins with a slash is sent with a blank before it.\n";

/* ---- Writing ---- */

static void set_dim(chat *c, bool dim) {
    if (c->color && c->dimmed != dim) {
        fputs(dim ? "\033[2m" : "\033[0m", stdout);
        c->dimmed = dim;
    }
}

static void show(void *user, const char *bytes, size_t n_bytes, bool thinking) {
    chat *c = user;
    reading_clear(&c->reading);
    set_dim(c, thinking);
    fwrite(bytes, 1, n_bytes, stdout);
    fflush(stdout);
}

/* What the program says besides the model: dim on a terminal, on stderr otherwise. */
static void note(chat *c, const char *text) {
    if (!c->terminal) {
        fprintf(stderr, "lockstep: %s\n", text);
        return;
    }
    set_dim(c, true);
    fputs(text, stdout);
    set_dim(c, false);
    putchar('\n');
    fflush(stdout);
}

static void tell_failure(chat *c, const ls_error *error) {
    c->failed = true;
    fprintf(stderr, "lockstep: %s\n", error->text);
}

/* ---- The conversation ---- */

static ls_status add_message(json_t *messages, const char *role, const char *bytes, size_t n, ls_error *err) {
    json_t *content = json_stringn(bytes, n);
    if (content == NULL) {
        return error_set(err, LS_EINVAL, "the message is not valid UTF-8");
    }
    json_t *message = json_pack("{s:s, s:o}", "role", role, "content", content);
    return json_array_append_new(messages, message) == 0 ? LS_OK : error_set(err, LS_ENOMEM, "chat: out of memory");
}

static ls_status reset(chat *c, ls_error *err) {
    const option_value *system = &c->options.value[OPT_SYSTEM];
    json_array_clear(c->messages);
    ls_request_free(&c->previous);
    return system->set ? add_message(c->messages, "system", system->text, strlen(system->text), err) : LS_OK;
}

/* The prompt of a conversation, to be freed with ls_free. */
static ls_status render(const chat *c, const json_t *messages, char **out, size_t *n_bytes, ls_error *err) {
    char *json = json_dumps(messages, JSON_COMPACT);
    if (json == NULL) {
        return error_set(err, LS_ENOMEM, "chat: out of memory");
    }
    ls_chat_params params = LS_CHAT_PARAMS_INIT;
    params.messages_json = json;
    params.variables_json = c->variables;
    params.template_name = c->options.value[OPT_CHAT_TEMPLATE_NAME].text;
    ls_status st = ls_text_render_chat(c->text, &params, out, n_bytes, err);
    free(json);
    return st;
}

/* What a template will not do at all it says now, before weights are loaded. */
static ls_status try_template(chat *c, ls_error *err) {
    json_t *messages = json_deep_copy(c->messages);
    char *prompt = NULL;
    size_t n_bytes;
    ls_status st = add_message(messages, "user", "Hello", 5, err);
    st = st == LS_OK ? render(c, messages, &prompt, &n_bytes, err) : st;
    json_decref(messages);
    ls_free(prompt);
    if (st == LS_ENOTFOUND) {
        return error_prefix(err, st, "%s cannot chat, lockstep generate continues a text",
                            c->options.value[OPT_MODEL].text);
    }
    return st;
}

static ls_status save(const chat *c, const char *path, bool replace, ls_error *err) {
    int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | (replace ? O_TRUNC : O_EXCL), 0666);
    if (file < 0 && errno == EEXIST) {
        return error_set(err, LS_EIO, "/save %s: the file exists; /save! %s replaces it", path, path);
    }
    FILE *stream = file >= 0 ? fdopen(file, "w") : NULL;
    bool good = stream != NULL && json_dumpf(c->messages, stream, JSON_INDENT(2)) == 0 && fputc('\n', stream) != EOF;
    good = stream != NULL && fclose(stream) == 0 && good;
    return good ? LS_OK : error_set(err, LS_EIO, "/save %s: cannot be written: %s", path, strerror(errno));
}

/* ---- A turn ---- */

static void on_text(void *user, ls_request *request, int32_t token, const char *bytes, size_t n_bytes) {
    chat *c = user;
    (void)request;
    chat_answer_feed(&c->answer, token, bytes, n_bytes);
}

static ls_status submit(chat *c, const char *prompt, size_t n_bytes, ls_request **out, ls_error *err) {
    ls_token *token;
    size_t n;
    /* The template has written the special tokens: nothing is to be added. */
    TRY(ls_text_encode(c->text, prompt, n_bytes, LS_ENCODE_PARSE_SPECIAL, &token, &n, err));
    int32_t *id = malloc((n + 1) * sizeof *id);
    ls_request_params params = LS_REQUEST_PARAMS_INIT;
    sampling_options_apply(&c->sampling, &c->options, &params);
    params.prompt_tokens = id;
    params.n_prompt_tokens = n;
    params.reuse = c->previous;
    params.keep_cache = true;
    params.on_text = on_text;
    params.user = c;
    for (size_t i = 0; id != NULL && i < n; i++) {
        id[i] = token[i].id;
    }
    ls_free(token);
    size_t most = (size_t)ls_engine_max_tokens(c->engine);
    size_t left = n < most ? most - n : 0;
    if (!options_given(&c->options, OPT_MAX_TOKENS) || (size_t)params.max_tokens > left) {
        params.max_tokens = (int)left;
    }
    ls_status st =
        id == NULL ? error_set(err, LS_ENOMEM, "chat: out of memory")
        : left == 0
            ? error_set(err, LS_ETOOLONG,
                        "the conversation has %zu tokens and the context ends at %zu: /reset begins a new one", n, most)
            : ls_request_submit(c->engine, &params, out, err);
    free(id);
    return st;
}

/* Of its prompt: how much is to be computed. */
static int64_t tokens_to_read(ls_request *request) {
    ls_result result = LS_RESULT_INIT;
    ls_status st = ls_request_get_result(request, &result, NULL);
    return st == LS_OK ? (int64_t)(result.n_prompt_tokens - result.n_reused_tokens) : 0;
}

static ls_status step_to_end(chat *c, ls_request *request, ls_error *err) {
    ls_status st = LS_OK;
    c->interrupted = false;
    c->reading = reading_begin(&c->options, c->engine, c->previous == NULL ? tokens_to_read(request) : 0);
    interrupt_hold();
    interrupt_taken(); /* one that came too late for the answer before is not meant for this one */
    while (st == LS_OK) {
        if (!c->interrupted && interrupt_taken()) {
            c->interrupted = true;
            ls_request_cancel(request);
        }
        st = ls_engine_step(c->engine, err);
        if (c->reading.total_tokens == 0) { /* what is kept of the turn before is known now */
            c->reading.total_tokens = tokens_to_read(request);
        }
        reading_step(&c->reading);
    }
    reading_clear(&c->reading);
    if (!c->terminal) {
        interrupt_release(); /* on a terminal it is held on: Ctrl-C just behind an answer must not end the program */
    }
    return st;
}

/* After an answer, on a terminal: what it took. */
static void report(chat *c, const ls_result *result, int64_t end_ns, int64_t submitted_ns) {
    char text[256];
    size_t n = result->n_tokens - result->n_prompt_tokens;
    double seconds = (double)(end_ns - submitted_ns) / 1e9 - (double)result->first_token_us / 1e6;
    int length = snprintf(text, sizeof text, "[%zu tokens", n);
    if (n > 1 && seconds > 0) {
        length += snprintf(text + length, sizeof text - (size_t)length, ", %.1f tokens/s", (double)(n - 1) / seconds);
    }
    length += snprintf(text + length, sizeof text - (size_t)length, "; prompt %zu", result->n_prompt_tokens);
    if (result->n_reused_tokens > 0) {
        length += snprintf(text + length, sizeof text - (size_t)length, ", %zu of them kept", result->n_reused_tokens);
    }
    snprintf(text + length, sizeof text - (size_t)length, "%s]", c->interrupted ? "; stopped" : "");
    if (c->terminal) {
        note(c, text);
    }
    bool to_the_end = (int)result->n_tokens == ls_engine_max_tokens(c->engine);
    if (result->finish == LS_FINISH_LENGTH && to_the_end) {
        note(c, "the context is full: /reset begins a new conversation");
    }
}

/* The answer of a request that runs; it takes the place of c->previous. */
static ls_status answer(chat *c, ls_request *request, ls_error *err) {
    int64_t submitted = clock_ns();
    ls_status st = step_to_end(c, request, err);
    int64_t end = clock_ns();
    chat_answer_end(&c->answer);
    set_dim(c, false);
    putchar('\n');
    ls_request_free(&c->previous);
    c->previous = request;
    TRY(st);
    ls_result result = LS_RESULT_INIT;
    TRY(ls_request_get_result(request, &result, err));
    if (result.finish == LS_FINISH_ERROR) {
        return error_set(err, result.status, "%s", result.error);
    }
    report(c, &result, end, submitted);
    if (c->answer.n == 0) {
        return error_set(err, LS_IDLE, "there was no answer: the message is taken back");
    }
    return add_message(c->messages, "assistant", c->answer.message, c->answer.n, err);
}

static ls_status turn(chat *c, const char *bytes, size_t n_bytes, ls_error *err) {
    size_t before = json_array_size(c->messages);
    char *prompt = NULL;
    size_t n_prompt = 0;
    ls_request *request = NULL;
    ls_status st;
    TRY(add_message(c->messages, "user", bytes, n_bytes, err));
    TRY_GOTO(render(c, c->messages, &prompt, &n_prompt, err), done);
    chat_answer_begin(&c->answer, prompt, n_prompt);
    TRY_GOTO(submit(c, prompt, n_prompt, &request, err), done);
    st = answer(c, request, err);
done:
    ls_free(prompt);
    while (st != LS_OK && json_array_size(c->messages) > before) {
        json_array_remove(c->messages, json_array_size(c->messages) - 1);
    }
    if (st > 0) {
        note(c, err->text);
    }
    return st;
}

/* ---- Commands ---- */

/* False for /quit. */
static bool command(chat *c, char *text) {
    ls_error error = {0};
    ls_status st = LS_OK;
    char *argument = text + strcspn(text, " \t");
    size_t n_word = (size_t)(argument - text);
    argument += strspn(argument, " \t");
    for (size_t n = strlen(argument); n > 0 && strchr(" \t\r", argument[n - 1]) != NULL; n--) {
        argument[n - 1] = '\0';
    }
    text[n_word] = '\0';
    bool saves = strcmp(text, "/save") == 0 || strcmp(text, "/save!") == 0;
    if (strcmp(text, "/quit") == 0 || strcmp(text, "/exit") == 0) {
        return false;
    }
    if (strcmp(text, "/help") == 0) {
        fputs(help_text, stdout);
        fflush(stdout);
    } else if (strcmp(text, "/reset") == 0) {
        st = reset(c, &error);
        note(c, "a new conversation");
    } else if (saves && argument[0] != '\0') {
        st = save(c, argument, text[5] == '!', &error);
        char done[512];
        snprintf(done, sizeof done, "%zu messages saved to %s", json_array_size(c->messages), argument);
        if (st == LS_OK) {
            note(c, done);
        }
    } else if (saves) {
        st = error_set(&error, LS_EINVAL, "/save needs the name of a file");
    } else {
        st = error_set(&error, LS_EINVAL, "%s is no command; /help lists them", text);
    }
    if (st != LS_OK) {
        tell_failure(c, &error);
    }
    return true;
}

static ls_status converse(chat *c, ls_error *err) {
    for (;;) {
        const char *bytes;
        size_t n;
        chat_input input = chat_line_read(c->line, &bytes, &n);
        if (input == CHAT_END) {
            if (c->terminal) {
                putchar('\n');
            }
            return LS_OK;
        }
        if (input == CHAT_INTERRUPT) {
            putchar('\n');
            if (n == 0) {
                note(c, "Ctrl-D or /quit ends the conversation");
            }
            continue;
        }
        if (bytes[0] == '/') {
            char *text = strndup(bytes, n);
            bool goes_on = text == NULL || command(c, text);
            free(text);
            if (!goes_on) {
                return LS_OK;
            }
            continue;
        }
        if (strspn(bytes, " \t\r\n") == n) {
            continue;
        }
        ls_error error = {0};
        if (turn(c, bytes, n, &error) < 0) {
            tell_failure(c, &error);
        }
        if (error.status == LS_EABORTED) {
            *err = error;
            return LS_EABORTED;
        }
        if (c->interrupted && !c->terminal) {
            return LS_OK;
        }
    }
}

/* ---- The command ---- */

/* In the cache folder, which is made; NULL if there is none. */
static const char *history_path(const ls_options *options, char *path, size_t path_bytes) {
    char scratch[4096];
    const char *folder = options_cache_folder(options, scratch, sizeof scratch);
    if (folder == NULL || path_join(path, path_bytes, folder, "chat_history", NULL) != LS_OK) {
        return NULL;
    }
    mkdir(folder, 0777);
    return path;
}

static ls_engine_params engine_params(const chat *c) {
    ls_engine_params params = cli_engine_params(&c->options, c->hosts.group);
    if (!options_given(&c->options, OPT_MAX_NUM_SEQS)) {
        params.max_num_seqs = 1; /* one conversation: its KV cache is all that is planned */
    }
    return params;
}

static ls_status open_engine(chat *c, ls_error *err) {
    TRY(c->hosts.group != NULL ? cli_open_model(&c->options, &c->model, err)
                               : cli_open_to_run(&c->options, &c->model, err));
    const ls_engine_params params = engine_params(c);
    return cli_open_engine(&c->options, c->model, &params, &c->engine, err);
}

static ls_status chat_all(chat *c, int argc, char **argv, ls_error *err) {
    char folder[4096], scratch[4096];
    TRY(options_init(&c->options, err));
    TRY(args_parse(&c->options, COMMAND_CHAT, argc, argv, err));
    const option_value *v = c->options.value;
    if (!v[OPT_MODEL].set) {
        return error_set(err, LS_EINVAL, "chat needs a model: lockstep chat MODEL");
    }
    if (v[OPT_MAX_TOKENS].integer == 0) {
        return error_set(err, LS_EINVAL, "--max-tokens 0: an answer needs at least one");
    }
    TRY(cli_hosts_join(&c->options, &c->hosts, err));
    if (ls_hosts_self(c->hosts.group) > 0) {
        return cli_follow(&c->options, engine_params(c), err);
    }
    c->terminal = isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1;
    c->color = c->terminal && options_color();
    c->messages = json_array();
    TRY(sampling_options_read(&c->sampling, &c->options, err));
    TRY(cli_read_argument(&v[OPT_CHAT_TEMPLATE_KWARGS], &c->variables, err));
    TRY(cli_find_text(&c->options, folder, sizeof folder, err));
    TRY(ls_text_open(folder, options_cache_folder(&c->options, scratch, sizeof scratch), &c->text, err));
    TRY(reset(c, err));
    TRY(try_template(c, err));
    TRY(open_engine(c, err));
    chat_answer_init(&c->answer, c->text, show, c);
    TRY(chat_line_open(&c->line, c->terminal, history_path(&c->options, scratch, sizeof scratch), err));
    if (c->terminal) {
        note(c, "Ctrl-C stops an answer, Ctrl-D ends; /help lists the commands");
    }
    return converse(c, err);
}

int cmd_chat(int argc, char **argv) {
    chat c = {0};
    ls_error error = {0};
    ls_status st = chat_all(&c, argc, argv, &error);
    int code = st < 0                         ? cli_fail(&error, c.options.value[OPT_VERBOSE].integer != 0)
               : c.interrupted && !c.terminal ? EXIT_INTERRUPTED
               : c.failed && !c.terminal      ? EXIT_FAILED
                                              : EXIT_GOOD;
    chat_line_close(&c.line);
    chat_answer_deinit(&c.answer);
    ls_request_free(&c.previous);
    ls_engine_close(&c.engine);
    ls_model_close(&c.model);
    cli_hosts_leave(&c.hosts, st, &error);
    ls_text_close(&c.text);
    json_decref(c.messages);
    free(c.variables);
    sampling_options_deinit(&c.sampling);
    options_deinit(&c.options);
    return code;
}
