/* Every op, and every system call that an op makes: when it fails, the op's index and that errno are reported, and what the op
 * had opened is closed. The plans collect, so they run on our own table: a descriptor left open would be seen here.
 *
 * The fault is made by a filter that the plan itself installs just before the op: the chosen call answers E instead. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define E EL3HLT /* no system call used here gives this one by itself */
#define LOWER(field) (offsetof(struct seccomp_data, field))

/* Fail call `nr` if its argument `arg` is (or, with `unless`, is not) `value`; arg -1: always. */
struct fault {
    long nr;
    int arg;
    int64_t value;
    int unless;
};

static void pack_fault(struct pack *pack, struct fault fault, int err)
{
    uint32_t deny = SECCOMP_RET_ERRNO | (uint32_t)err;
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, LOWER(nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)fault.nr, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, fault.arg < 0 ? LOWER(nr) : LOWER(args) + 8 * (uint32_t)fault.arg),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, fault.arg < 0 ? (uint32_t)fault.nr : (uint32_t)fault.value, fault.unless, !fault.unless),
        BPF_STMT(BPF_RET | BPF_K, deny),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    op_add(pack, OP_NO_NEW_PRIVS);
    pack_seccomp(pack, filter, sizeof filter / sizeof *filter);
}

/* Adds what an op needs to succeed (nothing that counts as the op's own) or, with `op` set, the op itself. */
typedef void builder(struct pack *pack, int op);

static struct op *text_op(struct pack *pack, enum op_code code, const char *text, const char *text2)
{
    uint32_t str = text ? pack_text(pack, text) : NO_STR, str2 = text2 ? pack_text(pack, text2) : NO_STR;
    struct op *op = op_add(pack, code);
    op->str = str;
    op->str2 = str2;
    return op;
}

#define OP_ONLY                                                                                                                   \
    if (!op)                                                                                                                      \
    return

static int ours = -1; /* a descriptor of ours that an op may be given: see each builder */

/* Slot 0: a tmpfs with a file "f", a directory "d" and a link "l" in it. */
static void tmpfs(struct pack *pack)
{
    text_op(pack, OP_FSMOUNT, "tmpfs", "size=64k,mode=0755")->out = 0;
    text_op(pack, OP_TOUCH, "f", NULL)->fd = SLOT(0);
    struct op *op = text_op(pack, OP_MKDIRS, "d", NULL);
    op->fd = SLOT(0);
    op->a = 0755;
    text_op(pack, OP_SYMLINK, "l", "/f")->fd = SLOT(0);
}

static void b_open(struct pack *pack, int op)
{
    OP_ONLY;
    struct op *o = text_op(pack, OP_OPEN, "/", NULL);
    o->fd = CWD_FD;
    o->out = 4;
    o->a = O_PATH | O_DIRECTORY;
}

static void b_expect(struct pack *pack, int op)
{
    OP_ONLY;
    struct stat st;
    fstat(0, &st);
    struct op *o = op_add(pack, OP_EXPECT);
    o->fd = 0;
    o->a = st.st_dev;
    o->b = st.st_ino;
}

static void b_chdir(struct pack *pack, int op)
{
    OP_ONLY;
    text_op(pack, OP_CHDIR, "/no/such/directory", NULL);
}

static void b_chdir_fd(struct pack *pack, int op)
{
    if (!op)
        tmpfs(pack);
    else
        text_op(pack, OP_CHDIR, "/no/such/directory", NULL)->fd = SLOT(0);
}

static void b_fsmount(struct pack *pack, int op)
{
    OP_ONLY;
    struct op *o = text_op(pack, OP_FSMOUNT, "tmpfs", "size=64k,ro");
    o->out = 5;
    o->a = MOUNT_ATTR_NODEV;
}

static void b_open_tree(struct pack *pack, int op)
{
    if (!op)
        return tmpfs(pack);
    struct op *o = text_op(pack, OP_OPEN_TREE, "", NULL);
    o->fd = SLOT(0);
    o->out = 1;
}

static void b_mount_setattr(struct pack *pack, int op)
{
    if (!op)
        return tmpfs(pack);
    struct op *o = op_add(pack, OP_MOUNT_SETATTR);
    o->fd = SLOT(0);
    o->a = MOUNT_ATTR_RDONLY;
}

/* The tmpfs as root, so that there is somewhere to mount; slot 1 is a second one. */
static void rooted(struct pack *pack)
{
    tmpfs(pack);
    op_add(pack, OP_PRIVATE_MOUNTS);
    uint32_t empty = pack_text(pack, "");
    struct op *op = text_op(pack, OP_OPEN, "/tmp", NULL);
    op->fd = CWD_FD;
    op->out = 2;
    op->a = O_PATH | O_DIRECTORY;
    op = op_add(pack, OP_MOVE_MOUNT);
    op->fd = SLOT(0);
    op->fd2 = SLOT(2);
    op->str = empty;
    text_op(pack, OP_FSMOUNT, "tmpfs", "")->out = 1;
}

static void b_move_mount(struct pack *pack, int op)
{
    if (!op)
        return rooted(pack);
    struct op *o = text_op(pack, OP_MOVE_MOUNT, "d", NULL);
    o->fd = SLOT(1);
    o->fd2 = SLOT(0);
}

static void b_bind(struct pack *pack, int op)
{
    if (!op)
        return rooted(pack);
    struct stat st;
    stat("/dev", &st);
    struct op *o = text_op(pack, OP_BIND, "/dev", "d");
    o->fd2 = SLOT(0);
    o->a = st.st_dev;
    o->b = st.st_ino;
    o->flags = MOUNT_ATTR_RDONLY;
}

static void b_mkdirs(struct pack *pack, int op)
{
    if (!op)
        return tmpfs(pack);
    struct op *o = text_op(pack, OP_MKDIRS, "d/e/f", NULL);
    o->fd = SLOT(0);
    o->a = 0755;
}

