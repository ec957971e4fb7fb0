/* A shoal-init that waits to be told what to become (request.h), and ways to tell it. */
#ifndef TESTS_WAITING_H
#define TESTS_WAITING_H

#include "check.h"
#include "request.h"

struct waiting {
    struct outcome out;
    int sock; /* ours */
};

/* Starts one after the ops of `pack`, which it consumes. `image` is shoal-init's file, `base` what a plan's exec_path is relative
 * to, `far` the socket to wait on; all stay the caller's. What the caller has as 0 it gets as 0-2. */
struct outcome start_waiting(struct pack *pack, int image, int base, int far);

/* Sends any bytes as one message, `count` times `fds` with it. */
void send_message(int sock, const void *message, size_t size, const int *fds, unsigned count);

/* What it answered last, if anything. Waits until it has become a program or has ended. */
struct report last_answer(struct waiting waiting);

/* hand_over() with the header and the parts of this message. */
int hand_over_message(struct waiting waiting, const void *message, const int *fds, struct report *report);

#endif
