/* What the init of a domain (init/domain.c) is told and tells, and the slot of the ledger it keeps. Whoever manages domains has the
 * other end of its socket (SOCK_SEQPACKET); when that is closed, the init goes on, and listens at "d<slot>" in the directory it was
 * given for the next one. */
#ifndef SHOAL_DOMAIN_H
#define SHOAL_DOMAIN_H

#include <stdint.h>

/* Its descriptors. Those between are for a recipe: recipe.h. */
enum { DOMAIN_CONTROL = 3, DOMAIN_LEDGER = 6, DOMAIN_RUN = 7, DOMAIN_LOGS = 8, DOMAIN_PENDING = 9, DOMAIN_FREE = 10 };
/* DOMAIN_PENDING is the ledger once more, opened by the nursery and locked (flock(2), shared) as long as it has us raised for a manager,
 * and by each init until it is that of a domain: the next manager waits for the lock before it takes a slot for free. */

enum order_kind {
    /* The first of these makes it the init of a domain, which outlives its manager. b: slot, c: id, d: key, e: bytes of log kept. */
    ORDER_LAUNCH = 1, /* fds: the socket a plan will come by (request.h); also, with a & 1 and a & 2, where its output is read from */
    /* fds: a recipe, and, with a & 4, a mount namespace with nothing in it; then as above, without the socket. Of a domain in a cell it
     * starts another dispatcher there, as LAUNCH does of others. */
    ORDER_CELL,
    ORDER_KEEP,       /* a: whether what a LAUNCH with a & 8 has started is a dispatcher: its end is the domain's; else it is ended.
                       * b: its pid, or 0 for all of which that is not said yet */
    ORDER_SIGNAL,     /* a: number, b: pid of a dispatcher, or 0 for all, c: a key, under which it is done once, or 0 */
    ORDER_END,        /* a: cause, b: what is told as its exit status */
    /* A command: another process of a domain that runs, whose end is not the domain's. fds: a line, and, as LAUNCH has it, a socket; with
     * a, as CELL has it, a recipe. Only who says SLOT_COMMANDS in its slot knows this one. */
    ORDER_COMMAND,
};

struct order {
    uint32_t kind;
    int32_t a, b;
    uint32_t core; /* LAUNCH: one more than that on which the program will run, 0: any. Its plan says so, too; here it saves a move */
    uint64_t c, d, e;
};

enum told_kind {
    TOLD_HERE = 1, /* to a manager that has just connected: which domain this is */
    TOLD_STARTED,  /* pid: a process that waits for its plan; where there is a recipe, with the socket to send it to */
    TOLD_FAILED,   /* err: that could not be made */
    TOLD_ENDED,    /* nothing of it is left; what the ledger says is final */
};

struct told {
    uint32_t kind;
    int32_t pid, err;
    uint32_t slot;
    uint64_t id, key;
};

/* The line of a command (SOCK_SEQPACKET): who wants it has the other end, so that no manager is needed between the two. What is told is in
 * a struct line_told, what is asked for in a struct line_ask: a signal. The end of the line ends the command, and its process group. */
enum line_kind {
    LINE_BEGUN = 1, /* there is a process, about to become the program */
    LINE_ENDED,     /* code, status: as waitid(2) tells them */
    LINE_UNBEGUN,   /* the same, but it never became the program */
};

struct line_told {
    uint32_t kind;
    int32_t pid, code, status;
    uint32_t with_domain; /* the domain was ending by then */
};

struct line_ask {
    int32_t number;
    uint32_t to_group; /* to its process group, as a keyboard sends it */
};

/* SLOT_FREE is zero: a ledger begins as a hole. */
enum slot_state { SLOT_FREE, SLOT_ASSIGNED, SLOT_RUNNING, SLOT_ENDING, SLOT_ENDED };

#define SLOT_BYTES 128
#define SLOT_COMMANDS 1
#define CAUSE_UNBEGUN 4 /* the first dispatcher ended before it had executed the program */

struct slot {
    uint32_t state;
    int32_t cause; /* of the end, from ORDER_END; 0: by itself; CAUSE_UNBEGUN */
    uint64_t id, key;
    uint64_t init_start; /* of the init, in clock ticks since boot: proc_pid_stat(5) */
    int32_t init_pid, pid; /* pid: of the first dispatcher */
    int32_t code, status;  /* of the dispatcher that ended first, as waitid(2) tells it */
    int64_t user_us, system_us, max_rss_kib;
    int64_t started_ns, ended_ns; /* CLOCK_REALTIME */
    uint64_t log_bytes, log_lost;
    uint64_t can; /* SLOT_* : what its init can do besides, which one of an older version cannot */
    uint64_t rest[2];
};
_Static_assert(sizeof(struct slot) == SLOT_BYTES, "ledger.py reads 128 bytes a slot");

/* A log is a sequence of these, each followed by its bytes. */
struct log_head {
    uint64_t at_ns; /* CLOCK_REALTIME */
    uint32_t size;
    uint32_t stream; /* 1 or 2 */
};

#endif
