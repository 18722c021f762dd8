/* Expressions: a method per level of precedence, as in jinja2/parser.py. See parse.h. */
#include <stdio.h>
#include <string.h>

#include "text/jinja/builtin.h"
#include "text/jinja/parse.h"

ls_status jinja_nest(jinja_parser *p, ls_error *err) {
    if (p->nesting >= JINJA_MAX_NESTING) {
        return PARSE_FAIL_AS(p, LS_ETOOLONG, "nested deeper than %d levels", JINJA_MAX_NESTING);
    }
    p->nesting++;
    return LS_OK;
}

ls_status jinja_node_new(jinja_parser *p, jinja_node_kind kind, int line, jinja_node **out, ls_error *err) {
    jinja_node *node;
    TRY(jinja_heap_take(p->heap, sizeof *node, &node, err));
    node->kind = kind;
    node->line = line;
    node->depth = 1;
    *out = node;
    return LS_OK;
}

ls_status jinja_adopt(jinja_parser *p, jinja_node *parent, const jinja_node *child, ls_error *err) {
    if (child != NULL && child->depth >= parent->depth) {
        parent->depth = child->depth + 1;
        if (parent->depth > JINJA_MAX_TREE_DEPTH) {
            return PARSE_FAIL_AS(p, LS_ETOOLONG, "an expression of more than %d levels", JINJA_MAX_TREE_DEPTH);
        }
    }
    return LS_OK;
}

ls_status jinja_nodes_push(jinja_parser *p, jinja_nodes *nodes, jinja_node *node, ls_error *err) {
    if (nodes->n == nodes->capacity) {
        size_t capacity = nodes->capacity == 0 ? 4 : nodes->capacity * 2;
        TRY(jinja_heap_grow(p->heap, nodes->node, nodes->n * sizeof node, capacity * sizeof(void *), &nodes->node,
                            err));
        nodes->capacity = capacity;
    }
    nodes->node[nodes->n++] = node;
    return LS_OK;
}

static ls_status push_child(jinja_parser *p, jinja_node *parent, jinja_nodes *nodes, jinja_node *child, ls_error *err) {
    TRY(jinja_nodes_push(p, nodes, child, err));
    return jinja_adopt(p, parent, child, err);
}

static ls_status new_with(jinja_parser *p, jinja_node_kind kind, int op, int line, jinja_node *a, jinja_node *b,
                          jinja_node **out, ls_error *err) {
    jinja_node *node;
    TRY(jinja_node_new(p, kind, line, &node, err));
    node->op = op;
    node->a = a;
    node->b = b;
    TRY(jinja_adopt(p, node, a, err));
    TRY(jinja_adopt(p, node, b, err));
    *out = node;
    return LS_OK;
}

const char *jinja_token_text(const jinja_token *token, char out[32]) {
    static const char *const kinds[] = {
        [JT_EOF] = "end of template", [JT_DATA] = "template text", [JT_VARIABLE_BEGIN] = "{{",
        [JT_VARIABLE_END] = "}}",     [JT_BLOCK_BEGIN] = "{%",     [JT_BLOCK_END] = "%}",
        [JT_STRING] = "string",       [JT_INTEGER] = "integer",    [JT_FLOAT] = "float",
    };
    static const char two[][3] = {"//", "**", "==", "!=", ">=", "<="}, letters[] = "fpengl";
    if (token->kind == JT_NAME) {
        snprintf(out, 32, "%.31s", token->value.str->s);
    } else if (token->kind == JT_OPERATOR) {
        const char *found = strchr(letters, token->op);
        snprintf(out, 32, found ? "%s" : "%.0s%c", found ? two[found - letters] : "", token->op);
    } else {
        snprintf(out, 32, "%s", kinds[token->kind]);
    }
    return out;
}

