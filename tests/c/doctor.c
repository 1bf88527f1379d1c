/* What hotbackup_doctor says of this process, which has what it asks about and then has it no longer.
 *
 *   doctor WAY SOURCE LIBRARY PLUGIN RAW      WAY: "preloaded", "loaded" (by dlopen, not attached) or "attached"
 *
 * The plugin is loaded with RTLD_DEEPBIND; the other object makes a system call of its own. */
#include "common.h"

#include <liburing.h>
#include <linux/aio_abi.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "hotbackup.h"

typedef struct {
    hotbackup_kind kind;
    hotbackup_verdict verdict;
    char subject[PATH_MAX], text[1024];
} finding;

static finding findings[256];
static int count;
static const char *source;

static void on_finding(const hotbackup_finding *found, void *data) {
    CHECK(data == &count && found->size == sizeof *found && count < 256);
    findings[count].kind = found->kind;
    findings[count].verdict = found->verdict;
    snprintf(findings[count].subject, sizeof findings[count].subject, "%s", found->subject);
    snprintf(findings[count].text, sizeof findings[count].text, "%s", found->text);
    count++;
}

static void ask(void) {
    count = 0;
    CHECK_OK(API(hotbackup_doctor)(&source, 1, on_finding, &count));
}

/* The finding of this kind whose subject and text hold these, if there is one. */
static const finding *find(hotbackup_kind kind, const char *subject, const char *text) {
    for (int i = 0; i < count; i++)
        if (findings[i].kind == kind && strstr(findings[i].subject, subject) && strstr(findings[i].text, text)) return findings + i;
    return NULL;
}

static void expect(int line, hotbackup_kind kind, hotbackup_verdict verdict, const char *subject, const char *text) {
    const finding *found = find(kind, subject, text);
    if (found && found->verdict == verdict) return;
    fprintf(stderr, "line %d: expected a finding (%d, %d) of %s: %s; there are\n", line, kind, verdict, subject, text);
    for (int i = 0; i < count; i++)
        fprintf(stderr, "  (%d, %d) %s: %s\n", findings[i].kind, findings[i].verdict, findings[i].subject, findings[i].text);
    exit(1);
}
#define EXPECT(...) expect(__LINE__, __VA_ARGS__)

/* Has a file open for writing, and another one mapped. */
static void hold_files(const void *unused, int begun) {
    (void)unused;
    int fd = open(in(source, "mapped elsewhere"), O_RDWR);
    void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED || open(in(source, "opened elsewhere"), O_WRONLY) < 0 || write(begun, "", 1) != 1) return;
    for (;;) pause();
}

static const char *const files[] = {"mapped", "stream", "opened elsewhere", "mapped elsewhere", "deep/er/linked", "quiet"};

