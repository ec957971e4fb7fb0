#ifndef SHOAL_INIT_COMMAND_H
#define SHOAL_INIT_COMMAND_H

#include <poll.h>

#define COMMANDS_MOST 64 /* at the same time */

int has_room_for_command(void);
void add_command(long pid, int line); /* there is room; the line is ours from then on */
void note_command(const int *info, int executed, int with_domain); /* a child has ended, of which waitid(2) says `info`; perhaps none */
void kill_commands(void);
int watch_lines(struct pollfd *watch); /* fills at most COMMANDS_MOST; how many */
void hear_lines(const struct pollfd *watch, int count);

#endif