ls_status jinja_expect_op(jinja_parser *p, int op, ls_error *err) {
    if (!skip_op(p, op)) {
        char text[32];
        return PARSE_FAIL(p, "expected token '%c', got '%s'", op, jinja_token_text(p->token, text));
    }
    return LS_OK;
}

ls_status jinja_expect_name(jinja_parser *p, jinja_str **name, ls_error *err) {
    if (p->token->kind != JT_NAME) {
        char text[32];
        return PARSE_FAIL(p, "expected a name, got '%s'", jinja_token_text(p->token, text));
    }
    *name = p->token->value.str;
    next_token(p);
    return LS_OK;
}

static ls_status const_node(jinja_parser *p, jinja_value value, int line, jinja_node **out, ls_error *err) {
    TRY(jinja_node_new(p, JN_CONST, line, out, err));
    (*out)->value = value;
    return LS_OK;
}

/* ---- primaries ---- */

/* "a" "b" is one string. */
static ls_status parse_strings(jinja_parser *p, jinja_node **out, ls_error *err) {
    const jinja_token *first = p->token;
    size_t n = 0;
    for (; p->token->kind == JT_STRING; next_token(p)) {
        n += p->token->value.str->n;
    }
    if (p->token == first + 1) {
        return const_node(p, first->value, first->line, out, err);
    }
    char *joined;
    TRY(jinja_heap_take(p->heap, n + 1, &joined, err));
    size_t at = 0;
    for (const jinja_token *token = first; token < p->token; token++) {
        memcpy(joined + at, token->value.str->s, token->value.str->n);
        at += token->value.str->n;
    }
    jinja_value value;
    TRY(jinja_str_borrow(p->heap, joined, n, &value, err));
    return const_node(p, value, first->line, out, err);
}

static ls_status parse_list(jinja_parser *p, jinja_node **out, ls_error *err) {
    jinja_node *list;
    TRY(jinja_node_new(p, JN_LIST, p->token->line, &list, err));
    TRY(jinja_expect_op(p, '[', err));
    while (!at_op(p, ']')) {
        if (list->list.n > 0) {
            TRY(jinja_expect_op(p, ',', err));
            if (at_op(p, ']')) {
                break;
            }
        }
        jinja_node *item;
        TRY(jinja_parse_expression(p, &item, err));
        TRY(push_child(p, list, &list->list, item, err));
    }
    *out = list;
    return jinja_expect_op(p, ']', err);
}

static ls_status parse_dict(jinja_parser *p, jinja_node **out, ls_error *err) {
    jinja_node *dict;
    TRY(jinja_node_new(p, JN_DICT, p->token->line, &dict, err));
    TRY(jinja_expect_op(p, '{', err));
    while (!at_op(p, '}')) {
        if (dict->list.n > 0) {
            TRY(jinja_expect_op(p, ',', err));
            if (at_op(p, '}')) {
                break;
            }
        }
        jinja_node *key, *value;
        TRY(jinja_parse_expression(p, &key, err));
        TRY(jinja_expect_op(p, ':', err));
        TRY(jinja_parse_expression(p, &value, err));
        TRY(push_child(p, dict, &dict->list, key, err));
        TRY(push_child(p, dict, &dict->list, value, err));
    }
    *out = dict;
    return jinja_expect_op(p, '}', err);
}

static ls_status parse_word(jinja_parser *p, bool with_namespace, jinja_node **out, ls_error *err) {
    static const struct {
        const char *word;
        jinja_value value;
    } constants[] = {
        {"true", {.kind = JINJA_BOOL, .b = true}},
        {"True", {.kind = JINJA_BOOL, .b = true}},
        {"false", {.kind = JINJA_BOOL, .b = false}},
        {"False", {.kind = JINJA_BOOL, .b = false}},
        {"none", {.kind = JINJA_NONE}},
        {"None", {.kind = JINJA_NONE}},
    };
    const jinja_token *token = p->token;
    next_token(p);
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
        if (jinja_str_is(token->value.str, constants[i].word)) {
            return const_node(p, constants[i].value, token->line, out, err);
        }
    }
    jinja_node *node;
    TRY(jinja_node_new(p, JN_NAME, token->line, &node, err));
    node->name = token->value.str;
    if (with_namespace && skip_op(p, '.')) {
        jinja_str *attribute;
        node->kind = JN_NSREF;
        TRY(jinja_expect_name(p, &attribute, err));
        node->value = (jinja_value){.kind = JINJA_STR, .str = attribute};
    }
    *out = node;
    return LS_OK;
}

