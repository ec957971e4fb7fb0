/* inherited(): the same twice in a row, and something else after anything that a child would take over. */
#include "check.h"
#include "inherited.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct answer {
    size_t size;
    char bytes[INHERITED_BYTES];
};

static const struct answer *ask(void)
{
    struct answer *answer = calloc(1, sizeof *answer);
    answer->size = inherited(answer->bytes, sizeof answer->bytes);
    CHECK(answer->size > 0 && answer->size < sizeof answer->bytes, "%zu bytes", answer->size);
    return answer;
}

static int same(const struct answer *one, const struct answer *other)
{
    return one->size == other->size && memcmp(one->bytes, other->bytes, one->size) == 0;
}

static void nothing_changed(void)
{
    const struct answer *first = ask();
    for (int i = 0; i < 20; i++)
        CHECK(same(first, ask()), "call %d gives another answer", i);
    void *memory = malloc(1 << 20); /* what a child does not take over */
    int fd = fcntl(0, F_DUPFD_CLOEXEC, 100);
    mode_t mask = umask(077);
    CHECK(same(first, ask()), "memory, descriptors or the umask are part of it");
    umask(mask);
    close(fd);
    free(memory);
}

static void a_child_has_the_same(void)
{
    const struct answer *ours = ask();
    int status;
    pid_t pid = fork();
    if (pid == 0)
        _exit(!same(ours, ask()));
    CHECK(waitpid(pid, &status, 0) == pid && status == 0, "status %d", status);
}

static void no_byte_beyond_the_buffer(void)
{
    size_t size = ask()->size;
    for (size_t room = 0; room <= size + 1; room++) {
        char *buffer = malloc(room); /* AddressSanitizer sees a step beyond */
        size_t used = inherited(buffer, room);
        CHECK(used == (room < size ? room : size), "%zu of %zu bytes used", used, room);
        free(buffer);
    }
}

/* --- one change each; false where it cannot be made here --- */

static int limit_lower(int resource)
{
    struct rlimit limit;
    return getrlimit((__rlimit_resource_t)resource, &limit) == 0 && limit.rlim_cur > 0 && (limit.rlim_cur -= 1, 1) &&
           setrlimit((__rlimit_resource_t)resource, &limit) == 0;
}
static int fewer_descriptors(void) { return limit_lower(RLIMIT_NOFILE); }
static int less_stack(void) { return limit_lower(RLIMIT_STACK); }
static int hard_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_CORE, &limit) || limit.rlim_max == 0)
        return 0;
    limit.rlim_max = limit.rlim_max == RLIM_INFINITY ? 1 << 30 : limit.rlim_max - 1;
    limit.rlim_cur = limit.rlim_cur < limit.rlim_max ? limit.rlim_cur : limit.rlim_max;
    return setrlimit(RLIMIT_CORE, &limit) == 0;
}
static int nicer(void) { return setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + 1) == 0; }
static int fewer_processors(void)
{
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) || CPU_COUNT(&cpus) < 2)
        return 0;
    int first = 0;
    while (!CPU_ISSET(first, &cpus))
        first++;
    CPU_CLR(first, &cpus);
    return sched_setaffinity(0, sizeof cpus, &cpus) == 0;
}
static int in_batches(void) { return sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){ 0 }) == 0; }
static int in_real_time(void) { return sched_setscheduler(0, SCHED_RR, &(struct sched_param){ 1 }) == 0; }
static int more_urgent(void) { return sched_setscheduler(0, SCHED_RR, &(struct sched_param){ 2 }) == 0; }
static int idle_disk(void) { return syscall(SYS_ioprio_set, 1 /* IOPRIO_WHO_PROCESS */, 0, 3 << 13 /* IOPRIO_CLASS_IDLE */) == 0; }
static int fixed_addresses(void) { return personality(ADDR_NO_RANDOMIZE) >= 0; }
static int slack_timers(void) { return prctl(PR_SET_TIMERSLACK, 123456) == 0; }
static int no_huge_pages(void) { return prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0; }
static int no_code_from_data(void) { return prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0) == 0; }
static int merged_memory(void) { return prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0) == 0; }
static int killed_early(void) { return prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0; }
static int into_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    long size = fd < 0 ? -1 : write(fd, text, strlen(text));
    close(fd);
    return size > 0;
}
static int other_dumps(void) { return into_file("/proc/self/coredump_filter", "0x7f"); }
static int killed_first(void) { return into_file("/proc/self/oom_score_adj", "300"); }
static int no_new_privs(void) { return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0; }
static int filtered(void)
{
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = { 1, &allow };
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0;
}
static int secure_bits(void) { return prctl(PR_SET_SECUREBITS, 1 << 2 /* SECBIT_NO_SETUID_FIXUP */, 0, 0, 0) == 0; }
static int fewer_capabilities(void)
{
    struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &head, data) || !data[0].permitted)
        return 0;
    data[0].effective &= data[0].effective - 1;
    data[0].permitted = data[0].effective;
    data[0].inheritable = 0;
    return syscall(SYS_capset, &head, data) == 0;
}
static int another_group(void) { return setgroups(2, (const gid_t[]){ 12, 34 }) == 0; }
static int other_ids(void) { return setresgid((gid_t)-1, (gid_t)-1, 4321) == 0; }
static int other_root(void) { return chroot("/tmp") == 0; }
static int own_mounts(void) { return unshare(CLONE_NEWNS) == 0; }
static int own_users(void) { return unshare(CLONE_NEWUSER) == 0; }

