/* fork while threads write and a backup runs: the child is idle by itself, its hooks work and wait for nobody, its
 * own threads too. It writes outside the source, because what another process writes into a source is detected. */
#include "common.h"

static const char *source;
static atomic_bool stop;

static void *work(void *number) {
    char name[32];
    snprintf(name, sizeof name, "work-%zu", (size_t)number);
    int fd = open(in(source, name), O_CREAT | O_RDWR, 0644);
    CHECK(fd >= 0);
    for (unsigned n = 0; !stop; n++) CHECK(pwrite(fd, &n, sizeof n, n % (1 << 20)) == sizeof n);
    close(fd);
    return NULL;
}

static void *child_thread(void *directory) {
    fill(in(directory, "of-child-thread"), 1000, 'c');
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    source = argv[1];
    char elsewhere[PATH_MAX];
    snprintf(elsewhere, sizeof elsewhere, "%s.elsewhere", argv[2]);
    CHECK(mkdir(elsewhere, 0755) == 0);
    pthread_t threads[3];
    for (size_t i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    BACKUP_THREAD(backup, argv[1], argv[2]);
    for (int i = 0; i < 40; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            pthread_t thread;
            alarm(20);
            fill(in(elsewhere, "of-child"), 1000, 'c');
            rename(in(elsewhere, "of-child"), in(elsewhere, "moved"));
            unlink(in(elsewhere, "moved"));
            if (pthread_create(&thread, NULL, child_thread, elsewhere) == 0) pthread_join(thread, NULL);
            _exit(0);
        }
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        pid_t quick = vfork();
        if (quick == 0) {
            /* A vfork child shares our memory; whatever its hooks did there would stay. */
            close(999);
            _exit(0);
        }
        CHECK(quick > 0 && waitpid(quick, &status, 0) == quick && status == 0);
    }
    CHECK(pthread_join(backup, NULL) == 0);
    stop = 1;
    for (size_t i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    return 0;
}
