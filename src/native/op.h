/* The packed plan: what the parent hands to the child, and the list of everything a child can be told to do.
 *
 * A plan is a header, `count` ops of fixed size, and a blob of bytes that the ops' strings live in. Python packs it
 * (shoal/packing.py); verify.c checks it before clone, so that the child may trust every index in it; child.c runs it.
 *
 * A descriptor operand is a number of the caller's table (>= 0), AT_FDCWD, NO_FD, or a slot: a place for a descriptor
 * that an earlier op made (see SLOT). */
#ifndef SHOAL_OP_H
#define SHOAL_OP_H

#include <stddef.h>
#include <stdint.h>

#define PLAN_MAGIC 0x31736c70u /* "pls1": the layout below */
#define PLAN_OPS_MAX 4096
#define SLOTS 1024
#define SLOT(i) (-1000 - (i))
#define IS_SLOT(fd) ((fd) <= SLOT(0) && (fd) > SLOT(SLOTS))
#define NO_FD (-1)
#define CWD_FD (-100)
#define TARGETS 1024 /* descriptors a plan can place: 0..1023 */
#define TARGET_CLOEXEC 0x40000000 /* in a target of FD_MAP: close on exec */
#define INHERITED_FDS 65536 /* the most that INHERIT_FDS keeps */
#define NO_STR 0xffffffffu
#define ENV_PID_DIGITS 10

/* Which operands an op takes; verify.c refuses a plan where one is missing. */
enum { FD = 1, FD2 = 2, OUT = 4, STR = 8, STR2 = 16 };

