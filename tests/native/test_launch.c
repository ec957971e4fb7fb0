/* launch(): what it reports, what it leaves alone, and that it does both on every path: clone3 and clone, in other namespaces,
 * in a cgroup, under signals, from many threads. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static struct pack *plain(void)
{
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    op_add(pack, OP_SIGNALS);
    pack_exec_path(pack, peer_path());
    return pack;
}

static struct result run_once(struct pack *pack)
{
    struct result result = run_pack(pack, NULL, NULL);
    pack_free(pack);
    return result;
}

/* Runs the peer with `out` as its descriptor 3 and `in` as its 0, and returns what is running. */
static struct outcome start_peer(struct pack *pack, const char *verb, int in, int out)
{
    const int32_t pairs[][2] = { { in, 0 }, { out, 3 } };
    pack_fd_map(pack, pairs, 2, 0);
    pack_exec_path(pack, peer_path());
    struct result result = run_pack(pack, (const char *const[]){ "peer", verb, "3", NULL }, NULL);
    pack_free(pack);
    return result.out;
}

static void answer(int syscall_nr, uint32_t action)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)syscall_nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
        skip("no seccomp filter can be installed here: errno %d", errno);
}

static void programs_that_cannot_run(void)
{
    char none[] = "/tmp/shoal-native-XXXXXX";
    int fd = mkstemp(none);
    CHECK(fd >= 0 && write(fd, "neither ELF nor #!\n", 19) == 19 && fchmod(fd, 0700) == 0, "errno %d", errno);
    close(fd);
    const struct {
        const char *path;
        int err;
    } rows[] = { { "/no/such", ENOENT }, { "/dev/null", EACCES }, { "/", EACCES }, { none, ENOEXEC }, { "/dev/null/x", ENOTDIR } };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct pack *pack = plain();
        pack_exec_path(pack, rows[i].path);
        CHECK_OUTCOME(run_once(pack), STAGE_EXEC, 1, rows[i].err);
    }
    unlink(none);
    char *huge = malloc(1 << 20);
    memset(huge, 'x', (1 << 20) - 1);
    huge[(1 << 20) - 1] = '\0';
    struct pack *pack = plain();
    CHECK_OUTCOME(run_pack(pack, (const char *const[]){ "peer", huge, NULL }, NULL), STAGE_EXEC, 1, E2BIG);
    free(huge);
    pack->head.exec_path = 0;
    pack->head.exec_fd = SLOT(3);
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_EXEC, 1, EBADF);
    pack_free(pack);
}

static void clones_that_fail(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct pack *pack = plain();
    pack->head.cgroup_fd = null; /* the kernel notices after it has chosen a number for the pidfd */
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_CLONE, -1, EBADF);
    pack->head.cgroup_fd = 999;
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_CLONE, -1, EBADF);
    pack_free(pack);
    close(null);
    become_ordinary(); /* the rest takes one */
    struct rlimit none = { 0, 0 };
    pack = plain();
    pack->head.clone_flags = CLONE_NEWNS; /* takes a privilege */
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_CLONE, -1, EPERM);
    pack->head.clone_flags = 0;
    setrlimit(RLIMIT_NPROC, &none);
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_CLONE, -1, EAGAIN);
    pack->head.enter_fd = 0;
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_CLONE, -1, EAGAIN);
    pack_free(pack);
}

