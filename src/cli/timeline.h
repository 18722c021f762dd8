/* The timeline as people read it and as JSON. */
#ifndef LS_CLI_TIMELINE_H
#define LS_CLI_TIMELINE_H

#include <stdio.h>

#include "base/json.h"

void timeline_print(FILE *out, const ls_timeline *timeline);
/* --profile: a table for decode steps and one for the others. */
void profile_print(FILE *out, const ls_profile_line *line, size_t n, double limit_bytes_per_s);
json_t *timeline_json(const ls_timeline *timeline); /* a new reference, or NULL without memory */

#endif
