/* Calls: arguments to parameters, macros, and the global functions. See eval.h and builtin.h. */
#include <stdio.h>
#include <string.h>

#include "text/jinja/eval.h"

/* ---- builtin functions ---- */

/* The next parameter of a spec: its name, and whether it may be left out. */
static const char *next_parameter(const char *spec, size_t *n, bool *optional) {
    while (*spec == ' ') {
        spec++;
    }
    *n = strcspn(spec, " ?");
    *optional = spec[*n] == '?';
    return spec;
}

static ls_status bind_keyword(jinja_run *run, const jinja_builtin *builtin, const jinja_call *call, size_t k,
                              jinja_value *arg, ls_error *err) {
    const char *spec = builtin->spec;
    bool by_position_only = *spec == '/', optional;
    spec += by_position_only;
    size_t n;
    for (size_t i = 0; *(spec = next_parameter(spec, &n, &optional)) != '\0'; i++, spec += n + optional) {
        if (!by_position_only && call->name[k]->n == n && memcmp(call->name[k]->s, spec, n) == 0) {
            if (jinja_given(&arg[i])) {
                return jinja_fail(run, err, "%s() got the argument '%s' twice", builtin->name, call->name[k]->s);
            }
            arg[i] = call->keyword[k];
            return LS_OK;
        }
    }
    return jinja_fail(run, err, "%s() has no parameter '%.100s'", builtin->name, call->name[k]->s);
}

ls_status jinja_invoke(jinja_run *run, const jinja_builtin *builtin, const jinja_value *self, const jinja_call *call,
                       jinja_value *out, ls_error *err) {
    jinja_value arg[JINJA_MAX_PARAMETERS] = {{.kind = JINJA_MISSING}};
    if (builtin->spec == NULL) {
        return builtin->fn(run, self, call, arg, out, err);
    }
    const char *spec = builtin->spec + (builtin->spec[0] == '/');
    size_t n_parameters = 0, n;
    bool optional;
    for (const char *at = spec; *(at = next_parameter(at, &n, &optional)) != '\0'; at += n + optional) {
        n_parameters++;
    }
    if (call->n > n_parameters) {
        return jinja_fail(run, err, "%s() takes at most %zu arguments, %zu given", builtin->name, n_parameters,
                          call->n);
    }
    for (size_t i = 0; i < call->n; i++) {
        arg[i] = call->arg[i];
    }
    for (size_t k = 0; k < call->n_keywords; k++) {
        TRY(bind_keyword(run, builtin, call, k, arg, err));
    }
    size_t i = 0;
    for (const char *at = spec; *(at = next_parameter(at, &n, &optional)) != '\0'; at += n + optional, i++) {
        if (!optional && !jinja_given(&arg[i])) {
            return jinja_fail(run, err, "%s() misses the argument '%.*s'", builtin->name, (int)n, at);
        }
    }
    return builtin->fn(run, self, call, arg, out, err);
}

ls_status jinja_arg_int(jinja_run *run, const jinja_value *arg, int64_t fallback, int64_t *out, ls_error *err) {
    if (!jinja_given(arg)) {
        *out = fallback;
    } else if (!jinja_as_int(arg, out)) {
        return jinja_fail(run, err, "an integer is needed, not %s", jinja_type_name(arg));
    }
    return LS_OK;
}

ls_status jinja_arg_str(jinja_run *run, const jinja_value *arg, const char *what, jinja_str **out, ls_error *err) {
    if (arg->kind != JINJA_STR) {
        return jinja_fail(run, err, "%s must be a string, not %s", what, jinja_type_name(arg));
    }
    *out = arg->str;
    return LS_OK;
}

ls_status jinja_arg_soft_str(jinja_run *run, const jinja_value *value, jinja_str **out, ls_error *err) {
    jinja_value str;
    TRY(jinja_to_str(run, value, &str, err));
    *out = str.str;
    return LS_OK;
}

