/* See check.h. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SKIPPED 77
#define FD_LIMIT 4096
#define TEST_SECONDS 30

volatile int sanitizer_complained;

/* Called by the sanitizers' runtimes at each report, in whichever of the processes that share this memory it happens. */
void __asan_on_error(void);
void __asan_on_error(void) { sanitizer_complained = 1; }
void __ubsan_on_report(void);
void __ubsan_on_report(void) { sanitizer_complained = 1; }

void check_failed(const char *file, int line, const char *claim, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    dprintf(2, "%s:%d: not so: %s\n    %s\n", file, line, claim, text);
    _exit(1);
}

void check_outcome(const char *file, int line, struct result result, int stage, int index, int err)
{
    const struct outcome *out = &result.out;
    if (result.refused || out->report.stage != stage || out->report.index != index || out->report.err != err || out->pid != -1 || out->pidfd != -1)
        check_failed(file, line, "the outcome is as expected",
                     "refused %d, stage %d, index %d, errno %d, pid %d, pidfd %d; expected stage %d, index %d, errno %d", result.refused,
                     out->report.stage, out->report.index, out->report.err, out->pid, out->pidfd, stage, index, err);
}

void skip(const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    dprintf(1, "skipped: %s; ", text);
    _exit(SKIPPED);
}

int fds_open(uint8_t *open_fds, int limit)
{
    int count = 0;
    for (int i = 0; i < limit; i++) { /* not poll(): it takes those that only name a place for closed */
        int is_open = fcntl(i, F_GETFD) >= 0;
        count += is_open;
        if (open_fds)
            open_fds[i] = (uint8_t)is_open;
    }
    return count;
}

int has_children(void)
{
    siginfo_t info;
    return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 || errno != ECHILD;
}

static void run_one(const struct test *test)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0); /* so that all of it can be killed */
    close_range(3, ~0u, 0); /* whatever we were started with would be in the way of the numbers that tests use */
    int before = fds_open(NULL, FD_LIMIT);
    test->run();
    CHECK(!sanitizer_complained, "a sanitizer complained in a child");
    CHECK(!has_children(), "a child is left");
    int after = fds_open(NULL, FD_LIMIT);
    CHECK(after == before, "%d descriptors before, %d after", before, after);
    _exit(0);
}

int run_tests(const struct test *tests, size_t count, int argc, char **argv)
{
    int failed = 0;
    for (size_t i = 0; i < count; i++) {
        if (argc > 1 && !strstr(tests[i].claim, argv[1]))
            continue;
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0)
            run_one(&tests[i]);
        setpgid(pid, pid);
        int status = 0, pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
        if (poll(&(struct pollfd){ .fd = pidfd, .events = POLLIN }, 1, TEST_SECONDS * 1000) == 0) {
            printf("still running after %d s; ", TEST_SECONDS);
            kill(-pid, SIGKILL); /* not by alarm(): a launch blocks all signals, and its child does not inherit it */
        }
        close(pidfd);
        waitpid(pid, &status, 0);
        const char *word = WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "ok" : "FAILED";
        if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED)
            word = "not shown";
        if (WIFSIGNALED(status))
            printf("ended by signal %d; ", WTERMSIG(status));
        printf("%s: %s\n", word, tests[i].claim);
        failed += word[0] == 'F';
    }
    return failed != 0;
}

int next_fd(void)
{
    int fd = fcntl(0, F_DUPFD_CLOEXEC, 0);
    close(fd);
    return fd;
}

const char *peer_path(void) { return getenv("PEER") ? getenv("PEER") : "build/peer"; }
const char *init_path(void) { return getenv("SHOAL_INIT") ? getenv("SHOAL_INIT") : "build/shoal-init"; }

int open_file(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0, "%s: errno %d", path, errno);
    return fd;
}

int peer_folder(void)
{
    char folder[4096];
    snprintf(folder, sizeof folder, "%s", peer_path());
    char *slash = strrchr(folder, '/');
    CHECK(slash, "%s is in no folder", folder);
    *slash = '\0';
    return open_file(folder);
}

void make_pipe(int fds[2]) { CHECK(pipe2(fds, O_CLOEXEC) == 0, "errno %d", errno); }
void make_sockets(int type, int fds[2]) { CHECK(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) == 0, "errno %d", errno); }

int wait_for(struct outcome out)
{
    siginfo_t info = { 0 };
    CHECK(out.report.stage == STAGE_EXEC && out.report.err == 0 && out.pid > 0, "not running: stage %d, index %d, errno %d",
          out.report.stage, out.report.index, out.report.err);
    CHECK(waitid((idtype_t)3 /* P_PIDFD */, (id_t)out.pidfd, &info, WEXITED | __WALL) == 0, "errno %d", errno);
    CHECK(info.si_pid == out.pid, "pid %d, but the pidfd says %d", out.pid, info.si_pid);
    close(out.pidfd);
    return info.si_code == CLD_EXITED ? info.si_status : -info.si_status;
}

