/* A program for tests to launch. Its arguments are verbs, carried out from left to right; what each one finds is a line of
 * words on the report descriptor (1, or what `to` names): the verb, its argument, then "ok" and facts, or an errno number.
 *
 * Words are percent-encoded, so that any byte survives. When the environment has WORKLOAD, the verbs come from there
 * instead (separated by blanks), for tests in which the arguments themselves are the subject.
 * Needs nothing but libc: no /proc, no shell, no locale, so that it runs in a world that has no files at all.
 * Exit status: that of `exit`, 0 when the verbs run out, 64 for a verb it does not know, 65 for a lost report.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static int g_report = 1, g_argc, g_listener = -1;
static char **g_argv, g_line[1 << 18];
static size_t g_used;

static void put(const void *bytes, size_t size)
{
    if (g_used + size <= sizeof g_line)
        memcpy(g_line + g_used, bytes, size), g_used += size;
}

static void word(const void *bytes, size_t size)
{
    const unsigned char *at = bytes;
    put(" ", 1);
    for (size_t i = 0; i < size; i++)
        if (at[i] > 0x20 && at[i] < 0x7f && at[i] != '%')
            put(at + i, 1);
        else {
            char hex[4];
            snprintf(hex, sizeof hex, "%%%02x", at[i]);
            put(hex, 3);
        }
}

static void text(const char *value) { word(value, strlen(value)); }

__attribute__((format(printf, 1, 2))) static void fact(const char *format, ...)
{
    char buffer[256];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(buffer, sizeof buffer, format, args);
    va_end(args);
    put(" ", 1);
    put(buffer, (size_t)size);
}

static void begin(const char *verb)
{
    g_used = 0;
    put(verb, strlen(verb));
}

/* One write per line: processes of one tree share the report, and lines under PIPE_BUF must not mix. */
static void end(void)
{
    put("\n", 1);
    for (size_t at = 0; at < g_used;) {
        ssize_t n = write(g_report, g_line + at, g_used - at);
        if (n < 0)
            _exit(65);
        at += (size_t)n;
    }
}

static void result(const char *verb, const char *arg, long value) /* negative: failed, errno says why */
{
    int error = errno;
    begin(verb);
    if (arg)
        text(arg);
    if (value < 0)
        fact("%d", error);
    else
        fact("ok"), fact("%ld", value);
    end();
}

/* --- what it was started with -------------------------------------------------------------------------------------- */

static void do_to(char **arg) { g_report = atoi(arg[0]); }

static void do_argv(char **arg)
{
    (void)arg;
    begin("argv");
    for (int i = 0; i < g_argc; i++)
        text(g_argv[i]);
    end();
}

static void do_env(char **arg)
{
    (void)arg;
    int count = 0;
    for (char **at = environ; at && *at; at++, count++) {
        begin("env");
        text(*at);
        end();
    }
    begin("envc");
    fact("%d", environ ? count : -1);
    end();
}

static const char *kind_of(mode_t mode)
{
    return S_ISREG(mode) ? "file" : S_ISDIR(mode) ? "dir" : S_ISFIFO(mode) ? "pipe" : S_ISSOCK(mode) ? "socket"
        : S_ISCHR(mode) ? "char" : S_ISBLK(mode) ? "block" : S_ISLNK(mode) ? "link" : "anon";
}

/* fd NUMBER KIND DEV INO RDEV FLAGS CLOEXEC */
static void do_fds(char **arg)
{
    (void)arg;
    for (int fd = 0; fd < 4096; fd++) {
        int descriptor_flags = fcntl(fd, F_GETFD);
        struct stat st;
        if (descriptor_flags < 0 || fstat(fd, &st) < 0)
            continue;
        begin("fd");
        fact("%d", fd);
        fact("%s", kind_of(st.st_mode));
        fact("%ju", (uintmax_t)st.st_dev);
        fact("%ju", (uintmax_t)st.st_ino);
        fact("%ju", (uintmax_t)st.st_rdev);
        fact("%d", fcntl(fd, F_GETFL));
        fact("%d", descriptor_flags & FD_CLOEXEC);
        end();
    }
}

