/* See check.h. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/prctl.h>
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
    static struct pollfd fds[FD_LIMIT];
    int count = 0;
    for (int i = 0; i < limit; i++)
        fds[i] = (struct pollfd){ .fd = i };
    /* poll() refuses more descriptors than the soft limit allows; none above it can be open unless it was lowered. */
    while (poll(fds, (nfds_t)limit, 0) < 0 && errno == EINVAL)
        limit /= 2;
    for (int i = 0; i < limit; i++) {
        int is_open = !(fds[i].revents & POLLNVAL);
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

size_t read_all(int fd, char *buffer, size_t size)
{
    size_t used = 0;
    for (ssize_t got; used < size - 1 && (got = read(fd, buffer + used, size - 1 - used)) > 0;)
        used += (size_t)got;
    buffer[used] = '\0';
    close(fd);
    return used;
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
