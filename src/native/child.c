/* The child's half, between clone3() and execveat(), on memory it shares with the parent, whose thread is suspended meanwhile.
 *
 * What may run here: raw system calls (sys.h) and plain computation. No allocation, no lock, no libc state: another thread of
 * the parent may hold any lock at this moment, and `errno` is the parent's. An op never exits or prints; it returns 0 or a
 * positive errno, and the loop below stops at the first that is not 0. The words are made by the parent. */
#include "op.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>

#define X(name, fn, operands) [OP_##name] = fn,
static op_fn *const run_op[OP_COUNT] = { OPS(X) };
#undef X

#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif

/* A filter that the plan installed may forbid any of these; the trap it cannot forbid. The parent waits for the end. */
_Noreturn void leave(int code)
{
    sys1(__NR_exit_group, code);
    sys1(__NR_exit, code);
    sys2(__NR_kill, sys0(__NR_getpid), 9 /* SIGKILL */);
    for (;;)
        SYS_TRAP();
}

int run_ops(struct plan *plan)
{
    volatile struct report *report = &plan->report;
    report->stage = STAGE_OPS;
    for (uint32_t i = 0; i < plan->head->count; i++) {
        const struct op *op = &plan->ops[i];
        report->index = (int32_t)i;
        int err = op->code < OP_COUNT ? run_op[op->code](plan, op) : EINVAL; /* unknown: refuse, never skip */
        if (err) {
            report->err = err;
            return err;
        }
    }
    report->stage = STAGE_EXEC; /* "about to exec": ending without an error after this is success */
    return 0;
}

void exec_program(struct plan *plan)
{
    const char *path = plan_str(plan, plan->head->exec_path);
    long ret = sys5(__NR_execveat, plan_fd(plan, plan->exec_fd), path, plan->argv, plan->envp, *path ? 0 : AT_EMPTY_PATH);
    plan->report.err = plan->exec_err ? plan->exec_err : (int32_t)-ret;
}

void child_main(void *arg)
{
    struct plan *plan = arg;
    if (run_ops(plan))
        leave(127);
    if (plan->head->flags & PLAN_COLLECT)
        leave(0);
    exec_program(plan);
    leave(127);
}