static void do_cwd(char **arg)
{
    (void)arg;
    char path[4096];
    const char *found = getcwd(path, sizeof path);
    int error = errno;
    begin("cwd");
    if (found)
        fact("ok"), text(path);
    else
        fact("%d", error);
    end();
}

static void do_umask(char **arg)
{
    (void)arg;
    begin("umask");
    fact("%03o", umask(0));
    end();
}

static void do_signals(char **arg)
{
    (void)arg;
    sigset_t mask;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    for (int signal = 1; signal <= 64; signal++) {
        struct sigaction action;
        int known = sigaction(signal, NULL, &action) == 0;
        if (known && action.sa_handler == SIG_DFL && sigismember(&mask, signal) != 1)
            continue;
        if (!known && sigismember(&mask, signal) != 1)
            continue;
        begin("signal");
        fact("%d", signal);
        fact("%s", known && action.sa_handler == SIG_IGN ? "ignored" : known && action.sa_handler != SIG_DFL ? "caught" : "default");
        fact("%s", sigismember(&mask, signal) == 1 ? "blocked" : "open");
        end();
    }
    begin("signals");
    fact("ok");
    end();
}

static void do_ids(char **arg)
{
    (void)arg;
    uid_t u[3];
    gid_t g[3];
    getresuid(&u[0], &u[1], &u[2]);
    getresgid(&g[0], &g[1], &g[2]);
    begin("ids");
    fact("%u %u %u %u %u %u %d", u[0], u[1], u[2], g[0], g[1], g[2], getgroups(0, NULL));
    end();
}

/* caps EFFECTIVE PERMITTED INHERITABLE AMBIENT NO_NEW_PRIVS */
static void do_caps(char **arg)
{
    (void)arg;
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    unsigned long long ambient = 0;
    if (syscall(SYS_capget, &head, data) < 0)
        return result("caps", NULL, -1);
    for (int cap = 0; cap < 64; cap++)
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) == 1)
            ambient |= 1ull << cap;
    begin("caps");
    fact("%llx", (unsigned long long)data[1].effective << 32 | data[0].effective);
    fact("%llx", (unsigned long long)data[1].permitted << 32 | data[0].permitted);
    fact("%llx", (unsigned long long)data[1].inheritable << 32 | data[0].inheritable);
    fact("%llx", ambient);
    fact("%d", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    end();
}

static void do_pids(char **arg)
{
    (void)arg;
    begin("pids");
    fact("%d %d %d %d", getpid(), getppid(), getpgid(0), getsid(0));
    end();
}

static void do_comm(char **arg)
{
    (void)arg;
    char name[16] = "";
    prctl(PR_GET_NAME, name);
    begin("comm");
    text(name);
    end();
}

static void do_hostname(char **arg)
{
    (void)arg;
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    begin("hostname");
    text(name);
    end();
}

static void do_nofile(char **arg)
{
    (void)arg;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    begin("nofile");
    fact("%ju %ju", (uintmax_t)limit.rlim_cur, (uintmax_t)limit.rlim_max);
    end();
}

/* --- descriptors --------------------------------------------------------------------------------------------------- */

static void do_read(char **arg)
{
    static char data[1 << 16];
    size_t size = 0;
    ssize_t n = 0;
    while (size < sizeof data && (n = read(atoi(arg[0]), data + size, sizeof data - size)) > 0)
        size += (size_t)n;
    if (n < 0)
        return result("read", arg[0], -1);
    begin("read");
    text(arg[0]);
    fact("ok");
    word(data, size);
    end();
}

static void do_write(char **arg) { result("write", arg[0], write(atoi(arg[0]), arg[1], strlen(arg[1]))); }

