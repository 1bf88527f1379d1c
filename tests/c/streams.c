/* What streams of the C library write, at three moments: before the copier reaches the file, while it copies, and when all
 * was copied. Each time a captured write to another place of the same file comes afterwards, so that the file's times tell
 * nothing of the stream's bytes. The copies must be equal, or the bytes were lost.
 *
 *   streams SOURCE DESTINATION     with stdout open for appending on SOURCE/stdout */
#include "common.h"
#include <err.h>
#include <error.h>
#include <spawn.h>
#include <stdio_ext.h>
#include <wchar.h>

enum { BYTES = 1 << 18 };
static const char *source;
static int moment;
static const char *moments[] = {"before", "while", "after"};
static char long_text[70000];

static const char *file_of(const char *way) {
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s %s", source, moments[moment], way);
    return path;
}

/* A captured write behind the stream's, far from it. */
static void hide(const char *path) {
    nap_ms(5);
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && pwrite(fd, "captured", 8, BYTES / 2) == 8 && close(fd) == 0);
}

/* Streams that were opened long before, one for each way and moment. */
enum { FWRITE, PUTC, FPRINTF, LINES, UNBUFFERED, ALL, FDOPEN, WIDE, PUTS, ERROR, WAYS };
static const char *ways[] = {"fwrite", "putc", "fprintf", "lines", "unbuffered", "all", "fdopen", "wide", "puts", "error"};
static FILE *open_since_long[3][WAYS];

static void open_streams(void) {
    for (moment = 0; moment < 3; moment++) {
        for (int way = 0; way < WAYS; way++) {
            const char *path = file_of(ways[way]);
            fill(path, BYTES, 'o');
            FILE *stream = way == FDOPEN ? fdopen(open(path, O_RDWR), "r+") : fopen(path, "r+");
            CHECK(stream);
            open_since_long[moment][way] = stream;
        }
        setvbuf(open_since_long[moment][LINES], NULL, _IOLBF, 4096);
        setvbuf(open_since_long[moment][UNBUFFERED], NULL, _IONBF, 0);
        const char *later[] = {"fopen w", "fopen a", "fopen r+", "freopen", "fclose", "two", "dprintf", "vdprintf"};
        for (size_t i = 0; i < sizeof later / sizeof *later; i++) fill(file_of(later[i]), BYTES, 'o');
    }
}

static void use_open_streams(void) {
    FILE **streams = open_since_long[moment];
    CHECK(fwrite(long_text, 1, 5000, streams[FWRITE]) == 5000 && fflush(streams[FWRITE]) == 0);
    /* Nothing is flushed by name: the buffer runs over. */
    for (int i = 0; i < 70000; i++) CHECK(putc_unlocked('p', streams[PUTC]) == 'p');
    CHECK(fprintf(streams[FPRINTF], "%s %d", long_text, 1) > 0);
    CHECK(fputs("a line\n", streams[LINES]) >= 0);
    CHECK(fputc('u', streams[UNBUFFERED]) == 'u');
    CHECK(fputs("all", streams[ALL]) >= 0 && fflush(NULL) == 0);
    CHECK(fputs("fdopen", streams[FDOPEN]) >= 0 && fflush(streams[FDOPEN]) == 0);
    CHECK(fputws(L"wide", streams[WIDE]) >= 0 && fflush(streams[WIDE]) == 0);
    CHECK(fputs(long_text, streams[PUTS]) >= 0 && fseek(streams[PUTS], 0, SEEK_SET) == 0);
    FILE *stderr_was = stderr;
    stderr = streams[ERROR];
    warnx("to standard error, %s", long_text);
    error(0, ENOENT, "so too");
    CHECK(fflush(stderr) == 0);
    stderr = stderr_was;
    for (int way = 0; way < WAYS; way++) hide(file_of(ways[way]));
}

