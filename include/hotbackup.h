// hotbackup: hot backup of any running program's files, one exact instant, without stopping it.
//
// How to get in: preload the library (LD_PRELOAD=libHotBackup.so program), or link the program with it, named before
// the C library (cc program.c -lHotBackup), or load it with dlopen into the running program and call hotbackup_attach.
//
// Threads: one session at a time per process. Every function may be called from any thread, unless it says otherwise,
// but not from a signal handler, and not in the child of a fork.
//
// Memory: strings that you give may go when the function returns. Strings that you are given say how long they live;
// none is yours to free. Structs begin with their size, so that programs and libraries of different versions work
// together.
//
// Errors: functions return a hotbackup_status. They never print, and never end the program.

#ifndef HOTBACKUP_H
#define HOTBACKUP_H

#include <stddef.h>
#include <stdint.h>

// No bound on the rate of the copying.
#define HOTBACKUP_UNLIMITED UINT64_MAX

// What the library finds best, for `max_lag` and `keep_free`.
#define HOTBACKUP_AUTOMATIC UINT64_MAX

// For `manifest_place`: at the root of the first destination, as hotbackup-manifest.json.
#define HOTBACKUP_MANIFEST_IN_FIRST_DESTINATION 0

// For `manifest_place`: in the file `manifest`, which must not exist.
#define HOTBACKUP_MANIFEST_IN_FILE 1

// For `manifest_place`: nowhere. The backup can then not be verified.
#define HOTBACKUP_MANIFEST_NONE 2

// For `on_unseen_change`: a file that is changed by something that is not captured is copied again until it has kept still while
// it was read. If it never does, the backup fails and names it.
#define HOTBACKUP_UNSEEN_RETRY 0

// For `on_unseen_change`: the first such change that is found fails the backup, which names the file.
#define HOTBACKUP_UNSEEN_FAIL 1

// For `on_unseen_change`: as with HOTBACKUP_UNSEEN_RETRY, but a file that never keeps still does not fail the backup: on_warning and
// the manifest name it. Its copy may mix what it held at different moments.
#define HOTBACKUP_UNSEEN_WARN 2

// What came of a call. The numbers are never reused; later versions may add more. `hotbackup_last_error` says in
// words what went wrong, `hotbackup_last_errno` with an error number of the system.
typedef enum {
  // It worked.
  HOTBACKUP_STATUS_OK = 0,
  // A NULL where none may be, an options struct that makes no sense, an expression that is not valid, no source.
  HOTBACKUP_STATUS_INVALID_ARGUMENT = 1,
  // A system call on a file failed; the text names the call and the file.
  HOTBACKUP_STATUS_IO = 2,
  // Another session runs in this process; it goes on untouched.
  HOTBACKUP_STATUS_BUSY = 3,
  // A source or a destination is not a directory.
  HOTBACKUP_STATUS_NOT_A_DIRECTORY = 4,
  // A destination holds something.
  HOTBACKUP_STATUS_NOT_EMPTY = 5,
  // A destination holds a backup that did not complete.
  HOTBACKUP_STATUS_INCOMPLETE_BACKUP = 6,
  // Sources and destinations lie inside each other, are the same, or were given twice.
  HOTBACKUP_STATUS_OVERLAP = 7,
  // A source holds a name that the backup needs for itself.
  HOTBACKUP_STATUS_RESERVED_NAME = 8,
  // The backup does not fit and leave the reserve free.
  HOTBACKUP_STATUS_NO_SPACE = 9,
  // A callback or hotbackup_cancel ended the session.
  HOTBACKUP_STATUS_CANCELLED = 10,
  // A call of the program would have had to wait longer than max_stall_ms.
  HOTBACKUP_STATUS_STALLED = 11,
  // The cut did not come about.
  HOTBACKUP_STATUS_NO_CUT = 12,
  // A call that had begun before the session did not end.
  HOTBACKUP_STATUS_NOT_ARMED = 13,
  // The library is not in force for some loaded object, which the text names. If it names the program: preload the
  // library or link with it.
  HOTBACKUP_STATUS_HOOK_NOT_LIVE = 14,
  // A file kept being changed by something that cannot be captured.
  HOTBACKUP_STATUS_UNSEEN = 15,
  // The directory does not hold a complete backup.
  HOTBACKUP_STATUS_NOT_A_BACKUP = 16,
  // The manifest is unusable.
  HOTBACKUP_STATUS_BAD_MANIFEST = 17,
  // hotbackup_verify found differences.
  HOTBACKUP_STATUS_DIFFERENT = 18,
  // The session has been finished already.
  HOTBACKUP_STATUS_FINISHED = 19,
  // A defect in hotbackup. The program goes on.
  HOTBACKUP_STATUS_DEFECT = 20,
  // Asynchronous writes of the program could not be followed, as the text says.
  HOTBACKUP_STATUS_ASYNC_WRITES = 21,
} hotbackup_status;

