/* The parent's half of a launch into a process that waits already (init/wait.c): no clone, only a message and an answer. */
#include "request.h"
#include "sys.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

int hand_over(int sock, int pidfd, const struct request *request, const struct parts *parts, struct report *report)
{
    *report = (struct report){ .stage = STAGE_NONE, .index = -1 };
    if (request->fds > REQUEST_FDS || (uint64_t)request->argc + request->envc > REQUEST_STRINGS ||
        sizeof *request + (size_t)request->plan_size + request->argv_size + request->envp_size > REQUEST_BYTES)
        return E2BIG;
    struct iovec pieces[] = {
        { (void *)(uintptr_t)request, sizeof *request },
        { (void *)(uintptr_t)parts->plan, request->plan_size },
        { (void *)(uintptr_t)parts->argv, request->argv_size },
        { (void *)(uintptr_t)parts->envp, request->envp_size },
    };
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(REQUEST_FDS * sizeof(int))];
    struct msghdr message = { .msg_iov = pieces, .msg_iovlen = sizeof pieces / sizeof *pieces };
    if (request->fds) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(request->fds * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        *head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(request->fds * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
        memcpy(CMSG_DATA(head), parts->fds, request->fds * sizeof(int));
    }
    long ret;
    do
        ret = sys3(__NR_sendmsg, sock, &message, MSG_NOSIGNAL);
    while (ret == -EINTR);
    if (ret < 0)
        return (int)-ret;
    /* Nothing is asked of the socket but its end: exec closes the other side. An answer alone wakes nobody. */
    struct pollfd watch[2] = { { .fd = sock, .events = POLLRDHUP }, { .fd = pidfd, .events = POLLIN } };
    do
        ret = sys5(__NR_ppoll, watch, 2, 0, 0, 8);
    while (ret == -EINTR);
    struct report found;
    while (sys6(__NR_recvfrom, sock, (long)&found, sizeof found, MSG_DONTWAIT, 0, 0) == sizeof found)
        *report = found;
    return 0;
}
