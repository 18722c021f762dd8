/*
 * Chat templates give what Jinja2 gives (tests/golden, made by tools/make_template_vectors.py): for templates of our own
 * everywhere, for models' templates where ../shared/data is. Failures are of the same kind and say where; limits hold;
 * folders are read as Hugging Face reads them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "text/chat_template.h"

#define SHARED "../shared/data/"

/* 2024-07-26 13:05:09, as in the vectors. */
static const struct tm NOW = {
    .tm_year = 124, .tm_mon = 6, .tm_mday = 26, .tm_hour = 13, .tm_min = 5, .tm_sec = 9, .tm_wday = 5, .tm_yday = 207};

static chat_template *parse(const char *source, size_t n, const chat_template_limits *limits, ls_error *err) {
    chat_template *t = NULL;
    ls_status st = chat_template_parse(&t, "test.jinja", source, n, limits, err);
    assert_true((st == LS_OK) == (t != NULL));
    assert_true(st == LS_OK || err->status == st);
    return t;
}

static ls_status render_case(const chat_template *t, const json_t *special, const json_t *c, text_buffer *out,
                             ls_error *err) {
    chat_render_params params = {.messages = json_object_get(c, "messages"),
                                 .tools = json_object_get(c, "tools"),
                                 .documents = json_object_get(c, "documents"),
                                 .variables = json_object_get(c, "variables"),
                                 .add_generation_prompt = json_is_true(json_object_get(c, "add_generation_prompt")),
                                 .now = &NOW};
    return chat_template_render(t, special, &params, out, err);
}

/* Renders source with {"role": "user", "content": "Hi"} and returns the status; the text or the error in `text`. */
static ls_status render_plain(const char *source, const char *variables, const chat_template_limits *limits,
                              char text[512]) {
    ls_error err = {0};
    text_buffer out = {0};
    text[0] = '\0';
    chat_template *t = parse(source, strlen(source), limits, &err);
    ls_status st = err.status;
    if (t != NULL) {
        json_t *c = json_pack("{s:[{s:s, s:s}]}", "messages", "role", "user", "content", "Hi");
        json_object_set_new(c, "variables", variables ? json_loads(variables, 0, NULL) : json_object());
        st = render_case(t, NULL, c, &out, &err);
        json_decref(c);
    }
    snprintf(text, 512, "%s", st < 0 ? err.text : out.data ? out.data : "");
    assert_true(st == LS_OK || out.n == 0);
    text_buffer_deinit(&out);
    chat_template_close(&t);
    return st;
}

/* ---- vectors ---- */

static void assert_outcome(const char *source, size_t i_case, const json_t *expected, ls_status st,
                           const text_buffer *out, const ls_error *err) {
    const char *kind = json_string_value(json_array_get(expected, 0));
    const json_t *text = json_array_get(expected, 1);
    bool good;
    if (strcmp(kind, "text") == 0) {
        good = st == LS_OK && out->n == json_string_length(text) &&
               (out->n == 0 || memcmp(out->data, json_string_value(text), out->n) == 0);
    } else if (strcmp(kind, "raise") == 0) {
        good = st == LS_EINVAL && strcmp(err->text, json_string_value(text)) == 0;
    } else {
        good = st < 0 && st != LS_EINVAL && strncmp(err->text, "test.jinja:", 11) == 0;
    }
    if (!good) {
        fail_msg("template %s\ncase %zu: expected %s %s\ngot %s %s", source, i_case, kind,
                 text ? json_string_value(text) : "", ls_status_name(st), st < 0 ? err->text : out->data);
    }
}

static void test_small_vectors(void **state) {
    (void)state;
    json_doc golden = {0};
    assert_int_equal(json_doc_read(&golden, "tests/golden/templates_small.json", 1 << 20, NULL), LS_OK);
    const json_t *cases = json_object_get(golden.root, "cases"), *rows = json_object_get(golden.root, "templates");
    assert_true(json_array_size(rows) >= 39);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *source = json_array_get(json_array_get(rows, i), 0);
        for (size_t k = 0; k < json_array_size(cases); k++) {
            ls_error err = {0};
            text_buffer out = {0};
            chat_template *t = parse(json_string_value(source), json_string_length(source), NULL, &err);
            ls_status st = t == NULL ? err.status : render_case(t, NULL, json_array_get(cases, k), &out, &err);
            assert_outcome(json_string_value(source), k, json_array_get(json_array_get(json_array_get(rows, i), 1), k),
                           st, &out, &err);
            text_buffer_deinit(&out);
            chat_template_close(&t);
        }
    }
    json_doc_deinit(&golden);
}

static uint64_t fnv(const char *s, size_t n) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++) {
        hash = (hash ^ (unsigned char)s[i]) * 0x100000001B3u;
    }
    return hash;
}

