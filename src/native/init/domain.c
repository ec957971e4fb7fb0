/* The init of a domain: the parent of all its dispatchers, of commands that run beside them, and of whatever they leave behind. It starts
 * what it is told to, keeps the dispatchers' output, and writes how the domain ended to its slot of a ledger, where it outlives everybody:
 * domain.h.
 *
 * A domain ends when the first of its dispatchers does, or when it is ordered to; then everything in it is ended. A cell ends with
 * its pid 1. Without one, orphans become our children (we are their reaper), so that each round of killing our children reaches
 * the next generation, until none is left. Nobody but us reaps them, so that a number we signal is theirs.
 *
 * Source: prctl(2) (PR_SET_CHILD_SUBREAPER), wait(2), sched_setaffinity(2), proc_tid_children(5), unix(7). */
#include "../domain.h"
#include "command.h"
#include "hold.h"
#include "init.h"
#include "output.h"
#include "../recipe.h"
#include "../request.h"
#include "../sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#define DISPATCHERS 256 /* a domain has one on a core at most */
_Static_assert(OUTPUTS_MOST == 2 * DISPATCHERS, "each has two");
#define ORDER_FDS 4
#define CORES 8192
#define SIGNALS_KNOWN 32 /* of how many of the last ones it is known that they were sent */
#define SIGKILL_ 9
#define SIGCHLD_ 17
#define P_ALL 0
#define P_PID 1
#define WNOHANG_ 1
#define WEXITED_ 4
#define WNOWAIT_ 0x1000000
#define WALL 0x40000000
#define WCLONE 0x80000000 /* those only that end with another signal than SIGCHLD */
#define START_TIME 22 /* proc_pid_stat(5) */
#define RETRY_NS 200000000 /* until a socket is tried again that could not be made */

static struct slot slot;
static uint32_t number;     /* of the slot */
static uint64_t init_start; /* when we began */
static int control, listener, signals;
static struct dispatcher {
    int pid;          /* 0: the place is free */
    int tentative;    /* it may yet turn out that it could not become the program */
    int code, status; /* of a tentative one that has ended, as waitid(2) tells it; 0: it lives */
} dispatchers[DISPATCHERS];
static int cell_keeper; /* pid of the cell's pid 1 */
static int is_confined; /* it began in a cell, whatever has become of that */

/* What it costs to be killed between any two of these is at most what is told, never what is true: each is one write. */
static void write_slot(void) { sys4(__NR_pwrite64, DOMAIN_LEDGER, &slot, sizeof slot, (long)number * SLOT_BYTES); }

/* Fields are counted after the name, the second, which may hold anything. */
uint64_t process_field(long pid, int field)
{
    char text[1024];
    long fd = of_process(pid, "/stat", O_RDONLY);
    long size = fd < 0 ? 0 : sys3(__NR_read, fd, text, sizeof text);
    sys1(__NR_close, fd);
    long at = size;
    while (at > 0 && text[at - 1] != ')')
        at--;
    for (int count = 2; count < field && at < size; at++)
        count += text[at] == ' ';
    uint64_t value = 0;
    for (; at < size && text[at] >= '0' && text[at] <= '9'; at++)
        value = value * 10 + (uint64_t)(text[at] - '0');
    return value;
}

static void say(uint32_t kind, long pid, long err, const int *fds, unsigned count)
{
    const struct told told = { kind, (int32_t)pid, (int32_t)err, number, slot.id, slot.key };
    if (control >= 0)
        tell(control, &told, sizeof told, fds, count);
}

/* --- the end ----------------------------------------------------------------------------------------------------- */

static struct dispatcher *find_dispatcher(int pid)
{
    for (int i = 0; i < DISPATCHERS; i++)
        if (dispatchers[i].pid == pid)
            return &dispatchers[i];
    return 0;
}

static void ended_by(int code, int status, int cause)
{
    if (slot.state == SLOT_RUNNING) {
        slot.state = SLOT_ENDING;
        slot.cause = cause;
        slot.code = code;
        slot.status = status;
        slot.ended_ns = (int64_t)now_ns();
        write_slot();
    }
}

