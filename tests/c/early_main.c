/* The program around early.c: what a constructor did before the library was set up is there. */
#include "common.h"

int main(int argc, char **argv) {
    CHECK(argc == 2 && access(in(argv[1], "input"), F_OK) == 0);
    return 0;
}
