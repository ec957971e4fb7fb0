/* Worlds in which whatever random ops do harms nobody. See fuzz.h.
 *
 * Each world is a process in user, mount, pid, network, ipc, uts and cgroup namespaces of its own, made by an ordinary user
 * (root becomes one first); its root is an empty tmpfs that holds the static peer; the old root is unmounted, there is no
 * /proc, no device but /dev/null by descriptor, no terminal; no descriptor leads out. A world ends after WORLD_ROUNDS rounds,
 * when random mounts have covered it, or when it hangs. */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORLD_ROUNDS 400
#define HANG_MS 3000
#define NAMESPACES (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)

enum { WORLD_DONE = 0, WORLD_BROKEN = 3, WORLD_UNAVAILABLE = 77, MISBEHAVED = 1 };

struct tally *tally;

#define X(name, fn, operands) #name,
static const char *const op_names[] = { OPS(X) };
#undef X

static const char *text_of(const struct plan_head *head, uint32_t offset)
{
    return offset == NO_STR ? "-" : (const char *)(head + 1) + head->count * sizeof(struct op) + offset;
}

static void print_plan(const struct plan_head *head)
{
    const struct op *op = (const struct op *)(head + 1);
    if (head)
        dprintf(2, "flags %x, clone %llx, cgroup %d, enter %d %llx, exec %d\n", head->flags, (unsigned long long)head->clone_flags,
                head->cgroup_fd, head->enter_fd, (unsigned long long)head->enter_flags, head->exec_fd);
    for (uint32_t i = 0; head && i < head->count; i++, op++)
        dprintf(2, "  %2u %-15s fd %d fd2 %d out %d a %#llx b %#llx flags %x \"%.40s\" \"%.40s\"\n", i, op_names[op->code], op->fd, op->fd2, op->out,
                (unsigned long long)op->a, (unsigned long long)op->b, op->flags, text_of(head, op->str), text_of(head, op->str2));
}

void misbehaved(const struct plan_head *head, const char *what, long a, long b)
{
    print_plan(head);
    dprintf(2, "world %llu, round %llu: %s (%ld, %ld)\n", (unsigned long long)tally->seed, (unsigned long long)tally->rounds, what, a, b);
    _exit(MISBEHAVED);
}

int has_op(const void *baked, size_t size, enum op_code code)
{
    const struct plan_head *head = baked;
    const struct op *ops = (const struct op *)(head + 1);
    if (size < sizeof *head || head->count > PLAN_OPS_MAX || size < sizeof *head + head->count * sizeof *ops)
        return 0;
    for (uint32_t i = 0; i < head->count; i++)
        if (ops[i].code == code)
            return 1;
    return 0;
}

static uint64_t signal_mask(void)
{
    uint64_t mask = 0;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &mask, sizeof mask);
    return mask;
}

void look_before(struct still *still)
{
    still->mask = signal_mask();
    still->hung = tally->hung;
    fds_open(still->fds, sizeof still->fds);
}

void look_after(const struct still *still, const struct plan_head *head)
{
    uint8_t fds[sizeof still->fds];
    if (tally->hung != still->hung)
        misbehaved(head, "it did not return until its child was killed", 0, 0);
    fds_open(fds, sizeof fds);
    for (size_t fd = 0; fd < sizeof fds; fd++)
        if (fds[fd] != still->fds[fd])
            misbehaved(head, fds[fd] ? "descriptor left open" : "descriptor taken away", (long)fd, 0);
    if (has_children())
        misbehaved(head, "a child is left", 0, 0);
    if (signal_mask() != still->mask)
        misbehaved(head, "the signal mask changed", 0, 0);
    if (sanitizer_complained)
        misbehaved(head, "a sanitizer complained in the child", 0, 0);
}

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
static void open_descriptors(int null, int messages, const int *namespaces, int count, int image)
{
    dup2(null, 0);
    dup2(messages, 1);
    dup2(messages, 2);
    int keep[8];
    for (int i = 0; i < count; i++)
        keep[i] = fcntl(namespaces[i], F_DUPFD_CLOEXEC, 200);
    if (image >= 0)
        image = fcntl(image, F_DUPFD_CLOEXEC, 200);
    close_range(3, 199, 0);
    int from[] = { open("/", O_PATH | O_DIRECTORY | O_CLOEXEC),    open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC),
                   open("/peer", O_RDONLY | O_CLOEXEC),            open("/d", O_RDONLY | O_DIRECTORY | O_CLOEXEC),
                   open("/f", O_RDWR | O_CLOEXEC),                 open("/d/e", O_PATH | O_CLOEXEC),
                   (int)syscall(SYS_pidfd_open, getpid(), 0),      open("/peer", O_PATH | O_CLOEXEC) };
    need(from[0] == 3 && from[7] == 10, "descriptors");
    for (int i = 0; i < count; i++)
        dup3(keep[i], 12 + i, O_CLOEXEC);
    dup3(3, 33, O_CLOEXEC);
    if (image >= 0)
        dup3(image, FUZZ_IMAGE, O_CLOEXEC);
    close_range(200, ~0u, 0);
}