// Where a session stands.
typedef enum {
  // The arguments are being checked and capture is being armed.
  HOTBACKUP_PHASE_PREPARE = 0,
  // The files are being copied for the first time.
  HOTBACKUP_PHASE_COPY = 1,
  // What changed meanwhile is being copied until little is left.
  HOTBACKUP_PHASE_CONVERGE = 2,
  // The instant that the backup shows.
  HOTBACKUP_PHASE_CUT = 3,
  // Changes that nobody saw are being looked for.
  HOTBACKUP_PHASE_AUDIT = 4,
  // Names, owners, times are set, everything is synced, the mark is removed.
  HOTBACKUP_PHASE_PUBLISH = 5,
  // The session has ended.
  HOTBACKUP_PHASE_DONE = 6,
} hotbackup_phase;

// How calls of the program reach the library.
typedef enum {
  // They do not.
  HOTBACKUP_WAY_NONE = 0,
  // The library was preloaded.
  HOTBACKUP_WAY_PRELOADED = 1,
  // The program was linked with the library.
  HOTBACKUP_WAY_LINKED = 2,
  // hotbackup_attach has led them here.
  HOTBACKUP_WAY_ATTACHED = 3,
} hotbackup_way;

// What a finding of hotbackup_doctor is about.
typedef enum {
  // How calls of the program are captured.
  HOTBACKUP_KIND_HOOKS = 0,
  // A loaded object, or the program itself, whose calls are not.
  HOTBACKUP_KIND_OBJECT = 1,
  // Instructions in a loaded object's text that look like system calls of its own.
  HOTBACKUP_KIND_RAW_CALLS = 2,
  // A ring in which the kernel tells of asynchronous requests: of io_uring, or of native AIO.
  HOTBACKUP_KIND_RING = 3,
  // A file of the sources that this process has mapped shared and writable.
  HOTBACKUP_KIND_MAPPING = 4,
  // A file of the sources that this process writes through a stream (FILE).
  HOTBACKUP_KIND_STREAM = 5,
  // A file of the sources that another process has open for writing, or mapped shared and writable.
  HOTBACKUP_KIND_PROCESS = 6,
  // Something that the kernel offers or refuses.
  HOTBACKUP_KIND_SYSTEM = 7,
} hotbackup_kind;

// What a finding of hotbackup_doctor means for a backup.
typedef enum {
  // It is captured, or as it should be.
  HOTBACKUP_VERDICT_CAPTURED = 0,
  // The backup is right; its reader should know this.
  HOTBACKUP_VERDICT_NOTE = 1,
  // Changes are found and copied again; one that never comes to rest fails the backup, which names the file.
  HOTBACKUP_VERDICT_COPIED_AGAIN = 2,
  // A backup is refused, or fails and says why.
  HOTBACKUP_VERDICT_REFUSES = 3,
  // Whether changes go by cannot be told.
  HOTBACKUP_VERDICT_UNTOLD = 4,
} hotbackup_verdict;

// A session: from hotbackup_start to hotbackup_free.
typedef struct hotbackup_session hotbackup_session;

// A source directory and the directory that receives its copy, which must exist and be empty.
typedef struct {
  // The directory tree to back up.
  const char *source;
  // Where its copy goes.
  const char *destination;
} hotbackup_pair;

// Anything but 0 leaves the entry at this full source path out. The string dies when it returns.
typedef int (*hotbackup_exclude_if)(const char *path, void *user_data);