static void do_lines(char **arg) /* lines COUNT: numbered, the odd ones as errors; no report */
{
    for (int i = 0, count = atoi(arg[0]); i < count; i++)
        dprintf(1 + i % 2, "line %d\n", i);
}

static void do_open(char **arg) { result("open", arg[0], open(arg[0], O_RDONLY)); } /* stays open, also over exec */

static void drain(int fd)
{
    char data[4096];
    while (read(fd, data, sizeof data) > 0)
        ;
}

static void do_drain(char **arg) { drain(atoi(arg[0])); }

static void do_tiocsti(char **arg) { result("tiocsti", arg[0], ioctl(atoi(arg[0]), TIOCSTI, "x")); }

/* --- files --------------------------------------------------------------------------------------------------------- */

/* stat PATH ok KIND MODE UID GID DEV INO */
static void do_stat(char **arg)
{
    struct stat st;
    if (lstat(arg[0], &st) < 0)
        return result("stat", arg[0], -1);
    begin("stat");
    text(arg[0]);
    fact("ok %s %04o %u %u", kind_of(st.st_mode), st.st_mode & 07777, st.st_uid, st.st_gid);
    fact("%ju %ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    end();
}

static void do_list(char **arg)
{
    DIR *dir = opendir(arg[0]);
    if (!dir)
        return result("list", arg[0], -1);
    begin("list");
    text(arg[0]);
    fact("ok");
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            text(entry->d_name);
    closedir(dir);
    end();
}

static void do_cat(char **arg)
{
    static char data[1 << 16];
    int fd = open(arg[0], O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, data, sizeof data);
    if (n < 0) {
        result("cat", arg[0], -1);
    } else {
        begin("cat");
        text(arg[0]);
        fact("ok");
        word(data, (size_t)n);
        end();
    }
    if (fd >= 0)
        close(fd);
}

static void opened(const char *verb, const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0666);
    result(verb, path, fd < 0 ? -1 : 0);
    if (fd >= 0)
        close(fd);
}

static void do_writable(char **arg) { opened("writable", arg[0], O_WRONLY); }
static void do_create(char **arg) { opened("create", arg[0], O_WRONLY | O_CREAT | O_EXCL); }

static void do_append(char **arg)
{
    int fd = open(arg[0], O_WRONLY | O_APPEND | O_CLOEXEC);
    result("append", arg[0], fd < 0 ? -1 : write(fd, arg[1], strlen(arg[1])));
    if (fd >= 0)
        close(fd);
}

