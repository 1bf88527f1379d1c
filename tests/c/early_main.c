/* The program around early.c: what a constructor wrote before the library was set up is there, and is backed up. */
#include "common.h"

int main(int argc, char **argv) {
    CHECK(argc == 3);
    CHECK(access(in(argv[1], "early-b"), F_OK) == 0);
    session_finish(session_start(argv[1], argv[2]));
    return 0;
}
