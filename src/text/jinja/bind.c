/*
 * Names to slots. See ast.h.
 *
 * Jinja2 compiles a template to Python after deciding, scope by scope, what each name is (idtracking.py). Its rules show in
 * what templates print, so they are followed here: each scope is first looked through as a whole (look_*), which lists the
 * names it stores and the names it reads that no outer scope knows; only then are the names inside of it resolved (bind_*),
 * scopes within it in their turn. Both walk in the order in which Jinja2 visits.
 *   - a name first read: taken from the variables of the rendering when the scope is entered (JL_RESOLVE)
 *   - a name first stored: unset until then (JL_UNDEFINED), or a copy of the outer one (JL_ALIAS)
 *   - a name first stored in a branch of an if: JL_ALIAS or JL_RESOLVE, since the branch may not be taken
 */
#include <string.h>

#include "text/jinja/ast.h"

enum { MAX_VARIABLES = 4000 }; /* of a function; names are looked up one by one */

typedef struct binder {
    jinja_heap *heap;
    const char *name; /* of the template */
    size_t sequence;  /* of first assignments */
    int loops;        /* around this place: `loop` must not be assigned to there */
} binder;

#define BIND_FAIL(bd, at, ...) jinja_fail(&(jinja_run){.name = (bd)->name, .line = (at)->line}, err, __VA_ARGS__)

static ls_status bind_body(binder *bd, jinja_scope *scope, const jinja_nodes *body, bool soft, ls_error *err);

/* ---- scopes ---- */

static ls_status scope_new(binder *bd, jinja_scope *outer, jinja_function *function, jinja_scope **out, ls_error *err) {
    TRY(jinja_heap_take(bd->heap, sizeof **out, out, err));
    (*out)->outer = outer;
    (*out)->function = function;
    return LS_OK;
}

static jinja_variable *find_here(const jinja_scope *scope, const jinja_str *name) {
    for (size_t i = 0; i < scope->n; i++) {
        const jinja_str *other = scope->variable[i].name;
        if (other->n == name->n && memcmp(other->s, name->s, name->n) == 0) {
            return &scope->variable[i];
        }
    }
    return NULL;
}

/* The variable and the scope that has it; NULL if none has. */
static jinja_variable *find(const jinja_scope *scope, const jinja_str *name, const jinja_scope **owner) {
    for (; scope != NULL; scope = scope->outer) {
        jinja_variable *variable = find_here(scope, name);
        if (variable != NULL) {
            *owner = scope;
            return variable;
        }
    }
    return NULL;
}

static int hops_to(const jinja_scope *from, const jinja_scope *to) {
    int hops = 0;
    for (const jinja_function *function = from->function; function != to->function; function = function->outer) {
        hops++;
    }
    return hops;
}

static ls_status define(binder *bd, jinja_scope *scope, jinja_str *name, jinja_load load, jinja_variable **out,
                        ls_error *err) {
    if (scope->function->n_slots == MAX_VARIABLES) {
        return error_set(err, LS_ETOOLONG, "%s: more than %d variables in one function", bd->name, MAX_VARIABLES);
    }
    if (scope->n == scope->capacity) {
        size_t capacity = scope->capacity == 0 ? 8 : scope->capacity * 2;
        TRY(jinja_heap_grow(bd->heap, scope->variable, scope->n * sizeof **out, capacity * sizeof **out,
                            &scope->variable, err));
        scope->capacity = capacity;
    }
    *out = &scope->variable[scope->n++];
    **out = (jinja_variable){.name = name, .load = load, .slot = scope->function->n_slots++};
    return LS_OK;
}

/* JL_ALIAS if an outer scope has the name, else `otherwise`. */
static void set_load(const jinja_scope *scope, jinja_variable *variable, jinja_load otherwise) {
    const jinja_scope *owner = NULL;
    const jinja_variable *outer = find(scope->outer, variable->name, &owner);
    variable->load = outer == NULL ? otherwise : JL_ALIAS;
    if (outer != NULL) {
        variable->alias_hops = hops_to(scope, owner);
        variable->alias_slot = outer->slot;
    }
}

