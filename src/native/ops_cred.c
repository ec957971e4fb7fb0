/* Ops on identity, privileges, namespaces and the session. Child side: see child.c for what may be done here. */
#include "op.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/prctl.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int op_unshare(struct plan *plan, const struct op *op)
{
    (void)plan;
    return (int)-sys1(__NR_unshare, op->a);
}

int op_setns(struct plan *plan, const struct op *op) { return (int)-sys2(__NR_setns, plan_fd(plan, op->fd), op->a); }

/* For the files of /proc/self that want everything in one write: uid_map, gid_map, setgroups. */
int op_write(struct plan *plan, const struct op *op)
{
    const char *text = plan_str(plan, op->str2);
    long fd = sys3(__NR_openat, AT_FDCWD, plan_str(plan, op->str), O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return (int)-fd;
    long size = (long)__builtin_strlen(text);
    long ret = sys3(__NR_write, fd, text, size);
    sys1(__NR_close, fd);
    return ret == size ? 0 : ret < 0 ? (int)-ret : EIO;
}

/* A new network namespace has a loopback device, but it is down. */
int op_loopback_up(struct plan *plan, const struct op *op)
{
    (void)plan, (void)op;
    long fd = sys3(__NR_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return (int)-fd;
    struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
    long ret = sys3(__NR_ioctl, fd, SIOCSIFFLAGS, &request);
    sys1(__NR_close, fd);
    return (int)-ret;
}

int op_hostname(struct plan *plan, const struct op *op)
{
    const char *name = plan_str(plan, op->str);
    return (int)-sys2(__NR_sethostname, name, __builtin_strlen(name));
}

int op_no_new_privs(struct plan *plan, const struct op *op)
{
    (void)plan, (void)op;
    return (int)-sys5(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* An ordinary user loses all capabilities by exec, also those it has in a user namespace of its own, unless they are made
 * ambient: capabilities(7). */
int op_keep_caps(struct plan *plan, const struct op *op)
{
    (void)plan;
    struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[2] = { { 0 }, { 0 } };
    long ret = sys2(__NR_capget, &head, data);
    data[0].inheritable |= (uint32_t)op->a;
    if (ret == 0)
        ret = sys2(__NR_capset, &head, data);
    for (int cap = 0; ret == 0 && cap < 32; cap++)
        if (op->a >> cap & 1)
            ret = sys5(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0);
    return (int)-ret;
}

/* The other side works in parallel; the wait is over when it has done its part. */
int op_wait_ready(struct plan *plan, const struct op *op)
{
    int err = 0;
    /* The end of the other side is told by its pidfd, not by end of file: another launch of this moment may hold a copy of its
     * end of the socket, and wait for us in turn. Every signal is blocked, so there is no EINTR. */
    struct pollfd watch[2] = { { .fd = plan_fd(plan, op->fd), .events = POLLIN }, { .fd = plan_fd(plan, op->fd2), .events = POLLIN } };
    if (watch[0].fd < 0)
        return EBADF; /* poll would pass over it, and wait for ever */
    long ret = sys5(__NR_ppoll, watch, op->fd2 == NO_FD ? 1 : 2, 0, 0, 8);
    if (ret >= 0 && !watch[0].revents)
        return ESRCH;
    if (ret >= 0)
        ret = sys3(__NR_read, watch[0].fd, &err, sizeof err);
    return ret < 0 ? (int)-ret : ret != sizeof err ? ESRCH : err;
}

/* With this set empty not even uid 0 regains anything by exec. What is permitted now stays so. */
int op_drop_bounding(struct plan *plan, const struct op *op)
{
    (void)plan, (void)op;
    for (int cap = 0; cap < 64; cap++) { /* as many as a capability set can hold; a filter may answer 0 to all of them */
        long ret = sys5(__NR_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
        if (ret == -EINVAL && cap > 0)
            break; /* one past the last that this kernel has */
        if (ret < 0)
            return (int)-ret;
    }
    return 0;
}

int op_drop_caps(struct plan *plan, const struct op *op)
{
    (void)plan, (void)op;
    long ret = sys5(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (ret < 0)
        return (int)-ret;
    struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct none[2] = { { 0 }, { 0 } };
    return (int)-sys2(__NR_capset, &head, none);
}

/* A process that leads its group already cannot make a session; a fresh child never does. */
int op_setsid(struct plan *plan, const struct op *op)
{
    (void)plan, (void)op;
    long ret = sys0(__NR_setsid);
    return ret < 0 ? (int)-ret : 0;
}

/* Instead of the caller's session keyring, which every child inherits. Its thread and process keyrings no child does. The keys of
 * processes that have ended are counted to their user a moment longer. session-keyring(7). */
int op_keyring(struct plan *plan, const struct op *op)
{
    (void)plan;
    int64_t pause[2] = { 0, 10 * 1000 * 1000 }; /* struct timespec */
    long ret = sys2(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
    for (uint64_t left = op->a; ret == -EDQUOT && left > 0; left--) {
        sys2(__NR_nanosleep, pause, 0);
        ret = sys2(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
    }
    /* A kernel without keys, or one that a filter keeps us and our children from: nothing can be done with any keyring. */
    if ((ret == -ENOSYS || ret == -EPERM) && sys3(__NR_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0) == ret)
        return 0;
    return ret < 0 ? (int)-ret : 0;
}

int op_controlling_tty(struct plan *plan, const struct op *op)
{
    return (int)-sys3(__NR_ioctl, plan_fd(plan, op->fd), TIOCSCTTY, 0);
}

/* exec lets the parent go on a moment before it sets the name, so a parent that looks at once would see its own. */
int op_name(struct plan *plan, const struct op *op)
{
    return (int)-sys5(__NR_prctl, PR_SET_NAME, plan_str(plan, op->str), 0, 0, 0);
}

int op_umask(struct plan *plan, const struct op *op)
{
    (void)plan;
    sys1(__NR_umask, op->a);
    return 0;
}

/* LISTEN_PID has to hold the child's own pid, which nobody knows before the clone. The variable has room for the digits. */
int op_env_pid(struct plan *plan, const struct op *op)
{
    char digits[ENV_PID_DIGITS], *out = plan->envp[op->a] + op->b;
    int count = 0;
    for (long pid = sys0(__NR_getpid); pid > 0; pid /= 10)
        digits[count++] = (char)('0' + pid % 10);
    while (count > 0)
        *out++ = digits[--count];
    *out = '\0';
    return 0;
}

/* Ignored signals survive exec (a Python parent ignores SIGPIPE), and so does the mask. The parent blocked everything before
 * the clone, so until here no signal could end the child half-way without a report. */
int op_signals(struct plan *plan, const struct op *op)
{
    (void)plan, (void)op;
    struct sys_sigaction standard = { 0 };
    for (int sig = 1; sig <= SYS_SIGNALS; sig++)
        sys4(__NR_rt_sigaction, sig, &standard, 0, sizeof standard.mask); /* SIGKILL and SIGSTOP refuse: they are default */
    uint64_t none = 0;
    return (int)-sys4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &none, 0, sizeof none);
}