static void b_touch(struct pack *pack, int op)
{
    if (!op)
        return tmpfs(pack);
    text_op(pack, OP_TOUCH, "d/new", NULL)->fd = SLOT(0);
}

static void b_copy(struct pack *pack, int op)
{
    if (!op)
        return tmpfs(pack);
    struct op *o = text_op(pack, OP_COPY, "d/copy", NULL);
    o->fd = ours; /* a file */
    o->fd2 = SLOT(0);
    o->a = 0644;
}

static void b_symlink(struct pack *pack, int op)
{
    if (!op)
        return tmpfs(pack);
    text_op(pack, OP_SYMLINK, "d/link", "f")->fd = SLOT(0);
}

static void b_private_mounts(struct pack *pack, int op)
{
    OP_ONLY;
    op_add(pack, OP_PRIVATE_MOUNTS);
}

static void b_pivot(struct pack *pack, int op)
{
    if (!op)
        return rooted(pack);
    struct op *o = op_add(pack, OP_PIVOT);
    o->fd = SLOT(0);
    o->fd2 = SLOT(1);
}

/* As in a mount namespace where nothing lies below. */
static void b_pivot_into(struct pack *pack, int op)
{
    if (!op)
        return rooted(pack);
    op_add(pack, OP_PIVOT)->fd2 = SLOT(1);
}

static void b_unshare(struct pack *pack, int op)
{
    OP_ONLY;
    op_add(pack, OP_UNSHARE)->a = CLONE_NEWUTS;
}

static void b_setns(struct pack *pack, int op)
{
    OP_ONLY;
    struct op *o = op_add(pack, OP_SETNS);
    o->fd = ours; /* our own uts namespace; one in another user namespace may not be entered */
    o->a = CLONE_NEWUTS;
}

static void b_write(struct pack *pack, int op)
{
    OP_ONLY;
    text_op(pack, OP_WRITE, "/proc/self/comm", "written");
}

static void b_loopback(struct pack *pack, int op)
{
    if (!op)
        op_add(pack, OP_UNSHARE)->a = CLONE_NEWNET;
    else
        op_add(pack, OP_LOOPBACK_UP);
}

static void b_hostname(struct pack *pack, int op)
{
    if (!op)
        op_add(pack, OP_UNSHARE)->a = CLONE_NEWUTS;
    else
        text_op(pack, OP_HOSTNAME, "elsewhere", NULL);
}

static void b_no_new_privs(struct pack *pack, int op)
{
    OP_ONLY;
    op_add(pack, OP_NO_NEW_PRIVS);
}

static void b_keep_caps(struct pack *pack, int op)
{
    OP_ONLY;
    op_add(pack, OP_KEEP_CAPS)->a = 1u << 12 | 1u << 21; /* CAP_NET_ADMIN, CAP_SYS_ADMIN */
}

static void b_wait_ready(struct pack *pack, int op)
{
    OP_ONLY;
    op_add(pack, OP_WAIT_READY)->fd = ours; /* a socket */
}

static void b_drop_bounding(struct pack *pack, int op)
{
    OP_ONLY;
    op_add(pack, OP_DROP_BOUNDING);
}

static void b_drop_caps(struct pack *pack, int op)
{
    OP_ONLY;
    op_add(pack, OP_DROP_CAPS);
}

static void b_setsid(struct pack *pack, int op)
{
    OP_ONLY;
    op_add(pack, OP_SETSID);
}

static void b_process_group(struct pack *pack, int op)
{
    OP_ONLY;
    op_add(pack, OP_PROCESS_GROUP); /* one of its own */
}

static void b_keyring(struct pack *pack, int op)
{
    OP_ONLY;
    op_add(pack, OP_KEYRING);
}

static void b_controlling_tty(struct pack *pack, int op)
{
    if (!op)
        op_add(pack, OP_SETSID);
    else
        op_add(pack, OP_CONTROLLING_TTY)->fd = ours; /* a terminal */
}

static void b_name(struct pack *pack, int op)
{
    OP_ONLY;
    text_op(pack, OP_NAME, "renamed", NULL);
}

static void b_rlimit(struct pack *pack, int op)
{
    OP_ONLY;
    op_add(pack, OP_RLIMIT)->flags = RLIMIT_CORE; /* none at all */
}

static void b_affinity(struct pack *pack, int op)
{
    OP_ONLY;
    cpu_set_t all;
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0, "errno %d", errno);
    uint32_t mask = pack_bytes(pack, &all, sizeof all);
    struct op *o = op_add(pack, OP_AFFINITY);
    o->str = mask;
    o->a = sizeof all;
}

static void b_nice(struct pack *pack, int op)
{
    OP_ONLY;
    op_add(pack, OP_NICE)->a = 19;
}

static void b_ids(struct pack *pack, int op)
{
    OP_ONLY;
    struct op *o = op_add(pack, OP_IDS);
    o->fd = o->fd2 = 65534;
}

static void b_landlock_rules(struct pack *pack, int op)
{
    OP_ONLY;
    struct op *o = op_add(pack, OP_LANDLOCK_RULES);
    o->out = 4;
    o->a = 1; /* executing files */
}

static void b_landlock_allow(struct pack *pack, int op)
{
    if (!op)
        return b_landlock_rules(pack, 1);
    struct op *o = op_add(pack, OP_LANDLOCK_ALLOW);
    o->fd = SLOT(4);
    o->fd2 = ours;
    o->a = 1;
}

static void b_landlock_enter(struct pack *pack, int op)
{
    if (!op)
        return b_landlock_allow(pack, 0);
    op_add(pack, OP_LANDLOCK_ENTER)->fd = SLOT(4);
}

