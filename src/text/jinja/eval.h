/* The parts of the evaluator that know each other. Entry: jinja_render() in jinja.h. */
#ifndef LS_TEXT_JINJA_EVAL_H
#define LS_TEXT_JINJA_EVAL_H

#include "text/jinja/ast.h"
#include "text/jinja/builtin.h"
#include "text/jinja/text.h"

/* The variables of one call of a function. Those of the functions around it stay reachable: macros are closures. */
typedef struct jinja_frame {
    struct jinja_frame *outer;
    jinja_value *slot;
} jinja_frame;

typedef struct jinja_macro {
    const jinja_node *node;
    jinja_frame *frame; /* where it was defined */
} jinja_macro;

/* `loop`: one walk over something, one item ahead where the template asks for it. */
typedef struct jinja_loop {
    jinja_cursor source;
    const jinja_node *node; /* the for statement: its condition is asked item by item, as late as can be */
    jinja_frame *frame;
    int64_t index0;                     /* -1 before the first item */
    jinja_value before, current, after; /* JINJA_MISSING: none */
    bool peeked;                        /* `after` holds what comes next, or JINJA_MISSING at the end */
    jinja_list *rest;                   /* all that was left when the length was asked for; NULL: not yet */
    size_t rest_at;
    bool has_length;
    size_t length;
    jinja_value changed; /* what loop.changed was last called with */
} jinja_loop;

typedef struct jinja_span {
    size_t from, to; /* bytes of the page */
} jinja_span;

typedef struct jinja_spans {
    jinja_span *span;
    size_t n, capacity;
} jinja_spans;

typedef enum jinja_flow { JINJA_FLOW_ON, JINJA_FLOW_BREAK, JINJA_FLOW_CONTINUE } jinja_flow;

/* eval.c */
ls_status jinja_eval(jinja_run *run, jinja_frame *frame, const jinja_node *node, jinja_value *out, ls_error *err);
ls_status jinja_eval_call_args(jinja_run *run, jinja_frame *frame, const jinja_args *args, jinja_call *out,
                               ls_error *err);
/* A filter chain over `input` (the text of a block). */
ls_status jinja_eval_filter(jinja_run *run, jinja_frame *frame, const jinja_node *node, const jinja_value *input,
                            jinja_value *out, ls_error *err);

/* exec.c */
ls_status jinja_scope_enter(jinja_run *run, jinja_frame *frame, const jinja_scope *scope, ls_error *err);
ls_status jinja_frame_new(jinja_run *run, jinja_frame *outer, const jinja_function *function, jinja_frame **out,
                          ls_error *err);
ls_status jinja_assign(jinja_run *run, jinja_frame *frame, const jinja_node *target, const jinja_value *value,
                       ls_error *err);
ls_status jinja_exec_body(jinja_run *run, jinja_frame *frame, const jinja_nodes *body, jinja_flow *flow, ls_error *err);
jinja_value *jinja_slot(jinja_frame *frame, int hops, int slot);

/* loop.c */
ls_status jinja_loop_start(jinja_run *run, jinja_frame *frame, const jinja_node *node, const jinja_value *over,
                           jinja_loop **out, ls_error *err);
ls_status jinja_loop_next(jinja_run *run, jinja_loop *loop, bool *more, ls_error *err); /* to loop->current */
/* *out stays JINJA_MISSING if a loop has no such attribute. */
ls_status jinja_loop_attribute(jinja_run *run, jinja_loop *loop, const jinja_str *name, jinja_value *out,
                               ls_error *err);
const jinja_builtin *jinja_find_loop_method(const jinja_str *name);

/* call.c */
ls_status jinja_call_value(jinja_run *run, const jinja_value *callee, const jinja_call *call, jinja_value *out,
                           ls_error *err);

/* access.c */
ls_status jinja_get_attribute(jinja_run *run, const jinja_value *of, const jinja_str *name, jinja_value *out,
                              ls_error *err);
ls_status jinja_get_item(jinja_run *run, const jinja_value *of, const jinja_value *key, jinja_value *out,
                         ls_error *err);
/* Bounds that were not given are JINJA_NONE. */
ls_status jinja_get_slice(jinja_run *run, const jinja_value *of, const jinja_value bound[3], jinja_value *out,
                          ls_error *err);

/* arith.c */
ls_status jinja_binary(jinja_run *run, int op, const jinja_value *a, const jinja_value *b, jinja_value *out,
                       ls_error *err);
ls_status jinja_unary(jinja_run *run, int op, const jinja_value *a, jinja_value *out, ls_error *err);

#endif
