/* What lockstep.h declares and the engine of this branch does not have yet: this file goes when the real ones come. */
#include "engine/engine.h"

void ls_request_cancel(ls_request *request) {
    if (request->state != REQUEST_FINISHED) {
        request_finish(request, LS_FINISH_CANCELLED);
    }
}

ls_status ls_request_get_logprobs(ls_request *request, size_t index, ls_logprobs *out, ls_error *err) {
    (void)request;
    (void)out;
    return error_set(err, LS_EINVAL, "token %zu has no log probabilities: none were asked for", index);
}