static void collecting(void)
{
    struct pack *pack = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT);
    uint32_t root = pack_text(pack, "/"), bad = pack_text(pack, "/no/such");
    for (int i = 0; i < 3; i++) {
        struct op *op = op_add(pack, OP_OPEN);
        op->fd = i == 1 ? SLOT(7) : CWD_FD; /* the second opens the first one's "/" by its slot */
        op->str = i == 1 ? pack_text(pack, ".") : root;
        op->out = i == 0 ? 7 : i;
        op->a = O_PATH | O_DIRECTORY;
    }
    struct result result = run_pack(pack, NULL, NULL);
    CHECK_OUTCOME(result, STAGE_EXEC, 2, 0);
    for (int i = 0; i < SLOTS; i++) {
        struct stat st, at_root;
        if (i != 7 && i != 1 && i != 2) {
            CHECK(result.slots[i] == NO_FD, "slot %d is %d", i, result.slots[i]);
            continue;
        }
        CHECK(fstat(result.slots[i], &st) == 0 && stat("/", &at_root) == 0 && st.st_ino == at_root.st_ino, "slot %d", i);
        CHECK(fcntl(result.slots[i], F_GETFD) == FD_CLOEXEC, "slot %d would be inherited", i);
        close(result.slots[i]);
    }
    struct op *op = op_add(pack, OP_OPEN);
    op->fd = CWD_FD;
    op->str = bad;
    op->out = 4;
    result = run_once(pack);
    CHECK_OUTCOME(result, STAGE_OPS, 3, ENOENT);
    for (int i = 0; i < SLOTS; i++)
        CHECK(result.slots[i] == NO_FD, "after a failure, slot %d is %d", i, result.slots[i]);
}

/* A process of the peer in new namespaces, to be entered. Closing `hold` ends it. */
struct holder {
    struct outcome out;
    int hold;
};

static struct holder hold_namespaces(uint64_t flags)
{
    int in[2], out[2];
    char text[64];
    struct holder holder;
    make_pipe(in);
    make_pipe(out);
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack->head.clone_flags = flags;
    pack_id_maps(pack, flags);
    holder.out = start_peer(pack, "hold", in[0], out[1]);
    holder.hold = in[1];
    close(in[0]);
    close(out[1]);
    if (holder.out.report.stage == STAGE_CLONE)
        skip("namespaces %#llx cannot be made here: errno %d", (unsigned long long)flags, holder.out.report.err);
    CHECK(holder.out.report.stage == STAGE_EXEC && holder.out.report.err == 0, "stage %d, index %d, errno %d", holder.out.report.stage,
          holder.out.report.index, holder.out.report.err);
    CHECK(read(out[0], text, sizeof text) > 0, "the holder said nothing");
    close(out[0]);
    return holder;
}

static void let_go(struct holder holder)
{
    close(holder.hold);
    CHECK(wait_for(holder.out) == 0, "the holder failed");
}

/* The pid that the peer has in its own eyes. */
static int pid_inside(struct pack *pack, int *wait_status, int nested)
{
    int out[2], pid = 0;
    char text[128];
    make_pipe(out);
    struct outcome outcome = start_peer(pack, "self", 0, out[1]);
    close(out[1]);
    read_all(out[0], text, sizeof text);
    CHECK(outcome.report.stage == STAGE_EXEC && outcome.report.err == 0, "stage %d, index %d, errno %d", outcome.report.stage,
          outcome.report.index, outcome.report.err);
    CHECK(sscanf(text, "%d", &pid) == 1, "%s", text);
    if (nested) { /* the pid returned is that of the namespace entered */
        siginfo_t info = { 0 };
        CHECK(waitid((idtype_t)3, (id_t)outcome.pidfd, &info, WEXITED | __WALL) == 0, "errno %d", errno);
        close(outcome.pidfd);
        *wait_status = info.si_status;
    } else {
        *wait_status = wait_for(outcome);
    }
    return pid;
}

static uint64_t pid_world(void) { return geteuid() == 0 && !(mount_world() & CLONE_NEWUSER) ? CLONE_NEWPID : CLONE_NEWUSER | CLONE_NEWPID; }

static void entering(void)
{
    uint64_t flags = pid_world();
    struct holder holder = hold_namespaces(flags);
    for (int i = 2; i < 5; i++) {
        int status;
        struct pack *pack = pack_new(i & 1 ? 0 : PLAN_SHARE_FDS);
        pack->head.enter_fd = holder.out.pidfd;
        pack->head.enter_flags = flags;
        int pid = pid_inside(pack, &status, 0);
        CHECK(pid == i && status == 0, "pid %d inside, status %d", pid, status);
    }
    let_go(holder);
}

