/* Random plans, verified and launched: the child may fail, never misbehave.
 *
 * After each launch the caller must be what it was: memory (AddressSanitizer), descriptors, children, signal mask, working
 * directory, and the report must be one that launch() documents.
 *
 * What random ops could do to the machine is taken away beforehand. Each world is a process in user, mount, pid, network, ipc,
 * uts and cgroup namespaces of its own, made by an ordinary user (root becomes one first); its root is an empty tmpfs that
 * holds the static peer; the old root is unmounted, there is no /proc, no device but /dev/null by descriptor, no terminal;
 * no descriptor leads out. A world ends after WORLD_PLANS plans, when random mounts have covered it, or when it hangs.
 *
 *   FUZZ_SECONDS    how long (20)
 *   FUZZ_SEED       the first world's seed (taken from the clock, and printed); world n has FUZZ_SEED + n */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORLD_PLANS 400
#define HANG_MS 3000
#define NAMESPACES (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
#define LAST_FD 40

enum { WORLD_DONE = 0, WORLD_BROKEN = 3, WORLD_UNAVAILABLE = 77, MISBEHAVED = 1 };

/* Shared by all processes of the fuzzer. */
static struct tally {
    volatile uint64_t plans, accepted, ran, failed, collected, killed, hung;
    volatile uint64_t worlds, seed;
    volatile uint32_t by_op[OP_COUNT][2]; /* failed here, or all went well with it in the plan */
} *tally;

#define X(name, fn, operands) #name,
static const char *const op_names[] = { OPS(X) };
#undef X

static uint64_t state;

static uint32_t rnd(void) /* xorshift64* */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 0x2545f4914f6cdd1dull) >> 32);
}
static uint32_t below(uint32_t n) { return rnd() % n; }
static int one_in(uint32_t n) { return below(n) == 0; }

static uint64_t odd_number(void)
{
    static const uint64_t odd[] = { 0, 1, 2, 3, 7, 8, 100, 127, 128, 255, 256, 1000, 1023, 1024, 4095, 4096, 0x7fffffff, 0x80000000,
                                    0xffffffff, 1ull << 32, 1ull << 61, 1ull << 63, ~0ull, ~0ull - 9 };
    return one_in(3) ? (uint64_t)rnd() << 32 | rnd() : odd[below(sizeof odd / sizeof *odd)];
}

static const uint64_t ns_flags[] = { CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID };

static int32_t some_fd(int slots)
{
    switch (below(8)) {
    case 0: return CWD_FD;
    case 1: return (int32_t)below(LAST_FD + 3);
    case 2: return one_in(20) ? (int32_t)odd_number() : NO_FD;
    case 3: return SLOT((int32_t)below(SLOTS));
    case 4:
    case 5: return slots ? SLOT((int32_t)below((uint32_t)slots)) : 3;
    default: return (int32_t)below(12);
    }
}

static const char *some_text(void)
{
    static const char *const texts[] = {
        "", "/", ".", "..", "a", "a/b", "a/b/c", "d", "d/e", "/d", "f", "l", "up", "../x", "a//b", "/peer", "peer", "d/../f", "tmpfs",
        "ramfs", "proc", "sysfs", "mqueue", "devpts", "cgroup2", "overlay", "no-such", "size=4k", "mode=0700,size=8k", "=", ",", "a=b,c=d,e",
        "size=", "lowerdir=/d,upperdir=/a,workdir=/w", "/dev/null", "/dev", "/f", "0 0 1", "deny", "name", "/d/deep/deeper/deepest",
    };
    static char random_text[300];
    if (!one_in(12))
        return texts[below(sizeof texts / sizeof *texts)];
    uint32_t size = below(one_in(5) ? 299 : 12);
    for (uint32_t i = 0; i < size; i++)
        random_text[i] = (char)(one_in(4) ? "/.,=a\377"[below(6)] : 1 + (int)below(255));
    random_text[size] = '\0';
    return random_text;
}

