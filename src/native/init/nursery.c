/* What inits of domains are forked from, as many as it is asked for, ahead of their use: a fork of this costs a fraction of an exec,
 * and does not stop the one who asks. It reaps them as long as any lives, and ends what one that was killed has left behind; should it be
 * killed itself, the system reaps them.
 *
 * A request is a uint32_t on descriptor 3: how many. The answer to each: its pid, or a negative errno, with our end of its socket.
 *
 * Source: prctl(2) (PR_SET_CHILD_SUBREAPER), wait(2), proc_tid_children(5), proc_pid_stat(5). */
#include "../domain.h"
#include "init.h"
#include "../op.h"
#include "../sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <poll.h>
#include <sys/socket.h>

#define SIGKILL_ 9
#define SIGCHLD_ 17
#define OUR_SIGNALS (1ul << (SIGCHLD_ - 1) | 1ul << (UNEXECUTED_SIGNAL - 1))
#define EXIT_SIGNAL 38 /* proc_pid_stat(5) */
#define P_ALL 0
#define WNOHANG_ 1
#define WEXITED_ 4
#define WCLONE 0x80000000 /* those only that end with another signal than SIGCHLD: inits, which never execute anything */
#define CLD_EXITED_ 1

static int raise_one(void)
{
    int ends[2] = { -1, -1 };
    long pid = sys4(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends);
    if (pid == 0) {
        pid = sys5(__NR_clone, UNEXECUTED_SIGNAL, 0, 0, 0, 0);
        if (pid == 0) {
            sys3(__NR_dup3, ends[1], DOMAIN_CONTROL, O_CLOEXEC);
            sys3(__NR_close_range, DOMAIN_FREE, ~0u, 0);
            sys5(__NR_prctl, PR_SET_NAME, "shoal-domain", 0, 0, 0);
            keep_domain();
            leave(0);
        }
        sys1(__NR_close, ends[1]);
    }
    int32_t answer = (int32_t)pid;
    long told = tell(CONTROL, &answer, sizeof answer, ends, pid > 0);
    sys1(__NR_close, ends[0]);
    return told >= 0;
}

/* Of our children those that are no inits: an init was killed, and we are the reaper of what it was the reaper of. */
static void end_orphans(void)
{
    char text[4096];
    long fd = sys4(__NR_openat, AT_FDCWD, "/proc/thread-self/children", O_RDONLY | O_CLOEXEC, 0), pid = 0, size;
    while ((size = sys3(__NR_read, fd, text, sizeof text)) > 0)
        for (long i = 0; i < size; i++) {
            if (text[i] >= '0' && text[i] <= '9') {
                pid = pid * 10 + text[i] - '0';
                continue;
            }
            if (pid && process_field(pid, EXIT_SIGNAL) == SIGCHLD_)
                sys2(__NR_kill, pid, SIGKILL_); /* nobody but us reaps it, so that the number is its own */
            pid = 0;
        }
    sys1(__NR_close, fd);
}

/* False when no child is left. */
static int reap(void)
{
    int left_something = 0;
    for (unsigned long kind = WCLONE;; kind = 0) {
        int info[32] = { 0 };
        long ret;
        while ((ret = sys5(__NR_waitid, P_ALL, 0, info, WEXITED_ | WNOHANG_ | kind, 0)) == 0 && info[SI_PID]) {
            left_something |= !kind || info[SI_CODE] != CLD_EXITED_;
            info[SI_PID] = 0;
        }
        if (!kind)
            break;
    }
    if (left_something)
        end_orphans();
    return sys5(__NR_waitid, P_ALL, 0, 0, WEXITED_ | WNOHANG_ | 0x40000000 /* __WALL */ | 0x1000000 /* WNOWAIT */, 0) != -ECHILD;
}

/* Before the first of us can be told of a slot. */
static void hold_back_the_next(void)
{
    long fd = of_process(sys0(__NR_getpid), "/fd/6", O_RDONLY);
    sys2(__NR_flock, fd, 1 /* LOCK_SH */);
    sys3(__NR_dup3, fd, DOMAIN_PENDING, O_CLOEXEC);
    sys1(__NR_close, fd);
}
_Static_assert(DOMAIN_LEDGER == 6, "its name is written out above");

/* Whether there may be more requests. */
static int take_request(void)
{
    uint32_t count = 0;
    long size = sys3(__NR_read, CONTROL, &count, sizeof count);
    if (size == -EINTR)
        return 1;
    if (size != sizeof count)
        return 0;
    while (count-- > 0)
        if (!raise_one())
            return 0;
    return 1;
}

void raise_inits(char **argv)
{
    const uint64_t ours = OUR_SIGNALS;
    find_words(argv);
    sys5(__NR_prctl, PR_SET_NAME, "shoal-nursery", 0, 0, 0);
    sys5(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    hold_back_the_next();
    sys4(__NR_rt_sigprocmask, 0 /* SIG_BLOCK */, &ours, 0, sizeof ours);
    int signals = (int)sys4(__NR_signalfd4, -1, &ours, sizeof ours, 02004000 /* SFD_CLOEXEC | SFD_NONBLOCK */);
    for (int is_asked = 1; reap() || is_asked;) {
        struct pollfd watch[2] = { { .fd = signals, .events = POLLIN }, { .fd = is_asked ? CONTROL : -1, .events = POLLIN } };
        char info[128];
        sys5(__NR_ppoll, watch, 2, 0, 0, 8);
        while (sys3(__NR_read, signals, info, sizeof info) == sizeof info)
            ;
        if (watch[1].revents && !take_request()) {
            is_asked = 0;
            sys1(__NR_close, DOMAIN_PENDING);
            sys1(__NR_close, CONTROL);
        }
    }
}
