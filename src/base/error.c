/* Errors and the names of public enums. See error.h. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *ls_status_name(ls_status status) {
    switch (status) {
#define X(name, value, text)                                                                                           \
    case name:                                                                                                         \
        return #name;
        LS_STATUS_MAP(X)
#undef X
    }
    return "LS_UNKNOWN";
}

const char *ls_status_text(ls_status status) {
    switch (status) {
#define X(name, value, text)                                                                                           \
    case name:                                                                                                         \
        return text;
        LS_STATUS_MAP(X)
#undef X
    }
    return "unknown status";
}

const char *ls_dtype_name(ls_dtype dtype) {
    switch (dtype) {
    case LS_AUTO:
        return "auto";
    case LS_F32:
        return "f32";
    case LS_BF16:
        return "bf16";
    case LS_F16:
        return "f16";
    case LS_INT8:
        return "int8";
    }
    return "unknown";
}

const char *ls_quantization_name(ls_quantization quantization) {
    static const char *const names[] = {"none", "w8a16", "w8a8"};
    return (unsigned)quantization < sizeof names / sizeof *names ? names[quantization] : "unknown";
}

size_t ls_dtype_bytes(ls_dtype dtype) {
    return dtype == LS_F32 ? 4 : dtype == LS_BF16 || dtype == LS_F16 ? 2 : dtype == LS_INT8 ? 1 : 0;
}

uint32_t ls_abi_version(void) {
    return LS_ABI_VERSION;
}

const char *ls_version(void) {
    return LS_VERSION;
}

ls_status error_set(ls_error *err, ls_status status, const char *format, ...) {
    if (err == NULL) {
        return status;
    }
    char text[sizeof err->text];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    err->status = status;
    memcpy(err->text, text, sizeof text);
    err->trace[0] = '\0';
    return status;
}

ls_status error_prefix(ls_error *err, ls_status status, const char *format, ...) {
    if (err == NULL) {
        return status;
    }
    char text[sizeof err->text];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof text) {
        snprintf(text + n, sizeof text - (size_t)n, ": %s", err->text);
    }
    memcpy(err->text, text, sizeof text);
    return status;
}

void error_trace(ls_error *err, const char *file, int line) {
    if (err == NULL) {
        return;
    }
    size_t used = strnlen(err->trace, sizeof err->trace);
    if (used + 1 < sizeof err->trace) {
        snprintf(err->trace + used, sizeof err->trace - used, "%s%s:%d", used ? " < " : "", file, line);
    }
}