static ls_status look_store(binder *bd, jinja_scope *scope, jinja_str *name, ls_error *err) {
    jinja_variable *variable = find_here(scope, name);
    if (variable == NULL) {
        TRY(define(bd, scope, name, JL_UNDEFINED, &variable, err));
        set_load(scope, variable, JL_UNDEFINED);
    }
    if (variable->stored == 0) {
        variable->stored = ++bd->sequence;
    }
    return LS_OK;
}

static ls_status look_load(binder *bd, jinja_scope *scope, jinja_str *name, ls_error *err) {
    const jinja_scope *owner;
    jinja_variable *variable;
    return find(scope, name, &owner) != NULL ? LS_OK : define(bd, scope, name, JL_RESOLVE, &variable, err);
}

static ls_status declare_parameter(binder *bd, jinja_scope *scope, jinja_str *name, int *slot, ls_error *err) {
    jinja_variable *variable = find_here(scope, name);
    if (variable == NULL) {
        TRY(define(bd, scope, name, JL_PARAMETER, &variable, err));
    }
    variable->load = JL_PARAMETER;
    variable->stored = ++bd->sequence;
    *slot = variable->slot;
    return LS_OK;
}

static ls_status declare_word(binder *bd, jinja_scope *scope, const char *word, int *slot, ls_error *err) {
    jinja_value name;
    TRY(jinja_str_borrow(bd->heap, word, strlen(word), &name, err));
    return declare_parameter(bd, scope, name.str, slot, err);
}

/* ---- looking through a scope ---- */

static bool has_elif(const jinja_node *node) {
    return node->orelse.n == 1 && node->orelse.node[0]->kind == JN_IF && node->orelse.node[0]->op == 1;
}

static ls_status look_expr(binder *bd, jinja_scope *scope, const jinja_node *node, ls_error *err);

static ls_status look_exprs(binder *bd, jinja_scope *scope, const jinja_nodes *nodes, ls_error *err) {
    for (size_t i = 0; i < nodes->n; i++) {
        TRY(look_expr(bd, scope, nodes->node[i], err));
    }
    return LS_OK;
}

static ls_status look_expr(binder *bd, jinja_scope *scope, const jinja_node *node, ls_error *err) {
    if (node == NULL) {
        return LS_OK;
    }
    if (node->kind == JN_NAME || node->kind == JN_NSREF) {
        return look_load(bd, scope, node->name, err);
    }
    if (node->kind == JN_COND) { /* in the order of Jinja2's fields */
        TRY(look_expr(bd, scope, node->b, err));
    }
    TRY(look_expr(bd, scope, node->a, err));
    TRY(look_expr(bd, scope, node->b, err));
    TRY(look_expr(bd, scope, node->c, err));
    TRY(look_exprs(bd, scope, &node->list, err));
    if (node->args != NULL) {
        TRY(look_exprs(bd, scope, &node->args->positional, err));
        TRY(look_exprs(bd, scope, &node->args->keywords, err));
        TRY(look_expr(bd, scope, node->args->star, err));
        TRY(look_expr(bd, scope, node->args->star_star, err));
    }
    return LS_OK;
}

static ls_status look_target(binder *bd, jinja_scope *scope, const jinja_node *target, bool parameter, ls_error *err) {
    int slot;
    switch (target->kind) {
    case JN_TUPLE:
        for (size_t i = 0; i < target->list.n; i++) {
            TRY(look_target(bd, scope, target->list.node[i], parameter, err));
        }
        return LS_OK;
    case JN_NSREF:
        return look_load(bd, scope, target->name, err);
    default:
        return parameter ? declare_parameter(bd, scope, target->name, &slot, err)
                         : look_store(bd, scope, target->name, err);
    }
}

