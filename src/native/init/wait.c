/* A process of a cell that has everything a cell fixes - namespaces, world of files, no privileges - and waits to be told
 * which program to become, with which arguments, environment and descriptors: see request.h. The socket's end means that
 * nobody will tell it any more. */
#include "init.h"
#include "../request.h"
#include "../sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

static _Alignas(struct plan_head) struct {
    struct request head;
    char rest[REQUEST_BYTES - sizeof(struct request)];
} received;
static char *strings[REQUEST_STRINGS + 2];
static struct plan plan;
static uint32_t places; /* where the program is looked for before the plan's own place: ops that come after the counted ones */

/* Whether it could be given: a filter of the plan may forbid it, and the one who asked may be gone. */
static int answer(void)
{
    struct report report = { plan.report.stage, plan.report.index, plan.report.err };
    return sys6(__NR_sendto, plan.report_fd, (long)&report, sizeof report, MSG_NOSIGNAL, 0, 0) == sizeof report;
}

/* Points `out` at `count` strings. Returns where they end, or 0 when there are not so many. */
static char *split(char *text, const char *end, char **out, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        out[i] = text;
        while (text < end && *text)
            text++;
        if (text >= end)
            return 0;
        text++;
    }
    out[count] = 0;
    return text;
}

/* Strings that a message has no room for: in a file, which comes after all other descriptors. */
static int take_file(const struct request *request)
{
    struct stat found;
    int fd = plan.slots_used ? plan.slots[--plan.slots_used] : NO_FD;
    plan.slots[plan.slots_used] = NO_FD;
    uint64_t count = (uint64_t)request->argc + request->envc + 2;
    if (fd < 0 || sys2(__NR_fstat, fd, &found) < 0 || found.st_size <= 0 || found.st_size > REQUEST_FILE_BYTES || count > REQUEST_FILE_STRINGS)
        return EINVAL;
    long text = sys6(__NR_mmap, 0, found.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    long table = sys6(__NR_mmap, 0, count * sizeof(char *), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sys1(__NR_close, fd);
    if ((text < 0 && text > -4096) || (table < 0 && table > -4096))
        return ENOMEM;
    char *end = (char *)text + found.st_size;
    plan.argv = (char **)table;
    plan.envp = plan.argv + request->argc + 1;
    char *rest = split((char *)text, end, plan.argv, request->argc);
    return rest && split(rest, end, plan.envp, request->envc) == end ? 0 : EINVAL;
}

static int take_strings(const struct request *request)
{
    if (request->argv_size + request->envp_size == 0 && request->argc + request->envc > 0)
        return take_file(request);
    char *text = received.rest + request->plan_size, *end = text + request->argv_size;
    plan.argv = strings;
    plan.envp = strings + request->argc + 1;
    if (request->argc + (uint64_t)request->envc > REQUEST_STRINGS || split(text, end, plan.argv, request->argc) != end)
        return EINVAL;
    text = end;
    end += request->envp_size;
    return split(text, end, plan.envp, request->envc) == end ? 0 : EINVAL;
}

/* Fills `plan` from a message of `size` bytes, all after the descriptors have been put into its slots. */
static int take(long size)
{
    const struct request *request = &received.head;
    if (size < (long)sizeof *request || request->plan_size < sizeof(struct plan_head) ||
        (uint64_t)size != sizeof *request + (uint64_t)request->plan_size + request->argv_size + request->envp_size)
        return EINVAL;
    struct plan_head *head = (struct plan_head *)received.rest;
    if (head->count > PLAN_OPS_MAX || request->plan_size - sizeof *head < head->count * sizeof(struct op))
        return EINVAL;
    /* What takes a clone was not done, and must not be missing; what collects has no table of a caller's to do it on. */
    if (head->flags || head->clone_flags || head->enter_flags || head->cgroup_fd != NO_FD || head->enter_fd != NO_FD)
        return EINVAL;
    plan.head = head;
    plan.ops = (const struct op *)(head + 1);
    plan.blob = (char *)(uintptr_t)(plan.ops + head->count);
    plan.argc = request->argc;
    plan.envc = request->envc;
    plan.exec_fd = head->exec_fd;
    int err = take_strings(request);
    int fds = plan.slots_used;
    if (err || (err = verify_plan(&plan, request->plan_size) ? EINVAL : 0))
        return err;
    for (; head->count > 0 && plan.ops[head->count - 1].code == OP_TRY_EXEC; head->count--)
        places++; /* the answer comes first */
    if (request->fds != (uint32_t)fds)
        return EMFILE;
    plan.slots_used = plan.slots_used > fds ? plan.slots_used : fds;
    return 0;
}

void wait_for_plan(void)
{
    sys5(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0); /* what else runs in the cell shall not look in here */
    _Alignas(struct cmsghdr) static char control[CMSG_SPACE(REQUEST_FDS * sizeof(int))];
    struct iovec piece = { &received, sizeof received };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    sys3(__NR_fcntl, REQUEST_SOCKET, F_SETFD, FD_CLOEXEC);
    sys3(__NR_fcntl, REQUEST_BASE, F_SETFD, FD_CLOEXEC);
    plan.report_fd = REQUEST_SOCKET;
    plan.report.stage = STAGE_PLAN;
    plan.report.index = -1;
    for (int i = 0; i < SLOTS; i++)
        plan.slots[i] = NO_FD;
    long size;
    do
        size = sys3(__NR_recvmsg, REQUEST_SOCKET, &message, MSG_CMSG_CLOEXEC);
    while (size == -EINTR);
    if (size <= 0)
        return;
    const struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head && head->cmsg_type == SCM_RIGHTS)
        plan.slots_used = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    for (int i = 0; i < plan.slots_used; i++)
        plan.slots[i] = ((const int *)(const void *)CMSG_DATA(head))[i];
    /* The kernel drops the descriptors that do not fit below the limit, and says so. */
    int err = message.msg_flags & MSG_CTRUNC ? EMFILE : message.msg_flags & MSG_TRUNC ? EMSGSIZE : take(size);
    plan.report.err = err;
    if (!err)
        run_ops(&plan);
    if (!answer() || plan.report.err)
        return; /* who hears nothing takes it that nothing was run */
    for (uint32_t i = 0; i < places; i++)
        op_try_exec(&plan, &plan.ops[plan.head->count + i]);
    exec_program(&plan);
    answer();
}
