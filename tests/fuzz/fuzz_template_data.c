/*
 * Fuzz target: the data of a rendering, as a server gets it in a request: JSON {"messages": .., "tools": .., ...}, against
 * templates that try most of what templates do with data. The first byte chooses the template.
 */
#include "text/chat_template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const TEMPLATES[] = {
    /* ChatML with tools, in the manner of Qwen */
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}"
    "{%- endif %}{%- set ns = namespace(last=messages|length - 1, open=true) %}{%- for message in messages[::-1] %}"
    "{%- if ns.open and message.role == 'user' and message.content is string and not "
    "message.content.startswith('<tool>') %}{%- set ns.open = false %}{%- set ns.last = loop.revindex0 %}{%- endif %}"
    "{%- endfor %}{%- for message in messages %}{%- set content = message.content if message.content is string else '' "
    "%}{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>' ~ message.role ~ '\\n' ~ content | trim }}{%- for call in message.tool_calls or [] %}"
    "{%- if call.function %}{%- set call = call.function %}{%- endif %}{{- call.name ~ (call.arguments if "
    "call.arguments is string else call.arguments | tojson(indent=2)) }}{%- endfor %}{%- if loop.index0 > ns.last and "
    "loop.last %}!{%- endif %}{%- endfor %}",
    /* strict alternation, in the manner of Mistral */
    "{{ bos_token }}{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate: ' ~ m) }}"
    "{% endif %}{% if m == users[-1] %}{{ tools | string }}{% endif %}{{ m['content'] + eos_token }}{% endfor %}",
    /* everything else */
    "{% macro walk(v, depth=0) %}{% if v is mapping %}{% for k, x in v | dictsort %}{{ k | upper }}={{ walk(x, depth + "
    "1) }};{% endfor %}{% elif v is string %}{{ v | title | replace('a', '<') | e }}{{ v.split() | unique | join('/') "
    "}}{{ v[::-2] }}{{ v[1:3] | lower }}{{ v.splitlines() | first }}{{ v | int }}{{ v | float | round(2) }}{% elif v "
    "is iterable %}{% for x in v %}{{ loop.index }}{{ loop.length }}{{ walk(x, depth + 1) }}{% endfor %}{{ v | sort | "
    "map('string') | join }}{% elif v is number %}{{ v * 2 + 1 }}{{ v // 3 }}{{ v % 7 }}{{ -v | abs }}{{ v ** 2 }}{% "
    "else %}{{ v }}{% endif %}{% endmacro %}{{ walk(messages) }}{{ walk(tools) }}{{ walk(documents) }}",
};
enum { N_TEMPLATES = sizeof TEMPLATES / sizeof *TEMPLATES };

static void require(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const chat_template_limits limits = {.output_bytes = 1 << 18, .memory_bytes = 1 << 24, .steps = 200000};
    json_t *root = size > 1 ? json_loadb((const char *)data + 1, size - 1, JSON_ALLOW_NUL, NULL) : NULL;
    if (root == NULL) {
        return 0;
    }
    ls_error err = {0};
    chat_template *t = NULL;
    const char *source = TEMPLATES[data[0] % N_TEMPLATES];
    require(chat_template_parse(&t, "data.jinja", source, strlen(source), &limits, &err) == LS_OK, err.text);
    text_buffer out = {0};
    chat_render_params params = {.messages = json_object_get(root, "messages"),
                                 .tools = json_object_get(root, "tools"),
                                 .documents = json_object_get(root, "documents"),
                                 .variables = json_object_get(root, "variables")};
    ls_status st = chat_template_render(t, NULL, &params, &out, &err);
    require(st == LS_OK ? utf8_valid_bytes(out.data, out.n) == out.n : out.n == 0, "text or nothing");
    require(st == LS_OK || err.status == st, "a failure has a text");
    text_buffer_deinit(&out);
    chat_template_close(&t);
    json_decref(root);
    return 0;
}