/* What is on files of the sources is named as long as it is there. `captured` is whether the hooks are live. */
static void check_files(bool captured) {
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) CHECK(!find(HOTBACKUP_KIND_MAPPING, in(source, files[i]), ""));
    int fd = open(in(source, "mapped"), O_RDWR);
    void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED && close(fd) == 0);
    FILE *stream = fopen(in(source, "stream"), "a");
    /* The name that it was opened by is outside of the sources. */
    FILE *linked = fopen(in(source, "../doctor.linked"), "a");
    CHECK(stream && linked);
    pid_t child = start_child(hold_files, NULL);
    aio_context_t aio = 0;
    struct io_uring ring, polled, single;
    CHECK(syscall(SYS_io_setup, 8, &aio) == 0);
    CHECK(io_uring_queue_init(4, &ring, 0) == 0 && io_uring_queue_init(4, &single, IORING_SETUP_SINGLE_ISSUER) == 0);
    CHECK(io_uring_queue_init(4, &polled, IORING_SETUP_SQPOLL) == 0);
    char name[64], pid[64], of_polled[64];
    snprintf(name, sizeof name, "io_uring, descriptor %d", ring.ring_fd);
    snprintf(of_polled, sizeof of_polled, "io_uring, descriptor %d", polled.ring_fd);
    snprintf(pid, sizeof pid, "process %d (doctor)", child);

    ask();
    bool watched = find(HOTBACKUP_KIND_SYSTEM, "userfaultfd(2)", "can watch");
    EXPECT(HOTBACKUP_KIND_MAPPING, watched ? HOTBACKUP_VERDICT_CAPTURED : HOTBACKUP_VERDICT_COPIED_AGAIN, in(source, "mapped"), "is mapped");
    EXPECT(HOTBACKUP_KIND_STREAM, HOTBACKUP_VERDICT_COPIED_AGAIN, in(source, "stream"), "is written through a stream");
    EXPECT(HOTBACKUP_KIND_STREAM, HOTBACKUP_VERDICT_COPIED_AGAIN, in(source, "deep/er/linked"), "is written through a stream");
    EXPECT(HOTBACKUP_KIND_PROCESS, HOTBACKUP_VERDICT_COPIED_AGAIN, in(source, "opened elsewhere"), pid);
    EXPECT(HOTBACKUP_KIND_PROCESS, HOTBACKUP_VERDICT_COPIED_AGAIN, in(source, "mapped elsewhere"), pid);
    hotbackup_verdict of_ring = captured ? HOTBACKUP_VERDICT_CAPTURED : HOTBACKUP_VERDICT_REFUSES;
    EXPECT(HOTBACKUP_KIND_RING, of_ring, "native AIO", "followed");
    EXPECT(HOTBACKUP_KIND_RING, of_ring, name, "followed");
    EXPECT(HOTBACKUP_KIND_RING, of_ring, of_polled, captured ? "IORING_SETUP_SQPOLL" : "followed");
    for (int i = 0; i < count; i++) CHECK(!strstr(findings[i].subject, "quiet"));

    end_child(child);
    CHECK(munmap(map, 4096) == 0 && fclose(stream) == 0 && fclose(linked) == 0);
    CHECK(syscall(SYS_io_destroy, aio) == 0);
    io_uring_queue_exit(&ring);
    io_uring_queue_exit(&polled);
    io_uring_queue_exit(&single);
    ask();
    for (int i = 0; i < count; i++) {
        bool is_left = findings[i].kind >= HOTBACKUP_KIND_RING && findings[i].kind <= HOTBACKUP_KIND_PROCESS;
        if (is_left) EXPECT(HOTBACKUP_KIND_HOOKS, HOTBACKUP_VERDICT_NOTE, "nothing is left", "but there is");
    }
}

/* Objects are named while they are loaded. */
static void check_objects(const char *plugin, const char *raw) {
    ask();
    CHECK(!find(HOTBACKUP_KIND_OBJECT, "", "") && !find(HOTBACKUP_KIND_RAW_CALLS, raw, ""));
    void *makes_calls = dlopen(raw, RTLD_NOW), *deep = dlopen(plugin, RTLD_LAZY | RTLD_DEEPBIND);
    void *apart = dlmopen(LM_ID_NEWLM, plugin, RTLD_NOW);
    CHECK(makes_calls && deep && apart);
    ask();
    EXPECT(HOTBACKUP_KIND_HOOKS, HOTBACKUP_VERDICT_REFUSES, "the program", "2 objects bypass its hooks");
    EXPECT(HOTBACKUP_KIND_OBJECT, HOTBACKUP_VERDICT_REFUSES, plugin, "RTLD_DEEPBIND");
    EXPECT(HOTBACKUP_KIND_OBJECT, HOTBACKUP_VERDICT_REFUSES, plugin, "dlmopen");
    EXPECT(HOTBACKUP_KIND_RAW_CALLS, HOTBACKUP_VERDICT_UNTOLD, raw, "may change files (1, the first at");
    CHECK(dlclose(makes_calls) == 0 && dlclose(deep) == 0 && dlclose(apart) == 0);
    ask();
    CHECK(!find(HOTBACKUP_KIND_OBJECT, "", "") && !find(HOTBACKUP_KIND_RAW_CALLS, raw, ""));
}

static void check_refused(void) {
    const char *sources[] = {source, in(source, "nothing"), in(source, "quiet")};
    count = 0;
    CHECK(API(hotbackup_doctor)(sources, 2, on_finding, &count) == HOTBACKUP_STATUS_IO && count == 0);
    CHECK(strstr(API(hotbackup_last_error)(), "/nothing: No such file"));
    CHECK(API(hotbackup_doctor)(sources + 2, 1, on_finding, &count) == HOTBACKUP_STATUS_NOT_A_DIRECTORY && count == 0);
    CHECK(API(hotbackup_doctor)(NULL, 1, on_finding, &count) == HOTBACKUP_STATUS_INVALID_ARGUMENT && count == 0);
    CHECK_OK(API(hotbackup_doctor)(NULL, 0, on_finding, &count));
    CHECK(count > 0 && !find(HOTBACKUP_KIND_SYSTEM, "fanotify", ""));
}

