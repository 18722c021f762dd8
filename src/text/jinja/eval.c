/* Expressions. See eval.h. */
#include "text/jinja/eval.h"

#include <string.h>

/* ---- arguments of calls ---- */

static ls_status push_keyword(jinja_run *run, jinja_call *call, size_t *capacity, jinja_str *name, jinja_value value,
                              ls_error *err) {
    for (size_t k = 0; k < call->n_keywords; k++) {
        if (call->name[k]->n == name->n && memcmp(call->name[k]->s, name->s, name->n) == 0) {
            return jinja_fail(run, err, "got multiple values for keyword argument '%.100s'", name->s);
        }
    }
    TRY(jinja_step(run, call->n_keywords, err));
    if (call->n_keywords == *capacity) {
        size_t more = *capacity == 0 ? 4 : *capacity * 2;
        jinja_str **names;
        jinja_value *values;
        TRY(jinja_take(run, more, sizeof(void *), &names, err));
        TRY(jinja_take(run, more, sizeof *values, &values, err));
        if (call->n_keywords > 0) {
            memcpy(names, call->name, call->n_keywords * sizeof(void *));
            memcpy(values, call->keyword, call->n_keywords * sizeof *values);
        }
        call->name = names;
        call->keyword = values;
        *capacity = more;
    }
    call->name[call->n_keywords] = name;
    call->keyword[call->n_keywords++] = value;
    return LS_OK;
}

static ls_status push_star_star(jinja_run *run, jinja_call *call, size_t *capacity, const jinja_value *value,
                                ls_error *err) {
    if (value->kind != JINJA_DICT) {
        return jinja_fail(run, err, "the argument after ** must be a mapping, not %s", jinja_type_name(value));
    }
    for (size_t i = 0; i < value->dict->n; i++) {
        const jinja_entry *entry = &value->dict->entry[i];
        if (entry->key.kind != JINJA_STR) {
            return jinja_fail(run, err, "keywords must be strings");
        }
        TRY(push_keyword(run, call, capacity, entry->key.str, entry->value, err));
    }
    return LS_OK;
}

ls_status jinja_eval_call_args(jinja_run *run, jinja_frame *frame, const jinja_args *args, jinja_call *out,
                               ls_error *err) {
    *out = (jinja_call){0};
    if (args == NULL) {
        return LS_OK;
    }
    jinja_value list, value;
    size_t capacity = 0;
    TRY(jinja_list_new(run, JINJA_LIST, args->positional.n, &list, err));
    for (size_t i = 0; i < args->positional.n; i++) {
        TRY(jinja_eval(run, frame, args->positional.node[i], &value, err));
        TRY(jinja_list_push(run, list.list, value, err));
    }
    if (args->star != NULL) {
        jinja_list *more;
        TRY(jinja_eval(run, frame, args->star, &value, err));
        TRY(jinja_collect(run, &value, &more, err));
        for (size_t i = 0; i < more->n; i++) {
            TRY(jinja_list_push(run, list.list, more->item[i], err));
        }
    }
    for (size_t i = 0; i < args->keywords.n; i++) {
        TRY(jinja_eval(run, frame, args->keywords.node[i], &value, err));
        TRY(push_keyword(run, out, &capacity, args->keyword_names.node[i]->value.str, value, err));
    }
    if (args->star_star != NULL) {
        TRY(jinja_eval(run, frame, args->star_star, &value, err));
        TRY(push_star_star(run, out, &capacity, &value, err));
    }
    out->arg = list.list->item;
    out->n = list.list->n;
    return LS_OK;
}

/* ---- parts of expressions ---- */

static ls_status eval_name(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out,
                           ls_error *err) {
    const jinja_value *slot = jinja_slot(frame, node->hops, node->slot);
    if (!jinja_given(slot)) {
        return jinja_undefined_of(run, NULL, node->name, out, err);
    }
    *out = *slot;
    return LS_OK;
}

