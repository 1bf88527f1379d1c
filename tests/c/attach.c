/* hotbackup_attach in a program that runs already, beside threads that write all the time.
 *
 *   attach LIBRARY SOURCE DESTINATION PLUGIN CYCLES
 *
 * With ATTACH_ONLY there are no sessions: where a machine is emulated they cannot be.
 *
 * Each writer writes a number to one file, then to another: a copy of one instant has the same in both, or the first one
 * more. No call of theirs may fail, whatever is attached or detached meanwhile. */
#include "common.h"

#include <poll.h>
#include <stdbool.h>

enum { WRITERS = 3 };

static atomic_bool stop;
static atomic_long calls;
static const char *source, *plugin_path;
static int shared_fd;

/* Addresses that a program may hold: in constants, in data, and one that dlsym gave. */
typedef ssize_t (*writes)(int, const void *, size_t);
/* Volatile, since a compiler knows that the address of a function does not change. */
static const volatile writes in_constants[] = {write};
static volatile writes in_data[] = {write};
static writes from_dlsym;

static void *write_numbers(void *number) {
    char name[32];
    int fds[2];
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%ld.%d", (long)(intptr_t)number, i);
        CHECK((fds[i] = open(in(source, name), O_CREAT | O_RDWR, 0644)) >= 0);
    }
    for (long count = 1; !stop; count++, calls += 3) {
        CHECK(pwrite(fds[0], &count, sizeof count, 0) == sizeof count);
        CHECK(lseek(fds[1], 0, SEEK_SET) == 0);
        writes call = count % 2 ? in_constants[0] : from_dlsym;
        CHECK(call(fds[1], &count, sizeof count) == sizeof count);
    }
    return NULL;
}

static void *compute(void *unused) {
    volatile long sum = 0;
    while (!stop) sum++;
    return unused;
}

static void *wait_for_nothing(void *end) {
    struct pollfd input = {*(int *)end, POLLIN, 0};
    while (!stop) poll(&input, 1, 300);
    return NULL;
}

static long number_in(const char *directory, int writer, int file) {
    char name[32];
    long value = -1;
    snprintf(name, sizeof name, "%d.%d", writer, file);
    int fd = open(in(directory, name), O_RDONLY);
    CHECK(fd >= 0 && read(fd, &value, sizeof value) == sizeof value && close(fd) == 0);
    return value;
}

/* How the memory of loaded files is protected, as text. */
static char *protections(void) {
    static char text[2][1 << 20];
    static int turn;
    char line[PATH_MAX + 100], *to = text[turn ^= 1];
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    *to = 0;
    while (fgets(line, sizeof line, maps))
        if (strchr(line, '/') && strlen(to) + strlen(line) < sizeof text[0]) strcat(to, line);
    fclose(maps);
    return text[turn];
}

static hotbackup_status begin(const char *destination) {
    hotbackup_pair pair = {source, destination};
    hotbackup_options options;
    hotbackup_session *session = NULL;
    CHECK_OK(API(hotbackup_options_init)(&options, sizeof options));
    options.pairs = &pair;
    options.pair_count = 1;
    options.keep_free = 0;
    hotbackup_status status = API(hotbackup_start)(&options, &session);
    if (status == HOTBACKUP_STATUS_OK) API(hotbackup_free)(session);
    return status;
}

/* A library that comes in the middle of a session writes before anybody can have seen it; a captured call to another part of the
 * same file then hides it from the file's times. */
static void load_plugin(void *unused) {
    (void)unused;
    void *plugin = dlopen(plugin_path, RTLD_NOW | RTLD_LOCAL);
    CHECK(plugin);
    int (*call)(int) = (int (*)(int))(intptr_t)dlsym(plugin, "plugin");
    CHECK(call && lseek(shared_fd, 0, SEEK_SET) == 0 && call(shared_fd) == 0);
    CHECK(pwrite(shared_fd, "y", 1, 1 << 20) == 1);
}

static bool can_back_up;

