/* fork_into(): the copy runs its ops and goes on where its maker does, as a fork would, and is its maker's brother. A launch of a brother
 * (PLAN_SIBLING), since who makes copies needs both. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a maker tells of a copy, and the copy of itself. */
struct told {
    struct outcome out;
    int pid, tid, parent, on_stack, signals, umask_is, robust, joined;
};

static int has_robust_list(void)
{
    void *head = NULL;
    size_t size = 0;
    return syscall(SYS_get_robust_list, 0, &head, &size) == 0 && head != NULL;
}

static void *nothing(void *arg) { return arg; }

static void tell(int fd, struct told told)
{
    if (write(fd, &told, sizeof told) != sizeof told)
        abort();
}

/* A child of ours makes a copy; both tell by the pipe, the copy by `from_copy`. */
struct family {
    int maker, from_maker, from_copy, report;
};

static struct family begin(struct pack *pack)
{
    int by_maker[2], by_copy[2], talk[2];
    make_pipe(by_maker);
    make_pipe(by_copy);
    make_sockets(SOCK_STREAM, talk);
    pid_t maker = fork();
    CHECK(maker >= 0, "errno %d", errno);
    if (maker == 0) {
        size_t size;
        void *baked = pack_bake(pack, &size);
        struct plan *plan = plan_new(baked, size, NULL, NULL);
        if (verify_plan(plan, size))
            abort();
        volatile int on_stack = 42;
        sigset_t mask;
        sigemptyset(&mask);
        sigaddset(&mask, SIGUSR2);
        sigprocmask(SIG_SETMASK, &mask, NULL);
        struct told told = { 0 };
        int is_copy = fork_into(plan, talk[1], &told.out);
        sigprocmask(SIG_BLOCK, NULL, &mask);
        told.pid = getpid();
        told.tid = (int)syscall(SYS_gettid);
        told.parent = getppid();
        told.on_stack = on_stack;
        told.signals = sigismember(&mask, SIGUSR2) && !sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGTERM);
        told.umask_is = (int)umask(0);
        told.robust = has_robust_list();
        pthread_t thread;
        told.joined = pthread_create(&thread, NULL, nothing, NULL) == 0 && pthread_join(thread, NULL) == 0 && pthread_kill(pthread_self(), 0) == 0;
        tell(is_copy ? by_copy[1] : by_maker[1], told);
        _exit(is_copy ? 7 : 0);
    }
    close(by_maker[1]);
    close(by_copy[1]);
    close(talk[1]);
    pack_free(pack);
    return (struct family){ maker, by_maker[0], by_copy[0], talk[0] };
}

static struct told heard(int fd)
{
    struct told told;
    CHECK(read(fd, &told, sizeof told) == sizeof told, "nothing was told: errno %d", errno);
    return told;
}

static struct report reported(const struct family *family)
{
    struct report report;
    CHECK(read(family->report, &report, sizeof report) == sizeof report, "no report: errno %d", errno);
    return report;
}

static int status_of(pid_t pid)
{
    int status;
    CHECK(waitpid(pid, &status, __WALL) == pid, "it is no child of ours: errno %d", errno);
    return status;
}

static void end(struct family family)
{
    CHECK(status_of(family.maker) == 0, "the maker failed");
    close(family.from_maker);
    close(family.from_copy);
    close(family.report);
}

static void the_copy_goes_on_as_a_fork_would(void)
{
    struct pack *pack = pack_new(0);
    op_add(pack, OP_UMASK)->a = 027;
    struct family family = begin(pack);
    struct told maker = heard(family.from_maker), copy = heard(family.from_copy);
    struct report report = reported(&family);
    CHECK(report.stage == STAGE_EXEC && report.err == 0, "stage %d, errno %d", report.stage, report.err);
    CHECK(maker.out.report.err == 0 && maker.out.pid == copy.pid && maker.out.pidfd >= 0, "errno %d", maker.out.report.err);
    CHECK(copy.pid != maker.pid && copy.tid == copy.pid, "pid %d, tid %d", copy.pid, copy.tid);
    CHECK(copy.on_stack == 42 && maker.on_stack == 42, "its stack is another");
    CHECK(copy.signals && maker.signals, "the signal mask has changed");
    CHECK(copy.umask_is == 027 && maker.umask_is != 027, "the op has run elsewhere: %o, %o", copy.umask_is, maker.umask_is);
    CHECK(copy.robust && maker.robust, "no list of robust mutexes");
    CHECK(copy.joined && maker.joined, "it cannot have threads");
    CHECK(copy.parent == getpid(), "its parent is %d", copy.parent);
    int status = status_of(copy.pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "status %x", status);
    end(family);
}

