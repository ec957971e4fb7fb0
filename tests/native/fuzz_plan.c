/* Random plans, verified and launched: the child may fail, never misbehave.
 *
 * After each launch the caller must be what it was: memory (AddressSanitizer), descriptors, children, signal mask, working
 * directory, and the report must be one that launch() documents. */
#include "fuzz.h"

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ACCEPTED, FAILED, RAN, COLLECTED, KILLED };
static const char *const counts[] = { "accepted", "failed", "ran a program", "collected", "were killed", NULL };

static void check_report(const struct result *result, const struct plan_head *head)
{
    int collect = head->flags & PLAN_COLLECT;
    const struct report *report = &result->out.report;
    int runs = report->stage == STAGE_EXEC && report->err == 0;
    if (report->stage < STAGE_CLONE || report->stage > STAGE_EXEC)
        misbehaved(head, "no such stage", report->stage, report->err);
    /* WAIT_READY hands on what it reads, which may be any number; all others are the kernel's. */
    if (report->index < -1 || report->index >= (int32_t)head->count)
        misbehaved(head, "no such op", report->index, head->count);
    if (runs && !collect ? result->out.pid <= 0 || result->out.pidfd < 0 : result->out.pid != -1 || result->out.pidfd != -1)
        misbehaved(head, "pid and pidfd do not fit the outcome", result->out.pid, result->out.pidfd);
}

/* Whatever is wrong afterwards ends the world. */
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
            baked[i] = (uint8_t)below(256);
    const struct plan_head *head = (const struct plan_head *)baked;
    const struct op *ops = (const struct op *)(head + 1);
    int collect = head->flags & PLAN_COLLECT;
    /* Made so by a mutation: see add_filter; and a sibling is our parent's to wait for, see test_fork_into. */
    if ((collect && has_op(baked, size, OP_SECCOMP)) || head->flags & PLAN_SIBLING) {
        free(baked);
        return;
    }
    struct still still;
    look_before(&still);
    struct result result = run_baked(baked, size, some_strings(0), some_strings(1));
    if (result.refused == 0) {
        tally->counts[ACCEPTED]++;
        check_report(&result, head);
        int stage = result.out.report.stage, index = result.out.report.index, err = result.out.report.err;
        tally->counts[FAILED] += err != 0;
        tally->counts[KILLED] += err == 0 && stage != STAGE_EXEC;
        tally->counts[COLLECTED] += collect && stage == STAGE_EXEC;
        if (stage == STAGE_OPS && index >= 0)
            tally->by_op[ops[index].code][0]++;
        if (stage == STAGE_EXEC)
            for (uint32_t i = 0; i < head->count; i++)
                tally->by_op[ops[i].code][1]++;
        if (collect)
            for (int i = 0; i < SLOTS; i++)
                if (result.slots[i] >= 0 && close(result.slots[i]))
                    misbehaved(head, "a slot holds what is not open", i, result.slots[i]);
        if (result.out.pidfd >= 0) {
            siginfo_t info;
            tally->counts[RAN]++;
            if (waitid((idtype_t)3, (id_t)result.out.pidfd, &info, WEXITED | __WALL))
                misbehaved(head, "cannot wait for what runs", errno, result.out.pid);
            close(result.out.pidfd);
        }
    }
    look_after(&still, result.refused ? NULL : head);
    free(baked);
}

int main(void)
{
    static const struct fuzzer fuzzer = { run_plan, NULL, counts };
    return fuzz(&fuzzer);
}
