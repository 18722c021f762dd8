/* Statements, and renderings as a whole. See eval.h and jinja.h. */
#include "text/jinja/jinja.h"

#include <stdio.h>
#include <string.h>

#include "text/utf8.h"

/* ---- frames and variables ---- */

ls_status jinja_frame_new(jinja_run *run, jinja_frame *outer, const jinja_function *function, jinja_frame **out,
                          ls_error *err) {
    jinja_frame *frame;
    TRY(jinja_take(run, 1, sizeof *frame, &frame, err));
    TRY(jinja_take(run, (size_t)function->n_slots, sizeof *frame->slot, &frame->slot, err));
    frame->outer = outer;
    *out = frame;
    return LS_OK;
}

jinja_value *jinja_slot(jinja_frame *frame, int hops, int slot) {
    while (hops-- > 0) {
        frame = frame->outer;
    }
    return &frame->slot[slot];
}

/* A variable of the rendering, a global function, or nothing. */
static jinja_value resolve(const jinja_run *run, const jinja_str *name) {
    const jinja_value *found = jinja_dict_find(run->variables, name->s, name->n);
    if (found != NULL) {
        return *found;
    }
    const jinja_builtin *function = jinja_find_function(name);
    return function == NULL ? (jinja_value){.kind = JINJA_MISSING}
                            : (jinja_value){.kind = JINJA_FUNCTION, .function = function};
}

ls_status jinja_scope_enter(jinja_run *run, jinja_frame *frame, const jinja_scope *scope, ls_error *err) {
    TRY(jinja_step(run, scope->n, err));
    for (size_t i = 0; i < scope->n; i++) {
        const jinja_variable *variable = &scope->variable[i];
        jinja_value *slot = &frame->slot[variable->slot];
        switch (variable->load) {
        case JL_PARAMETER:
            break;
        case JL_RESOLVE:
            *slot = resolve(run, variable->name);
            break;
        case JL_ALIAS:
            *slot = *jinja_slot(frame, variable->alias_hops, variable->alias_slot);
            break;
        case JL_UNDEFINED:
            *slot = (jinja_value){.kind = JINJA_MISSING};
            break;
        }
    }
    return LS_OK;
}

static void scope_leave(jinja_frame *frame, const jinja_scope *scope) {
    for (size_t i = 0; i < scope->n; i++) {
        frame->slot[scope->variable[i].slot] = (jinja_value){.kind = JINJA_MISSING};
    }
}

static ls_status assign_namespace(jinja_run *run, jinja_frame *frame, const jinja_node *target,
                                  const jinja_value *value, ls_error *err) {
    jinja_value *slot = jinja_slot(frame, target->hops, target->slot);
    if (slot->kind != JINJA_NAMESPACE) {
        return jinja_fail(run, err, "cannot assign attribute on non-namespace object");
    }
    return jinja_dict_set(run, slot->dict, target->value, *value, err);
}

ls_status jinja_assign(jinja_run *run, jinja_frame *frame, const jinja_node *target, const jinja_value *value,
                       ls_error *err) {
    if (target->kind == JN_NAME) {
        *jinja_slot(frame, target->hops, target->slot) = *value;
        return LS_OK;
    }
    if (target->kind == JN_NSREF) {
        return assign_namespace(run, frame, target, value, err);
    }
    jinja_list *items;
    TRY(jinja_collect(run, value, &items, err));
    if (items->n != target->list.n) {
        return jinja_fail(run, err, "%s values to unpack: expected %zu, got %zu",
                          items->n > target->list.n ? "too many" : "not enough", target->list.n, items->n);
    }
    for (size_t i = 0; i < items->n; i++) {
        TRY(jinja_assign(run, frame, target->list.node[i], &items->item[i], err));
    }
    return LS_OK;
}

