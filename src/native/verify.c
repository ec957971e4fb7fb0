/* Checks a packed plan before clone. Whatever passes cannot make the child touch memory outside the plan: every string ends
 * inside the blob, every slot exists, every count fits. What an op does to the kernel is the kernel's to judge. */
#include "op.h"

#include <linux/filter.h>

#define X(name, fn, operands) [OP_##name] = operands,
static const uint8_t needs[OP_COUNT] = { OPS(X) };
#undef X

/* CLONE_NEW*, and nothing else: what a plan may not do is share the parent's memory for longer, or its signal handlers. */
#define NAMESPACES                                                                                                                \
    (0x00020000u /*NS*/ | 0x02000000u /*CGROUP*/ | 0x04000000u /*UTS*/ | 0x08000000u /*IPC*/ | 0x10000000u /*USER*/ |            \
     0x20000000u /*PID*/ | 0x40000000u /*NET*/)

static int str_ok(const struct plan *plan, uint32_t offset, int needed)
{
    return offset == NO_STR ? !needed : offset < plan->head->blob_len; /* the blob ends with a NUL */
}

static int fd_ok(int32_t fd, int needed) { return fd >= 0 || fd == CWD_FD || IS_SLOT(fd) || (fd == NO_FD && !needed); }

static int array_ok(const struct plan *plan, const struct op *op, uint64_t most, size_t size)
{
    return op->a <= most && op->str + op->a * size <= plan->head->blob_len;
}

static int fd_map_ok(const struct plan *plan, const struct op *op)
{
    if (!array_ok(plan, op, TARGETS, 2 * sizeof(int32_t)))
        return 0;
    uint8_t seen[TARGETS / 8] = { 0 };
    for (uint64_t i = 0; i < op->a; i++) {
        int32_t pair[2];
        __builtin_memcpy(pair, plan->blob + op->str + i * sizeof pair, sizeof pair);
        pair[1] &= ~TARGET_CLOEXEC;
        if (!(pair[0] >= 0 || IS_SLOT(pair[0])) || pair[1] < 0 || pair[1] >= TARGETS || seen[pair[1] / 8] & 1 << pair[1] % 8)
            return 0;
        seen[pair[1] / 8] |= (uint8_t)(1 << pair[1] % 8);
    }
    return 1;
}

/* At least what 0, 1 and 2 become; those that are kept in ascending order, so that the gaps between them can be closed. */
static int inherit_fds_ok(const struct plan *plan, const struct op *op)
{
    if (op->a < 3 || !array_ok(plan, op, INHERITED_FDS, sizeof(int32_t)))
        return 0;
    int32_t last = NO_FD;
    for (uint64_t i = 0; i < op->a; i++) {
        int32_t fd;
        __builtin_memcpy(&fd, plan->blob + op->str + i * sizeof fd, sizeof fd);
        if (fd < NO_FD || (i >= 3 && fd <= last))
            return 0;
        last = i < 3 ? NO_FD : fd;
    }
    return 1;
}

static int env_pid_ok(const struct plan *plan, const struct op *op)
{
    if (op->a >= plan->envc)
        return 0;
    size_t size = __builtin_strlen(plan->envp[op->a]);
    return size >= ENV_PID_DIGITS && op->b <= size - ENV_PID_DIGITS;
}