static void back_up(const char *destination, void (*before_cut)(void *)) {
    if (!can_back_up) {
        if (before_cut) before_cut(NULL);
        return;
    }
    backup_with(source, destination, before_cut);
    for (int writer = 0; writer < WRITERS; writer++) {
        long first = number_in(destination, writer, 0), second = number_in(destination, writer, 1);
        if (first != second && first != second + 1) {
            fprintf(stderr, "writer %d: %ld in the first file, %ld in the second\n", writer, first, second);
            exit(1);
        }
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    source = argv[2], plugin_path = argv[4];
    can_back_up = !getenv("ATTACH_ONLY");
    char first[PATH_MAX], second[PATH_MAX], third[PATH_MAX];
    snprintf(first, PATH_MAX, "%s/1", argv[3]), snprintf(second, PATH_MAX, "%s/2", argv[3]);
    snprintf(third, PATH_MAX, "%s/3", argv[3]);
    CHECK(mkdir(first, 0755) == 0 && mkdir(second, 0755) == 0 && mkdir(third, 0755) == 0);
    from_dlsym = (writes)(intptr_t)dlsym(RTLD_NEXT, "write");
    writes of_libc = from_dlsym;
    fill(in(source, "shared"), 2 << 20, 'a');
    CHECK((shared_fd = open(in(source, "shared"), O_RDWR)) >= 0);
    int ends[2];
    CHECK(pipe(ends) == 0);
    pthread_t threads[WRITERS + 2];
    for (long i = 0; i < WRITERS; i++) pthread_create(&threads[i], NULL, write_numbers, (void *)(intptr_t)i);
    pthread_create(&threads[WRITERS], NULL, compute, NULL);
    pthread_create(&threads[WRITERS + 1], NULL, wait_for_nothing, &ends[0]);
    nap_ms(50);

    /* Loaded, and no more: sessions are refused. */
    CHECK(api_library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL));
    writes ours = (writes)(intptr_t)dlsym(api_library, "write");
    CHECK(ours && ours != of_libc && begin(first) == HOTBACKUP_STATUS_HOOK_NOT_LIVE);
    CHECK(strstr(API(hotbackup_last_error)(), "hotbackup_attach"));

    /* Attached. */
    char *before = strdup(protections());
    hotbackup_attachment attachment = {.size = sizeof attachment}, again = attachment;
    CHECK_OK(API(hotbackup_attach)(&attachment));
    CHECK_OK(API(hotbackup_attach)(&again));
    CHECK(attachment.way == HOTBACKUP_WAY_ATTACHED && again.way == attachment.way);
    CHECK(attachment.slots >= 5 && attachment.pointers == 1 && again.slots == attachment.slots);
    CHECK(strcmp(before, protections()) == 0);
    CHECK(from_dlsym == ours);
    if (in_data[0] == of_libc || in_constants[0] == of_libc) return fprintf(stderr, "a pointer was not found\n"), 1;
    back_up(first, NULL);
    fprintf(stdout, "  attached in %.3f ms: %u objects, %lu slots, %lu pointers\n", (double)attachment.took_ns / 1e6,
            attachment.objects, (unsigned long)attachment.slots, (unsigned long)attachment.pointers);

    /* A library that comes later. */
    back_up(second, load_plugin);
    if (can_back_up) {
        char copied = 0;
        int fd = open(in(second, "shared"), O_RDONLY);
        CHECK(fd >= 0 && pread(fd, &copied, 1, 0) == 1 && copied == 'x');
        CHECK(pread(fd, &copied, 1, 1 << 20) == 1 && copied == 'y' && close(fd) == 0);
    }
    CHECK(dlclose(api_library) == 0 && from_dlsym == ours);

    /* Detached, and attached again, many times; then it is still good for a backup. */
    long cycles = atol(argv[5]), done = calls;
    for (long cycle = 0; cycle < cycles; cycle++) {
        CHECK_OK(API(hotbackup_detach)());
        CHECK(from_dlsym == of_libc && in_data[0] != ours);
        CHECK_OK(API(hotbackup_attach)(NULL));
        CHECK(from_dlsym == ours);
    }
    CHECK(calls > done);
    back_up(third, NULL);
    CHECK_OK(API(hotbackup_detach)());
    CHECK(begin(third) == HOTBACKUP_STATUS_HOOK_NOT_LIVE);

    stop = 1;
    for (int i = 0; i < WRITERS + 2; i++) pthread_join(threads[i], NULL);
    return 0;
}
