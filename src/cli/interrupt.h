/*
 * Ctrl-C as a question to ask between steps, so that what was generated is not lost. While it is held SIGINT is blocked
 * and waits for interrupt_taken; the engine's threads do not take signals. Otherwise it ends the program as ever.
 */
#ifndef LS_CLI_INTERRUPT_H
#define LS_CLI_INTERRUPT_H

#include <stdbool.h>

void interrupt_hold(void);
bool interrupt_taken(void); /* there was one since the last call */
void interrupt_release(void);

#endif
