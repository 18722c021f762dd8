/* See link.h. */
#include "rank/link.h"

ls_status link_mpi_open(host_link **out, int64_t until_ns, ls_error *err) {
    (void)out, (void)until_ns;
    return error_set(err, LS_EUNSUPPORTED, "no MPI yet");
}
