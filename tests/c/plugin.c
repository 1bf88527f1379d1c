/* What deep.c loads. */
#include <unistd.h>

int plugin(int fd);
int plugin(int fd) { return unlink("nothing") + (int)write(fd, "x", 1); }