int ended(struct outcome out)
{
    struct pollfd watch = { .fd = out.pidfd, .events = POLLIN };
    CHECK(poll(&watch, 1, PATIENCE_MS) == 1, "pid %d is still running", out.pid);
    return wait_for(out);
}

size_t read_all(int fd, char *buffer, size_t size)
{
    size_t used = 0;
    for (ssize_t got; used < size - 1 && (got = read(fd, buffer + used, size - 1 - used)) > 0;)
        used += (size_t)got;
    buffer[used] = '\0';
    close(fd);
    return used;
}

struct seen seen_at(int fd)
{
    struct stat st;
    CHECK(fstat(fd, &st) == 0, "descriptor %d: errno %d", fd, errno);
    return (struct seen){ st.st_dev, st.st_ino, 1 };
}

void file_at(int fd)
{
    int made = (int)syscall(SYS_memfd_create, "map", 1u);
    CHECK(made >= 0, "memfd_create: errno %d", errno);
    if (made != fd) {
        CHECK(dup3(made, fd, O_CLOEXEC) == fd, "dup3 to %d: errno %d", fd, errno);
        close(made);
    }
}

void check_seen(int from, const struct seen *wanted)
{
    static struct seen seen[SEEN_MAX];
    static char text[1 << 17];
    memset(seen, 0, sizeof seen);
    read_all(from, text, sizeof text);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        int fd = 0, cloexec = 0;
        struct seen one = { .open = 1 };
        CHECK(sscanf(line, "%d %llu %llu %d", &fd, &one.dev, &one.ino, &cloexec) == 4, "%s", line);
        CHECK(fd < SEEN_MAX, "descriptor %d is open in the program", fd);
        CHECK(cloexec == 0, "descriptor %d would be closed by another exec", fd);
        seen[fd] = one;
    }
    for (int fd = 0; fd < SEEN_MAX; fd++) {
        CHECK(seen[fd].open == wanted[fd].open, "descriptor %d: open %d, expected %d", fd, seen[fd].open, wanted[fd].open);
        CHECK(!seen[fd].open || (seen[fd].dev == wanted[fd].dev && seen[fd].ino == wanted[fd].ino), "descriptor %d is another file", fd);
    }
}

void limit_fds(int limit)
{
    struct rlimit both = { (rlim_t)limit, (rlim_t)limit };
    if (setrlimit(RLIMIT_NOFILE, &both))
        skip("the limit of descriptors cannot be %d here: errno %d", limit, errno);
}

void become_ordinary(void)
{
    if (getuid())
        return;
    if (setgroups(0, NULL) || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
        skip("root cannot become an ordinary user here: errno %d", errno);
    prctl(PR_SET_DUMPABLE, 1); /* or /proc/self would still be root's */
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* which the change took back */
}

static int world_works(uint64_t world)
{
    struct pack *pack = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT);
    pack->head.clone_flags = world;
    pack_id_maps(pack, world);
    op_add(pack, OP_PRIVATE_MOUNTS);
    struct result result = run_pack(pack, NULL, NULL);
    pack_free(pack);
    return result.out.report.stage == STAGE_EXEC;
}

uint64_t mount_world(void)
{
    static const uint64_t worlds[] = { CLONE_NEWUSER | CLONE_NEWNS, CLONE_NEWNS };
    for (size_t i = 0; i < sizeof worlds / sizeof *worlds; i++)
        if (world_works(worlds[i]))
            return worlds[i];
    skip("neither a user namespace nor, without one, a mount namespace may be made here");
}

void pack_id_maps(struct pack *pack, uint64_t world)
{
    if (!(world & CLONE_NEWUSER))
        return;
    char map[2][64];
    snprintf(map[0], sizeof map[0], "0 %d 1", (int)geteuid());
    snprintf(map[1], sizeof map[1], "0 %d 1", (int)getegid());
    const char *writes[][2] = { { "/proc/self/setgroups", "deny" }, { "/proc/self/uid_map", map[0] }, { "/proc/self/gid_map", map[1] } };
    for (int i = 0; i < 3; i++) {
        uint32_t path = pack_text(pack, writes[i][0]), text = pack_text(pack, writes[i][1]);
        struct op *op = op_add(pack, OP_WRITE);
        op->str = path;
        op->str2 = text;
    }
}

int cgroup_new(char *path, size_t size)
{
    char line[4096], own[1024] = "", mount[1024] = "";
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "0::%1023[^\n]", own) == 1)
            break;
    if (file)
        fclose(file);
    file = fopen("/proc/self/mounts", "re");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "%*s %1023s cgroup2 ", mount) == 1 && strstr(line, " cgroup2 "))
            break;
        else
            mount[0] = '\0';
    if (file)
        fclose(file);
    if (!own[0] || !mount[0])
        return -1;
    snprintf(path, size, "%s%s/shoal-native-%d", mount, strcmp(own, "/") ? own : "", getpid());
    return mkdir(path, 0700) == 0 ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
}
