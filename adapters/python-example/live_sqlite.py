#!/usr/bin/env python3
"""A live SQLite application that backs itself up from inside: python3 live_sqlite.py LIBRARY SOURCE DESTINATION

It is started like any other program, without LD_PRELOAD. Money moves between accounts all the time, in several threads. When
it wants a backup it loads libHotBackup.so with ctypes and attaches it; from then on every backup is one call. Afterwards it
opens the copy as SQLite would after a power failure, and checks it.
"""

import ctypes
import os
import sqlite3
import sys
import threading
import time

ACCOUNTS, BALANCE, TELLERS = 50, 1000, 3


class Pair(ctypes.Structure):
    """hotbackup_pair"""

    _fields_ = [("source", ctypes.c_char_p), ("destination", ctypes.c_char_p)]


class Options(ctypes.Structure):
    """The beginning of hotbackup_options; hotbackup_options_init fills in the rest."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("pairs", ctypes.POINTER(Pair)),
        ("pair_count", ctypes.c_size_t),
        ("rest", ctypes.c_byte * 512),
    ]


class Attachment(ctypes.Structure):
    """hotbackup_attachment"""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("way", ctypes.c_int),
        ("objects", ctypes.c_uint32),
        ("slots", ctypes.c_uint64),
        ("pointers", ctypes.c_uint64),
        ("took_ns", ctypes.c_uint64),
    ]


class HotBackup:
    """libHotBackup.so, attached to this process."""

    def __init__(self, path):
        # CDLL lets the other threads run during a call. They have to: the cut waits for those inside a write.
        self.library = ctypes.CDLL(path)
        self.library.hotbackup_last_error.restype = ctypes.c_char_p
        self.attachment = Attachment(size=ctypes.sizeof(Attachment))
        self._check(self.library.hotbackup_attach(ctypes.byref(self.attachment)))

    def back_up(self, source, destination):
        pair = Pair(os.fsencode(source), os.fsencode(destination))
        options = Options()
        # What this file knows of the struct may be less than there is, or more: the size says how much of it is meant.
        self._check(self.library.hotbackup_options_init(ctypes.byref(options), ctypes.c_size_t(ctypes.sizeof(options))))
        options.pairs = ctypes.pointer(pair)
        options.pair_count = 1
        self._check(self.library.hotbackup_backup(ctypes.byref(options), None))

    def _check(self, status):
        if status != 0:
            raise OSError(self.library.hotbackup_last_error().decode())


class Bank:
    """Accounts whose sum never changes."""

    def __init__(self, path):
        self.path, self.stop, self.transfers, self.failures = path, threading.Event(), 0, []
        database = sqlite3.connect(path)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, note TEXT)")
        with database:
            rows = ((number, BALANCE, "x" * 200) for number in range(ACCOUNTS))
            database.executemany("INSERT INTO account VALUES (?, ?, ?)", rows)
        database.close()

    def transfer(self, teller):
        database = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            while not self.stop.is_set():
                giver, taker = (self.transfers * 7 + teller) % ACCOUNTS, (self.transfers * 13) % ACCOUNTS
                database.execute("BEGIN IMMEDIATE")
                database.execute("UPDATE account SET balance = balance - 1 WHERE id = ?", (giver,))
                database.execute("UPDATE account SET balance = balance + 1 WHERE id = ?", (taker,))
                database.execute("COMMIT")
                self.transfers += 1
        except sqlite3.Error as failure:
            self.failures.append(failure)
        database.close()


def check(path):
    database = sqlite3.connect(path)
    (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
    count, total = database.execute("SELECT COUNT(*), SUM(balance) FROM account").fetchone()
    database.close()
    assert (verdict, count, total) == ("ok", ACCOUNTS, ACCOUNTS * BALANCE), (verdict, count, total)


def main(library, source, destination):
    bank = Bank(os.path.join(source, "bank.sqlite"))
    tellers = [threading.Thread(target=bank.transfer, args=(number,)) for number in range(TELLERS)]
    for teller in tellers:
        teller.start()
    time.sleep(0.3)
    try:
        hot = HotBackup(library)
        before = bank.transfers
        hot.back_up(source, destination)
        during = bank.transfers - before
    finally:
        bank.stop.set()
        for teller in tellers:
            teller.join()
    assert not bank.failures, bank.failures
    check(os.path.join(destination, "bank.sqlite"))
    check(bank.path)
    print(
        f"attached in {hot.attachment.took_ns / 1e6:.1f} ms ({hot.attachment.objects} objects, {hot.attachment.slots} slots, "
        f"{hot.attachment.pointers} pointers); {during} transfers during the backup; the copy is right"
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
