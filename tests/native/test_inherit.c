/* What a child takes over as by fork and exec: descriptors, signals, the search for its program, and its mark. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define E EL3HLT /* no system call used here gives this one by itself */
#define REPORT 60 /* where the program tells what it has */

static uint32_t add_inherit(struct pack *pack, const int32_t *numbers, unsigned count, int close_others)
{
    uint32_t at = pack_bytes(pack, numbers, count * sizeof *numbers);
    struct op *op = op_add(pack, OP_INHERIT_FDS);
    op->str = at;
    op->a = count;
    op->b = (uint64_t)close_others;
    return pack->head.count - 1;
}

static struct pack *inheriting(const int32_t *numbers, unsigned count, int close_others)
{
    struct pack *pack = pack_new(close_others ? PLAN_SHARE_FDS : 0);
    if (close_others)
        pack->ops[0].a = 100;
    add_inherit(pack, numbers, count, close_others);
    op_add(pack, OP_INHERIT_SIGNALS);
    pack_exec_path(pack, peer_path());
    return pack;
}

static int survives_exec(int fd) { return fcntl(fd, F_GETFD) == 0; }

/* Starts the peer with these at 0, 1 and 2, keeping the report, and checks that it has what fork and exec would leave it. */
static void place_and_look(int32_t in, int32_t out, int32_t err, int kept, int close_others)
{
    static struct seen wanted[SEEN_MAX];
    const int32_t stdio[3] = { in, out, err }, numbers[5] = { in, out, err, kept >= 0 ? kept : REPORT, REPORT };
    int pipe_fds[2];
    make_pipe(pipe_fds);
    CHECK(dup3(pipe_fds[1], REPORT, O_CLOEXEC) == REPORT, "errno %d", errno);
    close(pipe_fds[1]);
    int from = fcntl(pipe_fds[0], F_DUPFD_CLOEXEC, 200);
    close(pipe_fds[0]);
    memset(wanted, 0, sizeof wanted);
    for (int fd = 0; fd < 100; fd++)
        if ((fd < 3 || !close_others) && survives_exec(fd))
            wanted[fd] = seen_at(fd);
    for (int i = 0; i < 3; i++)
        if (stdio[i] >= 0)
            wanted[i] = seen_at(stdio[i]);
    wanted[REPORT] = seen_at(REPORT);
    if (kept >= 0)
        wanted[kept] = seen_at(kept);
    struct pack *pack = inheriting(numbers, kept >= 0 ? 5 : 4, close_others);
    struct result result = run_pack(pack, (const char *const[]){ "peer", "fds", "60", NULL }, NULL);
    pack_free(pack);
    close(REPORT);
    CHECK(result.out.pid > 0, "%d %d %d: stage %d, errno %d", in, out, err, result.out.report.stage, result.out.report.err);
    check_seen(from, wanted);
    CHECK(wait_for(result.out) == 0, "the program failed");
}

/* Every way to say what three streams become, with others open that do and do not survive exec, and with some of 0-2 closed. */
static void every_placement(void)
{
    static const int32_t choices[] = { -1, 0, 1, 2, 10, 11 };
    for (int closed = 0; closed < 8; closed++) {
        pid_t pid = fork();
        if (pid == 0) {
            for (int i = 0; i < 3; i++)
                file_at(i);
            for (int i = 10; i < 14; i++)
                file_at(i);
            fcntl(12, F_SETFD, 0);
            for (int i = 0; i < 3; i++)
                fcntl(i, F_SETFD, 0);
            for (int i = 0; i < 3; i++)
                if (closed >> i & 1)
                    close(i);
            for (int i = 0; i < 6 * 6 * 6; i++) {
                int32_t in = choices[i % 6], out = choices[i / 6 % 6], err = choices[i / 36];
                int missing = 0;
                for (int fd = 0; fd < 3; fd++)
                    missing |= closed >> fd & 1 && (in == fd || out == fd || err == fd);
                if (!missing)
                    place_and_look(in, out, err, i % 5 ? -1 : 13, i & 1);
            }
            _exit(sanitizer_complained);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && status == 0, "closed %d: status %d", closed, status);
    }
}

static void closed_ones(void)
{
    static const int32_t rows[][5] = { { 90, -1, -1, 10, 11 }, { -1, 90, -1, 10, 11 }, { -1, -1, 90, 10, 11 }, { -1, -1, -1, 10, 90 }, { -1, -1, -1, 10, 1 << 30 } };
    file_at(10);
    file_at(11);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int close_others = 0; close_others < 2; close_others++) {
            struct pack *pack = inheriting(rows[i], 5, close_others);
            CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_OPS, close_others, EBADF);
            pack_free(pack);
        }
    close(10);
    close(11);
}

static void pack_fault(struct pack *pack, long nr, int arg, uint32_t value, uint32_t action)
{
    uint32_t at = arg < 0 ? offsetof(struct seccomp_data, nr) : offsetof(struct seccomp_data, args) + 8 * (uint32_t)arg;
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, arg < 0 ? (uint32_t)nr : value, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    op_add(pack, OP_NO_NEW_PRIVS);
    pack_seccomp(pack, filter, 6);
}