static ls_status look_body(binder *bd, jinja_scope *scope, const jinja_nodes *body, ls_error *err);

static ls_status look_if(binder *bd, jinja_scope *scope, const jinja_node *node, ls_error *err) {
    size_t before = SIZE_MAX;
    for (bool more = true; more;) { /* down the chain of elifs */
        TRY(look_expr(bd, scope, node->a, err));
        if (before == SIZE_MAX) {
            before = bd->sequence;
        }
        TRY(look_body(bd, scope, &node->body, err));
        more = has_elif(node);
        if (more) {
            node = node->orelse.node[0];
        } else {
            TRY(look_body(bd, scope, &node->orelse, err));
        }
    }
    for (size_t i = 0; i < scope->n; i++) {
        if (scope->variable[i].stored > before) {
            set_load(scope, &scope->variable[i], JL_RESOLVE);
        }
    }
    return LS_OK;
}

static ls_status look_statement(binder *bd, jinja_scope *scope, const jinja_node *node, ls_error *err) {
    switch (node->kind) {
    case JN_OUTPUT:
        return look_exprs(bd, scope, &node->list, err);
    case JN_SET:
        TRY(look_expr(bd, scope, node->b, err));
        return look_target(bd, scope, node->a, false, err);
    case JN_SET_BLOCK:
        return look_target(bd, scope, node->a, false, err);
    case JN_FOR:
        return look_expr(bd, scope, node->b, err);
    case JN_IF:
        return look_if(bd, scope, node, err);
    case JN_MACRO:
        return look_store(bd, scope, node->name, err);
    case JN_CALL_BLOCK:
        return look_expr(bd, scope, node->a, err);
    case JN_FILTER_BLOCK:
        return look_expr(bd, scope, node->b, err);
    case JN_WITH:
        return look_exprs(bd, scope, &node->list2, err);
    default:
        return LS_OK;
    }
}

static ls_status look_body(binder *bd, jinja_scope *scope, const jinja_nodes *body, ls_error *err) {
    for (size_t i = 0; i < body->n; i++) {
        TRY(look_statement(bd, scope, body->node[i], err));
    }
    return LS_OK;
}

/* ---- does a body read a name that it does not store before? ---- */

typedef enum use { USE_NONE, USE_STORED, USE_READ } use;

static use use_in(const jinja_node *node, const char *word, bool target);

static use use_in_all(const jinja_nodes *nodes, const char *word, bool target) {
    use found = USE_NONE;
    for (size_t i = 0; i < nodes->n && found == USE_NONE; i++) {
        found = use_in(nodes->node[i], word, target);
    }
    return found;
}

/* Chains of elifs may be long: no recursion down them. */
static use use_in_if(const jinja_node *node, const char *word) {
    for (;;) {
        use found = use_in(node->a, word, false);
        found = found != USE_NONE ? found : use_in_all(&node->body, word, false);
        if (found != USE_NONE) {
            return found;
        }
        if (!has_elif(node)) {
            return use_in_all(&node->orelse, word, false);
        }
        node = node->orelse.node[0];
    }
}

/* The first use of the word. */
static use use_in(const jinja_node *node, const char *word, bool target) {
    if (node == NULL) {
        return USE_NONE;
    }
    if (node->kind == JN_NAME) {
        return !jinja_str_is(node->name, word) ? USE_NONE : target ? USE_STORED : USE_READ;
    }
    if (node->kind == JN_IF) {
        return use_in_if(node, word);
    }
    bool sets = node->kind == JN_SET || node->kind == JN_SET_BLOCK || node->kind == JN_FOR;
    bool declares = node->kind == JN_MACRO || node->kind == JN_CALL_BLOCK || node->kind == JN_WITH;
    use found = use_in(node->a, word, sets);
    found = found != USE_NONE ? found : use_in_all(&node->list, word, declares || (target && node->kind == JN_TUPLE));
    found = found != USE_NONE ? found : use_in_all(&node->list2, word, false);
    found = found != USE_NONE ? found : use_in(node->b, word, false);
    found = found != USE_NONE ? found : use_in_all(&node->body, word, false);
    found = found != USE_NONE ? found : use_in_all(&node->orelse, word, false);
    found = found != USE_NONE ? found : use_in(node->c, word, false);
    if (found == USE_NONE && node->args != NULL) {
        found = use_in_all(&node->args->positional, word, false);
        found = found != USE_NONE ? found : use_in_all(&node->args->keywords, word, false);
        found = found != USE_NONE ? found : use_in(node->args->star, word, false);
        found = found != USE_NONE ? found : use_in(node->args->star_star, word, false);
    }
    return found;
}

