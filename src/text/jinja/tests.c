/* What can follow `is`. See builtin.h; the list is jinja2/tests.py. */
#include <string.h>

#include "text/jinja/eval.h"
#include "text/jinja/unicode.h"

#define TEST(name)                                                                                                     \
    static ls_status name(jinja_run *run, const jinja_value *self, const jinja_call *call, const jinja_value *arg,     \
                          jinja_value *out, ls_error *err)
#define UNUSED (void)run, (void)self, (void)call, (void)arg, (void)err

#define KIND_TEST(name, condition)                                                                                     \
    TEST(name) {                                                                                                       \
        UNUSED;                                                                                                        \
        *out = jinja_bool(condition);                                                                                  \
        return LS_OK;                                                                                                  \
    }
KIND_TEST(is_defined, self->kind != JINJA_UNDEFINED)
KIND_TEST(is_undefined, self->kind == JINJA_UNDEFINED)
KIND_TEST(is_none, self->kind == JINJA_NONE)
KIND_TEST(is_boolean, self->kind == JINJA_BOOL)
KIND_TEST(is_true, self->kind == JINJA_BOOL && self->b)
KIND_TEST(is_false, self->kind == JINJA_BOOL && !self->b)
KIND_TEST(is_integer, self->kind == JINJA_INT)
KIND_TEST(is_float, self->kind == JINJA_FLOAT)
KIND_TEST(is_number, jinja_is_number(self))
KIND_TEST(is_string, self->kind == JINJA_STR)
KIND_TEST(is_mapping, self->kind == JINJA_DICT)
KIND_TEST(is_iterable, jinja_iterable(self) || self->kind == JINJA_LOOP)
KIND_TEST(is_escaped, self->kind == JINJA_STR && self->str->markup)
KIND_TEST(is_sameas, jinja_same(self, &arg[0]))
/* What has a length and can be indexed. Views cannot; undefined values say that they can. */
KIND_TEST(is_sequence, self->kind == JINJA_STR || self->kind == JINJA_LIST || self->kind == JINJA_TUPLE ||
                           self->kind == JINJA_DICT || self->kind == JINJA_RANGE || self->kind == JINJA_UNDEFINED)
KIND_TEST(is_callable, self->kind == JINJA_MACRO || self->kind == JINJA_METHOD || self->kind == JINJA_FUNCTION ||
                           self->kind == JINJA_UNDEFINED || self->kind == JINJA_LOOP)

static ls_status text_is_cased(jinja_run *run, const jinja_value *self, bool upper, jinja_value *out, ls_error *err) {
    jinja_str *str;
    TRY(jinja_arg_soft_str(run, self, &str, err));
    *out = jinja_bool(jinja_str_is_cased(str, upper));
    return LS_OK;
}

TEST(is_lower) {
    UNUSED;
    return text_is_cased(run, self, false, out, err);
}
TEST(is_upper) {
    UNUSED;
    return text_is_cased(run, self, true, out, err);
}

/* value % by == rest */
static ls_status remainder_is(jinja_run *run, const jinja_value *value, jinja_value by, int64_t rest, jinja_value *out,
                              ls_error *err) {
    jinja_value remainder, wanted = jinja_int(rest);
    bool equal;
    TRY(jinja_binary(run, '%', value, &by, &remainder, err));
    TRY(jinja_equal(run, &remainder, &wanted, &equal, err));
    *out = jinja_bool(equal);
    return LS_OK;
}

TEST(is_odd) {
    UNUSED;
    return remainder_is(run, self, jinja_int(2), 1, out, err);
}
TEST(is_even) {
    UNUSED;
    return remainder_is(run, self, jinja_int(2), 0, out, err);
}
TEST(is_divisibleby) {
    UNUSED;
    return remainder_is(run, self, arg[0], 0, out, err);
}

TEST(is_eq) {
    UNUSED;
    bool equal;
    TRY(jinja_equal(run, self, &arg[0], &equal, err));
    *out = jinja_bool(equal);
    return LS_OK;
}
TEST(is_ne) {
    UNUSED;
    TRY(is_eq(run, self, call, arg, out, err));
    out->b = !out->b;
    return LS_OK;
}
TEST(is_in) {
    UNUSED;
    bool found;
    TRY(jinja_contains(run, self, &arg[0], &found, err));
    *out = jinja_bool(found);
    return LS_OK;
}

static ls_status ordered(jinja_run *run, const jinja_value *a, const jinja_value *b, const char *op, jinja_value *out,
                         ls_error *err) {
    int order;
    bool unordered;
    TRY(jinja_order(run, a, b, op, &order, &unordered, err));
    bool holds = (op[0] == '<' ? order < 0 : order > 0) || (op[1] == '=' && order == 0);
    *out = jinja_bool(holds && !unordered);
    return LS_OK;
}

TEST(is_lt) {
    UNUSED;
    return ordered(run, self, &arg[0], "<", out, err);
}
TEST(is_le) {
    UNUSED;
    return ordered(run, self, &arg[0], "<=", out, err);
}
TEST(is_gt) {
    UNUSED;
    return ordered(run, self, &arg[0], ">", out, err);
}
TEST(is_ge) {
    UNUSED;
    return ordered(run, self, &arg[0], ">=", out, err);
}

TEST(is_filter) {
    UNUSED;
    *out = jinja_bool(self->kind == JINJA_STR && jinja_find_filter(self->str) != NULL);
    return jinja_hashable(self) ? LS_OK : jinja_fail(run, err, "the name of a filter is a string");
}
TEST(is_test) {
    UNUSED;
    *out = jinja_bool(self->kind == JINJA_STR && jinja_find_test(self->str) != NULL);
    return jinja_hashable(self) ? LS_OK : jinja_fail(run, err, "the name of a test is a string");
}

const jinja_builtin *jinja_find_test(const jinja_str *name) {
    static const jinja_builtin tests[] = {
        {"defined", "", is_defined},
        {"undefined", "", is_undefined},
        {"none", "", is_none},
        {"boolean", "", is_boolean},
        {"true", "", is_true},
        {"false", "", is_false},
        {"integer", "", is_integer},
        {"float", "", is_float},
        {"number", "", is_number},
        {"string", "", is_string},
        {"mapping", "", is_mapping},
        {"iterable", "", is_iterable},
        {"sequence", "", is_sequence},
        {"callable", "", is_callable},
        {"escaped", "", is_escaped},
        {"sameas", "other", is_sameas},
        {"lower", "", is_lower},
        {"upper", "", is_upper},
        {"odd", "", is_odd},
        {"even", "", is_even},
        {"divisibleby", "num", is_divisibleby},
        {"in", "seq", is_in},
        {"filter", "", is_filter},
        {"test", "", is_test},
        {"eq", "/other", is_eq},
        {"equalto", "/other", is_eq},
        {"==", "/other", is_eq},
        {"ne", "/other", is_ne},
        {"!=", "/other", is_ne},
        {"lt", "/other", is_lt},
        {"lessthan", "/other", is_lt},
        {"<", "/other", is_lt},
        {"le", "/other", is_le},
        {"<=", "/other", is_le},
        {"gt", "/other", is_gt},
        {"greaterthan", "/other", is_gt},
        {">", "/other", is_gt},
        {"ge", "/other", is_ge},
        {">=", "/other", is_ge},
    };
    return jinja_find_in(tests, sizeof tests / sizeof *tests, name);
}
