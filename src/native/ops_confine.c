/* Ops that take something away from the program for good: resource limits, processors, ids, access to files (Landlock), system
 * calls (seccomp). Child side: see child.c for what may be done here. */
#include "op.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

int op_rlimit(struct plan *plan, const struct op *op)
{
    (void)plan;
    uint64_t limit[2] = { op->a, op->b }; /* struct rlimit64 */
    return (int)-sys4(__NR_prlimit64, 0, op->flags, limit, 0);
}

int op_affinity(struct plan *plan, const struct op *op)
{
    return (int)-sys3(__NR_sched_setaffinity, 0, op->a, plan_str(plan, op->str));
}

int op_nice(struct plan *plan, const struct op *op)
{
    (void)plan;
    return (int)-sys3(__NR_setpriority, 0 /* PRIO_PROCESS */, 0, (int)op->a);
}

/* The groups first: they cannot be given up any more once the user has been. Leaving uid 0 empties the permitted set. */
int op_ids(struct plan *plan, const struct op *op)
{
    int user = plan_fd(plan, op->fd), group = plan_fd(plan, op->fd2); /* a slot may hold such a number, too */
    if (user <= 0 || group <= 0)
        return EINVAL; /* root, or nothing: not what anybody means */
    long ret = sys2(__NR_setgroups, 0, 0);
    if (ret == 0)
        ret = sys3(__NR_setresgid, group, group, group);
    if (ret == 0)
        ret = sys3(__NR_setresuid, user, user, user);
    return (int)-ret;
}

/* The kernel's structures as they were last extended; an older kernel takes a shorter one, and says E2BIG when what it does
 * not know is not 0. landlock(7). */
struct landlock_rules {
    uint64_t files, network, scopes;
};
struct landlock_path {
    uint64_t allowed;
    int32_t parent_fd;
} __attribute__((packed));
#define LANDLOCK_RULE_PATH_BENEATH 1

int op_landlock_rules(struct plan *plan, const struct op *op)
{
    struct landlock_rules rules = { op->a, op->b, op->flags };
    size_t size = rules.scopes ? sizeof rules : rules.network ? 2 * sizeof(uint64_t) : sizeof(uint64_t);
    return plan_keep(plan, op, sys3(__NR_landlock_create_ruleset, &rules, size, 0));
}

int op_landlock_allow(struct plan *plan, const struct op *op)
{
    struct landlock_path path = { op->a, plan_fd(plan, op->fd2) };
    if (op->b) { /* handed over: what was opened for reading cannot be opened anew for writing, nor the other way */
        long how = sys3(__NR_fcntl, path.parent_fd, F_GETFL, 0);
        if (how < 0)
            return (int)-how;
        if ((how & O_ACCMODE) == O_RDONLY)
            path.allowed &= ~(uint64_t)(1 << 1 | 1 << 14); /* LANDLOCK_ACCESS_FS_WRITE_FILE, _TRUNCATE */
        if ((how & O_ACCMODE) == O_WRONLY)
            path.allowed &= ~(uint64_t)(1 << 0 | 1 << 2); /* _EXECUTE, _READ_FILE */
    }
    long ret = sys4(__NR_landlock_add_rule, plan_fd(plan, op->fd), LANDLOCK_RULE_PATH_BENEATH, &path, 0);
    return ret == -EBADFD && op->b ? 0 : (int)-ret; /* a pipe or socket: no rule concerns those */
}

int op_landlock_enter(struct plan *plan, const struct op *op)
{
    return (int)-sys2(__NR_landlock_restrict_self, plan_fd(plan, op->fd), 0);
}

int op_seccomp(struct plan *plan, const struct op *op)
{
    struct sock_fprog program = { .len = (unsigned short)op->a, .filter = (struct sock_filter *)plan_str(plan, op->str) };
    return (int)-sys3(__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}
