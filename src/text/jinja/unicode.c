/*
 * See unicode.h. The tables hold what utf8proc does not say: characters that count as upper case, lower case,
 * digits or case-ignorable without belonging to the category, and the case mappings to several characters
 * (SpecialCasing.txt without its conditions). They come from Python 3.11 (Unicode 14); utf8proc's own are Unicode 15's,
 * so that characters newer than 2021 may differ.
 */
#include "text/jinja/unicode.h"

#include <utf8proc.h>

#include "text/utf8.h"

typedef struct range {
    int32_t first, last;
} range;

typedef struct special_case {
    int32_t c;
    int32_t upper[JINJA_MAX_CASED], title[JINJA_MAX_CASED]; /* title: all 0 where it is one character */
} special_case;

static const range other_upper[] = {
    {0x2160, 0x216F}, {0x24B6, 0x24CF}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189},
};

static const range other_lower[] = {
    {0xAA, 0xAA},     {0xBA, 0xBA},     {0x2B0, 0x2B8},     {0x2C0, 0x2C1},     {0x2E0, 0x2E4},     {0x345, 0x345},
    {0x37A, 0x37A},   {0x1D2C, 0x1D6A}, {0x1D78, 0x1D78},   {0x1D9B, 0x1DBF},   {0x2071, 0x2071},   {0x207F, 0x207F},
    {0x2090, 0x209C}, {0x2170, 0x217F}, {0x24D0, 0x24E9},   {0x2C7C, 0x2C7D},   {0xA69C, 0xA69D},   {0xA770, 0xA770},
    {0xA7F8, 0xA7F9}, {0xAB5C, 0xAB5F}, {0x10780, 0x10780}, {0x10783, 0x10785}, {0x10787, 0x107B0}, {0x107B2, 0x107BA},
};

static const range other_digits[] = {
    {0xB2, 0xB3},     {0xB9, 0xB9},       {0x1369, 0x1371},   {0x19DA, 0x19DA},   {0x2070, 0x2070},
    {0x2074, 0x2079}, {0x2080, 0x2089},   {0x2460, 0x2468},   {0x2474, 0x247C},   {0x2488, 0x2490},
    {0x24EA, 0x24EA}, {0x24F5, 0x24FD},   {0x24FF, 0x24FF},   {0x2776, 0x277E},   {0x2780, 0x2788},
    {0x278A, 0x2792}, {0x10A40, 0x10A43}, {0x10E60, 0x10E68}, {0x11052, 0x1105A}, {0x1F100, 0x1F10A},
};

static const range other_ignorable[] = {
    {0x27, 0x27},     {0x2E, 0x2E},     {0x3A, 0x3A},     {0xB7, 0xB7},     {0x387, 0x387},   {0x55F, 0x55F},
    {0x5F4, 0x5F4},   {0x2018, 0x2019}, {0x2024, 0x2024}, {0x2027, 0x2027}, {0xFE13, 0xFE13}, {0xFE52, 0xFE52},
    {0xFE55, 0xFE55}, {0xFF07, 0xFF07}, {0xFF0E, 0xFF0E}, {0xFF1A, 0xFF1A},
};

