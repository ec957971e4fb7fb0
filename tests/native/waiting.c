/* See waiting.h. */
#include "waiting.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

struct outcome start_waiting(struct pack *pack, int image, int base, int far)
{
    pack_fd_map(pack, (const int32_t[][2]){ { far, REQUEST_SOCKET }, { base, REQUEST_BASE } }, 2, 0);
    op_add(pack, OP_SIGNALS);
    pack->head.exec_fd = image;
    struct result result = run_pack(pack, (const char *const[]){ "waiting", "w", NULL }, NULL);
    pack_free(pack);
    return result.out;
}

void send_message(int sock, const void *message, size_t size, const int *fds, unsigned count)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(REQUEST_FDS * sizeof(int))];
    struct iovec piece = { (void *)(uintptr_t)message, size };
    struct msghdr parts = { .msg_iov = &piece, .msg_iovlen = 1 };
    if (count) {
        parts.msg_control = control;
        parts.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&parts);
        *head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
        memcpy(CMSG_DATA(head), fds, count * sizeof(int));
    }
    ssize_t sent = sendmsg(sock, &parts, MSG_NOSIGNAL);
    CHECK(sent == (ssize_t)size, "%zu bytes with %u descriptors: errno %d", size, count, errno);
}

struct report last_answer(struct waiting waiting)
{
    struct report report = { .stage = STAGE_NONE, .index = -1 }, next;
    struct pollfd watch[2] = { { .fd = waiting.sock, .events = POLLRDHUP }, { .fd = waiting.out.pidfd, .events = POLLIN } };
    while (poll(watch, 2, -1) < 0)
        CHECK(errno == EINTR, "errno %d", errno);
    while (recv(waiting.sock, &next, sizeof next, MSG_DONTWAIT) == sizeof next)
        report = next;
    return report;
}

int hand_over_message(struct waiting waiting, const void *message, const int *fds, struct report *report)
{
    const struct request *request = message;
    const char *plan = (const char *)(request + 1), *argv = plan + request->plan_size;
    struct parts parts = { plan, argv, argv + request->argv_size, fds };
    return hand_over(waiting.sock, waiting.out.pidfd, request, &parts, report);
}
