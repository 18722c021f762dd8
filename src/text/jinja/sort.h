/* Python's sorted(): stable, by a list of keys. */
#ifndef LS_TEXT_JINJA_SORT_H
#define LS_TEXT_JINJA_SORT_H

#include "text/jinja/value.h"

/* Orders order[0 .. n), indices into key[], by their keys. Keys without an order are an error. Like Python's, a reversed
 * sort keeps the order of equal items. */
ls_status jinja_sort(jinja_run *run, const jinja_value *key, size_t *order, size_t n, bool reverse, ls_error *err);

#endif
