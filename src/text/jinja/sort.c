/* See sort.h: merge sort from the bottom up. */
#include "text/jinja/sort.h"

#include <string.h>

/* Should the item at b come before the one at a, which it follows now? */
static ls_status goes_first(jinja_run *run, const jinja_value *a, const jinja_value *b, bool reverse, bool *out,
                            ls_error *err) {
    int order;
    bool unordered;
    TRY(jinja_step(run, 1, err));
    if (reverse) {
        TRY(jinja_order(run, a, b, "<", &order, &unordered, err));
    } else {
        TRY(jinja_order(run, b, a, "<", &order, &unordered, err));
    }
    *out = order < 0 && !unordered;
    return LS_OK;
}

static ls_status merge(jinja_run *run, const jinja_value *key, const size_t *from, size_t n_a, size_t n, size_t *to,
                       bool reverse, ls_error *err) {
    size_t a = 0, b = n_a;
    for (size_t i = 0; i < n; i++) {
        bool take_b = a == n_a;
        if (!take_b && b < n) {
            TRY(goes_first(run, &key[from[a]], &key[from[b]], reverse, &take_b, err));
        }
        to[i] = take_b ? from[b++] : from[a++];
    }
    return LS_OK;
}

ls_status jinja_sort(jinja_run *run, const jinja_value *key, size_t *order, size_t n, bool reverse, ls_error *err) {
    size_t *scratch;
    TRY(jinja_take(run, n, sizeof *scratch, &scratch, err));
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t at = 0; at < n; at += 2 * width) {
            size_t left = n - at, n_a = left < width ? left : width;
            TRY(merge(run, key, order + at, n_a, left < 2 * width ? left : 2 * width, scratch + at, reverse, err));
        }
        memcpy(order, scratch, n * sizeof *order);
    }
    return LS_OK;
}
