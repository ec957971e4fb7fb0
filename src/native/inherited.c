/* What a child takes over from the thread that makes it, beyond its descriptors: a process made ahead has what its maker had
 * then. Two answers are equal when a process made now would be no different.
 *
 * Not seen: Landlock rules that a thread took on itself, and the label of a security module. */
#include "inherited.h"
#include "sys.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h> /* struct statx */

struct sink {
    char *at;
    size_t left;
};

static void put(struct sink *to, const void *data, size_t size)
{
    if (size > to->left)
        size = to->left;
    __builtin_memcpy(to->at, data, size);
    to->at += size;
    to->left -= size;
}

static void put_number(struct sink *to, long number) { put(to, &number, sizeof number); }

/* The id of the root's mount is another one after chroot as well as in another mount namespace. */
static void put_root(struct sink *to)
{
    struct statx found;
    __builtin_memset(&found, 0, sizeof found);
    sys5(__NR_statx, AT_FDCWD, "/", 0, STATX_INO | STATX_MNT_ID, &found);
    put_number(to, (long)found.stx_ino);
    put_number(to, (long)found.stx_mnt_id);
    put_number(to, (long)found.stx_dev_major << 32 | found.stx_dev_minor);
}

static void put_network(struct sink *to)
{
    char name[64]; /* "net:[4026531840]"; to look at the file itself takes longer */
    long size = sys4(__NR_readlinkat, AT_FDCWD, "/proc/thread-self/ns/net", name, sizeof name);
    put(to, name, size > 0 ? (size_t)size : 0);
}

static long filtered(void) { return sys5(__NR_prctl, PR_GET_SECCOMP, 0, 0, 0, 0); }

static void put_file(struct sink *to, const char *path)
{
    char text[2048];
    long fd = sys3(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC), size = 0;
    if (fd < 0)
        return;
    size = sys3(__NR_read, fd, text, sizeof text);
    sys1(__NR_close, fd);
    if (size > 0)
        put(to, text, (size_t)size);
}

/* struct pidfd_info of Linux 6.13 and later, as far as it goes here: ioctl_pidfd(2). */
struct info {
    uint64_t mask, cgroup_id;
    uint32_t rest[12];
};
#define GET_INFO 0xc040ff0bu /* PIDFD_GET_INFO */
#define INFO_CGROUP_ID 4u

static void put_cgroup(struct sink *to)
{
    struct info info = { .mask = INFO_CGROUP_ID };
    long pidfd = sys2(__NR_pidfd_open, sys0(__NR_getpid), 0);
    long ret = pidfd < 0 ? pidfd : sys3(__NR_ioctl, pidfd, GET_INFO, &info);
    if (pidfd >= 0)
        sys1(__NR_close, pidfd);
    if (ret == 0 && info.mask & INFO_CGROUP_ID)
        put_number(to, (long)info.cgroup_id);
    else
        put_file(to, "/proc/thread-self/cgroup");
}

/* What one thread of a process may have otherwise than another. */
static void put_thread(struct sink *to)
{
    unsigned ids[6];
    sys3(__NR_getresuid, &ids[0], &ids[1], &ids[2]);
    sys3(__NR_getresgid, &ids[3], &ids[4], &ids[5]);
    put(to, ids, sizeof ids);
    struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct caps[2] = { { 0 }, { 0 } };
    sys2(__NR_capget, &head, caps);
    put(to, caps, sizeof caps);
    unsigned long cpus[16] = { 0 };
    sys3(__NR_sched_getaffinity, 0, sizeof cpus, cpus);
    put(to, cpus, sizeof cpus);
    uint32_t scheduling[16] = { 0 }; /* struct sched_attr: policy, nice value, priority in real time... */
    sys4(__NR_sched_getattr, 0, scheduling, sizeof scheduling, 0);
    put(to, scheduling, sizeof scheduling);
    put_number(to, sys2(__NR_ioprio_get, 1 /* IOPRIO_WHO_PROCESS */, 0));
    put_number(to, sys1(__NR_personality, 0xffffffff));
    put_number(to, sys5(__NR_prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    put_number(to, sys5(__NR_prctl, PR_GET_SECUREBITS, 0, 0, 0, 0));
    put_number(to, sys5(__NR_prctl, PR_GET_TIMERSLACK, 0, 0, 0, 0));
    put_number(to, sys5(__NR_prctl, PR_MCE_KILL_GET, 0, 0, 0, 0));
    for (int way = PR_SPEC_STORE_BYPASS; way <= PR_SPEC_INDIRECT_BRANCH; way++)
        put_number(to, sys5(__NR_prctl, PR_GET_SPECULATION_CTRL, way, 0, 0, 0));
    put_number(to, filtered());
    put_root(to);
}

/* What exec keeps of how memory is treated: now, in a core dump, and when there is too little of it. */
static void put_memory(struct sink *to)
{
    put_number(to, sys5(__NR_prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0));
    put_number(to, sys5(__NR_prctl, 68 /* PR_GET_MEMORY_MERGE */, 0, 0, 0, 0));
    put_number(to, sys5(__NR_prctl, 66 /* PR_GET_MDWE */, 0, 0, 0, 0));
    put_file(to, "/proc/self/coredump_filter");
    put_file(to, "/proc/self/oom_score_adj");
}

size_t inherited_by_thread(char *buffer, size_t size)
{
    struct sink to = { buffer, size };
    put_thread(&to);
    put_network(&to);
    return size - to.left;
}

size_t inherited(char *buffer, size_t size)
{
    struct sink to = { buffer, size };
    put_thread(&to);
    unsigned groups[256];
    long count = sys2(__NR_getgroups, 256, groups);
    put_number(&to, count);
    if (count > 0)
        put(&to, groups, (size_t)count * sizeof *groups);
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        uint64_t limit[2] = { 0 };
        sys4(__NR_prlimit64, 0, i, 0, limit);
        put(&to, limit, sizeof limit);
    }
    put_memory(&to);
    if (filtered())
        put_file(&to, "/proc/thread-self/status"); /* how many filters; some of the rest changes, which costs time and no more */
    put_cgroup(&to);
    return size - to.left;
}