static void b_seccomp(struct pack *pack, int op)
{
    static const struct sock_filter allow = { .code = BPF_RET | BPF_K, .k = SECCOMP_RET_ALLOW };
    OP_ONLY;
    pack_seccomp(pack, &allow, 1);
}

/* What `ours` has to be; -1 where the row cannot be shown. */
static int as_root(void) { return geteuid() == 0 ? open("/", O_PATH | O_CLOEXEC) : -1; }
static int with_landlock(void)
{
    int version = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, 1u /* LANDLOCK_CREATE_RULESET_VERSION */);
    return version > 0 ? open("/", O_PATH | O_CLOEXEC) : -1;
}
static int a_file(void)
{
    int fd = (int)syscall(SYS_memfd_create, "ours", 1u);
    CHECK(write(fd, "contents", 8) == 8, "errno %d", errno);
    return fd;
}
static int a_uts_namespace(void) { return open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC); }
static int a_terminal(void)
{
    int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    unlockpt(fd);
    return fd;
}

/* Each time the same: a socket with one int 0 waiting in it. */
static int a_ready_socket(void)
{
    int pair[2], zero = 0;
    make_sockets(SOCK_STREAM, pair);
    CHECK(write(pair[1], &zero, sizeof zero) == sizeof zero, "errno %d", errno);
    close(pair[1]);
    return pair[0];
}

enum where { HERE, WORLD }; /* in our namespaces, or in a user and mount namespace of its own */

#define ALWAYS(call) { __NR_##call, -1, 0, 0 }
#define WHEN(call, arg, value) { __NR_##call, arg, value, 0 }
#define UNLESS(call, arg, value) { __NR_##call, arg, value, 1 }
/* The nth free number before the launch. The child's pidfd gets the first, then each call the lowest: after rooted(), slot 0 is
 * NEXT(2), slot 1 is NEXT(4), and the next to be opened is NEXT(3). */
#define NEXT(n) (-1000000 - (n))

