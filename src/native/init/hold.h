#ifndef SHOAL_INIT_HOLD_H
#define SHOAL_INIT_HOLD_H

#include <stdint.h>

/* What a holder tells on its socket: first this, with a pidfd of the program's process beside it, ... */
struct held {
    int32_t err, pid;
};

/* ... and once the program has ended, and not before: as waitid(2) says it, in microseconds and KiB. */
struct held_end {
    int32_t code, status;
    int64_t user_us, system_us, max_rss_kib;
};

_Noreturn void hold(const char *how);
long drop_capabilities(void); /* keep.c */

#endif
