/* A library to preload that has as little to do as one can that has to know which calls are under way: it notes that the thread is
 * inside, looks at a flag, makes the call, and notes that the thread is outside again. */
#include <stdarg.h>
#include <sys/types.h>

int __close(int);
int __open64(const char *, int, ...);
ssize_t pwrite64(int, const void *, size_t, off_t);
ssize_t __write(int, const void *, size_t);

static _Thread_local volatile unsigned inside;
volatile int is_armed;

#define AROUND(real)                                                                                                                  \
    inside++;                                                                                                                         \
    if (__builtin_expect(is_armed, 0)) return -1;                                                                                     \
    __auto_type done = real;                                                                                                          \
    inside--;                                                                                                                         \
    return done

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) { AROUND(pwrite64(fd, bytes, len, at)); }

ssize_t write(int fd, const void *bytes, size_t len) { AROUND(__write(fd, bytes, len)); }

int close(int fd) { AROUND(__close(fd)); }

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    unsigned mode = va_arg(rest, unsigned);
    va_end(rest);
    AROUND(__open64(path, flags, mode));
}