// A look at a running session.
typedef struct {
  // sizeof(hotbackup_progress), as whoever made the struct knows it.
  size_t size;
  // Where the session stands.
  hotbackup_phase phase;
  // The part that is done, from 0.0 to 1.0; it never goes down and is 1.0 only at the end.
  float fraction;
  // Bytes that the copying has dealt with, holes included.
  uint64_t bytes_done;
  // Bytes known of so far; grows while the sources are being walked.
  uint64_t bytes_total;
  // Files copied for the first time.
  uint64_t files_done;
  // Files known of so far.
  uint64_t files_total;
  // Bytes copied again because the program changed them meanwhile.
  uint64_t bytes_recopied;
  // Bytes of files already copied that the destination does not have yet, and 256 KiB or more for each file found since.
  uint64_t lag;
  // Bytes per second over the last second.
  uint64_t rate;
  // An estimate of the milliseconds that are left; UINT64_MAX while there is no ground for one.
  uint64_t eta_ms;
  // How long the session has run, in milliseconds.
  uint64_t elapsed_ms;
  // The file that was begun last, or NULL. The string dies when the callback returns.
  const char *file;
} hotbackup_progress;

// Is told how far the session has come; anything but 0 cancels it. `progress` and what it points to die when it
// returns.
typedef int (*hotbackup_on_progress)(const hotbackup_progress *progress, void *user_data);

// Is called around the cut.
typedef void (*hotbackup_at_cut)(void *user_data);

// Is told what the reader of a report should know though the backup is right. The string dies when it returns.
typedef void (*hotbackup_on_warning)(const char *text, void *user_data);

// What is wanted. Always fill it with hotbackup_options_init first, so that fields which later versions add have their
// defaults.
//
// Callbacks may be NULL. They come on the thread that calls hotbackup_backup, or hotbackup_start and
// hotbackup_finish, while threads of the library work on. They may block for long, and what the program writes inside
// one is captured like anything else. A callback has to return: no exception, no longjmp; a cancellation of its thread
// waits until the library has returned.
typedef struct {
  // sizeof(hotbackup_options); hotbackup_options_init sets it.
  size_t size;
  // The sources and their destinations; all show the same instant.
  const hotbackup_pair *pairs;
  // How many there are.
  size_t pair_count;
  // Regular expressions (UTF-8) on the path below its source, which begins with a slash: what matches is left out, a
  // directory with all that is in it.
  const char *const *exclude;
  // How many there are.
  size_t exclude_count;
  // Is asked about what no expression matches.
  hotbackup_exclude_if exclude_if;
  // Bytes per second that the first copy writes at most; 0 pauses. HOTBACKUP_UNLIMITED by default.
  uint64_t throttle;
  // The most bytes that files already copied may owe the destination: over it, calls of the program wait. 0 makes
  // every write of a copied file wait until it is on the backup file. HOTBACKUP_AUTOMATIC by default.
  uint64_t max_lag;
  // The longest that any call of the program may be made to wait, in milliseconds. 1000 by default.
  uint64_t max_stall_ms;
  // Bytes of the destination's filesystem that stay free. HOTBACKUP_AUTOMATIC by default: 5 %, and at least 1 GiB.
  uint64_t keep_free;
  // How many threads copy, from 1 to 64. 2 by default.
  uint32_t threads;
  // 1 lets source and destination share blocks where the filesystem can. Afterwards overwriting existing blocks of
  // the source can fail on a full filesystem. 0 by default.
  uint32_t share_blocks;
  // HOTBACKUP_MANIFEST_IN_FIRST_DESTINATION by default, HOTBACKUP_MANIFEST_IN_FILE, or HOTBACKUP_MANIFEST_NONE.
  uint32_t manifest_place;
  // 0.
  uint32_t reserved;
  // The manifest for HOTBACKUP_MANIFEST_IN_FILE, NULL otherwise.
  const char *manifest;
  // First called before anything is checked, then when changes are captured and nothing is copied yet (the copying
  // begins when that call has returned), then at least every 100 ms while work goes on.
  hotbackup_on_progress on_progress;
  // Is called before the cut: the place to take locks or to quiesce. Once; again only if a change that nobody saw
  // was found behind the cut, so that it has to be repeated.
  hotbackup_at_cut before_cut;
  // Is called just after the cut, or when there will be none, once for each call of before_cut: the place to give
  // back what that took.
  hotbackup_at_cut after_cut;
  // Is called for each warning when the backup is complete.
  hotbackup_on_warning on_warning;
  // What the callbacks are given.
  void *user_data;
  // HOTBACKUP_UNSEEN_RETRY by default, HOTBACKUP_UNSEEN_FAIL, or HOTBACKUP_UNSEEN_WARN.
  uint32_t on_unseen_change;
  // 0.
  uint32_t reserved_too;
} hotbackup_options;