static void do_fill(char **arg) /* fill PATH: write to a new file until there is no room; says how many bytes went in */
{
    static char block[1 << 16];
    int fd = open(arg[0], O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    long total = 0, n = 0;
    while (fd >= 0 && total < 1l << 30 && (n = write(fd, block, sizeof block)) > 0)
        total += n;
    result("fill", arg[0], fd < 0 ? -1 : total);
    if (fd >= 0)
        close(fd);
}

static void do_mkdir(char **arg) { result("mkdir", arg[0], mkdir(arg[0], 0777)); }
static void do_unlink(char **arg) { result("unlink", arg[0], unlink(arg[0])); }
static void do_chmod(char **arg) { result("chmod", arg[0], chmod(arg[0], 0777)); }
static void do_chdir(char **arg) { result("chdir", arg[0], chdir(arg[0])); }
static void do_chroot(char **arg) { result("chroot", arg[0], chroot(arg[0])); }
static void do_mount(char **arg) { result("mount", arg[0], mount("none", arg[0], "tmpfs", 0, NULL)); }
static void do_umount(char **arg) { result("umount", arg[0], umount2(arg[0], MNT_DETACH)); }
static void do_remount(char **arg) { result("remount", arg[0], mount(NULL, arg[0], NULL, MS_REMOUNT | MS_BIND, NULL)); }

/* The way round a read-only mount that needs no privilege: be root of one's own user namespace first. */
static void do_unshare_remount(char **arg)
{
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
        return result("unshare-remount", arg[0], -1);
    result("unshare-remount", arg[0], mount(NULL, arg[0], NULL, MS_REMOUNT | MS_BIND, NULL));
}

static void do_sethostname(char **arg) { result("sethostname", arg[0], sethostname(arg[0], strlen(arg[0]))); }

/* --- network ------------------------------------------------------------------------------------------------------- */

static void do_ifaces(char **arg)
{
    (void)arg;
    struct if_nameindex *list = if_nameindex();
    int probe = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (!list || probe < 0)
        return result("ifaces", NULL, -1);
    for (struct if_nameindex *at = list; at->if_index; at++) {
        struct ifreq request = {0};
        strncpy(request.ifr_name, at->if_name, IFNAMSIZ - 1);
        int flags = ioctl(probe, SIOCGIFFLAGS, &request) < 0 ? 0 : request.ifr_flags;
        begin("iface");
        text(at->if_name);
        fact("%s", flags & IFF_UP ? "up" : "down");
        end();
    }
    if_freenameindex(list);
    close(probe);
    result("ifaces", NULL, 0);
}

static struct sockaddr_in loopback(int port)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static void do_connect(char **arg)
{
    struct sockaddr_in to = loopback(atoi(arg[0]));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    result("connect", arg[0], fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, sizeof to));
    if (fd >= 0)
        close(fd);
}

static void do_listen(char **arg) /* listen: says the port it was given on the loopback */
{
    (void)arg;
    struct sockaddr_in at = loopback(0);
    socklen_t size = sizeof at;
    g_listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int failed = g_listener < 0 || bind(g_listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(g_listener, 8) < 0
        || getsockname(g_listener, (struct sockaddr *)&at, &size) < 0;
    result("listen", NULL, failed ? -1 : ntohs(at.sin_port));
}

static void do_accept(char **arg)
{
    (void)arg;
    int fd = accept(g_listener, NULL, NULL);
    result("accept", NULL, fd < 0 ? -1 : 0);
    close(fd);
}

static void connect_unix(const char *verb, const char *name, int abstract)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path + abstract, name, sizeof to.sun_path - 2);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)abstract + strlen(name) + !abstract);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    result(verb, name, fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, size));
    if (fd >= 0)
        close(fd);
}

static void do_connect_unix(char **arg) { connect_unix("connect-unix", arg[0], 0); }
static void do_connect_abstract(char **arg) { connect_unix("connect-abstract", arg[0], 1); }

/* --- processes ----------------------------------------------------------------------------------------------------- */

static void do_exit(char **arg) { _exit(atoi(arg[0])); }

static void do_kill(char **arg)
{
    kill(getpid(), atoi(arg[0]));
    result("kill", arg[0], 0);
}

static void do_probe(char **arg) { result("probe", arg[0], kill(atoi(arg[0]), 0)); }

static void do_pause(char **arg)
{
    (void)arg;
    for (;;)
        pause();
}

static void do_vfork(char **arg) /* waits, as vfork() does, for a child that neither ends nor executes anything */
{
    (void)arg;
    if (syscall(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL, NULL, NULL, NULL) == 0)
        for (;;)
            syscall(SYS_kill, syscall(SYS_getpid), SIGSTOP);
}

static volatile sig_atomic_t g_caught;
static void note(int signal) { g_caught = signal; }

static void do_await(char **arg) /* await SIGNAL: says that it is waiting, then that the signal came */
{
    struct sigaction action = {.sa_handler = note};
    sigset_t one, before;
    sigemptyset(&one);
    sigaddset(&one, atoi(arg[0]));
    sigprocmask(SIG_BLOCK, &one, &before);
    sigaction(atoi(arg[0]), &action, NULL);
    begin("awaiting");
    end();
    while (!g_caught)
        sigsuspend(&before);
    result("await", arg[0], g_caught);
}

