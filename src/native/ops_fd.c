/* Ops on descriptors and on the working directory. Child side: see child.c for what may be done here. */
#include "op.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2
#endif

/* The child starts on the parent's table itself, so nothing was copied yet. This call makes the child's own table and
 * copies only what lies below `a` into it (close_range(2)): the price does not grow with what the parent has open. */
int op_unshare_fds(struct plan *plan, const struct op *op)
{
    long ret = sys3(__NR_close_range, op->a, ~0u, CLOSE_RANGE_UNSHARE);
    if (ret == 0 && plan->head->flags & PLAN_SHARE_FDS)
        sys1(__NR_close, plan->pidfd); /* our own pidfd came along; its number shall not pass for one of the caller's */
    return (int)-ret;
}

int op_open(struct plan *plan, const struct op *op)
{
    struct open_how how = { .flags = op->a | O_CLOEXEC, .resolve = op->b };
    return plan_keep(plan, op, sys4(__NR_openat2, plan_fd(plan, op->fd), plan_str(plan, op->str), &how, sizeof how));
}

/* Is this still the object the parent looked at? A name can be exchanged between then and now; an inode cannot. */
int op_expect(struct plan *plan, const struct op *op)
{
    struct stat st;
    long ret = sys2(__NR_fstat, plan_fd(plan, op->fd), &st);
    if (ret < 0)
        return (int)-ret;
    return st.st_dev == op->a && st.st_ino == op->b ? 0 : ESTALE;
}

struct pair {
    int32_t source, target; /* target: with TARGET_CLOEXEC, needed until exec only */
};

static struct pair pair_at(const struct plan *plan, const struct op *op, uint64_t i)
{
    struct pair p;
    __builtin_memcpy(&p, plan_str(plan, op->str) + i * sizeof p, sizeof p);
    return p;
}

/* A close-on-exec copy of `fd` at a number that no target needs, so that placing one target cannot overwrite the source of
 * another: this is what makes swaps and longer cycles safe. A number above all targets may lie above the limit, so the lowest
 * number that is free and no target is taken. */
static long dup_clear(int fd, const uint8_t *is_target, long *from)
{
    for (;;) {
        long copy = sys3(__NR_fcntl, fd, F_DUPFD_CLOEXEC, *from);
        if (copy == -EINVAL) /* `from` has reached the limit */
            return -EMFILE;
        if (copy >= 0 && copy < *from)
            return -EIO; /* not the kernel's answer but a filter's, which would keep us here for ever */
        if (copy < 0 || copy >= TARGETS || !(is_target[copy / 8] & 1 << copy % 8))
            return copy;
        sys1(__NR_close, copy);
        *from = copy + 1; /* remembered from call to call: a thousand targets in a row are passed once */
    }
}

static int close_between(long first, long last)
{
    return first > last ? 0 : (int)-sys3(__NR_close_range, first, last, 0);
}

/* Is `fd` open, and not by one of our own ops? The copies made below land on free numbers. A source that the caller closed
 * meanwhile is such a number, and what comes to lie there must not be taken for what was granted. */
static int is_callers(const struct plan *plan, int32_t fd)
{
    if (IS_SLOT(fd))
        return 1;
    for (int i = 0; i < plan->slots_used; i++)
        if (plan->slots[i] == fd)
            return 0;
    return sys2(__NR_fcntl, fd, F_GETFD) >= 0;
}

/* Puts every granted descriptor at its number, /dev/null at those of 0-2 that nothing was granted for (so that no later open
 * of the program lands there), and closes all others. What exec still needs is kept, close-on-exec. */