static void entering_and_nesting(void)
{
    uint64_t flags = pid_world();
    struct holder holder = hold_namespaces(flags);
    for (int i = 0; i < 3; i++) {
        int status;
        struct pack *pack = pack_new(PLAN_SHARE_FDS);
        pack->head.enter_fd = holder.out.pidfd;
        pack->head.enter_flags = flags;
        pack->head.clone_flags = CLONE_NEWPID;
        int pid = pid_inside(pack, &status, 1);
        CHECK(pid == 1 && status == 0, "pid %d inside, status %d", pid, status);
        CHECK(waitid(P_ALL, 0, &(siginfo_t){ 0 }, WEXITED | WNOHANG | __WALL) == 0, "errno %d", errno); /* the holder only */
    }
    struct pack *pack = pack_new(PLAN_SHARE_FDS); /* an op fails in the third process down */
    pack->head.enter_fd = holder.out.pidfd;
    pack->head.enter_flags = flags;
    pack->head.clone_flags = CLONE_NEWPID;
    op_add(pack, OP_CONTROLLING_TTY)->fd = 0;
    pack_exec_path(pack, peer_path());
    int null = open("/dev/null", O_RDONLY), stdin_was = dup(0);
    dup2(null, 0);
    CHECK_OUTCOME(run_once(pack), STAGE_OPS, 1, ENOTTY);
    dup2(stdin_was, 0);
    close(stdin_was);
    close(null);
    let_go(holder);
}

static void entering_what_is_not_there(void)
{
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC), self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    const struct {
        int fd;
        uint64_t flags;
        int err;
    } rows[] = { { null, CLONE_NEWPID, EINVAL }, { 999, CLONE_NEWPID, EBADF }, { self, 0, EINVAL }, { self, CLONE_NEWUSER, EINVAL } };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int collect = 0; collect < 2; collect++) {
            struct pack *pack = collect ? pack_new(PLAN_COLLECT | PLAN_SHARE_FDS) : plain();
            pack->head.enter_fd = rows[i].fd;
            pack->head.enter_flags = rows[i].flags;
            CHECK_OUTCOME(run_once(pack), STAGE_ENTER, -1, rows[i].err);
        }
    struct outcome ended = run_once(plain()).out;
    CHECK(waitid((idtype_t)3, (id_t)ended.pidfd, &(siginfo_t){ 0 }, WEXITED) == 0, "errno %d", errno);
    struct pack *pack = plain();
    pack->head.enter_fd = ended.pidfd;
    pack->head.enter_flags = CLONE_NEWPID;
    CHECK_OUTCOME(run_once(pack), STAGE_ENTER, -1, ESRCH);
    close(ended.pidfd);
    close(self);
    close(null);
}

static void in_a_cgroup(void)
{
    char path[4096], text[8192], wanted[64];
    int fd = cgroup_new(path, sizeof path);
    if (fd < 0)
        skip("no cgroup can be made here (errno %d)", errno);
    int in[2], out[2];
    make_pipe(in);
    make_pipe(out);
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack->head.cgroup_fd = fd;
    struct outcome outcome = start_peer(pack, "hold", in[0], out[1]);
    char file[64] = "";
    snprintf(file, sizeof file, "/proc/%d/cgroup", outcome.pid);
    size_t got = read_all(open(file, O_RDONLY), text, sizeof text);
    close(in[0]);
    close(in[1]);
    close(out[0]);
    close(out[1]);
    int status = outcome.report.stage == STAGE_EXEC && outcome.report.err == 0 ? wait_for(outcome) : -1;
    close(fd);
    rmdir(path);
    snprintf(wanted, sizeof wanted, "/shoal-native-%d\n", getpid());
    CHECK(status == 0, "stage %d, errno %d", outcome.report.stage, outcome.report.err);
    CHECK(got && strstr(text, wanted), "it runs in %s", text);
}

