/* What the fuzzers share: random numbers, random plans, and worlds in which these can do no harm.
 *
 *   FUZZ_SECONDS    how long (20)
 *   FUZZ_SEED       the first world's seed (taken from the clock, and printed); world n has FUZZ_SEED + n */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include "check.h"

/* random_plan.c */
extern uint64_t fuzz_state;
uint32_t below(uint32_t n);
int one_in(uint32_t n);
uint64_t odd_number(void);                /* as often as not one at which something ends */
uint64_t namespaces_of_its_own(void);     /* CLONE_NEW*, quick ones for the most part */
struct pack *make_plan(void);             /* for a launch */
struct pack *make_last_plan(int slots);   /* for a process that waited; so many of the slots are filled */
const char *const *some_strings(int env); /* may be NULL */
void mutate(uint8_t *bytes, size_t size);
void look_at_world(void);                 /* plans will name what is there now */

/* fuzz_world.c. The descriptors below FUZZ_FDS can be named by plans: 3 and 4 are the root directory, 5 the peer. */
#define FUZZ_FDS 40
#define FUZZ_IMAGE 100 /* the file that a fuzzer asked for */

/* Shared by all processes of a fuzzer. */
struct tally {
    volatile uint64_t rounds, worlds, seed, hung;
    volatile uint64_t counts[8];          /* the fuzzer's own */
    volatile uint32_t by_op[OP_COUNT][2]; /* failed here, or all went well with it in the plan */
};
extern struct tally *tally;

/* Says what went wrong and ends the world. `head` is the plan, or NULL while its sizes are not known to be right. */
void misbehaved(const struct plan_head *head, const char *what, long a, long b) __attribute__((noreturn));

/* Whether these `size` bytes begin like a plan that has this op; the rest of it may be anything. */
int has_op(const void *baked, size_t size, enum op_code code);

/* This process as it has to be again after each round. */
struct still {
    uint8_t fds[FUZZ_IMAGE + 64];
    uint64_t mask, hung;
};
void look_before(struct still *still);
void look_after(const struct still *still, const struct plan_head *head);

struct fuzzer {
    void (*round)(void);
    const char *image;         /* a file to be open at FUZZ_IMAGE, or NULL */
    const char *const *counts; /* names of tally->counts, with a NULL after the last */
};
int fuzz(const struct fuzzer *fuzzer); /* what main returns */

#endif