int op_fd_map(struct plan *plan, const struct op *op)
{
    uint8_t is_target[TARGETS / 8] = { 7 }; /* 0, 1 and 2 are always filled */
    int filled = 0;                         /* of 0, 1, 2, by the pairs: bits */
    int32_t held[TARGETS];                  /* by target: the copy to be placed there, or -1 */
    int last = 2;                           /* the highest target */
    long from = 3;                          /* where dup_clear looks for room */
    for (uint64_t i = 0; i < op->a; i++) {
        struct pair p = pair_at(plan, op, i);
        int32_t target = p.target & ~TARGET_CLOEXEC;
        if (!is_callers(plan, p.source))
            return EBADF;
        filled |= target < 3 ? 1 << target : 0;
        is_target[target / 8] |= (uint8_t)(1 << target % 8);
        last = target > last ? target : last;
    }
    if (filled != 7 && !is_callers(plan, op->fd))
        return EBADF;
    for (int i = 0; i <= last; i++)
        held[i] = -1;
    int32_t *const kept[] = { &plan->exec_fd, &plan->report_fd };
    for (int i = 0; i < 2; i++) {
        int fd = plan_fd(plan, *kept[i]);
        long copy = fd < 0 ? fd : dup_clear(fd, is_target, &from);
        if (fd >= 0 && copy < 0)
            return (int)-copy;
        *kept[i] = (int32_t)copy;
    }
    for (uint64_t i = 0; i < op->a; i++) {
        struct pair p = pair_at(plan, op, i);
        int target = p.target & ~TARGET_CLOEXEC, source = plan_fd(plan, p.source);
        /* One that is in its place already needs no copy: nothing else goes there. */
        long ret = source == target ? sys3(__NR_fcntl, source, F_SETFD, p.target & TARGET_CLOEXEC ? FD_CLOEXEC : 0)
                                    : dup_clear(source, is_target, &from);
        if (ret < 0)
            return (int)-ret;
        if (source != target)
            held[target] = (int32_t)ret | (p.target & TARGET_CLOEXEC);
    }
    if (filled != 7) {
        long null = dup_clear(plan_fd(plan, op->fd), is_target, &from);
        if (null < 0)
            return (int)-null;
        for (int target = 0; target < 3; target++)
            if (!(filled & 1 << target))
                held[target] = (int32_t)null;
    }
    long first = 0; /* of the numbers that are neither kept nor closed yet */
    for (int target = 0; target <= last; target++) {
        if (held[target] >= 0) {
            long ret = sys3(__NR_dup3, held[target] & ~TARGET_CLOEXEC, target, held[target] & TARGET_CLOEXEC ? O_CLOEXEC : 0);
            if (ret < 0)
                return (int)-ret;
        }
    }
    int low = plan->exec_fd < plan->report_fd ? plan->exec_fd : plan->report_fd;
    int high = plan->exec_fd < plan->report_fd ? plan->report_fd : plan->exec_fd;
    for (int fd = 0; fd <= last; fd++) {
        if (!(is_target[fd / 8] & 1 << fd % 8) && fd != low && fd != high)
            continue;
        int err = close_between(first, fd - 1);
        if (err)
            return err;
        first = fd + 1;
    }
    for (int i = 0; i < 2; i++) {
        int fd = i ? high : low;
        if (fd <= last)
            continue;
        int err = close_between(first, fd - 1);
        if (err)
            return err;
        first = fd + 1;
    }
    for (int i = 0; i < plan->slots_used; i++)
        plan->slots[i] = NO_FD; /* closed above */
    return close_between(first, ~0u);
}

static int enter_nowhere(void);

/* Enters `str`. Where that cannot be done the program still starts, as spec 5.2 has it, but relative paths fail: it then
 * stands in `fd`, or in an empty, unreachable file system made for it. With flags 1 it does not start. */
int op_chdir(struct plan *plan, const struct op *op)
{
    struct open_how how = { .flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = op->b };
    long place = sys4(__NR_openat2, AT_FDCWD, plan_str(plan, op->str), &how, sizeof how);
    long ret = place < 0 ? place : sys1(__NR_fchdir, place);
    if (place >= 0)
        sys1(__NR_close, place);
    if (ret == 0 || op->flags)
        return (int)-ret;
    return op->fd == NO_FD ? enter_nowhere() : (int)-sys1(__NR_fchdir, plan_fd(plan, op->fd));
}

static int enter_nowhere(void)
{
    long mount = -1, fs = sys2(__NR_fsopen, "tmpfs", 1 /* FSOPEN_CLOEXEC */);
    if (fs < 0)
        return (int)-fs;
    long ret = sys5(__NR_fsconfig, fs, 6 /* FSCONFIG_CMD_CREATE */, 0, 0, 0);
    if (ret == 0)
        ret = mount = sys3(__NR_fsmount, fs, 1 /* FSMOUNT_CLOEXEC */, 1 | 2 | 4 | 8 /* ro, nosuid, nodev, noexec */);
    if (ret >= 0)
        ret = sys1(__NR_fchdir, mount);
    if (mount >= 0)
        sys1(__NR_close, mount);
    sys1(__NR_close, fs);
    return (int)-ret;
}
