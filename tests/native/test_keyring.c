/* The session keyring of a child: with the op it is a new and empty one, whatever its parent has, or the launch fails. */
#include "check.h"

#include <errno.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <linux/filter.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define WITHOUT_WAITING 0
#define LONG_ENOUGH 2000 /* times 10 ms */

static long join(void) { return syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL); }
static long session(void) { return syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0); }
static long add_key(const char *name) { return syscall(SYS_add_key, "user", name, "secret", 6, KEY_SPEC_SESSION_KEYRING); }

/* A session keyring of this test's own with a key in it. */
static long keyring_with_a_key(void)
{
    long own = join();
    if (own < 0)
        skip("keyctl: errno %d", errno);
    CHECK(add_key("of-the-caller") > 0, "errno %d", errno);
    return own;
}

struct look {
    long number;
    int size, error;
};

static struct look look_inside(int with_op)
{
    int pipe_fds[2];
    make_pipe(pipe_fds);
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    op_add(pack, OP_UNSHARE_FDS)->a = 64;
    if (with_op)
        op_add(pack, OP_KEYRING);
    int32_t pair[1][2] = { { pipe_fds[1], 3 } };
    pack_fd_map(pack, (const int32_t(*)[2])pair, 1, 0);
    pack_exec_path(pack, peer_path());
    op_add(pack, OP_SIGNALS);
    struct result result = run_pack(pack, (const char *const[]){ "peer", "keyring", "3", NULL }, NULL);
    pack_free(pack);
    close(pipe_fds[1]);
    char text[100];
    struct look found;
    read_all(pipe_fds[0], text, sizeof text);
    CHECK(wait_for(result.out) == 0, "the program failed");
    CHECK(sscanf(text, "%ld %d %d", &found.number, &found.size, &found.error) == 3, "\"%s\"", text);
    return found;
}

static void the_keyring_is_new_and_empty(void)
{
    long own = keyring_with_a_key();
    struct look inherited = look_inside(0), fresh = look_inside(1);
    CHECK(inherited.number == own && inherited.size == 1, "number %ld of %ld, %d keys", inherited.number, own, inherited.size);
    CHECK(fresh.number > 0 && fresh.number != own && fresh.size == 0 && fresh.error == 0, "number %ld, %d keys, errno %d", fresh.number,
          fresh.size, fresh.error);
    CHECK(session() == own, "the caller's own is another now");
}

/* The op after what `pack` has: its errno. */
static int tried(struct pack *pack, uint64_t waits)
{
    op_add(pack, OP_KEYRING)->a = waits;
    struct result result = run_pack(pack, NULL, NULL);
    pack_free(pack);
    CHECK(result.out.report.stage == (result.out.report.err ? STAGE_OPS : STAGE_EXEC), "stage %d", result.out.report.stage);
    return result.out.report.err;
}

static struct pack *collecting(void) { return pack_new(PLAN_SHARE_FDS | PLAN_COLLECT); }

static void nobody_is_in_want_of_one(void)
{
    static const int answers[] = { ENOSYS, EPERM };
    for (int i = 0; i < 2; i++) {
        struct pack *pack = collecting();
        pack_answer(pack, SYS_keyctl, SECCOMP_RET_ERRNO | (uint32_t)answers[i]);
        int err = tried(pack, WITHOUT_WAITING);
        CHECK(err == 0, "all calls answer %d: errno %d", answers[i], err);
    }
}

static void keys_without_a_keyring_are_no_success(void)
{
    static const int answers[] = { ENOSYS, EPERM, EACCES, ENOMEM };
    for (int i = 0; i < 4; i++) {
        struct sock_filter filter[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_keyctl, 0, 3),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, KEYCTL_JOIN_SESSION_KEYRING, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)answers[i]),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct pack *pack = collecting();
        op_add(pack, OP_NO_NEW_PRIVS);
        pack_seccomp(pack, filter, sizeof filter / sizeof *filter);
        int err = tried(pack, WITHOUT_WAITING);
        CHECK(err == answers[i], "only this call answers %d: errno %d", answers[i], err);
    }
}

/* Somebody nobody else is, since the number of keys is limited for each user. */
static void become_nobody_else(void)
{
    uid_t user = 0x6b000000u + (uid_t)getpid();
    if (getuid() != 0 || setresgid(user, user, user) || setresuid(user, user, user))
        skip("it takes root to be a user of one's own");
    prctl(PR_SET_DUMPABLE, 1);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void use_up_all_keys(void)
{
    char name[20];
    for (int i = 0; i < 100000; i++) {
        snprintf(name, sizeof name, "key-%d", i);
        if (add_key(name) < 0)
            break;
    }
    CHECK(errno == EDQUOT, "errno %d", errno);
}

static void a_user_with_too_many_keys_gets_none(void)
{
    become_nobody_else();
    keyring_with_a_key();
    use_up_all_keys();
    int err = tried(collecting(), 3);
    CHECK(err == EDQUOT, "errno %d", err);
}

/* A process of the same user has all the keys until it ends. */
static void room_is_waited_for(void)
{
    become_nobody_else();
    keyring_with_a_key();
    int ready[2], over[2];
    char byte;
    make_pipe(ready);
    make_pipe(over);
    pid_t pid = fork();
    if (pid == 0) {
        close(over[1]);
        keyring_with_a_key();
        use_up_all_keys();
        CHECK(write(ready[1], "r", 1) == 1, "errno %d", errno);
        _exit(read(over[0], &byte, 1) != 0);
    }
    CHECK(read(ready[0], &byte, 1) == 1, "errno %d", errno);
    int before = tried(collecting(), WITHOUT_WAITING), status;
    close(over[1]);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0, "status %d", status);
    int after = tried(collecting(), LONG_ENOUGH); /* they are given back a moment later */
    CHECK(before == EDQUOT && after == 0, "errno %d, then %d", before, after);
    close(over[0]);
    close(ready[0]);
    close(ready[1]);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "the session keyring is new and empty, and the caller keeps its own", the_keyring_is_new_and_empty },
        { "who cannot use keys needs no keyring", nobody_is_in_want_of_one },
        { "who can use keys and gets no keyring is not started", keys_without_a_keyring_are_no_success },
        { "nor is the child of a user with too many keys", a_user_with_too_many_keys_gets_none },
        { "but it waits for keys of processes that have ended", room_is_waited_for },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
