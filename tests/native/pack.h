/* Packed plans made in C, with every operand open to abuse. What shoal/packing.py makes for the library, made here for the tests.
 *
 * A plan is handed to the core in pieces of memory of exactly its size, so that AddressSanitizer sees a step beyond either end. */
#ifndef TESTS_PACK_H
#define TESTS_PACK_H

#include "op.h"

struct pack {
    struct plan_head head;
    struct op ops[PLAN_OPS_MAX + 1]; /* one too many, on purpose */
    char *blob;                      /* starts with the empty string */
};

struct result {
    struct outcome out;
    int32_t slots[SLOTS]; /* of a plan that collects */
    int refused;          /* what verify_plan said; not launched unless 0 */
};

struct pack *pack_new(uint32_t flags);
void pack_free(struct pack *pack);

/* Adds an op without operands; the caller fills in those it wants. Valid until the next op_add. */
struct op *op_add(struct pack *pack, enum op_code code);

/* Both return offsets into the blob. `pack_bytes` aligns what it adds to 8 bytes. */
uint32_t pack_text(struct pack *pack, const char *text);
uint32_t pack_bytes(struct pack *pack, const void *bytes, size_t size);

/* The head and ops most plans want. */
void pack_exec_path(struct pack *pack, const char *path);
void pack_seccomp(struct pack *pack, const void *filter, unsigned count);
/* From here on, this is what comes of system call `nr`: SECCOMP_RET_*. */
void pack_answer(struct pack *pack, long nr, uint32_t action);
void pack_fd_map(struct pack *pack, const int32_t (*pairs)[2], unsigned count, int null_fd);

/* The packed form: malloc'ed, `*size` bytes. */
void *pack_bake(const struct pack *pack, size_t *size);

/* A message for a process that waits (request.h): malloc'ed, `*size` bytes. argv and envp may be NULL. */
void *pack_request(const struct pack *pack, const char *const *argv, const char *const *envp, uint32_t fds, size_t *size);

/* The plan as the core wants it, not verified: copies of all of it. argv and envp may be NULL. */
struct plan *plan_new(const void *baked, size_t size, const char *const *argv, const char *const *envp);
void plan_free(struct plan *plan);

/* verify_plan on `size` bytes, then launch if it is accepted. */
struct result run_baked(const void *baked, size_t size, const char *const *argv, const char *const *envp);
struct result run_pack(const struct pack *pack, const char *const *argv, const char *const *envp);

#endif
