#ifndef SHOAL_INIT_H
#define SHOAL_INIT_H

#include <stddef.h>
#include <stdint.h>

#define CONTROL 3 /* of pid 1: a socket to the caller */

/* What a child of ours that has not executed anything yet ends with: execve(2) makes it SIGCHLD, and waitid(2) tells the two apart. */
#define UNEXECUTED_SIGNAL 10

enum { SI_CODE = 2, SI_PID = 4, SI_STATUS = 6 }; /* where waitid(2) puts them, in ints */

/* keep.c. `err`: an errno to tell instead of doing the tasks: what was to be done before has failed. */
_Noreturn void keep_cell(const char *tasks, int err);

/* wait.c */
void wait_for_plan(void); /* returns when there is nothing left to wait for */

/* make.c */
struct made;
void make_cells(char **argv); /* returns when nobody asks for any more */
void find_words(char **argv); /* where our arguments are, for what we fork */
char *put_text(char *to, const char *text); /* these two end it with a zero byte, and return where that is */
char *put_number(char *to, unsigned long number);
long duplicate(uint64_t flags, int *pidfd); /* a fork, as clone(2) with these flags; 0: in the child */
long of_process(long pid, const char *name, int flags); /* opens a file of its folder in /proc */
void reserve_recipe(void);    /* keeps the places of a recipe's descriptors free of others */
/* One cell whose processes are our children. Returns the socket of its waiting process, or -1 and made->err. */
int make_own_cell(int file, int empty, struct made *made);
/* Another process in it, by a recipe of which the first plan is not looked at, and the second finds what the program is executed from in
 * the place of PREPARE_CONTROL. Returns the same. */
int join_own_cell(int file, long keeper_pid, struct made *made);

/* userns.c */
struct ids {
    uint32_t uid, gid;
};
/* A user namespace with one user and one group, as they are called inside and outside. `by_anybody`: also without privileges, for the
 * maker's own. Returns a descriptor. */
long make_user_namespace(struct ids inside, struct ids outside, int by_anybody);
void give_user_namespace(void);

/* domain.c */
void keep_domain(void); /* returns when there is no domain to keep */
uint64_t process_field(long pid, int field); /* of proc_pid_stat(5), where it is a number; 0: there is no such process */

/* nursery.c */
void raise_inits(char **argv); /* returns when nobody asks for any more */

/* tell.c. Sends the caller something, with descriptors, at most TELL_FDS. Negative: nobody is there, or it cannot be sent. */
#define TELL_FDS 4
long tell(int sock, const void *data, size_t size, const int *fds, unsigned count);

#endif
