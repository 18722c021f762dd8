/* Statements: from tokens to a tree. See ast.h; the grammar is that of jinja2/parser.py. */
#include "text/jinja/parse.h"

#include <string.h>

static ls_status parse_body(jinja_parser *p, const char *const *ends, jinja_nodes *out, ls_error *err);

static ls_status new_statement(jinja_parser *p, jinja_node_kind kind, jinja_node **out, ls_error *err) {
    TRY(jinja_node_new(p, kind, p->token->line, out, err));
    next_token(p);
    return LS_OK;
}

static ls_status expect_block_end(jinja_parser *p, ls_error *err) {
    if (p->token->kind != JT_BLOCK_END) {
        char text[32];
        return PARSE_FAIL(p, "expected token 'end of statement block', got '%s'", jinja_token_text(p->token, text));
    }
    next_token(p);
    return LS_OK;
}

/* The rest of the tag, then statements up to one of the tags `ends`, which is left for the caller to look at. */
static ls_status parse_statements(jinja_parser *p, const char *const *ends, jinja_nodes *out, ls_error *err) {
    skip_op(p, ':');
    TRY(expect_block_end(p, err));
    return parse_body(p, ends, out, err);
}

/* The same up to the only possible end, which is skipped. */
static ls_status parse_up_to(jinja_parser *p, const char *end, jinja_nodes *out, ls_error *err) {
    TRY(parse_statements(p, (const char *const[]){end, NULL}, out, err));
    next_token(p);
    return LS_OK;
}

/* A body of its own function: loops around it are out of reach for break and continue. */
static ls_status parse_function_body(jinja_parser *p, const char *end, jinja_nodes *out, ls_error *err) {
    int loops = p->loops;
    p->loops = 0;
    TRY(parse_up_to(p, end, out, err));
    p->loops = loops;
    return LS_OK;
}

static ls_status parse_set(jinja_parser *p, jinja_node **out, ls_error *err) {
    jinja_node *set;
    TRY(new_statement(p, JN_SET, &set, err));
    TRY(jinja_parse_target(p, true, TUPLE_TO_TAG, &set->a, err));
    *out = set;
    if (skip_op(p, '=')) {
        return jinja_parse_tuple(p, true, TUPLE_TO_TAG, &set->b, err);
    }
    set->kind = JN_SET_BLOCK;
    TRY(jinja_parse_filters(p, NULL, false, &set->b, err));
    return parse_up_to(p, "endset", &set->body, err);
}

static ls_status parse_for(jinja_parser *p, jinja_node **out, ls_error *err) {
    jinja_node *loop;
    TRY(new_statement(p, JN_FOR, &loop, err));
    TRY(jinja_parse_target(p, false, TUPLE_TO_IN, &loop->a, err));
    if (!skip_word(p, "in")) {
        char text[32];
        return PARSE_FAIL(p, "expected token 'in', got '%s'", jinja_token_text(p->token, text));
    }
    TRY(jinja_parse_tuple(p, false, TUPLE_TO_RECURSIVE, &loop->b, err));
    if (skip_word(p, "if")) {
        TRY(jinja_parse_expression(p, &loop->c, err));
    }
    if (at_word(p, "recursive")) {
        return PARSE_FAIL_AS(p, LS_EUNSUPPORTED, "recursive loops are not supported");
    }
    p->loops++;
    TRY(parse_statements(p, (const char *const[]){"endfor", "else", NULL}, &loop->body, err));
    p->loops--;
    bool has_else = at_word(p, "else");
    next_token(p);
    if (has_else) {
        TRY(parse_up_to(p, "endfor", &loop->orelse, err));
    }
    *out = loop;
    return LS_OK;
}

static ls_status parse_if(jinja_parser *p, jinja_node **out, ls_error *err) {
    jinja_node *first = NULL;
    jinja_nodes *into = NULL;
    for (;;) { /* an elif is an if in the else of the one before */
        jinja_node *test;
        TRY(new_statement(p, JN_IF, &test, err));
        TRY(jinja_parse_tuple(p, false, TUPLE_TO_TAG, &test->a, err));
        if (first == NULL) {
            first = test;
        } else {
            test->op = 1;
            TRY(jinja_nodes_push(p, into, test, err));
        }
        into = &test->orelse;
        TRY(parse_statements(p, (const char *const[]){"elif", "else", "endif", NULL}, &test->body, err));
        if (at_word(p, "elif")) {
            continue;
        }
        bool has_else = at_word(p, "else");
        next_token(p);
        if (has_else) {
            TRY(parse_up_to(p, "endif", into, err));
        }
        *out = first;
        return LS_OK;
    }
}