/* All namespaces that a set statement assigns to are checked before its value is worked out. */
static ls_status check_namespaces(jinja_run *run, jinja_frame *frame, const jinja_node *target, ls_error *err) {
    if (target->kind == JN_NSREF && jinja_slot(frame, target->hops, target->slot)->kind != JINJA_NAMESPACE) {
        return jinja_fail(run, err, "cannot assign attribute on non-namespace object");
    }
    for (size_t i = 0; i < target->list.n; i++) {
        TRY(check_namespaces(run, frame, target->list.node[i], err));
    }
    return LS_OK;
}

/* ---- statements ---- */

static ls_status exec_output(jinja_run *run, jinja_frame *frame, const jinja_node *node, ls_error *err) {
    for (size_t i = 0; i < node->list.n; i++) {
        const jinja_node *item = node->list.node[i];
        jinja_value value;
        run->line = item->line;
        TRY(jinja_eval(run, frame, item, &value, err));
        TRY(jinja_text_add_str(run, run->out, &value, err));
    }
    return LS_OK;
}

/* A body whose output becomes a string. */
static ls_status capture(jinja_run *run, jinja_frame *frame, const jinja_nodes *body, jinja_flow *flow,
                         jinja_value *out, ls_error *err) {
    jinja_text text = {0}, *before = run->out;
    run->out = &text;
    ls_status st = jinja_exec_body(run, frame, body, flow, err);
    run->out = before;
    return st < 0 ? st : jinja_text_done(run, &text, out, err);
}

/* Set blocks and filter blocks. */
static ls_status exec_captured(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_flow *flow,
                               ls_error *err) {
    jinja_value value;
    TRY(jinja_scope_enter(run, frame, node->scope, err));
    TRY(capture(run, frame, &node->body, flow, &value, err));
    if (*flow == JINJA_FLOW_ON) {
        if (node->b != NULL) {
            TRY(jinja_eval_filter(run, frame, node->b, &value, &value, err));
        }
        run->line = node->line;
        if (node->kind == JN_SET_BLOCK) {
            TRY(jinja_assign(run, frame, node->a, &value, err));
        } else {
            TRY(jinja_text_add_str(run, run->out, &value, err));
        }
    }
    scope_leave(frame, node->scope);
    return LS_OK;
}

static ls_status exec_for(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_flow *flow, ls_error *err) {
    jinja_value over;
    jinja_loop *loop;
    TRY(jinja_eval(run, frame, node->b, &over, err));
    TRY(jinja_loop_start(run, frame, node, &over, &loop, err));
    bool broken = false, passed = false;
    while (!broken) {
        bool more;
        run->line = node->line;
        TRY(jinja_loop_next(run, loop, &more, err));
        if (!more) {
            break;
        }
        TRY(jinja_scope_enter(run, frame, node->scope, err));
        frame->slot[node->slot] = (jinja_value){.kind = JINJA_LOOP, .loop = loop};
        TRY(jinja_assign(run, frame, node->a, &loop->current, err));
        jinja_flow inner = JINJA_FLOW_ON;
        TRY(jinja_exec_body(run, frame, &node->body, &inner, err));
        broken = inner == JINJA_FLOW_BREAK;
        /* As in Jinja2, break and continue also jump over the note that there was a pass, at the end of the body. */
        passed = passed || inner == JINJA_FLOW_ON;
    }
    scope_leave(frame, node->scope);
    if (!passed && node->orelse.n > 0) {
        TRY(jinja_scope_enter(run, frame, node->else_scope, err));
        TRY(jinja_exec_body(run, frame, &node->orelse, flow, err));
        scope_leave(frame, node->else_scope);
    }
    return LS_OK;
}

static ls_status exec_if(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_flow *flow, ls_error *err) {
    for (;;) {
        jinja_value test;
        run->line = node->line;
        TRY(jinja_eval(run, frame, node->a, &test, err));
        if (jinja_truth(&test)) {
            return jinja_exec_body(run, frame, &node->body, flow, err);
        }
        if (node->orelse.n != 1 || node->orelse.node[0]->kind != JN_IF || node->orelse.node[0]->op != 1) {
            return jinja_exec_body(run, frame, &node->orelse, flow, err);
        }
        node = node->orelse.node[0];
    }
}