static ls_status parse_items(jinja_parser *p, bool simple, bool with_cond, bool with_namespace, bool in_brackets,
                             jinja_tuple_end end, jinja_node **out, ls_error *err);

static ls_status parse_primary(jinja_parser *p, bool with_namespace, jinja_node **out, ls_error *err) {
    const jinja_token *token = p->token;
    switch (token->kind) {
    case JT_NAME:
        return parse_word(p, with_namespace, out, err);
    case JT_STRING:
        return parse_strings(p, out, err);
    case JT_INTEGER:
    case JT_FLOAT:
        next_token(p);
        return const_node(p, token->value, token->line, out, err);
    default:
        break;
    }
    if (skip_op(p, '(')) {
        TRY(parse_items(p, false, true, false, true, TUPLE_TO_TAG, out, err));
        return jinja_expect_op(p, ')', err);
    }
    if (at_op(p, '[')) {
        return parse_list(p, out, err);
    }
    if (at_op(p, '{')) {
        return parse_dict(p, out, err);
    }
    char text[32];
    return PARSE_FAIL(p, "unexpected '%s'", jinja_token_text(token, text));
}

/* ---- calls, attributes, filters, tests ---- */

static ls_status parse_keyword(jinja_parser *p, jinja_node *owner, jinja_args *args, ls_error *err) {
    jinja_node *name, *value;
    TRY(const_node(p, p->token->value, p->token->line, &name, err));
    for (size_t i = 0; i < args->keyword_names.n; i++) {
        if (jinja_str_is(args->keyword_names.node[i]->value.str, name->value.str->s)) {
            return PARSE_FAIL(p, "keyword argument repeated: %.100s", name->value.str->s);
        }
    }
    p->token += 2;
    TRY(jinja_parse_expression(p, &value, err));
    TRY(jinja_nodes_push(p, &args->keyword_names, name, err));
    return push_child(p, owner, &args->keywords, value, err);
}

static ls_status parse_argument(jinja_parser *p, jinja_node *owner, jinja_args *args, ls_error *err) {
    bool good = true;
    jinja_node *value = NULL;
    if (at_op(p, '*')) {
        good = args->star == NULL && args->star_star == NULL;
        next_token(p);
        TRY(jinja_parse_expression(p, &args->star, err));
        TRY(jinja_adopt(p, owner, args->star, err));
    } else if (at_op(p, JOP_POW)) {
        good = args->star_star == NULL;
        next_token(p);
        TRY(jinja_parse_expression(p, &args->star_star, err));
        TRY(jinja_adopt(p, owner, args->star_star, err));
    } else if (p->token->kind == JT_NAME && p->token[1].kind == JT_OPERATOR && p->token[1].op == '=') {
        good = args->star_star == NULL;
        TRY(parse_keyword(p, owner, args, err));
    } else {
        good = args->star == NULL && args->star_star == NULL && args->keywords.n == 0;
        TRY(jinja_parse_expression(p, &value, err));
        TRY(push_child(p, owner, &args->positional, value, err));
    }
    return good ? LS_OK : PARSE_FAIL(p, "invalid syntax for function call expression");
}

