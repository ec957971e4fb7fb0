/* libFuzzer on verify_plan alone: whatever it accepts, all indexes of are inside of the plan.
 * Input: packed plan. It is laid out as module.c does it, in memory of exactly its size. */
#include "op.h"

#include <stdlib.h>
#include <string.h>

extern volatile size_t sum; /* so that nothing is optimised away */
volatile size_t sum;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < sizeof(struct plan_head))
        return 0;
    char *memory = malloc(size), *vars[] = { strdup("A=1"), strdup("LISTEN_PID=0123456789"), NULL };
    memcpy(memory, data, size);
    struct plan_head *head = (struct plan_head *)memory;
    head->magic = PLAN_MAGIC; /* the rest is worth finding out, this is not */
    struct plan *plan = calloc(1, sizeof *plan);
    plan->head = head;
    plan->ops = (struct op *)(head + 1);
    plan->blob = (char *)(head + 1) + head->count * sizeof(struct op);
    plan->envp = vars;
    plan->envc = 2;
    if (verify_plan(plan, size) == 0) {
        if (!(head->flags & PLAN_COLLECT))
            sum += strlen(plan_str(plan, head->exec_path));
        for (uint32_t i = 0; i < head->count; i++) {
            const struct op *op = &plan->ops[i];
            const char *texts[] = { plan_str(plan, op->str), plan_str(plan, op->str2) };
            sum += (size_t)plan_fd(plan, op->fd) + (size_t)plan_fd(plan, op->fd2);
            for (int s = 0; s < 2; s++)
                sum += texts[s] ? strlen(texts[s]) : 0;
            if (op->out >= 0)
                plan->slots[op->out] = 1;
            if (op->code == OP_ENV_PID)
                memset(vars[op->a] + op->b, '0', ENV_PID_DIGITS);
            if (op->code == OP_FD_MAP || op->code == OP_SECCOMP)
                for (uint64_t byte = 0; byte < op->a * 8; byte++)
                    sum += (size_t)texts[0][byte];
        }
    }
    free(plan);
    free(vars[0]);
    free(vars[1]);
    free(memory);
    return 0;
}
