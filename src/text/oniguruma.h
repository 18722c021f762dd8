/*
 * Patterns in tokenizer.json are written for Oniguruma (Ruby syntax); PCRE2 runs them here. Most of the syntax means
 * the same to both. What does not is translated (\s) or refused by place, never run with another meaning.
 */
#ifndef LS_TEXT_ONIGURUMA_H
#define LS_TEXT_ONIGURUMA_H

#include "text/text_buffer.h"

/* Appends the pattern as PCRE2 must read it, with PCRE2_UTF, PCRE2_UCP and PCRE2_MULTILINE (Ruby's ^ and $). */
ls_status oniguruma_to_pcre2(const char *pattern, size_t n, text_buffer *out, ls_error *err);

#endif