/* X(name, function, operands). One list makes the enum, the table of functions and the printed names. */
#define OPS(X)                                                                                                                    \
    X(UNSHARE_FDS, op_unshare_fds, 0)                /* a: first descriptor to leave behind */                                   \
    X(OPEN, op_open, FD | STR | OUT)                 /* fd: base, a: open flags, b: RESOLVE_* flags */                           \
    X(EXPECT, op_expect, FD)                         /* a: st_dev, b: st_ino: refuse anything else */                            \
    X(FD_MAP, op_fd_map, STR)                        /* fd: /dev/null, str: int32 pairs (source, target), a: how many */         \
    X(INHERIT_FDS, op_inherit_fds, STR)              /* str: int32 for 0, 1, 2 (-1: as it is), then those kept; a: how many; b: close others */ \
    X(CHDIR, op_chdir, STR)                          /* str: path, b: RESOLVE_* flags, fd: where to be when it cannot be entered; flags 1: fail */ \
    X(FSMOUNT, op_fsmount, STR | STR2 | OUT)         /* str: type, str2: "key=value,flag", a: MOUNT_ATTR_* */                    \
    X(BIND, op_bind, FD2 | STR | STR2)               /* str: path, a, b: as EXPECT, flags: MOUNT_ATTR_*, fd2, str2: where */     \
    X(OPEN_TREE, op_open_tree, FD | STR | OUT)       /* fd, str: what, a: OPEN_TREE_* and AT_* flags */                          \
    X(MOUNT_SETATTR, op_mount_setattr, FD)           /* fd: tree, a: MOUNT_ATTR_*, b: AT_RECURSIVE or 0, fd2: user ns to map by */ \
    X(MOVE_MOUNT, op_move_mount, FD | FD2 | STR)     /* fd: tree, fd2: directory, str: where beneath it, "" for itself */        \
    X(MKDIRS, op_mkdirs, FD | STR)                   /* fd: directory, str: path beneath it, a: mode */                          \
    X(TOUCH, op_touch, FD | STR)                     /* fd: directory, str: path beneath it, a: mode */                          \
    X(COPY, op_copy, FD | FD2 | STR)                 /* fd: file, fd2: directory, str: path beneath it, a: mode */              \
    X(SYMLINK, op_symlink, FD | STR | STR2)          /* fd: directory, str: path beneath it, str2: what it points to */          \
    X(PRIVATE_MOUNTS, op_private_mounts, 0)          /* nothing mounted here is seen elsewhere, nor the other way */             \
    X(PIVOT, op_pivot, FD2)                          /* fd: new root mount or NO_FD, fd2: the topmost mount, to live in */       \
    X(UNSHARE, op_unshare, 0)                        /* a: CLONE_NEW* flags */                                                   \
    X(SETNS, op_setns, FD)                           /* fd: namespace or pidfd, a: CLONE_NEW* flags */                           \
    X(WRITE, op_write, STR | STR2)                   /* str: path, str2: text, written in one call */                            \
    X(LOOPBACK_UP, op_loopback_up, 0)                                                                                            \
    X(HOSTNAME, op_hostname, STR)                                                                                                \
    X(NO_NEW_PRIVS, op_no_new_privs, 0)                                                                                          \
    X(KEEP_CAPS, op_keep_caps, 0)                    /* a: capabilities (bits 0..31) to be had after exec, by any user */         \
    X(WAIT_READY, op_wait_ready, FD)                 /* fd: socket an int comes from: 0, or the errno to fail with; fd2: pidfd */ \
    X(DROP_BOUNDING, op_drop_bounding, 0)            /* the bounding set empty: takes CAP_SETPCAP */                             \
    X(DROP_CAPS, op_drop_caps, 0)                    /* every other capability set empty */                                      \
    X(SETSID, op_setsid, 0)                                                                                                      \
    X(PROCESS_GROUP, op_process_group, 0)            /* a: group to join, 0: one of its own */                                   \
    X(KEYRING, op_keyring, 0)                        /* a new, empty session keyring; a: how often to wait 10 ms for room for it */ \
    X(CONTROLLING_TTY, op_controlling_tty, FD)       /* fd: a terminal nobody controls yet */                                    \
    X(NAME, op_name, STR)                            /* str: what the kernel is to call it until exec names it anew */           \
    X(UMASK, op_umask, 0)                            /* a: mask */                                                               \
    X(RLIMIT, op_rlimit, 0)                          /* flags: resource, a: soft, b: hard */                                     \
    X(MARK, op_mark, 0)                              /* a: a number that all descendants inherit; never fails */                 \
    X(AFFINITY, op_affinity, STR)                    /* str: mask of processors, a: its size in bytes */                         \
    X(NICE, op_nice, 0)                              /* a: nice value */                                                         \
    X(IDS, op_ids, FD | FD2)                         /* fd: user, fd2: group: numbers, or slots that hold them; no other groups */   \
    X(LANDLOCK_RULES, op_landlock_rules, OUT)        /* flags: scopes, a: file accesses, b: network accesses, all handled */     \
    X(LANDLOCK_ALLOW, op_landlock_allow, FD | FD2)   /* fd: rules, fd2: what, a: accesses, b: 1: fine where it is in no directory */ \
    X(LANDLOCK_ENTER, op_landlock_enter, FD)         /* fd: rules */                                                             \
    X(SECCOMP, op_seccomp, STR)                      /* str: struct sock_filter array, a: how many */                            \
    X(ENV_PID, op_env_pid, 0)                        /* a: index of a variable, b: where in it its digits go */                  \
    X(SIGNALS, op_signals, 0)                        /* every disposition default, nothing blocked; the last op */               \
    X(INHERIT_SIGNALS, op_inherit_signals, 0)        /* a: signals (bits 0..63) to be default, all else as exec leaves it; the last op but for */ \
    X(TRY_EXEC, op_try_exec, STR)                    /* str: a path that is executed if it can be, before the plan's own */

#define X(name, fn, operands) OP_##name,
enum op_code { OPS(X) OP_COUNT };
#undef X

struct op {
    uint16_t code, flags;
    int32_t fd, fd2, out; /* out: index of a slot, or -1 */
    uint32_t str, str2;   /* offsets into the blob, or NO_STR */
    uint64_t a, b;
};
_Static_assert(sizeof(struct op) == 40, "packing.py writes 40 bytes an op");

/* PLAN_SHARE_FDS: the child starts on the caller's own descriptor table (CLONE_FILES) and leaves it in its first op.
 * PLAN_COLLECT: nothing is executed; the child runs its ops on the caller's table and ends, and the slots are the result.
 * PLAN_SIBLING: the child is made the caller's brother (CLONE_PARENT): it is their parent's to wait for, also when it failed. */
enum { PLAN_SHARE_FDS = 1, PLAN_COLLECT = 2, PLAN_SIBLING = 4 };

