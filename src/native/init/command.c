/* Commands: processes of a domain that run beside its dispatchers, each with a line (domain.h) to who wants it. Their end is not the
 * domain's. Nobody but us reaps them, so that a number we signal is theirs, as that of a process and as that of a group. */
#include "command.h"
#include "init.h"
#include "../domain.h"
#include "../sys.h"

#include <errno.h>
#include <sys/socket.h>

#define SIGKILL_ 9

static struct command {
    int pid;  /* 0: the place is free */
    int line; /* to who wants it; -1: they have gone */
} commands[COMMANDS_MOST];
static int command_count; /* one more than the highest place that was ever taken */

static struct command *find_command(int pid)
{
    for (int i = 0; i < COMMANDS_MOST; i++)
        if (commands[i].pid == pid)
            return &commands[i];
    return 0;
}

/* Whoever does not listen misses it, and keeps nobody waiting. */
static void tell_line(const struct command *command, struct line_told told)
{
    told.pid = command->pid;
    if (command->line >= 0)
        sys6(__NR_sendto, command->line, (long)&told, sizeof told, MSG_NOSIGNAL | MSG_DONTWAIT, 0, 0);
}

int has_room_for_command(void) { return find_command(0) != 0; }

void add_command(long pid, int line)
{
    struct command *free = find_command(0);
    *free = (struct command){ (int)pid, line };
    command_count = free - commands < command_count ? command_count : (int)(free - commands) + 1;
    tell_line(free, (struct line_told){ .kind = LINE_BEGUN });
}

void note_command(const int *info, int executed, int with_domain)
{
    struct command *found = find_command(info[SI_PID]);
    if (!found)
        return;
    tell_line(found, (struct line_told){
                         .kind = executed ? LINE_ENDED : LINE_UNBEGUN,
                         .code = info[SI_CODE],
                         .status = info[SI_STATUS],
                         .with_domain = with_domain != 0,
                     });
    if (found->line >= 0)
        sys1(__NR_close, found->line);
    *found = (struct command){ 0 };
}

void kill_commands(void)
{
    for (int i = 0; i < command_count; i++)
        if (commands[i].pid)
            sys2(__NR_kill, commands[i].pid, SIGKILL_);
}

static void signal_command(const struct command *command, int number, int to_group)
{
    if (!to_group || sys2(__NR_kill, -(long)command->pid, number) < 0)
        sys2(__NR_kill, command->pid, number);
}

static void hear_line(struct command *command)
{
    struct line_ask ask;
    long size = sys6(__NR_recvfrom, command->line, (long)&ask, sizeof ask, MSG_DONTWAIT, 0, 0);
    if (size == -EAGAIN || size == -EINTR)
        return;
    if (size == sizeof ask) {
        signal_command(command, ask.number, ask.to_group != 0);
        return;
    }
    signal_command(command, SIGKILL_, 1); /* who wanted it has gone */
    sys2(__NR_kill, command->pid, SIGKILL_);
    sys1(__NR_close, command->line);
    command->line = -1;
}

int watch_lines(struct pollfd *watch)
{
    for (int i = 0; i < command_count; i++)
        watch[i] = (struct pollfd){ .fd = commands[i].pid ? commands[i].line : -1, .events = POLLIN };
    return command_count;
}

void hear_lines(const struct pollfd *watch, int count)
{
    for (int i = 0; i < count; i++)
        if (watch[i].revents)
            hear_line(&commands[i]);
}