static void a_failing_op_ends_the_copy_and_is_told(void)
{
    struct pack *pack = pack_new(0);
    op_add(pack, OP_UMASK)->a = 022;
    op_add(pack, OP_SETNS)->fd = 0;
    struct family family = begin(pack);
    struct told maker = heard(family.from_maker);
    struct report report = reported(&family);
    CHECK(report.stage == STAGE_OPS && report.index == 1 && report.err > 0, "stage %d, op %d, errno %d", report.stage, report.index, report.err);
    int status = status_of(maker.out.pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 127, "status %x", status);
    struct told none;
    CHECK(read(family.from_copy, &none, sizeof none) == 0, "it went on");
    end(family);
}

static void nobody_who_listens_is_the_end_of_the_copy(void)
{
    int by_maker[2];
    make_pipe(by_maker);
    pid_t pid = fork();
    if (pid == 0) {
        size_t size;
        struct pack *pack = pack_new(0);
        void *baked = pack_bake(pack, &size);
        struct plan *plan = plan_new(baked, size, NULL, NULL);
        struct told told = { 0 };
        verify_plan(plan, size);
        if (fork_into(plan, 900, &told.out))
            _exit(99);
        tell(by_maker[1], told);
        _exit(0);
    }
    close(by_maker[1]);
    struct told maker = heard(by_maker[0]);
    int status = status_of(maker.out.pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 127, "status %x", status);
    CHECK(status_of(pid) == 0, "the maker failed");
    close(by_maker[0]);
}

static void what_cannot_be_entered_makes_no_copy(void)
{
    struct pack *pack = pack_new(0);
    pack->head.enter_fd = 0; /* /dev/null is no namespace */
    pack->head.enter_flags = CLONE_NEWPID;
    struct family family = begin(pack);
    struct told maker = heard(family.from_maker);
    CHECK(maker.out.pid == -1 && maker.out.pidfd == -1 && maker.out.report.err > 0, "pid %d, errno %d", maker.out.pid, maker.out.report.err);
    end(family);
}

static void a_brother_is_launched_and_left_to_their_parent(void)
{
    for (int fails = 0; fails < 2; fails++) {
        int by_maker[2];
        make_pipe(by_maker);
        pid_t pid = fork();
        if (pid == 0) {
            struct pack *pack = pack_new(PLAN_SHARE_FDS | PLAN_SIBLING);
            op_add(pack, OP_UNSHARE_FDS)->a = 1000;
            if (fails)
                op_add(pack, OP_SETNS)->fd = 0;
            pack_exec_path(pack, peer_path());
            struct result result = run_pack(pack, NULL, NULL);
            tell(by_maker[1], (struct told){ .out = result.out, .pid = result.refused });
            _exit(0);
        }
        close(by_maker[1]);
        struct told maker = heard(by_maker[0]);
        CHECK(maker.pid == 0 && maker.out.pid > 0 && maker.out.pidfd >= 0, "refused %d, pid %d", maker.pid, maker.out.pid);
        CHECK(maker.out.report.stage == (fails ? STAGE_OPS : STAGE_EXEC) && !maker.out.report.err == !fails, "stage %d", maker.out.report.stage);
        int status = status_of(maker.out.pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (fails ? 127 : 0), "status %x", status);
        CHECK(status_of(pid) == 0, "the maker failed");
        close(by_maker[0]);
    }
}

static void a_brother_cannot_be_collected_nor_made_elsewhere(void)
{
    struct pack *pack = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT | PLAN_SIBLING);
    CHECK(run_pack(pack, NULL, NULL).refused, "it was accepted");
    pack_free(pack);
    pack = pack_new(PLAN_SHARE_FDS | PLAN_SIBLING);
    op_add(pack, OP_UNSHARE_FDS)->a = 1000;
    pack->head.enter_fd = 0;
    CHECK(run_pack(pack, NULL, NULL).refused, "it was accepted");
    pack_free(pack);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "the copy goes on as a fork would", the_copy_goes_on_as_a_fork_would },
        { "a failing op ends the copy and is told", a_failing_op_ends_the_copy_and_is_told },
        { "nobody who listens is the end of the copy", nobody_who_listens_is_the_end_of_the_copy },
        { "what cannot be entered makes no copy", what_cannot_be_entered_makes_no_copy },
        { "a brother is launched and left to their parent", a_brother_is_launched_and_left_to_their_parent },
        { "a brother cannot be collected nor made elsewhere", a_brother_cannot_be_collected_nor_made_elsewhere },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