static ls_status macro_value(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out,
                             ls_error *err) {
    jinja_macro *macro;
    TRY(jinja_take(run, 1, sizeof *macro, &macro, err));
    *macro = (jinja_macro){.node = node, .frame = frame};
    *out = (jinja_value){.kind = JINJA_MACRO, .macro = macro};
    return LS_OK;
}

/* {% call(x) f(y) %}body{% endcall %}: f(y, caller=body). */
static ls_status exec_call_block(jinja_run *run, jinja_frame *frame, const jinja_node *node, ls_error *err) {
    jinja_value callee, value;
    jinja_call call;
    jinja_str **names;
    jinja_value *keywords, name;
    TRY(jinja_eval(run, frame, node->a->a, &callee, err));
    TRY(jinja_eval_call_args(run, frame, node->a->args, &call, err));
    TRY(jinja_take(run, call.n_keywords + 1, sizeof(void *), &names, err));
    TRY(jinja_take(run, call.n_keywords + 1, sizeof *keywords, &keywords, err));
    for (size_t k = 0; k < call.n_keywords; k++) {
        if (jinja_str_is(call.name[k], "caller")) {
            return jinja_fail(run, err, "a call block cannot be given 'caller'");
        }
        names[k] = call.name[k];
        keywords[k] = call.keyword[k];
    }
    TRY(jinja_str_borrow(&run->heap, "caller", strlen("caller"), &name, err));
    names[call.n_keywords] = name.str;
    TRY(macro_value(run, frame, node, &keywords[call.n_keywords], err));
    call.name = names;
    call.keyword = keywords;
    call.n_keywords++;
    TRY(jinja_call_value(run, &callee, &call, &value, err));
    if (value.kind != JINJA_STR) {
        return jinja_fail(run, err, "a call block must give a string, not %s", jinja_type_name(&value));
    }
    return jinja_text_add_str(run, run->out, &value, err);
}

static ls_status exec_generation(jinja_run *run, jinja_frame *frame, const jinja_node *node, ls_error *err) {
    jinja_value macro, value;
    TRY(macro_value(run, frame, node, &macro, err));
    TRY(jinja_call_value(run, &macro, &(jinja_call){0}, &value, err));
    jinja_spans *spans = run->spans;
    if (spans != NULL) {
        if (spans->n == spans->capacity) {
            size_t capacity = spans->capacity == 0 ? 16 : spans->capacity * 2;
            TRY(jinja_heap_grow(&run->heap, spans->span, spans->n * sizeof *spans->span, capacity * sizeof *spans->span,
                                &spans->span, err));
            spans->capacity = capacity;
        }
        spans->span[spans->n++] = (jinja_span){.from = run->page->n, .to = run->page->n + value.str->n};
    }
    return jinja_text_add_str(run, run->out, &value, err);
}

static ls_status exec_with(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_flow *flow,
                           ls_error *err) {
    TRY(jinja_scope_enter(run, frame, node->scope, err));
    for (size_t i = 0; i < node->list.n; i++) {
        jinja_value value;
        TRY(jinja_eval(run, frame, node->list2.node[i], &value, err));
        TRY(jinja_assign(run, frame, node->list.node[i], &value, err));
    }
    TRY(jinja_exec_body(run, frame, &node->body, flow, err));
    scope_leave(frame, node->scope);
    return LS_OK;
}

static ls_status exec_set(jinja_run *run, jinja_frame *frame, const jinja_node *node, ls_error *err) {
    jinja_value value;
    TRY(check_namespaces(run, frame, node->a, err));
    TRY(jinja_eval(run, frame, node->b, &value, err));
    return jinja_assign(run, frame, node->a, &value, err);
}