static const struct injection {
    enum op_code code;
    builder *build;
    enum where where;
    int (*need)(void);
    int natural; /* what the op may give without a fault, where that depends on who we are */
    struct fault fault;
} injections[] = {
    { OP_OPEN, b_open, HERE, NULL, 0, ALWAYS(openat2) },
    { OP_EXPECT, b_expect, HERE, NULL, 0, ALWAYS(fstat) },
    { OP_CHDIR, b_chdir, WORLD, NULL, 0, ALWAYS(fsopen) },
    { OP_CHDIR, b_chdir, WORLD, NULL, 0, ALWAYS(fsconfig) },
    { OP_CHDIR, b_chdir, WORLD, NULL, 0, ALWAYS(fsmount) },
    { OP_CHDIR, b_chdir, WORLD, NULL, 0, ALWAYS(fchdir) },
    { OP_CHDIR, b_chdir_fd, WORLD, NULL, 0, ALWAYS(fchdir) },
    { OP_FSMOUNT, b_fsmount, WORLD, NULL, 0, ALWAYS(fsopen) },
    { OP_FSMOUNT, b_fsmount, WORLD, NULL, 0, WHEN(fsconfig, 1, FSCONFIG_SET_STRING) },
    { OP_FSMOUNT, b_fsmount, WORLD, NULL, 0, WHEN(fsconfig, 1, FSCONFIG_SET_FLAG) },
    { OP_FSMOUNT, b_fsmount, WORLD, NULL, 0, WHEN(fsconfig, 1, FSCONFIG_CMD_CREATE) },
    { OP_FSMOUNT, b_fsmount, WORLD, NULL, 0, ALWAYS(fsmount) },
    { OP_OPEN_TREE, b_open_tree, WORLD, NULL, 0, ALWAYS(open_tree) },
    { OP_MOUNT_SETATTR, b_mount_setattr, WORLD, NULL, 0, ALWAYS(mount_setattr) },
    { OP_MOVE_MOUNT, b_move_mount, WORLD, NULL, 0, ALWAYS(openat2) },
    { OP_MOVE_MOUNT, b_move_mount, WORLD, NULL, 0, ALWAYS(move_mount) },
    { OP_BIND, b_bind, WORLD, NULL, 0, WHEN(openat2, 0, AT_FDCWD) },
    { OP_BIND, b_bind, WORLD, NULL, 0, ALWAYS(fstat) },
    { OP_BIND, b_bind, WORLD, NULL, 0, ALWAYS(open_tree) },
    { OP_BIND, b_bind, WORLD, NULL, 0, ALWAYS(mount_setattr) },
    { OP_BIND, b_bind, WORLD, NULL, 0, UNLESS(openat2, 0, AT_FDCWD) },
    { OP_BIND, b_bind, WORLD, NULL, 0, ALWAYS(move_mount) },
    { OP_MKDIRS, b_mkdirs, WORLD, NULL, 0, ALWAYS(openat2) },
    { OP_MKDIRS, b_mkdirs, WORLD, NULL, 0, ALWAYS(mkdirat) },
    { OP_TOUCH, b_touch, WORLD, NULL, 0, ALWAYS(openat2) },
    { OP_TOUCH, b_touch, WORLD, NULL, 0, ALWAYS(openat) },
    { OP_COPY, b_copy, WORLD, a_file, 0, ALWAYS(openat2) },
    { OP_COPY, b_copy, WORLD, a_file, 0, ALWAYS(openat) },
    { OP_COPY, b_copy, WORLD, a_file, 0, ALWAYS(sendfile) },
    { OP_SYMLINK, b_symlink, WORLD, NULL, 0, ALWAYS(openat2) },
    { OP_SYMLINK, b_symlink, WORLD, NULL, 0, ALWAYS(symlinkat) },
    { OP_PRIVATE_MOUNTS, b_private_mounts, WORLD, NULL, 0, ALWAYS(mount) },
    { OP_PIVOT, b_pivot, WORLD, NULL, 0, ALWAYS(openat) },
    { OP_PIVOT, b_pivot, WORLD, NULL, 0, WHEN(fchdir, 0, NEXT(2)) },
    { OP_PIVOT, b_pivot, WORLD, NULL, 0, ALWAYS(pivot_root) },
    { OP_PIVOT, b_pivot, WORLD, NULL, 0, WHEN(fchdir, 0, NEXT(3)) },
    { OP_PIVOT, b_pivot, WORLD, NULL, 0, WHEN(fchdir, 0, NEXT(4)) },
    { OP_PIVOT, b_pivot, WORLD, NULL, 0, ALWAYS(umount2) },
    { OP_PIVOT, b_pivot, WORLD, NULL, 0, ALWAYS(chroot) },
    { OP_PIVOT, b_pivot_into, WORLD, NULL, 0, WHEN(fchdir, 0, NEXT(4)) },
    { OP_PIVOT, b_pivot_into, WORLD, NULL, 0, ALWAYS(chroot) },
    { OP_UNSHARE, b_unshare, WORLD, NULL, 0, ALWAYS(unshare) },
    { OP_SETNS, b_setns, WORLD, a_uts_namespace, EPERM, ALWAYS(setns) },
    { OP_WRITE, b_write, HERE, NULL, 0, ALWAYS(openat) },
    { OP_WRITE, b_write, HERE, NULL, 0, ALWAYS(write) },
    { OP_LOOPBACK_UP, b_loopback, WORLD, NULL, 0, ALWAYS(socket) },
    { OP_LOOPBACK_UP, b_loopback, WORLD, NULL, 0, ALWAYS(ioctl) },
    { OP_HOSTNAME, b_hostname, WORLD, NULL, 0, ALWAYS(sethostname) },
    { OP_NO_NEW_PRIVS, b_no_new_privs, HERE, NULL, 0, WHEN(prctl, 0, PR_SET_NO_NEW_PRIVS) },
    { OP_KEEP_CAPS, b_keep_caps, WORLD, NULL, 0, ALWAYS(capget) },
    { OP_KEEP_CAPS, b_keep_caps, WORLD, NULL, 0, ALWAYS(capset) },
    { OP_KEEP_CAPS, b_keep_caps, WORLD, NULL, 0, WHEN(prctl, 2, 21) },
    { OP_WAIT_READY, b_wait_ready, HERE, a_ready_socket, 0, ALWAYS(read) },
    { OP_DROP_BOUNDING, b_drop_bounding, WORLD, NULL, 0, WHEN(prctl, 0, PR_CAPBSET_DROP) },
    { OP_DROP_BOUNDING, b_drop_bounding, WORLD, NULL, 0, WHEN(prctl, 1, 7) },
    { OP_DROP_CAPS, b_drop_caps, WORLD, NULL, 0, WHEN(prctl, 0, PR_CAP_AMBIENT) },
    { OP_DROP_CAPS, b_drop_caps, WORLD, NULL, 0, ALWAYS(capset) },
    { OP_SETSID, b_setsid, HERE, NULL, 0, ALWAYS(setsid) },
    { OP_PROCESS_GROUP, b_process_group, HERE, NULL, 0, ALWAYS(setpgid) },
    { OP_KEYRING, b_keyring, HERE, NULL, 0, ALWAYS(keyctl) },
    { OP_CONTROLLING_TTY, b_controlling_tty, HERE, a_terminal, 0, ALWAYS(ioctl) },
    { OP_NAME, b_name, HERE, NULL, 0, WHEN(prctl, 0, PR_SET_NAME) },
    { OP_RLIMIT, b_rlimit, HERE, NULL, 0, ALWAYS(prlimit64) },
    { OP_AFFINITY, b_affinity, HERE, NULL, 0, ALWAYS(sched_setaffinity) },
    { OP_NICE, b_nice, HERE, NULL, 0, ALWAYS(setpriority) },
    { OP_IDS, b_ids, HERE, as_root, 0, ALWAYS(setgroups) },
    { OP_IDS, b_ids, HERE, as_root, 0, ALWAYS(setresgid) },
    { OP_IDS, b_ids, HERE, as_root, 0, ALWAYS(setresuid) },
    { OP_LANDLOCK_RULES, b_landlock_rules, HERE, with_landlock, 0, ALWAYS(landlock_create_ruleset) },
    { OP_LANDLOCK_ALLOW, b_landlock_allow, HERE, with_landlock, 0, ALWAYS(landlock_add_rule) },
    { OP_LANDLOCK_ENTER, b_landlock_enter, HERE, with_landlock, 0, ALWAYS(landlock_restrict_self) },
    { OP_SECCOMP, b_seccomp, HERE, NULL, 0, ALWAYS(seccomp) },
};
#define INJECTIONS (sizeof injections / sizeof *injections)

static void close_slots(const struct result *result)
{
    for (int i = 0; i < SLOTS; i++)
        if (result->slots[i] >= 0)
            close(result->slots[i]);
}

/* The injection's op as the last of a plan that collects. `err`: what the faulted call answers, 0 for no fault. */
static struct result inject(const struct injection *it, uint64_t world, int err, int *index)
{
    struct pack *pack = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT);
    struct fault fault = it->fault;
    ours = it->need ? it->need() : -1;
    if (fault.value <= NEXT(0))
        fault.value = next_fd() + NEXT(0) - fault.value;
    if (it->where == WORLD) {
        pack->head.clone_flags = world;
        pack_id_maps(pack, world);
    }
    it->build(pack, 0);
    if (err)
        pack_fault(pack, fault, err);
    else
        op_add(pack, OP_NO_NEW_PRIVS);
    it->build(pack, 1);
    *index = (int)pack->head.count - 1;
    int before = fds_open(NULL, 64);
    struct result result = run_pack(pack, NULL, NULL);
    close_slots(&result);
    int after = fds_open(NULL, 64);
    CHECK(before == after, "op %d, call %ld failing with %d: %d descriptors before, %d after", it->code, fault.nr, err, before, after);
    CHECK(!has_children(), "op %d, call %ld: a child is left", it->code, fault.nr);
    pack_free(pack);
    if (ours >= 0)
        close(ours);
    return result;
}

