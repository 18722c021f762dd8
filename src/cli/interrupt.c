/* See interrupt.h. */
#include "cli/interrupt.h"

#include <signal.h>
#include <time.h>

static sigset_t only_int(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    return set;
}

void interrupt_hold(void) {
    sigset_t set = only_int();
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

bool interrupt_taken(void) {
    sigset_t set = only_int();
    return sigtimedwait(&set, NULL, &(struct timespec){0}) == SIGINT;
}

void interrupt_release(void) {
    sigset_t set = only_int();
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}
