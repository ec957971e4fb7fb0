/* The output of a domain's dispatchers: what they write into pipes is kept in a file, and, once that is full, in another, in place of the
 * one before. What could not be kept is counted. */
#include "output.h"
#include "init.h"
#include "../domain.h"
#include "../sys.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <time.h>

#define FIONREAD 0x541b

static struct slot *kept; /* whose output it is, and how much of it there is */
static uint64_t log_most; /* bytes in one file, of which there are two at most */
static int log_fd = -1;
static struct output {
    int fd;
    uint32_t stream;
} outputs[OUTPUTS_MOST];
static int output_count;

void keep_output(struct slot *slot, uint64_t most)
{
    kept = slot;
    log_most = most;
}

uint64_t now_ns(void)
{
    struct timespec now = { 0, 0 };
    sys2(__NR_clock_gettime, 0 /* CLOCK_REALTIME */, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void log_name(char *name, const char *end) { put_text(put_number(name, kept->id), end); }

static int open_log(void)
{
    char name[40];
    log_name(name, ".log");
    return (int)sys4(__NR_openat, DOMAIN_LOGS, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
}

static void rotate(void)
{
    char from[40], to[40];
    log_name(from, ".log");
    log_name(to, ".log.1");
    sys1(__NR_close, log_fd);
    sys5(__NR_renameat2, DOMAIN_LOGS, from, DOMAIN_LOGS, to, 0);
    log_fd = open_log();
    kept->log_bytes = 0;
}

static void keep_log(uint32_t stream, char *data, uint32_t size)
{
    struct log_head head = { now_ns(), size, stream };
    struct iovec pieces[2] = { { &head, sizeof head }, { data, size } };
    if (log_fd < 0)
        log_fd = open_log();
    else if (kept->log_bytes + sizeof head + size > log_most)
        rotate();
    long wrote = log_fd < 0 ? -1 : sys3(__NR_writev, log_fd, pieces, 2);
    if (wrote > 0)
        kept->log_bytes += (uint64_t)wrote;
    if (wrote == (long)(sizeof head + size))
        return;
    if (wrote > 0) { /* a full disk: half an entry would take the sense from what follows */
        kept->log_bytes -= (uint64_t)wrote;
        sys2(__NR_ftruncate, log_fd, kept->log_bytes);
    }
    kept->log_lost += size;
}

/* Keeps what is there to be read, and returns how much. 0 when there will never be any more, or when there is none now. */
static long drain(struct output *output)
{
    static char data[16384];
    long size = sys3(__NR_read, output->fd, data, sizeof data);
    if (size == -EINTR)
        return 1;
    if (size > 0)
        keep_log(output->stream, data, (uint32_t)size);
    if (size == 0 || (size < 0 && size != -EAGAIN)) {
        sys1(__NR_close, output->fd);
        output->fd = -1;
    }
    return size > 0 ? size : 0;
}

/* What was written until now: somebody who is not of the domain may have the other end as well, and go on for ever. */
void drain_all(void)
{
    for (int i = 0; i < output_count; i++) {
        int left = 0;
        if (outputs[i].fd >= 0)
            sys3(__NR_ioctl, outputs[i].fd, FIONREAD, &left);
        for (long got; left > 0 && (got = drain(&outputs[i])) > 0;)
            left -= (int)got;
    }
}

void add_output(int fd, uint32_t stream)
{
    int at = 0;
    while (at < output_count && outputs[at].fd >= 0)
        at++;
    if (at == OUTPUTS_MOST) {
        sys1(__NR_close, fd);
        return;
    }
    outputs[at] = (struct output){ fd, stream };
    output_count += at == output_count;
    sys3(__NR_fcntl, fd, F_SETFL, O_NONBLOCK);
}

int watch_outputs(struct pollfd *watch)
{
    for (int i = 0; i < output_count; i++)
        watch[i] = (struct pollfd){ .fd = outputs[i].fd, .events = POLLIN };
    return output_count;
}

void hear_outputs(const struct pollfd *watch, int count)
{
    for (int i = 0; i < count; i++)
        if (watch[i].revents && outputs[i].fd >= 0)
            drain(&outputs[i]);
}