const jinja_builtin *jinja_find_in(const jinja_builtin *table, size_t n, const jinja_str *name) {
    for (size_t i = 0; i < n; i++) {
        if (jinja_str_is(name, table[i].name)) {
            return &table[i];
        }
    }
    return NULL;
}

/* ---- macros ---- */

/* Takes the keyword argument `name` out of those that are left. */
static jinja_value take_keyword(const jinja_call *call, bool *taken, const char *name, size_t n) {
    for (size_t k = 0; k < call->n_keywords; k++) {
        if (!taken[k] && call->name[k]->n == n && memcmp(call->name[k]->s, name, n) == 0) {
            taken[k] = true;
            return call->keyword[k];
        }
    }
    return (jinja_value){.kind = JINJA_MISSING};
}

static ls_status bind_rest(jinja_run *run, const jinja_node *node, const jinja_call *call, const bool *taken,
                           jinja_frame *frame, ls_error *err) {
    const jinja_function *function = node->function;
    const char *name = node->name == NULL ? "caller" : node->name->s;
    if (function->kwargs_slot >= 0) {
        jinja_value kwargs;
        TRY(jinja_dict_new(run, JINJA_DICT, 0, &kwargs, err));
        for (size_t k = 0; k < call->n_keywords; k++) {
            if (!taken[k]) {
                jinja_value key = {.kind = JINJA_STR, .str = call->name[k]};
                TRY(jinja_dict_set(run, kwargs.dict, key, call->keyword[k], err));
            }
        }
        frame->slot[function->kwargs_slot] = kwargs;
    }
    for (size_t k = 0; k < call->n_keywords && function->kwargs_slot < 0; k++) {
        if (!taken[k]) {
            return jinja_fail(run, err, "macro '%.100s' takes no keyword argument '%.100s'", name, call->name[k]->s);
        }
    }
    if (function->varargs_slot >= 0) {
        jinja_value varargs;
        TRY(jinja_list_new(run, JINJA_TUPLE, 0, &varargs, err));
        for (size_t i = node->list.n; i < call->n; i++) {
            TRY(jinja_list_push(run, varargs.list, call->arg[i], err));
        }
        frame->slot[function->varargs_slot] = varargs;
    } else if (call->n > node->list.n) {
        return jinja_fail(run, err, "macro '%.100s' takes not more than %zu argument(s)", name, node->list.n);
    }
    return LS_OK;
}

static ls_status bind_macro(jinja_run *run, const jinja_node *node, const jinja_call *call, jinja_frame *frame,
                            ls_error *err) {
    const jinja_function *function = node->function;
    bool *taken;
    TRY(jinja_take(run, call->n_keywords, sizeof *taken, &taken, err));
    for (size_t i = 0; i < node->list.n; i++) {
        const jinja_str *name = node->list.node[i]->name;
        frame->slot[function->parameter_slot[i]] =
            i < call->n ? call->arg[i] : take_keyword(call, taken, name->s, name->n);
    }
    if (function->caller_slot >= 0) {
        jinja_value caller = take_keyword(call, taken, "caller", strlen("caller"));
        if (caller.kind == JINJA_MISSING || caller.kind == JINJA_NONE) {
            TRY(jinja_undefined_because(run, "No caller defined", &caller, err));
        }
        frame->slot[function->caller_slot] = caller;
    }
    TRY(bind_rest(run, node, call, taken, frame, err));
    size_t first_default = node->list.n - node->list2.n;
    for (size_t i = 0; i < node->list.n; i++) {
        jinja_value *slot = &frame->slot[function->parameter_slot[i]];
        if (jinja_given(slot)) {
            continue;
        }
        jinja_value value;
        if (i >= first_default) {
            TRY(jinja_eval(run, frame, node->list2.node[i - first_default], &value, err));
        } else {
            TRY(jinja_undefined_of(run, NULL, node->list.node[i]->name, &value, err));
        }
        *slot = value;
    }
    return LS_OK;
}

