/* Random messages to a process that waits: it may refuse them, fail, or become a program, but never misbehave.
 *
 * Most are read by init/wait.c compiled with sanitizers, in a process forked from this one; the others by the real shoal-init,
 * which has memory where the other has red zones. No signal may end either, unless a filter of the plan left no other way; it
 * must not hang; and a message that was not touched is refused only if its plan does not verify. */
#include "fuzz.h"
#include "init/init.h"
#include "waiting.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { INTACT, REFUSED, FAILED, RAN, KILLED, REAL };
static const char *const counts[] = { "intact", "refused", "failed", "ran a program", "were killed", "by the real one", NULL };

enum { BASE = 4 }; /* the world's root directory */

static struct waiting start_real(uint64_t flags, const int *pair)
{
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack->head.clone_flags = flags;
    return (struct waiting){ start_waiting(pack, FUZZ_IMAGE, BASE, pair[1]), pair[0] };
}

static struct waiting start_sanitized(uint64_t flags, const int *pair)
{
    pid_t pid = fork();
    if (pid == 0) {
        int base = fcntl(BASE, F_DUPFD_CLOEXEC, 10);
        if (unshare((int)flags) || dup2(pair[1], 10 + REQUEST_SOCKET) < 0 || dup2(base, REQUEST_BASE) < 0 ||
            dup2(10 + REQUEST_SOCKET, REQUEST_SOCKET) < 0 || close_range(REQUEST_BASE + 1, ~0u, 0))
            _exit(0);
        signal(SIGSEGV, SIG_DFL); /* leave()'s last way: the sanitizer's handler would spin under a filter that lets nobody exit */
        wait_for_plan();
        leave(0);
    }
    CHECK(pid > 0, "fork: errno %d", errno);
    struct waiting waiting = { .sock = pair[0] };
    waiting.out = (struct outcome){ .pid = pid, .pidfd = (int)syscall(SYS_pidfd_open, pid, 0), .report.stage = STAGE_EXEC };
    return waiting;
}

#define HEADS (sizeof(struct request) + sizeof(struct plan_head))

/* Changes the message in its heads, where the sizes are, or anywhere, or cuts it, or puts noise behind it. */
static size_t spoil(uint8_t *message, size_t size, size_t room)
{
    uint32_t *words = (uint32_t *)message;
    switch (below(8)) {
    case 0: words[below(HEADS / 4)] = one_in(2) ? below(8) : (uint32_t)odd_number(); break;
    case 1: /* what one of them loses another has more */
        for (uint32_t by = below(one_in(2) ? 3 : 100), i = 0; i < 2; i++, by = -by)
            words[below(sizeof(struct request) / 4)] += by;
        break;
    case 2: return below((uint32_t)size + 1);
    case 3:
        for (size_t more = below(one_in(10) ? (uint32_t)(room - size) : 64); more > 0 && size < room; more--)
            message[size++] = (uint8_t)below(one_in(2) ? 1 : 256);
        break;
    case 4:
        for (size_t i = one_in(2) ? sizeof(struct request) : 0; i < size; i++)
            message[i] = (uint8_t)below(256);
        break;
    default: mutate(message, size); break;
    }
    return size;
}

/* Sometimes about as many as a message may have. */
static const char *const *many_strings(const char *const *few)
{
    static const char *many[REQUEST_STRINGS + 8];
    size_t count = REQUEST_STRINGS - 8 + below(16);
    if (!one_in(40))
        return few;
    for (size_t i = 0; i < count; i++)
        many[i] = few && few[0] ? few[0] : "";
    many[count] = NULL;
    return many;
}

static int verifies(const struct pack *pack, const char *const *envp)
{
    size_t size;
    void *baked = pack_bake(pack, &size);
    struct plan *plan = plan_new(baked, size, NULL, envp);
    int verified = verify_plan(plan, size) == 0;
    plan_free(plan);
    free(baked);
    return verified;
}