static ls_status parse_signature(jinja_parser *p, jinja_node *macro, ls_error *err) {
    TRY(jinja_expect_op(p, '(', err));
    while (!at_op(p, ')')) {
        if (macro->list.n > 0) {
            TRY(jinja_expect_op(p, ',', err));
        }
        jinja_node *parameter, *value;
        TRY(jinja_node_new(p, JN_NAME, p->token->line, &parameter, err));
        TRY(jinja_expect_name(p, &parameter->name, err));
        for (size_t i = 0; i < macro->list.n; i++) {
            if (jinja_str_is(macro->list.node[i]->name, parameter->name->s)) {
                return PARSE_FAIL(p, "duplicate argument '%.100s'", parameter->name->s);
            }
        }
        if (skip_op(p, '=')) {
            TRY(jinja_parse_expression(p, &value, err));
            TRY(jinja_nodes_push(p, &macro->list2, value, err));
        } else if (macro->list2.n > 0) {
            return PARSE_FAIL(p, "non-default argument follows default argument");
        }
        TRY(jinja_nodes_push(p, &macro->list, parameter, err));
    }
    return jinja_expect_op(p, ')', err);
}

static ls_status parse_macro(jinja_parser *p, jinja_node **out, ls_error *err) {
    jinja_node *macro;
    TRY(new_statement(p, JN_MACRO, &macro, err));
    TRY(jinja_expect_name(p, &macro->name, err));
    TRY(parse_signature(p, macro, err));
    *out = macro;
    return parse_function_body(p, "endmacro", &macro->body, err);
}

static ls_status parse_call_block(jinja_parser *p, jinja_node **out, ls_error *err) {
    jinja_node *block;
    TRY(new_statement(p, JN_CALL_BLOCK, &block, err));
    if (at_op(p, '(')) {
        TRY(parse_signature(p, block, err));
    }
    TRY(jinja_parse_expression(p, &block->a, err));
    if (block->a->kind != JN_CALL) {
        return PARSE_FAIL(p, "expected call");
    }
    *out = block;
    return parse_function_body(p, "endcall", &block->body, err);
}

static ls_status parse_generation(jinja_parser *p, jinja_node **out, ls_error *err) {
    TRY(new_statement(p, JN_GENERATION, out, err));
    p->has_generation = true;
    return parse_function_body(p, "endgeneration", &(*out)->body, err);
}

static ls_status parse_filter_block(jinja_parser *p, jinja_node **out, ls_error *err) {
    TRY(new_statement(p, JN_FILTER_BLOCK, out, err));
    TRY(jinja_parse_filters(p, NULL, true, &(*out)->b, err));
    return parse_up_to(p, "endfilter", &(*out)->body, err);
}

static ls_status parse_with(jinja_parser *p, jinja_node **out, ls_error *err) {
    jinja_node *with;
    TRY(new_statement(p, JN_WITH, &with, err));
    while (p->token->kind != JT_BLOCK_END) {
        if (with->list.n > 0) {
            TRY(jinja_expect_op(p, ',', err));
        }
        jinja_node *target, *value;
        TRY(jinja_parse_target(p, false, TUPLE_TO_TAG, &target, err));
        TRY(jinja_expect_op(p, '=', err));
        TRY(jinja_parse_expression(p, &value, err));
        TRY(jinja_nodes_push(p, &with->list, target, err));
        TRY(jinja_nodes_push(p, &with->list2, value, err));
    }
    *out = with;
    return parse_up_to(p, "endwith", &with->body, err);
}

static ls_status parse_print(jinja_parser *p, jinja_node **out, ls_error *err) {
    jinja_node *print;
    TRY(new_statement(p, JN_OUTPUT, &print, err));
    while (p->token->kind != JT_BLOCK_END) {
        if (print->list.n > 0) {
            TRY(jinja_expect_op(p, ',', err));
        }
        jinja_node *value;
        TRY(jinja_parse_expression(p, &value, err));
        TRY(jinja_nodes_push(p, &print->list, value, err));
    }
    *out = print;
    return LS_OK;
}

