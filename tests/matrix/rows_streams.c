/* Streams of the C library, whose writes leave inside it; programs that are started by it. */
#include "matrix.h"

#include <pwd.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio_ext.h>
#include <wchar.h>

static FILE *stream;

static void open_stream(void) { CHECK((stream = fopen(ground.target, "r+"))); }

static void seek(FILE *of, off_t at) { CHECK(fseeko(of, at, SEEK_SET) == 0); }

static void flush(void) { CHECK(fflush(stream) == 0); }

#define GROUP "Streams of the C library"
PREPARED(s_fwrite, "`fwrite`, `fflush`", 0, open_stream) {
    AT_BOTH(at) {
        seek(stream, at);
        CHECK(fwrite(ground.piece, PIECE, 1, stream) == 1);
    }
    flush();
}
PREPARED(s_fwrite_unlocked, "`fwrite_unlocked`, `fflush_unlocked`", 0, open_stream) {
    AT_BOTH(at) {
        seek(stream, at);
        CHECK(fwrite_unlocked(ground.piece, PIECE, 1, stream) == 1);
    }
    CHECK(fflush_unlocked(stream) == 0);
}
ROW(s_fopen, "`fopen`, `fwrite`, `fclose`", 0) {
    open_stream();
    AT_BOTH(at) {
        seek(stream, at);
        CHECK(fwrite(ground.piece, PIECE, 1, stream) == 1);
    }
    CHECK(fclose(stream) == 0);
}
PREPARED(s_fclose, "`fputs`, `fclose`", 0, open_stream) {
    CHECK(fputs("some text", stream) >= 0);
    CHECK(fclose(stream) == 0);
}
PREPARED(s_fcloseall, "`fputs`, `fcloseall`", 0, open_stream) {
    CHECK(fputs("some text", stream) >= 0);
    CHECK(fcloseall() == 0);
}
PREPARED(s_fflush_all, "`fputs`, `fflush(NULL)`", 0, open_stream) {
    CHECK(fputs("some text", stream) >= 0);
    CHECK(fflush(NULL) == 0);
}
PREPARED(s_flushlbf, "`fputs`, `_flushlbf`", 0, open_stream) {
    setlinebuf(stream);
    CHECK(fputs("some text", stream) >= 0);
    _flushlbf();
}
PREPARED(s_fprintf, "`fprintf`", 0, open_stream) {
    CHECK(fprintf(stream, "%d", 12345) == 5);
    flush();
}
static void print(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    CHECK(vfprintf(stream, format, arguments) > 0);
    va_end(arguments);
}
PREPARED(s_vfprintf, "`vfprintf`", 0, open_stream) {
    print("%d", 12345);
    flush();
}
PREPARED(s_fputc, "`fputc`", 0, open_stream) {
    CHECK(fputc('x', stream) == 'x');
    flush();
}
PREPARED(s_putc_unlocked, "`putc_unlocked`", 0, open_stream) {
    CHECK(putc_unlocked('x', stream) == 'x');
    flush();
}
PREPARED(s_putw, "`putw`", 0, open_stream) {
    CHECK(putw(12345, stream) == 0);
    flush();
}
PREPARED(s_fputws, "`fputws`", 0, open_stream) {
    CHECK(fputws(L"wide", stream) >= 0);
    flush();
}
PREPARED(s_putpwent, "`putpwent`", 0, open_stream) {
    struct passwd entry = {.pw_name = "name", .pw_passwd = "x", .pw_gecos = "", .pw_dir = "/", .pw_shell = ""};
    CHECK(putpwent(&entry, stream) == 0);
    flush();
}
static void open_unbuffered(void) {
    open_stream();
    setbuf(stream, NULL);
}
PREPARED(s_unbuffered, "`fwrite`, unbuffered", 0, open_unbuffered) {
    AT_BOTH(at) {
        seek(stream, at);
        CHECK(fwrite(ground.piece, PIECE, 1, stream) == 1);
    }
}
PREPARED(s_full, "`fwrite` that fills the buffer", 0, open_stream) {
    for (int i = 0; i < 8; i++) CHECK(fwrite(ground.piece, 1000, 1, stream) == 1);
}
PREPARED(s_fseek, "`fwrite`, then `fseek`", 0, open_stream) {
    CHECK(fwrite(ground.piece, 100, 1, stream) == 1);
    seek(stream, LATE);
}
PREPARED(s_buffered, "`fwrite` that stays in the buffer: it is in no file yet", INVISIBLE, open_stream) {
    CHECK(fwrite(ground.piece, 100, 1, stream) == 1);
}
ROW(s_fopen_w, "`fopen`, \"w\"", 0) { CHECK(fopen(ground.target, "w")); }
ROW(s_fopen64_new, "`fopen64`, \"wx\", a new file", 0) {
    CHECK((stream = fopen64(inside("new"), "wx")));
    CHECK(fputs("some text", stream) >= 0);
    flush();
}
ROW(s_fopen_a, "`fopen`, \"a\"", 0) {
    CHECK((stream = fopen(ground.target, "a")));
    CHECK(fputs("some text", stream) >= 0);
    flush();
}
PREPARED(s_freopen, "`freopen`, \"w\"", 0, open_stream) { CHECK(freopen(ground.target, "w", stream)); }
ROW(s_fdopen, "`fdopen`", 0) {
    CHECK((stream = fdopen(ground.fd, "r+")));
    seek(stream, EARLY);
    CHECK(fputs("some text", stream) >= 0);
    flush();
}
PREPARED(s_fileno, "`pwrite` to `fileno()`", 0, open_stream) {
    AT_BOTH(at) CHECK(pwrite(fileno(stream), ground.piece, PIECE, at) == PIECE);
}
PREPARED(s_reuse, "`write` to the number of a stream that was closed", 0, open_stream) {
    int number = fileno(stream);
    CHECK(fclose(stream) == 0);
    int fd = open(ground.target, O_WRONLY);
    CHECK(fd == number);
    AT_BOTH(at) CHECK(pwrite(fd, ground.piece, PIECE, at) == PIECE);
}
static void point_stdout(void) {
    CHECK(fflush(stdout) == 0);
    CHECK((stream = fopen(ground.target, "r+")));
}
PREPARED(s_printf, "`printf`, stdout led to the file by `dup2`", 0, point_stdout) {
    int saved = dup(1);
    CHECK(dup2(fileno(stream), 1) == 1);
    CHECK(printf("some text") > 0 && fflush(stdout) == 0);
    CHECK(dup2(saved, 1) == 1);
}
ROW(s_dprintf, "`dprintf`", 0) { CHECK(dprintf(ground.fd, "%d", 12345) == 5); }
static void print_to(int fd, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    CHECK(vdprintf(fd, format, arguments) > 0);
    va_end(arguments);
}
ROW(s_vdprintf, "`vdprintf`", 0) { print_to(ground.fd, "%d", 12345); }
static ssize_t cookie_write(void *unused, const char *bytes, size_t len) {
    (void)unused;
    return write(ground.fd, bytes, len);
}
ROW(s_fopencookie, "`fopencookie`, whose function calls `write`", 0) {
    CHECK((stream = fopencookie(NULL, "w", (cookie_io_functions_t){.write = cookie_write})));
    CHECK(fputs("some text", stream) >= 0);
    flush();
}