static void add_fd_map(struct pack *pack, int slots)
{
    int32_t pairs[TARGETS][2];
    uint32_t count = one_in(30) ? below(TARGETS) : below(12), bit = below(TARGETS);
    for (uint32_t i = 0; i < count; i++) {
        pairs[i][0] = some_fd(slots);
        if (pairs[i][0] == CWD_FD || pairs[i][0] == NO_FD)
            pairs[i][0] = (int32_t)below(20);
        pairs[i][1] = (int32_t)((bit + i * 7) % (count < 20 && !one_in(4) ? 24 : TARGETS)) | (one_in(5) ? TARGET_CLOEXEC : 0);
    }
    pack_fd_map(pack, (const int32_t(*)[2])pairs, count, some_fd(slots));
}

/* Fails, kills at or lets pass one call; sometimes nonsense. Never in plans that collect: a child that cannot close what it
 * opened on our table leaves it open. */
static void add_filter(struct pack *pack)
{
    static const int calls[] = { SYS_close, SYS_openat2, SYS_openat, SYS_dup3, SYS_fcntl, SYS_close_range, SYS_execveat, SYS_fsmount,
                                 SYS_rt_sigprocmask, SYS_umask, SYS_prctl, SYS_chdir, SYS_fchdir, SYS_unshare, SYS_mount, SYS_move_mount };
    static const uint32_t actions[] = { SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_ERRNO | EINTR, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS,
                                        SECCOMP_RET_KILL_THREAD, SECCOMP_RET_TRAP, SECCOMP_RET_ERRNO | 4095 };
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[below(sizeof calls / sizeof *calls)], 0, 1),
        BPF_STMT(BPF_RET | BPF_K, actions[below(sizeof actions / sizeof *actions)]),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    if (one_in(6))
        filter[below(4)].code = (uint16_t)rnd();
    op_add(pack, OP_NO_NEW_PRIVS);
    pack_seccomp(pack, filter, 4);
}

static struct stat at_root, at_d; /* what "/" and "/d" are in this world */

/* Operands that make sense in a mount namespace of the plan's own, after begin_careful: plans made of these get further. */
static void be_careful(struct pack *pack, struct op *op)
{
    static const char *const paths[] = { "n", "m/n", "w/n", "d", "w", "w/a/b" };
    const char *path = paths[below(6)];
    op->fd = op->fd != NO_FD ? SLOT((int32_t)below(2)) : NO_FD;
    op->fd2 = op->fd2 != NO_FD ? SLOT((int32_t)below(2)) : NO_FD;
    op->flags = one_in(2) ? 1 : 0;
    op->b = 0;
    switch (op->code) {
    case OP_OPEN: path = "."; op->a = O_PATH; break;
    case OP_EXPECT: op->fd = 3; op->a = at_root.st_dev; op->b = at_root.st_ino; return;
    case OP_CHDIR: path = "/d"; break;
    case OP_FSMOUNT: path = "tmpfs"; op->a = 0; break;
    case OP_BIND: path = "/d"; op->a = at_d.st_dev; op->b = at_d.st_ino; op->fd2 = SLOT(0); break;
    case OP_OPEN_TREE: path = "d"; op->a = 1; break;
    case OP_MOUNT_SETATTR: op->fd = SLOT(1); op->a = 1 << below(4); return;
    case OP_MOVE_MOUNT: path = "w"; op->fd = SLOT(1); op->fd2 = SLOT(0); break;
    case OP_MKDIRS: op->a = 0755; break;
    case OP_COPY: op->fd = one_in(2) ? 7 : 5; op->a = 0755; break;
    case OP_PIVOT: op->fd = op->fd2 = SLOT(1); return;
    case OP_SETNS: op->fd = 14; op->a = CLONE_NEWUTS; return;
    case OP_WRITE: path = "/f"; break;
    case OP_HOSTNAME: path = "host"; break;
    case OP_KEEP_CAPS: op->a = 1u << below(32); return;
    default: break;
    }
    if (op->str != NO_STR)
        op->str = pack_text(pack, path);
    if (op->str2 != NO_STR)
        op->str2 = pack_text(pack, op->code == OP_BIND ? "w" : op->code == OP_FSMOUNT ? "size=64k,mode=0755" : "text");
}