static int can_be_shown(const struct injection *it)
{
    int fd = it->need ? it->need() : next_fd();
    if (fd >= 0 && it->need)
        close(fd);
    return fd >= 0;
}

static void faults(enum where where, uint64_t world)
{
    for (size_t i = 0; i < INJECTIONS; i++) {
        const struct injection *it = &injections[i];
        if (it->where != where || !can_be_shown(it))
            continue;
        int index;
        struct result result = inject(it, world, 0, &index);
        int went_well = result.out.report.stage == STAGE_EXEC && result.out.report.err == 0;
        int natural = result.out.report.stage == STAGE_OPS && result.out.report.index == index && result.out.report.err == it->natural;
        CHECK(went_well || (it->natural && natural),
              "row %zu, op %d, no fault: stage %d, index %d of %d, errno %d", i, it->code, result.out.report.stage,
              result.out.report.index, index, result.out.report.err);
        result = inject(it, world, E, &index);
        CHECK(result.out.report.stage == STAGE_OPS && result.out.report.index == index && result.out.report.err == E,
              "row %zu, op %d, call %ld failing: stage %d, index %d of %d, errno %d", i, it->code, it->fault.nr,
              result.out.report.stage, result.out.report.index, index, result.out.report.err);
    }
}

static void faults_here(void) { faults(HERE, 0); }
static void faults_in_worlds(void) { faults(WORLD, mount_world()); }

/* A new op without a row above lights up here. */
static void every_op_is_faulted(void)
{
#define X(name, fn, operands) [OP_##name] = #name,
    static const char *const names[] = { OPS(X) };
#undef X
    for (int code = 0; code < OP_COUNT; code++) {
        int rows = code == OP_UMASK || code == OP_ENV_PID || code == OP_MARK; /* these cannot fail */
        rows += code == OP_INHERIT_FDS || code == OP_INHERIT_SIGNALS || code == OP_TRY_EXEC; /* in test_inherit.c */
        rows += code == OP_UNSHARE_FDS || code == OP_FD_MAP || code == OP_SIGNALS;            /* not for plans that collect: below */
        for (size_t i = 0; i < INJECTIONS; i++)
            rows += (int)injections[i].code == code;
        CHECK(rows > 0, "%s has no fault injected", names[code]);
    }
}

/* A plan that executes: what the ops open is the child's own. */
static void faults_in_placing_descriptors(void)
{
    int program = open_file(peer_path()), source = fcntl(0, F_DUPFD_CLOEXEC, 20), null = open("/dev/null", O_RDWR);
    const int32_t pairs[][2] = { { source, 9 }, { source, 15 }, { source, source } };
    const struct fault rows[] = {
        WHEN(fcntl, 0, program),
        WHEN(fcntl, 0, source),
        WHEN(fcntl, 1, F_DUPFD_CLOEXEC),
        WHEN(fcntl, 1, F_SETFD),
        WHEN(fcntl, 0, null),
        ALWAYS(dup3),
        WHEN(dup3, 1, 0),
        WHEN(dup3, 1, 15),
        ALWAYS(close_range),
        WHEN(close_range, 1, ~0u),
        WHEN(close_range, 1, 14),
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int err = 0; err <= E; err += E) {
            struct pack *pack = pack_new(PLAN_SHARE_FDS);
            op_add(pack, OP_NO_NEW_PRIVS);
            if (err)
                pack_fault(pack, rows[i], err);
            pack_fd_map(pack, pairs, 3, null);
            pack->head.exec_fd = program;
            int index = (int)pack->head.count - 1;
            struct result result = run_pack(pack, NULL, NULL);
            if (err)
                /* Whether a source is open is asked with a call that may fail in one way only. */
                CHECK(result.out.report.stage == STAGE_OPS && result.out.report.index == index && result.out.pid == -1 &&
                          (result.out.report.err == E || (result.out.report.err == EBADF && rows[i].nr == __NR_fcntl)),
                      "row %zu: stage %d, index %d of %d, errno %d", i, result.out.report.stage, result.out.report.index, index,
                      result.out.report.err);
            else
                CHECK(wait_for(result.out) == 0, "the program failed");
            pack_free(pack);
        }
    close(program);
    close(source);
    close(null);
}

static void faults_in_the_first_and_the_last_op(void)
{
    struct pack *pack = pack_new(0);
    pack_fault(pack, (struct fault)ALWAYS(close_range), E);
    op_add(pack, OP_UNSHARE_FDS)->a = 3;
    pack_exec_path(pack, peer_path());
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_OPS, 2, E);
    pack_free(pack);
    pack = pack_new(PLAN_SHARE_FDS);
    pack_fault(pack, (struct fault)ALWAYS(rt_sigprocmask), E);
    op_add(pack, OP_SIGNALS);
    pack_exec_path(pack, peer_path());
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_OPS, 3, E);
    pack_free(pack);
    pack = pack_new(PLAN_SHARE_FDS);
    pack_fault(pack, (struct fault)ALWAYS(execveat), E);
    pack_exec_path(pack, peer_path());
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_EXEC, 2, E);
    pack_free(pack);
}

/* The child's plan with one op, run on our table in `world`; the errno it gives. */
static int outcome_of(struct pack *pack)
{
    int index = (int)pack->head.count - 1;
    struct result result = run_pack(pack, NULL, NULL);
    pack_free(pack);
    close_slots(&result);
    const struct report *report = &result.out.report;
    CHECK(report->stage == STAGE_EXEC || (report->stage == STAGE_OPS && report->index == index), "stage %d, index %d of %d, errno %d",
          report->stage, report->index, index, report->err);
    return report->err;
}

