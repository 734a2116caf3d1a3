/* LD_PRELOAD: fsync and fdatasync fail with EIO while the file that FSYNC_SHIM names exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int refused(void) {
    const char *flag = getenv("FSYNC_SHIM");
    if (flag != NULL && access(flag, F_OK) == 0) {
        errno = EIO;
        return 1;
    }
    return 0;
}

static int real(const char *name, int fd) {
    int (*call)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return call(fd);
}

int fsync(int fd) { return refused() ? -1 : real("fsync", fd); }
int fdatasync(int fd) { return refused() ? -1 : real("fdatasync", fd); }