static void do_heed(char **arg) /* heed SIGNAL: says so each time that one came, for ever */
{
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, atoi(arg[0]));
    sigprocmask(SIG_BLOCK, &one, NULL);
    begin("heeding");
    end();
    for (;;)
        result("heed", arg[0], sigwaitinfo(&one, NULL));
}

static void do_sigpipe(char **arg) /* dies of SIGPIPE unless that is ignored */
{
    (void)arg;
    int ends[2];
    if (pipe(ends) < 0)
        return result("sigpipe", NULL, -1);
    close(ends[0]);
    result("sigpipe", NULL, write(ends[1], "x", 1));
}

static void do_fork(char **arg)
{
    (void)arg;
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    result("fork", NULL, pid < 0 ? -1 : 0);
    if (pid > 0)
        waitpid(pid, NULL, 0);
}

static void *nothing(void *arg) { return arg; }

static void do_thread(char **arg)
{
    (void)arg;
    pthread_t thread;
    errno = pthread_create(&thread, NULL, nothing, NULL);
    result("thread", NULL, errno ? -1 : pthread_join(thread, NULL));
}

static void *drains(void *fd)
{
    char buffer[64];
    while (read(atoi(fd), buffer, sizeof buffer) > 0)
        ;
    exit(7);
}

static void do_leave_to_thread(char **arg) /* leave-to-thread FD: the main thread ends, another exits with 7 when FD is at its end */
{
    pthread_t thread;
    if ((errno = pthread_create(&thread, NULL, drains, arg[0])))
        return result("leave-to-thread", arg[0], -1);
    pthread_exit(NULL);
}

static void *opens(void *path)
{
    open(path, O_RDONLY);
    return NULL;
}

static void do_open_twice(char **arg) /* open-twice PATH: a child does, and a thread; the main thread pauses */
{
    pthread_t thread;
    pid_t pid = fork();
    if (pid == 0) {
        opens(arg[0]);
        _exit(0);
    }
    if (pid < 0 || (errno = pthread_create(&thread, NULL, opens, arg[0])))
        return result("open-twice", arg[0], -1);
    pause();
}

static void do_children(char **arg) /* children COUNT FD: that many, each alive until FD is at its end */
{
    for (int i = atoi(arg[0]); i > 0; i--) {
        pid_t pid = fork();
        if (pid < 0)
            return result("children", arg[0], -1);
        if (pid == 0) {
            drain(atoi(arg[1]));
            _exit(0);
        }
    }
    result("children", arg[0], 0);
}

static void do_reap(char **arg) /* says how many children it waited for */
{
    (void)arg;
    int count = 0;
    while (wait(NULL) > 0)
        count++;
    result("reap", NULL, count);
}

static void do_daemon(char **arg) /* daemon FD: a double-forked process of its own session, until FD is at its end */
{
    pid_t pid = fork();
    if (pid < 0)
        return result("daemon", arg[0], -1);
    if (pid > 0) {
        waitpid(pid, NULL, 0);
        return;
    }
    setsid();
    if (fork() != 0)
        _exit(0);
    result("daemon", arg[0], 0);
    drain(atoi(arg[0]));
    result("daemon-ends", arg[0], 0);
    _exit(0);
}

/* bomb TOTAL: every process forks without end until TOTAL have been made, then all of them wait to be killed; each
 * leaves its session and ignores what can be ignored. The counter is a fuse for the machine, not part of the test. */
