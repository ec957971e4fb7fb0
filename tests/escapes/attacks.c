/* A program that tries to get out, or at somebody else. Its first argument is a verb. What it finds is written to descriptor 1: lines
 * of words as in tests/workload.c, percent-encoded, "ok" and facts or an errno number after what was tried.
 *
 * Most attacks are system calls in a row, and `call` makes whichever it is told. The other verbs are for what takes more: several
 * processes, memory of one's own, a loop. Linked statically, so that it runs where there are no files.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static char line[1 << 19];
static size_t used;

static void put(const void *bytes, size_t size)
{
    if (used + size < sizeof line)
        memcpy(line + used, bytes, size), used += size;
}

static void word(const void *bytes, size_t size)
{
    const unsigned char *at = bytes;
    char hex[4];
    if (used)
        put(" ", 1);
    for (size_t i = 0; i < size; i++) {
        int plain = at[i] > ' ' && at[i] < 127 && at[i] != '%';
        snprintf(hex, sizeof hex, plain ? "%c" : "%%%02x", at[i]);
        put(hex, plain ? 1 : 3);
    }
}

__attribute__((format(printf, 1, 2))) static void words(const char *format, ...)
{
    char text[8192];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *rest = text, *one; (one = strsep(&rest, " "));)
        word(one, strlen(one));
}

static void end(void)
{
    put("\n", 1);
    if (write(1, line, used) != (ssize_t)used)
        _exit(65);
    used = 0;
}

static void outcome(const char *what, long value)
{
    if (value == -1)
        words("%s %d", what, errno);
    else
        words("%s ok %ld", what, value);
}

_Noreturn static void stay(void)
{
    for (;;)
        pause();
}

static void await_end_of_input(void)
{
    char byte;
    while (read(0, &byte, 1) > 0 || errno == EINTR)
        errno = 0;
}

/* --- call NAME ARGUMENT... , NAME ARGUMENT... : one line each ------------------------------------------------------------------------
 * An argument is a number; s:TEXT; rN, what call N gave; x:HEX, bytes that the kernel may change, which are part of the line; or
 * o:SIZE, bytes that are 0, of which the line has those before the last zeros. */

#define CALLS(C) \
    C(acct) C(add_key) C(bind) C(bpf) C(chdir) C(chroot) C(clock_settime) C(clone) C(clone3) C(connect) C(delete_module) \
    C(execveat) C(fanotify_init) C(fchdir) C(fchmod) C(fchmodat) C(fchown) C(fchownat) C(fcntl) C(finit_module) C(flock) \
    C(fsetxattr) C(fsopen) C(getdents64) C(getpid) C(getppid) C(getsockopt) C(init_module) C(inotify_add_watch) \
    C(inotify_init1) C(io_uring_setup) C(ioctl) C(ioprio_set) C(kcmp) C(kexec_load) C(keyctl) C(kill) C(linkat) C(listen) \
    C(lseek) C(mkdirat) C(mknodat) C(mmap) C(mount) C(mount_setattr) C(move_mount) C(mq_open) C(mq_unlink) C(msgctl) C(msgget) \
    C(name_to_handle_at) C(newfstatat) C(open_by_handle_at) C(open_tree) C(openat) C(openat2) C(perf_event_open) C(personality) \
    C(pidfd_getfd) C(pidfd_open) C(pidfd_send_signal) C(pivot_root) C(prctl) C(prlimit64) C(process_vm_readv) C(ptrace) \
    C(quotactl) C(read) C(reboot) C(recvfrom) C(renameat2) C(rt_sigqueueinfo) C(sched_setaffinity) C(sched_setscheduler) \
    C(semctl) C(semget) C(sendto) C(setdomainname) C(setgid) C(setgroups) C(sethostname) C(setns) C(setpriority) C(setresuid) \
    C(setrlimit) C(setsid) C(settimeofday) C(setuid) C(setxattr) C(shmat) C(shmctl) C(shmget) C(socket) C(socketpair) C(statfs) \
    C(swapoff) C(swapon) C(symlinkat) C(syslog) C(tgkill) C(tkill) C(truncate) C(umount2) C(unlinkat) C(unshare) C(userfaultfd) \
    C(utimensat) \
    C(vhangup) C(write)
