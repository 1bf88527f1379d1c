/* What cannot be attached is refused by name, and everything stays as it was.
 *
 *   attach_refused LIBRARY TEXT OBJECT MODE    loads OBJECT with dlopen ("now", "deep") or dlmopen ("apart"), if it is not "-"
 *
 * TEXT is what the error has to say; "-" is that there is none. With -DOWN_WRITE the program has a write of its own that calls
 * the C library's, with -DRAW_WRITE one that makes the system call. */
#include "common.h"

#include <sys/syscall.h>

static int (*pointer)(const char *);

#if defined(OWN_WRITE) || defined(RAW_WRITE)
static atomic_long own_calls;
#ifdef OWN_WRITE
static ssize_t (*next)(int, const void *, size_t);
#endif

ssize_t write(int fd, const void *bytes, size_t len) {
    own_calls++;
#ifdef OWN_WRITE
    if (!next) next = (ssize_t(*)(int, const void *, size_t))(intptr_t)dlsym(RTLD_NEXT, "write");
    return next(fd, bytes, len);
#else
    return syscall(SYS_write, fd, bytes, len);
#endif
}
#endif

int main(int argc, char **argv) {
    CHECK(argc == 5);
    pointer = (int (*)(const char *))(intptr_t)dlsym(RTLD_NEXT, "unlink");
    CHECK(pointer);
    void *before = *(void **)&pointer;
    CHECK(api_library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL));
    int flags = strcmp(argv[4], "deep") == 0 ? RTLD_LAZY | RTLD_DEEPBIND : RTLD_NOW;
    void *object = NULL;
    if (strcmp(argv[3], "-") != 0) {
        object = strcmp(argv[4], "apart") == 0 ? dlmopen(LM_ID_NEWLM, argv[3], flags) : dlopen(argv[3], flags);
        if (!object) return fprintf(stderr, "%s\n", dlerror()), 1;
    }
#if defined(OWN_WRITE) || defined(RAW_WRITE)
    int fd = open("/dev/null", O_WRONLY);
    CHECK(write(fd, "x", 1) == 1 && own_calls == 1);
#endif
    hotbackup_status status = API(hotbackup_attach)(NULL);
    const char *text = status == HOTBACKUP_STATUS_OK ? "-" : API(hotbackup_last_error)();
    if (!strstr(text, argv[2])) return fprintf(stderr, "expected %s, found %s\n", argv[2], text), 1;
    CHECK((status == HOTBACKUP_STATUS_OK) == (*(void **)&pointer != before));
    void **table = object ? dlsym(object, "table") : NULL;
    if (table) {
        int (*plugin)(int) = (int (*)(int))(intptr_t)dlsym(object, "plugin");
        CHECK(table[0] == dlsym(api_library, "write") && table[1] == table[0]);
        CHECK(plugin && plugin(open("/dev/null", O_WRONLY)) == 1);
    }
#if defined(OWN_WRITE) || defined(RAW_WRITE)
    CHECK(write(fd, "x", 1) == 1 && own_calls == 2);
#endif
    return 0;
}
