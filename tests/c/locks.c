/* The host's fcntl locks on source files survive a backup: closing any descriptor of a file anywhere in the process
 * would drop them. Asked from another process, which is the only one that can see them. */
#include "common.h"

int main(int argc, char **argv) {
    CHECK(argc == 3);
    const char *path = in(argv[1], "locked");
    fill(path, 1 << 20, 'x');
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 100};
    CHECK(fcntl(fd, F_SETLK, &lock) == 0);

    hotbackup_session *session = session_start(argv[1], argv[2]);
    CHECK(pwrite(fd, "y", 1, 5000) == 1);
    session_finish(session);

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        int other = open(path, O_RDWR);
        struct flock asked = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 100};
        CHECK(other >= 0 && fcntl(other, F_GETLK, &asked) == 0);
        CHECK(asked.l_type == F_WRLCK && asked.l_pid == getppid());
        asked.l_type = F_WRLCK;
        CHECK(fcntl(other, F_SETLK, &asked) == -1 && (errno == EAGAIN || errno == EACCES));
        exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    return 0;
}
