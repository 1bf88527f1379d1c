/* A program that knows hotbackup only if it has been preloaded: the README's example.
 *
 *   cc -o preload preload.c
 *   LD_PRELOAD=libHotBackup.so ./preload SOURCE DESTINATION
 *
 * It writes into SOURCE all the time, also while it is backed up. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "hotbackup.h"

static atomic_bool stop;

static void *write_all_the_time(void *directory) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/counter", (const char *)directory);
    int fd = open(path, O_CREAT | O_RDWR, 0644);
    for (long count = 0; fd >= 0 && !stop; count++) {
        if (pwrite(fd, &count, sizeof count, count % 1000 * (long)sizeof count) < 0) break;
        if (count % 100 == 0) usleep(1000);
    }
    close(fd);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: %s SOURCE DESTINATION\n", argv[0]), 2;

    /* The program runs without the library too; it just cannot back itself up then. */
    __typeof__(&hotbackup_options_init) options_init = dlsym(RTLD_DEFAULT, "hotbackup_options_init");
    __typeof__(&hotbackup_backup) backup = dlsym(RTLD_DEFAULT, "hotbackup_backup");
    __typeof__(&hotbackup_last_error) last_error = dlsym(RTLD_DEFAULT, "hotbackup_last_error");
    if (!options_init || !backup || !last_error) return fprintf(stderr, "libHotBackup.so is not preloaded\n"), 3;

    pthread_t writer;
    pthread_create(&writer, NULL, write_all_the_time, argv[1]);

    hotbackup_pair pair = {argv[1], argv[2]};
    hotbackup_options options;
    options_init(&options, sizeof options);
    options.pairs = &pair;
    options.pair_count = 1;
    hotbackup_report report = {.size = sizeof report};
    hotbackup_status status = backup(&options, &report);

    stop = 1;
    pthread_join(writer, NULL);
    if (status != HOTBACKUP_STATUS_OK) return fprintf(stderr, "no backup: %s\n", last_error()), 1;
    printf("%lu files, frozen for %.3f ms\n", (unsigned long)report.files, (double)report.freeze_ns / 1e6);
    return 0;
}