/* The process that is fuzzed. */
static void be_fuzzed(const struct fuzzer *fuzzer, uint64_t seed, int null, int messages, const int *namespaces, int count, int image)
{
    static const struct rlimit file_size = { 65536, 65536 }, no_core = { 0, 0 }, few_files = { 128, 128 };
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    open_descriptors(null, messages, namespaces, count, image);
    setrlimit(RLIMIT_FSIZE, &file_size);
    setrlimit(RLIMIT_CORE, &no_core);
    if (seed & 1)
        setrlimit(RLIMIT_NOFILE, &few_files);
    signal(SIGXFSZ, SIG_IGN);
    look_at_world();
    fuzz_state = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int i = 0; i < WORLD_ROUNDS; i++) {
        tally->rounds++;
        fuzzer->round();
        char here[2];
        if (access("/peer", X_OK) || !getcwd(here, sizeof here)) /* mounted over, pivoted away */
            _exit(WORLD_BROKEN);
    }
    _exit(WORLD_DONE);
}

/* Pid 1 of a world: kills whatever hangs. Only 2, the process that is fuzzed, is spared, so that its round goes on. */
static void watch_over(pid_t fuzzed)
{
    int pidfd = (int)syscall(SYS_pidfd_open, fuzzed, 0), status = 0;
    struct pollfd watch = { .fd = pidfd, .events = POLLIN };
    uint64_t rounds = tally->rounds;
    for (int strikes = 0; poll(&watch, 1, HANG_MS) == 0; rounds = tally->rounds) {
        strikes = tally->rounds == rounds ? strikes + 1 : 0;
        if (strikes == 1) {
            tally->hung++;
            for (pid_t pid = 3; pid < 32768; pid++)
                if (pid != fuzzed)
                    kill(pid, SIGKILL);
        }
        if (strikes == 3) {
            dprintf(2, "round %llu: it does not return\n", (unsigned long long)rounds);
            _exit(MISBEHAVED);
        }
    }
    while (waitpid(fuzzed, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFSIGNALED(status)) {
        dprintf(2, "round %llu: ended by signal %d\n", (unsigned long long)tally->rounds, WTERMSIG(status));
        _exit(MISBEHAVED);
    }
    _exit(WEXITSTATUS(status));
}

static void run_world(const struct fuzzer *fuzzer, uint64_t seed, int messages)
{
    static const char *const names[] = { "user", "mnt", "uts", "ipc", "pid", "cgroup" };
    int namespaces[6];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int peer = open(peer_path(), O_RDONLY | O_CLOEXEC), null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int image = fuzzer->image ? open(fuzzer->image, O_RDONLY | O_CLOEXEC) : -1;
    need(peer >= 0 && null >= 0 && (image >= 0 || !fuzzer->image), peer_path());
    become_ordinary();
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
            be_fuzzed(fuzzer, seed, null, messages, namespaces, 6, image);
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
static int world(const struct fuzzer *fuzzer, uint64_t seed)
{
    int messages[2], status;
    char text[16384];
    if (pipe2(messages, O_CLOEXEC))
        return MISBEHAVED;
    pid_t pid = fork();
    if (pid == 0)
        run_world(fuzzer, seed, messages[1]);
    close(messages[1]);
    if (read_all(messages[0], text, sizeof text))
        fputs(text, stderr);
    waitpid(pid, &status, 0);
    tally->worlds++;
    return WIFEXITED(status) ? WEXITSTATUS(status) : MISBEHAVED;
}

int fuzz(const struct fuzzer *fuzzer)
{
    uint64_t seed = getenv("FUZZ_SEED") && *getenv("FUZZ_SEED") ? strtoull(getenv("FUZZ_SEED"), NULL, 0) : (uint64_t)time(NULL);
    double seconds = getenv("FUZZ_SECONDS") ? atof(getenv("FUZZ_SECONDS")) : 20, end = now() + seconds;
    tally = mmap(NULL, sizeof *tally, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    printf("FUZZ_SEED=%llu FUZZ_SECONDS=%g\n", (unsigned long long)seed, seconds);
    fflush(stdout);
    int said = WORLD_DONE;
    for (; now() < end && (said == WORLD_DONE || said == WORLD_BROKEN); seed++)
        said = world(fuzzer, tally->seed = seed);
    if (said == WORLD_UNAVAILABLE) {
        printf("skipped: no world can be made here in which random plans could do no harm\n");
        return 0;
    }
    printf("%llu plans in %llu worlds", (unsigned long long)tally->rounds, (unsigned long long)tally->worlds);
    for (int i = 0; fuzzer->counts[i]; i++)
        printf("%s %llu %s", i ? "," : ":", (unsigned long long)tally->counts[i], fuzzer->counts[i]);
    printf(", %llu hung\n", (unsigned long long)tally->hung);
    for (int code = 0; getenv("FUZZ_VERBOSE") && code < OP_COUNT; code++)
        printf("%-16s failed %u, went well %u\n", op_names[code], tally->by_op[code][0], tally->by_op[code][1]);
    if (said != WORLD_DONE && said != WORLD_BROKEN)
        printf("FAILED: to see it again:  FUZZ_SEED=%llu make fuzz\n", (unsigned long long)seed - 1);
    return said != WORLD_DONE && said != WORLD_BROKEN;
}