static const struct change {
    const char *what;
    int (*make)(void);
} changes[] = { /* what takes privileges comes before what takes them away */
    { "a soft limit", fewer_descriptors },
    { "another soft limit", less_stack },
    { "a hard limit", hard_limit },
    { "the nice value", nicer },
    { "the processors", fewer_processors },
    { "the scheduling policy", in_batches },
    { "the slack of timers", slack_timers },
    { "what becomes of memory that fails", killed_early },
    { "what a core dump holds", other_dumps },
    { "who is killed first", killed_first },
    { "huge pages", no_huge_pages },
    { "merged pages", merged_memory },
    { "memory that may not become code", no_code_from_data },
    { "real time", in_real_time }, /* which has no slack */
    { "priority in real time", more_urgent },
    { "priority of reads and writes", idle_disk },
    { "the personality", fixed_addresses },
    { "groups", another_group },
    { "the saved group", other_ids },
    { "the user namespace", own_users },
    { "the mount namespace", own_mounts },
    { "the root directory", other_root },
    { "the secure bits", secure_bits },
    { "capabilities", fewer_capabilities },
    { "no_new_privs", no_new_privs },
}, filters[] = { /* counted in /proc; and once there is one, no two answers need to be the same */
    { "no_new_privs", no_new_privs },
    { "a filter", filtered },
    { "one more filter", filtered },
};

static void make_and_look(const struct change *all, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct answer *before = ask();
        if (all[i].make())
            CHECK(!same(before, ask()), "%s changed, and the answer is the same", all[i].what);
        else
            dprintf(1, "not shown: %s; ", all[i].what);
    }
}

static void every_change_is_seen(void) { make_and_look(changes, sizeof changes / sizeof *changes); }
static void filters_are_seen(void) { make_and_look(filters, sizeof filters / sizeof *filters); }

static void the_cgroup_is_seen(void)
{
    char path[4096];
    int fd = cgroup_new(path, sizeof path), status = 1;
    if (fd < 0)
        skip("no cgroup can be made here (errno %d)", errno);
    pid_t pid = fork();
    if (pid == 0) { /* it ends there, so that nobody has to find the way back */
        const struct answer *before = ask();
        int procs = openat(fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
        _exit(write(procs, "0", 1) != 1 ? 2 : same(before, ask()));
    }
    waitpid(pid, &status, 0);
    close(fd);
    rmdir(path);
    CHECK(status == 0, "status %#x", status);
}

static void *make_nicer(void *ours)
{
    return nicer() && !same(ours, ask()) ? NULL : ours;
}

static int another_network(void) { return unshare(CLONE_NEWNET) == 0; }

static const struct change of_threads[] = {
    { "the nice value", nicer },
    { "the processors", fewer_processors },
    { "the scheduling policy", in_batches },
    { "the slack of timers", slack_timers },
    { "what becomes of memory that fails", killed_early },
    { "priority of reads and writes", idle_disk },
    { "the personality", fixed_addresses },
    { "the network", another_network },
    { "the mount namespace", own_mounts },
    { "the secure bits", secure_bits },
    { "capabilities", fewer_capabilities },
    { "no_new_privs", no_new_privs },
    { "a filter", filtered },
};

static size_t ask_thread(char *bytes)
{
    size_t size = inherited_by_thread(bytes, INHERITED_BYTES);
    CHECK(size > 0 && size < INHERITED_BYTES, "%zu bytes", size);
    return size;
}

static void *change_all(void *unused)
{
    static char before[INHERITED_BYTES], after[INHERITED_BYTES];
    for (size_t i = 0; i < sizeof of_threads / sizeof *of_threads; i++) {
        size_t size = ask_thread(before);
        if (!of_threads[i].make())
            dprintf(1, "not shown: %s; ", of_threads[i].what);
        else
            CHECK(ask_thread(after) == size && memcmp(before, after, size), "%s changed, and the answer is the same", of_threads[i].what);
    }
    return unused;
}

static void *look(void *answer)
{
    ask_thread(answer);
    return NULL;
}

static void what_threads_differ_in_is_told(void)
{
    static char ours[INHERITED_BYTES], again[INHERITED_BYTES], others[INHERITED_BYTES];
    size_t size = ask_thread(ours);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, look, others) == 0 && pthread_join(thread, NULL) == 0, "no thread");
    CHECK(!memcmp(ours, others, size), "a new thread's answer is another");
    CHECK(pthread_create(&thread, NULL, change_all, NULL) == 0 && pthread_join(thread, NULL) == 0, "no thread");
    CHECK(ask_thread(again) == size && !memcmp(ours, again, size), "another thread's changes are seen");
    CHECK(limit_lower(RLIMIT_NOFILE) && ask_thread(again) == size && !memcmp(ours, again, size), "what all threads share is part of it");
}

static void a_thread_is_asked_for_itself(void)
{
    const struct answer *ours = ask();
    pthread_t thread;
    void *failed;
    CHECK(pthread_create(&thread, NULL, make_nicer, (void *)(uintptr_t)ours) == 0, "no thread");
    pthread_join(thread, &failed);
    CHECK(!failed, "a thread's own nice value is not seen");
    CHECK(same(ours, ask()), "another thread's nice value is seen");
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "the answer is the same as long as nothing changes", nothing_changed },
        { "a child's answer is its parent's", a_child_has_the_same },
        { "no byte is written beyond the buffer", no_byte_beyond_the_buffer },
        { "every change that a child would take over is another answer", every_change_is_seen },
        { "so is each filter", filters_are_seen },
        { "so is another cgroup", the_cgroup_is_seen },
        { "a thread is asked for itself alone", a_thread_is_asked_for_itself },
        { "what a thread has otherwise than another is told apart", what_threads_differ_in_is_told },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