static void without_clone3(void (*test)(void))
{
    answer(SYS_clone3, SECCOMP_RET_ERRNO | ENOSYS);
    test();
}

static void cgroup_without_clone3(void) { without_clone3(in_a_cgroup); }
static void entering_without_clone3(void) { without_clone3(entering); }
static void collecting_without_clone3(void) { without_clone3(collecting); }
static void programs_without_clone3(void) { without_clone3(programs_that_cannot_run); }

/* The child opens cgroup.procs on the caller's own table: whatever comes of it, nothing stays. */
static void bad_cgroups_without_clone3(void)
{
    answer(SYS_clone3, SECCOMP_RET_ERRNO | ENOSYS);
    char directory[] = "/tmp/shoal-native-XXXXXX", procs[64];
    CHECK(mkdtemp(directory), "errno %d", errno);
    snprintf(procs, sizeof procs, "%s/cgroup.procs", directory);
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC), first = next_fd();
    struct pack *pack = plain();
    pack->head.cgroup_fd = fd;
    struct result missing = run_pack(pack, NULL, NULL);
    CHECK(symlink("/dev/full", procs) == 0, "errno %d", errno);
    struct result full = run_pack(pack, NULL, NULL);
    unlink(procs);
    rmdir(directory);
    pack_free(pack);
    CHECK_OUTCOME(missing, STAGE_CLONE, -1, ENOENT);
    CHECK_OUTCOME(full, STAGE_CLONE, -1, ENOSPC);
    CHECK(next_fd() == first, "descriptor %d is left open", first);
    close(fd);
}

static volatile sig_atomic_t handled;
static void on_signal(int sig)
{
    (void)sig;
    handled++;
}

/* A child held in its setup by WAIT_READY. `told` gets a byte when it is there. The launcher's children are, in the order in
 * which they were made: those it had before, those in between where namespaces are entered, the one that is held. */
struct held {
    int told[2], ready[2];
    pid_t launcher;
    int signal, collect;
    int first, count; /* which of its children get the signal */
    uint64_t enter_flags, clone_flags;
    int enter_fd;
    int found; /* how many of them there were */
};