static ls_status eval_items(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out,
                            ls_error *err) {
    jinja_value list, item;
    TRY(jinja_list_new(run, node->kind == JN_TUPLE ? JINJA_TUPLE : JINJA_LIST, node->list.n, &list, err));
    for (size_t i = 0; i < node->list.n; i++) {
        TRY(jinja_eval(run, frame, node->list.node[i], &item, err));
        TRY(jinja_list_push(run, list.list, item, err));
    }
    *out = list;
    return LS_OK;
}

static ls_status eval_dict(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out,
                           ls_error *err) {
    jinja_value dict, key, value;
    TRY(jinja_dict_new(run, JINJA_DICT, node->list.n / 2, &dict, err));
    for (size_t i = 0; i < node->list.n; i += 2) {
        TRY(jinja_eval(run, frame, node->list.node[i], &key, err));
        TRY(jinja_eval(run, frame, node->list.node[i + 1], &value, err));
        TRY(jinja_dict_set(run, dict.dict, key, value, err));
    }
    *out = dict;
    return LS_OK;
}

static ls_status eval_cond(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out,
                           ls_error *err) {
    jinja_value test;
    TRY(jinja_eval(run, frame, node->b, &test, err));
    if (jinja_truth(&test)) {
        return jinja_eval(run, frame, node->a, out, err);
    }
    if (node->c != NULL) {
        return jinja_eval(run, frame, node->c, out, err);
    }
    return jinja_undefined_because(run, "the inline if-expression was false and has no else", out, err);
}

static ls_status eval_and_or(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out,
                             ls_error *err) {
    jinja_value left;
    TRY(jinja_eval(run, frame, node->a, &left, err));
    if (jinja_truth(&left) == (node->kind == JN_OR)) {
        *out = left;
        return LS_OK;
    }
    return jinja_eval(run, frame, node->b, out, err);
}

static ls_status compare(jinja_run *run, int op, const jinja_value *a, const jinja_value *b, bool *out, ls_error *err) {
    int order = 0;
    bool unordered = false;
    switch (op) {
    case JOP_EQ:
    case JOP_NE:
        TRY(jinja_equal(run, a, b, out, err));
        *out = *out == (op == JOP_EQ);
        return LS_OK;
    case JOP_IN:
    case JOP_NOT_IN:
        TRY(jinja_contains(run, a, b, out, err));
        *out = *out == (op == JOP_IN);
        return LS_OK;
    case '<':
        TRY(jinja_order(run, a, b, "<", &order, &unordered, err));
        *out = order < 0;
        break;
    case '>':
        TRY(jinja_order(run, a, b, ">", &order, &unordered, err));
        *out = order > 0;
        break;
    case JOP_LTEQ:
        TRY(jinja_order(run, a, b, "<=", &order, &unordered, err));
        *out = order <= 0;
        break;
    default:
        TRY(jinja_order(run, a, b, ">=", &order, &unordered, err));
        *out = order >= 0;
    }
    *out = *out && !unordered;
    return LS_OK;
}

/* a < b < c asks a < b and b < c, and stops at the first that is not so. */
static ls_status eval_compare(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out,
                              ls_error *err) {
    jinja_value left, right;
    bool holds = true;
    TRY(jinja_eval(run, frame, node->a, &left, err));
    for (size_t i = 0; i < node->list.n && holds; i++) {
        const jinja_node *operand = node->list.node[i];
        TRY(jinja_eval(run, frame, operand->a, &right, err));
        TRY(compare(run, operand->op, &left, &right, &holds, err));
        left = right;
    }
    *out = jinja_bool(holds);
    return LS_OK;
}

static ls_status eval_concat(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out,
                             ls_error *err) {
    jinja_value items;
    jinja_text text = {0};
    TRY(eval_items(run, frame, node, &items, err));
    for (size_t i = 0; i < items.list->n; i++) {
        TRY(jinja_text_add_str(run, &text, &items.list->item[i], err));
    }
    return jinja_text_done(run, &text, out, err);
}

static ls_status eval_getitem(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out,
                              ls_error *err) {
    jinja_value of, key;
    TRY(jinja_eval(run, frame, node->a, &of, err));
    if (node->b->kind != JN_SLICE) {
        TRY(jinja_eval(run, frame, node->b, &key, err));
        return jinja_get_item(run, &of, &key, out, err);
    }
    const jinja_node *part[3] = {node->b->a, node->b->b, node->b->c};
    jinja_value bound[3];
    for (int i = 0; i < 3; i++) {
        bound[i] = jinja_none();
        if (part[i] != NULL) {
            TRY(jinja_eval(run, frame, part[i], &bound[i], err));
        }
    }
    return jinja_get_slice(run, &of, bound, out, err);
}

