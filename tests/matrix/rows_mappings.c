/* Stores to memory that is a file. */
#include "matrix.h"

#include <sys/mman.h>
#include <sys/uio.h>

static unsigned char *mapped;

static void map(void) {
    mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ground.fd, 0);
    CHECK(mapped != MAP_FAILED);
}

/* Has the pages be dirty and writable in the mapping: stores move no time any more until they are written out. */
static void map_dirty(void) {
    map();
    AT_BOTH(at) mapped[at] ^= 1;
}

static void store(void) { AT_BOTH(at) memset(mapped + at, 0xa5, PIECE); }

#define GROUP "Shared writable mappings"
PREPARED(m_store, "store to a mapping from before the session", 0, map) { store(); }
PREPARED(m_store_dirty, "store to pages that were dirty in the mapping already", 0, map_dirty) { store(); }
PREPARED(m_msync, "store, `msync`", 0, map) {
    store();
    CHECK(msync(mapped, SIZE, MS_SYNC) == 0);
}
PREPARED(m_munmap, "store, `munmap`", 0, map) {
    store();
    CHECK(munmap(mapped, SIZE) == 0);
}
PREPARED(m_mremap, "`mremap`, store", 0, map) {
    CHECK((mapped = mremap(mapped, SIZE, 2 * SIZE, MREMAP_MAYMOVE)) != MAP_FAILED);
    store();
}
PREPARED(m_closed, "store to a mapping whose descriptor is closed", 0, map) {
    CHECK(close(ground.fd) == 0);
    store();
    CHECK((ground.fd = open(ground.target, O_RDWR)) >= 0);
}
PREPARED(m_read, "`read` of another file into a mapping", 0, map) {
    AT_BOTH(at) CHECK(pread(ground.donor, mapped + at, PIECE, 0) == PIECE);
}
PREPARED(m_vm_writev, "`process_vm_writev` to a mapping", 0, map) {
    AT_BOTH(at) {
        struct iovec from = {ground.piece, PIECE}, to = {mapped + at, PIECE};
        CHECK(process_vm_writev(getpid(), &from, 1, &to, 1, 0) == PIECE);
    }
}
ROW(m_mmap, "`mmap`, store", 0) {
    map();
    store();
}
ROW(m_mmap_munmap, "`mmap`, store, `munmap`", 0) {
    map();
    store();
    CHECK(munmap(mapped, SIZE) == 0);
}
ROW(m_mmap64, "`mmap64`, MAP_SHARED_VALIDATE, store", 0) {
    mapped = mmap64(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE, ground.fd, 0);
    CHECK(mapped != MAP_FAILED);
    store();
}
ROW(m_mprotect, "`mmap` for reading, `mprotect`, store", 0) {
    CHECK((mapped = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, ground.fd, 0)) != MAP_FAILED);
    CHECK(mprotect(mapped, SIZE, PROT_READ | PROT_WRITE) == 0);
    store();
}
ROW(m_raw, "raw `mmap`, store, raw `munmap`", 0) {
    mapped = (void *)CHECK_RAW(RAW_6(SYS_mmap, 0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ground.fd, 0));
    store();
    CHECK_RAW(RAW_2(SYS_munmap, mapped, SIZE));
}
ROW(m_private, "store to a private mapping, which is in no file", INVISIBLE) {
    CHECK((mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, ground.fd, 0)) != MAP_FAILED);
    store();
}
PREPARED(m_write, "store, then `pwrite` of other pages", CALM, map) {
    store();
    CHECK(pwrite(ground.fd, ground.piece, PIECE, MIDDLE) == PIECE);
}