// What hotbackup_attach has found. Set `size` before the call.
typedef struct {
  // sizeof(hotbackup_attachment).
  size_t size;
  // How calls of the program reach the library now.
  hotbackup_way way;
  // Loaded objects with places that lead here; like the following, only counted if this is by hotbackup_attach.
  uint32_t objects;
  // Slots of their relocation tables that lead here.
  uint64_t slots;
  // Addresses of functions that the program has stored in its objects' data, and that lead here.
  uint64_t pointers;
  // How long it took, in nanoseconds.
  uint64_t took_ns;
} hotbackup_attachment;

// One thing that hotbackup_doctor has found. Later versions may have further kinds, verdicts and fields.
typedef struct {
  // sizeof(hotbackup_finding), as the library knows it.
  size_t size;
  // What it is about.
  hotbackup_kind kind;
  // What it means for a backup.
  hotbackup_verdict verdict;
  // The file, object or facility.
  const char *subject;
  // What was found and what that means, to go behind the subject.
  const char *text;
} hotbackup_finding;

// Is told one thing that hotbackup_doctor has found. `finding` and what it points to die when it returns.
typedef void (*hotbackup_on_finding)(const hotbackup_finding *finding, void *user_data);

// What a complete backup holds and what it took. Set `size` before the call.
typedef struct {
  // sizeof(hotbackup_report).
  size_t size;
  // Regular files in the backup, each inode counted once.
  uint64_t files;
  // Directories, the roots included.
  uint64_t directories;
  // Bytes of data written by the first copy.
  uint64_t bytes_copied;
  // Bytes written again because they had changed meanwhile.
  uint64_t bytes_recopied;
  // The instant that the backup shows, in nanoseconds since 1970 (UTC).
  uint64_t cut_unix_ns;
  // How long calls of the program had to wait around it, in nanoseconds.
  uint64_t freeze_ns;
  // How many attempts the cut took.
  uint64_t cut_attempts;
  // Files that had to be copied again because something that the library does not see had changed them.
  uint64_t unseen_files;
  // How many warnings on_warning was told.
  uint64_t warnings;
  // How long the phases took, in milliseconds.
  uint64_t prepare_ms;
  // See prepare_ms.
  uint64_t copy_ms;
  // See prepare_ms.
  uint64_t converge_ms;
  // See prepare_ms.
  uint64_t cut_ms;
  // See prepare_ms.
  uint64_t audit_ms;
  // See prepare_ms.
  uint64_t publish_ms;
  // Calls of the program on files and names anywhere, in the sources or not, that the session has captured; requests to
  // io_submit, io_uring and the like are not counted.
  uint64_t captured_calls;
} hotbackup_report;

// What hotbackup_verify tells about one difference: the path below the backup, and one sentence. Both strings die
// when it returns.
typedef void (*hotbackup_on_difference)(const char *path, const char *text, void *user_data);

// Is told how far the backup has come, from 0.0 to 1.0, and in words; anything but 0 aborts it and is what
// tokubackup_create_backup returns. The string dies when it returns.
typedef int (*tokubackup_poll)(float progress, const char *progress_string, void *extra);

// Is told an error: its number and a text. The string dies when it returns.
typedef void (*tokubackup_error)(int error_number, const char *error_string, void *extra);

// Anything but 0 leaves the file out. The string dies when it returns.
typedef int (*tokubackup_exclude)(const char *source_file, void *extra);

// Is called around the end of the capture.
typedef void (*tokubackup_stop)(void *extra);

// A string that never changes, as C sees it.
typedef const char *tokubackup_string;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library.
extern const tokubackup_string tokubackup_version_string;

// The version of the library, such as "0.1.0". The string lives for ever.
//
// A program that is to work with and without a preloaded library asks dlsym(RTLD_DEFAULT, "hotbackup_version").
const char *hotbackup_version(void);

