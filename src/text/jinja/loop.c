/* The walk of a for statement, and what `loop` tells about it. See eval.h; the model is jinja2's LoopContext. */
#include "text/jinja/eval.h"

ls_status jinja_loop_start(jinja_run *run, jinja_frame *frame, const jinja_node *node, const jinja_value *over,
                           jinja_loop **out, ls_error *err) {
    jinja_loop *loop;
    TRY(jinja_take(run, 1, sizeof *loop, &loop, err));
    TRY(jinja_cursor_init(run, &loop->source, over, err));
    loop->node = node;
    loop->frame = frame;
    loop->index0 = -1;
    *out = loop;
    return LS_OK;
}

/* The next item of the source that meets the condition. */
static ls_status pull_source(jinja_run *run, jinja_loop *loop, jinja_value *out, bool *more, ls_error *err) {
    for (;;) {
        TRY(jinja_cursor_next(run, &loop->source, out, more, err));
        if (!*more || loop->node->c == NULL) {
            return LS_OK;
        }
        jinja_value met;
        TRY(jinja_scope_enter(run, loop->frame, loop->node->test_scope, err));
        TRY(jinja_assign(run, loop->frame, loop->node->list.node[0], out, err));
        TRY(jinja_eval(run, loop->frame, loop->node->c, &met, err));
        if (jinja_truth(&met)) {
            return LS_OK;
        }
    }
}

static ls_status pull(jinja_run *run, jinja_loop *loop, jinja_value *out, bool *more, ls_error *err) {
    if (loop->rest == NULL) {
        return pull_source(run, loop, out, more, err);
    }
    *more = loop->rest_at < loop->rest->n;
    if (*more) {
        *out = loop->rest->item[loop->rest_at++];
    }
    return LS_OK;
}

static ls_status peek(jinja_run *run, jinja_loop *loop, ls_error *err) {
    bool more;
    if (!loop->peeked || !jinja_given(&loop->after)) {
        jinja_value next = {.kind = JINJA_MISSING};
        TRY(pull(run, loop, &next, &more, err));
        loop->after = more ? next : (jinja_value){.kind = JINJA_MISSING};
        loop->peeked = true;
    }
    return LS_OK;
}

ls_status jinja_loop_next(jinja_run *run, jinja_loop *loop, bool *more, ls_error *err) {
    jinja_value next = {.kind = JINJA_MISSING};
    if (loop->peeked && jinja_given(&loop->after)) {
        next = loop->after;
        *more = true;
    } else {
        TRY(pull(run, loop, &next, more, err));
    }
    loop->peeked = false;
    loop->after = (jinja_value){.kind = JINJA_MISSING};
    if (*more) {
        loop->index0++;
        loop->before = loop->current;
        loop->current = next;
    }
    return LS_OK;
}

static ls_status length_of(jinja_run *run, jinja_loop *loop, size_t *n, ls_error *err) {
    if (!loop->has_length) {
        if (loop->node->c != NULL || !jinja_length(&loop->source.over, &loop->length)) {
            jinja_value rest, item;
            bool more = true;
            TRY(jinja_list_new(run, JINJA_LIST, 0, &rest, err));
            for (;;) {
                TRY(pull(run, loop, &item, &more, err));
                if (!more) {
                    break;
                }
                TRY(jinja_list_push(run, rest.list, item, err));
            }
            loop->rest = rest.list;
            loop->rest_at = 0;
            loop->length = rest.list->n + (size_t)(loop->index0 + 1) + jinja_given(&loop->after);
        }
        loop->has_length = true;
    }
    *n = loop->length;
    return LS_OK;
}

static ls_status item_or_undefined(jinja_run *run, bool there, const jinja_value *item, const char *hint,
                                   jinja_value *out, ls_error *err) {
    if (!there) {
        return jinja_undefined_because(run, hint, out, err);
    }
    *out = *item;
    return LS_OK;
}

ls_status jinja_loop_attribute(jinja_run *run, jinja_loop *loop, const jinja_str *name, jinja_value *out,
                               ls_error *err) {
    size_t n;
    if (jinja_str_is(name, "index0")) {
        *out = jinja_int(loop->index0);
    } else if (jinja_str_is(name, "index")) {
        *out = jinja_int(loop->index0 + 1);
    } else if (jinja_str_is(name, "first")) {
        *out = jinja_bool(loop->index0 == 0);
    } else if (jinja_str_is(name, "last")) {
        TRY(peek(run, loop, err));
        *out = jinja_bool(!jinja_given(&loop->after));
    } else if (jinja_str_is(name, "length")) {
        TRY(length_of(run, loop, &n, err));
        *out = jinja_int((int64_t)n);
    } else if (jinja_str_is(name, "revindex")) {
        TRY(length_of(run, loop, &n, err));
        *out = jinja_int((int64_t)n - loop->index0);
    } else if (jinja_str_is(name, "revindex0")) {
        TRY(length_of(run, loop, &n, err));
        *out = jinja_int((int64_t)n - loop->index0 - 1);
    } else if (jinja_str_is(name, "previtem")) {
        return item_or_undefined(run, loop->index0 != 0, &loop->before, "there is no previous item", out, err);
    } else if (jinja_str_is(name, "nextitem")) {
        TRY(peek(run, loop, err));
        return item_or_undefined(run, jinja_given(&loop->after), &loop->after, "there is no next item", out, err);
    } else if (jinja_str_is(name, "depth")) {
        *out = jinja_int(1); /* loops are not recursive here */
    } else if (jinja_str_is(name, "depth0")) {
        *out = jinja_int(0);
    }
    return LS_OK;
}

static ls_status loop_cycle(jinja_run *run, const jinja_value *self, const jinja_call *call, const jinja_value *arg,
                            jinja_value *out, ls_error *err) {
    (void)arg;
    if (call->n == 0 || call->n_keywords > 0) {
        return jinja_fail(run, err, "no items for cycling given");
    }
    *out = call->arg[(size_t)self->loop->index0 % call->n];
    return LS_OK;
}

static ls_status loop_changed(jinja_run *run, const jinja_value *self, const jinja_call *call, const jinja_value *arg,
                              jinja_value *out, ls_error *err) {
    (void)arg;
    jinja_value now;
    bool same = false;
    TRY(jinja_list_new(run, JINJA_TUPLE, call->n, &now, err));
    for (size_t i = 0; i < call->n; i++) {
        TRY(jinja_list_push(run, now.list, call->arg[i], err));
    }
    if (jinja_given(&self->loop->changed)) {
        TRY(jinja_equal(run, &self->loop->changed, &now, &same, err));
    }
    self->loop->changed = now;
    *out = jinja_bool(!same);
    return LS_OK;
}

const jinja_builtin *jinja_find_loop_method(const jinja_str *name) {
    static const jinja_builtin methods[] = {{"cycle", NULL, loop_cycle}, {"changed", NULL, loop_changed}};
    return jinja_find_in(methods, sizeof methods / sizeof *methods, name);
}