static void use_new_streams(void) {
    FILE *stream;
    CHECK((stream = fopen(file_of("fopen w"), "w")) && fputs("w", stream) >= 0 && fflush(stream) == 0);
    hide(file_of("fopen w"));
    CHECK(fclose(stream) == 0);
    CHECK((stream = fopen(file_of("fopen a"), "a")) && fputs("a", stream) >= 0 && fclose(stream) == 0);
    hide(file_of("fopen a"));
    CHECK((stream = fopen(file_of("fopen r+"), "r+")) && fputs("r+", stream) >= 0 && fclose(stream) == 0);
    hide(file_of("fopen r+"));
    CHECK((stream = fopen(file_of("fclose"), "r+")) && fputs("held back", stream) >= 0);
    hide(file_of("fclose"));
    CHECK(fclose(stream) == 0);
    hide(file_of("fclose"));
    CHECK((stream = fopen(file_of("new"), "w")) && fwrite(long_text, 1, 60000, stream) == 60000 && fclose(stream) == 0);
    hide(file_of("new"));
    CHECK((stream = fopen(file_of("two"), "r+")) && fputs("the first", stream) >= 0);
    CHECK((stream = freopen(file_of("freopen"), "r+", stream)) && fputs("the second", stream) >= 0);
    hide(file_of("two"));
    CHECK(fclose(stream) == 0);
    hide(file_of("freopen"));
    /* The number of a stream that was closed is another file's. */
    CHECK((stream = fopen(file_of("reused"), "w")) != NULL);
    int number = fileno(stream);
    CHECK(fclose(stream) == 0);
    int fd = open(file_of("reused"), O_WRONLY);
    CHECK(fd == number && write(fd, long_text, 50000) == 50000 && close(fd) == 0);
    /* The standard streams. */
    CHECK(puts("a line of the program") >= 0 && fflush(stdout) == 0);
    hide(in(source, "stdout"));
}

static void in_children(void) {
    posix_spawn_file_actions_t actions;
    pid_t child;
    char *arguments[] = {"sh", "-c", "echo spawned", NULL}, *none[] = {NULL}, command[PATH_MAX + 40];
    CHECK(posix_spawn_file_actions_init(&actions) == 0);
    CHECK(posix_spawn_file_actions_addopen(&actions, 1, file_of("spawn"), O_WRONLY | O_CREAT | O_TRUNC, 0600) == 0);
    CHECK(posix_spawn(&child, "/bin/sh", &actions, NULL, arguments, none) == 0 && waitpid(child, NULL, 0) == child);
    CHECK(posix_spawn_file_actions_destroy(&actions) == 0);
    snprintf(command, sizeof command, "unset LD_PRELOAD; echo system >>'%s'", file_of("system"));
    CHECK(system(command) == 0);
    FILE *pipe_ = popen((snprintf(command, sizeof command, "unset LD_PRELOAD; cat >'%s'", file_of("popen")), command), "w");
    CHECK(pipe_ && fputs("popen", pipe_) >= 0 && pclose(pipe_) == 0);
    FILE *nowhere = tmpfile();
    CHECK(nowhere && fputs("nobody's file", nowhere) >= 0 && fclose(nowhere) == 0);
}

static void use_all(void) {
    use_open_streams();
    use_new_streams();
    in_children();
}

static int on_progress(const hotbackup_progress *progress, void *unused) {
    (void)unused;
    if (moment == 1 && progress->phase == HOTBACKUP_PHASE_COPY && progress->files_done > 0) {
        use_all();
        moment = 2;
    }
    return 0;
}

static void before_cut(void *unused) {
    (void)unused;
    /* The cut is repeated for what the children have done. */
    if (moment == 3) return;
    CHECK(moment == 2);
    nap_ms(300);
    use_all();
    /* The engine has the time to copy what is marked, so that the times are those from behind the captured writes. */
    nap_ms(300);
    moment = 3;
}

static unsigned long warned;
static void tell(const char *text, void *unused) {
    (void)unused;
    warned += strstr(text, "stream") != NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    source = argv[1];
    memset(long_text, 'l', sizeof long_text - 1);
    open_streams();
    /* Something that takes a while, so that there is a moment in the midst of the copying. */
    for (int i = 0; i < 40; i++) {
        char name[20];
        snprintf(name, sizeof name, "large-%d", i);
        fill(in(source, name), 4 << 20, 'l');
    }
    hotbackup_pair pair = {argv[1], argv[2]};
    hotbackup_options options = options_of(&pair);
    hotbackup_session *session;
    options.on_progress = on_progress;
    options.before_cut = before_cut;
    options.on_warning = tell;
    options.throttle = 200 << 20;
    options.max_stall_ms = 2000;
    CHECK_OK(API(hotbackup_start)(&options, &session));
    moment = 0;
    use_all();
    moment = 1;
    hotbackup_report report = {.size = sizeof report};
    CHECK_OK(API(hotbackup_finish)(session, &report));
    API(hotbackup_free)(session);
    CHECK(moment == 3);
    fprintf(stderr, "  %lu files written through streams, %lu changed by children, cut %lu, frozen for %.1f ms\n", warned,
            report.unseen_files, report.cut_attempts, (double)report.freeze_ns / 1e6);
    CHECK(warned >= 3 * WAYS + 5);
    return 0;
}