static ls_status exec_statement(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_flow *flow,
                                ls_error *err) {
    jinja_value macro;
    switch (node->kind) {
    case JN_OUTPUT:
        return exec_output(run, frame, node, err);
    case JN_SET:
        return exec_set(run, frame, node, err);
    case JN_SET_BLOCK:
    case JN_FILTER_BLOCK:
        return exec_captured(run, frame, node, flow, err);
    case JN_FOR:
        return exec_for(run, frame, node, flow, err);
    case JN_IF:
        return exec_if(run, frame, node, flow, err);
    case JN_MACRO:
        TRY(macro_value(run, frame, node, &macro, err));
        *jinja_slot(frame, node->hops, node->slot) = macro;
        return LS_OK;
    case JN_CALL_BLOCK:
        return exec_call_block(run, frame, node, err);
    case JN_GENERATION:
        return exec_generation(run, frame, node, err);
    case JN_WITH:
        return exec_with(run, frame, node, flow, err);
    case JN_BREAK:
        *flow = JINJA_FLOW_BREAK;
        return LS_OK;
    case JN_CONTINUE:
        *flow = JINJA_FLOW_CONTINUE;
        return LS_OK;
    default:
        return error_set(err, LS_EINTERNAL, "template: node %d is no statement", (int)node->kind);
    }
}

ls_status jinja_exec_body(jinja_run *run, jinja_frame *frame, const jinja_nodes *body, jinja_flow *flow,
                          ls_error *err) {
    TRY(jinja_enter(run, err));
    ls_status st = LS_OK;
    for (size_t i = 0; i < body->n && st >= 0 && *flow == JINJA_FLOW_ON; i++) {
        run->line = body->node[i]->line;
        st = exec_statement(run, frame, body->node[i], flow, err);
    }
    jinja_leave(run);
    return st;
}

/* ---- templates and renderings ---- */

ls_status jinja_template_init(jinja_template *t, const char *name, const char *source, size_t n_bytes,
                              const jinja_limits *limits, ls_error *err) {
    ls_error ignored = {0};
    err = err == NULL ? &ignored : err;
    if (n_bytes > limits->source_bytes) {
        return error_set(err, LS_ETOOLONG, "%s: %zu bytes, more than the %zu that a template may have", name, n_bytes,
                         limits->source_bytes);
    }
    size_t valid = utf8_valid_bytes(source, n_bytes);
    if (valid < n_bytes) {
        return error_set(err, LS_EFORMAT, "%s: not valid UTF-8 at byte %zu", name, valid);
    }
    jinja_template fresh = {.limits = *limits};
    fresh.heap.limit_bytes = limits->heap_bytes;
    snprintf(fresh.name, sizeof fresh.name, "%s", name);
    fresh.name[utf8_valid_bytes(fresh.name, strlen(fresh.name))] = '\0';
    ls_status st = jinja_parse(&fresh.heap, fresh.name, source, n_bytes, &fresh.tree, err);
    if (st < 0) {
        jinja_template_deinit(&fresh);
        return st;
    }
    *t = fresh;
    return LS_OK;
}

void jinja_template_deinit(jinja_template *t) {
    jinja_heap_deinit(&t->heap);
    *t = (jinja_template){0};
}

ls_status jinja_render_init(jinja_render *r, const jinja_template *t, const struct tm *now, ls_error *err) {
    ls_error ignored = {0};
    err = err == NULL ? &ignored : err;
    jinja_render fresh = {.t = t};
    fresh.run = (jinja_run){.limits = t->limits, .name = t->name, .line = 1, .now = now};
    fresh.run.heap.limit_bytes = t->limits.heap_bytes;
    ls_status st = jinja_dict_new(&fresh.run, JINJA_DICT, 0, &fresh.variables, err);
    if (st < 0) {
        jinja_heap_deinit(&fresh.run.heap);
        return st;
    }
    *r = fresh;
    return LS_OK;
}

void jinja_render_deinit(jinja_render *r) {
    jinja_heap_deinit(&r->run.heap);
    *r = (jinja_render){0};
}