static ls_status parse_args(jinja_parser *p, jinja_node *owner, ls_error *err) {
    TRY(jinja_heap_take(p->heap, sizeof *owner->args, &owner->args, err));
    TRY(jinja_expect_op(p, '(', err));
    for (bool first = true; !at_op(p, ')'); first = false) {
        if (!first) {
            TRY(jinja_expect_op(p, ',', err));
            if (at_op(p, ')')) {
                break;
            }
        }
        TRY(parse_argument(p, owner, owner->args, err));
    }
    return jinja_expect_op(p, ')', err);
}

static ls_status parse_call(jinja_parser *p, jinja_node *callee, jinja_node **out, ls_error *err) {
    jinja_node *call;
    TRY(new_with(p, JN_CALL, 0, p->token->line, callee, NULL, &call, err));
    TRY(parse_args(p, call, err));
    *out = call;
    return LS_OK;
}

/* What stands between "[" and "]" or ",". */
static ls_status parse_subscribed(jinja_parser *p, jinja_node **out, ls_error *err) {
    jinja_node *part[3] = {NULL, NULL, NULL};
    int line = p->token->line;
    if (!at_op(p, ':')) {
        TRY(jinja_parse_expression(p, &part[0], err));
        if (!at_op(p, ':')) {
            *out = part[0];
            return LS_OK;
        }
    }
    for (int i = 1; i < 3 && skip_op(p, ':'); i++) {
        if (!at_op(p, ':') && !at_op(p, ']') && !at_op(p, ',')) {
            TRY(jinja_parse_expression(p, &part[i], err));
        }
    }
    TRY(new_with(p, JN_SLICE, 0, line, part[0], part[1], out, err));
    (*out)->c = part[2];
    return jinja_adopt(p, *out, part[2], err);
}

static ls_status parse_subscript(jinja_parser *p, jinja_node *node, jinja_node **out, ls_error *err) {
    int line = p->token->line;
    jinja_node *arg;
    if (skip_op(p, '.')) {
        const jinja_token *token = p->token;
        next_token(p);
        if (token->kind == JT_NAME) {
            TRY(new_with(p, JN_GETATTR, 0, line, node, NULL, out, err));
            (*out)->name = token->value.str;
            return LS_OK;
        }
        if (token->kind != JT_INTEGER) {
            return PARSE_FAIL(p, "expected name or number");
        }
        TRY(const_node(p, token->value, token->line, &arg, err));
        return new_with(p, JN_GETITEM, 0, line, node, arg, out, err);
    }
    jinja_node *tuple;
    TRY(jinja_expect_op(p, '[', err));
    TRY(jinja_node_new(p, JN_TUPLE, line, &tuple, err));
    while (!at_op(p, ']')) {
        if (tuple->list.n > 0) {
            TRY(jinja_expect_op(p, ',', err));
        }
        TRY(parse_subscribed(p, &arg, err));
        TRY(push_child(p, tuple, &tuple->list, arg, err));
    }
    TRY(jinja_expect_op(p, ']', err));
    if (tuple->list.n != 1) {
        for (size_t i = 0; i < tuple->list.n; i++) {
            if (tuple->list.node[i]->kind == JN_SLICE) {
                return PARSE_FAIL(p, "a slice in a tuple of indices");
            }
        }
    }
    return new_with(p, JN_GETITEM, 0, line, node, tuple->list.n == 1 ? tuple->list.node[0] : tuple, out, err);
}

static ls_status parse_postfix(jinja_parser *p, jinja_node *node, jinja_node **out, ls_error *err) {
    for (;;) {
        if (at_op(p, '.') || at_op(p, '[')) {
            TRY(parse_subscript(p, node, &node, err));
        } else if (at_op(p, '(')) {
            TRY(parse_call(p, node, &node, err));
        } else {
            *out = node;
            return LS_OK;
        }
    }
}

/* "name" or "name.of.it" of a filter or test. */
static ls_status parse_dotted(jinja_parser *p, jinja_str **name, ls_error *err) {
    TRY(jinja_expect_name(p, name, err));
    while (skip_op(p, '.')) {
        jinja_str *more;
        TRY(jinja_expect_name(p, &more, err));
        return PARSE_FAIL(p, "no filter or test is called '%.100s.%.100s'", (*name)->s, more->s);
    }
    return LS_OK;
}

