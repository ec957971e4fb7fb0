#include "init.h"
#include "../sys.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

long tell(int sock, const void *data, size_t size, const int *fds, unsigned count)
{
    _Alignas(struct cmsghdr) char ancillary[CMSG_SPACE(TELL_FDS * sizeof(int))];
    struct iovec piece = { (void *)(uintptr_t)data, size };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1 };
    if (count) {
        message.msg_control = ancillary;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        *head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
        for (unsigned i = 0; i < count; i++)
            ((int *)(void *)CMSG_DATA(head))[i] = fds[i];
    }
    long ret;
    do
        ret = sys3(__NR_sendmsg, sock, &message, MSG_NOSIGNAL);
    while (ret == -EINTR);
    return ret;
}