/* ---- binding ---- */

static ls_status bind_name(jinja_scope *scope, jinja_node *node, ls_error *err) {
    const jinja_scope *owner = NULL;
    const jinja_variable *variable = find(scope, node->name, &owner);
    if (variable == NULL) {
        return error_set(err, LS_EINTERNAL, "template: the name '%.100s' was not seen", node->name->s);
    }
    node->hops = hops_to(scope, owner);
    node->slot = variable->slot;
    return LS_OK;
}

static ls_status bind_expr(binder *bd, jinja_scope *scope, jinja_node *node, bool soft, ls_error *err);

static ls_status bind_exprs(binder *bd, jinja_scope *scope, const jinja_nodes *nodes, bool soft, ls_error *err) {
    for (size_t i = 0; i < nodes->n; i++) {
        TRY(bind_expr(bd, scope, nodes->node[i], soft, err));
    }
    return LS_OK;
}

/* `soft`: in a branch, where an unknown filter or test is an error only if it is reached. */
static ls_status bind_expr(binder *bd, jinja_scope *scope, jinja_node *node, bool soft, ls_error *err) {
    if (node == NULL) {
        return LS_OK;
    }
    if (node->kind == JN_NAME || node->kind == JN_NSREF) {
        return bind_name(scope, node, err);
    }
    if ((node->kind == JN_FILTER || node->kind == JN_TEST) && node->builtin == NULL && !soft) {
        return BIND_FAIL(bd, node, "No %s named '%.100s'.", node->kind == JN_FILTER ? "filter" : "test", node->name->s);
    }
    soft = soft || node->kind == JN_COND;
    TRY(bind_expr(bd, scope, node->a, soft, err));
    TRY(bind_expr(bd, scope, node->b, soft, err));
    TRY(bind_expr(bd, scope, node->c, soft, err));
    TRY(bind_exprs(bd, scope, &node->list, soft, err));
    if (node->args != NULL) {
        TRY(bind_exprs(bd, scope, &node->args->positional, soft, err));
        TRY(bind_exprs(bd, scope, &node->args->keywords, soft, err));
        TRY(bind_expr(bd, scope, node->args->star, soft, err));
        TRY(bind_expr(bd, scope, node->args->star_star, soft, err));
    }
    return LS_OK;
}

static ls_status bind_target(binder *bd, jinja_scope *scope, jinja_node *target, ls_error *err) {
    if (target->kind == JN_TUPLE) {
        for (size_t i = 0; i < target->list.n; i++) {
            TRY(bind_target(bd, scope, target->list.node[i], err));
        }
        return LS_OK;
    }
    if (target->kind == JN_NAME && bd->loops > 0 && jinja_str_is(target->name, "loop")) {
        return BIND_FAIL(bd, target, "Can't assign to special loop variable in for-loop target");
    }
    return bind_name(scope, target, err);
}

/* Targets hold names and tuples only. */
static ls_status copy_target(binder *bd, const jinja_node *target, jinja_node **out, ls_error *err) {
    TRY(jinja_heap_take(bd->heap, sizeof **out, out, err));
    **out = *target;
    if (target->list.n > 0) {
        TRY(jinja_heap_take_array(bd->heap, target->list.n, sizeof *out, &(*out)->list.node, err));
        for (size_t i = 0; i < target->list.n; i++) {
            TRY(copy_target(bd, target->list.node[i], &(*out)->list.node[i], err));
        }
    }
    return LS_OK;
}