ls_status jinja_parse_filters(jinja_parser *p, jinja_node *node, bool first_is_here, jinja_node **out, ls_error *err) {
    while (first_is_here || at_op(p, '|')) {
        if (!first_is_here) {
            next_token(p);
        }
        first_is_here = false;
        jinja_node *filter;
        TRY(new_with(p, JN_FILTER, 0, p->token->line, node, NULL, &filter, err));
        TRY(parse_dotted(p, &filter->name, err));
        if (at_op(p, '(')) {
            TRY(parse_args(p, filter, err));
        }
        filter->builtin = jinja_find_filter(filter->name);
        node = filter;
    }
    *out = node;
    return LS_OK;
}

static bool starts_test_argument(const jinja_parser *p) {
    switch (p->token->kind) {
    case JT_NAME:
        return !at_word(p, "else") && !at_word(p, "or") && !at_word(p, "and");
    case JT_STRING:
    case JT_INTEGER:
    case JT_FLOAT:
        return true;
    default:
        return at_op(p, '[') || at_op(p, '{');
    }
}

static ls_status parse_test(jinja_parser *p, jinja_node *node, jinja_node **out, ls_error *err) {
    int line = p->token->line;
    next_token(p);
    bool negated = skip_word(p, "not");
    jinja_node *test;
    TRY(new_with(p, JN_TEST, 0, line, node, NULL, &test, err));
    TRY(parse_dotted(p, &test->name, err));
    if (at_op(p, '(')) {
        TRY(parse_args(p, test, err));
    } else if (starts_test_argument(p)) {
        if (at_word(p, "is")) {
            return PARSE_FAIL(p, "You cannot chain multiple tests with is");
        }
        jinja_node *arg;
        TRY(jinja_heap_take(p->heap, sizeof *test->args, &test->args, err));
        TRY(parse_primary(p, false, &arg, err));
        TRY(parse_postfix(p, arg, &arg, err));
        TRY(push_child(p, test, &test->args->positional, arg, err));
    }
    test->builtin = jinja_find_test(test->name);
    *out = test;
    return negated ? new_with(p, JN_NOT, 0, line, test, NULL, out, err) : LS_OK;
}

static ls_status parse_filter_expr(jinja_parser *p, jinja_node *node, jinja_node **out, ls_error *err) {
    for (;;) {
        if (at_op(p, '|')) {
            TRY(jinja_parse_filters(p, node, false, &node, err));
        } else if (at_word(p, "is")) {
            TRY(parse_test(p, node, &node, err));
        } else if (at_op(p, '(')) {
            TRY(parse_call(p, node, &node, err));
        } else {
            *out = node;
            return LS_OK;
        }
    }
}

/* ---- operators, from the tightest ---- */

static ls_status parse_unary(jinja_parser *p, bool with_filter, jinja_node **out, ls_error *err) {
    TRY(jinja_nest(p, err));
    int line = p->token->line, op = at_op(p, '-') ? '-' : at_op(p, '+') ? '+' : 0;
    jinja_node *node;
    if (op != 0) {
        next_token(p);
        TRY(parse_unary(p, false, &node, err));
        TRY(new_with(p, JN_UNARY, op, line, node, NULL, &node, err));
    } else {
        TRY(parse_primary(p, false, &node, err));
    }
    TRY(parse_postfix(p, node, &node, err));
    if (with_filter) {
        TRY(parse_filter_expr(p, node, &node, err));
    }
    p->nesting--;
    *out = node;
    return LS_OK;
}

static ls_status parse_pow(jinja_parser *p, jinja_node **out, ls_error *err) {
    int line = p->token->line;
    jinja_node *left, *right;
    TRY(parse_unary(p, true, &left, err));
    while (skip_op(p, JOP_POW)) {
        TRY(parse_unary(p, true, &right, err));
        TRY(new_with(p, JN_BINARY, JOP_POW, line, left, right, &left, err));
    }
    *out = left;
    return LS_OK;
}

