/* Ops that leave a child what fork and exec leave it: descriptors, signals and the search for the program as Python's subprocess
 * has them. Child side: see child.c for what may be done here. Sources: fork(2), execve(2), dup(2), close_range(2). */
#include "op.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>

static int32_t number_at(const struct plan *plan, const struct op *op, uint64_t i)
{
    int32_t fd;
    __builtin_memcpy(&fd, plan_str(plan, op->str) + i * sizeof fd, sizeof fd);
    return fd;
}

static int keep_open(long fd) { return (int)-sys3(__NR_fcntl, fd, F_SETFD, 0); }

/* Puts three descriptors at 0, 1 and 2, leaving there what is there where nothing is given; lets others survive exec; and closes
 * the rest, or leaves the rest to exec. A copy that is made on the way closes at exec. */
int op_inherit_fds(struct plan *plan, const struct op *op)
{
    int32_t from[3];
    for (int target = 0; target < 3; target++)
        from[target] = number_at(plan, op, (uint64_t)target);
    for (uint64_t i = 3; i < op->a; i++) {
        int err = keep_open(number_at(plan, op, i));
        if (err)
            return err;
    }
    for (int target = 1; target < 3; target++) /* what an earlier one is put upon is taken away first */
        if (from[target] >= 0 && from[target] < target) {
            long copy = sys3(__NR_fcntl, from[target], F_DUPFD_CLOEXEC, 3);
            if (copy < 0)
                return (int)-copy;
            from[target] = (int32_t)copy;
        }
    for (int target = 0; target < 3; target++) {
        int err = from[target] < 0         ? 0
                  : from[target] == target ? keep_open(target)
                                           : (int)-sys3(__NR_dup3, from[target], target, 0);
        if (err > 0)
            return err;
    }
    if (!op->b)
        return 0;
    long first = 3;
    for (uint64_t i = 3; i < op->a; i++) {
        long fd = number_at(plan, op, i), ret = fd > first ? sys3(__NR_close_range, first, fd - 1, 0) : 0;
        if (ret < 0)
            return (int)-ret;
        first = fd >= first ? fd + 1 : first;
    }
    return (int)-sys3(__NR_close_range, first, ~0u, 0);
}

int op_process_group(struct plan *plan, const struct op *op)
{
    (void)plan;
    return (int)-sys2(__NR_setpgid, 0, op->a);
}

/* The soft limit of file locks, which has meant nothing since Linux 2.4.25 (getrlimit(2)): descendants inherit it through fork and
 * exec, and everybody may read it in /proc. A hard limit below the number leaves the child without one. */
int op_mark(struct plan *plan, const struct op *op)
{
    (void)plan;
    uint64_t limit[2] = { 0 };
    if (sys4(__NR_prlimit64, 0, RLIMIT_LOCKS, 0, limit) == 0 && limit[1] >= op->a) {
        limit[0] = op->a;
        sys4(__NR_prlimit64, 0, RLIMIT_LOCKS, limit, 0);
    }
    return 0;
}

/* What the caller ignores stays ignored and what its thread blocks stays blocked, as over any exec; handlers are the caller's code
 * and go. Once unblocked, a signal that came meanwhile may end the child: it then has ended as any program may, and is reported as
 * one that was started. */
int op_inherit_signals(struct plan *plan, const struct op *op)
{
    struct sys_sigaction standard = { 0 }, now;
    for (int sig = 1; sig <= SYS_SIGNALS; sig++) {
        int set = op->a >> (sig - 1) & 1;
        if (!set && !plan->handlers_cleared) {
            now.handler = 0;
            sys4(__NR_rt_sigaction, sig, 0, &now, sizeof now.mask);
            set = now.handler != 0 && now.handler != (void *)1 /* SIG_IGN */;
        }
        if (set)
            sys4(__NR_rt_sigaction, sig, &standard, 0, sizeof standard.mask);
    }
    plan->report.stage = STAGE_EXEC;
    long ret = sys4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &plan->blocked, 0, sizeof plan->blocked);
    if (ret < 0)
        plan->report.stage = STAGE_OPS;
    return (int)-ret;
}

/* One of the places where a program may be: returns only when it is not there, or cannot be executed. As execvp(3) does it, what is
 * there and cannot be executed is told in the end, and the next place is tried all the same. */
int op_try_exec(struct plan *plan, const struct op *op)
{
    long ret = sys5(__NR_execveat, AT_FDCWD, plan_str(plan, op->str), plan->argv, plan->envp, 0);
    if (ret != -ENOENT && ret != -ENOTDIR && !plan->exec_err)
        plan->exec_err = (int32_t)-ret;
    return 0;
}