/* The hash of the text, "R" and the hash of the raised message, or "E". */
static void summarise(ls_status st, const text_buffer *out, const ls_error *err, char summary[32]) {
    if (st == LS_OK) {
        snprintf(summary, 32, "%016llx", (unsigned long long)fnv(out->data, out->n));
    } else if (st == LS_EINVAL) {
        snprintf(summary, 32, "R%016llx", (unsigned long long)fnv(err->text, strlen(err->text)));
    } else {
        snprintf(summary, 32, "E");
    }
}

static size_t check_shared_template(const char *name, const chat_template *t, const json_t *cases,
                                    const json_t *expected) {
    size_t texts = 0;
    assert_int_equal(json_array_size(cases), json_array_size(expected));
    for (size_t i = 0; i < json_array_size(cases); i++) {
        ls_error err = {0};
        text_buffer out = {0};
        char summary[32];
        ls_status st = render_case(t, NULL, json_array_get(cases, i), &out, &err);
        summarise(st, &out, &err, summary);
        if (strcmp(summary, json_string_value(json_array_get(expected, i))) != 0) {
            fail_msg("%s, case %zu: expected %s, got %s: %s", name, i, json_string_value(json_array_get(expected, i)),
                     summary, st < 0 ? err.text : out.data);
        }
        texts += st == LS_OK;
        text_buffer_deinit(&out);
    }
    return texts;
}

static void test_shared_vectors(void **state) {
    (void)state;
    if (!folder_exists(SHARED "templates")) {
        print_message(SHARED "templates is absent\n");
        skip();
    }
    json_doc golden = {0};
    assert_int_equal(json_doc_read(&golden, "tests/golden/templates_shared.json", 1 << 20, NULL), LS_OK);
    const json_t *cases = json_object_get(golden.root, "cases");
    const char *name;
    json_t *expected;
    size_t n_templates = 0, texts = 0;
    json_object_foreach(json_object_get(golden.root, "templates"), name, expected) {
        ls_error err = {0};
        char path[512];
        snprintf(path, sizeof path, SHARED "%s", name);
        if (strncmp(name, "templates/", 10) == 0) {
            ls_file file;
            chat_template *t;
            assert_int_equal(file_map(&file, path, NULL), LS_OK);
            t = parse((const char *)file.data, file.bytes, NULL, &err);
            assert_non_null(t);
            texts += check_shared_template(name, t, cases, expected);
            chat_template_close(&t);
            file_unmap(&file);
        } else {
            chat_templates *all = NULL;
            const chat_template *t;
            assert_int_equal(chat_templates_open(&all, path, NULL, &err), LS_OK);
            assert_int_equal(chat_templates_get(all, NULL, false, &t, &err), LS_OK);
            texts += check_shared_template(name, t, cases, expected);
            chat_templates_close(&all);
        }
        n_templates++;
    }
    assert_int_equal(n_templates, 14);
    assert_true(texts > 1500); /* or the conversations are of no use */
    json_doc_deinit(&golden);
}

/* ---- failures and limits ---- */