static int begin_careful(struct pack *pack)
{
    pack->head.clone_flags = CLONE_NEWNS | CLONE_NEWUTS | (one_in(3) ? CLONE_NEWPID : 0);
    uint32_t root = pack_text(pack, "/"), type = pack_text(pack, "tmpfs"), options = pack_text(pack, "size=64k,mode=0755");
    struct op *op = op_add(pack, OP_OPEN);
    op->fd = CWD_FD;
    op->str = root;
    op->a = O_PATH | O_DIRECTORY;
    op->out = 0;
    op = op_add(pack, OP_FSMOUNT);
    op->str = type;
    op->str2 = options;
    op->out = 1;
    return 2; /* slots */
}

static struct pack *make_plan(void)
{
    static const uint8_t needs[] = {
#define X(name, fn, operands) operands,
        OPS(X)
#undef X
    };
    int collect = one_in(4), slots = 0, mapped = 0;
    struct pack *pack = pack_new(collect ? PLAN_COLLECT | PLAN_SHARE_FDS : one_in(3) ? 0 : PLAN_SHARE_FDS);
    if (pack->head.count && one_in(3))
        pack->ops[0].a = below(64);
    if (!one_in(3))
        pack->head.clone_flags |= CLONE_NEWUSER;
    for (int i = 0; i < 3; i++)
        if (one_in(2))
            pack->head.clone_flags |= one_in(2) ? CLONE_NEWNS : ns_flags[below(6)];
    if (one_in(200))
        pack->head.clone_flags |= CLONE_NEWNET; /* slow to make */
    int careful = one_in(2);
    if (careful)
        slots = begin_careful(pack);
    else if (one_in(10)) {
        pack->head.enter_fd = (int32_t)below(LAST_FD);
        pack->head.enter_flags = ns_flags[below(6)] | (one_in(2) ? CLONE_NEWUSER : 0);
    }
    if (one_in(40))
        pack->head.cgroup_fd = (int32_t)below(LAST_FD);
    for (uint32_t count = below(one_in(8) ? 60 : 10); count > 0; count--) {
        enum op_code code = (enum op_code)below(OP_COUNT);
        if (code == OP_WAIT_READY) /* it waits for another process, by design */
            continue;
        if (code == OP_FD_MAP) {
            if (!collect && !mapped++)
                add_fd_map(pack, slots);
            continue;
        }
        if (code == OP_SECCOMP) {
            if (!collect && one_in(3))
                add_filter(pack);
            continue;
        }
        if (collect && (code == OP_SIGNALS || (code == OP_UNSHARE_FDS && !one_in(20))))
            continue;
        uint32_t str = needs[code] & STR || one_in(10) ? pack_text(pack, some_text()) : NO_STR;
        uint32_t str2 = needs[code] & STR2 || one_in(10) ? pack_text(pack, some_text()) : NO_STR;
        struct op *op = op_add(pack, code);
        op->str = str;
        op->str2 = str2;
        op->fd = needs[code] & FD || one_in(3) ? some_fd(slots) : NO_FD;
        op->fd2 = needs[code] & FD2 || one_in(3) ? some_fd(slots) : NO_FD;
        if (needs[code] & OUT)
            op->out = one_in(10) ? (int32_t)below(SLOTS) : slots++;
        op->a = one_in(2) ? odd_number() : below(16);
        op->b = one_in(2) ? odd_number() : below(16);
        op->flags = one_in(2) ? (uint16_t)below(16) : 0;
        if (code == OP_UNSHARE || code == OP_SETNS)
            op->a = ns_flags[below(6)];
        if (code == OP_OPEN) {
            op->a = one_in(2) ? O_PATH : one_in(3) ? rnd() & 07777777 : O_RDWR;
            op->b = one_in(2) ? 0 : below(64);
        }
        if (code == OP_OPEN_TREE)
            op->a = one_in(2) ? 1 : odd_number(); /* OPEN_TREE_CLONE */
        if (code == OP_ENV_PID && one_in(2)) {
            op->a = 1;
            op->b = below(12);
        }
        if (code == OP_UNSHARE_FDS)
            op->a = below(64);
        if (careful && !one_in(12))
            be_careful(pack, op);
    }
    if (!collect && one_in(2))
        op_add(pack, OP_SIGNALS);
    if (!one_in(4))
        pack_exec_path(pack, one_in(4) ? some_text() : "/peer");
    else
        pack->head.exec_fd = one_in(3) ? some_fd(slots) : 5;
    return pack;
}

