/* Starts sessions from a thread of its own in a program that knows nothing of us: a second, test-only preload library.
 *
 *   HOTBACKUP_DRIVER_SOURCE=... HOTBACKUP_DRIVER_DESTINATIONS=... LD_PRELOAD="libHotBackup.so driver.so" program
 *   HOTBACKUP_DRIVER_ATTACH=libHotBackup.so LD_PRELOAD=driver.so ... program    loads it in the midst of the program's work, and attaches
 *
 * It makes backups into DESTINATIONS/0, DESTINATIONS/1 ... while the program runs, and a last one when it has returned
 * from main. Those while it runs have their cut when HOTBACKUP_DRIVER_BEGUN exists, if the program gets so far. With
 * HOTBACKUP_DRIVER_BACKUPS=COUNT it makes so many and no last one, each HOTBACKUP_DRIVER_PAUSE milliseconds (1) behind the one
 * before; so the program can end when it likes. Each that succeeded leaves a file DESTINATIONS/N.ok, each that failed its error in
 * DESTINATIONS/N.error. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hotbackup.h"

static pthread_t thread;
static atomic_bool stop;
static pid_t owner;
static char *source, *destinations, *begun, *attached;
/* What the interface is found in. */
static void *library = RTLD_DEFAULT;
static int count, pause_ms;

static void note(int number, const char *suffix, const char *text) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%d.%s", destinations, number, suffix);
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    if (fd >= 0 && write(fd, text, strlen(text)) >= 0) close(fd);
}

/* A backup of nothing would show nothing. */
static void wait_until_begun(void *unused) {
    (void)unused;
    while (begun && !stop && access(begun, F_OK) != 0) usleep(100);
}

static void make_backup(int number) {
    __typeof__(&hotbackup_options_init) options_init = dlsym(library, "hotbackup_options_init");
    __typeof__(&hotbackup_backup) backup = dlsym(library, "hotbackup_backup");
    __typeof__(&hotbackup_last_error) last_error = dlsym(library, "hotbackup_last_error");
    if (!options_init || !backup || !last_error) return note(number, "error", "libHotBackup.so is not loaded");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%d", destinations, number);
    mkdir(path, 0755);
    hotbackup_pair pair = {source, path};
    hotbackup_options options;
    options_init(&options, sizeof options);
    options.pairs = &pair;
    options.pair_count = 1;
    options.keep_free = 0;
    options.before_cut = wait_until_begun;
    options.max_stall_ms = 20000;
    hotbackup_status status = backup(&options, NULL);
    note(number, status == HOTBACKUP_STATUS_OK ? "ok" : "error", status == HOTBACKUP_STATUS_OK ? "" : last_error());
}

static int number_in(const char *variable, int otherwise) {
    const char *text = getenv(variable);
    return text ? atoi(text) : otherwise;
}

static void attach(void) {
    wait_until_begun(NULL);
    library = dlopen(attached, RTLD_NOW | RTLD_LOCAL);
    if (!library) return note(0, "error", dlerror());
    __typeof__(&hotbackup_attach) attach = dlsym(library, "hotbackup_attach");
    __typeof__(&hotbackup_last_error) last_error = dlsym(library, "hotbackup_last_error");
    hotbackup_attachment attachment = {.size = sizeof attachment};
    if (attach(&attachment) != HOTBACKUP_STATUS_OK) return note(0, "error", last_error());
    if (attachment.way != HOTBACKUP_WAY_ATTACHED) note(0, "error", "it was there already");
}

static void *make_backups(void *unused) {
    (void)unused;
    if (attached) attach();
    for (int number = 0; !stop && number < count; number++) {
        usleep((useconds_t)pause_ms * 1000);
        make_backup(number);
    }
    return NULL;
}

/* What the environment says of a variable, to keep: programs write their titles over it. */
static char *text_in(const char *variable) {
    const char *text = getenv(variable);
    return text ? strdup(text) : NULL;
}

__attribute__((constructor)) static void begin(void) {
    source = text_in("HOTBACKUP_DRIVER_SOURCE");
    destinations = text_in("HOTBACKUP_DRIVER_DESTINATIONS");
    begun = text_in("HOTBACKUP_DRIVER_BEGUN");
    attached = text_in("HOTBACKUP_DRIVER_ATTACH");
    count = number_in("HOTBACKUP_DRIVER_BACKUPS", INT_MAX);
    pause_ms = number_in("HOTBACKUP_DRIVER_PAUSE", 1);
    /* The programs that the program starts are not ours. */
    unsetenv("LD_PRELOAD");
    owner = getpid();
    if (source && destinations) pthread_create(&thread, NULL, make_backups, NULL);
}

__attribute__((destructor)) static void end(void) {
    if (!source || !destinations || getpid() != owner || count != INT_MAX) return;
    stop = 1;
    pthread_join(thread, NULL);
    make_backup(999999);
}