static void faults(void)
{
    static const struct {
        long nr;
        int arg;
        uint32_t value;
    } rows[] = {
        { SYS_fcntl, 0, 12 }, { SYS_fcntl, 1, F_SETFD }, { SYS_fcntl, 1, F_DUPFD_CLOEXEC }, { SYS_fcntl, 0, 2 }, { SYS_dup3, -1, 0 },
        { SYS_dup3, 1, 0 },   { SYS_dup3, 1, 1 },        { SYS_close_range, 0, 3 },         { SYS_close_range, 0, 13 }, { SYS_close_range, 1, ~0u },
    };
    static const int32_t numbers[] = { 10, 0, 2, 12, 14 };
    for (int fd = 10; fd < 15; fd++)
        file_at(fd);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct pack *pack = pack_new(0);
        pack_fault(pack, rows[i].nr, rows[i].arg, rows[i].value, SECCOMP_RET_ERRNO | E);
        uint32_t index = add_inherit(pack, numbers, 5, 1);
        pack_exec_path(pack, peer_path());
        CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_OPS, (int)index, E);
        pack_free(pack);
    }
    struct pack *pack = pack_new(0);
    pack_fault(pack, SYS_rt_sigprocmask, -1, 0, SECCOMP_RET_ERRNO | E);
    op_add(pack, OP_INHERIT_SIGNALS);
    pack_exec_path(pack, peer_path());
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_OPS, 2, E);
    pack_free(pack);
    for (int fd = 10; fd < 15; fd++)
        close(fd);
}

/* The outcome of looking for a program in these places, the last of which is the plan's own. */
static struct result search(const char *const *places, int fault)
{
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    if (fault)
        pack_fault(pack, SYS_execveat, -1, 0, fault > 0 ? SECCOMP_RET_ERRNO | (uint32_t)fault : SECCOMP_RET_KILL_PROCESS);
    op_add(pack, OP_INHERIT_SIGNALS);
    for (; places[1]; places++) {
        uint32_t path = pack_text(pack, *places);
        op_add(pack, OP_TRY_EXEC)->str = path;
    }
    pack_exec_path(pack, *places);
    struct result result = run_pack(pack, (const char *const[]){ "peer", NULL }, NULL);
    pack_free(pack);
    return result;
}

static void check_error(const char *const *places, int err)
{
    struct result result = search(places, 0);
    CHECK(result.out.report.stage == STAGE_EXEC && result.out.report.err == err && result.out.pid == -1, "%s: stage %d, errno %d", places[0],
          result.out.report.stage, result.out.report.err);
}

static void first_place_wins(void)
{
    const char *peer = peer_path(), *none = "/no/such", *through = "/dev/null/x", *refused = "/dev/null";
    const char *const found[][5] = { { peer }, { none, peer }, { none, through, peer }, { refused, peer }, { peer, none }, { none, peer, refused } };
    for (size_t i = 0; i < sizeof found / sizeof *found; i++)
        CHECK(wait_for(search(found[i], 0).out) == 0, "row %zu", i);
    check_error((const char *const[]){ none, none, NULL }, ENOENT);
    check_error((const char *const[]){ none, through, NULL }, ENOTDIR);
    check_error((const char *const[]){ refused, none, NULL }, EACCES);
    check_error((const char *const[]){ none, refused, none, through, NULL }, EACCES);
    struct result result = search((const char *const[]){ none, peer, peer, NULL }, E);
    CHECK(result.out.report.stage == STAGE_EXEC && result.out.report.err == E, "errno %d", result.out.report.err);
}

/* Once a signal may end it, its end is the program's, and is waited for as that. */
static void ended_before_exec(void)
{
    struct result result = search((const char *const[]){ peer_path(), NULL }, -1);
    CHECK(result.out.pid > 0 && result.out.report.stage == STAGE_EXEC && result.out.report.err == 0, "stage %d, errno %d",
          result.out.report.stage, result.out.report.err);
    CHECK(wait_for(result.out) == -SIGSYS, "it did not end by the signal");
}

static void on_signal(int sig) { (void)sig; }

/* How many signals the program has blocked, and how many are not default there. */
static void look_at_signals(uint64_t restored, int *blocked, int *changed)
{
    int pipe_fds[2];
    char text[200], name[16];
    make_pipe(pipe_fds);
    const int32_t numbers[] = { -1, pipe_fds[1], -1 };
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack->ops[0].a = 100;
    add_inherit(pack, numbers, 3, 1);
    op_add(pack, OP_INHERIT_SIGNALS)->a = restored;
    pack_exec_path(pack, peer_path());
    struct result result = run_pack(pack, (const char *const[]){ "peer", "self", "1", NULL }, NULL);
    pack_free(pack);
    close(pipe_fds[1]);
    read_all(pipe_fds[0], text, sizeof text);
    CHECK(sscanf(text, "%*d %15s %d %d", name, blocked, changed) == 3, "it said %s", text);
    CHECK(wait_for(result.out) == 0, "the program failed");
}