static void do_bomb(char **arg)
{
    atomic_int *made = mmap(NULL, sizeof *made, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED)
        return result("bomb", arg[0], -1);
    result("bomb", arg[0], 0);
    for (int total = atoi(arg[0]); atomic_fetch_add(made, 1) < total;)
        if (fork() == 0) {
            setsid();
            for (int signal = 1; signal < 32; signal++)
                sigaction(signal, &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
        }
    for (;;)
        pause();
}

static void do_alloc(char **arg)
{
    size_t size = (size_t)atol(arg[0]);
    char *memory = malloc(size);
    if (memory)
        memset(memory, 1, size);
    result("alloc", arg[0], memory ? (long)memory[size - 1] : -1);
}

static void do_exec(char **arg) /* exec PROGRAM VERB...: takes every word that is left */
{
    char name[] = "workload", *path = arg[0];
    arg[0] = name;
    execve(path, arg, environ);
    result("exec", path, -1);
    _exit(66);
}

static const struct verb {
    const char *name;
    int args;
    void (*run)(char **);
} verbs[] = {
    {"to", 1, do_to}, {"argv", 0, do_argv}, {"env", 0, do_env}, {"fds", 0, do_fds}, {"cwd", 0, do_cwd}, {"umask", 0, do_umask},
    {"signals", 0, do_signals}, {"ids", 0, do_ids}, {"caps", 0, do_caps}, {"pids", 0, do_pids}, {"comm", 0, do_comm},
    {"hostname", 0, do_hostname}, {"nofile", 0, do_nofile}, {"read", 1, do_read}, {"write", 2, do_write}, {"lines", 1, do_lines},
    {"open", 1, do_open}, {"drain", 1, do_drain}, {"tiocsti", 1, do_tiocsti}, {"stat", 1, do_stat}, {"list", 1, do_list}, {"cat", 1, do_cat},
    {"writable", 1, do_writable}, {"create", 1, do_create}, {"append", 2, do_append}, {"fill", 1, do_fill}, {"mkdir", 1, do_mkdir},
    {"unlink", 1, do_unlink}, {"chmod", 1, do_chmod}, {"chdir", 1, do_chdir}, {"chroot", 1, do_chroot}, {"mount", 1, do_mount},
    {"umount", 1, do_umount}, {"remount", 1, do_remount}, {"unshare-remount", 1, do_unshare_remount},
    {"sethostname", 1, do_sethostname}, {"ifaces", 0, do_ifaces}, {"connect", 1, do_connect}, {"listen", 0, do_listen},
    {"accept", 0, do_accept}, {"connect-unix", 1, do_connect_unix}, {"connect-abstract", 1, do_connect_abstract},
    {"exit", 1, do_exit}, {"kill", 1, do_kill}, {"probe", 1, do_probe}, {"pause", 0, do_pause}, {"await", 1, do_await},
    {"heed", 1, do_heed}, {"vfork", 0, do_vfork},
    {"sigpipe", 0, do_sigpipe}, {"fork", 0, do_fork}, {"thread", 0, do_thread}, {"open-twice", 1, do_open_twice}, {"leave-to-thread", 1, do_leave_to_thread}, {"children", 2, do_children}, {"reap", 0, do_reap},
    {"daemon", 1, do_daemon}, {"bomb", 1, do_bomb}, {"alloc", 1, do_alloc}, {"exec", 1, do_exec},
};

static void run(char **words)
{
    while (*words) {
        const struct verb *verb = NULL;
        for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
            if (!strcmp(verbs[i].name, *words))
                verb = &verbs[i];
        if (!verb)
            _exit(64);
        for (int i = 1; i <= verb->args; i++)
            if (!words[i])
                _exit(64);
        verb->run(words + 1);
        words += 1 + verb->args;
    }
}

int main(int argc, char **argv)
{
    g_argc = argc;
    g_argv = argv;
    const char *script = getenv("WORKLOAD");
    if (!script) {
        if (argc > 1)
            run(argv + 1);
        return 0;
    }
    static char copy[8192], *words[1024];
    size_t count = 0;
    strncpy(copy, script, sizeof copy - 1);
    for (char *at = strtok(copy, " "); at && count < 1023; at = strtok(NULL, " "))
        words[count++] = at;
    run(words);
    return 0;
}
