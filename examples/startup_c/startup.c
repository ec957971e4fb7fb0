/* Reads SHOAL_STARTUP without any library, and uses what it finds: writes one line to the handle USER0.
 *
 * The format is docs/startup-format.md. Build: cc -static -o startup startup.c (launch.py does, and starts it). */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct handle {
    unsigned id, rights;
    int fd;
    char kind[32];
};

#define PA_USER0 0xf0u

/* One "ID:FD:KIND:RIGHTS:DEV:INO". 0 when it is malformed, or when the descriptor is no longer the one it speaks of. */
static int read_handle(const char *value, struct handle *handle)
{
    uint64_t dev, ino;
    struct stat st;
    int used = 0;

    if (sscanf(value, "0x%x:%d:%31[a-z0-9_-]:0x%x:%" SCNu64 ":%" SCNu64 "%n", &handle->id, &handle->fd, handle->kind,
               &handle->rights, &dev, &ino, &used) != 6 || value[used] != '\0')
        return 0;
    if (fstat(handle->fd, &st) < 0 || st.st_dev != dev || st.st_ino != ino)
        return 0;
    return fcntl(handle->fd, F_SETFD, FD_CLOEXEC) == 0;   /* it was made to survive one exec: ours */
}

int main(void)
{
    const char *given = getenv("SHOAL_STARTUP");
    char *line = given ? strdup(given) : NULL, *rest = NULL;
    struct handle handle;
    int found = -1;

    unsetenv("SHOAL_STARTUP");                            /* what we start is not to take the table for its own */
    char *word = line ? strtok_r(line, " ", &rest) : NULL;
    if (!word || strcmp(word, "1") != 0) {
        fputs("nothing was handed over\n", stderr);
        return 1;
    }
    while ((word = strtok_r(NULL, " ", &rest))) {
        if (strncmp(word, "handle=", 7) == 0 && read_handle(word + 7, &handle)) {
            printf("handle %#x: a %s at descriptor %d, rights %#x\n", handle.id, handle.kind, handle.fd, handle.rights);
            if (found < 0 && handle.id == PA_USER0)       /* the first of equal ids */
                found = handle.fd;
        } else if (strncmp(word, "name=", 5) == 0 || strncmp(word, "ns=", 3) == 0) {
            printf("%s\n", word);                         /* the value is percent-encoded; a key we do not know is skipped */
        }
    }
    free(line);
    fflush(stdout);
    return found >= 0 && dprintf(found, "hello from process %d\n", (int)getpid()) > 0 ? 0 : 1;
}