/* Flips, copies or replaces bytes: most of these plans are refused, and the rest are odd. */
static void mutate(uint8_t *bytes, size_t size)
{
    for (uint32_t times = 1 + below(6); times > 0; times--) {
        size_t at = below((uint32_t)size);
        uint64_t odd = odd_number();
        switch (below(4)) {
        case 0: bytes[at] ^= (uint8_t)(1 << below(8)); break;
        case 1: bytes[at] = (uint8_t)rnd(); break;
        case 2: memcpy(bytes + at, &odd, size - at < 4 ? size - at : 4); break;
        default: memmove(bytes + at, bytes + below((uint32_t)size - 8), size - at < 8 ? 0 : below(8)); break;
        }
    }
}

static const char *const *some_strings(int env)
{
    static const char *const env_strings[] = { "A=1", "LISTEN_PID=0123456789", "PWD=/", NULL };
    static const char *const arguments[] = { "peer", NULL };
    return one_in(20) ? NULL : env ? env_strings : arguments;
}

static const struct plan_head *current; /* the plan that is being run; NULL while its sizes are not known to be right */

static const char *text_of(uint32_t offset)
{
    return offset == NO_STR ? "-" : (const char *)(current + 1) + current->count * sizeof(struct op) + offset;
}

static void print_plan(void)
{
    const struct op *op = (const struct op *)(current + 1);
    if (current)
        dprintf(2, "flags %x, clone %llx, cgroup %d, enter %d %llx, exec %d\n", current->flags, (unsigned long long)current->clone_flags,
                current->cgroup_fd, current->enter_fd, (unsigned long long)current->enter_flags, current->exec_fd);
    for (uint32_t i = 0; current && i < current->count; i++, op++)
        dprintf(2, "  %2u %-15s fd %d fd2 %d out %d a %#llx b %#llx flags %x \"%.40s\" \"%.40s\"\n", i, op_names[op->code], op->fd, op->fd2, op->out,
                (unsigned long long)op->a, (unsigned long long)op->b, op->flags, text_of(op->str), text_of(op->str2));
}

static void misbehaved(const char *what, long a, long b)
{
    print_plan();
    dprintf(2, "world %llu, plan %llu: %s (%ld, %ld)\n", (unsigned long long)tally->seed, (unsigned long long)tally->plans, what, a, b);
    _exit(MISBEHAVED);
}

static void check_report(const struct result *result, int collect, uint32_t count)
{
    const struct report *report = &result->out.report;
    int runs = report->stage == STAGE_EXEC && report->err == 0;
    if (report->stage < STAGE_CLONE || report->stage > STAGE_EXEC)
        misbehaved("no such stage", report->stage, report->err);
    /* WAIT_READY hands on what it reads, which may be any number; all others are the kernel's. */
    if (report->index < -1 || report->index >= (int32_t)count)
        misbehaved("no such op", report->index, count);
    if (runs && !collect ? result->out.pid <= 0 || result->out.pidfd < 0 : result->out.pid != -1 || result->out.pidfd != -1)
        misbehaved("pid and pidfd do not fit the outcome", result->out.pid, result->out.pidfd);
}