// What went wrong in the last call on this thread that failed: one sentence that names the operation, the file and
// the reason; "" if none has failed yet. The string lives until the next failing call on this thread.
const char *hotbackup_last_error(void);

// The error number (errno.h) that says most nearly what went wrong in the last failing call on this thread.
int hotbackup_last_errno(void);

// Fills `options` with the defaults; `size` is sizeof(hotbackup_options) as the caller knows it.
//
// Errors: HOTBACKUP_STATUS_INVALID_ARGUMENT if `options` is NULL or `size` is too small to hold `size` itself.
hotbackup_status hotbackup_options_init(hotbackup_options *options,
                                        size_t size);

// Has calls of the running program reach the library, if it was loaded with dlopen: no restart, no preload. Every place
// through which a loaded object calls a hooked function is made to lead here, or none is. `attachment` may be NULL; else
// its `size` is set. Where calls reach the library already, because it was preloaded, linked or attached, nothing is changed.
//
// The program goes on meanwhile. Objects that it loads later are taken care of by every session. The library stays
// loaded for good.
//
// Call it from any thread, but not from a constructor of a library that is just being loaded.
//
// Errors: HOTBACKUP_STATUS_HOOK_NOT_LIVE with the object and the function in the text, if some call cannot be led here.
// Everything is as it was before then.
hotbackup_status hotbackup_attach(hotbackup_attachment *attachment);

// Undoes hotbackup_attach: calls of the program go straight to the C library again. hotbackup_attach can follow again.
// Where calls reach the library in another way nothing is changed.
//
// From any thread.
//
// Errors: HOTBACKUP_STATUS_BUSY while a session runs; HOTBACKUP_STATUS_HOOK_NOT_LIVE if a place could not be changed, and
// then calls may still reach the library, which does no harm.
hotbackup_status hotbackup_detach(void);

// Examines the running process, and says what a backup of it could promise: which hooks are live, which loaded objects bypass them,
// which rings, mappings and streams there are, which other processes are on the files of the `count` directories `sources`, and what
// the kernel refuses. Each finding comes to `on_finding` on the calling thread, with what it means for a backup, when all are known.
//
// It changes nothing, and can be called at any time, with a session or without, from any thread, but not from a constructor of a
// library that is just being loaded. What it says holds for that moment. `count` may be 0: then nothing is said of files.
//
// Errors: HOTBACKUP_STATUS_NOT_A_DIRECTORY or HOTBACKUP_STATUS_IO if a source is none or something in it cannot be listed; then
// nothing is told.
hotbackup_status hotbackup_doctor(const char *const *sources,
                                  size_t count,
                                  hotbackup_on_finding on_finding,
                                  void *user_data);

// Makes one backup and returns when it is complete and on disk, or has failed: hotbackup_start, hotbackup_finish and
// hotbackup_free in one call. `report` may be NULL; else its `size` is set.
//
// Callbacks come on the calling thread. Other threads can follow and steer the session by giving NULL for it.
//
// Errors: whatever stood in the way. The program and its files are as if nothing had been; the destination is
// untouched if the arguments were at fault, and marked as incomplete otherwise.
hotbackup_status hotbackup_backup(const hotbackup_options *options,
                                  hotbackup_report *report);

// Begins a session: when this returns, changes are captured, and nothing is copied yet. `*session` is set only on
// success; the caller then owes one hotbackup_free. The options and what they point to may go once this has returned,
// apart from `user_data`.
//
// Errors: HOTBACKUP_STATUS_BUSY while another session runs; what is wrong with the arguments;
// HOTBACKUP_STATUS_HOOK_NOT_LIVE if the library is not in force. No file was changed then.
hotbackup_status hotbackup_start(const hotbackup_options *options,
                                 hotbackup_session **session);

// Copies, converges, cuts and publishes; returns when the backup is complete and on disk, or has failed. `report` may
// be NULL; else its `size` is set. The session stays to be asked until hotbackup_free.
//
// Call it once, from any thread; the callbacks come on that thread.
//
// Errors: whatever stood in the way; HOTBACKUP_STATUS_FINISHED on a second call. The program goes on as if nothing
// had been; the destination is marked as incomplete.
hotbackup_status hotbackup_finish(hotbackup_session *session,
                                  hotbackup_report *report);