static ls_status bind_for(binder *bd, jinja_scope *scope, jinja_node *node, bool soft, ls_error *err) {
    TRY(bind_expr(bd, scope, node->b, soft, err));
    bd->loops++;
    TRY(scope_new(bd, scope, scope->function, &node->scope, err));
    TRY(declare_word(bd, node->scope, "loop", &node->slot, err));
    TRY(look_target(bd, node->scope, node->a, true, err));
    TRY(look_body(bd, node->scope, &node->body, err));
    TRY(scope_new(bd, scope, scope->function, &node->else_scope, err));
    TRY(look_body(bd, node->else_scope, &node->orelse, err));
    if (node->c != NULL) {
        TRY(jinja_heap_take(bd->heap, sizeof *node->list.node, &node->list.node, err));
        TRY(copy_target(bd, node->a, &node->list.node[0], err));
        node->list.n = 1;
        TRY(scope_new(bd, scope, scope->function, &node->test_scope, err));
        TRY(look_target(bd, node->test_scope, node->list.node[0], true, err));
        TRY(look_expr(bd, node->test_scope, node->c, err));
        TRY(bind_target(bd, node->test_scope, node->list.node[0], err));
        TRY(bind_expr(bd, node->test_scope, node->c, false, err));
    }
    TRY(bind_target(bd, node->scope, node->a, err));
    TRY(bind_body(bd, node->scope, &node->body, false, err));
    TRY(bind_body(bd, node->else_scope, &node->orelse, false, err));
    bd->loops--;
    return LS_OK;
}

static ls_status special_parameter(binder *bd, const jinja_node *node, const char *word, int *slot, ls_error *err) {
    *slot = -1;
    for (size_t i = 0; i < node->list.n; i++) {
        if (jinja_str_is(node->list.node[i]->name, word)) { /* an ordinary parameter then */
            if (strcmp(word, "caller") == 0 && i + node->list2.n < node->list.n &&
                use_in_all(&node->body, word, false) == USE_READ) {
                return BIND_FAIL(bd, node, "the special \"caller\" argument must be omitted or be given a default");
            }
            return LS_OK;
        }
    }
    if (use_in_all(&node->body, word, false) == USE_READ) {
        return declare_word(bd, node->function->scope, word, slot, err);
    }
    return LS_OK;
}

/* Macros, call blocks, generation blocks. */
static ls_status bind_function(binder *bd, jinja_scope *scope, jinja_node *node, ls_error *err) {
    jinja_function *function;
    TRY(jinja_heap_take(bd->heap, sizeof *function, &function, err));
    function->outer = scope->function;
    node->function = function;
    TRY(scope_new(bd, scope, function, &function->scope, err));
    if (node->list.n > 0) {
        TRY(jinja_heap_take_array(bd->heap, node->list.n, sizeof(int), &function->parameter_slot, err));
    }
    for (size_t i = 0; i < node->list.n; i++) {
        TRY(declare_parameter(bd, function->scope, node->list.node[i]->name, &function->parameter_slot[i], err));
    }
    TRY(look_exprs(bd, function->scope, &node->list2, err));
    TRY(look_body(bd, function->scope, &node->body, err));
    TRY(special_parameter(bd, node, "caller", &function->caller_slot, err));
    TRY(special_parameter(bd, node, "kwargs", &function->kwargs_slot, err));
    TRY(special_parameter(bd, node, "varargs", &function->varargs_slot, err));
    TRY(bind_exprs(bd, function->scope, &node->list2, false, err));
    return bind_body(bd, function->scope, &node->body, false, err);
}

