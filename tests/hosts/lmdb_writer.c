/* Writes to an LMDB environment: transactions that move what is in one account to another, until it is killed.
 *
 *   lmdb_writer DIRECTORY [writemap]
 *
 * Every transaction also adds one to a count. The sum over all accounts never changes. */
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ACCOUNTS = 2000, EACH = 1000 };

#define CHECK(call)                                                                                        \
    do {                                                                                                   \
        int status_ = (call);                                                                              \
        if (status_) {                                                                                     \
            fprintf(stderr, "%s: %s\n", #call, mdb_strerror(status_));                                     \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

static MDB_dbi accounts;

static long get(MDB_txn *txn, const char *name) {
    MDB_val key = {strlen(name), (void *)name}, value;
    CHECK(mdb_get(txn, accounts, &key, &value));
    return strtol(value.mv_data, NULL, 10);
}

static void put(MDB_txn *txn, const char *name, long amount) {
    char text[200];
    memset(text, '.', sizeof text);
    snprintf(text, sizeof text, "%ld", amount);
    MDB_val key = {strlen(name), (void *)name}, value = {sizeof text, text};
    CHECK(mdb_put(txn, accounts, &key, &value, 0));
}

static const char *account(int number) {
    static char names[2][32];
    static int next;
    char *name = names[next++ % 2];
    snprintf(name, sizeof names[0], "account %d", number);
    return name;
}

int main(int argc, char **argv) {
    MDB_env *env;
    MDB_txn *txn;
    if (argc < 2) return 2;
    CHECK(mdb_env_create(&env));
    CHECK(mdb_env_set_mapsize(env, 16 << 20));
    CHECK(mdb_env_open(env, argv[1], argc > 2 ? MDB_WRITEMAP : 0, 0644));
    CHECK(mdb_txn_begin(env, NULL, 0, &txn));
    CHECK(mdb_dbi_open(txn, NULL, 0, &accounts));
    for (int i = 0; i < ACCOUNTS; i++) put(txn, account(i), EACH);
    put(txn, "count", 0);
    CHECK(mdb_txn_commit(txn));
    for (unsigned seed = 1;;) {
        const char *from = account(rand_r(&seed) % ACCOUNTS);
        CHECK(mdb_txn_begin(env, NULL, 0, &txn));
        put(txn, from, get(txn, from) - 7);
        const char *to = account(rand_r(&seed) % ACCOUNTS);
        put(txn, to, get(txn, to) + 7);
        put(txn, "count", get(txn, "count") + 1);
        CHECK(mdb_txn_commit(txn));
    }
}