static const special_case special_cases[] = {
    {0xDF, {0x53, 0x53}, {0x53, 0x73}},
    {0x149, {0x2BC, 0x4E}, {0x2BC, 0x4E}},
    {0x1F0, {0x4A, 0x30C}, {0x4A, 0x30C}},
    {0x390, {0x399, 0x308, 0x301}, {0x399, 0x308, 0x301}},
    {0x3B0, {0x3A5, 0x308, 0x301}, {0x3A5, 0x308, 0x301}},
    {0x587, {0x535, 0x552}, {0x535, 0x582}},
    {0x1E96, {0x48, 0x331}, {0x48, 0x331}},
    {0x1E97, {0x54, 0x308}, {0x54, 0x308}},
    {0x1E98, {0x57, 0x30A}, {0x57, 0x30A}},
    {0x1E99, {0x59, 0x30A}, {0x59, 0x30A}},
    {0x1E9A, {0x41, 0x2BE}, {0x41, 0x2BE}},
    {0x1F50, {0x3A5, 0x313}, {0x3A5, 0x313}},
    {0x1F52, {0x3A5, 0x313, 0x300}, {0x3A5, 0x313, 0x300}},
    {0x1F54, {0x3A5, 0x313, 0x301}, {0x3A5, 0x313, 0x301}},
    {0x1F56, {0x3A5, 0x313, 0x342}, {0x3A5, 0x313, 0x342}},
    {0x1F80, {0x1F08, 0x399}, {0}},
    {0x1F81, {0x1F09, 0x399}, {0}},
    {0x1F82, {0x1F0A, 0x399}, {0}},
    {0x1F83, {0x1F0B, 0x399}, {0}},
    {0x1F84, {0x1F0C, 0x399}, {0}},
    {0x1F85, {0x1F0D, 0x399}, {0}},
    {0x1F86, {0x1F0E, 0x399}, {0}},
    {0x1F87, {0x1F0F, 0x399}, {0}},
    {0x1F88, {0x1F08, 0x399}, {0}},
    {0x1F89, {0x1F09, 0x399}, {0}},
    {0x1F8A, {0x1F0A, 0x399}, {0}},
    {0x1F8B, {0x1F0B, 0x399}, {0}},
    {0x1F8C, {0x1F0C, 0x399}, {0}},
    {0x1F8D, {0x1F0D, 0x399}, {0}},
    {0x1F8E, {0x1F0E, 0x399}, {0}},
    {0x1F8F, {0x1F0F, 0x399}, {0}},
    {0x1F90, {0x1F28, 0x399}, {0}},
    {0x1F91, {0x1F29, 0x399}, {0}},
    {0x1F92, {0x1F2A, 0x399}, {0}},
    {0x1F93, {0x1F2B, 0x399}, {0}},
    {0x1F94, {0x1F2C, 0x399}, {0}},
    {0x1F95, {0x1F2D, 0x399}, {0}},
    {0x1F96, {0x1F2E, 0x399}, {0}},
    {0x1F97, {0x1F2F, 0x399}, {0}},
    {0x1F98, {0x1F28, 0x399}, {0}},
    {0x1F99, {0x1F29, 0x399}, {0}},
    {0x1F9A, {0x1F2A, 0x399}, {0}},
    {0x1F9B, {0x1F2B, 0x399}, {0}},
    {0x1F9C, {0x1F2C, 0x399}, {0}},
    {0x1F9D, {0x1F2D, 0x399}, {0}},
    {0x1F9E, {0x1F2E, 0x399}, {0}},
    {0x1F9F, {0x1F2F, 0x399}, {0}},
    {0x1FA0, {0x1F68, 0x399}, {0}},
    {0x1FA1, {0x1F69, 0x399}, {0}},
    {0x1FA2, {0x1F6A, 0x399}, {0}},
    {0x1FA3, {0x1F6B, 0x399}, {0}},
    {0x1FA4, {0x1F6C, 0x399}, {0}},
    {0x1FA5, {0x1F6D, 0x399}, {0}},
    {0x1FA6, {0x1F6E, 0x399}, {0}},
    {0x1FA7, {0x1F6F, 0x399}, {0}},
    {0x1FA8, {0x1F68, 0x399}, {0}},
    {0x1FA9, {0x1F69, 0x399}, {0}},
    {0x1FAA, {0x1F6A, 0x399}, {0}},
    {0x1FAB, {0x1F6B, 0x399}, {0}},
    {0x1FAC, {0x1F6C, 0x399}, {0}},
    {0x1FAD, {0x1F6D, 0x399}, {0}},
    {0x1FAE, {0x1F6E, 0x399}, {0}},
    {0x1FAF, {0x1F6F, 0x399}, {0}},
    {0x1FB2, {0x1FBA, 0x399}, {0x1FBA, 0x345}},
    {0x1FB3, {0x391, 0x399}, {0}},
    {0x1FB4, {0x386, 0x399}, {0x386, 0x345}},
    {0x1FB6, {0x391, 0x342}, {0x391, 0x342}},
    {0x1FB7, {0x391, 0x342, 0x399}, {0x391, 0x342, 0x345}},
    {0x1FBC, {0x391, 0x399}, {0}},
    {0x1FC2, {0x1FCA, 0x399}, {0x1FCA, 0x345}},
    {0x1FC3, {0x397, 0x399}, {0}},
    {0x1FC4, {0x389, 0x399}, {0x389, 0x345}},
    {0x1FC6, {0x397, 0x342}, {0x397, 0x342}},
    {0x1FC7, {0x397, 0x342, 0x399}, {0x397, 0x342, 0x345}},
    {0x1FCC, {0x397, 0x399}, {0}},
    {0x1FD2, {0x399, 0x308, 0x300}, {0x399, 0x308, 0x300}},
    {0x1FD3, {0x399, 0x308, 0x301}, {0x399, 0x308, 0x301}},
    {0x1FD6, {0x399, 0x342}, {0x399, 0x342}},
    {0x1FD7, {0x399, 0x308, 0x342}, {0x399, 0x308, 0x342}},
    {0x1FE2, {0x3A5, 0x308, 0x300}, {0x3A5, 0x308, 0x300}},
    {0x1FE3, {0x3A5, 0x308, 0x301}, {0x3A5, 0x308, 0x301}},
    {0x1FE4, {0x3A1, 0x313}, {0x3A1, 0x313}},
    {0x1FE6, {0x3A5, 0x342}, {0x3A5, 0x342}},
    {0x1FE7, {0x3A5, 0x308, 0x342}, {0x3A5, 0x308, 0x342}},
    {0x1FF2, {0x1FFA, 0x399}, {0x1FFA, 0x345}},
    {0x1FF3, {0x3A9, 0x399}, {0}},
    {0x1FF4, {0x38F, 0x399}, {0x38F, 0x345}},
    {0x1FF6, {0x3A9, 0x342}, {0x3A9, 0x342}},
    {0x1FF7, {0x3A9, 0x342, 0x399}, {0x3A9, 0x342, 0x345}},
    {0x1FFC, {0x3A9, 0x399}, {0}},
    {0xFB00, {0x46, 0x46}, {0x46, 0x66}},
    {0xFB01, {0x46, 0x49}, {0x46, 0x69}},
    {0xFB02, {0x46, 0x4C}, {0x46, 0x6C}},
    {0xFB03, {0x46, 0x46, 0x49}, {0x46, 0x66, 0x69}},
    {0xFB04, {0x46, 0x46, 0x4C}, {0x46, 0x66, 0x6C}},
    {0xFB05, {0x53, 0x54}, {0x53, 0x74}},
    {0xFB06, {0x53, 0x54}, {0x53, 0x74}},
    {0xFB13, {0x544, 0x546}, {0x544, 0x576}},
    {0xFB14, {0x544, 0x535}, {0x544, 0x565}},
    {0xFB15, {0x544, 0x53B}, {0x544, 0x56B}},
    {0xFB16, {0x54E, 0x546}, {0x54E, 0x576}},
    {0xFB17, {0x544, 0x53D}, {0x544, 0x56D}},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static bool in_ranges(const range *ranges, size_t n, int32_t c) {
    for (size_t i = 0; i < n && ranges[i].first <= c; i++) {
        if (c <= ranges[i].last) {
            return true;
        }
    }
    return false;
}

static int count_chars(const int32_t chars[JINJA_MAX_CASED], int32_t out[JINJA_MAX_CASED]) {
    int n = 0;
    while (n < JINJA_MAX_CASED && chars[n] != 0) {
        out[n] = chars[n];
        n++;
    }
    return n;
}

static int special(int32_t c, jinja_case to, int32_t out[JINJA_MAX_CASED]) {
    if (to == JINJA_LOWER) {
        return c == 0x130 ? count_chars((const int32_t[]){0x69, 0x307, 0}, out) : 0;
    }
    for (size_t i = 0; i < COUNT(special_cases) && special_cases[i].c <= c; i++) {
        if (special_cases[i].c == c) {
            return count_chars(to == JINJA_UPPER ? special_cases[i].upper : special_cases[i].title, out);
        }
    }
    return 0;
}

static int fold(int32_t c, int32_t out[JINJA_MAX_CASED]) {
    int last_class = 0;
    utf8proc_ssize_t n = utf8proc_decompose_char(c, out, JINJA_MAX_CASED, UTF8PROC_CASEFOLD, &last_class);
    if (n < 1 || n > JINJA_MAX_CASED) {
        out[0] = c;
        n = 1;
    }
    return (int)n;
}

int jinja_char_case(int32_t c, jinja_case to, int32_t out[JINJA_MAX_CASED]) {
    if (c < 0x80) {
        bool lower = c >= 'a' && c <= 'z', upper = c >= 'A' && c <= 'Z';
        bool raise = to == JINJA_UPPER || to == JINJA_TITLE;
        out[0] = raise && lower ? c - 32 : !raise && upper ? c + 32 : c;
        return 1;
    }
    if (to == JINJA_FOLD) {
        return fold(c, out);
    }
    int n = special(c, to, out);
    if (n > 0) {
        return n;
    }
    out[0] = to == JINJA_UPPER ? utf8proc_toupper(c) : to == JINJA_LOWER ? utf8proc_tolower(c) : utf8proc_totitle(c);
    return 1;
}

bool jinja_char_is_space(int32_t c) {
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool jinja_char_is_line_end(int32_t c) {
    return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

bool jinja_char_is_alpha(int32_t c) {
    utf8proc_category_t category = utf8proc_category(c);
    return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool jinja_char_is_decimal(int32_t c) {
    return utf8proc_category(c) == UTF8PROC_CATEGORY_ND;
}

bool jinja_char_is_digit(int32_t c) {
    return jinja_char_is_decimal(c) || in_ranges(other_digits, COUNT(other_digits), c);
}

bool jinja_char_is_numeric(int32_t c) {
    utf8proc_category_t category = utf8proc_category(c);
    return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool jinja_char_is_printable(int32_t c) {
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    case UTF8PROC_CATEGORY_ZS:
        return c == ' ';
    default:
        return true;
    }
}

bool jinja_char_is_upper(int32_t c) {
    return utf8proc_category(c) == UTF8PROC_CATEGORY_LU || in_ranges(other_upper, COUNT(other_upper), c);
}

bool jinja_char_is_lower(int32_t c) {
    return utf8proc_category(c) == UTF8PROC_CATEGORY_LL || in_ranges(other_lower, COUNT(other_lower), c);
}

bool jinja_char_is_title(int32_t c) {
    return utf8proc_category(c) == UTF8PROC_CATEGORY_LT;
}

bool jinja_char_starts_name(int32_t c) {
    return c == '_' || jinja_char_is_alpha(c) || utf8proc_category(c) == UTF8PROC_CATEGORY_NL;
}

bool jinja_char_continues_name(int32_t c) {
    utf8proc_category_t category = utf8proc_category(c);
    return jinja_char_starts_name(c) || category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_MN ||
           category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_PC || c == 0xB7;
}

static bool ignored_by_sigma(int32_t c) {
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
        return true;
    default:
        return in_ranges(other_ignorable, COUNT(other_ignorable), c);
    }
}

static bool cased(int32_t c) {
    return jinja_char_is_lower(c) || jinja_char_is_upper(c) || jinja_char_is_title(c);
}

bool jinja_final_sigma(const char *s, size_t n, size_t at) {
    size_t n_bytes, before = at;
    int32_t c = 0;
    do {
        if (before == 0) {
            return false;
        }
        do {
            before--;
        } while (before > 0 && utf8_is_continuation(s[before]));
        c = utf8_decode(s + before, &n_bytes);
    } while (ignored_by_sigma(c));
    if (!cased(c)) {
        return false;
    }
    utf8_decode(s + at, &n_bytes);
    for (size_t after = at + n_bytes; after < n; after += n_bytes) {
        c = utf8_decode(s + after, &n_bytes);
        if (!ignored_by_sigma(c)) {
            return !cased(c);
        }
    }
    return true;
}
