/* A process that makes cells ahead of their use, as often as it is asked to, from one recipe.
 *
 * It lives in the caller's world and is forked for each cell twice: into the cell's pid 1 (keep.c) and into a process that waits
 * in the cell for its program (wait.c). Nothing is executed for that. Both become children of the caller, whose only they are to
 * wait for (CLONE_PARENT), and are told to it with their pidfds and the other ends of their sockets.
 *
 * A pid namespace is entered by one's later children only, and there may be no way back: so a thread does it that ends right
 * after it has made that child, which is again a child of the caller's. Without root all this happens in a user namespace in
 * which it is allowed, and each cell has one of its own below. setns(2), pid_namespaces(7). */
#include "init.h"
#include "../recipe.h"
#include "../request.h"
#include "../sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define SIGKILL_ 9
#define JOIN_S 5
#define QUIET_NS 1500000 /* how long the end of a program just launched is waited for, so as not to disturb it */

static struct plan keeper, prepare;
static const struct recipe *recipe;
static uint64_t whose = CLONE_PARENT; /* children, those of a cell are: the caller's, or ours */
static char *words, *words_end; /* our arguments, as ps shows them */

static long pair(int type, int out[2]) { return sys4(__NR_socketpair, AF_UNIX, type | SOCK_CLOEXEC, 0, out); }

static void shut(int *fd)
{
    if (*fd >= 0)
        sys1(__NR_close, *fd);
    *fd = NO_FD;
}

long duplicate(uint64_t flags, int *pidfd) { return sys5(__NR_clone, flags | CLONE_PIDFD, 0, pidfd, 0, 0); }

/* Of one cell: what is open for it in this process. */
struct cell {
    int keeper, waiting;     /* pidfds */
    int control[2], talk[2]; /* sockets: the caller's end, and that of pid 1 or of the waiting process */
    int id_map;
};

/* What a fork is to be taken for: by its name and its arguments. There is room for a name and one letter. */
static void call(const char *name, const char *argument)
{
    char *at = words;
    sys5(__NR_prctl, PR_SET_NAME, name, 0, 0, 0);
    while (at < words_end - 1 && *name)
        *at++ = *name++;
    for (*at++ = 0; at < words_end - 1 && *argument;)
        *at++ = *argument++;
    while (at < words_end)
        *at++ = 0;
}

_Noreturn static void be_keeper(const struct cell *cell)
{
    call("shoal-init", recipe->tasks);
    plan_begin(&keeper);
    keeper.slots[KEEPER_CONTROL] = cell->control[1];
    int err = run_ops(&keeper);
    if (!err) { /* there is something to enter now; until then the waiting process would still be where the caller is */
        sys6(__NR_sendto, CONTROL, (long)&err, sizeof err, MSG_NOSIGNAL, 0, 0);
    } else { /* nothing may stay open that the end of others is told by */
        if (keeper.slots[KEEPER_CONTROL] >= 0)
            sys3(__NR_dup3, keeper.slots[KEEPER_CONTROL], CONTROL, O_CLOEXEC);
        sys3(__NR_close_range, CONTROL + 1, ~0u, 0);
    }
    keep_cell(recipe->tasks, err);
}

_Noreturn static void be_waiting(const struct cell *cell, int user)
{
    call(recipe->comm, "w"); /* what the program will be called, so that nobody sees another name */
    plan_begin(&prepare);
    prepare.slots[PREPARE_KEEPER] = cell->keeper;
    prepare.slots[PREPARE_CONTROL] = cell->control[0];
    prepare.slots[PREPARE_SOCKET] = cell->talk[1];
    prepare.slots[PREPARE_ID_MAP] = cell->id_map;
    prepare.slots[PREPARE_USER] = user ? user : NO_FD;
    int failed = run_ops(&prepare);
    struct report report = { failed ? STAGE_OPS : STAGE_PLAN, failed ? prepare.report.index : -1, failed };
    int talk = prepare.slots[PREPARE_SOCKET] >= 0 ? prepare.slots[PREPARE_SOCKET] : REQUEST_SOCKET; /* until FD_MAP, and after */
    sys6(__NR_sendto, talk, (long)&report, sizeof report, MSG_NOSIGNAL, 0, 0);
    if (!failed)
        wait_for_plan();
    leave(0);
}

char *put_text(char *to, const char *text)
{
    while (*text)
        *to++ = *text++;
    *to = 0;
    return to;
}

char *put_number(char *to, unsigned long number)
{
    char digits[20];
    int count = 0;
    do
        digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count > 0)
        *to++ = digits[--count];
    *to = 0;
    return to;
}

long of_process(long pid, const char *name, int flags)
{
    char path[64];
    put_text(put_number(put_text(path, "/proc/"), (unsigned long)pid), name);
    return sys4(__NR_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0);
}

static _Alignas(16) char stack[64 * 1024]; /* of the thread; the waiting process goes on on a copy of it */

struct birth {
    struct cell *cell;
    int user;
    long pid; /* of the waiting process, or -errno */
};