#define C(name) { #name, SYS_##name },
static const struct {
    const char *name;
    long number;
} calls[] = { CALLS(C) };
#undef C

static long number_of(const char *name)
{
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        if (!strcmp(calls[i].name, name))
            return calls[i].number;
    char *rest;
    long number = strtol(name, &rest, 0);
    if (*rest || rest == name)
        words("unknown call %s", name), end(), _exit(64);
    return number;
}

static long peek(pid_t pid, long address, char *into, size_t size)
{
    struct iovec here = { into, size }, there = { (void *)address, size };
    return syscall(SYS_process_vm_readv, pid, &here, 1, &there, 1, 0);
}

static long send_descriptor(int sock, int fd)
{
    char byte = 'd', control[CMSG_SPACE(sizeof fd)] = { 0 };
    struct iovec piece = { &byte, 1 };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    return sendmsg(sock, &message, MSG_NOSIGNAL);
}

static long receive_descriptor(int sock)
{
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec piece = { &byte, 1 };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    long got = recvmsg(sock, &message, 0);
    struct cmsghdr *head = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    int fd = -1;
    if (head)
        memcpy(&fd, CMSG_DATA(head), sizeof fd);
    else if (got >= 0)
        errno = ENOMSG;
    return fd;
}

static long results[64];

static size_t unhex(const char *text, char *out)
{
    size_t size = strlen(text) / 2;
    for (size_t i = 0; i < size; i++) {
        unsigned byte;
        sscanf(text + 2 * i, "%2x", &byte);
        out[i] = (char)byte;
    }
    return size;
}

static long argument(const char *text, char **buffer, size_t *size)
{
    *buffer = NULL;
    if (!strncmp(text, "s:", 2))
        return (long)(text + 2);
    if (!strncmp(text, "x:", 2)) {
        *buffer = calloc(1, strlen(text));
        *size = unhex(text + 2, *buffer);
        return (long)*buffer;
    }
    if (!strncmp(text, "o:", 2)) {
        *size = strtoul(text + 2, NULL, 0);
        return (long)(*buffer = calloc(1, *size + 1));
    }
    if (*text == 'r')
        return results[atoi(text + 1)];
    return (long)(*text == '-' ? (unsigned long)strtoll(text, NULL, 0) : strtoull(text, NULL, 0));
}

static int do_call(char **text)
{
    for (int count = 1; *text; count++) {
        const char *name = *text++;
        char *buffers[6] = { 0 };
        size_t sizes[6];
        int written[6] = { 0 };
        long a[6] = { 0 };
        for (int i = 0; *text && strcmp(*text, ","); i++, text++)
            a[i] = argument(*text, &buffers[i], &sizes[i]), written[i] = **text == 'o';
        long value;
        if (!strcmp(name, "send_descriptor"))
            value = send_descriptor((int)a[0], (int)a[1]);
        else if (!strcmp(name, "receive_descriptor"))
            value = receive_descriptor((int)a[0]);
        else if (!strcmp(name, "peek"))
            value = peek((pid_t)a[0], a[1], (char *)a[2], sizes[2]);
        else
            value = syscall(number_of(name), a[0], a[1], a[2], a[3], a[4], a[5]);
        if (!strcmp(name, "clone") && value == 0)
            _exit(0);
        outcome(name, results[count] = value);
        for (int i = 0; i < 6; i++)
            if (buffers[i]) {
                for (; written[i] && sizes[i] && !buffers[i][sizes[i] - 1]; sizes[i]--)
                    ;
                word(buffers[i], sizes[i]);
            }
        end();
        text += *text != NULL;
    }
    return 0;
}

/* --- others ------------------------------------------------------------------------------------------------------------------------ */

