/* What a directory holds, as text that two equal trees have in common: names, types, modes, owners, times, links, bytes and
 * extended attributes. */
#include "matrix.h"

#include <dirent.h>
#include <stdarg.h>
#include <sys/xattr.h>

struct text {
    char *bytes;
    size_t len, room;
};

struct seen {
    ino_t inode;
    char path[PATH_MAX];
};

static struct seen *known;
static size_t known_count;

__attribute__((format(printf, 2, 3))) static void add(struct text *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char *line;
    int len = vasprintf(&line, format, arguments);
    va_end(arguments);
    CHECK(len >= 0);
    if (text->len + (size_t)len + 1 > text->room) {
        text->room = 2 * (text->room + (size_t)len + 1);
        text->bytes = realloc(text->bytes, text->room);
        CHECK(text->bytes);
    }
    memcpy(text->bytes + text->len, line, (size_t)len + 1);
    text->len += (size_t)len;
    free(line);
}

static uint64_t mix(uint64_t digest, const void *bytes, size_t len) {
    for (size_t i = 0; i < len; i++) digest = (digest ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3;
    return digest;
}

static uint64_t contents(const char *path) {
    static unsigned char buffer[1 << 16];
    int fd = open(path, O_RDONLY | O_NOATIME | O_CLOEXEC);
    CHECK(fd >= 0);
    uint64_t digest = 0xcbf29ce484222325;
    ssize_t got;
    while ((got = read(fd, buffer, sizeof buffer)) > 0) digest = mix(digest, buffer, (size_t)got);
    CHECK(got == 0);
    close(fd);
    return digest;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void add_xattrs(struct text *text, const char *path) {
    char names[4096], *sorted[64], value[4096];
    ssize_t len = llistxattr(path, names, sizeof names);
    size_t count = 0;
    for (char *name = names; name < names + len && count < 64; name += strlen(name) + 1) sorted[count++] = name;
    qsort(sorted, count, sizeof *sorted, by_name);
    for (size_t i = 0; i < count; i++) {
        ssize_t got = lgetxattr(path, sorted[i], value, sizeof value);
        CHECK(got >= 0);
        add(text, " %s=%lx", sorted[i], (unsigned long)mix(0xcbf29ce484222325, value, (size_t)got));
    }
}

/* The path under which an inode came first. */
static const char *first_path(ino_t inode, const char *path) {
    for (size_t i = 0; i < known_count; i++) {
        if (known[i].inode == inode) return known[i].path;
    }
    known = realloc(known, (known_count + 1) * sizeof *known);
    CHECK(known);
    known[known_count].inode = inode;
    snprintf(known[known_count++].path, PATH_MAX, "%s", path);
    return path;
}

static bool is_ours(const char *name) {
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strcmp(name, "beat") == 0 ||
           strcmp(name, "ballast") == 0 || strcmp(name, "slow") == 0;
}

static void add_entry(struct text *text, const char *path, const char *below);

static void add_directory(struct text *text, const char *path, const char *below) {
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, alphasort);
    CHECK(count >= 0);
    for (int i = 0; i < count; i++) {
        if (!is_ours(entries[i]->d_name)) {
            char full[PATH_MAX], relative[PATH_MAX];
            CHECK(snprintf(full, PATH_MAX, "%s/%s", path, entries[i]->d_name) < PATH_MAX);
            CHECK(snprintf(relative, PATH_MAX, "%s/%s", below, entries[i]->d_name) < PATH_MAX);
            add_entry(text, full, relative);
        }
        free(entries[i]);
    }
    free(entries);
}

static void add_entry(struct text *text, const char *path, const char *below) {
    struct stat found;
    CHECK(lstat(path, &found) == 0);
    if (S_ISSOCK(found.st_mode)) return; /* they are left out of backups */
    add(text, "%s %o %u:%u mtime %ld.%09ld", below, found.st_mode, found.st_uid, found.st_gid, found.st_mtim.tv_sec,
        found.st_mtim.tv_nsec);
    if (S_ISREG(found.st_mode) || S_ISLNK(found.st_mode)) {
        add(text, " atime %ld.%09ld size %ld", found.st_atim.tv_sec, found.st_atim.tv_nsec, (long)found.st_size);
    }
    if (S_ISREG(found.st_mode)) {
        add(text, " bytes %lx inode %s", (unsigned long)contents(path), first_path(found.st_ino, below));
    }
    if (S_ISLNK(found.st_mode)) {
        char leads_to[PATH_MAX] = "";
        CHECK(readlink(path, leads_to, sizeof leads_to - 1) >= 0);
        add(text, " to %s", leads_to);
    }
    if (S_ISCHR(found.st_mode) || S_ISBLK(found.st_mode)) add(text, " device %lx", (unsigned long)found.st_rdev);
    add_xattrs(text, path);
    add(text, "\n");
    if (S_ISDIR(found.st_mode)) add_directory(text, path, below);
}

char *fingerprint(const char *directory) {
    struct text text = {0};
    known_count = 0;
    add_entry(&text, directory, ".");
    return text.bytes;
}
