/* A thread waits for a reader of a FIFO that it opens through a directory's descriptor, from before the session on:
 * nobody waits for that thread. */
#include "common.h"

static int directory;

static void *wait_for_reader(void *unused) {
    (void)unused;
    int fd = openat(directory, "fifo", O_WRONLY | O_CREAT, 0600);
    CHECK(fd >= 0 && close(fd) == 0);
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    pthread_t waiting;
    fill(in(argv[1], "file"), 10, 'x');
    CHECK(mkfifo(in(argv[1], "fifo"), 0600) == 0);
    directory = open(argv[1], O_RDONLY | O_DIRECTORY);
    CHECK(directory >= 0);
    CHECK(pthread_create(&waiting, NULL, wait_for_reader, NULL) == 0);
    nap_ms(100);
    backup_with(argv[1], argv[2], NULL);
    int reader = open(in(argv[1], "fifo"), O_RDONLY);
    CHECK(reader >= 0 && pthread_join(waiting, NULL) == 0);
    return 0;
}
