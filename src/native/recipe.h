/* What a process that makes cells (init/make.c) is given: a file with this header, the plan of the cell's pid 1, and, at the
 * next multiple of 8, the plan of the process that waits in it. Both plans run after a fork, not between clone and exec: they
 * place what they keep, and what they execute is never asked for. */
#ifndef SHOAL_RECIPE_H
#define SHOAL_RECIPE_H

#include "op.h"

struct recipe {
    uint32_t keeper_size, prepare_size;
    uint32_t uid, gid;   /* the caller's */
    uint32_t first_user; /* the pid of the cell is added to it: the cell's own user; 0: it has none */
    uint32_t maps_ids;   /* whether the world needs an id map for that user */
    char tasks[4];       /* of pid 1 */
    char mode;           /* what pid 1 is told in the end */
    char rest[3];
    char comm[16];
};
_Static_assert(sizeof(struct recipe) % 8 == 0, "a plan follows");

/* Its descriptors. Those from 5 on are for the plans. */
enum { RECIPE_REQUESTS = 3, RECIPE_FILE = 4, RECIPE_EMPTY = 5 };

/* What is in the first slots of the plans. */
enum { KEEPER_CONTROL };
enum { PREPARE_KEEPER, PREPARE_CONTROL, PREPARE_SOCKET, PREPARE_ID_MAP, PREPARE_USER, PREPARE_SLOTS };

/* A request is a uint32_t: how many cells; with it may come the pidfd of a program whose end is to be waited for a moment. The
 * answer to each cell: */
struct made {
    int32_t keeper, waiting, err; /* pids, 0: there is none. Without err also both pidfds and the caller's ends of both sockets */
};

#endif
