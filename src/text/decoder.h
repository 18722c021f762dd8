/*
 * How token texts become text again, in the order of work:
 *   1. each token on its own: replacements ("▁" to " "), done once for the whole vocabulary when the file is read;
 *   2. byte tokens ("<0xE2>"): a run of them is its bytes if those are valid UTF-8, else one U+FFFD for each (ByteFallback);
 *   3. `strip` characters go at the very start of the text, at most n_strip of them (Strip behind Fuse);
 *   4. byte-level: texts are bytes, read as UTF-8 all together, one U+FFFD for each maximal invalid part;
 * or Metaspace: the first token of a text loses its marks, the others have spaces in their place.
 */
#ifndef LS_TEXT_DECODER_H
#define LS_TEXT_DECODER_H

#include "text/pattern.h"
#include "text/text_buffer.h"
#include "text/vocab.h"

enum { DECODER_MAX_REPLACES = 8, DECODER_MAX_MARK = 4 };

typedef struct decoder_replace {
    pattern pattern;
    text_buffer content;
} decoder_replace;

typedef struct decoder {
    bool byte_level, byte_fallback;
    bool drop_first_marks; /* Metaspace */
    char mark[DECODER_MAX_MARK];
    size_t n_mark; /* > 0: Metaspace */
    char strip[DECODER_MAX_MARK];
    size_t n_strip_bytes, n_strip;
    decoder_replace replace[DECODER_MAX_REPLACES];
    int n_replaces;
} decoder;

void decoder_deinit(decoder *d); /* accepts a zeroed one */

/* Sets the decoded text of every token of the vocabulary. Spellings of added tokens count as what `tokenizers` would
 * hand to its decoder. */
ls_status decoder_apply(const decoder *d, vocab *v, ls_error *err);

#endif
