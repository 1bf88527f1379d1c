/* What doctor.c loads: a library that makes a system call by itself. */
#include <unistd.h>

#ifdef __x86_64__
long raw_write(int fd, const void *bytes, unsigned long len);
long raw_write(int fd, const void *bytes, unsigned long len) {
    long result;
    __asm__ volatile("mov $1, %%eax\n\tsyscall" : "=a"(result) : "D"((long)fd), "S"(bytes), "d"(len) : "rcx", "r11", "memory");
    return result;
}
#else
long raw_write(long fd, const void *bytes, unsigned long len);
long raw_write(long fd, const void *bytes, unsigned long len) {
    register long x0 __asm__("x0") = fd;
    register const void *x1 __asm__("x1") = bytes;
    register unsigned long x2 __asm__("x2") = len;
    __asm__ volatile("mov x8, #64\n\tsvc #0" : "+r"(x0) : "r"(x1), "r"(x2) : "x8", "memory");
    return x0;
}
#endif