static struct pack *in_tmpfs(uint64_t world)
{
    struct pack *pack = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT);
    pack->head.clone_flags = world;
    pack_id_maps(pack, world);
    tmpfs(pack);
    return pack;
}

static void bad_operands_here(void)
{
    static const struct {
        enum op_code code;
        const char *text, *text2;
        int fd;
        uint64_t a, b;
        int err;
    } rows[] = {
        { OP_OPEN, "/no/such", NULL, CWD_FD, O_PATH, 0, ENOENT },
        { OP_OPEN, "", NULL, CWD_FD, O_PATH, 0, ENOENT },
        { OP_OPEN, "x", NULL, SLOT(9), O_PATH, 0, EBADF }, /* a slot that nothing fills */
        { OP_OPEN, "x", NULL, 1 << 30, O_PATH, 0, EBADF },
        { OP_OPEN, "/", NULL, CWD_FD, O_PATH, RESOLVE_BENEATH, EXDEV },
        { OP_OPEN, "/proc/self", NULL, CWD_FD, O_PATH, RESOLVE_NO_SYMLINKS, ELOOP },
        { OP_OPEN, "/", NULL, CWD_FD, 1ull << 40, 0, EINVAL },
        { OP_OPEN, "/", NULL, CWD_FD, 0, ~0ull, EINVAL },
        { OP_EXPECT, NULL, NULL, 0, 1, 1, ESTALE },
        { OP_EXPECT, NULL, NULL, CWD_FD, 1, 1, EBADF },
        { OP_EXPECT, NULL, NULL, SLOT(0), 0, 0, EBADF },
        { OP_CHDIR, "/no/such", NULL, SLOT(0), 0, 0, EBADF },
        { OP_CHDIR, "/no/such", NULL, 0, 0, 0, ENOTDIR },
        { OP_SETNS, NULL, NULL, 0, CLONE_NEWUTS, 0, EINVAL },
        { OP_SETNS, NULL, NULL, SLOT(0), CLONE_NEWUTS, 0, EBADF },
        { OP_WRITE, "/no/such", "", NO_FD, 0, 0, ENOENT },
        { OP_WRITE, "/", "x", NO_FD, 0, 0, EISDIR },
        { OP_WRITE, "/dev/full", "x", NO_FD, 0, 0, ENOSPC },
        { OP_CONTROLLING_TTY, NULL, NULL, 0, 0, 0, ENOTTY },
        { OP_CONTROLLING_TTY, NULL, NULL, SLOT(0), 0, 0, EBADF },
        { OP_WAIT_READY, NULL, NULL, SLOT(0), 0, 0, EBADF },
        { OP_WAIT_READY, NULL, NULL, 0, 0, 0, ESRCH }, /* end of file */
                { OP_NO_NEW_PRIVS, NULL, NULL, NO_FD, 0, 0, 0 },
        { OP_UMASK, NULL, NULL, NO_FD, ~0ull, 0, 0 },
        { OP_NAME, "", NULL, NO_FD, 0, 0, 0 },
        { OP_NAME, "longer than the fifteen bytes there are", NULL, NO_FD, 0, 0, 0 },
    };
    int null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    close(null);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct pack *pack = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT);
        struct op *op = text_op(pack, rows[i].code, rows[i].text, rows[i].text2);
        op->fd = rows[i].fd;
        op->a = rows[i].a;
        op->b = rows[i].b;
        op->out = rows[i].code == OP_OPEN ? 3 : -1;
        int err = outcome_of(pack);
        CHECK(err == rows[i].err, "row %zu, op %d: errno %d, expected %d", i, rows[i].code, err, rows[i].err);
    }
}

