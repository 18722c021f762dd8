/* + - * / // % ** as Python has them, within 64 bits. See eval.h. */
#include <math.h>

#include "text/jinja/eval.h"

static ls_status too_large(const jinja_run *run, ls_error *err) {
    return jinja_fail(run, err, "the result does not fit a 64-bit integer");
}

static ls_status by_zero(const jinja_run *run, ls_error *err) {
    return jinja_fail(run, err, "division by zero");
}

static int64_t floor_div(int64_t a, int64_t b) {
    int64_t quotient = a / b;
    return quotient - (a % b != 0 && (a < 0) != (b < 0));
}

static ls_status int_power(const jinja_run *run, int64_t base, int64_t exponent, jinja_value *out, ls_error *err) {
    if (exponent < 0) {
        if (base == 0) {
            return by_zero(run, err);
        }
        *out = jinja_float(pow((double)base, (double)exponent));
        return LS_OK;
    }
    int64_t result = 1;
    for (bool too_big = false; exponent > 0;) {
        if ((exponent & 1) != 0 && (too_big || __builtin_mul_overflow(result, base, &result))) {
            return too_large(run, err);
        }
        exponent >>= 1;
        too_big = __builtin_mul_overflow(base, base, &base);
    }
    *out = jinja_int(result);
    return LS_OK;
}

static ls_status int_op(const jinja_run *run, int op, int64_t a, int64_t b, jinja_value *out, ls_error *err) {
    int64_t result = 0;
    bool overflow = false;
    switch (op) {
    case '+':
        overflow = __builtin_add_overflow(a, b, &result);
        break;
    case '-':
        overflow = __builtin_sub_overflow(a, b, &result);
        break;
    case '*':
        overflow = __builtin_mul_overflow(a, b, &result);
        break;
    case JOP_POW:
        return int_power(run, a, b, out, err);
    default:
        if (b == 0) {
            return by_zero(run, err);
        }
        if (op == '/') {
            *out = jinja_float((double)a / (double)b);
            return LS_OK;
        }
        overflow = a == INT64_MIN && b == -1 && op == JOP_FLOORDIV;
        if (!overflow) {
            result = b == -1 ? (op == '%' ? 0 : -a) : op == '%' ? a - floor_div(a, b) * b : floor_div(a, b);
        }
    }
    *out = jinja_int(result);
    return overflow ? too_large(run, err) : LS_OK;
}

static double float_mod(double a, double b) {
    double mod = fmod(a, b);
    if (mod == 0) {
        return copysign(0, b);
    }
    return (b < 0) != (mod < 0) ? mod + b : mod;
}

static double float_floor_div(double a, double b) {
    double mod = fmod(a, b), quotient = (a - mod) / b;
    if (mod != 0 && (b < 0) != (mod < 0)) {
        quotient -= 1;
    }
    if (quotient == 0) {
        return copysign(0, a / b);
    }
    double floored = floor(quotient);
    return quotient - floored > 0.5 ? floored + 1 : floored;
}

static ls_status float_op(const jinja_run *run, int op, double a, double b, jinja_value *out, ls_error *err) {
    double result;
    switch (op) {
    case '+':
        result = a + b;
        break;
    case '-':
        result = a - b;
        break;
    case '*':
        result = a * b;
        break;
    case JOP_POW:
        if (a == 0 && b < 0) {
            return by_zero(run, err);
        }
        result = pow(a, b);
        if (isnan(result) && !isnan(a) && !isnan(b)) {
            return jinja_fail(run, err, "complex numbers are not supported");
        }
        if (isinf(result) && isfinite(a) && isfinite(b)) {
            return jinja_fail(run, err, "the result is out of range");
        }
        break;
    default:
        if (b == 0) {
            return by_zero(run, err);
        }
        result = op == '/' ? a / b : op == '%' ? float_mod(a, b) : float_floor_div(a, b);
    }
    *out = jinja_float(result);
    return LS_OK;
}

/* A string's own bytes, or escaped for markup that it joins. */
static ls_status add_for_markup(jinja_run *run, jinja_text *text, const jinja_str *str, bool markup, ls_error *err) {
    return markup && !str->markup ? jinja_text_add_escaped(run, text, str->s, str->n, err)
                                  : jinja_text_add(run, text, str->s, str->n, err);
}

