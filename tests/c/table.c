/* A library with addresses of hooked functions in tables, and a function of its own that a resolver picks (IFUNC). */
#include <string.h>
#include <unistd.h>

typedef ssize_t (*writes)(int, const void *, size_t);

extern const volatile writes table[];
const volatile writes table[] = {write, write};

static void *copy_bytes(void *to, const void *from, size_t len) {
    for (size_t i = 0; i < len; i++) ((char *)to)[i] = ((const char *)from)[i];
    return to;
}

static void *(*pick(void))(void *, const void *, size_t) { return copy_bytes; }

void *copy(void *to, const void *from, size_t len) __attribute__((ifunc("pick")));

int plugin(int fd);
int plugin(int fd) {
    char text[2];
    copy(text, "x", 2);
    return (int)table[1](fd, text, strlen(text));
}