/* Whatever a path holds, nothing outside of the directory given is touched. */
static void bad_operands_in_worlds(void)
{
    uint64_t world = mount_world();
    static const struct {
        enum op_code code;
        const char *text, *text2;
        uint64_t a;
        int err;
    } rows[] = {
        { OP_MKDIRS, "", NULL, 0755, ENOENT },
        { OP_MKDIRS, "/d", NULL, 0755, ENOENT },
        { OP_MKDIRS, "..", NULL, 0755, EXDEV },
        { OP_MKDIRS, "../x", NULL, 0755, EXDEV },
        { OP_MKDIRS, "d/../../x", NULL, 0755, EXDEV },
        { OP_MKDIRS, "d/../x", NULL, 0755, EXDEV },
        { OP_MKDIRS, "d//x", NULL, 0755, ENOENT },
        { OP_MKDIRS, "f", NULL, 0755, ENOTDIR },
        { OP_MKDIRS, "f/x", NULL, 0755, ENOTDIR },
        { OP_MKDIRS, "l", NULL, 0755, ELOOP },
        { OP_MKDIRS, "l/x", NULL, 0755, ELOOP },
        { OP_MKDIRS, "d", NULL, 0755, 0 },
        { OP_MKDIRS, "d/a/b/c/d/e/f/g/h", NULL, 0755, 0 },
        { OP_TOUCH, "", NULL, 0, ENOENT },
        { OP_TOUCH, "..", NULL, 0, EXDEV },
        { OP_TOUCH, "../x", NULL, 0, EXDEV },
        { OP_TOUCH, "/x", NULL, 0, 0 }, /* the directory's own "x" */
        { OP_TOUCH, "l", NULL, 0, ELOOP },
        { OP_TOUCH, "f", NULL, 0, 0 },
        { OP_TOUCH, "f/x", NULL, 0, ENOTDIR },
        { OP_TOUCH, "none/x", NULL, 0, ENOENT },
        { OP_SYMLINK, "", "x", 0, ENOENT },
        { OP_SYMLINK, "f", "x", 0, EEXIST },
        { OP_SYMLINK, "new", "", 0, ENOENT },
        { OP_SYMLINK, "../new", "x", 0, EXDEV },
        { OP_COPY, "f", NULL, 0644, EEXIST },
        { OP_COPY, "l", NULL, 0644, EEXIST },
        { OP_COPY, "../x", NULL, 0644, EXDEV },
        { OP_COPY, "big", NULL, 0644, ENOSPC },
        { OP_HOSTNAME, "a-name-that-is-longer-than-the-64-bytes-that-the-kernel-has-room-for-in-it", NULL, 0, EINVAL },
        { OP_MOUNT_SETATTR, NULL, NULL, MOUNT_ATTR_RDONLY, EBADF }, /* of a slot that nothing fills */
        { OP_FSMOUNT, "no-such-type", "", 0, ENODEV },
        { OP_FSMOUNT, "", "", 0, ENODEV },
        { OP_FSMOUNT, "tmpfs", "no-such-option=1", 0, EINVAL },
        { OP_FSMOUNT, "tmpfs", "no-such-flag", 0, EINVAL },
        { OP_FSMOUNT, "tmpfs", ",", 0, EINVAL },
        { OP_FSMOUNT, "tmpfs", "=", 0, EINVAL },
        { OP_FSMOUNT, "tmpfs", "size=", 0, EINVAL },
        { OP_FSMOUNT, "tmpfs", "", ~0ull, EINVAL },
        { OP_FSMOUNT, "tmpfs", "size=64k,", 0, 0 },
    };
    int big = (int)syscall(SYS_memfd_create, "big", 1u);
    CHECK(ftruncate(big, 1 << 20) == 0, "errno %d", errno);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct pack *pack = in_tmpfs(world);
        pack->head.clone_flags |= CLONE_NEWUTS;
        struct op *op = text_op(pack, rows[i].code, rows[i].text, rows[i].text2);
        op->a = rows[i].a;
        op->fd = SLOT(op->code == OP_MOUNT_SETATTR ? 9 : 0);
        if (op->code == OP_FSMOUNT)
            op->out = 1;
        if (op->code == OP_COPY) {
            op->fd = big;
            op->fd2 = SLOT(0);
        }
        int err = outcome_of(pack);
        CHECK(err == rows[i].err, "row %zu, op %d on %s: errno %d, expected %d", i, rows[i].code, rows[i].text ? rows[i].text : "nothing", err, rows[i].err);
    }
    close(big);
}

static void a_bind_of_something_else_is_stale(void)
{
    uint64_t world = mount_world();
    for (int wrong = 0; wrong < 2; wrong++) {
        struct pack *pack = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT);
        pack->head.clone_flags = world;
        pack_id_maps(pack, world);
        rooted(pack);
        b_bind(pack, 1);
        struct op *op = &pack->ops[pack->head.count - 1];
        *(wrong ? &op->a : &op->b) += 1;
        CHECK(outcome_of(pack) == ESTALE, "another inode was mounted");
    }
}

/* Equal strings of a plan are packed once. */
static void strings_can_be_used_twice(void)
{
    static const enum op_code codes[] = { OP_FSMOUNT, OP_MKDIRS, OP_TOUCH };
    uint64_t world = mount_world();
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        struct pack *pack = in_tmpfs(world);
        struct op first = *(codes[i] == OP_FSMOUNT ? text_op(pack, OP_FSMOUNT, "tmpfs", "size=1m,mode=0700,noswap")
                                                  : text_op(pack, codes[i], "d/e", NULL));
        struct op *op = &pack->ops[pack->head.count - 1];
        if (codes[i] == OP_FSMOUNT) {
            pack->blob[first.str2 + 17] = '\0'; /* "size=1m,mode=0700": noswap is not for everyone */
            op->out = 1;
        } else {
            op->fd = SLOT(0);
            op->a = 0755;
        }
        first = *op;
        op = op_add(pack, codes[i]);
        *op = first;
        op->out = codes[i] == OP_FSMOUNT ? 2 : -1;
        int err = outcome_of(pack);
        CHECK(err == 0, "op %d, a second time with the same strings: errno %d", codes[i], err);
    }
}

/* "Nothing lies below" is said by NO_FD and by nothing else: a root that could not be made would stay reachable. */
static void a_root_that_is_not_there_is_an_error(void)
{
    static const int32_t missing[] = { SLOT(9), CWD_FD };
    uint64_t world = mount_world();
    for (int i = 0; i < 2; i++) {
        struct pack *pack = in_tmpfs(world);
        struct op *op = op_add(pack, OP_PIVOT);
        op->fd = missing[i];
        op->fd2 = SLOT(0);
        int err = outcome_of(pack);
        CHECK(err == EBADF, "fd %d: errno %d", missing[i], err);
    }
}

static void a_root_with_nothing_below_is_only_entered(void)
{
    struct pack *pack = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT);
    pack->head.clone_flags = mount_world();
    pack_id_maps(pack, pack->head.clone_flags);
    b_pivot_into(pack, 0);
    pack_answer(pack, __NR_pivot_root, SECCOMP_RET_ERRNO | E);
    pack_answer(pack, __NR_umount2, SECCOMP_RET_ERRNO | E);
    b_pivot_into(pack, 1);
    b_open(pack, 1);
    struct result result = run_pack(pack, NULL, NULL);
    pack_free(pack);
    CHECK(result.out.report.stage == STAGE_EXEC, "index %d, errno %d", result.out.report.index, result.out.report.err);
    struct seen root = seen_at(result.slots[4]), entered = seen_at(result.slots[1]);
    CHECK(root.dev == entered.dev && root.ino == entered.ino, "the root is another directory");
    close_slots(&result);
}