static void note_dispatcher(const int *info, int executed)
{
    struct dispatcher *found = find_dispatcher(info[SI_PID]);
    if (found && found->tentative) {
        found->code = info[SI_CODE];
        found->status = info[SI_STATUS];
    } else if (found) {
        *found = (struct dispatcher){ 0 };
        ended_by(info[SI_CODE], info[SI_STATUS], executed ? 0 : CAUSE_UNBEGUN);
    }
}

/* Reaps what has ended; false when no child is left. */
static int reap(int options)
{
    for (;;) {
        int info[32] = { 0 };
        long ret = sys5(__NR_waitid, P_ALL, 0, info, WEXITED_ | WALL | WNOWAIT_ | options, 0);
        if (ret == -EINTR)
            continue;
        if (ret < 0)
            return 0;
        if (info[0] == 0)
            return 1;
        int executed = sys5(__NR_waitid, P_PID, info[SI_PID], 0, WEXITED_ | WCLONE | WNOHANG_, 0) < 0;
        if (executed)
            sys5(__NR_waitid, P_PID, info[SI_PID], 0, WEXITED_, 0);
        if (info[SI_PID] == cell_keeper)
            cell_keeper = 0;
        note_dispatcher(info, executed);
        note_command(info, executed, slot.state >= SLOT_ENDING);
        if (!options)
            return 1;
    }
}

static void kill_children(void)
{
    char text[4096];
    long fd = sys4(__NR_openat, AT_FDCWD, "/proc/thread-self/children", O_RDONLY | O_CLOEXEC, 0);
    long size = fd < 0 ? 0 : sys3(__NR_read, fd, text, sizeof text), pid = 0;
    sys1(__NR_close, fd);
    for (long i = 0; i < size; i++) {
        if (text[i] >= '0' && text[i] <= '9') {
            pid = pid * 10 + text[i] - '0';
            continue;
        }
        if (pid)
            sys2(__NR_kill, pid, SIGKILL_);
        pid = 0;
    }
}

static void kill_all(void)
{
    if (cell_keeper)
        sys2(__NR_kill, cell_keeper, SIGKILL_);
    for (int i = 0; i < DISPATCHERS; i++)
        if (dispatchers[i].pid && !dispatchers[i].code)
            sys2(__NR_kill, dispatchers[i].pid, SIGKILL_);
    kill_commands();
    kill_children();
}

static void unlink_own(void);

_Noreturn static void finish(void)
{
    struct rusage usage = { 0 };
    drain_all();
    sys2(__NR_getrusage, -1 /* RUSAGE_CHILDREN */, &usage);
    slot.user_us = usage.ru_utime.tv_sec * 1000000 + usage.ru_utime.tv_usec;
    slot.system_us = usage.ru_stime.tv_sec * 1000000 + usage.ru_stime.tv_usec;
    slot.max_rss_kib = usage.ru_maxrss;
    if (!slot.ended_ns)
        slot.ended_ns = (int64_t)now_ns();
    slot.state = SLOT_ENDED;
    if (listener >= 0)
        unlink_own();
    write_slot();
    say(TOLD_ENDED, 0, 0, 0, 0);
    leave(0);
}

/* --- orders ------------------------------------------------------------------------------------------------------ */

static void assign(const struct order *order)
{
    long pid = sys0(__NR_getpid);
    number = (uint32_t)order->b;
    slot = (struct slot){
        .state = SLOT_ASSIGNED,
        .can = SLOT_COMMANDS,
        .id = order->c,
        .key = order->d,
        .init_pid = (int32_t)pid,
        .init_start = init_start,
        .started_ns = (int64_t)now_ns(),
    };
    keep_output(&slot, order->e);
    write_slot();
    sys1(__NR_close, DOMAIN_PENDING);
}

static int place(long pid, int tentative)
{
    struct dispatcher *free = find_dispatcher(0);
    if (!free)
        return 0;
    *free = (struct dispatcher){ .pid = (int)pid, .tentative = tentative };
    if (!slot.pid)
        slot.pid = (int32_t)pid;
    slot.state = SLOT_RUNNING;
    write_slot();
    return 1;
}

