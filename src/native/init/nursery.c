/* What inits of domains are forked from, as many as it is asked for, ahead of their use: a fork of this costs a fraction of an exec,
 * and does not stop the one who asks. It reaps them, as long as any lives; should it be killed, the system does.
 *
 * A request is a uint32_t on descriptor 3: how many. The answer to each: its pid, or a negative errno, with our end of its socket. */
#include "../domain.h"
#include "init.h"
#include "../sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <sys/socket.h>

#define SIGCHLD_ 17

static int raise_one(void)
{
    int ends[2] = { -1, -1 };
    long pid = sys4(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends);
    if (pid == 0) {
        pid = sys5(__NR_clone, SIGCHLD_, 0, 0, 0, 0);
        if (pid == 0) {
            sys3(__NR_dup3, ends[1], DOMAIN_CONTROL, O_CLOEXEC);
            sys3(__NR_close_range, DOMAIN_FREE, ~0u, 0);
            sys5(__NR_prctl, PR_SET_NAME, "shoal-domain", 0, 0, 0);
            keep_domain();
            return 0;
        }
        sys1(__NR_close, ends[1]);
    }
    int32_t answer = (int32_t)pid;
    long told = tell(CONTROL, &answer, sizeof answer, ends, pid > 0);
    sys1(__NR_close, ends[0]);
    return told >= 0;
}

void raise_inits(char **argv)
{
    /* The second word is the kernel's for ignoring: children need not be waited for. */
    struct sys_sigaction ignore = { .handler = (void *)1 };
    find_words(argv);
    sys5(__NR_prctl, PR_SET_NAME, "shoal-nursery", 0, 0, 0);
    sys4(__NR_rt_sigaction, SIGCHLD_, &ignore, 0, 8);
    for (;;) {
        uint32_t count = 0;
        long size = sys3(__NR_read, CONTROL, &count, sizeof count);
        if (size == -EINTR)
            continue;
        if (size != sizeof count)
            break;
        while (count-- > 0)
            if (!raise_one())
                break;
    }
    /* Where nobody else reaps them; it returns when none is left. */
    while (sys5(__NR_waitid, 0 /* P_ALL */, 0, 0, 4 /* WEXITED */, 0) != -ECHILD)
        ;
}