static void signals(void)
{
    int blocked, changed, blocked_then, changed_then;
    sigset_t some;
    look_at_signals(0, &blocked_then, &changed_then);
    sigemptyset(&some);
    sigaddset(&some, SIGUSR1);
    sigaddset(&some, SIGRTMAX);
    sigprocmask(SIG_BLOCK, &some, NULL);
    signal(SIGHUP, on_signal);
    signal(SIGUSR2, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    look_at_signals(0, &blocked, &changed);
    CHECK(blocked == blocked_then + 2 && changed == changed_then + 2, "%d blocked, %d not default", blocked, changed);
    look_at_signals(1u << (SIGPIPE - 1), &blocked, &changed);
    CHECK(blocked == blocked_then + 2 && changed == changed_then + 1, "%d blocked, %d not default", blocked, changed);
    look_at_signals(~0ull, &blocked, &changed);
    CHECK(blocked == blocked_then + 2 && changed == 0, "%d blocked, %d not default", blocked, changed);
}

/* A program that lives until our end of a pipe is closed, started with one op. */
static struct result hold(void (*add)(struct pack *pack, uint64_t value), uint64_t value, int *end)
{
    int pipe_fds[2];
    make_pipe(pipe_fds);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    const int32_t numbers[] = { pipe_fds[0], null, -1 };
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack->ops[0].a = 100;
    add_inherit(pack, numbers, 3, 1);
    add(pack, value);
    op_add(pack, OP_INHERIT_SIGNALS);
    pack_exec_path(pack, peer_path());
    struct result result = run_pack(pack, (const char *const[]){ "peer", "hold", "1", NULL }, NULL);
    pack_free(pack);
    close(pipe_fds[0]);
    close(null);
    *end = pipe_fds[1];
    return result;
}

static void add_mark(struct pack *pack, uint64_t value) { op_add(pack, OP_MARK)->a = value; }
static void add_group(struct pack *pack, uint64_t value) { op_add(pack, OP_PROCESS_GROUP)->a = value; }

static void marks(void)
{
    struct rlimit mine, limit;
    int end;
    for (int round = 0; round < 2; round++) {
        getrlimit(RLIMIT_LOCKS, &mine);
        uint64_t mark = round ? 5000 : 0x7123456789abcdefull;
        struct result result = hold(add_mark, mark, &end);
        CHECK(prlimit(result.out.pid, RLIMIT_LOCKS, NULL, &limit) == 0, "errno %d", errno);
        CHECK(limit.rlim_cur == (mark <= mine.rlim_max ? mark : mine.rlim_cur) && limit.rlim_max == mine.rlim_max, "soft %llu, hard %llu",
              (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
        close(end);
        CHECK(wait_for(result.out) == 0, "the program failed");
        CHECK(setrlimit(RLIMIT_LOCKS, &(struct rlimit){ 70, 4000 }) == 0, "errno %d", errno);
    }
}

static void groups(void)
{
    int end, other_end;
    struct result leader = hold(add_group, 0, &end);
    CHECK(leader.out.pid > 0 && getpgid(leader.out.pid) == leader.out.pid, "group %d", getpgid(leader.out.pid));
    struct result member = hold(add_group, (uint64_t)leader.out.pid, &other_end);
    CHECK(member.out.pid > 0 && getpgid(member.out.pid) == leader.out.pid, "group %d", getpgid(member.out.pid));
    close(end);
    close(other_end);
    CHECK(wait_for(leader.out) == 0 && wait_for(member.out) == 0, "a program failed");
    struct result refused = hold(add_group, 4194000, &end);
    CHECK(refused.out.report.stage == STAGE_OPS && refused.out.report.err == EPERM, "errno %d", refused.out.report.err);
    close(end);
}

static void directories(void)
{
    static const struct {
        const char *path;
        int err;
    } rows[] = { { "/no/such", ENOENT }, { "/dev/null", ENOTDIR }, { "", ENOENT }, { ".", 0 } };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct pack *pack = pack_new(PLAN_SHARE_FDS);
        uint32_t path = pack_text(pack, rows[i].path);
        struct op *op = op_add(pack, OP_CHDIR);
        op->str = path;
        op->flags = 1;
        op_add(pack, OP_INHERIT_SIGNALS);
        pack_exec_path(pack, peer_path());
        struct result result = run_pack(pack, (const char *const[]){ "peer", NULL }, NULL);
        pack_free(pack);
        if (rows[i].err)
            CHECK_OUTCOME(result, STAGE_OPS, 1, rows[i].err);
        else
            CHECK(wait_for(result.out) == 0, "the program failed");
    }
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "0, 1 and 2 are what fork, dup2 and exec make of them, whatever is closed and crossed", every_placement },
        { "a closed descriptor is EBADF", closed_ones },
        { "a call that fails is told, with its op", faults },
        { "a program is looked for in one place after the other, and the first real error is told", first_place_wins },
        { "a child that is ended before exec is waited for as a program", ended_before_exec },
        { "what is blocked and ignored stays so, handlers go, and what was named is default", signals },
        { "a mark is the soft limit of locks, where the hard one has room for it", marks },
        { "a process group is joined or made", groups },
        { "a directory that cannot be entered starts nothing", directories },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