static ls_status parse_product(jinja_parser *p, jinja_node **out, ls_error *err) {
    int line = p->token->line;
    jinja_node *left, *right;
    TRY(parse_pow(p, &left, err));
    while (at_op(p, '*') || at_op(p, '/') || at_op(p, JOP_FLOORDIV) || at_op(p, '%')) {
        int op = p->token->op;
        next_token(p);
        TRY(parse_pow(p, &right, err));
        TRY(new_with(p, JN_BINARY, op, line, left, right, &left, err));
    }
    *out = left;
    return LS_OK;
}

static ls_status parse_concat(jinja_parser *p, jinja_node **out, ls_error *err) {
    int line = p->token->line;
    jinja_node *first, *concat;
    TRY(parse_product(p, &first, err));
    if (!at_op(p, '~')) {
        *out = first;
        return LS_OK;
    }
    TRY(jinja_node_new(p, JN_CONCAT, line, &concat, err));
    TRY(push_child(p, concat, &concat->list, first, err));
    while (skip_op(p, '~')) {
        jinja_node *next;
        TRY(parse_product(p, &next, err));
        TRY(push_child(p, concat, &concat->list, next, err));
    }
    *out = concat;
    return LS_OK;
}

static ls_status parse_sum(jinja_parser *p, jinja_node **out, ls_error *err) {
    int line = p->token->line;
    jinja_node *left, *right;
    TRY(parse_concat(p, &left, err));
    while (at_op(p, '+') || at_op(p, '-')) {
        int op = p->token->op;
        next_token(p);
        TRY(parse_concat(p, &right, err));
        TRY(new_with(p, JN_BINARY, op, line, left, right, &left, err));
    }
    *out = left;
    return LS_OK;
}

/* A comparison operator here? Skips it. */
static int skip_comparison(jinja_parser *p) {
    static const int operators[] = {JOP_EQ, JOP_NE, '<', JOP_LTEQ, '>', JOP_GTEQ};
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (skip_op(p, operators[i])) {
            return operators[i];
        }
    }
    if (skip_word(p, "in")) {
        return JOP_IN;
    }
    if (at_word(p, "not") && p->token[1].kind == JT_NAME && jinja_str_is(p->token[1].value.str, "in")) {
        p->token += 2;
        return JOP_NOT_IN;
    }
    return 0;
}

static ls_status parse_compare(jinja_parser *p, jinja_node **out, ls_error *err) {
    int line = p->token->line;
    jinja_node *first, *compare = NULL;
    TRY(parse_sum(p, &first, err));
    for (int op = skip_comparison(p); op != 0; op = skip_comparison(p)) {
        if (compare == NULL) {
            TRY(new_with(p, JN_COMPARE, 0, line, first, NULL, &compare, err));
        }
        jinja_node *operand;
        TRY(parse_sum(p, &operand, err));
        TRY(new_with(p, JN_OPERAND, op, line, operand, NULL, &operand, err));
        TRY(push_child(p, compare, &compare->list, operand, err));
    }
    *out = compare == NULL ? first : compare;
    return LS_OK;
}

static ls_status parse_not(jinja_parser *p, jinja_node **out, ls_error *err) {
    int line = p->token->line;
    if (!skip_word(p, "not")) {
        return parse_compare(p, out, err);
    }
    jinja_node *node;
    TRY(jinja_nest(p, err));
    TRY(parse_not(p, &node, err));
    p->nesting--;
    return new_with(p, JN_NOT, 0, line, node, NULL, out, err);
}

