/* The parser's state, shared by its two halves: statements (parse.c) and expressions (parse_expr.c). */
#ifndef LS_TEXT_JINJA_PARSE_H
#define LS_TEXT_JINJA_PARSE_H

#include "text/jinja/ast.h"
#include "text/jinja/lex.h"

typedef struct jinja_parser {
    jinja_heap *heap;
    const char *name;
    const jinja_token *token; /* the current one */
    int nesting;              /* of the parser's own recursion */
    int loops;                /* for loops around this place, within its function: break and continue need one */
    bool has_generation;
} jinja_parser;

enum { JINJA_MAX_NESTING = 100 };

/* "<name>:<line of the current token>: ..." */
#define PARSE_FAIL(p, ...) jinja_fail(&(jinja_run){.name = (p)->name, .line = (p)->token->line}, err, __VA_ARGS__)
#define PARSE_FAIL_AS(p, status, ...)                                                                                  \
    jinja_fail_as(&(jinja_run){.name = (p)->name, .line = (p)->token->line}, status, err, __VA_ARGS__)

static inline bool at_op(const jinja_parser *p, int op) {
    return p->token->kind == JT_OPERATOR && p->token->op == op;
}
static inline bool at_word(const jinja_parser *p, const char *word) {
    return p->token->kind == JT_NAME && jinja_str_is(p->token->value.str, word);
}
static inline void next_token(jinja_parser *p) {
    p->token += p->token->kind != JT_EOF;
}
static inline bool skip_op(jinja_parser *p, int op) {
    bool here = at_op(p, op);
    p->token += here;
    return here;
}
static inline bool skip_word(jinja_parser *p, const char *word) {
    bool here = at_word(p, word);
    p->token += here;
    return here;
}

/* What a token is called in messages. */
const char *jinja_token_text(const jinja_token *token, char out[32]);
ls_status jinja_expect_op(jinja_parser *p, int op, ls_error *err);
ls_status jinja_expect_name(jinja_parser *p, jinja_str **name, ls_error *err);
ls_status jinja_nest(jinja_parser *p, ls_error *err); /* and p->nesting-- on the way out */

ls_status jinja_node_new(jinja_parser *p, jinja_node_kind kind, int line, jinja_node **out, ls_error *err);
/* Takes note of a child's depth. */
ls_status jinja_adopt(jinja_parser *p, jinja_node *parent, const jinja_node *child, ls_error *err);
ls_status jinja_nodes_push(jinja_parser *p, jinja_nodes *nodes, jinja_node *node, ls_error *err);

/* What may end a tuple besides the end of the tag and ")". */
typedef enum jinja_tuple_end { TUPLE_TO_TAG, TUPLE_TO_IN, TUPLE_TO_RECURSIVE } jinja_tuple_end;

ls_status jinja_parse_expression(jinja_parser *p, jinja_node **out, ls_error *err);
ls_status jinja_parse_or(jinja_parser *p, jinja_node **out, ls_error *err); /* no a if b else c */
ls_status jinja_parse_tuple(jinja_parser *p, bool with_cond, jinja_tuple_end end, jinja_node **out, ls_error *err);
/* Names, tuples of names; with_namespace: also ns.attribute. */
ls_status jinja_parse_target(jinja_parser *p, bool with_namespace, jinja_tuple_end end, jinja_node **out,
                             ls_error *err);
ls_status jinja_parse_filters(jinja_parser *p, jinja_node *node, bool first_is_here, jinja_node **out, ls_error *err);

#endif