static void check_answer(const struct report *report, const siginfo_t *info, const struct plan_head *head, int verified, int filtered)
{
    int stages = 1 << STAGE_NONE | 1 << STAGE_PLAN | 1 << STAGE_OPS | 1 << STAGE_EXEC;
    if (report->stage < 0 || report->stage > STAGE_EXEC || !(stages & 1 << report->stage) || report->index < -1 || report->index >= PLAN_OPS_MAX)
        misbehaved(head, "no such answer", report->stage, report->index);
    if (verified && report->stage == STAGE_PLAN && report->err != EMFILE)
        misbehaved(head, "a good message was refused", report->stage, report->err);
    int runs = report->stage == STAGE_EXEC && report->err == 0;
    if (!runs && info->si_code != CLD_EXITED && !filtered)
        misbehaved(head, "ended by a signal", info->si_status, report->stage);
    /* The peer ends with 0, or 2 for a verb it does not know; whoever could not become it with 0; after a sanitizer's complaint
     * it is 1. */
    if (info->si_code == CLD_EXITED && info->si_status != 0 && !(runs && info->si_status == 2))
        misbehaved(head, "ended with another status", info->si_status, report->stage);
}

static void run_message(void)
{
    static uint8_t message[REQUEST_BYTES + 64];
    struct still still;
    look_before(&still);
    int fds[REQUEST_FDS], pair[2], real = one_in(4), intact = one_in(2), verified;
    unsigned count = below(one_in(20) ? REQUEST_FDS + 1 : 6);
    for (unsigned i = 0; i < count; i++)
        do
            fds[i] = (int)below(FUZZ_FDS);
        while (fcntl(fds[i], F_GETFD) < 0);
    size_t size;
    const char *const *argv = many_strings(some_strings(0)), *const *envp = some_strings(1);
    struct pack *pack = make_last_plan((int)count);
    while (!(verified = verifies(pack, envp)) && !one_in(20)) {
        pack_free(pack);
        pack = make_last_plan((int)count);
    }
    uint8_t *good = pack_request(pack, argv, envp, count, &size);
    struct plan_head *head = (struct plan_head *)(good + sizeof(struct request));
    intact &= size <= REQUEST_BYTES && ((struct request *)good)->argc + ((struct request *)good)->envc <= REQUEST_STRINGS;
    size_t plan_size = ((struct request *)good)->plan_size;
    memcpy(message, good, size < sizeof message ? size : sizeof message);
    if (!intact)
        size = spoil(message, size < sizeof message ? size : sizeof message, sizeof message);
    /* With a filter that forbids too much, or too little room, it can end in no other way than by a signal. */
    int filtered = 0;
    for (int i = 0; i < 2; i++) {
        const uint8_t *plan = i ? good + sizeof(struct request) : message + sizeof(struct request);
        filtered |= has_op(plan, plan_size, OP_SECCOMP) || has_op(plan, plan_size, OP_RLIMIT);
    }
    uint64_t flags = namespaces_of_its_own() | CLONE_NEWUSER | CLONE_NEWNS;
    make_sockets(SOCK_SEQPACKET, pair);
    send_message(pair[0], message, size, fds, count);
    shutdown(pair[0], SHUT_WR); /* an op may read from the very socket: it shall not wait for more */
    struct waiting waiting = (real ? start_real : start_sanitized)(flags & ~(uint64_t)CLONE_NEWPID, pair);
    close(pair[1]);
    struct report report = { .stage = STAGE_NONE };
    if (waiting.out.pidfd >= 0) { /* else there was no room for another namespace */
        siginfo_t info = { 0 };
        report = last_answer(waiting);
        if (waitid((idtype_t)3, (id_t)waiting.out.pidfd, &info, WEXITED | __WALL))
            misbehaved(head, "cannot wait for it", errno, waiting.out.pid);
        close(waiting.out.pidfd);
        if (tally->hung == still.hung)
            check_answer(&report, &info, intact && verified ? head : NULL, intact && verified, filtered);
        tally->counts[INTACT] += (uint64_t)intact;
        tally->counts[REAL] += (uint64_t)real;
        tally->counts[REFUSED] += report.stage == STAGE_PLAN;
        tally->counts[FAILED] += report.stage != STAGE_PLAN && report.err != 0;
        tally->counts[RAN] += report.stage == STAGE_EXEC && report.err == 0;
        tally->counts[KILLED] += info.si_code != CLD_EXITED;
    }
    close(pair[0]);
    for (uint32_t i = 0; intact && verified && i < head->count; i++)
        if (report.stage == STAGE_EXEC || (report.stage == STAGE_OPS && (int32_t)i == report.index))
            tally->by_op[((struct op *)(head + 1))[i].code][report.stage == STAGE_EXEC]++;
    look_after(&still, intact && verified ? head : NULL);
    free(good);
    pack_free(pack);
}

int main(void)
{
    struct fuzzer fuzzer = { run_message, init_path(), counts };
    return fuzz(&fuzzer);
}