/* A tentative one is a dispatcher from now on, or never was one. */
static void keep(const struct order *order)
{
    for (int i = 0; i < DISPATCHERS; i++) {
        const struct dispatcher was = dispatchers[i];
        if (!was.pid || !was.tentative || (order->b && was.pid != order->b))
            continue;
        dispatchers[i].tentative = 0;
        if (!order->a && !was.code)
            sys2(__NR_kill, was.pid, SIGKILL_);
        if (!order->a || was.code)
            dispatchers[i] = (struct dispatcher){ 0 };
        if (order->a && was.code)
            ended_by(was.code, was.status, 0);
    }
}

_Noreturn static void become(int plans)
{
    sys5(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL_, 0, 0, 0);
    if (plans != REQUEST_SOCKET)
        sys3(__NR_dup3, plans, REQUEST_SOCKET, O_CLOEXEC);
    wait_for_plan();
    leave(127);
}

static void take_outputs(int which, int *fds, int count)
{
    for (uint32_t stream = 1; stream <= 2; stream++)
        if (which & (int)stream && count-- > 0) {
            add_output(*fds, stream);
            *fds++ = -1;
        }
}

/* It has just been made, and may not run yet: then it costs nothing to have it begin where its plan would move it, which is to wait for
 * the processor that it leaves, and for the one it goes to. A number that we have not reaped is its own. */
static void put_on(uint32_t core, long pid)
{
    unsigned long mask[CORES / 8 / sizeof(unsigned long)] = { 0 }, bits = 8 * sizeof *mask;
    if (core >= CORES)
        return;
    mask[core / bits] = 1ul << core % bits;
    sys3(__NR_sched_setaffinity, pid, sizeof mask, mask);
}

static void start_dispatcher(const struct order *order, int *fds, int count)
{
    if (count < 1 || slot.state >= SLOT_ENDING) {
        say(TOLD_FAILED, 0, EINVAL, 0, 0);
        return;
    }
    long pid = sys5(__NR_clone, UNEXECUTED_SIGNAL, 0, 0, 0, 0);
    if (pid == 0)
        become(fds[0]);
    if (pid > 0 && order->core)
        put_on(order->core - 1, pid);
    if (pid > 0 && !place(pid, order->a & 8)) {
        sys2(__NR_kill, pid, SIGKILL_);
        pid = -ENOSPC;
    }
    take_outputs(order->a, fds + 1, count - 1);
    say(pid < 0 ? TOLD_FAILED : TOLD_STARTED, pid, -pid, 0, 0);
}

static void start_cell(const struct order *order, int *fds, int count)
{
    int recipe_fds = order->a & 4 ? 2 : 1;
    struct made made = { 0, 0, EINVAL };
    int talk = -1;
    if (count >= recipe_fds && slot.state == SLOT_ASSIGNED) {
        talk = make_own_cell(fds[0], recipe_fds > 1 ? fds[1] : -1, &made);
        cell_keeper = made.keeper;
        is_confined = 1;
    } else if (count >= recipe_fds && slot.state == SLOT_RUNNING && cell_keeper) {
        talk = join_own_cell(fds[0], cell_keeper, &made);
    }
    if (talk < 0 || made.err || !place(made.waiting, order->a & 8)) {
        say(TOLD_FAILED, 0, made.err ? made.err : ENOSPC, 0, 0);
        if (slot.state < SLOT_RUNNING)
            kill_all();
        else if (made.waiting)
            sys2(__NR_kill, made.waiting, SIGKILL_);
    } else {
        take_outputs(order->a, fds + recipe_fds, count - recipe_fds);
        say(TOLD_STARTED, made.waiting, 0, &talk, 1);
    }
    if (talk >= 0)
        sys1(__NR_close, talk);
}

