/* The small sections of tokenizer.json. Private to tokenizer_file.c. */
#ifndef LS_TEXT_TOKENIZER_SECTIONS_H
#define LS_TEXT_TOKENIZER_SECTIONS_H

#include "text/json_place.h"
#include "text/tokenizer_parts.h"

/* normalizer, pre_tokenizer, decoder, and truncation and padding, which must be null. Sets t->vocab.byte_level. */
ls_status sections_read(const json_place *root, ls_tokenizer *t, ls_error *err);
/* post_processor: its ids must be in the vocabulary, which is complete. */
ls_status post_processor_read(const json_place *root, ls_tokenizer *t, ls_error *err);

#endif
