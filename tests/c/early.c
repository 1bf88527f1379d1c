/* A library whose constructor changes files before ours has run: preloaded behind libHotBackup.so, it is initialised
 * first. */
#include "common.h"

__attribute__((constructor)) static void begin(void) {
    const char *directory = getenv("EARLY_DIRECTORY");
    if (!directory) return;
    fill(in(directory, "early-a"), 5000, 'e');
    CHECK(rename(in(directory, "early-a"), in(directory, "early-b")) == 0);
    CHECK(truncate(in(directory, "early-b"), 100) == 0);
    CHECK(mkdir(in(directory, "early-directory"), 0755) == 0);
    CHECK(chmod(in(directory, "early-b"), 0600) == 0);
    CHECK(link(in(directory, "early-b"), in(directory, "early-c")) == 0);
    CHECK(unlink(in(directory, "early-c")) == 0);
}