static int op_ok(const struct plan *plan, const struct op *op)
{
    if (op->code >= OP_COUNT)
        return 0;
    int need = needs[op->code];
    if (!str_ok(plan, op->str, need & STR) || !str_ok(plan, op->str2, need & STR2))
        return 0;
    if (!fd_ok(op->fd, need & FD) || !fd_ok(op->fd2, need & FD2))
        return 0;
    if (need & OUT ? op->out < 0 || op->out >= SLOTS : op->out != -1)
        return 0;
    switch (op->code) {
    /* What collects runs on the caller's own table: it may add to it, and nothing else. Nor may a signal end it in the middle of
     * an op, with a descriptor open that nobody knows. */
    case OP_SIGNALS: return !(plan->head->flags & PLAN_COLLECT);
    case OP_FD_MAP: return !(plan->head->flags & PLAN_COLLECT) && fd_map_ok(plan, op);
    /* What is as the caller has it is the caller's own here; and to execute ends it. */
    case OP_INHERIT_FDS: return !(plan->head->flags & PLAN_COLLECT) && inherit_fds_ok(plan, op);
    case OP_INHERIT_SIGNALS:
    case OP_TRY_EXEC: return !(plan->head->flags & PLAN_COLLECT);
    case OP_SECCOMP: return op->a > 0 && op->str % _Alignof(struct sock_filter) == 0 && array_ok(plan, op, 4096, sizeof(struct sock_filter));
    case OP_AFFINITY: return op->a > 0 && op->str % _Alignof(long) == 0 && array_ok(plan, op, 1024, 1);
    case OP_ENV_PID: return env_pid_ok(plan, op);
    case OP_UNSHARE:
    case OP_SETNS: return (op->a & ~(uint64_t)NAMESPACES) == 0;
    default: return 1;
    }
}

static int head_ok(const struct plan *plan, size_t size)
{
    const struct plan_head *head = plan->head;
    if (size < sizeof *head || head->magic != PLAN_MAGIC || head->count > PLAN_OPS_MAX)
        return 0;
    if (size - sizeof *head < head->count * sizeof(struct op) || size - sizeof *head - head->count * sizeof(struct op) != head->blob_len)
        return 0;
    if (head->blob_len == 0 || plan->blob[head->blob_len - 1] != '\0')
        return 0;
    if ((head->clone_flags | head->enter_flags) & ~(uint64_t)NAMESPACES || head->flags & ~(uint32_t)(PLAN_SHARE_FDS | PLAN_COLLECT | PLAN_SIBLING))
        return 0;
    if (head->cgroup_fd < NO_FD || head->enter_fd < NO_FD)
        return 0;
    if (head->flags & PLAN_SIBLING && (head->flags & PLAN_COLLECT || head->enter_fd != NO_FD))
        return 0; /* who enters namespaces for it makes a brother of its own, and what collects is waited for */
    if (head->flags & PLAN_COLLECT)
        return head->flags & PLAN_SHARE_FDS; /* what it makes has to land in the caller's table */
    if (!fd_ok(head->exec_fd, 1) || !str_ok(plan, head->exec_path, 1))
        return 0;
    /* A child on the caller's own table must leave it before it touches a single descriptor. */
    return !(head->flags & PLAN_SHARE_FDS) || (head->count > 0 && plan->ops[0].code == OP_UNSHARE_FDS);
}

int verify_plan(struct plan *plan, size_t size)
{
    uint8_t filled[SLOTS / 8] = { 0 }; /* once only: what was in a slot before would stay open with nobody knowing */
    int over = 0; /* what the child is told is over: from here on its end counts as the program's, so only exec may follow */
    int left = 0; /* a child that collects has left the caller's table: what it makes from here on would be lost */
    plan->slots_used = 0;
    if (!head_ok(plan, size))
        return -1;
    for (uint32_t i = 0; i < plan->head->count; i++) {
        int out = plan->ops[i].out;
        if (!op_ok(plan, &plan->ops[i]) || (out >= 0 && (left || filled[out / 8] & 1 << out % 8)))
            return (int)i + 1;
        if (over != (plan->ops[i].code == OP_TRY_EXEC))
            return (int)i + 1;
        over |= plan->ops[i].code == OP_INHERIT_SIGNALS;
        left |= plan->ops[i].code == OP_UNSHARE_FDS && plan->head->flags & PLAN_COLLECT;
        if (out >= 0)
            filled[out / 8] |= (uint8_t)(1 << out % 8);
        if (out >= plan->slots_used)
            plan->slots_used = out + 1;
    }
    return 0;
}