static int one_sleeps(const char *pids)
{
    char path[64], text[512];
    for (char *next = (char *)(uintptr_t)pids; *next;) {
        long pid = strtol(next, &next, 10);
        if (pid <= 0)
            break;
        snprintf(path, sizeof path, "/proc/%ld/stat", pid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        read_all(fd, text, sizeof text);
        const char *state = strrchr(text, ')');
        if (state && state[2] == 'S')
            return 1;
    }
    return 0;
}

static void *signal_child(void *arg)
{
    struct held *held = arg;
    char byte, path[64], text[64], *next = text;
    if (read(held->told[0], &byte, 1) != 1)
        return NULL;
    snprintf(path, sizeof path, "/proc/self/task/%d/children", held->launcher);
    read_all(open(path, O_RDONLY | O_CLOEXEC), text, sizeof text);
    /* Not as long as it has the pipe open that it has told us by: on our own table nobody would close that. */
    while (*text && !one_sleeps(text))
        sched_yield();
    for (int i = 0; i < held->first + held->count; i++) {
        pid_t pid = (pid_t)strtol(next, &next, 10);
        if (pid > 0 && i >= held->first)
            held->found += kill(pid, held->signal) == 0;
    }
    if (held->signal != SIGKILL) {
        int zero = 0;
        CHECK(write(held->ready[1], &zero, sizeof zero) == sizeof zero, "errno %d", errno);
    }
    return NULL;
}

static struct result held_launch(struct held *held)
{
    pthread_t thread;
    make_pipe(held->told);
    make_sockets(SOCK_STREAM, held->ready);
    held->launcher = (pid_t)syscall(SYS_gettid);
    struct pack *pack = pack_new(PLAN_SHARE_FDS | (held->collect ? PLAN_COLLECT : 0));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", held->told[1]);
    uint32_t where = pack_text(pack, path), what = pack_text(pack, "!"), root = pack_text(pack, "/");
    pack->head.clone_flags = held->clone_flags;
    if (held->enter_flags) {
        pack->head.enter_fd = held->enter_fd;
        pack->head.enter_flags = held->enter_flags;
    }
    struct op *op = op_add(pack, OP_OPEN);
    op->fd = CWD_FD;
    op->str = root;
    op->a = O_PATH;
    op->out = 0;
    op = op_add(pack, OP_WRITE);
    op->str = where;
    op->str2 = what;
    op_add(pack, OP_WAIT_READY)->fd = held->ready[0];
    if (!held->collect)
        op_add(pack, OP_SIGNALS);
    pack_exec_path(pack, peer_path());
    pthread_create(&thread, NULL, signal_child, held);
    struct result result = run_once(pack);
    close(held->told[1]); /* should the child never have come that far */
    pthread_join(thread, NULL);
    close(held->told[0]);
    close(held->ready[0]);
    close(held->ready[1]);
    if (held->found != held->count)
        skip("/proc/PID/task/TID/children is not there");
    return result;
}

static void killed_in_setup(void)
{
    struct held held = { .signal = SIGKILL, .count = 1 };
    struct outcome out = held_launch(&held).out;
    CHECK(out.report.stage == STAGE_OPS && out.report.index >= 2 && out.report.err == 0 && out.pid == -1 && out.pidfd == -1,
          "stage %d, index %d, errno %d", out.report.stage, out.report.index, out.report.err);
}

static void signalled_in_setup(void)
{
    struct held held = { .signal = SIGUSR1, .count = 1 };
    struct sigaction action = { .sa_handler = on_signal };
    sigaction(SIGUSR1, &action, NULL);
    struct result result = held_launch(&held);
    CHECK(handled == 0, "our handler ran %d times for a signal that was the child's", handled);
    CHECK_OUTCOME(result, STAGE_OPS, 4, 0); /* it ends the child once its disposition is the default again */
    CHECK(raise(SIGUSR1) == 0 && handled == 1, "our own handler is gone");
}

/* Killing a job takes those in between first, as it may happen: what they had made by then is not lost. */
static void killed_in_between(void)
{
    uint64_t flags = pid_world();
    static const struct {
        uint64_t nested;
        int first, count, collect;
    } rows[] = { { 0, 1, 1, 0 }, { 0, 1, 1, 1 }, { CLONE_NEWPID, 2, 1, 0 }, { CLONE_NEWPID, 1, 2, 0 }, { CLONE_NEWPID, 1, 2, 1 } };
    struct holder holder = hold_namespaces(flags);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct held held = {
            .signal = SIGKILL, .first = rows[i].first, .count = rows[i].count, .collect = rows[i].collect,
            .enter_fd = holder.out.pidfd, .enter_flags = flags, .clone_flags = rows[i].nested,
        };
        int before = fds_open(NULL, 64);
        struct result result = held_launch(&held);
        CHECK(result.out.report.stage == STAGE_ENTER && result.out.report.err == ESRCH && result.out.pid == -1 && result.out.pidfd == -1,
              "row %zu: stage %d, errno %d, pid %d", i, result.out.report.stage, result.out.report.err, result.out.pid);
        int after = fds_open(NULL, 64);
        CHECK(before == after, "row %zu: %d descriptors before, %d after", i, before, after);
        siginfo_t info = { 0 };
        CHECK(waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 && info.si_pid == 0, "row %zu: %d is left", i, info.si_pid);
    }
    let_go(holder);
}

static void killed_by_its_filter(void)
{
    prctl(PR_SET_DUMPABLE, 0); /* until Linux 5.16 a core dump took along all who share the memory */
    struct pack *pack = plain();
    pack_answer(pack, SYS_umask, SECCOMP_RET_KILL_PROCESS);
    op_add(pack, OP_UMASK);
    CHECK_OUTCOME(run_once(pack), STAGE_OPS, 4, 0);
}