static ls_status parse_loop_control(jinja_parser *p, jinja_node **out, ls_error *err) {
    bool is_break = at_word(p, "break");
    if (p->loops == 0) {
        return PARSE_FAIL(p, "'%s' outside loop", is_break ? "break" : "continue");
    }
    return new_statement(p, is_break ? JN_BREAK : JN_CONTINUE, out, err);
}

static ls_status parse_statement(jinja_parser *p, jinja_node **out, ls_error *err) {
    static const struct {
        const char *tag;
        ls_status (*parse)(jinja_parser *p, jinja_node **out, ls_error *err);
    } tags[] = {
        {"set", parse_set},
        {"for", parse_for},
        {"if", parse_if},
        {"macro", parse_macro},
        {"call", parse_call_block},
        {"generation", parse_generation},
        {"filter", parse_filter_block},
        {"with", parse_with},
        {"print", parse_print},
        {"break", parse_loop_control},
        {"continue", parse_loop_control},
    };
    static const char *const unsupported[] = {"block", "extends", "include", "import", "from", "autoescape"};
    if (p->token->kind != JT_NAME) {
        return PARSE_FAIL(p, "tag name expected");
    }
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
        if (at_word(p, tags[i].tag)) {
            return tags[i].parse(p, out, err);
        }
    }
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) {
        if (at_word(p, unsupported[i])) {
            return PARSE_FAIL_AS(p, LS_EUNSUPPORTED, "the tag '%s' is not supported", unsupported[i]);
        }
    }
    return PARSE_FAIL(p, "Encountered unknown tag '%.100s'", p->token->value.str->s);
}

static bool at_end_tag(const jinja_parser *p, const char *const *ends) {
    for (; ends != NULL && *ends != NULL; ends++) {
        if (at_word(p, *ends)) {
            return true;
        }
    }
    return false;
}

/* Text and {{ }} that follow each other become one JN_OUTPUT. */
static ls_status parse_output(jinja_parser *p, jinja_nodes *out, ls_error *err) {
    jinja_node *output, *item;
    TRY(jinja_node_new(p, JN_OUTPUT, p->token->line, &output, err));
    TRY(jinja_nodes_push(p, out, output, err));
    for (;;) {
        if (p->token->kind == JT_DATA) {
            TRY(jinja_node_new(p, JN_CONST, p->token->line, &item, err));
            item->value = p->token->value;
            next_token(p);
        } else if (p->token->kind == JT_VARIABLE_BEGIN) {
            next_token(p);
            TRY(jinja_parse_tuple(p, true, TUPLE_TO_TAG, &item, err));
            if (p->token->kind != JT_VARIABLE_END) {
                char text[32];
                return PARSE_FAIL(p, "expected token 'end of print statement', got '%s'",
                                  jinja_token_text(p->token, text));
            }
            next_token(p);
        } else {
            return LS_OK;
        }
        TRY(jinja_nodes_push(p, &output->list, item, err));
    }
}

/* Up to the tag that is one of `ends`, or to the end of the template if ends is NULL. */
static ls_status parse_body(jinja_parser *p, const char *const *ends, jinja_nodes *out, ls_error *err) {
    TRY(jinja_nest(p, err));
    for (;;) {
        if (p->token->kind == JT_EOF) {
            if (ends != NULL) {
                return PARSE_FAIL(p, "Unexpected end of template. Jinja was looking for the tag '%s'", *ends);
            }
            break;
        }
        if (p->token->kind != JT_BLOCK_BEGIN) {
            TRY(parse_output(p, out, err));
            continue;
        }
        next_token(p);
        if (at_end_tag(p, ends)) {
            break;
        }
        jinja_node *statement;
        TRY(parse_statement(p, &statement, err));
        TRY(jinja_nodes_push(p, out, statement, err));
        TRY(expect_block_end(p, err));
    }
    p->nesting--;
    return LS_OK;
}

ls_status jinja_parse(jinja_heap *heap, const char *name, const char *source, size_t n_bytes, jinja_tree *out,
                      ls_error *err) {
    jinja_tokens tokens;
    TRY(jinja_lex(heap, name, source, n_bytes, &tokens, err));
    jinja_parser p = {.heap = heap, .name = name, .token = tokens.token};
    jinja_tree tree = {0};
    TRY(parse_body(&p, NULL, &tree.body, err));
    tree.has_generation = p.has_generation;
    TRY(jinja_bind(heap, name, &tree, err));
    *out = tree;
    return LS_OK;
}
