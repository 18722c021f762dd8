/*
 * Syntax trees of templates, and where their variables live.
 *
 * One node type for all; the table says what each kind keeps where. Trees are built by jinja_parse(), then jinja_bind()
 * resolves every name as Jinja2's compiler does (idtracking.py): a variable is a slot in the frame of a function, and a
 * scope lists what its slots hold when it is entered. Functions are the template itself, macros, and the bodies of call
 * and generation blocks; loops, set blocks and the like are scopes inside of one. After that a tree never changes, so a
 * template may be rendered by several threads at once.
 */
#ifndef LS_TEXT_JINJA_AST_H
#define LS_TEXT_JINJA_AST_H

#include "text/jinja/lex.h"

typedef enum jinja_node_kind {
    /* expressions */
    JN_CONST,   /* value */
    JN_NAME,    /* name; hops, slot */
    JN_NSREF,   /* name of the namespace; value: the attribute; hops, slot. Only as a target */
    JN_TUPLE,   /* list */
    JN_LIST,    /* list */
    JN_DICT,    /* list: key, value, key, value ... */
    JN_COND,    /* a if b else c; c may be NULL */
    JN_OR,      /* a, b */
    JN_AND,     /* a, b */
    JN_NOT,     /* a */
    JN_COMPARE, /* a; list of JN_OPERAND */
    JN_OPERAND, /* op, a */
    JN_BINARY,  /* op, a, b */
    JN_UNARY,   /* op '-' or '+', a */
    JN_CONCAT,  /* list */
    JN_GETATTR, /* a, name */
    JN_GETITEM, /* a, b */
    JN_SLICE,   /* a[b] with b of this kind: a : b : c, each may be NULL */
    JN_CALL,    /* a, args */
    JN_FILTER,  /* a (NULL: the text of the block), name, args, builtin */
    JN_TEST,    /* a, name, args, builtin */
    /* statements */
    JN_OUTPUT,       /* list */
    JN_SET,          /* a: target, b: value */
    JN_SET_BLOCK,    /* a: target, b: filter or NULL, body, scope */
    JN_FOR,          /* a: target, b: over, body, orelse, scope, else_scope, slot: of `loop`;
                    * c: condition or NULL, with list[0], a copy of the target in test_scope */
    JN_IF,           /* a, body, orelse; op 1: an elif, the only one in the orelse of the one before */
    JN_MACRO,        /* name, hops, slot; list: parameters, list2: defaults of the last of them; body, function */
    JN_CALL_BLOCK,   /* a: the call; list, list2, body, function as of JN_MACRO */
    JN_GENERATION,   /* body, function */
    JN_FILTER_BLOCK, /* b: filter, body, scope */
    JN_WITH,         /* list: targets, list2: values, body, scope */
    JN_BREAK,
    JN_CONTINUE
} jinja_node_kind;

/* JN_OPERAND and JN_BINARY also have the operators of the lexer. */
enum { JOP_IN = 'i', JOP_NOT_IN = 'o' };

typedef struct jinja_nodes {
    struct jinja_node **node;
    size_t n, capacity;
} jinja_nodes;

typedef struct jinja_args {
    jinja_nodes positional;
    jinja_nodes keywords;                /* values */
    jinja_nodes keyword_names;           /* JN_CONST, in step with the values */
    struct jinja_node *star, *star_star; /* NULL: none */
} jinja_args;

typedef enum jinja_load { JL_PARAMETER, JL_RESOLVE, JL_ALIAS, JL_UNDEFINED } jinja_load;

typedef struct jinja_variable {
    jinja_str *name;
    jinja_load load;
    int slot;                   /* in the frame of the scope's function */
    int alias_hops, alias_slot; /* JL_ALIAS: the outer variable it starts as */
    size_t stored;              /* when it was first assigned to (0: never); for jinja_bind() alone */
} jinja_variable;

typedef struct jinja_function {
    struct jinja_function *outer;
    int n_slots;
    struct jinja_scope *scope;
    int *parameter_slot;                        /* in the order of the parameters */
    int caller_slot, kwargs_slot, varargs_slot; /* -1: not used in the body */
} jinja_function;

typedef struct jinja_scope {
    struct jinja_scope *outer;
    jinja_function *function;
    jinja_variable *variable;
    size_t n, capacity;
} jinja_scope;

typedef struct jinja_node {
    jinja_node_kind kind;
    int op;
    int line;
    int depth; /* of the tree below */
    int hops, slot;
    jinja_str *name;
    jinja_value value;
    struct jinja_node *a, *b, *c;
    jinja_nodes list, list2, body, orelse;
    jinja_args *args;
    jinja_scope *scope, *else_scope, *test_scope;
    jinja_function *function;
    const struct jinja_builtin *builtin; /* NULL: there is no such filter or test, an error if it is reached */
} jinja_node;

typedef struct jinja_tree {
    jinja_nodes body;
    jinja_function *function;
    bool has_generation;
} jinja_tree;

enum { JINJA_MAX_TREE_DEPTH = 200 };

/* The tree lives in the heap. Errors: "<name>:<line>: <cause>", LS_EFORMAT; LS_EUNSUPPORTED for what Jinja2 has and this
 * has not. */
ls_status jinja_parse(jinja_heap *heap, const char *name, const char *source, size_t n_bytes, jinja_tree *out,
                      ls_error *err);

/* The second half of jinja_parse. */
ls_status jinja_bind(jinja_heap *heap, const char *name, jinja_tree *tree, ls_error *err);

#endif