/* A filter may answer anything to anything. A child under it may fail as it likes, but launch() has to return. */
static void ends_under_any_filter(void)
{
#define X(name, fn, operands) operands,
    static const int needs[] = { OPS(X) };
#undef X
    struct sock_filter nothing[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO) };                /* every call: 0, and not done */
    struct sock_filter interrupted[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINTR) };
    prctl(PR_SET_DUMPABLE, 0); /* as above */
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    for (int code = 0; code < OP_COUNT; code++)
        for (int i = 0; i < 2; i++) {
            struct pack *pack = pack_new(0);
            uint32_t text = pack_bytes(pack, "a/b\0\0\0\0\0\0\0\0\0\0\0\0", 16);
            op_add(pack, OP_NO_NEW_PRIVS);
            pack_seccomp(pack, i ? interrupted : nothing, 1);
            if (code == OP_TRY_EXEC)
                op_add(pack, OP_INHERIT_SIGNALS);
            struct op *op = op_add(pack, (enum op_code)code);
            op->fd = op->fd2 = null;
            op->str = op->str2 = text;
            op->out = needs[code] & OUT ? 0 : -1;
            op->a = code == OP_INHERIT_FDS ? 3 : code == OP_SECCOMP || code == OP_AFFINITY;
            if (code == OP_ENV_PID)
                op->code = OP_UMASK;
            pack_exec_path(pack, peer_path());
            struct result result = run_once(pack);
            CHECK(result.refused == 0, "op %d: refused as %d", code, result.refused);
            if (result.out.pid > 0) { /* execveat "succeeded": for all that can be known, it runs */
                siginfo_t info;
                CHECK(waitid((idtype_t)3, (id_t)result.out.pidfd, &info, WEXITED | __WALL) == 0, "errno %d", errno);
                close(result.out.pidfd);
            }
        }
    close(null);
}

static struct pack *failing(void)
{
    struct pack *pack = plain();
    op_add(pack, OP_EXPECT)->fd = SLOT(0);
    return pack;
}

static void the_caller_is_left_as_it_was(void)
{
    sigset_t mask, after;
    struct sigaction action = { .sa_handler = on_signal }, same;
    uint64_t world = geteuid() == 0 ? 0 : CLONE_NEWUSER;
    sigemptyset(&mask);
    sigaddset(&mask, SIGWINCH);
    sigaddset(&mask, SIGRTMIN + 3);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    sigaction(SIGCHLD, &action, NULL);
    mode_t umask_was = umask(031);
    char cwd[4096];
    prctl(PR_SET_NAME, "caller");
    for (int i = 0; i < 2; i++) {
        struct pack *pack = i ? failing() : plain();
        pack->head.clone_flags = world;
        op_add(pack, OP_UMASK)->a = 0;
        op_add(pack, OP_SETSID);
        uint32_t name = pack_text(pack, "child"), root = pack_text(pack, "/");
        op_add(pack, OP_NAME)->str = name;
        op_add(pack, OP_CHDIR)->str = root;
        op_add(pack, OP_SIGNALS);
        op_add(pack, OP_DROP_CAPS);
        pack_exec_path(pack, "/no/such/program");
        errno = 4321;
        struct result result = run_once(pack);
        CHECK(errno == 4321, "errno is %d now", errno);
        CHECK(result.out.pid == -1, "it runs");
        sigprocmask(SIG_SETMASK, NULL, &after);
        sigaction(SIGCHLD, NULL, &same);
        char name_now[16];
        prctl(PR_GET_NAME, name_now);
        CHECK(memcmp(&mask, &after, 8) == 0, "the signal mask changed");
        CHECK(same.sa_handler == on_signal, "a handler is gone");
        CHECK(handled == 0, "a child that failed in setup made a SIGCHLD");
        CHECK(strcmp(name_now, "caller") == 0, "renamed to %s", name_now);
        CHECK(prctl(PR_GET_DUMPABLE) == 1, "not dumpable any more");
        CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0, "no_new_privs is set");
        CHECK(getcwd(cwd, sizeof cwd) && strcmp(cwd, "/"), "moved to /");
    }
    CHECK(umask(umask_was) == 031, "the umask changed");
    CHECK(getsid(0) != getpid(), "in a session of its own");
    struct result result = run_once(plain());
    CHECK(wait_for(result.out) == 0 && handled == 1, "%d SIGCHLD for a program that ran", handled);
}

