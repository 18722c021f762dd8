/*
 * Tokens of a template, all at once: text between tags, and inside tags names, literals and operators.
 *
 * White space is settled here, as Jinja2 with trim_blocks and lstrip_blocks does it (which is how Hugging Face renders):
 * "-" at a tag strips on that side; one newline after a block or comment goes; blanks between the start of a line and
 * a block or comment go unless the tag says "+". Comments and raw markers leave no token.
 */
#ifndef LS_TEXT_JINJA_LEX_H
#define LS_TEXT_JINJA_LEX_H

#include "text/jinja/value.h"

typedef enum jinja_token_kind {
    JT_EOF = 0,
    JT_DATA,
    JT_VARIABLE_BEGIN,
    JT_VARIABLE_END,
    JT_BLOCK_BEGIN,
    JT_BLOCK_END,
    JT_NAME,
    JT_STRING,
    JT_INTEGER,
    JT_FLOAT,
    JT_OPERATOR /* which: op */
} jinja_token_kind;

/* Two-character operators are named by a letter. */
enum { JOP_FLOORDIV = 'f', JOP_POW = 'p', JOP_EQ = 'e', JOP_NE = 'n', JOP_GTEQ = 'g', JOP_LTEQ = 'l' };

typedef struct jinja_token {
    jinja_token_kind kind;
    int op; /* the character of an operator, or a JOP_ */
    int line;
    jinja_value value; /* data, names and strings: a string; numbers: a number */
} jinja_token;

typedef struct jinja_tokens {
    jinja_token *token; /* ends with JT_EOF */
    size_t n, capacity;
} jinja_tokens;

/* The source must be valid UTF-8. Tokens live in the heap. Errors name the line. */
ls_status jinja_lex(jinja_heap *heap, const char *name, const char *source, size_t n_bytes, jinja_tokens *out,
                    ls_error *err);

#endif