static ls_status eval_call(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out,
                           ls_error *err) {
    jinja_value callee;
    jinja_call call;
    TRY(jinja_eval(run, frame, node->a, &callee, err));
    TRY(jinja_eval_call_args(run, frame, node->args, &call, err));
    return jinja_call_value(run, &callee, &call, out, err);
}

static ls_status apply(jinja_run *run, jinja_frame *frame, const jinja_node *node, const jinja_value *input,
                       jinja_value *out, ls_error *err) {
    jinja_call call;
    if (node->builtin == NULL) {
        return jinja_fail(run, err, "No %s named '%.100s' found.", node->kind == JN_FILTER ? "filter" : "test",
                          node->name->s);
    }
    TRY(jinja_eval_call_args(run, frame, node->args, &call, err));
    return jinja_invoke(run, node->builtin, input, &call, out, err);
}

ls_status jinja_eval_filter(jinja_run *run, jinja_frame *frame, const jinja_node *node, const jinja_value *input,
                            jinja_value *out, ls_error *err) {
    TRY(jinja_enter(run, err));
    jinja_value inner = *input;
    ls_status st;
    if (node->a != NULL) {
        TRY_GOTO(jinja_eval_filter(run, frame, node->a, input, &inner, err), fail);
    }
    run->line = node->line;
    TRY_GOTO(apply(run, frame, node, &inner, out, err), fail);
fail:
    jinja_leave(run);
    return st;
}

static ls_status eval_unary_of(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out,
                               ls_error *err) {
    jinja_value a, b;
    TRY(jinja_eval(run, frame, node->a, &a, err));
    switch (node->kind) {
    case JN_NOT:
        *out = jinja_bool(!jinja_truth(&a));
        return LS_OK;
    case JN_UNARY:
        return jinja_unary(run, node->op, &a, out, err);
    case JN_GETATTR:
        return jinja_get_attribute(run, &a, node->name, out, err);
    case JN_FILTER:
    case JN_TEST:
        return apply(run, frame, node, &a, out, err);
    default:
        TRY(jinja_eval(run, frame, node->b, &b, err));
        return jinja_binary(run, node->op, &a, &b, out, err);
    }
}

static ls_status eval_kind(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out,
                           ls_error *err) {
    switch (node->kind) {
    case JN_NAME:
        return eval_name(run, frame, node, out, err);
    case JN_TUPLE:
    case JN_LIST:
        return eval_items(run, frame, node, out, err);
    case JN_DICT:
        return eval_dict(run, frame, node, out, err);
    case JN_COND:
        return eval_cond(run, frame, node, out, err);
    case JN_OR:
    case JN_AND:
        return eval_and_or(run, frame, node, out, err);
    case JN_COMPARE:
        return eval_compare(run, frame, node, out, err);
    case JN_CONCAT:
        return eval_concat(run, frame, node, out, err);
    case JN_GETITEM:
        return eval_getitem(run, frame, node, out, err);
    case JN_CALL:
        return eval_call(run, frame, node, out, err);
    case JN_NOT:
    case JN_UNARY:
    case JN_BINARY:
    case JN_GETATTR:
    case JN_FILTER:
    case JN_TEST:
        return eval_unary_of(run, frame, node, out, err);
    default:
        return error_set(err, LS_EINTERNAL, "template: node %d is no expression", (int)node->kind);
    }
}

ls_status jinja_eval(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out, ls_error *err) {
    if (node->kind == JN_CONST) {
        *out = node->value;
        return LS_OK;
    }
    TRY(jinja_enter(run, err));
    int line = run->line;
    run->line = node->line;
    jinja_value value;
    ls_status st = eval_kind(run, frame, node, &value, err);
    jinja_leave(run);
    if (st < 0) {
        return st;
    }
    run->line = line;
    *out = value;
    return LS_OK;
}
