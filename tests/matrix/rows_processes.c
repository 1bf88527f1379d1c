/* Changes by other processes: children of the program, and others. */
#include "matrix.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/xattr.h>

static void write_target(int fd) { AT_BOTH(at) CHECK(pwrite(fd, ground.piece, PIECE, at) == PIECE); }

/* A child that was forked before the session and does something when told. */
static int orders[2], answers[2];

static void fork_servant(void (*duty)(void), bool strange) {
    CHECK(pipe(orders) == 0 && pipe(answers) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child > 0) return;
    close(orders[1]);
    close(answers[0]);
    if (strange) close(ground.fd);
    char byte;
    while (read(orders[0], &byte, 1) == 1) {
        duty();
        CHECK(write(answers[1], &byte, 1) == 1);
    }
    _exit(0);
}

static void order(void) {
    char byte = 1;
    CHECK(write(orders[1], &byte, 1) == 1);
    CHECK(read(answers[0], &byte, 1) == 1);
}

static void duty_write(void) { write_target(ground.fd); }
static void serve_write(void) { fork_servant(duty_write, false); }

static void duty_open_write(void) {
    int fd = open(ground.target, O_WRONLY);
    CHECK(fd >= 0);
    write_target(fd);
    close(fd);
}
static void serve_open_write(void) { fork_servant(duty_open_write, true); }

static void duty_keep_open(void) {
    int fd = open(ground.target, O_WRONLY);
    CHECK(fd >= 0);
    write_target(fd);
}
static void serve_keep_open(void) { fork_servant(duty_keep_open, true); }

static void duty_mmap(void) {
    unsigned char *mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ground.fd, 0);
    CHECK(mapped != MAP_FAILED);
    AT_BOTH(at) memset(mapped + at, 0xa5, PIECE);
}
static void serve_mmap(void) { fork_servant(duty_mmap, false); }

static unsigned char *inherited;
static void duty_store(void) { AT_BOTH(at) memset(inherited + at, 0xa5, PIECE); }
static void serve_store(void) {
    inherited = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ground.fd, 0);
    CHECK(inherited != MAP_FAILED);
    fork_servant(duty_store, true);
    CHECK(munmap(inherited, SIZE) == 0);
}
static void serve_store_dirty(void) {
    inherited = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ground.fd, 0);
    CHECK(inherited != MAP_FAILED);
    AT_BOTH(at) inherited[at] ^= 1;
    fork_servant(duty_store, true);
}

static void duty_rename(void) { CHECK(rename(inside("victim"), inside("new")) == 0); }
static void serve_rename(void) { fork_servant(duty_rename, true); }
static void duty_unlink(void) { CHECK(unlink(ground.target) == 0); }
static void serve_unlink(void) { fork_servant(duty_unlink, true); }
static void duty_mkdir(void) { CHECK(mkdir(inside("directory/new"), 0755) == 0); }
static void serve_mkdir(void) { fork_servant(duty_mkdir, true); }
static void duty_chmod(void) { CHECK(chmod(ground.target, 0711) == 0); }
static void serve_chmod(void) { fork_servant(duty_chmod, true); }
static void duty_setxattr(void) { CHECK(setxattr(ground.target, "user.new", "value", 5, 0) == 0); }
static void serve_setxattr(void) { fork_servant(duty_setxattr, true); }
static void duty_replace(void) {
    int fd = open(inside("new"), O_CREAT | O_EXCL | O_WRONLY, 0600);
    CHECK(fd >= 0);
    CHECK(write(fd, ground.piece, PIECE) == PIECE);
    CHECK(fsync(fd) == 0 && close(fd) == 0);
    CHECK(rename(inside("new"), ground.target) == 0);
}
static void serve_replace(void) { fork_servant(duty_replace, true); }

static int channel[2];
static void duty_given(void) {
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    CHECK(recvmsg(channel[1], &message, 0) == 1);
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    write_target(fd);
    close(fd);
}
static void serve_given(void) {
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, channel) == 0);
    fork_servant(duty_given, true);
}

#define GROUP "Other processes"
ROW(p_fork, "child forked in the session: `pwrite` to a descriptor it inherits", 0) {
    pid_t child = fork();
    if (child == 0) {
        write_target(ground.fd);
        _exit(0);
    }
    reap(child);
}
ROW(p_fork_open, "child forked in the session: `open`, `pwrite`", 0) {
    pid_t child = fork();
    if (child == 0) {
        duty_open_write();
        _exit(0);
    }
    reap(child);
}
ROW(p_fork_stdio, "child forked in the session: a new file by stdio, renamed over (Redis)", 0) {
    pid_t child = fork();
    if (child == 0) {
        FILE *stream = fopen(inside("temporary"), "w");
        CHECK(stream && fwrite(ground.piece, PIECE, 1, stream) == 1 && fclose(stream) == 0);
        CHECK(rename(inside("temporary"), ground.target) == 0);
        _exit(0);
    }
    reap(child);
}
ROW(p_vfork, "`vfork`, `exec` of a program that writes", 0) {
    char of[PATH_MAX + 8];
    snprintf(of, sizeof of, "of=%s", ground.target);
    pid_t child = vfork();
    if (child == 0) {
        execlp("dd", "dd", "if=/dev/zero", of, "bs=4096", "count=1", "seek=1", "conv=notrunc", "status=none", NULL);
        _exit(1);
    }
    reap(child);
}
ROW(p_vfork_write, "`vfork` child, which has its parent's memory: `pwrite`", 0) {
    pid_t child = vfork();
    if (child == 0) {
        write_target(ground.fd);
        _exit(0);
    }
    reap(child);
}
PREPARED(p_write, "process from before, descriptor open all the time: `pwrite`", 0, serve_write) { order(); }
PREPARED(p_open, "process from before: `open`, `pwrite`, `close`", 0, serve_open_write) { order(); }
PREPARED(p_keep_open, "process from before: `open`, `pwrite`, and stays open", 0, serve_keep_open) { order(); }
PREPARED(p_given, "process from before: `pwrite` to a descriptor that it is sent", 0, serve_given) {
    char byte = 0, control[CMSG_SPACE(sizeof(int))];
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    memcpy(CMSG_DATA(header), &ground.fd, sizeof(int));
    CHECK(sendmsg(channel[0], &message, 0) == 1);
    order();
}
PREPARED(p_mmap, "process from before: `mmap`, store", 0, serve_mmap) { order(); }
PREPARED(p_store, "process from before: store to a mapping without a descriptor", 0, serve_store) { order(); }
PREPARED(p_store_dirty, "the same, to pages that were dirty already", 0, serve_store_dirty) { order(); }
PREPARED(p_rename, "process from before: `rename`", 0, serve_rename) { order(); }
PREPARED(p_replace, "process from before: a new file, renamed over", 0, serve_replace) { order(); }
PREPARED(p_unlink, "process from before: `unlink`", 0, serve_unlink) { order(); }
PREPARED(p_mkdir, "process from before: `mkdir`", 0, serve_mkdir) { order(); }
PREPARED(p_chmod, "process from before: `chmod`", 0, serve_chmod) { order(); }
PREPARED(p_setxattr, "process from before: `setxattr`", 0, serve_setxattr) { order(); }
