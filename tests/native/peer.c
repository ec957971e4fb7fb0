/* The program that the native tests start. Static, so that it runs in an empty world.
 *
 *   peer                  ends with status 0
 *   peer fds OUT          writes one line to descriptor OUT for each open descriptor: number, device, inode, close-on-exec
 *   peer self OUT         writes: pid, comm, blocked signals, signals not default, the variable ME, the cwd's inode, umask
 *   peer take OUT         writes "ready", then the number of each signal it gets; ends at SIGTERM
 *   peer orphan OUT       leaves behind a grandchild that writes "left", reads descriptor 0 to its end, writes "over", ends
 *   peer hold OUT         writes its pid, reads descriptor 0 to its end, ends
 *   peer loopback OUT     writes the errno of sending itself a datagram through 127.0.0.1
 *   peer vectors OUT      writes its arguments and its environment, each string with its NUL
 *   peer caps OUT         writes how many capabilities are permitted, effective, inheritable, bounding, ambient
 *   peer keyring OUT      writes the number of its session keyring, how many keys are in it, and the errno of adding one
 *   peer look OUT PATH    writes the errno of opening PATH for reading */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void drain(void)
{
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
}

static int fds(int out)
{
    for (int fd = 0; fd < 70000; fd++) {
        struct stat st;
        int flags = fcntl(fd, F_GETFD);
        if (flags >= 0 && fstat(fd, &st) == 0)
            dprintf(out, "%d %llu %llu %d\n", fd, (unsigned long long)st.st_dev, (unsigned long long)st.st_ino, flags & FD_CLOEXEC);
    }
    return 0;
}

static int self(int out)
{
    sigset_t blocked;
    char name[16] = "";
    int count = 0, changed = 0;
    struct stat cwd = { 0 };
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    for (int sig = 1; sig < 65; sig++) {
        struct sigaction action;
        count += sigismember(&blocked, sig) == 1;
        changed += sigaction(sig, NULL, &action) == 0 && action.sa_handler != SIG_DFL;
    }
    prctl(PR_GET_NAME, name);
    stat(".", &cwd);
    mode_t mask = umask(0);
    dprintf(out, "%d %s %d %d %s %llu %o", getpid(), name, count, changed, getenv("ME") ? getenv("ME") : "-",
            (unsigned long long)cwd.st_ino, mask);
    return 0;
}

static int take(int out)
{
    sigset_t all;
    int sig;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    dprintf(out, "ready\n");
    while (sigwait(&all, &sig) == 0) {
        dprintf(out, "%d\n", sig);
        if (sig == SIGTERM)
            break;
    }
    return 0;
}

static int orphan(int out)
{
    pid_t middle = fork();
    if (middle == 0) {
        if (fork() == 0) {
            dprintf(out, "left\n");
            drain();
            dprintf(out, "over\n");
        }
        _exit(0);
    }
    waitpid(middle, NULL, 0);
    return 0;
}

static int loopback(int out)
{
    struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof here;
    char byte = 'x';
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    int ok = fd >= 0 && bind(fd, (struct sockaddr *)&here, size) == 0 && getsockname(fd, (struct sockaddr *)&here, &size) == 0 &&
             sendto(fd, &byte, 1, 0, (struct sockaddr *)&here, size) == 1 && recv(fd, &byte, 1, 0) == 1;
    dprintf(out, "%d", ok ? 0 : errno);
    return 0;
}

static int write_all(int out, char **strings)
{
    for (; *strings; strings++)
        for (size_t left = strlen(*strings) + 1; left > 0;) {
            ssize_t put = write(out, *strings + strlen(*strings) + 1 - left, left);
            if (put < 0)
                return 1;
            left -= (size_t)put;
        }
    return 0;
}

static int caps(int out)
{
    struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[2] = { { 0 }, { 0 } };
    int bounding = 0, ambient = 0;
    if (syscall(SYS_capget, &head, data))
        return 1;
    for (int cap = 0; cap < 64; cap++) {
        bounding += prctl(PR_CAPBSET_READ, cap) == 1;
        ambient += prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) == 1;
    }
#define COUNT(set) (__builtin_popcount(data[0].set) + __builtin_popcount(data[1].set))
    dprintf(out, "%d %d %d %d %d", COUNT(permitted), COUNT(effective), COUNT(inheritable), bounding, ambient);
    return 0;
}

static int keyring(int out)
{
    long number = syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0);
    long size = syscall(SYS_keyctl, KEYCTL_READ, number, NULL, 0);
    long key = syscall(SYS_add_key, "user", "of-peer", "x", 1, KEY_SPEC_SESSION_KEYRING);
    dprintf(out, "%ld %ld %d", number, size / 4, key < 0 ? errno : 0);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 0;
    int out = atoi(argv[2]);
    if (!strcmp(argv[1], "fds"))
        return fds(out);
    if (!strcmp(argv[1], "self"))
        return self(out);
    if (!strcmp(argv[1], "take"))
        return take(out);
    if (!strcmp(argv[1], "orphan"))
        return orphan(out);
    if (!strcmp(argv[1], "loopback"))
        return loopback(out);
    if (!strcmp(argv[1], "vectors"))
        return write_all(out, argv) || write_all(out, environ);
    if (!strcmp(argv[1], "caps"))
        return caps(out);
    if (!strcmp(argv[1], "keyring"))
        return keyring(out);
    if (!strcmp(argv[1], "hold")) {
        dprintf(out, "%d\n", getpid());
        drain();
        return 0;
    }
    if (!strcmp(argv[1], "look") && argc > 3) {
        int fd = open(argv[3], O_RDONLY);
        dprintf(out, "%d", fd < 0 ? errno : 0);
        return 0;
    }
    return 2;
}
