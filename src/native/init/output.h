#ifndef SHOAL_INIT_OUTPUT_H
#define SHOAL_INIT_OUTPUT_H

#include <poll.h>
#include <stdint.h>

#define OUTPUTS_MOST 512 /* at the same time */

struct slot;
void keep_output(struct slot *slot, uint64_t most); /* before any is added. `most`: bytes in one of the two files */
void add_output(int fd, uint32_t stream);           /* the descriptor is ours from then on */
int watch_outputs(struct pollfd *watch);            /* fills at most OUTPUTS_MOST; how many */
void hear_outputs(const struct pollfd *watch, int count);
void drain_all(void);
uint64_t now_ns(void); /* CLOCK_REALTIME */

#endif
