/* A library whose constructor makes every captured call before ours has run: preloaded behind libHotBackup.so, it is
 * initialised first. It prints what they return to EARLY_RESULTS, and backs EARLY_DIRECTORY up to EARLY_DESTINATION, if
 * that is given, while it makes them. */
#include "changes.h"

static const char *directory;

static void call_all(void *unused) {
    (void)unused;
    change_each(ALL);
    call_everything(directory);
}

__attribute__((constructor)) static void begin(void) {
    const char *destination = getenv("EARLY_DESTINATION"), *file = getenv("EARLY_RESULTS");
    directory = getenv("EARLY_DIRECTORY");
    if (!directory || !file) return;
    unsetenv("EARLY_DIRECTORY");
    prepare_changes(directory);
    if (destination) {
        backup_with(directory, destination, call_all);
    } else {
        call_all(NULL);
    }
    end_changes();
    FILE *printed = fopen(file, "w");
    CHECK(printed && fputs(results, printed) >= 0 && fclose(printed) == 0);
}