static ls_status add_sequences(jinja_run *run, const jinja_value *a, const jinja_value *b, jinja_value *out,
                               ls_error *err) {
    if (a->kind == JINJA_STR) {
        bool markup = a->str->markup || b->str->markup;
        jinja_text text = {0};
        TRY(add_for_markup(run, &text, a->str, markup, err));
        TRY(add_for_markup(run, &text, b->str, markup, err));
        TRY(jinja_text_done(run, &text, out, err));
        out->str->markup = markup;
        return LS_OK;
    }
    jinja_value list;
    TRY(jinja_step(run, a->list->n + b->list->n, err));
    TRY(jinja_list_new(run, a->kind, a->list->n + b->list->n, &list, err));
    for (size_t i = 0; i < a->list->n + b->list->n; i++) {
        TRY(jinja_list_push(run, list.list, i < a->list->n ? a->list->item[i] : b->list->item[i - a->list->n], err));
    }
    *out = list;
    return LS_OK;
}

static ls_status repeat(jinja_run *run, const jinja_value *sequence, int64_t times, jinja_value *out, ls_error *err) {
    if (sequence->kind == JINJA_STR) {
        jinja_text text = {0};
        TRY(jinja_text_add_times(run, &text, sequence->str->s, sequence->str->n, times, err));
        TRY(jinja_text_done(run, &text, out, err));
        out->str->markup = sequence->str->markup;
        return LS_OK;
    }
    jinja_value list;
    TRY(jinja_list_new(run, sequence->kind, 0, &list, err));
    for (int64_t k = 0; k < times && sequence->list->n > 0; k++) {
        TRY(jinja_step(run, sequence->list->n, err));
        for (size_t i = 0; i < sequence->list->n; i++) {
            TRY(jinja_list_push(run, list.list, sequence->list->item[i], err));
        }
    }
    *out = list;
    return LS_OK;
}

static bool is_sequence(const jinja_value *value) {
    return value->kind == JINJA_STR || value->kind == JINJA_LIST || value->kind == JINJA_TUPLE;
}

ls_status jinja_binary(jinja_run *run, int op, const jinja_value *a, const jinja_value *b, jinja_value *out,
                       ls_error *err) {
    int64_t x, y;
    if (jinja_as_int(a, &x) && jinja_as_int(b, &y)) {
        return int_op(run, op, x, y, out, err);
    }
    if (jinja_is_number(a) && jinja_is_number(b)) {
        return float_op(run, op, jinja_as_float(a), jinja_as_float(b), out, err);
    }
    if (op == '%' && a->kind == JINJA_STR) {
        return jinja_fail_as(run, LS_EUNSUPPORTED, err, "formatting strings with %% is not supported");
    }
    if (a->kind == JINJA_UNDEFINED || b->kind == JINJA_UNDEFINED) {
        return jinja_fail_undefined(run, a->kind == JINJA_UNDEFINED ? a : b, err);
    }
    if (op == '+' && a->kind == b->kind && is_sequence(a)) {
        return add_sequences(run, a, b, out, err);
    }
    if (op == '*' && is_sequence(a) && jinja_as_int(b, &y)) {
        return repeat(run, a, y, out, err);
    }
    if (op == '*' && is_sequence(b) && jinja_as_int(a, &x)) {
        return repeat(run, b, x, out, err);
    }
    const char *sign = op == JOP_POW ? "**" : op == JOP_FLOORDIV ? "//" : (const char[]){(char)op, '\0'};
    return jinja_fail(run, err, "'%s' is not possible between %s and %s", sign, jinja_type_name(a), jinja_type_name(b));
}

ls_status jinja_unary(jinja_run *run, int op, const jinja_value *a, jinja_value *out, ls_error *err) {
    int64_t x;
    if (a->kind == JINJA_FLOAT) {
        *out = jinja_float(op == '-' ? -a->f : a->f);
        return LS_OK;
    }
    if (jinja_as_int(a, &x)) {
        if (x == INT64_MIN && op == '-') {
            return too_large(run, err);
        }
        *out = jinja_int(op == '-' ? -x : x);
        return LS_OK;
    }
    if (a->kind == JINJA_UNDEFINED) {
        return jinja_fail_undefined(run, a, err);
    }
    return jinja_fail(run, err, "'%c' is not possible before %s", op, jinja_type_name(a));
}