/* With SIGCHLD ignored the kernel reaps what ends, but not a child whose failure is still to be collected. */
static void with_children_ignored(void)
{
    signal(SIGCHLD, SIG_IGN);
    for (int i = 0; i < 20; i++)
        CHECK_OUTCOME(run_once(failing()), STAGE_OPS, 2, EBADF);
    struct outcome out = run_once(plain()).out;
    CHECK(out.report.stage == STAGE_EXEC && out.report.err == 0, "errno %d", out.report.err);
    CHECK(waitid((idtype_t)3, (id_t)out.pidfd, &(siginfo_t){ 0 }, WEXITED) < 0 && errno == ECHILD, "errno %d", errno);
    close(out.pidfd);
}

#define THREADS 20
#define ROUNDS 25

static void *launch_many(void *arg)
{
    uintptr_t seed = (uintptr_t)arg;
    for (int i = 0; i < ROUNDS; i++) {
        if ((seed + (uintptr_t)i) % 3 == 0) {
            CHECK_OUTCOME(run_once(failing()), STAGE_OPS, 2, EBADF);
        } else if ((seed + (uintptr_t)i) % 3 == 1) {
            struct pack *pack = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT);
            uint32_t root = pack_text(pack, "/");
            struct op *op = op_add(pack, OP_OPEN);
            op->fd = CWD_FD;
            op->str = root;
            op->a = O_PATH;
            op->out = 0;
            struct result result = run_once(pack);
            CHECK_OUTCOME(result, STAGE_EXEC, 0, 0);
            close(result.slots[0]);
        } else {
            int out[2], unwanted = 0;
            make_pipe(out);
            struct outcome outcome = start_peer(pack_new(PLAN_SHARE_FDS), "fds", 0, out[1]);
            close(out[1]);
            char text[1024];
            read_all(out[0], text, sizeof text);
            for (char *line = strtok_r(text, "\n", &(char *){ NULL }); line; line = NULL)
                unwanted += atoi(line) != 0;
            CHECK(wait_for(outcome) == 0 && unwanted == 0, "%s", text);
        }
    }
    return NULL;
}

static void many_threads(void)
{
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, launch_many, (void *)i) == 0, "no thread");
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "a program that cannot be executed is a failure of exec", programs_that_cannot_run },
        { "a clone that fails is reported, with no pid and no pidfd", clones_that_fail },
        { "a plan that collects fills its slots, or leaves nothing", collecting },
        { "a pid namespace can be entered, and the program is our child", entering },
        { "a pid namespace can be made inside of one that is entered", entering_and_nesting },
        { "what cannot be entered is a failure to enter", entering_what_is_not_there },
        { "a program starts in the cgroup it is to be in", in_a_cgroup },
        { "the same without clone3", cgroup_without_clone3 },
        { "entering works without clone3", entering_without_clone3 },
        { "collecting works without clone3", collecting_without_clone3 },
        { "failures of exec are reported without clone3", programs_without_clone3 },
        { "a cgroup that cannot be joined is reported without clone3", bad_cgroups_without_clone3 },
        { "a child killed in setup is reported without an errno", killed_in_setup },
        { "a child is ended when those between it and us were killed", killed_in_between },
        { "no handler of ours runs in the child", signalled_in_setup },
        { "a child killed by its own filter is reported without an errno", killed_by_its_filter },
        { "a child that may not even exit ends all the same", ends_under_any_filter },
        { "the caller's mask, handlers, umask, name and directory stay", the_caller_is_left_as_it_was },
        { "failures are reported where SIGCHLD is ignored", with_children_ignored },
        { "20 threads can launch at once", many_threads },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