static void start_command(const struct order *order, int *fds, int count)
{
    struct made made = { 0, 0, EINVAL };
    int talk = -1, has_room = has_room_for_command();
    int ready = count == 2 && has_room && slot.state == SLOT_RUNNING;
    long pid = has_room ? -EINVAL : -ENOSPC;
    if (ready && !order->a && is_confined) {
        pid = -EXDEV; /* a manager that does not know about the cell any more; never outside of it */
    } else if (ready && !order->a) {
        pid = sys5(__NR_clone, UNEXECUTED_SIGNAL, 0, 0, 0, 0);
        if (pid == 0)
            become(fds[1]);
    } else if (ready && cell_keeper) {
        talk = join_own_cell(fds[1], cell_keeper, &made);
        pid = made.err ? -made.err : made.waiting;
        if (made.err && made.waiting)
            sys2(__NR_kill, made.waiting, SIGKILL_);
    }
    if (pid > 0) {
        add_command(pid, fds[0]);
        fds[0] = -1;
    }
    say(pid < 0 ? TOLD_FAILED : TOLD_STARTED, pid, -pid, &talk, talk >= 0);
    if (talk >= 0)
        sys1(__NR_close, talk);
}

static void end(const struct order *order)
{
    if (slot.state == SLOT_FREE)
        leave(0); /* there is nothing to end, nor to tell */
    if (slot.state < SLOT_ENDING) { /* the first that ends it decides */
        slot.state = SLOT_ENDING;
        slot.cause = order->a;
        slot.status = order->b;
        slot.ended_ns = (int64_t)now_ns();
        write_slot();
    }
}

/* A manager that was killed may have sent it, and the next one sends it again, not much later. */
static int was_signalled(uint64_t key)
{
    static uint64_t done[SIGNALS_KNOWN];
    static unsigned next;
    for (unsigned i = 0; key && i < SIGNALS_KNOWN; i++)
        if (done[i] == key)
            return 1;
    if (key)
        done[next++ % SIGNALS_KNOWN] = key;
    return 0;
}

static void signal_dispatchers(const struct order *order)
{
    if (was_signalled(order->c))
        return;
    for (int i = 0; i < DISPATCHERS; i++)
        if (dispatchers[i].pid && !dispatchers[i].code && (order->b == 0 || order->b == dispatchers[i].pid))
            sys2(__NR_kill, dispatchers[i].pid, order->a);
}

/* Whether there may be more. */
static int take_order(void)
{
    _Alignas(struct cmsghdr) char ancillary[CMSG_SPACE(ORDER_FDS * sizeof(int))];
    struct order order = { 0 };
    struct iovec piece = { &order, sizeof order };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof ancillary };
    long size = sys3(__NR_recvmsg, control, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size == -EINTR)
        return 1;
    if (size == -EAGAIN)
        return 0;
    int fds[ORDER_FDS], count = 0;
    const struct cmsghdr *head = size < 0 ? 0 : CMSG_FIRSTHDR(&message);
    if (head && head->cmsg_type == SCM_RIGHTS)
        for (; (count + 1) * sizeof(int) <= head->cmsg_len - CMSG_LEN(0); count++)
            fds[count] = ((const int *)(const void *)CMSG_DATA(head))[count];
    if (size == sizeof order) {
        if ((order.kind == ORDER_LAUNCH || order.kind == ORDER_CELL) && slot.state == SLOT_FREE)
            assign(&order);
        if (order.kind == ORDER_LAUNCH)
            start_dispatcher(&order, fds, count);
        else if (order.kind == ORDER_CELL)
            start_cell(&order, fds, count);
        else if (order.kind == ORDER_COMMAND)
            start_command(&order, fds, count);
        else if (order.kind == ORDER_KEEP)
            keep(&order);
        else if (order.kind == ORDER_SIGNAL)
            signal_dispatchers(&order);
        else if (order.kind == ORDER_END)
            end(&order);
    } else { /* the manager has gone, or is none */
        sys1(__NR_close, control);
        control = -1;
    }
    for (int i = 0; i < count; i++)
        if (fds[i] >= 0)
            sys1(__NR_close, fds[i]);
    return control >= 0;
}