/* One plan. Whatever is wrong afterwards ends the world with MISBEHAVED. */
static void run_plan(void)
{
    size_t size;
    struct pack *pack = make_plan();
    uint8_t *baked = pack_bake(pack, &size);
    pack_free(pack);
    if (one_in(3))
        mutate(baked, size);
    else if (one_in(50))
        for (size_t i = 4; i < size; i++)
            baked[i] = (uint8_t)rnd();
    const struct plan_head *head = (const struct plan_head *)baked;
    const struct op *ops = (const struct op *)(head + 1);
    uint32_t count = head->count;
    int has_filter = 0, collect = head->flags & PLAN_COLLECT;
    uint8_t before[LAST_FD + 64], after[sizeof before];
    sigset_t mask, same;
    sigprocmask(SIG_SETMASK, NULL, &mask);
    fds_open(before, sizeof before);
    uint64_t hung = tally->hung;
    if (count <= PLAN_OPS_MAX && size >= sizeof *head + count * sizeof *ops)
        for (uint32_t i = 0; i < count; i++)
            has_filter |= ops[i].code == OP_SECCOMP;
    if (has_filter && collect) { /* made so by a mutation: see add_filter */
        free(baked);
        return;
    }
    struct result result = run_baked(baked, size, some_strings(0), some_strings(1), NULL);
    current = result.refused ? NULL : head;
    if (result.refused == 0) {
        tally->accepted++;
        check_report(&result, collect, count);
        int stage = result.out.report.stage, index = result.out.report.index, err = result.out.report.err;
        tally->failed += err != 0;
        tally->killed += err == 0 && stage != STAGE_EXEC;
        tally->collected += collect && stage == STAGE_EXEC;
        if (stage == STAGE_OPS && index >= 0)
            tally->by_op[ops[index].code][0]++;
        if (stage == STAGE_EXEC)
            for (uint32_t i = 0; i < count; i++)
                tally->by_op[ops[i].code][1]++;
        if (collect)
            for (int i = 0; i < SLOTS; i++)
                if (result.slots[i] >= 0 && close(result.slots[i]))
                    misbehaved("a slot holds what is not open", i, result.slots[i]);
        if (result.out.pidfd >= 0) {
            siginfo_t info;
            tally->ran++;
            if (waitid((idtype_t)3, (id_t)result.out.pidfd, &info, WEXITED | __WALL))
                misbehaved("cannot wait for what runs", errno, result.out.pid);
            close(result.out.pidfd);
        }
    }
    if (tally->hung != hung)
        misbehaved("launch() did not return until the child was killed", result.out.report.stage, result.out.report.index);
    fds_open(after, sizeof after);
    for (size_t fd = 0; fd < sizeof before; fd++)
        if (before[fd] != after[fd])
            misbehaved(after[fd] ? "descriptor left open" : "descriptor taken away", (long)fd, result.out.report.index);
    if (has_children())
        misbehaved("a child is left", result.out.report.stage, result.out.report.index);
    sigprocmask(SIG_SETMASK, NULL, &same);
    if (memcmp(&mask, &same, 8))
        misbehaved("the signal mask changed", 0, 0);
    if (sanitizer_complained)
        misbehaved("a sanitizer complained in the child", result.out.report.stage, result.out.report.index);
    free(baked);
}

/* --- worlds --- */

static void need(int ok, const char *what)
{
    if (ok)
        return;
    dprintf(2, "%s: %s\n", what, strerror(errno));
    _exit(WORLD_UNAVAILABLE);
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    need(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), path);
    close(fd);
}

static void copy_to(int from, const char *path)
{
    char buffer[65536];
    int to = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0755);
    need(to >= 0, path);
    for (ssize_t got; (got = pread(from, buffer, sizeof buffer, lseek(to, 0, SEEK_CUR))) > 0;)
        need(write(to, buffer, (size_t)got) == got, path);
    close(to);
}

