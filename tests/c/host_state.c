/* A host that changes what is the whole process's while it is backed up: group, working directory, umask, few
 * descriptors. Nothing of the library's shows in its descriptors, working directory or umask. */
#include "common.h"
#include <dirent.h>
#include <sys/resource.h>

static int count_descriptors(void) {
    int count = 0;
    for (int fd = 0; fd < 256; fd++) count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* One descriptor is left, and it is ours alone. */
static void write_mine(const char *directory, int last) {
    int fd = open(in(directory, "mine"), O_CREAT | O_WRONLY, 0666);
    CHECK(fd == last);
    CHECK(write(fd, "x", 1) == 1 && close(fd) == 0);
}

static void is_mine(const char *directory) {
    struct stat mine;
    CHECK(stat(in(directory, "mine"), &mine) == 0);
    CHECK((mine.st_mode & 0777) == 0640 && mine.st_size == 1 && mine.st_uid == getuid() && mine.st_gid == getgid());
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    char cwd[PATH_MAX], now[PATH_MAX];
    fill(in(argv[1], "file"), 4 << 20, 'x');
    umask(027);
    /* The limit is low, and the host has used it up but for one. */
    struct rlimit few = {64, 64};
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    int last = 0;
    for (int fd = 0; (fd = dup(0)) >= 0;) last = fd;
    CHECK(close(last) == 0);
    int descriptors = count_descriptors();
    write_mine(argv[1], last);

    BACKUP_THREAD(backup, argv[1], argv[2]);
    for (int i = 0; i < 200; i++) {
        const char *to = i % 2 ? "/" : "/tmp";
        CHECK(chdir(to) == 0);
        CHECK(setgid(getgid()) == 0 && setegid(getegid()) == 0);
        CHECK(getcwd(now, sizeof now) && realpath(to, cwd) && strcmp(now, cwd) == 0);
        write_mine(argv[1], last);
        nap_ms(1);
    }
    CHECK(pthread_join(backup, NULL) == 0);
    CHECK(count_descriptors() == descriptors);
    CHECK(umask(022) == 027);
    /* It is written past the cut as well, so its times are others than the copy's. */
    is_mine(argv[1]);
    is_mine(argv[2]);
    return 0;
}
