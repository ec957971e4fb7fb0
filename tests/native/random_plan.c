/* Random plans: most can be run, some are nonsense. See fuzz.h. */
#include "fuzz.h"
#include "request.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

uint64_t fuzz_state;

static uint32_t rnd(void) /* xorshift64* */
{
    fuzz_state ^= fuzz_state >> 12;
    fuzz_state ^= fuzz_state << 25;
    fuzz_state ^= fuzz_state >> 27;
    return (uint32_t)((fuzz_state * 0x2545f4914f6cdd1dull) >> 32);
}
uint32_t below(uint32_t n) { return rnd() % n; }
int one_in(uint32_t n) { return below(n) == 0; }

uint64_t odd_number(void)
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
    case 1: return (int32_t)below(FUZZ_FDS + 3);
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

static void add_inherited(struct pack *pack)
{
    int32_t numbers[20], last = -1;
    uint32_t count = 3 + below(one_in(3) ? 17 : 3);
    for (uint32_t i = 0; i < count; i++) {
        numbers[i] = i < 3 ? (int32_t)below(12) - 1 : last + 1 + (int32_t)below(8);
        last = i < 3 ? -1 : numbers[i];
    }
    if (one_in(12))
        numbers[below(count)] = (int32_t)odd_number();
    uint32_t at = pack_bytes(pack, numbers, count * sizeof *numbers);
    struct op *op = op_add(pack, OP_INHERIT_FDS);
    op->str = at;
    op->a = count;
    op->b = one_in(2);
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

void look_at_world(void) { CHECK(stat("/", &at_root) == 0 && stat("/d", &at_d) == 0, "errno %d", errno); }

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

uint64_t namespaces_of_its_own(void)
{
    uint64_t flags = one_in(3) ? 0 : CLONE_NEWUSER;
    for (int i = 0; i < 3; i++)
        if (one_in(2))
            flags |= one_in(2) ? CLONE_NEWNS : ns_flags[below(6)];
    if (one_in(200))
        flags |= CLONE_NEWNET; /* slow to make */
    return flags;
}

static void add_ops(struct pack *pack, int slots, int careful)
{
    static const uint8_t needs[] = {
#define X(name, fn, operands) operands,
        OPS(X)
#undef X
    };
    int collect = pack->head.flags & PLAN_COLLECT, mapped = 0;
    for (uint32_t count = below(one_in(8) ? 60 : 10); count > 0; count--) {
        enum op_code code = (enum op_code)below(OP_COUNT);
        if (code == OP_WAIT_READY) /* it waits for another process, by design */
            continue;
        if (code == OP_FD_MAP) {
            if (!collect && !mapped++)
                add_fd_map(pack, slots);
            continue;
        }
        if (code == OP_INHERIT_FDS) {
            if (!collect && !mapped++)
                add_inherited(pack);
            continue;
        }
        if ((code == OP_INHERIT_SIGNALS || code == OP_TRY_EXEC) && !one_in(20)) /* at the end, as a rule */
            continue;
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
        if (code == OP_AFFINITY && !one_in(6)) {
            op->str = pack_bytes(pack, (const uint64_t[]){ one_in(2) ? ~0ull : odd_number() }, sizeof(uint64_t));
            op->a = sizeof(uint64_t);
        }
        if (careful && !one_in(12))
            be_careful(pack, op);
    }
    if (!collect && one_in(2))
        op_add(pack, OP_SIGNALS);
    if (!collect && one_in(4)) {
        op_add(pack, OP_INHERIT_SIGNALS)->a = odd_number();
        for (uint32_t count = below(4); count > 0; count--) {
            uint32_t path = pack_text(pack, one_in(3) ? "/peer" : some_text());
            op_add(pack, OP_TRY_EXEC)->str = path;
        }
    }
}

struct pack *make_plan(void)
{
    int collect = one_in(4), slots = 0;
    struct pack *pack = pack_new(collect ? PLAN_COLLECT | PLAN_SHARE_FDS : one_in(3) ? 0 : PLAN_SHARE_FDS);
    if (pack->head.count && one_in(3))
        pack->ops[0].a = below(64);
    pack->head.clone_flags |= namespaces_of_its_own();
    int careful = one_in(2);
    if (careful)
        slots = begin_careful(pack);
    else if (one_in(10)) {
        pack->head.enter_fd = (int32_t)below(FUZZ_FDS);
        pack->head.enter_flags = ns_flags[below(6)] | (one_in(2) ? CLONE_NEWUSER : 0);
    }
    if (one_in(40))
        pack->head.cgroup_fd = (int32_t)below(FUZZ_FDS);
    add_ops(pack, slots, careful);
    if (!one_in(4))
        pack_exec_path(pack, one_in(4) ? some_text() : "/peer");
    else
        pack->head.exec_fd = one_in(3) ? some_fd(slots) : 5;
    return pack;
}

struct pack *make_last_plan(int slots)
{
    struct pack *pack = pack_new(0);
    int careful = one_in(2);
    if (careful) {
        begin_careful(pack);
        pack->head.clone_flags = 0; /* it was cloned before */
    }
    add_ops(pack, slots > 2 ? slots : 2, careful);
    if (slots && !one_in(3)) {
        int32_t pairs[REQUEST_FDS][2], first = (int32_t)below(10);
        for (int i = 0; i < slots; i++) {
            pairs[i][0] = SLOT(i);
            pairs[i][1] = (first + (first + i) % slots) | (one_in(8) ? TARGET_CLOEXEC : 0);
        }
        pack_fd_map(pack, (const int32_t(*)[2])pairs, (unsigned)slots, 0);
    }
    pack_exec_path(pack, one_in(6) ? some_text() : "peer");
    if (!one_in(4))
        pack->head.exec_fd = REQUEST_BASE;
    else
        pack->head.exec_fd = some_fd(slots);
    return pack;
}

/* Flips, copies or replaces bytes: most of these plans are refused, and the rest are odd. */
void mutate(uint8_t *bytes, size_t size)
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

const char *const *some_strings(int env)
{
    static const char *const env_strings[] = { "A=1", "LISTEN_PID=0123456789", "PWD=/", NULL };
    static const char *const arguments[] = { "peer", NULL };
    return one_in(20) ? NULL : env ? env_strings : arguments;
}