static int do_descriptors(char **arg)
{
    (void)arg;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    words("descriptors");
    for (int fd = 0; fd < (int)limit.rlim_cur && fd < 1 << 20; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            words("%d", fd);
    end();
    return 0;
}

static int do_ids(char **arg)
{
    (void)arg;
    words("ids %d %d %d %d", getuid(), geteuid(), getgid(), getegid());
    gid_t groups[64];
    int count = getgroups(64, groups);
    for (int i = 0; i < count; i++)
        words("%d", groups[i]);
    end();
    return 0;
}

/* Somebody to be attacked: tells where its secret is, and in the end whether it is still the same. */
static int do_target(char **arg)
{
    (void)arg;
    char *secret = strdup("top-secret");
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    words("target %d %ld", getpid(), (long)secret), end();
    await_end_of_input();
    words("unharmed %s", secret), end();
    return 0;
}

/* Every environment in /proc that has the words in it. */
static int do_environments(char **arg)
{
    DIR *proc = opendir("/proc");
    static char text[1 << 20];
    for (struct dirent *entry; (entry = readdir(proc));) {
        char path[300];
        snprintf(path, sizeof path, "/proc/%s/environ", entry->d_name);
        int fd = *entry->d_name >= '0' && *entry->d_name <= '9' ? open(path, O_RDONLY) : -1;
        ssize_t size = fd < 0 ? 0 : read(fd, text, sizeof text);
        if (size > 0 && memmem(text, (size_t)size, arg[0], strlen(arg[0])))
            words("found %s", path), end();
        close(fd);
    }
    words("looked"), end();
    return 0;
}

static int look(const char *path, const struct stat *at, int kind, struct FTW *where)
{
    (void)where;
    char place[4200];
    snprintf(place, sizeof place, "%s/%s", path, kind == FTW_D ? ".attack" : "");
    if (kind == FTW_F)
        place[strlen(path)] = '\0';
    if (kind != FTW_D && kind != FTW_F)
        return 0;
    int fd = kind == FTW_D ? open(place, O_WRONLY | O_CREAT | O_EXCL, 0600) : open(place, O_WRONLY | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return 0;
    close(fd);
    if (kind == FTW_D)
        unlink(place);
    words("writable %s", S_ISDIR(at->st_mode) ? "directory" : "file"), word(path, strlen(path)), end();
    return 0;
}

/* Everything below a directory that can be written, or in which something can be made. */
static int do_writable(char **arg)
{
    nftw(arg[0], look, 32, FTW_PHYS);
    words("looked"), end();
    return 0;
}

/* Whoever has started this program would execute other code the next time: a descriptor of the program's file is kept over exec
 * of another program, since a file that runs cannot be written, and then opened anew for writing. arg: a directory for the other. */
static int do_overwrite_self(char **arg)
{
    char other[4096], number[16];
    snprintf(other, sizeof other, "%s/other", arg[0]);
    int self = open("/proc/self/exe", O_RDONLY);
    int copy = open(other, O_WRONLY | O_CREAT | O_TRUNC, 0700);
    for (char block[65536]; copy >= 0;) {
        ssize_t got = read(self, block, sizeof block);
        if (got <= 0 || write(copy, block, (size_t)got) != got)
            break;
    }
    close(copy);
    snprintf(number, sizeof number, "%d", self);
    execl(other, "other", "reopen", number, (char *)NULL);
    outcome("exec", -1), end();
    return 1;
}

static int do_reopen(char **arg)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%s", arg[0]);
    int fd = open(path, O_WRONLY);
    outcome("reopen", fd);
    end();
    if (fd >= 0 && write(fd, "OVERWRITTEN", 11) != 11)
        return 1;
    return 0;
}

/* A session with the terminal as its controlling one, as a login shell has it, until the end of input. */
static int do_lead(char **arg)
{
    outcome("setsid", setsid()), end();
    outcome("open", open(arg[0], O_RDWR)), end();
    await_end_of_input();
    return 0;
}

/* Exchanges two names as fast as it can, until the end of input. */
static int do_swap(char **arg)
{
    struct pollfd input = { .fd = 0, .events = POLLIN };
    long rounds = 0;
    words("swapping"), end();
    for (; !(rounds % 16 == 0 && poll(&input, 1, 0)); rounds++)
        if (syscall(SYS_renameat2, AT_FDCWD, arg[0], AT_FDCWD, arg[1], 2 /* RENAME_EXCHANGE */) < 0)
            return 1;
    if (rounds % 2) /* as they were */
        syscall(SYS_renameat2, AT_FDCWD, arg[0], AT_FDCWD, arg[1], 2);
    words("swapped %ld", rounds), end();
    return 0;
}

static void deafen(void)
{
    for (int number = 1; number < 65; number++)
        signal(number, SIG_IGN);
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
}

/* What daemons do to survive those who started them: two forks, two sessions, no signal heard. arg: exit or stay. */
static int do_linger(char **arg)
{
    int ready[2];
    char byte;
    if (pipe(ready))
        return 1;
    if (fork() == 0) {
        setsid();
        if (fork() == 0) {
            setsid();
            deafen();
            words("lingering %d", getpid()), end();
            write(ready[1], "r", 1);
            stay();
        }
        _exit(0);
    }
    read(ready[0], &byte, 1);
    close(ready[0]);
    close(ready[1]);
    if (strcmp(arg[0], "stay") == 0) {
        deafen();
        stay();
    }
    return 0;
}

/* A brother instead of a child: it belongs to whoever has started this program. arg: the signal of its end, and whether it stays. */
static int do_brother(char **arg)
{
    long pid = syscall(SYS_clone, 0x8000 /* CLONE_PARENT */ | atol(arg[0]), 0, 0, 0, 0);
    if (pid == 0 && strcmp(arg[1], "stay") == 0) {
        deafen();
        stay();
    }
    if (pid == 0)
        _exit(0);
    outcome("brother", pid), end();
    return 0;
}

/* Processes that make processes, none of which listens to anything; so many that it is seen, not so many that the machine is in
 * danger when nothing stops it. arg: how many. */
static int do_bomb(char **arg)
{
    atomic_int *count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int most = atoi(arg[0]);
    atomic_store(count, 1);
    deafen();
    for (;;) {
        if (atomic_load(count) >= most)
            stay();
        pid_t pid = fork();
        if (pid == 0) {
            int number = atomic_fetch_add(count, 1) + 1;
            if (number == most)
                words("bomb %d", number), end();
        } else if (pid < 0) {
            words("fork %d", errno), end();
            break;
        }
    }
    stay();
    return 0;
}

/* Processes that are somebody else at every look: each makes one in its place, in a session of its own, and ends. Until the end of
 * their input. arg: how many at a time. */
static int do_chain(char **arg)
{
    int left[2], count = atoi(arg[0]), first = 1; /* not by its number: that comes round again */
    char byte = 0;
    if (pipe(left) < 0)
        return 1;
    deafen();
    signal(SIGCHLD, SIG_IGN);
    for (int i = count; i > 0 && first; i--) {
        first = fork() != 0;
        if (first)
            continue;
        setsid();
        if (write(left[1], &byte, 1) != 1) /* the one who tells of us waits until we are out of its reach */
            _exit(1);
        close(left[0]), close(left[1]);
        for (struct pollfd input = { .fd = 0, .events = POLLIN }; poll(&input, 1, 0) == 0; setsid(), setpgid(0, 0))
            if (fork() != 0)
                break;
    }
    if (!first)
        _exit(0);
    close(left[1]);
    while (count > 0 && read(left[0], &byte, 1) == 1)
        count--;
    close(left[0]);
    words("chain"), end();
    stay();
    return 0;
}

static int do_fill(char **arg)
{
    static char block[1 << 20];
    memset(block, 'x', sizeof block);
    int fd = open(arg[0], O_WRONLY | O_CREAT, 0600);
    long long size = 0, most = atoll(arg[1]);
    ssize_t got = fd;
    for (; got >= 0 && size < most; size += got > 0 ? got : 0)
        got = write(fd, block, sizeof block);
    words("fill %lld %d", size, got < 0 ? errno : 0), end();
    return 0;
}

static int do_many_files(char **arg)
{
    int most = atoi(arg[1]), made = 0, fd = 0;
    for (; made < most && fd >= 0; made += fd >= 0) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%d", arg[0], made);
        fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
        if (fd >= 0)
            close(fd); /* or errno would tell of that */
    }
    words("made %d %d", made, fd < 0 ? errno : 0), end();
    return 0;
}