// Says how far `session` has come, or, if it is NULL, the session that runs in this process. `progress->size` is set
// by the caller; `progress->file` is always NULL here, because the string would have no owner.
//
// From any thread, between hotbackup_start and hotbackup_free.
//
// Errors: HOTBACKUP_STATUS_INVALID_ARGUMENT if `progress` is NULL or no session runs.
hotbackup_status hotbackup_progress_now(const hotbackup_session *session,
                                        hotbackup_progress *progress);

// Bounds what the first copy writes, in bytes per second, at once: HOTBACKUP_UNLIMITED, or 0 to pause the copying
// while capture goes on. NULL is the session that runs in this process.
//
// From any thread, between hotbackup_start and hotbackup_free.
//
// Errors: HOTBACKUP_STATUS_INVALID_ARGUMENT if no session runs.
hotbackup_status hotbackup_throttle(const hotbackup_session *session,
                                    uint64_t bytes_per_second);

// Ends the session soon: hotbackup_finish then returns HOTBACKUP_STATUS_CANCELLED. NULL is the session that runs in
// this process.
//
// From any thread, between hotbackup_start and hotbackup_free.
//
// Errors: HOTBACKUP_STATUS_INVALID_ARGUMENT if no session runs.
hotbackup_status hotbackup_cancel(const hotbackup_session *session);

// Waits until the session has ended, that is until hotbackup_finish is about to return on its thread. `*complete`,
// unless `complete` is NULL, becomes 1 if the backup is complete and 0 if not. NULL is the session that runs in this
// process.
//
// From any thread but the one that finishes the session, between hotbackup_start and hotbackup_free.
//
// Errors: HOTBACKUP_STATUS_INVALID_ARGUMENT if no session runs.
hotbackup_status hotbackup_wait(const hotbackup_session *session,
                                int *complete);

// Frees a session; NULL is nothing to do. One that was not finished is cancelled, and this returns when its threads
// have ended. No other function may be using the session, or use it afterwards.
void hotbackup_free(hotbackup_session *session);

// Reads the backup at `directory` again and compares it with the manifest in it. Every difference is told to
// `on_difference`, which may be NULL, on the calling thread, and counted in `*differences`, which may be NULL.
//
// Errors: HOTBACKUP_STATUS_DIFFERENT if there are differences; HOTBACKUP_STATUS_NOT_A_BACKUP and
// HOTBACKUP_STATUS_BAD_MANIFEST if there is nothing to compare.
hotbackup_status hotbackup_verify(const char *directory,
                                  hotbackup_on_difference on_difference,
                                  void *user_data,
                                  uint64_t *differences);

// The same for a backup whose manifest lies elsewhere: `directories` are its destinations in the order of its pairs,
// or, if `count` is 0, those that the manifest names.
hotbackup_status hotbackup_verify_with(const char *manifest,
                                       const char *const *directories,
                                       size_t count,
                                       hotbackup_on_difference on_difference,
                                       void *user_data,
                                       uint64_t *differences);

// Bounds the copying of the running backup and of those to come, in bytes per second; 0 stops the copying while
// capture goes on, ULONG_MAX is unlimited. From any thread, at any time.
void tokubackup_throttle_backup(unsigned long bytes_per_second);

// Backs up `dir_count` directories, all as of one instant, and returns when it is done: 0, an error number
// (errno.h), or what `poll` returned if that was not 0. An error is told once through `error`.
//
// All callbacks come on the calling thread, and may block while capture goes on. `poll` is called first with 0 and
// "Preparing backup" before anything is checked, then when capture is on and nothing is copied yet, then as the
// copying goes on. `before_stop_capture` comes when the copying is done and capture is still on,
// `after_stop_capture` right after it ended. The callbacks may be NULL. These two come a second time if a change that
// nobody saw was found behind the cut, so that it has to be repeated; the original called them once, whatever happened.
int tokubackup_create_backup(const char **source_dirs,
                             const char **dest_dirs,
                             int dir_count,
                             tokubackup_poll poll,
                             void *poll_extra,
                             tokubackup_error error,
                             void *error_extra,
                             tokubackup_exclude exclude_copy,
                             void *exclude_extra,
                             tokubackup_stop before_stop_capture,
                             void *before_extra,
                             tokubackup_stop after_stop_capture,
                             void *after_extra);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HOTBACKUP_H */
