/* Pid 1 of a cell: adopts and reaps orphans, passes on the signals it is sent, and ends when the last process of the cell has
 * ended; when it ends, for whatever reason, the kernel kills everything in the cell (pid_namespaces(7)).
 *
 * The program of the cell is pid 2 and not a child of this process but its sibling, so that the caller of spawn() is its
 * parent and waits for it like for any other child. Descriptor 3 is a socket to the caller.
 *
 * First, while the caller already makes the program's world of files on another processor, it does its tasks:
 *   n  make a network namespace and bring its loopback device up: the slowest part of a cell
 * gives up all capabilities and writes an int to the socket: 0, or the errno of what failed. The program waits for it.
 *
 * Then it reads one byte from the socket:
 *   g  pid 2 has started; stay until nothing is left
 *   d  the same, but end at once when the socket is closed: the cell dies with its caller
 *   j  there is no pid 2: hold the namespace until the socket is closed (a job's pid namespace)
 * End of file before that byte: the caller died or gave up while starting; end. */
#include "hold.h"
#include "init.h"
#include "../op.h"
#include "../sys.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <poll.h>

#define PROGRAM 2
#define SIGCHLD_ 17
#define P_ALL 0
#define WNOHANG_ 1
#define WEXITED_ 4
#define WALL 0x40000000

/* Reaps whatever has ended; true when no child is left at all. */
static int reap(void)
{
    for (;;) {
        int info[32] = { 0 };
        long ret = sys5(__NR_waitid, P_ALL, 0, info, WEXITED_ | WNOHANG_ | WALL, 0);
        if (ret == -EINTR)
            continue;
        if (ret < 0)
            return 1;
        if (info[0] == 0) /* si_signo: children live, none has ended */
            return 0;
    }
}

static void take_signals(long signals, int pass_on)
{
    struct {
        uint32_t signo;
        char rest[124];
    } info;
    while (sys3(__NR_read, signals, &info, sizeof info) == sizeof info)
        if (pass_on && info.signo != SIGCHLD_)
            sys2(__NR_kill, PROGRAM, info.signo);
}

/* The kernel's struct ifreq, as far as flags go. */
struct interface_flags {
    char name[16];
    short flags;
    char rest[22];
};

static long make_network(void)
{
    long ret = sys1(__NR_unshare, CLONE_NEWNET);
    if (ret < 0)
        return ret;
    long fd = sys3(__NR_socket, 2 /* AF_INET */, 02000002 /* SOCK_DGRAM | SOCK_CLOEXEC */, 0);
    if (fd < 0)
        return fd;
    struct interface_flags request = { .name = "lo", .flags = 0x41 /* IFF_UP | IFF_RUNNING */ };
    ret = sys3(__NR_ioctl, fd, 0x8914 /* SIOCSIFFLAGS */, &request);
    sys1(__NR_close, fd);
    return ret;
}

/* With no_new_privs and an empty permitted set nothing can come back, not even to uid 0 by exec. */
long drop_capabilities(void)
{
    struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct none[2] = { { 0 }, { 0 } };
    long ret = sys5(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return ret < 0 ? ret : sys2(__NR_capset, &head, none);
}

static int prepare(const char *what)
{
    long ret = 0;
    for (; what && *what && ret == 0; what++)
        ret = *what == 'n' ? make_network() : -EINVAL;
    long dropped = drop_capabilities();
    return (int)-(ret ? ret : dropped);
}

_Noreturn void keep_cell(const char *tasks, int err)
{
    if (!err)
        err = prepare(tasks);
    /* After a failure stay all the same until the caller, who is told here, closes the socket: it may be entering us now. */
    sys6(__NR_sendto, CONTROL, (long)&err, sizeof err, 0x4000 /* MSG_NOSIGNAL */, 0, 0);
    uint64_t all = ~(uint64_t)0;
    sys4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &all, 0, sizeof all);
    long signals = sys4(__NR_signalfd4, -1, &all, sizeof all, 02004000 /* SFD_CLOEXEC | SFD_NONBLOCK */);
    char mode = 0;
    long got;
    while ((got = sys3(__NR_read, CONTROL, &mode, 1)) == -EINTR)
        ;
    if (signals < 0 || got != 1)
        leave(0);
    sys5(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0); /* the program shares our uid and shall not look in here */
    long program = mode == 'j' ? -1 : sys2(__NR_pidfd_open, PROGRAM, 0);
    if (mode != 'j' && program == -EMFILE)
        leave(0);
    if (mode == 'g') {
        sys1(__NR_close, CONTROL);
    }
    for (;;) {
        int empty = reap();
        if (mode != 'j' && program < 0 && empty)
            leave(0); /* pid 2 has ended, and nothing it left behind lives */
        struct pollfd watch[3] = {
            { .fd = (int)signals, .events = POLLIN },
            { .fd = (int)program, .events = POLLIN },
            { .fd = mode == 'g' ? -1 : CONTROL, .events = POLLIN },
        };
        if (sys5(__NR_ppoll, watch, 3, 0, 0, 8) < 0)
            continue;
        if (watch[2].revents)
            leave(0);
        if (watch[0].revents)
            take_signals(signals, program >= 0);
        if (watch[1].revents) {
            sys1(__NR_close, program);
            program = -1;
        }
    }
}