static int do_memory(char **arg)
{
    size_t most = (size_t)atoll(arg[0]), step = 1 << 20, size = 0;
    for (char *at; size < most; size += step, memset(at, 'x', step))
        if ((at = mmap(NULL, step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) == MAP_FAILED)
            break;
    words("memory %zu", size), end();
    return 0;
}

static int do_crash(char **arg)
{
    (void)arg;
    *(volatile int *)8 = 1;
    return 0;
}

/* Every system call from one number to another with arguments that mean nothing, each in a process of its own. What is left out
 * comes after: numbers. N ok VALUE, N ERRNO, N signal NUMBER or N exit STATUS. */
static int do_sweep(char **arg)
{
    struct found {
        int done, error;
        long value;
    } *found = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int first = atoi(arg[0]), last = atoi(arg[1]);
    for (int number = first; number <= last; number++) {
        int skipped = 0, status;
        for (char **skip = arg + 2; *skip; skip++)
            skipped |= atoi(*skip) == number;
        if (skipped)
            continue;
        found->done = 0;
        pid_t pid = fork();
        if (pid == 0) {
            struct itimerval soon = { .it_value = { .tv_usec = 100000 } }; /* for those that wait */
            pid_t own = getpid();
            setitimer(ITIMER_REAL, &soon, NULL);
            errno = 0;
            long value = syscall(number, -1L, -1L, -1L, -1L, -1L, -1L);
            if (getpid() != own)
                _exit(0);
            *found = (struct found){ 1, errno, value };
            if (number == SYS_msgget && value >= 0)
                syscall(SYS_msgctl, value, 0 /* IPC_RMID */, 0);
            syscall(SYS_exit_group, 0);
        }
        waitpid(pid, &status, 0);
        if (found->done && found->value == -1 && found->error)
            words("%d %d", number, found->error);
        else if (found->done)
            words("%d ok %ld", number, found->value);
        else if (WIFSIGNALED(status))
            words("%d signal %d", number, WTERMSIG(status));
        else
            words("%d exit %d", number, WEXITSTATUS(status));
        end();
    }
    return 0;
}

/* getpid of the 32-bit machine. */
static int do_int80(char **arg)
{
    (void)arg;
#ifdef __x86_64__
    long value = 20;
    __asm__ volatile("int $0x80" : "+a"(value) : : "memory", "r8", "r9", "r10", "r11");
    words("int80 ok %ld", value), end();
#endif
    return 0;
}

static const struct {
    const char *name;
    int arguments;
    int (*run)(char **arg);
} verbs[] = {
    { "call", 1, do_call }, { "descriptors", 0, do_descriptors }, { "ids", 0, do_ids }, { "target", 0, do_target },
    { "environments", 1, do_environments }, { "writable", 1, do_writable }, { "overwrite-self", 1, do_overwrite_self },
    { "reopen", 1, do_reopen }, { "lead", 1, do_lead }, { "swap", 2, do_swap }, { "linger", 1, do_linger }, { "brother", 2, do_brother }, { "bomb", 1, do_bomb },
    { "chain", 1, do_chain },
    { "fill", 2, do_fill }, { "many-files", 2, do_many_files }, { "memory", 1, do_memory }, { "crash", 0, do_crash },
    { "sweep", 2, do_sweep }, { "int80", 0, do_int80 },
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof verbs / sizeof *verbs; i++)
        if (!strcmp(verbs[i].name, argv[1]) && argc - 2 >= verbs[i].arguments)
            return verbs[i].run(argv + 2);
    return 64;
}
