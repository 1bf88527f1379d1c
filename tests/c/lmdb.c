/* LMDB with MDB_WRITEMAP, which writes by storing to its map: a host that begins no transaction in before_cut gets an exact copy.
 *
 * Method: a thread commits transactions, each of which puts its number under many keys. In before_cut the writers' lock is taken,
 * by a write transaction that is aborted in after_cut. The copy, opened by LMDB, must hold the last number that was committed
 * under every key. */
#include "common.h"

#include <lmdb.h>
#include <stdbool.h>

enum { KEYS = 400, BACKUPS = 3 };
#define LMDB(call)                                                                                         \
    do {                                                                                                   \
        int status_ = (call);                                                                              \
        if (status_) {                                                                                     \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, mdb_strerror(status_));          \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

static MDB_env *env;
static MDB_dbi dbi;
static MDB_txn *pause_;
static atomic_bool stop;
static unsigned long at_the_cut;

static void *writer(void *unused) {
    (void)unused;
    for (unsigned long number = 1; !stop; number++) {
        MDB_txn *txn;
        LMDB(mdb_txn_begin(env, NULL, 0, &txn));
        for (unsigned key = 0; key < KEYS; key++) {
            unsigned long value[64] = {number, number * key};
            MDB_val k = {sizeof key, &key}, v = {sizeof value, value};
            LMDB(mdb_put(txn, dbi, &k, &v, 0));
        }
        LMDB(mdb_txn_commit(txn));
    }
    return NULL;
}

static void before_cut(void *unused) {
    (void)unused;
    LMDB(mdb_txn_begin(env, NULL, 0, &pause_));
    unsigned key = 0;
    MDB_val k = {sizeof key, &key}, v;
    if (mdb_get(pause_, dbi, &k, &v) == 0) memcpy(&at_the_cut, v.mv_data, sizeof at_the_cut);
}

static void after_cut(void *unused) {
    (void)unused;
    mdb_txn_abort(pause_);
}

static void check(const char *directory) {
    MDB_env *copy;
    MDB_txn *txn;
    MDB_dbi database;
    LMDB(mdb_env_create(&copy));
    LMDB(mdb_env_open(copy, directory, MDB_RDONLY | MDB_NOLOCK, 0600));
    LMDB(mdb_txn_begin(copy, NULL, MDB_RDONLY, &txn));
    LMDB(mdb_dbi_open(txn, NULL, 0, &database));
    for (unsigned key = 0; key < KEYS; key++) {
        MDB_val k = {sizeof key, &key}, v;
        LMDB(mdb_get(txn, database, &k, &v));
        unsigned long value[2];
        memcpy(value, v.mv_data, sizeof value);
        if (value[0] != at_the_cut || value[1] != at_the_cut * key) {
            fprintf(stderr, "key %u is of transaction %lu, the last before the cut was %lu\n", key, value[0], at_the_cut);
            exit(1);
        }
    }
    mdb_txn_abort(txn);
    mdb_env_close(copy);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    LMDB(mdb_env_create(&env));
    LMDB(mdb_env_set_mapsize(env, 256 << 20));
    LMDB(mdb_env_open(env, argv[1], MDB_WRITEMAP | MDB_NOSYNC, 0600));
    MDB_txn *txn;
    LMDB(mdb_txn_begin(env, NULL, 0, &txn));
    LMDB(mdb_dbi_open(txn, NULL, MDB_CREATE | MDB_INTEGERKEY, &dbi));
    LMDB(mdb_txn_commit(txn));
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, writer, NULL) == 0);
    nap_ms(100);
    for (int backup = 0; backup < BACKUPS; backup++) {
        char name[16];
        snprintf(name, sizeof name, "copy%d", backup);
        const char *destination = in(argv[2], name);
        CHECK(mkdir(destination, 0700) == 0);
        hotbackup_pair pair = {argv[1], destination};
        hotbackup_options options = options_of(&pair);
        hotbackup_report report = {.size = sizeof report};
        options.before_cut = before_cut;
        options.after_cut = after_cut;
        CHECK_OK(API(hotbackup_backup)(&options, &report));
        check(destination);
        printf("  transaction %lu, at try %d after %.1f ms\n", at_the_cut, (int)report.cut_attempts,
               (double)report.freeze_ns / 1e6);
    }
    stop = true;
    CHECK(pthread_join(thread, NULL) == 0);
    return 0;
}
