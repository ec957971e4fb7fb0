/* User namespaces in which nothing runs, made by a child that lives in one for a moment: user_namespaces(7).
 *
 *   for an id map: what the caller's own user and group appear as, in one mount: mount_setattr(2)
 *   for a caller that can make none: who has changed its user since it was executed is not dumpable, so that its children's maps are
 *   not its to write (prctl(2), proc(5)). It may enter one, though, and we, who have just been executed, can make it. */
#include "init.h"
#include "../op.h"
#include "../sys.h"

#include <fcntl.h>
#include <linux/prctl.h>
#include <linux/sched.h>

#define P_PID 1
#define WEXITED_ 4
#define SIGKILL_ 9
#define SIGCHLD_ 17

static long write_file(long pid, const char *name, const char *text, const char *end)
{
    long fd = of_process(pid, name, O_WRONLY);
    if (fd < 0)
        return fd;
    long ret = sys3(__NR_write, fd, text, end - text);
    sys1(__NR_close, fd);
    return ret < 0 ? ret : 0;
}

static long write_map(long pid, const char *name, uint32_t inside, uint32_t outside)
{
    char text[64];
    return write_file(pid, name, text, put_text(put_number(put_text(put_number(text, inside), " "), outside), " 1\n"));
}

long make_user_namespace(struct ids inside, struct ids outside, int by_anybody)
{
    static const char deny[] = "deny"; /* setgroups(2): what an ordinary user has to give up for it */
    int pidfd = NO_FD;
    long pid = duplicate(CLONE_NEWUSER | SIGCHLD_, &pidfd);
    if (pid < 0)
        return pid;
    if (pid == 0) {
        sys5(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL_, 0, 0, 0);
        sys5(__NR_ppoll, 0, 0, 0, 0, 8);
        leave(0);
    }
    long ret = by_anybody ? write_file(pid, "/setgroups", deny, deny + sizeof deny - 1) : 0;
    if (ret == 0)
        ret = write_map(pid, "/uid_map", inside.uid, outside.uid);
    if (ret == 0)
        ret = write_map(pid, "/gid_map", inside.gid, outside.gid);
    if (ret == 0)
        ret = of_process(pid, "/ns/user", O_RDONLY);
    sys4(__NR_pidfd_send_signal, pidfd, SIGKILL_, 0, 0);
    sys5(__NR_waitid, P_PID, pid, 0, WEXITED_, 0);
    sys1(__NR_close, pidfd);
    return ret;
}

void give_user_namespace(void)
{
    sys5(__NR_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0); /* exec leaves that away where the effective user is not the real one */
    const struct ids own = { (uint32_t)sys0(__NR_geteuid), (uint32_t)sys0(__NR_getegid) };
    long made = make_user_namespace(own, own, 1);
    int err = made < 0 ? (int)-made : 0, fd = (int)made;
    tell(CONTROL, &err, sizeof err, &fd, made >= 0);
}
