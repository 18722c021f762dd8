/* The commit that this program was built from; the build writes it to commit.inc. */
#include "cli/bench/bench.h"

const char *bench_commit(void) {
    return
#include "commit.inc"
        ;
}