/* --- without a manager ------------------------------------------------------------------------------------------- */

static void own_path(struct sockaddr_un *address)
{
    address->sun_family = AF_UNIX;
    put_number(put_text(address->sun_path, "d"), number);
}

/* Bound under another name first: who finds it under its own can connect. */
static void listen_again(void)
{
    struct sockaddr_un own = { 0 }, first = { 0 };
    own_path(&own);
    own_path(&first);
    first.sun_path[0] = 'n';
    listener = (int)sys3(__NR_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    sys3(__NR_unlinkat, AT_FDCWD, first.sun_path, 0);
    long ret = sys3(__NR_bind, listener, &first, sizeof first);
    if (ret == 0)
        ret = sys2(__NR_listen, listener, 1);
    if (ret == 0)
        ret = sys5(__NR_renameat2, AT_FDCWD, first.sun_path, AT_FDCWD, own.sun_path, 0);
    if (ret < 0) {
        sys1(__NR_close, listener);
        listener = -1;
    }
}

static void unlink_own(void)
{
    struct sockaddr_un own = { 0 };
    own_path(&own);
    sys3(__NR_unlinkat, AT_FDCWD, own.sun_path, 0);
}

static void accept_manager(void)
{
    control = (int)sys4(__NR_accept4, listener, 0, 0, SOCK_CLOEXEC);
    if (control < 0)
        return;
    unlink_own();
    sys1(__NR_close, listener);
    listener = -1;
    write_slot(); /* the ledger may have been lost meanwhile */
    say(TOLD_HERE, slot.pid, 0, 0, 0);
}

/* --- life -------------------------------------------------------------------------------------------------------- */

static void watch_and_act(void)
{
    struct pollfd watch[2 + OUTPUTS_MOST + COMMANDS_MOST], *outputs = watch + 2;
    struct timespec retry = { 0, RETRY_NS };
    int from = control >= 0 ? control : listener;
    watch[0] = (struct pollfd){ .fd = signals, .events = POLLIN };
    watch[1] = (struct pollfd){ .fd = from, .events = POLLIN };
    int output_count = watch_outputs(outputs);
    struct pollfd *lines = outputs + output_count;
    int line_count = watch_lines(lines);
    if (sys5(__NR_ppoll, watch, 2 + output_count + line_count, from < 0 ? &retry : 0, 0, 8) < 0)
        return;
    if (watch[0].revents) {
        char info[128];
        while (sys3(__NR_read, signals, info, sizeof info) == sizeof info)
            ;
    }
    hear_outputs(outputs, output_count);
    hear_lines(lines, line_count);
    if (watch[1].revents && control >= 0)
        while (take_order())
            ;
    else if (watch[1].revents)
        accept_manager();
}

void keep_domain(void)
{
    uint64_t all = ~(uint64_t)0;
    struct sys_sigaction plain = { 0 };
    sys4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &all, 0, sizeof all);
    sys4(__NR_rt_sigaction, SIGCHLD_, &plain, 0, 8); /* ignored, it would leave nothing to be waited for */
    sys0(__NR_setsid);
    sys5(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    reserve_recipe();
    signals = (int)sys4(__NR_signalfd4, -1, &all, sizeof all, 02004000 /* SFD_CLOEXEC | SFD_NONBLOCK */);
    control = DOMAIN_CONTROL;
    listener = -1;
    init_start = process_field(sys0(__NR_getpid), START_TIME); /* now, since it takes a while */
    if (signals < 0 || sys1(__NR_fchdir, DOMAIN_RUN) < 0)
        return;
    for (;;) {
        reap(WNOHANG_);
        if (slot.state == SLOT_ENDING) {
            while (reap(WNOHANG_)) { /* whoever is our child by now, as what one that was killed has left behind, */
                kill_all();          /* is killed, too, before we wait for any */
                reap(0);
            }
            finish();
        }
        if (control < 0 && slot.state < SLOT_RUNNING)
            return; /* nothing has begun */
        if (control < 0 && listener < 0)
            listen_again();
        watch_and_act();
    }
}