/* Nothing that a plan can name leads out of here. */
static void enter_empty_root(int peer)
{
    need(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "private mounts");
    need(mount("world", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=8m,nr_inodes=2000,mode=0755") == 0, "tmpfs");
    need(chdir("/tmp") == 0, "chdir");
    copy_to(peer, "peer");
    need(mkdir("d", 0755) == 0 && mkdir("d/e", 0755) == 0 && mkdir("w", 0755) == 0 && mkdir("dev", 0755) == 0, "mkdir");
    need(symlink("/f", "l") == 0 && symlink("..", "up") == 0, "symlink");
    int fd = open("f", O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    need(fd >= 0 && write(fd, "f\n", 2) == 2 && close(fd) == 0, "file");
    need(syscall(SYS_pivot_root, ".", ".") == 0 && umount2(".", MNT_DETACH) == 0 && chdir("/") == 0, "pivot_root");
}

/* Descriptors that plans can name: 0 /dev/null, 1 and 2 the way out for messages, 3 the root directory, then files, namespaces,
 * a pidfd. None of them blocks when it is read. */
static void open_descriptors(int null, int messages, const int *namespaces, int count)
{
    dup2(null, 0);
    dup2(messages, 1);
    dup2(messages, 2);
    int keep[8];
    for (int i = 0; i < count; i++)
        keep[i] = fcntl(namespaces[i], F_DUPFD_CLOEXEC, 200);
    close_range(3, 199, 0);
    int from[] = { open("/", O_PATH | O_DIRECTORY | O_CLOEXEC),    open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC),
                   open("/peer", O_RDONLY | O_CLOEXEC),            open("/d", O_RDONLY | O_DIRECTORY | O_CLOEXEC),
                   open("/f", O_RDWR | O_CLOEXEC),                 open("/d/e", O_PATH | O_CLOEXEC),
                   (int)syscall(SYS_pidfd_open, getpid(), 0),      open("/peer", O_PATH | O_CLOEXEC) };
    need(from[0] == 3 && from[7] == 10, "descriptors");
    for (int i = 0; i < count; i++)
        dup3(keep[i], 12 + i, O_CLOEXEC);
    dup3(3, 33, O_CLOEXEC);
    close_range(200, ~0u, 0);
}

/* The process whose launches are fuzzed. */
static void be_fuzzed(uint64_t seed, int null, int messages, const int *namespaces, int count)
{
    static const struct rlimit file_size = { 65536, 65536 }, no_core = { 0, 0 }, few_files = { 128, 128 };
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    open_descriptors(null, messages, namespaces, count);
    setrlimit(RLIMIT_FSIZE, &file_size);
    setrlimit(RLIMIT_CORE, &no_core);
    if (seed & 1)
        setrlimit(RLIMIT_NOFILE, &few_files);
    signal(SIGXFSZ, SIG_IGN);
    need(stat("/", &at_root) == 0 && stat("/d", &at_d) == 0, "stat");
    state = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int i = 0; i < WORLD_PLANS; i++) {
        tally->plans++;
        run_plan();
        char here[2];
        if (access("/peer", X_OK) || !getcwd(here, sizeof here)) /* mounted over, pivoted away */
            _exit(WORLD_BROKEN);
    }
    _exit(WORLD_DONE);
}

/* Pid 1 of a world: kills whatever hangs. Only 2, the process that is fuzzed, is spared, so that its launch goes on. */
static void watch_over(pid_t fuzzed)
{
    int pidfd = (int)syscall(SYS_pidfd_open, fuzzed, 0), status = 0;
    struct pollfd watch = { .fd = pidfd, .events = POLLIN };
    uint64_t plans = tally->plans;
    for (int strikes = 0; poll(&watch, 1, HANG_MS) == 0; plans = tally->plans) {
        strikes = tally->plans == plans ? strikes + 1 : 0;
        if (strikes == 1) {
            tally->hung++;
            for (pid_t pid = 3; pid < 32768; pid++)
                if (pid != fuzzed)
                    kill(pid, SIGKILL);
        }
        if (strikes == 3) {
            dprintf(2, "plan %llu: launch() does not return\n", (unsigned long long)plans);
            _exit(MISBEHAVED);
        }
    }
    while (waitpid(fuzzed, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFSIGNALED(status)) {
        dprintf(2, "plan %llu: ended by signal %d\n", (unsigned long long)tally->plans, WTERMSIG(status));
        _exit(MISBEHAVED);
    }
    _exit(WEXITSTATUS(status));
}

static void run_world(uint64_t seed, int messages)
{
    static const char *const names[] = { "user", "mnt", "uts", "ipc", "pid", "cgroup" };
    int namespaces[6];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int peer = open(peer_path(), O_RDONLY | O_CLOEXEC), null = open("/dev/null", O_RDWR | O_CLOEXEC);
    need(peer >= 0 && null >= 0, peer_path());
    if (getuid() == 0) {
        need(setgroups(0, NULL) == 0 && setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0, "becoming an ordinary user");
        prctl(PR_SET_DUMPABLE, 1); /* else /proc/self is still root's */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    char uid_map[32], gid_map[32];
    snprintf(uid_map, sizeof uid_map, "0 %d 1", (int)geteuid());
    snprintf(gid_map, sizeof gid_map, "0 %d 1", (int)getegid());
    need(unshare(NAMESPACES) == 0, "new namespaces as an ordinary user");
    write_file("/proc/self/setgroups", "deny");
    write_file("/proc/self/uid_map", uid_map);
    write_file("/proc/self/gid_map", gid_map);
    for (int i = 0; i < 6; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/ns/%s", i == 4 ? "pid_for_children" : names[i]);
        namespaces[i] = i == 4 ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    }
    namespaces[4] = namespaces[0];
    enter_empty_root(peer);
    pid_t first = fork();
    if (first == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pid_t fuzzed = fork();
        if (fuzzed == 0)
            be_fuzzed(seed, null, messages, namespaces, 6);
        watch_over(fuzzed);
    }
    int status = 0;
    need(first > 0 && waitpid(first, &status, 0) == first, "pid 1");
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : MISBEHAVED);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* One world, and what its processes had to say. Through a pipe, so that no plan can reach a terminal of ours. */
static int world(uint64_t seed)
{
    int messages[2], status;
    char text[16384];
    if (pipe2(messages, O_CLOEXEC))
        return MISBEHAVED;
    pid_t pid = fork();
    if (pid == 0)
        run_world(seed, messages[1]);
    close(messages[1]);
    if (read_all(messages[0], text, sizeof text))
        fputs(text, stderr);
    waitpid(pid, &status, 0);
    tally->worlds++;
    return WIFEXITED(status) ? WEXITSTATUS(status) : MISBEHAVED;
}

int main(void)
{
    uint64_t seed = getenv("FUZZ_SEED") && *getenv("FUZZ_SEED") ? strtoull(getenv("FUZZ_SEED"), NULL, 0) : (uint64_t)time(NULL);
    double seconds = getenv("FUZZ_SECONDS") ? atof(getenv("FUZZ_SECONDS")) : 20, end = now() + seconds;
    tally = mmap(NULL, sizeof *tally, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    printf("FUZZ_SEED=%llu FUZZ_SECONDS=%g\n", (unsigned long long)seed, seconds);
    fflush(stdout);
    int said = WORLD_DONE;
    for (; now() < end && (said == WORLD_DONE || said == WORLD_BROKEN); seed++)
        said = world(tally->seed = seed);
    if (said == WORLD_UNAVAILABLE) {
        printf("skipped: no world can be made here in which random plans could do no harm\n");
        return 0;
    }
    printf("%llu plans in %llu worlds: %llu accepted, %llu failed, %llu ran a program, %llu collected, %llu were killed, %llu hung\n",
           (unsigned long long)tally->plans, (unsigned long long)tally->worlds, (unsigned long long)tally->accepted,
           (unsigned long long)tally->failed, (unsigned long long)tally->ran, (unsigned long long)tally->collected,
           (unsigned long long)tally->killed, (unsigned long long)tally->hung);
    for (int code = 0; getenv("FUZZ_VERBOSE") && code < OP_COUNT; code++)
        printf("%-16s failed %u, went well %u\n", op_names[code], tally->by_op[code][0], tally->by_op[code][1]);
    if (said == MISBEHAVED || (said != WORLD_DONE && said != WORLD_BROKEN))
        printf("FAILED: to see it again:  FUZZ_SEED=%llu make fuzz\n", (unsigned long long)seed - 1);
    return said != WORLD_DONE && said != WORLD_BROKEN;
}