static ls_status bind_set_block(binder *bd, jinja_scope *scope, jinja_node *node, ls_error *err) {
    TRY(scope_new(bd, scope, scope->function, &node->scope, err));
    TRY(look_body(bd, node->scope, &node->body, err));
    TRY(look_expr(bd, node->scope, node->b, err));
    TRY(bind_body(bd, node->scope, &node->body, false, err));
    TRY(bind_target(bd, scope, node->a, err));
    return bind_expr(bd, node->scope, node->b, false, err);
}

static ls_status bind_with(binder *bd, jinja_scope *scope, jinja_node *node, bool soft, ls_error *err) {
    TRY(scope_new(bd, scope, scope->function, &node->scope, err));
    for (size_t i = 0; i < node->list.n; i++) {
        TRY(look_target(bd, node->scope, node->list.node[i], true, err));
    }
    TRY(look_body(bd, node->scope, &node->body, err));
    int loops = bd->loops;
    bd->loops = 0; /* `loop` may be a name here */
    for (size_t i = 0; i < node->list.n; i++) {
        TRY(bind_target(bd, node->scope, node->list.node[i], err));
        TRY(bind_expr(bd, scope, node->list2.node[i], soft, err));
    }
    bd->loops = loops;
    return bind_body(bd, node->scope, &node->body, false, err);
}

static ls_status bind_if(binder *bd, jinja_scope *scope, const jinja_node *node, ls_error *err) {
    for (;;) {
        TRY(bind_expr(bd, scope, node->a, true, err));
        TRY(bind_body(bd, scope, &node->body, true, err));
        if (!has_elif(node)) {
            return bind_body(bd, scope, &node->orelse, true, err);
        }
        node = node->orelse.node[0];
    }
}

static ls_status bind_statement(binder *bd, jinja_scope *scope, jinja_node *node, bool soft, ls_error *err) {
    switch (node->kind) {
    case JN_OUTPUT:
        return bind_exprs(bd, scope, &node->list, soft, err);
    case JN_SET:
        TRY(bind_expr(bd, scope, node->b, soft, err));
        return bind_target(bd, scope, node->a, err);
    case JN_SET_BLOCK:
        return bind_set_block(bd, scope, node, err);
    case JN_FOR:
        return bind_for(bd, scope, node, soft, err);
    case JN_IF:
        return bind_if(bd, scope, node, err);
    case JN_MACRO:
        TRY(bind_name(scope, node, err));
        return bind_function(bd, scope, node, err);
    case JN_CALL_BLOCK:
        TRY(bind_expr(bd, scope, node->a, soft, err));
        return bind_function(bd, scope, node, err);
    case JN_GENERATION:
        return bind_function(bd, scope, node, err);
    case JN_FILTER_BLOCK:
        TRY(scope_new(bd, scope, scope->function, &node->scope, err));
        TRY(look_body(bd, node->scope, &node->body, err));
        TRY(look_expr(bd, node->scope, node->b, err));
        TRY(bind_body(bd, node->scope, &node->body, false, err));
        return bind_expr(bd, node->scope, node->b, false, err);
    case JN_WITH:
        return bind_with(bd, scope, node, soft, err);
    default:
        return LS_OK;
    }
}

static ls_status bind_body(binder *bd, jinja_scope *scope, const jinja_nodes *body, bool soft, ls_error *err) {
    for (size_t i = 0; i < body->n; i++) {
        TRY(bind_statement(bd, scope, body->node[i], soft, err));
    }
    return LS_OK;
}

ls_status jinja_bind(jinja_heap *heap, const char *name, jinja_tree *tree, ls_error *err) {
    binder bd = {.heap = heap, .name = name};
    jinja_function *root;
    TRY(jinja_heap_take(heap, sizeof *root, &root, err));
    TRY(scope_new(&bd, NULL, root, &root->scope, err));
    TRY(look_body(&bd, root->scope, &tree->body, err));
    TRY(bind_body(&bd, root->scope, &tree->body, false, err));
    tree->function = root;
    return LS_OK;
}