struct plan_head {
    uint32_t magic, count, blob_len, flags;
    uint64_t clone_flags; /* CLONE_NEW* only */
    int32_t cgroup_fd;    /* the child begins in this cgroup, or NO_FD */
    int32_t enter_fd;     /* a pidfd or namespace to enter before the clone, or NO_FD */
    uint64_t enter_flags;
    int32_t exec_fd; /* with exec_path "": the program; else the base of exec_path */
    uint32_t exec_path;
    uint64_t reserved;
};
_Static_assert(sizeof(struct plan_head) == 56, "packing.py writes a 56-byte header");

enum stage { STAGE_NONE, STAGE_PLAN, STAGE_CLONE, STAGE_ENTER, STAGE_OPS, STAGE_EXEC };

/* Where the child is, or stopped. Lives in memory shared with the parent, which reads it once the child has run exec or ended:
 * STAGE_EXEC with err 0 means that exec was reached, anything else that it was not. */
struct report {
    int32_t stage, index, err;
};

/* A plan in the form that child.c runs. */
struct plan {
    const struct plan_head *head;
    const struct op *ops;
    char *blob;
    char **argv;
    char **envp;
    uint32_t argc, envc;
    int32_t slots[SLOTS];
    int slots_used; /* one more than the highest that an op fills */
    int32_t exec_fd;   /* head->exec_fd, until FD_MAP moves it out of the way */
    int32_t report_fd; /* a socket that lasts until exec, or NO_FD: FD_MAP moves it, too */
    int32_t pidfd;   /* the program's process; the kernel writes it before the child runs */
    int32_t handlers_cleared; /* by the clone: no handler of the parent's is left */
    int32_t exec_err;         /* of an exec that was tried: the first that does not say that there is no such file */
    uint64_t blocked;         /* signals that the calling thread blocks */
    volatile struct report report;
};

static inline char *plan_str(const struct plan *plan, uint32_t offset) { return offset == NO_STR ? (char *)0 : plan->blob + offset; }

/* As every run of a plan begins: nothing is made yet, and nothing has failed. */
static inline void plan_begin(struct plan *plan)
{
    for (int i = 0; i < SLOTS; i++)
        plan->slots[i] = NO_FD; /* all: an op may read one that nothing fills */
    plan->exec_fd = plan->head->exec_fd;
    plan->report_fd = NO_FD;
    plan->pidfd = NO_FD;
    plan->handlers_cleared = 0;
    plan->exec_err = 0;
    plan->blocked = 0;
    plan->report.stage = STAGE_CLONE;
    plan->report.index = -1;
    plan->report.err = 0;
}

typedef int op_fn(struct plan *plan, const struct op *op);
#define X(name, fn, operands) op_fn fn;
OPS(X)
#undef X

/* The real number of a descriptor operand, or a negative value that the kernel will refuse with EBADF. */
static inline int plan_fd(const struct plan *plan, int32_t fd) { return IS_SLOT(fd) ? plan->slots[SLOT(0) - fd] : fd; }

/* Puts the result of a call that makes a descriptor into op's slot. */
static inline int plan_keep(struct plan *plan, const struct op *op, long ret)
{
    if (ret < 0)
        return (int)-ret;
    plan->slots[op->out] = (int32_t)ret;
    return 0;
}

/* verify.c: 0, or the index of the first bad op plus 1, or -1 for the header. Counts the slots. */
int verify_plan(struct plan *plan, size_t size);

/* child.c */
int run_ops(struct plan *plan);         /* 0, or the errno of the op that failed; plan->report tells which */
void exec_program(struct plan *plan);   /* returns only when it failed; plan->report has the errno */
void child_main(void *plan);
_Noreturn void leave(int code);         /* whatever a filter forbids */

/* launch.c */
struct outcome {
    int pid, pidfd;
    struct report report; /* stage EXEC and err 0: it runs. Anything else: it is gone and reaped; of a PLAN_SIBLING, ended. */
};
void launch(struct plan *plan, struct outcome *out);
void launch_after_fork(void); /* in the child of a fork(2), whose other threads are gone */

/* fork_into.c. Returns 0 in the caller, and once more, 1, in the copy, when that has run the plan's ops. The copy sends a struct
 * report by report_fd before; with an error in it, it has ended. */
int fork_into(struct plan *plan, int report_fd, struct outcome *out);

#endif
