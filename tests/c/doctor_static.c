/* A program that is linked statically is told so, and here also that it is written in Go, of which it has the note. Its own calls
 * reach nothing but the hooks, so that its exit status has to say what was found. */
#include <string.h>

#include "hotbackup.h"

__asm__(".section .note.go.buildid, \"a\", %note\n\t.long 4, 4, 4\n\t.asciz \"Go\\0\"\n\t.long 0\n\t.text");

static int found_static, found_go, found_hooks;

static void on_finding(const hotbackup_finding *found, void *unused) {
    (void)unused;
    int is_object = found->kind == HOTBACKUP_KIND_OBJECT, is_untold = found->verdict == HOTBACKUP_VERDICT_UNTOLD;
    found_static += is_object && found->verdict == HOTBACKUP_VERDICT_COPIED_AGAIN && strstr(found->text, "linked statically");
    found_go += is_object && is_untold && strstr(found->text, "written in Go");
    found_hooks += found->kind == HOTBACKUP_KIND_HOOKS && is_untold;
}

int main(void) {
    if (hotbackup_doctor(NULL, 0, on_finding, NULL) != HOTBACKUP_STATUS_OK) return 20;
    return found_static == 1 && found_go == 1 && found_hooks == 1 ? 0 : 21;
}