static ls_status run_macro(jinja_run *run, const jinja_macro *macro, const jinja_call *call, jinja_value *out,
                           ls_error *err) {
    const jinja_node *node = macro->node;
    jinja_frame *frame;
    TRY(jinja_frame_new(run, macro->frame, node->function, &frame, err));
    TRY(jinja_scope_enter(run, frame, node->function->scope, err));
    TRY(bind_macro(run, node, call, frame, err));
    jinja_text text = {0}, *before = run->out;
    run->out = &text;
    jinja_flow flow = JINJA_FLOW_ON;
    ls_status st = jinja_exec_body(run, frame, &node->body, &flow, err);
    run->out = before;
    return st < 0 ? st : jinja_text_done(run, &text, out, err);
}

ls_status jinja_call_value(jinja_run *run, const jinja_value *callee, const jinja_call *call, jinja_value *out,
                           ls_error *err) {
    ls_status st;
    switch (callee->kind) {
    case JINJA_MACRO: {
        int line = run->line;
        TRY(jinja_enter(run, err));
        st = run_macro(run, callee->macro, call, out, err);
        jinja_leave(run);
        run->line = st < 0 ? run->line : line;
        return st;
    }
    case JINJA_METHOD:
        return jinja_invoke(run, callee->method->builtin, &callee->method->self, call, out, err);
    case JINJA_FUNCTION:
        return jinja_invoke(run, callee->function, NULL, call, out, err);
    case JINJA_UNDEFINED:
        return jinja_fail_undefined(run, callee, err);
    default:
        return jinja_fail(run, err, "a value of type %s cannot be called", jinja_type_name(callee));
    }
}

/* ---- global functions ---- */

#define PARAMETERS                                                                                                     \
    jinja_run *run, const jinja_value *self, const jinja_call *call, const jinja_value *arg, jinja_value *out,         \
        ls_error *err
#define UNUSED (void)self, (void)call, (void)arg

static ls_status fn_raise(PARAMETERS) {
    UNUSED;
    (void)out;
    jinja_str *message;
    TRY(jinja_arg_soft_str(run, &arg[0], &message, err));
    return error_set(err, LS_EINVAL, "%s", message->s);
}

static ls_status fn_range(PARAMETERS) {
    UNUSED;
    enum { MAX_RANGE = 100000 }; /* the sandbox's */
    int64_t start = 0, stop = 0, step = 1;
    if (call->n < 1 || call->n > 3 || call->n_keywords > 0) {
        return jinja_fail(run, err, "range() takes 1 to 3 arguments");
    }
    TRY(jinja_arg_int(run, &call->arg[0], 0, call->n == 1 ? &stop : &start, err));
    if (call->n > 1) {
        TRY(jinja_arg_int(run, &call->arg[1], 0, &stop, err));
    }
    if (call->n > 2) {
        TRY(jinja_arg_int(run, &call->arg[2], 0, &step, err));
    }
    if (step == 0) {
        return jinja_fail(run, err, "range() arg 3 must not be zero");
    }
    uint64_t n = 0;
    if (step > 0 ? start < stop : start > stop) {
        uint64_t distance = step > 0 ? (uint64_t)stop - (uint64_t)start : (uint64_t)start - (uint64_t)stop;
        uint64_t stride = step > 0 ? (uint64_t)step : 0 - (uint64_t)step;
        n = (distance - 1) / stride + 1;
    }
    if (n > MAX_RANGE) {
        return jinja_fail(run, err, "Range too big. The sandbox blocks ranges larger than %d.", MAX_RANGE);
    }
    jinja_range *range;
    TRY(jinja_take(run, 1, sizeof *range, &range, err));
    *range = (jinja_range){.start = start, .stop = stop, .step = step, .n = n};
    *out = (jinja_value){.kind = JINJA_RANGE, .range = range};
    return LS_OK;
}

