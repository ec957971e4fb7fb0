/* The parent's half: clone, wait for exec or failure, reap what failed.
 *
 * clone3 with CLONE_VM | CLONE_VFORK: nothing is copied, so the price does not grow with the parent's memory, and the report
 * travels in memory. The calling thread sleeps until the child has executed or ended. CLONE_CLEAR_SIGHAND and a full signal
 * mask keep the parent's handlers from ever running in the child. The child's exit signal is 0 until exec makes it SIGCHLD:
 * a child that fails is invisible to the host program's own waits. Sources: clone(2), posix_spawn(3), vfork(2). */
#include "op.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#define P_PID 1
#define P_PIDFD 3
#define WNOHANG 1
#define WEXITED 4
#define WNOWAIT 0x01000000
#define WNOTHREAD 0x20000000
#define WALL 0x40000000

/* One stack serves all children of a launch: half of it the program's, a quarter each those that only enter namespaces. */
#define STACK_BYTES (256 * 1024)
#define SPARE_STACKS 16

static _Atomic(char *) spare_stack[SPARE_STACKS]; /* kept between launches: mapping one anew costs more than the clone */
static _Atomic int without_clone3;                /* a filter or an old kernel answers ENOSYS; asked once */

/* A child that changes its user takes from the memory, which is ours, too, until exec, that it may be dumped, debugged and
 * looked at in /proc: prctl(2). Some launch in flight may be why it is so right now; the first of them has seen how it was. */
static atomic_flag counting = ATOMIC_FLAG_INIT;
static int in_flight, was_dumpable;

static long get_dumpable(void) { return sys5(__NR_prctl, PR_GET_DUMPABLE, 0, 0, 0, 0); }

static void lock_count(void)
{
    while (atomic_flag_test_and_set_explicit(&counting, memory_order_acquire))
        ;
}

static void begin_launch(void)
{
    lock_count();
    if (!in_flight++)
        was_dumpable = get_dumpable() == 1;
    atomic_flag_clear_explicit(&counting, memory_order_release);
}