static ls_status parse_and(jinja_parser *p, jinja_node **out, ls_error *err) {
    int line = p->token->line;
    jinja_node *left, *right;
    TRY(parse_not(p, &left, err));
    while (skip_word(p, "and")) {
        TRY(parse_not(p, &right, err));
        TRY(new_with(p, JN_AND, 0, line, left, right, &left, err));
    }
    *out = left;
    return LS_OK;
}

ls_status jinja_parse_or(jinja_parser *p, jinja_node **out, ls_error *err) {
    int line = p->token->line;
    jinja_node *left, *right;
    TRY(parse_and(p, &left, err));
    while (skip_word(p, "or")) {
        TRY(parse_and(p, &right, err));
        TRY(new_with(p, JN_OR, 0, line, left, right, &left, err));
    }
    *out = left;
    return LS_OK;
}

ls_status jinja_parse_expression(jinja_parser *p, jinja_node **out, ls_error *err) {
    TRY(jinja_nest(p, err));
    int line = p->token->line;
    jinja_node *node, *test;
    TRY(jinja_parse_or(p, &node, err));
    while (skip_word(p, "if")) {
        TRY(jinja_parse_or(p, &test, err));
        TRY(new_with(p, JN_COND, 0, line, node, test, &node, err));
        if (skip_word(p, "else")) {
            TRY(jinja_parse_expression(p, &node->c, err));
            TRY(jinja_adopt(p, node, node->c, err));
        }
    }
    p->nesting--;
    *out = node;
    return LS_OK;
}

/* ---- tuples and targets ---- */

static bool at_tuple_end(const jinja_parser *p, jinja_tuple_end end) {
    return p->token->kind == JT_VARIABLE_END || p->token->kind == JT_BLOCK_END || at_op(p, ')') ||
           (end == TUPLE_TO_IN && at_word(p, "in")) || (end == TUPLE_TO_RECURSIVE && at_word(p, "recursive"));
}

static ls_status parse_items(jinja_parser *p, bool simple, bool with_cond, bool with_namespace, bool in_brackets,
                             jinja_tuple_end end, jinja_node **out, ls_error *err) {
    jinja_node *tuple, *item = NULL;
    TRY(jinja_nest(p, err));
    TRY(jinja_node_new(p, JN_TUPLE, p->token->line, &tuple, err));
    bool is_tuple = false;
    while (!at_tuple_end(p, end)) {
        if (simple) {
            TRY(parse_primary(p, with_namespace, &item, err));
        } else if (with_cond) {
            TRY(jinja_parse_expression(p, &item, err));
        } else {
            TRY(jinja_parse_or(p, &item, err));
        }
        TRY(push_child(p, tuple, &tuple->list, item, err));
        if (!skip_op(p, ',')) {
            break;
        }
        is_tuple = true;
    }
    p->nesting--;
    if (!is_tuple && tuple->list.n == 1) {
        *out = tuple->list.node[0];
        return LS_OK;
    }
    if (!is_tuple && !in_brackets) {
        char text[32];
        return PARSE_FAIL(p, "Expected an expression, got '%s'", jinja_token_text(p->token, text));
    }
    *out = tuple;
    return LS_OK;
}

ls_status jinja_parse_tuple(jinja_parser *p, bool with_cond, jinja_tuple_end end, jinja_node **out, ls_error *err) {
    return parse_items(p, false, with_cond, false, false, end, out, err);
}

static bool can_assign(const jinja_node *node) {
    if (node->kind == JN_TUPLE) {
        for (size_t i = 0; i < node->list.n; i++) {
            if (!can_assign(node->list.node[i])) {
                return false;
            }
        }
        return true;
    }
    return node->kind == JN_NAME || node->kind == JN_NSREF;
}

ls_status jinja_parse_target(jinja_parser *p, bool with_namespace, jinja_tuple_end end, jinja_node **out,
                             ls_error *err) {
    TRY(parse_items(p, true, false, with_namespace, false, end, out, err));
    if (!can_assign(*out)) {
        return PARSE_FAIL(p, "can't assign to this expression");
    }
    return LS_OK;
}
