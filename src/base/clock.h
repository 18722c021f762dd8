/* Time. */
#ifndef LS_BASE_CLOCK_H
#define LS_BASE_CLOCK_H

#include <stdint.h>

int64_t clock_ns(void); /* monotonic, since some fixed moment */

#endif