static ls_status from_json(jinja_run *run, const json_t *json, jinja_value *out, ls_error *err);

static ls_status string_from_json(jinja_run *run, const char *s, size_t n, jinja_value *out, ls_error *err) {
    if (utf8_valid_bytes(s, n) < n) {
        return error_set(err, LS_EINVAL, "%s: a string of the data is not valid UTF-8", run->name);
    }
    TRY(jinja_step(run, n / 64, err));
    return jinja_str_copy(&run->heap, s, n, out, err);
}

static ls_status dict_from_json(jinja_run *run, const json_t *json, jinja_value *out, ls_error *err) {
    const char *name;
    json_t *item;
    jinja_value dict, key, value;
    TRY(jinja_dict_new(run, JINJA_DICT, json_object_size(json), &dict, err));
    json_object_foreach((json_t *)json, name, item) { /* jansson's macro wants it writable and writes nothing */
        TRY(string_from_json(run, name, strlen(name), &key, err));
        TRY(from_json(run, item, &value, err));
        TRY(jinja_dict_set(run, dict.dict, key, value, err));
    }
    *out = dict;
    return LS_OK;
}

static ls_status nested_from_json(jinja_run *run, const json_t *json, jinja_value *out, ls_error *err) {
    if (json_is_object(json)) {
        return dict_from_json(run, json, out, err);
    }
    jinja_value list, item;
    TRY(jinja_list_new(run, JINJA_LIST, json_array_size(json), &list, err));
    for (size_t i = 0; i < json_array_size(json); i++) {
        TRY(from_json(run, json_array_get(json, i), &item, err));
        TRY(jinja_list_push(run, list.list, item, err));
    }
    *out = list;
    return LS_OK;
}

static ls_status from_json(jinja_run *run, const json_t *json, jinja_value *out, ls_error *err) {
    switch (json_typeof(json)) {
    case JSON_OBJECT:
    case JSON_ARRAY: {
        TRY(jinja_enter(run, err));
        ls_status st = nested_from_json(run, json, out, err);
        jinja_leave(run);
        return st;
    }
    case JSON_STRING:
        return string_from_json(run, json_string_value(json), json_string_length(json), out, err);
    case JSON_INTEGER:
        *out = jinja_int(json_integer_value(json));
        return LS_OK;
    case JSON_REAL:
        *out = jinja_float(json_real_value(json));
        return LS_OK;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = jinja_bool(json_is_true(json));
        return LS_OK;
    case JSON_NULL:
        break;
    }
    *out = jinja_none();
    return LS_OK;
}

ls_status jinja_render_set(jinja_render *r, const char *name, const json_t *value, ls_error *err) {
    ls_error ignored = {0};
    err = err == NULL ? &ignored : err;
    jinja_value key, converted;
    TRY(string_from_json(&r->run, name, strlen(name), &key, err));
    TRY(from_json(&r->run, value, &converted, err));
    return jinja_dict_set(&r->run, r->variables.dict, key, converted, err);
}

ls_status jinja_render_run(jinja_render *r, bool want_spans, text_buffer *out, ls_error *err) {
    ls_error ignored = {0};
    err = err == NULL ? &ignored : err;
    jinja_run *run = &r->run;
    const jinja_tree *tree = &r->t->tree;
    jinja_text page = {0};
    jinja_frame *frame;
    jinja_flow flow = JINJA_FLOW_ON;
    run->variables = r->variables.dict;
    run->out = &page;
    run->page = &page;
    run->spans = want_spans ? &r->spans : NULL;
    TRY(jinja_frame_new(run, NULL, tree->function, &frame, err));
    TRY(jinja_scope_enter(run, frame, tree->function->scope, err));
    TRY(jinja_exec_body(run, frame, &tree->body, &flow, err));
    run->out = NULL;
    run->page = NULL;
    return text_buffer_append(out, page.s, page.n, err);
}
