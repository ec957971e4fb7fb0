#ifndef SHOAL_INIT_H
#define SHOAL_INIT_H

#include <stddef.h>

#define CONTROL 3 /* of pid 1: a socket to the caller */

/* keep.c. `err`: an errno to tell instead of doing the tasks: what was to be done before has failed. */
_Noreturn void keep_cell(const char *tasks, int err);

/* wait.c */
void wait_for_plan(void); /* returns when there is nothing left to wait for */

/* make.c */
void make_cells(char **argv); /* returns when nobody asks for any more */

/* tell.c. Sends the caller something, with descriptors, at most TELL_FDS. Negative: nobody is there, or it cannot be sent. */
#define TELL_FDS 4
long tell(int sock, const void *data, size_t size, const int *fds, unsigned count);

#endif
