/* See ranges.h. */
#include "engine/ranges.h"

#if defined(LS_CUDA) && __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>

void range_begin(const char *name) {
    nvtxRangePushA(name);
}

void range_begin_rows(const char *name, int32_t rows) {
    const nvtxEventAttributes_t range = {.version = NVTX_VERSION,
                                         .size = NVTX_EVENT_ATTRIB_STRUCT_SIZE,
                                         .payloadType = NVTX_PAYLOAD_TYPE_INT32,
                                         .payload.iValue = rows,
                                         .messageType = NVTX_MESSAGE_TYPE_ASCII,
                                         .message.ascii = name};
    nvtxRangePushEx(&range);
}

void range_end(void) {
    nvtxRangePop();
}
#else
void range_begin(const char *name) {
    (void)name;
}

void range_begin_rows(const char *name, int32_t rows) {
    (void)name, (void)rows;
}

void range_end(void) {}
#endif
