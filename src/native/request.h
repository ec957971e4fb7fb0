/* What a waiting process is told to become: one message on a SOCK_SEQPACKET socket. After the header come the packed plan,
 * the strings of argv and those of envp, each ended by NUL; the descriptors are in its ancillary data and fill the plan's
 * slots in order.
 *
 * Strings that there is no room for are all in one file, which comes as one more descriptor, the last; argv_size and envp_size
 * are 0 then.
 *
 * The answer is a struct report right before exec and one after whatever failed; the last one counts. The end of the socket
 * without any, or the end of the process: it died before. */
#ifndef SHOAL_REQUEST_H
#define SHOAL_REQUEST_H

#include "op.h"

#define REQUEST_BYTES 65536  /* the largest message */
#define REQUEST_STRINGS 4096 /* argv and envp together */
#define REQUEST_FILE_BYTES (64 << 20) /* more than the kernel takes for a program */
#define REQUEST_FILE_STRINGS (1 << 22)
#define REQUEST_FDS 253      /* SCM_MAX_FD: the kernel takes no more in one message */

struct request {
    uint32_t plan_size, argv_size, argc, envp_size, envc, fds;
};

/* The waiting process's descriptors. */
enum { REQUEST_SOCKET = 3, REQUEST_BASE = 4 };

struct parts {
    const void *plan, *argv, *envp;
    const int *fds;
};

/* Sends a request and waits for exec or failure: 0, or an errno when nothing was sent. */
int hand_over(int sock, int pidfd, const struct request *request, const struct parts *parts, struct report *report);

#endif