static void test_errors_say_where(void **state) {
    (void)state;
    static const struct {
        const char *source, *text;
        ls_status st;
    } rows[] = {
        {"a\n{{ foo.bar }}", "test.jinja:2: 'foo' is undefined", LS_EFORMAT},
        {"{{ messages[0].x.y }}", "test.jinja:1: a value of type dict has no 'x'", LS_EFORMAT},
        {"\n\n{% for x in 5 %}{% endfor %}", "test.jinja:3: a value of type int cannot be iterated over", LS_EFORMAT},
        {"{% if x %}\n\n", "test.jinja:2: Unexpected end of template. Jinja was looking for the tag 'elif'",
         LS_EFORMAT},
        {"{{ 1\n+ }}", "test.jinja:2: unexpected '}}'", LS_EFORMAT},
        {"{{ 'a }}", "test.jinja:1: unexpected char ''': the string does not end", LS_EFORMAT},
        {"{{ 1 | nope }}", "test.jinja:1: No filter named 'nope'.", LS_EFORMAT},
        {"{% include 'x' %}", "test.jinja:1: the tag 'include' is not supported", LS_EUNSUPPORTED},
        {"{{ '{}'.format(1) }}", "test.jinja:1: this method of strings is not supported", LS_EUNSUPPORTED},
        {"{{ 9223372036854775807 + 1 }}", "test.jinja:1: the result does not fit a 64-bit integer", LS_EFORMAT},
        {"{{ raise_exception('Only user: {} %s') }}", "Only user: {} %s", LS_EINVAL},
        {"\xFF", "test.jinja: not valid UTF-8 at byte 0", LS_EFORMAT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[512];
        assert_int_equal(render_plain(rows[i].source, NULL, NULL, text), rows[i].st);
        assert_string_equal(text, rows[i].text);
    }
}

static void test_limits(void **state) {
    (void)state;
    const chat_template_limits small = {
        .source_bytes = 200, .output_bytes = 1000, .memory_bytes = 1 << 20, .steps = 20000, .depth = 100};
    char text[512], nested[4000];
    static const char *const endless[] = {
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 1001 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=1) %}{% for i in range(999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ [0] * 99999999 }}",
        "{{ 'a' | center(99999999) }}",
    };
    for (size_t i = 0; i < sizeof endless / sizeof *endless; i++) {
        assert_int_equal(render_plain(endless[i], NULL, &small, text), LS_ETOOLONG);
    }
    memset(nested, ' ', sizeof nested);
    nested[201] = '\0';
    assert_int_equal(render_plain(nested, NULL, &small, text), LS_ETOOLONG);
    /* depth of source and of data, with the default limits */
    memset(nested, '(', 60);
    strcpy(nested + 60, "1 }}");
    assert_true(render_plain(nested, NULL, NULL, text) == LS_OK); /* no tag */
    strcpy(nested, "{{ ");
    for (int i = 0; i < 900; i++) {
        strcat(nested, i < 450 ? "not " : "- ");
    }
    strcat(nested, "1 }}");
    assert_int_equal(render_plain(nested, NULL, NULL, text), LS_ETOOLONG);
    strcpy(nested, "{{ 1");
    for (int i = 0; i < 500; i++) {
        strcat(nested, " + 1");
    }
    strcat(nested, " }}");
    assert_int_equal(render_plain(nested, NULL, NULL, text), LS_ETOOLONG);
    nested[0] = '\0';
    for (int i = 0; i < 150; i++) {
        strcat(nested, "{% if 1 %}");
    }
    assert_int_equal(render_plain(nested, NULL, NULL, text), LS_ETOOLONG);
    strcpy(nested, "{\"x\": ");
    for (int i = 0; i < 1500; i++) {
        strcat(nested, "[");
    }
    for (int i = 0; i < 1500; i++) {
        strcat(nested, "]");
    }
    strcat(nested, "}");
    assert_int_equal(render_plain("{{ x }}", nested, NULL, text), LS_ETOOLONG);
}

static void test_bad_arguments(void **state) {
    (void)state;
    ls_error err = {0};
    text_buffer out = {0};
    chat_template *t = parse("{{ messages }}{{ strftime_now('%Y') if now }}", 45, NULL, &err);
    json_t *object = json_object(), *empty = json_array(), *numbers = json_pack("[i]", 1);
    const json_t *bad[] = {NULL, object, empty, numbers};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        chat_render_params params = {.messages = bad[i]};
        assert_int_equal(chat_template_render(t, NULL, &params, &out, &err), LS_EINVAL);
        assert_int_equal(strncmp(err.text, "messages", 8), 0);
    }
    json_t *messages = json_pack("[{s:s}]", "role", "user");
    chat_render_params params = {.messages = messages, .tools = object};
    assert_int_equal(chat_template_render(t, NULL, &params, &out, &err), LS_EINVAL);
    params.tools = NULL;
    params.variables = messages;
    assert_int_equal(chat_template_render(t, NULL, &params, &out, NULL), LS_EINVAL);
    params.variables = NULL;
    json_object_set_new(json_array_get(messages, 0), "content", json_stringn_nocheck("\xC3", 1));
    assert_int_equal(chat_template_render(t, NULL, &params, &out, &err), LS_EINVAL);
    assert_int_equal(out.n, 0);
    text_buffer_deinit(&out);
    json_decref(object);
    json_decref(empty);
    json_decref(numbers);
    json_decref(messages);
    chat_template_close(&t);
    chat_template_close(&t);
}

static void test_generation_spans(void **state) {
    (void)state;
    static const char source[] = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}"
                                 "{{ m.content }}!{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    ls_error err = {0};
    text_buffer out = {0};
    chat_span *spans = NULL;
    size_t n_spans = 0;
    chat_template *t = parse(source, strlen(source), NULL, &err);
    assert_true(chat_template_has_generation(t));
    json_t *messages =
        json_loads("[{\"role\":\"user\",\"content\":\"\\u00e9\"},{\"role\":\"assistant\",\"content\":\"a\"},"
                   "{\"role\":\"user\",\"content\":\"b\"},{\"role\":\"assistant\",\"content\":\"\"}]",
                   0, NULL);
    chat_render_params params = {.messages = messages, .spans = &spans, .n_spans = &n_spans};
    assert_int_equal(text_buffer_append(&out, "before", 6, NULL), LS_OK);
    assert_int_equal(chat_template_render(t, NULL, &params, &out, &err), LS_OK);
    assert_string_equal(out.data, "before<user>\xC3\xA9<assistant>a!<user>b<assistant>!");
    assert_int_equal(n_spans, 2);
    assert_memory_equal(out.data + spans[0].from, "a!", 2);
    assert_int_equal(spans[0].to - spans[0].from, 2);
    assert_int_equal(spans[1].from, out.n - 1);
    assert_int_equal(spans[1].to, out.n);
    free(spans);
    json_decref(messages);
    text_buffer_deinit(&out);
    chat_template_close(&t);
}

