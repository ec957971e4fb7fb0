/* A fork(2) of a process with one thread that goes on in a cell: the ops of a plan run in the copy, and instead of an exec it
 * returns to where its maker was. Everything else is as in launch.c.
 *
 * Only later children of who enters a pid namespace live in it, and there may be no way back: so a thread enters it that ends right
 * after it has made the copy (CLONE_VFORK: meanwhile the caller stands still). The copy has the memory of both. It runs its ops on
 * its copy of the thread's stack, and then jumps to the caller's. setns(2), pid_namespaces(7).
 *
 * What libc's fork() sees to besides: the thread has another number, and its list of robust mutexes is to be told to the kernel anew.
 * No other thread holds a lock of libc, since there is none. Handlers of pthread_atfork(3) do not run; those of Python do. */
#include "op.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <setjmp.h>
#include <sys/socket.h>

struct copy {
    struct plan *plan;
    int pid, pidfd;
    int32_t *tid; /* where libc keeps the number of this thread, or 0 */
    void *robust;
    size_t robust_size;
    uint64_t signals; /* blocked before, and again in the end: nothing is interrupted meanwhile */
    jmp_buf back;
};

static _Alignas(16) char stack[64 * 1024]; /* of the thread */

/* In a libc that keeps it where the kernel is to clear it in the end (glibc does, musl does not). */
static int32_t *own_number(void)
{
    int32_t *found = 0;
    if (sys5(__NR_prctl, PR_GET_TID_ADDRESS, &found, 0, 0, 0) < 0 || !found)
        return 0;
    return *found == sys0(__NR_gettid) ? found : 0;
}

/* Without CLONE_INTO_CGROUP the copy moves itself. */
static long join_cgroup(int cgroup)
{
    long fd = sys4(__NR_openat, cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC, 0);
    long ret = fd < 0 ? fd : sys3(__NR_write, fd, "0", 1);
    if (fd >= 0)
        sys1(__NR_close, fd);
    return ret < 0 ? ret : 0;
}

static long copy_process(struct copy *copy)
{
    int cgroup = copy->plan->head->cgroup_fd;
    uint64_t flags = CLONE_PARENT | CLONE_PIDFD | (copy->tid ? CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID : 0);
    struct clone_args args = {
        .flags = flags | (cgroup >= 0 ? CLONE_INTO_CGROUP : 0),
        .pidfd = (uint64_t)(uintptr_t)&copy->pidfd,
        .child_tid = (uint64_t)(uintptr_t)copy->tid,
        .cgroup = cgroup >= 0 ? (uint64_t)cgroup : 0,
    };
    long ret = sys2(__NR_clone3, &args, sizeof args);
    if (ret != -ENOSYS)
        return ret;
#if defined(__x86_64__)
    ret = sys5(__NR_clone, flags, 0, &copy->pidfd, copy->tid, 0);
#else
    ret = sys5(__NR_clone, flags, 0, &copy->pidfd, 0, copy->tid);
#endif
    if (ret == 0 && cgroup >= 0 && (ret = join_cgroup(cgroup)) < 0) {
        copy->plan->report.err = (int32_t)-ret;
        ret = 0;
    }
    return ret;
}

static void begin(struct copy *copy)
{
    struct plan *plan = copy->plan;
    if (copy->robust)
        sys2(__NR_set_robust_list, copy->robust, copy->robust_size);
    if (!plan->report.err)
        run_ops(plan);
    struct report report = { plan->report.stage, plan->report.index, plan->report.err };
    if (sys6(__NR_sendto, plan->report_fd, (long)&report, sizeof report, MSG_NOSIGNAL, 0, 0) != sizeof report || report.err)
        leave(127);
    sys1(__NR_close, plan->report_fd);
    sys4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &copy->signals, 0, sizeof copy->signals);
    longjmp(copy->back, 1);
}

static void enter_and_copy(void *arg)
{
    struct copy *copy = arg;
    const struct plan_head *head = copy->plan->head;
    long ret = head->enter_fd < 0 ? 0 : sys2(__NR_setns, head->enter_fd, head->enter_flags);
    if (ret == 0)
        ret = copy_process(copy);
    if (ret == 0)
        begin(copy);
    copy->pid = (int)ret;
    for (;;)
        sys1(__NR_exit, 0);
}

int fork_into(struct plan *plan, int report_fd, struct outcome *out)
{
    static struct copy copy; /* not on the stack, which is about to be left twice */
    copy = (struct copy){ .plan = plan, .pid = -EAGAIN, .pidfd = NO_FD, .tid = own_number() };
    plan_begin(plan);
    plan->report_fd = report_fd;
    if (sys3(__NR_get_robust_list, 0, &copy.robust, &copy.robust_size) < 0)
        copy.robust = 0;
    if (_setjmp(copy.back))
        return 1;
    uint64_t all = ~(uint64_t)0;
    sys4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &all, &copy.signals, sizeof all);
    long flags = CLONE_VM | CLONE_VFORK | CLONE_THREAD | CLONE_SIGHAND | CLONE_FILES | CLONE_FS;
    long ret = sys_clone_call(__NR_clone, flags, (long)(stack + sizeof stack), 0, enter_and_copy, &copy);
    sys4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &copy.signals, 0, sizeof copy.signals);
    if (ret > 0)
        ret = copy.pid;
    *out = (struct outcome){ .pid = ret > 0 ? (int)ret : -1, .pidfd = ret > 0 ? copy.pidfd : NO_FD };
    out->report = (struct report){ .stage = STAGE_CLONE, .index = -1, .err = ret < 0 ? (int32_t)-ret : 0 };
    return 0;
}