static atomic_bool is_over;

/* Files come and go, and are written and locked, while the doctor looks. */
static void *works(void *unused) {
    (void)unused;
    while (!is_over) {
        FILE *stream = fopen(in(source, "coming"), "w");
        CHECK(stream && fputs("x", stream) >= 0 && fclose(stream) == 0);
        void *library = dlopen("libm.so.6", RTLD_NOW);
        CHECK(library && dlclose(library) == 0);
    }
    return NULL;
}

/* Descriptors, locks and times are what they were; in a session and beside threads that work the answers come too. */
static void check_nothing_changes(const char *destination) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int fd = open(in(source, "mapped"), O_RDWR), next = open("/dev/null", O_RDONLY);
    CHECK(fd >= 0 && close(next) == 0 && fcntl(fd, F_SETLK, &lock) == 0);
    struct stat before, after;
    CHECK(stat(source, &before) == 0);
    ask();
    CHECK(open("/dev/null", O_RDONLY) == next && close(next) == 0 && stat(source, &after) == 0);
    CHECK(memcmp(&before.st_atim, &after.st_atim, sizeof before.st_atim) == 0);
    pid_t child = fork();
    if (child == 0) _exit(fcntl(fd, F_GETLK, &lock) != 0 || lock.l_type != F_WRLCK);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(close(fd) == 0);

    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, works, NULL) == 0);
    if (destination) {
        hotbackup_session *session = session_start(source, destination);
        for (int i = 0; i < 5; i++) ask();
        is_over = true;
        CHECK(pthread_join(thread, NULL) == 0);
        session_finish(session);
    } else {
        for (int i = 0; i < 5; i++) ask();
        is_over = true;
        CHECK(pthread_join(thread, NULL) == 0);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    const char *way = argv[1];
    source = argv[2];
    bool is_preloaded = strcmp(way, "preloaded") == 0;
    if (!is_preloaded) CHECK(api_library = dlopen(argv[3], RTLD_NOW | RTLD_LOCAL));
    CHECK(mkdir(in(source, "deep"), 0755) == 0 && mkdir(in(source, "deep/er"), 0755) == 0);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) fill(in(source, files[i]), 4096, 'x');
    unlink(in(source, "../doctor.linked"));
    CHECK(link(in(source, "deep/er/linked"), in(source, "../doctor.linked")) == 0);
    ask();
    if (is_preloaded) {
        EXPECT(HOTBACKUP_KIND_HOOKS, HOTBACKUP_VERDICT_CAPTURED, "the program", "hooks are live: the library is preloaded");
    } else {
        EXPECT(HOTBACKUP_KIND_HOOKS, HOTBACKUP_VERDICT_REFUSES, "the program", "0 of ");
        EXPECT(HOTBACKUP_KIND_HOOKS, HOTBACKUP_VERDICT_REFUSES, "the program", "call hotbackup_attach");
    }
    if (strcmp(way, "attached") == 0) {
        CHECK_OK(API(hotbackup_attach)(NULL));
        ask();
        EXPECT(HOTBACKUP_KIND_HOOKS, HOTBACKUP_VERDICT_CAPTURED, "the program", "hooks are live: attached, ");
        CHECK(!find(HOTBACKUP_KIND_HOOKS, "", "loaded since"));
        void *late = dlopen(argv[4], RTLD_NOW);
        CHECK(late);
        ask();
        EXPECT(HOTBACKUP_KIND_HOOKS, HOTBACKUP_VERDICT_CAPTURED, "the program", "what has been loaded since");
        CHECK(dlclose(late) == 0);
        /* One whose functions have hooks. */
        CHECK((late = dlopen("libaio.so.1", RTLD_NOW | RTLD_GLOBAL)));
        ask();
        EXPECT(HOTBACKUP_KIND_HOOKS, HOTBACKUP_VERDICT_CAPTURED, "the program", "what has been loaded since");
        CHECK(dlclose(late) == 0);
    }
    check_files(strcmp(way, "loaded") != 0);
    if (is_preloaded) check_objects(argv[4], argv[5]);
    check_refused();
    check_nothing_changes(is_preloaded ? in(source, "../doctor.destination") : NULL);
    return 0;
}