#undef GROUP
#define GROUP "Programs that are started"
static const char *script(const char *format) {
    static char text[2 * PATH_MAX];
    snprintf(text, sizeof text, format, ground.target);
    return text;
}
#define OVERWRITE "exec dd if=/dev/zero of='%s' bs=4096 count=1 seek=1 conv=notrunc status=none"
ROW(s_system, "`system`", 0) { CHECK(system(script(OVERWRITE)) == 0); }
ROW(s_popen, "`popen`", 0) {
    CHECK((stream = popen(script("cat >'%s'"), "w")));
    CHECK(fputs("some text", stream) >= 0);
    CHECK(pclose(stream) == 0);
}
extern char **environ;
static void spawn(posix_spawn_file_actions_t *actions, const char *command) {
    pid_t child;
    char *arguments[] = {"sh", "-c", (char *)command, NULL};
    CHECK((errno = posix_spawn(&child, "/bin/sh", actions, NULL, arguments, environ)) == 0);
    reap(child);
}
ROW(s_posix_spawn, "`posix_spawn`", 0) { spawn(NULL, script(OVERWRITE)); }
ROW(s_posix_spawn_addopen, "`posix_spawn` with `addopen`, O_TRUNC", 0) {
    posix_spawn_file_actions_t actions;
    CHECK(posix_spawn_file_actions_init(&actions) == 0);
    CHECK(posix_spawn_file_actions_addopen(&actions, 1, ground.target, O_WRONLY | O_TRUNC, 0) == 0);
    spawn(&actions, "echo some text");
}