static void enter_and_duplicate(void *arg)
{
    struct birth *birth = arg;
    long ret = sys2(__NR_setns, birth->cell->keeper, CLONE_NEWPID);
    if (ret == 0)
        ret = duplicate(whose, &birth->cell->waiting);
    if (ret == 0)
        be_waiting(birth->cell, birth->user);
    birth->pid = ret;
    for (;;)
        sys1(__NR_exit, 0);
}

static long make_waiting(struct cell *cell, int user)
{
    struct birth birth = { cell, user, -EAGAIN };
    long flags = CLONE_VM | CLONE_VFORK | CLONE_THREAD | CLONE_SIGHAND | CLONE_FILES | CLONE_FS;
    long ret = sys_clone_call(__NR_clone, flags, (long)(stack + sizeof stack), 0, enter_and_duplicate, &birth);
    return ret < 0 ? ret : birth.pid;
}

/* Until the waiting process has done its part, pid 1 still has to let itself be entered, which it no longer does once it knows
 * how long to stay. */
static long await_ready(const struct cell *cell, const struct timespec *patience)
{
    struct pollfd watch[3] = {
        { .fd = cell->talk[0], .events = POLLIN },
        { .fd = cell->waiting, .events = POLLIN },
        { .fd = RECIPE_REQUESTS, .events = POLLRDHUP }, /* nobody wants it any more */
    };
    struct report report = { .err = ESRCH };
    if (sys5(__NR_ppoll, watch, 3, patience, 0, 8) == 0)
        return -ETIMEDOUT;
    sys6(__NR_recvfrom, cell->talk[0], (long)&report, sizeof report, MSG_DONTWAIT, 0, 0);
    return -report.err;
}

static long start(struct cell *cell, struct made *made)
{
    long ret = pair(SOCK_STREAM, cell->control);
    if (ret == 0)
        ret = pair(SOCK_SEQPACKET, cell->talk);
    if (ret < 0)
        return ret;
    ret = duplicate(whose | keeper.head->clone_flags, &cell->keeper);
    if (ret == 0)
        be_keeper(cell);
    if (ret < 0)
        return ret;
    made->keeper = (int32_t)ret;
    uint32_t user = recipe->first_user ? recipe->first_user + (uint32_t)made->keeper : 0;
    if (recipe->maps_ids) {
        ret = make_user_namespace((struct ids){ recipe->uid, recipe->gid }, (struct ids){ user, user }, 0);
        if (ret < 0)
            return ret;
        cell->id_map = (int)ret;
    }
    ret = make_waiting(cell, (int)user);
    if (ret < 0)
        return ret;
    made->waiting = (int32_t)ret;
    ret = await_ready(cell, 0);
    return ret < 0 ? ret : sys3(__NR_write, cell->control[0], &recipe->mode, 1);
}

static int make_one(void)
{
    struct cell cell = { NO_FD, NO_FD, { NO_FD, NO_FD }, { NO_FD, NO_FD }, NO_FD };
    struct made made = { 0, 0, 0 };
    long ret = start(&cell, &made);
    long told = -1;
    if (ret >= 0) {
        int fds[4] = { cell.keeper, cell.waiting, cell.control[0], cell.talk[0] };
        told = ret = tell(RECIPE_REQUESTS, &made, sizeof made, fds, 4); /* the user may have too many descriptors on their way */
    }
    if (ret < 0) {
        made.err = (int32_t)-ret;
        if (cell.keeper >= 0)
            sys4(__NR_pidfd_send_signal, cell.keeper, SIGKILL_, 0, 0);
        told = tell(RECIPE_REQUESTS, &made, sizeof made, 0, 0); /* they are the caller's to wait for all the same */
    }
    shut(&cell.keeper);
    shut(&cell.waiting);
    shut(&cell.control[0]);
    shut(&cell.control[1]);
    shut(&cell.talk[0]);
    shut(&cell.talk[1]);
    shut(&cell.id_map);
    return told >= 0;
}

static int take_plan(struct plan *plan, char *at, uint32_t size)
{
    const struct plan_head *head = (const struct plan_head *)(void *)at;
    if (size < sizeof *head || head->count > PLAN_OPS_MAX || size - sizeof *head < head->count * sizeof(struct op))
        return 0;
    plan->head = head;
    plan->ops = (const struct op *)(head + 1);
    plan->blob = (char *)(uintptr_t)(plan->ops + head->count);
    /* Who begins on another's descriptors or in another's cgroup is launched; we fork. */
    if (verify_plan(plan, size))
        return 0;
    plan->slots_used = plan->slots_used > PREPARE_SLOTS ? plan->slots_used : PREPARE_SLOTS;
    return head->flags == 0 && head->cgroup_fd == NO_FD && head->enter_fd == NO_FD;
}

static int take_recipe(void)
{
    struct stat found;
    if (sys2(__NR_fstat, RECIPE_FILE, &found) < 0 || found.st_size < (long)sizeof *recipe)
        return 0;
    /* A copy of our own: an op cuts its strings in two for a moment. */
    long at = sys6(__NR_mmap, 0, found.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, RECIPE_FILE, 0);
    if (at < 0 && at > -4096)
        return 0;
    recipe = (const struct recipe *)at;
    uint64_t first = sizeof *recipe, second = first + ((uint64_t)recipe->keeper_size + 7) / 8 * 8;
    if (second + recipe->prepare_size != (uint64_t)found.st_size)
        return 0;
    return take_plan(&keeper, (char *)at + first, recipe->keeper_size) && take_plan(&prepare, (char *)at + second, recipe->prepare_size);
}

