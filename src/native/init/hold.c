/* A holder: the parent of a program that lives in no pid namespace, and of all that the program leaves behind.
 *
 * Its child waits on descriptor 4 for what it is to become (request.h). Orphans below it become its children (it is their
 * reaper), so that it knows when nothing is left, and then it ends. On descriptor 3, a socket to the caller, it tells what is
 * in hold.h and is told one byte:
 *   g  stay until nothing is left
 *   d  the same, but end everything when the socket is closed: the tree dies with its caller
 *   k  end everything now, and return only when it is gone
 * End of file before the first byte: the caller died or gave up while starting.
 *
 * What ends everything is one kill(2), so that nothing can be forked meanwhile: the kernel signals a set of processes and lets
 * no fork through that has such a signal pending, all under one lock. What that set is, `how` tells:
 *   s  this process lives by Landlock rules of its own that keep its signals to those who live by them, too: kill(-1).
 *      What it holds lives by further rules below those, and so cannot signal it.
 *   u  become a user that nobody else is: FIRST_USER of lowering.py and the own pid
 *   -  neither: a filter keeps the program from leaving its process group and from signalling anybody. Its number stays its own
 *      since it is reaped last.
 *
 * Source: landlock(7) (scopes), kill(2), prctl(2) (PR_SET_CHILD_SUBREAPER), proc_tid_children(5). */
#include "hold.h"
#include "init.h"
#include "../op.h"
#include "../request.h"
#include "../sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define PLANS 4
#define FIRST_USER 0x70000000
#define SIGKILL_ 9
#define SIGCHLD_ 17
#define P_ALL 0
#define P_PID 1
#define WNOHANG_ 1
#define WEXITED_ 4
#define WNOWAIT_ 0x01000000
#define WALL 0x40000000

static int reaches_all, told;
static long program;

static long wait_child(int which, long pid, int *info, int options, struct rusage *usage)
{
    long ret;
    do
        ret = sys5(__NR_waitid, which, pid, info, options | WEXITED_ | WALL, usage);
    while (ret == -EINTR);
    return ret;
}

/* Whether somebody besides the program is left, after those that have ended were reaped. Where /proc does not tell: no, so that
 * what is left is ended with the program, rather than waited for without an end. */