/* The bounding set can be emptied while the rest is still needed, but not afterwards. */
static void capabilities_go_in_two_steps(void)
{
    static const struct {
        enum op_code first, second;
        int err;
    } rows[] = {
        { OP_DROP_BOUNDING, OP_HOSTNAME, 0 },
        { OP_DROP_BOUNDING, OP_DROP_CAPS, 0 },
        { OP_DROP_CAPS, OP_HOSTNAME, EPERM },
        { OP_DROP_CAPS, OP_DROP_BOUNDING, EPERM },
    };
    uint64_t world = mount_world();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct pack *pack = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT);
        pack->head.clone_flags = world | CLONE_NEWUTS;
        pack_id_maps(pack, world);
        op_add(pack, rows[i].first);
        text_op(pack, rows[i].second, "host", NULL);
        int err = outcome_of(pack);
        CHECK(err == rows[i].err, "row %zu: errno %d, expected %d", i, err, rows[i].err);
    }
}

/* What uid 0 has after exec, when some had been made ambient before. */
static void with_both_steps_not_even_root_has_a_capability(void)
{
    uint64_t world = mount_world();
    for (int steps = 0; steps < 4; steps++) {
        int from[2], permitted, effective, inheritable, bounding, ambient;
        char text[64];
        make_pipe(from);
        struct pack *pack = pack_new(PLAN_SHARE_FDS);
        pack->head.clone_flags = world;
        pack_id_maps(pack, world);
        b_keep_caps(pack, 1);
        if (steps & 1)
            op_add(pack, OP_DROP_BOUNDING);
        if (steps & 2)
            op_add(pack, OP_DROP_CAPS);
        pack_fd_map(pack, (const int32_t[][2]){ { from[1], 3 } }, 1, 0);
        pack_exec_path(pack, peer_path());
        struct result result = run_pack(pack, (const char *const[]){ "peer", "caps", "3", NULL }, NULL);
        pack_free(pack);
        close(from[1]);
        read_all(from[0], text, sizeof text);
        CHECK(wait_for(result.out) == 0, "the program failed");
        CHECK(sscanf(text, "%d %d %d %d %d", &permitted, &effective, &inheritable, &bounding, &ambient) == 5, "%s", text);
        CHECK((bounding > 0) == !(steps & 1), "steps %d: %s", steps, text);
        CHECK((inheritable > 0) == !(steps & 2) && (ambient > 0) == !(steps & 2), "steps %d: %s", steps, text);
        CHECK((permitted > 0) == (steps != 3) && (effective > 0) == (steps != 3), "steps %d: %s", steps, text);
    }
}

static void what_init_reports_is_reported(void)
{
    static const int said[] = { 0, EPERM, ENOSPC };
    for (int i = 0; i < 3; i++) {
        int pair[2];
        make_sockets(SOCK_STREAM, pair);
        CHECK(write(pair[1], &said[i], sizeof said[i]) == sizeof said[i], "errno %d", errno);
        ours = pair[0];
        struct pack *pack = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT);
        b_wait_ready(pack, 1);
        int err = outcome_of(pack);
        CHECK(err == said[i], "errno %d, expected %d", err, said[i]);
        close(pair[0]);
        close(pair[1]);
    }
}

/* One plan with all the ops that shape the program itself, looked at from inside. */
static void the_program_sees_what_was_asked_for(void)
{
    int pipe_fds[2];
    signal(SIGPIPE, SIG_IGN);
    signal(SIGUSR1, SIG_IGN);
    make_pipe(pipe_fds);
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    op_add(pack, OP_SETSID);
    op_add(pack, OP_UMASK)->a = 027;
    text_op(pack, OP_CHDIR, "/proc", NULL);
    struct op *op = op_add(pack, OP_ENV_PID);
    op->a = 1;
    op->b = 3;
    int32_t pair[1][2] = { { pipe_fds[1], 3 } };
    pack_fd_map(pack, (const int32_t(*)[2])pair, 1, 0);
    pack_exec_path(pack, peer_path());
    op_add(pack, OP_SIGNALS);
    char absolute[4096];
    CHECK(realpath(peer_path(), absolute), "%s", peer_path());
    pack_exec_path(pack, absolute);
    struct result result = run_pack(pack, (const char *const[]){ "peer", "self", "3", NULL }, (const char *const[]){ "A=1", "ME=0123456789", NULL });
    pack_free(pack);
    close(pipe_fds[1]);
    char text[256], expected[256];
    struct stat st;
    stat("/proc", &st);
    read_all(pipe_fds[0], text, sizeof text);
    snprintf(expected, sizeof expected, "%d peer 0 0 %d %llu 27", result.out.pid, result.out.pid, (unsigned long long)st.st_ino);
    CHECK(wait_for(result.out) == 0, "the program failed");
    CHECK(strcmp(text, expected) == 0, "\"%s\", expected \"%s\"", text, expected);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "every op has a fault injected into it", every_op_is_faulted },
        { "a failing call is reported with its op, and nothing stays open", faults_here },
        { "the same for ops that make a world of files", faults_in_worlds },
        { "the same for the placing of descriptors", faults_in_placing_descriptors },
        { "the same for leaving the caller's table, for signals and for exec", faults_in_the_first_and_the_last_op },
        { "bad operands give the kernel's errno", bad_operands_here },
        { "no path leads out of its directory", bad_operands_in_worlds },
        { "something else under a bound name is ESTALE", a_bind_of_something_else_is_stale },
        { "an op leaves its strings as they were", strings_can_be_used_twice },
        { "a root that is not there is an error", a_root_that_is_not_there_is_an_error },
        { "a root with nothing below it is only entered", a_root_with_nothing_below_is_only_entered },
        { "the bounding set goes first, and nothing else with it", capabilities_go_in_two_steps },
        { "without either not even root has a capability after exec", with_both_steps_not_even_root_has_a_capability },
        { "what a cell's init reports is reported", what_init_reports_is_reported },
        { "the program sees the umask, directory, pid and signals asked for", the_program_sees_what_was_asked_for },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