static void end_launch(void)
{
    lock_count();
    in_flight--;
    if (was_dumpable && get_dumpable() != 1)
        sys5(__NR_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
    atomic_flag_clear_explicit(&counting, memory_order_release);
}

void launch_after_fork(void)
{
    atomic_flag_clear(&counting);
    if (in_flight && was_dumpable)
        sys5(__NR_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
    in_flight = 0; /* those were the parent's */
}

static char *stack_get(void)
{
    for (int i = 0; i < SPARE_STACKS; i++) {
        char *stack = atomic_exchange(&spare_stack[i], NULL);
        if (stack)
            return stack;
    }
    char *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        return NULL;
    mprotect(stack, 4096, PROT_NONE); /* a guard; without it all would still work */
    return stack;
}

static void stack_put(char *stack)
{
    for (int i = 0; i < SPARE_STACKS; i++) {
        char *none = NULL;
        if (atomic_compare_exchange_strong(&spare_stack[i], &none, stack))
            return;
    }
    munmap(stack, STACK_BYTES);
}

/* What the two children of a launch and the parent share. */
struct birth {
    struct plan *plan;
    char *stack;
    uint64_t flags; /* beyond the usual */
    int pid;
    int middle; /* pid of the process in between, where one is needed */
    int err;    /* of the clone that was to make the program's process */
};

/* Without CLONE_INTO_CGROUP the child moves itself, before its first op. */
static void join_cgroup_then_run(void *arg)
{
    struct plan *plan = arg;
    long fd = sys4(__NR_openat, plan->head->cgroup_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC, 0);
    long ret = fd < 0 ? fd : sys3(__NR_write, fd, "0", 1);
    if (fd >= 0)
        sys1(__NR_close, fd); /* this may still be the caller's table */
    if (ret < 0) {
        plan->report.stage = STAGE_CLONE;
        plan->report.err = (int32_t)-ret;
        for (;;)
            sys1(__NR_exit_group, 127);
    }
    child_main(plan);
}

static void clone_program(struct birth *birth)
{
    const struct plan_head *head = birth->plan->head;
    char *top = birth->stack + STACK_BYTES / 2;
    uint64_t flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | head->clone_flags | birth->flags;
    if (head->flags & PLAN_SHARE_FDS)
        flags |= CLONE_FILES;
    if (head->flags & PLAN_SIBLING)
        flags |= CLONE_PARENT;
    long ret = -ENOSYS;
    if (!atomic_load(&without_clone3)) {
        struct clone_args args = {
            .flags = flags | CLONE_CLEAR_SIGHAND | (head->cgroup_fd >= 0 ? CLONE_INTO_CGROUP : 0),
            .pidfd = (uint64_t)(uintptr_t)&birth->plan->pidfd,
            .stack = (uint64_t)(uintptr_t)birth->stack,
            .stack_size = STACK_BYTES / 2,
            .cgroup = head->cgroup_fd >= 0 ? (uint64_t)head->cgroup_fd : 0,
        };
        birth->plan->handlers_cleared = 1;
        ret = sys_clone_call(__NR_clone3, (long)&args, sizeof args, 0, child_main, birth->plan);
        if (ret == -ENOSYS) {
            birth->plan->handlers_cleared = 0;
            atomic_store(&without_clone3, 1);
        }
    }
    if (ret == -ENOSYS)
        ret = sys_clone_call(__NR_clone, (long)flags, (long)top, (long)&birth->plan->pidfd, head->cgroup_fd >= 0 ? join_cgroup_then_run : child_main,
                             birth->plan);
    birth->pid = (int)ret;
    birth->err = ret < 0 ? (int)-ret : 0;
}

#define NEWPID 0x20000000u

/* A new pid namespace is nested in the one its maker lives in. Entering one concerns only the children made afterwards, so
 * where the program's is to be nested in one that was entered, a child made there has to make it. */
static void middle_main(void *arg)
{
    clone_program(arg);
    for (;;)
        sys1(__NR_exit_group, 0);
}

/* A short-lived child that enters namespaces and there makes the program's process as its sibling (CLONE_PARENT), so that
 * the caller itself enters nothing and still is the parent. A pid namespace can only be entered in this way. */
static void enter_main(void *arg)
{
    struct birth *birth = arg;
    const struct plan_head *head = birth->plan->head;
    long ret = sys2(__NR_setns, head->enter_fd, head->enter_flags);
    if (ret < 0) {
        birth->plan->report.stage = STAGE_ENTER;
        birth->plan->report.err = (int32_t)-ret;
    } else if (head->enter_flags & head->clone_flags & NEWPID) {
        char *top = birth->stack + STACK_BYTES * 3 / 4;
        long flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_PARENT | CLONE_PARENT_SETTID;
        ret = sys_clone_call(__NR_clone, flags, (long)top, (long)&birth->middle, middle_main, birth);
        birth->err = ret < 0 ? (int)-ret : birth->err;
    } else {
        clone_program(birth);
    }
    for (;;)
        sys1(__NR_exit_group, 0);
}

static long reap(int idtype, int id, int options)
{
    long ret;
    do
        ret = sys5(__NR_waitid, idtype, id, 0, WEXITED | WALL | options, 0);
    while (ret == -EINTR);
    return ret;
}

/* A process in between lives in the job it enters, so killing the job may kill it before it has told whom it made. The kernel
 * wrote the pidfd before that; but it also does so in a clone that fails in the end, and then another thread may use the number
 * by now. Only what is a child of this very thread can be meant. It may still run on our stack: end it. */
static void end_lost_child(struct plan *plan)
{
    if (plan->pidfd < 0 || reap(P_PIDFD, plan->pidfd, WNOTHREAD | WNOHANG | WNOWAIT) < 0)
        return;
    sys4(__NR_pidfd_send_signal, plan->pidfd, 9 /* SIGKILL */, 0, 0);
    reap(P_PIDFD, plan->pidfd, WNOTHREAD);
    sys1(__NR_close, plan->pidfd);
}

static void clone_through_namespaces(struct birth *birth)
{
    char *top = birth->stack + STACK_BYTES;
    birth->flags = CLONE_PARENT;
    birth->pid = -1;
    birth->err = 0;
    long ret = sys_clone_call(__NR_clone, CLONE_VM | CLONE_VFORK | CLONE_FILES, (long)top, 0, enter_main, birth);
    if (ret < 0)
        birth->err = (int)-ret;
    else
        reap(P_PID, (int)ret, 0);
    if (birth->middle > 0)
        reap(P_PID, birth->middle, 0);
    if (birth->pid < 0 && !birth->err) {
        end_lost_child(birth->plan);
        if (birth->plan->report.stage != STAGE_ENTER)
            birth->err = ESRCH;
        birth->plan->report.stage = STAGE_ENTER;
    }
}

static void close_slots(struct plan *plan)
{
    for (int i = 0; i < SLOTS; i++)
        if (plan->slots[i] >= 0) {
            sys1(__NR_close, plan->slots[i]);
            plan->slots[i] = NO_FD;
        }
}

void launch(struct plan *plan, struct outcome *out)
{
    struct birth birth = { .plan = plan, .stack = stack_get(), .pid = -1 };
    out->pid = out->pidfd = -1;
    plan_begin(plan);
    if (!birth.stack) {
        plan->report.err = ENOMEM;
    } else {
        uint64_t all = ~(uint64_t)0, before;
        sys4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &all, &before, sizeof all);
        plan->blocked = before;
        begin_launch(); /* no handler may launch while the count is locked */
        if (plan->head->enter_fd >= 0)
            clone_through_namespaces(&birth);
        else
            clone_program(&birth);
        end_launch();
        sys4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &before, 0, sizeof before);
        stack_put(birth.stack);
        if (birth.err)
            plan->report.err = birth.err;
    }
    int ended = plan->report.stage != STAGE_EXEC || plan->report.err != 0;
    if (birth.pid > 0 && (ended || plan->head->flags & PLAN_COLLECT) && !(plan->head->flags & PLAN_SIBLING)) {
        reap(P_PIDFD, plan->pidfd, 0);
        sys1(__NR_close, plan->pidfd);
    } else if (birth.pid > 0) { /* after a clone that failed late the kernel has written a pidfd, but closed it */
        out->pid = birth.pid;
        out->pidfd = plan->pidfd;
    }
    if (ended && plan->head->flags & PLAN_COLLECT)
        close_slots(plan); /* made on our own table; the slots of any other child were numbers of its own */
    out->report.stage = plan->report.stage;
    out->report.index = plan->report.index;
    out->report.err = plan->report.err;
}