static int has_others(void)
{
    /* So many times at most: what forks and ends without a pause shall not keep us from hearing that it is to be ended. */
    for (int rounds = 0; rounds < 2; rounds++) {
        char text[4096];
        long fd = sys3(__NR_openat, AT_FDCWD, "/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
        long size = fd < 0 ? fd : sys3(__NR_read, fd, text, sizeof text);
        sys1(__NR_close, fd);
        if (size < 0)
            return 0;
        int reaped = 0, living = 0;
        long pid = 0;
        for (long i = 0; i < size; i++) {
            if (text[i] >= '0' && text[i] <= '9') {
                pid = pid * 10 + text[i] - '0';
                continue;
            }
            int info[32] = { 0 };
            if (pid && pid != program) {
                if (wait_child(P_PID, pid, info, WNOHANG_, 0) == 0 && info[0] == 0)
                    living = 1;
                else
                    reaped = 1;
            }
            pid = 0;
        }
        if (living || !reaped)
            return living;
    }
    return 1;
}

/* Tells of the program's end, once, and leaves it in place: as long as it is not reaped its number is its own. */
static int look_at_program(int options)
{
    int info[32] = { 0 };
    struct rusage usage = { 0 };
    if (told)
        return 1;
    if (wait_child(P_PID, program, info, WNOWAIT_ | options, &usage) < 0 || info[0] == 0)
        return 0;
    const struct held_end end = {
        .code = info[SI_CODE],
        .status = info[SI_STATUS],
        .user_us = usage.ru_utime.tv_sec * 1000000 + usage.ru_utime.tv_usec,
        .system_us = usage.ru_stime.tv_sec * 1000000 + usage.ru_stime.tv_usec,
        .max_rss_kib = usage.ru_maxrss,
    };
    sys6(__NR_sendto, CONTROL, (long)&end, sizeof end, MSG_NOSIGNAL, 0, 0);
    return told = 1;
}

_Noreturn static void end_everything(void)
{
    sys2(__NR_kill, program, SIGKILL_);
    sys2(__NR_kill, -program, SIGKILL_);
    if (reaches_all)
        sys2(__NR_kill, -1L, SIGKILL_);
    look_at_program(0);
    int info[32];
    while (wait_child(P_ALL, 0, info, 0, 0) == 0)
        ;
    leave(0);
}

/* The rules are entered before this program is executed. Were they not, kill(-1) would end all that the user has. */
static int is_scoped(void) { return sys2(__NR_kill, sys0(__NR_getppid), 0) == -EPERM; }

static long become_a_user(void)
{
    long user = FIRST_USER + sys0(__NR_getpid);
    long ret = sys2(__NR_setgroups, 0, 0);
    if (ret == 0)
        ret = sys3(__NR_setresgid, user, user, user);
    return ret ? ret : sys3(__NR_setresuid, user, user, user);
}

static long give_up_privileges(const char *how)
{
    long ret = 0;
    for (; *how && ret == 0; how++) {
        if (*how == 's')
            ret = is_scoped() ? 0 : -ENOTRECOVERABLE;
        else if (*how == 'u')
            ret = become_a_user();
        reaches_all |= *how == 's' || *how == 'u';
    }
    for (int cap = 0; cap < 64; cap++) /* where it may be: no_new_privs does as much */
        sys5(__NR_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
    long dropped = drop_capabilities();
    sys5(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0); /* a change of user has set it anew */
    return ret ? ret : dropped;
}

static long start(void)
{
    sys5(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    long pid = sys5(__NR_clone, SIGCHLD_, 0, 0, 0, 0);
    if (pid == 0) {
        sys5(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL_, 0, 0, 0);
        sys3(__NR_dup3, PLANS, REQUEST_SOCKET, 0);
        sys1(__NR_close, PLANS);
        wait_for_plan();
        leave(0);
    }
    sys1(__NR_close, PLANS);
    return pid;
}

_Noreturn void hold(const char *how)
{
    uint64_t all = ~(uint64_t)0, children = 1 << (SIGCHLD_ - 1);
    sys4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &all, 0, sizeof all);
    long err = give_up_privileges(how);
    if (err == 0)
        err = program = start();
    long signals = sys4(__NR_signalfd4, -1, &children, sizeof children, 02004000 /* SFD_CLOEXEC | SFD_NONBLOCK */);
    long pidfd = err > 0 ? sys2(__NR_pidfd_open, program, 0) : -1;
    err = err < 0 ? err : signals < 0 ? signals : pidfd < 0 ? pidfd : 0;
    struct held held = { (int32_t)-err, (int32_t)program };
    int fds[] = { (int)pidfd }; /* along with it: by its number alone it could be another process by the time that the caller looks */
    tell(CONTROL, &held, sizeof held, fds, err == 0);
    sys1(__NR_close, pidfd);
    char mode = 0;
    while (err == 0 && (err = sys3(__NR_read, CONTROL, &mode, 1)) == -EINTR)
        err = 0;
    if (err != 1 || mode == 'k') {
        if (program > 0)
            end_everything();
        leave(0);
    }
    for (;;) {
        if (look_at_program(WNOHANG_) && !has_others())
            end_everything(); /* of which only reaping the program is left */
        if (!told)
            has_others(); /* whose zombies would be in the way of a limit of processes */
        struct pollfd watch[2] = { { .fd = (int)signals, .events = POLLIN }, { .fd = mode == 0 ? -1 : CONTROL, .events = POLLIN } };
        if (sys5(__NR_ppoll, watch, 2, 0, 0, 8) < 0)
            continue;
        if (watch[0].revents) {
            char info[128];
            while (sys3(__NR_read, signals, info, sizeof info) == sizeof info)
                ;
        }
        if (watch[1].revents) {
            char word = 0;
            long got = sys3(__NR_read, CONTROL, &word, 1);
            if (got == 1 || mode == 'd')
                end_everything();
            mode = 0; /* the caller has gone, and does not matter */
        }
    }
}