/* ---- folders ---- */

static void write_file(const char *folder, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void remove_file(const char *folder, const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(remove(path), 0);
}

/* Renders the chosen template of the folder with its own special tokens. */
static void assert_folder(const char *folder, const char *name, bool has_tools, const char *expected) {
    ls_error err = {0};
    text_buffer out = {0};
    chat_templates *all = NULL;
    const chat_template *t = NULL;
    if (chat_templates_open(&all, folder, NULL, &err) < 0 || chat_templates_get(all, name, has_tools, &t, &err) < 0) {
        fail_msg("%s", err.text);
    }
    json_t *messages = json_pack("[{s:s}]", "role", "user");
    chat_render_params params = {.messages = messages};
    assert_int_equal(chat_template_render(t, chat_templates_special_tokens(all), &params, &out, &err), LS_OK);
    assert_string_equal(out.data, expected);
    text_buffer_deinit(&out);
    json_decref(messages);
    chat_templates_close(&all);
    assert_null(all);
}

static ls_status open_status(const char *folder, char text[512]) {
    ls_error err = {0};
    chat_templates *all = NULL;
    ls_status st = chat_templates_open(&all, folder, NULL, &err);
    snprintf(text, 512, "%s", err.text);
    assert_true((st == LS_OK) == (all != NULL));
    chat_templates_close(&all);
    return st;
}

static void test_folders(void **state) {
    (void)state;
    char folder[] = "/tmp/test-chat-template-XXXXXX", text[512], inner[512];
    assert_non_null(mkdtemp(folder));
    assert_int_equal(open_status(folder, text), LS_ENOTFOUND);
    write_file(folder, "tokenizer_config.json", "{\"eos_token\": \"</s>\"}");
    assert_int_equal(open_status(folder, text), LS_ENOTFOUND);
    write_file(
        folder, "tokenizer_config.json",
        "{\"chat_template\": \"one{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}\","
        " \"bos_token\": {\"content\": \"<s>\", \"lstrip\": false}, \"eos_token\": \"</s>\", \"pad_token\": null}");
    assert_folder(folder, NULL, true, "one<s></s>False");
    write_file(
        folder, "tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"default\", \"template\": \"D\"}, {\"name\": \"tool_use\", \"template\": "
        "\"T\"}, {\"name\": \"rag\", \"template\": \"R\"}]}");
    assert_folder(folder, NULL, false, "D");
    assert_folder(folder, NULL, true, "T");
    assert_folder(folder, "rag", true, "R");
    write_file(folder, "chat_template.jinja", "file");
    assert_folder(folder, NULL, true, "file");
    snprintf(inner, sizeof inner, "%s/additional_chat_templates", folder);
    assert_int_equal(mkdir(inner, 0700), 0);
    write_file(inner, "tool_use.jinja", "extra");
    assert_folder(folder, NULL, true, "extra");
    assert_folder(folder, "default", true, "file");
    remove_file(inner, "tool_use.jinja");
    remove_file(folder, "additional_chat_templates");
    write_file(folder, "chat_template.jinja", "x\n{% nope %}");
    assert_int_equal(open_status(folder, text), LS_EFORMAT);
    assert_string_equal(text, "chat_template.jinja:2: Encountered unknown tag 'nope'");
    remove_file(folder, "chat_template.jinja");
    write_file(folder, "tokenizer_config.json", "{\"chat_template\": [{\"name\": 1}]}");
    assert_int_equal(open_status(folder, text), LS_EFORMAT);
    write_file(folder, "tokenizer_config.json", "{\"chat_template\": 5}");
    assert_int_equal(open_status(folder, text), LS_EFORMAT);
    write_file(folder, "tokenizer_config.json", "{\"chat_template\": \"x\", \"bos_token\": 5}");
    assert_int_equal(open_status(folder, text), LS_EFORMAT);
    remove_file(folder, "tokenizer_config.json");
    assert_int_equal(rmdir(folder), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_vectors),    cmocka_unit_test(test_shared_vectors),
        cmocka_unit_test(test_errors_say_where), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_bad_arguments),    cmocka_unit_test(test_generation_spans),
        cmocka_unit_test(test_folders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
