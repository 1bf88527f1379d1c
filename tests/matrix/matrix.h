/* One row for each way to change a file: what the rows share.
 *
 * A row is a function that changes the source in one way; some need another one that gets things ready before the session
 * begins. The rows are collected by the linker, in the order of their files. Each run of the program is one row at one moment
 * of one session, in a process and a source of its own (main.c). */
#ifndef MATRIX_H
#define MATRIX_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../c/system_call.h"

enum {
    PIECE = 4096,
    SIZE = 512 << 10, /* of the target */
    EARLY = 4096,     /* what the copier has read when a row is run while it copies */
    LATE = 448 << 10, /* and what it has not */
    MIDDLE = 256 << 10,
    UNAVAILABLE = 77, /* the exit status of a row that this kernel or filesystem does not have */
};

/* What a row works on. */
struct ground {
    const char *source;  /* the directory that is backed up: */
    const char *target;  /* a file of SIZE bytes in it, */
    int fd;              /* open for reading and writing since before the session; */
    int directory;       /* the source, open */
    const char *outside; /* a directory of the same filesystem that is not backed up, with a file "donor" of SIZE bytes */
    int donor;           /* which is open */
    unsigned char *piece; /* PIECE bytes that are nowhere in the source, aligned */
};
extern struct ground ground;

enum {
    INVISIBLE = 1, /* nothing that a backup keeps is changed */
    XFS = 2,       /* the row is about what XFS can do, not ext4 */
    CALM = 4,      /* it cannot be run in the freeze */
};

struct row {
    const char *name;
    const char *group;
    const char *call; /* as it stands in the table */
    unsigned flags;
    void (*prepare)(void);
    void (*change)(void);
    size_t padding[2]; /* the linker lays rows out one behind the other */
};

#define ROW_IN(section_, id, group_, call_, flags_, prepare_)                                              \
    static void change_##id(void);                                                                         \
    static const struct row row_##id                                                                       \
        __attribute__((used, section(section_), aligned(sizeof(struct row)))) = {                          \
            .name = #id, .group = group_, .call = call_, .flags = flags_, .prepare = prepare_,             \
            .change = change_##id};                                                                        \
    static void change_##id(void)

/* A row; a row that prepare_ gets ready before the session. The group is that of the file. */
#define ROW(id, call, flags) ROW_IN("rows", id, GROUP, call, flags, NULL)
#define PREPARED(id, call, flags, prepare_) ROW_IN("rows", id, GROUP, call, flags, prepare_)

#define CHECK(condition)                                                                                   \
    do {                                                                                                   \
        if (!(condition)) {                                                                                \
            int errno_ = errno;                                                                            \
            if (errno_ == ENOSYS || errno_ == EOPNOTSUPP || errno_ == ENOTTY) exit(UNAVAILABLE);           \
            fprintf(stderr, "%s:%d: %s (errno %d, %s)\n", __FILE__, __LINE__, #condition, errno_,          \
                    strerror(errno_));                                                                     \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

/* Does what follows at both places. */
#define AT_BOTH(at)                                                                                        \
    for (off_t at = EARLY, last_##at = 0; !last_##at; last_##at = at == LATE, at = LATE)

/* A path below the source or outside of it; good until it is asked for the fourth one after. */
const char *in(const char *directory, const char *name);
static inline const char *inside(const char *name) { return in(ground.source, name); }
static inline const char *outside(const char *name) { return in(ground.outside, name); }

/* A check of a raw call's result. */
#define CHECK_RAW(call)                                                                                    \
    ({                                                                                                     \
        long result_ = (call);                                                                             \
        if (result_ < 0) errno = (int)-result_;                                                            \
        CHECK(result_ >= 0);                                                                               \
        result_;                                                                                           \
    })

/* Waits for a child that must succeed. */
void reap(pid_t child);

/* Begins a write of two pages on a thread of its own; when this returns it has begun and stands still (slow_write.c). */
void slow_write_begin(ssize_t (*pwrite_like)(int, const void *, size_t, off_t), int fd, off_t at);
void slow_write_go_on(void);
void slow_write_end(void);

/* Everything in a directory that a backup keeps, as text: a line for each entry. Names that `main.c` uses itself are left out. */
char *fingerprint(const char *directory);
#endif