void find_words(char **argv)
{
    words = argv[0];
    for (; *argv; argv++)
        for (words_end = *argv; *words_end++;)
            ;
}

void reserve_recipe(void)
{
    sys3(__NR_dup3, RECIPE_REQUESTS, RECIPE_FILE, O_CLOEXEC);
    sys3(__NR_dup3, RECIPE_REQUESTS, RECIPE_EMPTY, O_CLOEXEC);
}

/* What it takes to start more in the cell of our own: its pid 1, and what its program was executed from, which no path leads to. */
static int own_keeper = NO_FD, own_base = NO_FD;

int make_own_cell(int file, int empty, struct made *made)
{
    struct cell cell = { NO_FD, NO_FD, { NO_FD, NO_FD }, { NO_FD, NO_FD }, NO_FD };
    whose = UNEXECUTED_SIGNAL;
    sys3(__NR_dup3, file, RECIPE_FILE, O_CLOEXEC);
    if (empty >= 0)
        sys3(__NR_dup3, empty, RECIPE_EMPTY, O_CLOEXEC);
    long ret = take_recipe() ? start(&cell, made) : -EINVAL;
    int talk = ret < 0 ? NO_FD : cell.talk[0];
    made->err = ret < 0 ? (int32_t)-ret : 0;
    if (ret < 0) {
        if (cell.keeper >= 0)
            sys4(__NR_pidfd_send_signal, cell.keeper, SIGKILL_, 0, 0);
        shut(&cell.talk[0]);
        shut(&cell.control[0]); /* which pid 1 may be waiting by, and else has to stay open as long as it */
        shut(&cell.keeper);
    } else { /* Where that cannot be had, the cell has room for one. */
        own_keeper = cell.keeper;
        own_base = (int)sys3(__NR_pidfd_getfd, cell.waiting, REQUEST_BASE, 0);
    }
    shut(&cell.waiting);
    shut(&cell.control[1]);
    shut(&cell.talk[1]);
    shut(&cell.id_map);
    return talk;
}

int join_own_cell(int file, long keeper_pid, struct made *made)
{
    struct cell cell = { own_keeper, NO_FD, { own_base, NO_FD }, { NO_FD, NO_FD }, NO_FD };
    sys3(__NR_dup3, file, RECIPE_FILE, O_CLOEXEC);
    long ret = own_base < 0 ? -EOPNOTSUPP : take_recipe() ? pair(SOCK_SEQPACKET, cell.talk) : -EINVAL;
    if (ret == 0) {
        /* What lives in the cell may be hostile. It is not to look into who enters, who gives up privileges and descriptors by and by;
         * a copy of us keeps this, and exec ends it. */
        sys5(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
        ret = make_waiting(&cell, recipe->first_user ? (int)(recipe->first_user + keeper_pid) : 0);
        sys5(__NR_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
    }
    if (ret > 0) {
        const struct timespec patience = { JOIN_S, 0 }; /* and it may stop who is of its user by then, and us with it */
        made->waiting = (int32_t)ret;
        ret = await_ready(&cell, &patience);
        if (ret < 0)
            sys4(__NR_pidfd_send_signal, cell.waiting, SIGKILL_, 0, 0);
    }
    made->err = ret < 0 ? (int32_t)-ret : 0;
    if (ret < 0)
        shut(&cell.talk[0]);
    shut(&cell.waiting);
    shut(&cell.talk[1]);
    return cell.talk[0];
}

void make_cells(char **argv)
{
    find_words(argv);
    sys5(__NR_prctl, PR_SET_NAME, "shoal-cells", 0, 0, 0);
    if (!take_recipe())
        return;
    for (;;) {
        _Alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int))];
        uint32_t cells = 0;
        struct iovec piece = { &cells, sizeof cells };
        struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof ancillary };
        long size = sys3(__NR_recvmsg, RECIPE_REQUESTS, &message, MSG_CMSG_CLOEXEC);
        if (size == -EINTR)
            continue;
        if (size != sizeof cells)
            return;
        const struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        if (head && head->cmsg_type == SCM_RIGHTS) {
            int program = *(const int *)(const void *)CMSG_DATA(head);
            struct pollfd watch = { .fd = program, .events = POLLIN };
            struct timespec patience = { 0, QUIET_NS };
            sys5(__NR_ppoll, &watch, 1, &patience, 0, 8);
            sys1(__NR_close, program);
        }
        for (; cells > 0; cells--) {
            struct pollfd asked = { .fd = RECIPE_REQUESTS, .events = POLLRDHUP };
            struct timespec now = { 0 };
            if (sys5(__NR_ppoll, &asked, 1, &now, 0, 8) > 0 || !make_one())
                return;
        }
    }
}
