/* A wall clock that a test can set: LD_PRELOAD this, then write nanoseconds to the file that $CLOCK_SHIM names
   (or /opt/clock/offset), as 8 bytes in the machine's order. CLOCK_REALTIME is off by so much from then on, at once and
   in every process that has the library; the monotonic clocks and what the kernel itself stamps (files) stay true.
   Absolute waits on CLOCK_REALTIME are translated back: they last as long as they would on a machine with this clock. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static volatile int64_t *shared;

__attribute__((constructor)) static void open_offset(void)
{
    const char *path = getenv("CLOCK_SHIM");
    int fd = open(path ? path : "/opt/clock/offset", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    void *map = mmap(NULL, sizeof *shared, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED)
        shared = map;
}

static int64_t offset(void) { return shared ? *shared : 0; }

static void add(struct timespec *ts, int64_t ns)
{
    int64_t all = (int64_t)ts->tv_sec * SECOND + ts->tv_nsec + ns;
    ts->tv_sec = all / SECOND;
    ts->tv_nsec = all % SECOND;
    if (ts->tv_nsec < 0) {
        ts->tv_nsec += SECOND;
        ts->tv_sec -= 1;
    }
}

int clock_gettime(clockid_t clock, struct timespec *ts)
{
    int rc = (int)syscall(SYS_clock_gettime, clock, ts);
    if (rc == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        add(ts, offset());
    return rc;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone)
{
    struct timespec ts;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &ts);
    tv->tv_sec = ts.tv_sec;
    tv->tv_usec = ts.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    if (out)
        *out = ts.tv_sec;
    return ts.tv_sec;
}

int sem_timedwait(sem_t *restrict sem, const struct timespec *restrict until)
{
    static int (*real)(sem_t *, const struct timespec *);
    struct timespec true_time = *until;
    if (!real)
        real = (int (*)(sem_t *, const struct timespec *))dlsym(RTLD_NEXT, "sem_timedwait");
    add(&true_time, -offset());
    return real(sem, &true_time);
}