/* dict(), dict(other), dict(pairs), each also with keywords; namespace() likewise. */
static ls_status make_dict(jinja_run *run, jinja_kind kind, const jinja_call *call, jinja_value *out, ls_error *err) {
    jinja_value dict;
    if (call->n > 1) {
        return jinja_fail(run, err, "dict expected at most 1 argument, got %zu", call->n);
    }
    TRY(jinja_dict_new(run, kind, 0, &dict, err));
    if (call->n == 1 && call->arg[0].kind == JINJA_DICT) {
        const jinja_dict *other = call->arg[0].dict;
        for (size_t i = 0; i < other->n; i++) {
            TRY(jinja_step(run, 1, err));
            TRY(jinja_dict_set(run, dict.dict, other->entry[i].key, other->entry[i].value, err));
        }
    } else if (call->n == 1) {
        jinja_list *pairs, *pair;
        TRY(jinja_collect(run, &call->arg[0], &pairs, err));
        for (size_t i = 0; i < pairs->n; i++) {
            TRY(jinja_collect(run, &pairs->item[i], &pair, err));
            if (pair->n != 2) {
                return jinja_fail(run, err, "a dict is made of pairs, item %zu has %zu", i, pair->n);
            }
            TRY(jinja_dict_set(run, dict.dict, pair->item[0], pair->item[1], err));
        }
    }
    for (size_t k = 0; k < call->n_keywords; k++) {
        jinja_value key = {.kind = JINJA_STR, .str = call->name[k]};
        TRY(jinja_dict_set(run, dict.dict, key, call->keyword[k], err));
    }
    *out = dict;
    return LS_OK;
}

static ls_status fn_dict(PARAMETERS) {
    UNUSED;
    return make_dict(run, JINJA_DICT, call, out, err);
}

static ls_status fn_namespace(PARAMETERS) {
    UNUSED;
    return make_dict(run, JINJA_NAMESPACE, call, out, err);
}

/* One directive of Python's strftime: those that differ from C's are done here. The time has no zone, as
 * datetime.now() has none. */
static ls_status add_directive(jinja_run *run, jinja_text *text, const char *directive, size_t n, ls_error *err) {
    char format[16], piece[256];
    char last = directive[n - 1];
    if (last == 'z' || last == 'Z') {
        return LS_OK;
    }
    if (last == 'f') {
        return jinja_text_add_c(run, text, "000000", err);
    }
    snprintf(format, sizeof format, "%.*s", (int)n, directive);
    size_t n_piece = strftime(piece, sizeof piece, format, run->now);
    return jinja_text_add(run, text, piece, n_piece, err);
}

static ls_status fn_strftime_now(PARAMETERS) {
    UNUSED;
    jinja_str *format = NULL;
    TRY(jinja_arg_str(run, &arg[0], "the format", &format, err));
    if (run->now == NULL) {
        return jinja_fail(run, err, "strftime_now: no time was given");
    }
    jinja_text text = {0};
    for (size_t i = 0; i < format->n;) {
        size_t n = 1;
        if (format->s[i] == '%' && i + 1 < format->n) {
            n += strspn(format->s + i + 1, "-_^#EO:");
            n = n > 4 ? 4 : n;
            n += i + n < format->n && (unsigned char)format->s[i + n] < 0x80;
            TRY(add_directive(run, &text, format->s + i, n, err));
        } else {
            TRY(jinja_text_add(run, &text, format->s + i, 1, err));
        }
        i += n;
    }
    return jinja_text_done(run, &text, out, err);
}

static ls_status fn_unsupported(PARAMETERS) {
    UNUSED;
    (void)out;
    return jinja_fail_as(run, LS_EUNSUPPORTED, err, "lipsum, cycler and joiner are not supported");
}

const jinja_builtin *jinja_find_function(const jinja_str *name) {
    static const jinja_builtin functions[] = {
        {"raise_exception", "message", fn_raise},
        {"strftime_now", "format", fn_strftime_now},
        {"namespace", NULL, fn_namespace},
        {"range", NULL, fn_range},
        {"dict", NULL, fn_dict},
        {"lipsum", NULL, fn_unsupported},
        {"cycler", NULL, fn_unsupported},
        {"joiner", NULL, fn_unsupported},
    };
    return jinja_find_in(functions, sizeof functions / sizeof *functions, name);
}
