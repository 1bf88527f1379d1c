//! The types of `hotbackup.h`, without what they need of the engine: a program that finds the library at run time has them
//! from here too.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

/// No bound on the rate of the copying.
pub const HOTBACKUP_UNLIMITED: u64 = u64::MAX;
/// What the library finds best, for `max_lag` and `keep_free`.
pub const HOTBACKUP_AUTOMATIC: u64 = u64::MAX;

/// For `manifest_place`: at the root of the first destination, as hotbackup-manifest.json.
pub const HOTBACKUP_MANIFEST_IN_FIRST_DESTINATION: u32 = 0;
/// For `manifest_place`: in the file `manifest`, which must not exist.
pub const HOTBACKUP_MANIFEST_IN_FILE: u32 = 1;
/// For `manifest_place`: nowhere. The backup can then not be verified.
pub const HOTBACKUP_MANIFEST_NONE: u32 = 2;

/// For `on_unseen_change`: a file that is changed by something that is not captured is copied again until it has kept still while
/// it was read. If it never does, the backup fails and names it.
pub const HOTBACKUP_UNSEEN_RETRY: u32 = 0;
/// For `on_unseen_change`: the first such change that is found fails the backup, which names the file.
pub const HOTBACKUP_UNSEEN_FAIL: u32 = 1;
/// For `on_unseen_change`: as with HOTBACKUP_UNSEEN_RETRY, but a file that never keeps still does not fail the backup: on_warning and
/// the manifest name it. Its copy may mix what it held at different moments.
pub const HOTBACKUP_UNSEEN_WARN: u32 = 2;

/// What came of a call. The numbers are never reused; later versions may add more. `hotbackup_last_error` says in
/// words what went wrong, `hotbackup_last_errno` with an error number of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs, reason = "each line of the header says it")]
pub enum Status {
    /// It worked.
    Ok = 0,
    /// A NULL where none may be, an options struct that makes no sense, an expression that is not valid, no source.
    InvalidArgument = 1,
    /// A system call on a file failed; the text names the call and the file.
    Io = 2,
    /// Another session runs in this process; it goes on untouched.
    Busy = 3,
    /// A source or a destination is not a directory.
    NotADirectory = 4,
    /// A destination holds something.
    NotEmpty = 5,
    /// A destination holds a backup that did not complete.
    IncompleteBackup = 6,
    /// Sources and destinations lie inside each other, are the same, or were given twice.
    Overlap = 7,
    /// A source holds a name that the backup needs for itself.
    ReservedName = 8,
    /// The backup does not fit and leave the reserve free.
    NoSpace = 9,
    /// A callback or hotbackup_cancel ended the session.
    Cancelled = 10,
    /// A call of the program would have had to wait longer than max_stall_ms.
    Stalled = 11,
    /// The cut did not come about.
    NoCut = 12,
    /// A call that had begun before the session did not end.
    NotArmed = 13,
    /// The library is not in force for some loaded object, which the text names. If it names the program: preload the
    /// library or link with it.
    HookNotLive = 14,
    /// A file kept being changed by something that cannot be captured.
    Unseen = 15,
    /// The directory does not hold a complete backup.
    NotABackup = 16,
    /// The manifest is unusable.
    BadManifest = 17,
    /// hotbackup_verify found differences.
    Different = 18,
    /// The session has been finished already.
    Finished = 19,
    /// A defect in hotbackup. The program goes on.
    Defect = 20,
    /// Asynchronous writes of the program could not be followed, as the text says.
    AsyncWrites = 21,
}

/// How calls of the program reach the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Way {
    /// They do not.
    None = 0,
    /// The library was preloaded.
    Preloaded = 1,
    /// The program was linked with the library.
    Linked = 2,
    /// hotbackup_attach has led them here.
    Attached = 3,
}

/// What hotbackup_attach has found. Set `size` before the call.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Attachment {
    /// sizeof(hotbackup_attachment).
    pub size: usize,
    /// How calls of the program reach the library now.
    pub way: Way,
    /// Loaded objects with places that lead here; like the following, only counted if this is by hotbackup_attach.
    pub objects: u32,
    /// Slots of their relocation tables that lead here.
    pub slots: u64,
    /// Addresses of functions that the program has stored in its objects' data, and that lead here.
    pub pointers: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
}

/// What a finding of hotbackup_doctor is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Kind {
    /// How calls of the program are captured.
    Hooks = 0,
    /// A loaded object, or the program itself, whose calls are not.
    Object = 1,
    /// Instructions in a loaded object's text that look like system calls of its own.
    RawCalls = 2,
    /// A ring in which the kernel tells of asynchronous requests: of io_uring, or of native AIO.
    Ring = 3,
    /// A file of the sources that this process has mapped shared and writable.
    Mapping = 4,
    /// A file of the sources that this process writes through a stream (FILE).
    Stream = 5,
    /// A file of the sources that another process has open for writing, or mapped shared and writable.
    Process = 6,
    /// Something that the kernel offers or refuses.
    System = 7,
}

/// What a finding of hotbackup_doctor means for a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Verdict {
    /// It is captured, or as it should be.
    Captured = 0,
    /// The backup is right; its reader should know this.
    Note = 1,
    /// Changes are found and copied again; one that never comes to rest fails the backup, which names the file.
    CopiedAgain = 2,
    /// A backup is refused, or fails and says why.
    Refuses = 3,
    /// Whether changes go by cannot be told.
    Untold = 4,
}

/// One thing that hotbackup_doctor has found. Later versions may have further kinds, verdicts and fields.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Finding {
    /// sizeof(hotbackup_finding), as the library knows it.
    pub size: usize,
    /// What it is about.
    pub kind: Kind,
    /// What it means for a backup.
    pub verdict: Verdict,
    /// The file, object or facility.
    pub subject: *const c_char,
    /// What was found and what that means, to go behind the subject.
    pub text: *const c_char,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Phase {
    /// The arguments are being checked and capture is being armed.
    Prepare = 0,
    /// The files are being copied for the first time.
    Copy = 1,
    /// What changed meanwhile is being copied until little is left.
    Converge = 2,
    /// The instant that the backup shows.
    Cut = 3,
    /// Changes that nobody saw are being looked for.
    Audit = 4,
    /// Names, owners, times are set, everything is synced, the mark is removed.
    Publish = 5,
    /// The session has ended.
    Done = 6,
}

/// A look at a running session.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Progress {
    /// sizeof(hotbackup_progress), as whoever made the struct knows it.
    pub size: usize,
    /// Where the session stands.
    pub phase: Phase,
    /// The part that is done, from 0.0 to 1.0; it never goes down and is 1.0 only at the end.
    pub fraction: f32,
    /// Bytes that the copying has dealt with, holes included.
    pub bytes_done: u64,
    /// Bytes known of so far; grows while the sources are being walked.
    pub bytes_total: u64,
    /// Files copied for the first time.
    pub files_done: u64,
    /// Files known of so far.
    pub files_total: u64,
    /// Bytes copied again because the program changed them meanwhile.
    pub bytes_recopied: u64,
    /// Bytes of files already copied that the destination does not have yet, and 256 KiB or more for each file found since.
    pub lag: u64,
    /// Bytes per second over the last second.
    pub rate: u64,
    /// An estimate of the milliseconds that are left; UINT64_MAX while there is no ground for one.
    pub eta_ms: u64,
    /// How long the session has run, in milliseconds.
    pub elapsed_ms: u64,
    /// The file that was begun last, or NULL. The string dies when the callback returns.
    pub file: *const c_char,
}

/// What a complete backup holds and what it took. Set `size` before the call.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Report {
    /// sizeof(hotbackup_report).
    pub size: usize,
    /// Regular files in the backup, each inode counted once.
    pub files: u64,
    /// Directories, the roots included.
    pub directories: u64,
    /// Bytes of data written by the first copy.
    pub bytes_copied: u64,
    /// Bytes written again because they had changed meanwhile.
    pub bytes_recopied: u64,
    /// The instant that the backup shows, in nanoseconds since 1970 (UTC).
    pub cut_unix_ns: u64,
    /// How long calls of the program had to wait around it, in nanoseconds.
    pub freeze_ns: u64,
    /// How many attempts the cut took.
    pub cut_attempts: u64,
    /// Files that had to be copied again because something that the library does not see had changed them.
    pub unseen_files: u64,
    /// How many warnings on_warning was told.
    pub warnings: u64,
    /// How long the phases took, in milliseconds.
    pub prepare_ms: u64,
    /// See prepare_ms.
    pub copy_ms: u64,
    /// See prepare_ms.
    pub converge_ms: u64,
    /// See prepare_ms.
    pub cut_ms: u64,
    /// See prepare_ms.
    pub audit_ms: u64,
    /// See prepare_ms.
    pub publish_ms: u64,
    /// Calls of the program on files and names anywhere, in the sources or not, that the session has captured; requests to
    /// io_submit, io_uring and the like are not counted.
    pub captured_calls: u64,
}

/// A source directory and the directory that receives its copy, which must exist and be empty.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Pair {
    /// The directory tree to back up.
    pub source: *const c_char,
    /// Where its copy goes.
    pub destination: *const c_char,
}

/// Is told how far the session has come; anything but 0 cancels it. `progress` and what it points to die when it
/// returns.
pub type OnProgress =
    Option<unsafe extern "C-unwind" fn(progress: *const Progress, user_data: *mut c_void) -> c_int>;
/// Anything but 0 leaves the entry at this full source path out. The string dies when it returns.
pub type ExcludeIf =
    Option<unsafe extern "C-unwind" fn(path: *const c_char, user_data: *mut c_void) -> c_int>;
/// Is told one thing that hotbackup_doctor has found. `finding` and what it points to die when it returns.
pub type OnFinding = Option<unsafe extern "C-unwind" fn(finding: *const Finding, user_data: *mut c_void)>;
/// Is called around the cut.
pub type AtCut = Option<unsafe extern "C-unwind" fn(user_data: *mut c_void)>;
/// Is told what the reader of a report should know though the backup is right. The string dies when it returns.
pub type OnWarning = Option<unsafe extern "C-unwind" fn(text: *const c_char, user_data: *mut c_void)>;

/// What is wanted. Always fill it with hotbackup_options_init first, so that fields which later versions add have their
/// defaults.
///
/// Callbacks may be NULL. They come on the thread that calls hotbackup_backup, or hotbackup_start and
/// hotbackup_finish, while threads of the library work on. They may block for long, and what the program writes inside
/// one is captured like anything else. A callback has to return: no exception, no longjmp; a cancellation of its thread
/// waits until the library has returned.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Options {
    /// sizeof(hotbackup_options); hotbackup_options_init sets it.
    pub size: usize,
    /// The sources and their destinations; all show the same instant.
    pub pairs: *const Pair,
    /// How many there are.
    pub pair_count: usize,
    /// Regular expressions (UTF-8) on the path below its source, which begins with a slash: what matches is left out, a
    /// directory with all that is in it.
    pub exclude: *const *const c_char,
    /// How many there are.
    pub exclude_count: usize,
    /// Is asked about what no expression matches.
    pub exclude_if: ExcludeIf,
    /// Bytes per second that the first copy writes at most; 0 pauses. HOTBACKUP_UNLIMITED by default.
    pub throttle: u64,
    /// The most bytes that files already copied may owe the destination: over it, calls of the program wait. 0 makes
    /// every write of a copied file wait until it is on the backup file. HOTBACKUP_AUTOMATIC by default.
    pub max_lag: u64,
    /// The longest that any call of the program may be made to wait, in milliseconds. 1000 by default.
    pub max_stall_ms: u64,
    /// Bytes of the destination's filesystem that stay free. HOTBACKUP_AUTOMATIC by default: 5 %, and at least 1 GiB.
    pub keep_free: u64,
    /// How many threads copy, from 1 to 64. 2 by default.
    pub threads: u32,
    /// 1 lets source and destination share blocks where the filesystem can. Afterwards overwriting existing blocks of
    /// the source can fail on a full filesystem. 0 by default.
    pub share_blocks: u32,
    /// HOTBACKUP_MANIFEST_IN_FIRST_DESTINATION by default, HOTBACKUP_MANIFEST_IN_FILE, or HOTBACKUP_MANIFEST_NONE.
    pub manifest_place: u32,
    /// 0.
    pub reserved: u32,
    /// The manifest for HOTBACKUP_MANIFEST_IN_FILE, NULL otherwise.
    pub manifest: *const c_char,
    /// First called before anything is checked, then when changes are captured and nothing is copied yet (the copying
    /// begins when that call has returned), then at least every 100 ms while work goes on.
    pub on_progress: OnProgress,
    /// Is called before the cut: the place to take locks or to quiesce. Once; again only if a change that nobody saw
    /// was found behind the cut, so that it has to be repeated.
    pub before_cut: AtCut,
    /// Is called just after the cut, or when there will be none, once for each call of before_cut: the place to give
    /// back what that took.
    pub after_cut: AtCut,
    /// Is called for each warning when the backup is complete.
    pub on_warning: OnWarning,
    /// What the callbacks are given.
    pub user_data: *mut c_void,
    /// HOTBACKUP_UNSEEN_RETRY by default, HOTBACKUP_UNSEEN_FAIL, or HOTBACKUP_UNSEEN_WARN.
    pub on_unseen_change: u32,
    /// 0.
    pub reserved_too: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            size: size_of::<Options>(),
            pairs: ptr::null(),
            pair_count: 0,
            exclude: ptr::null(),
            exclude_count: 0,
            exclude_if: None,
            throttle: HOTBACKUP_UNLIMITED,
            max_lag: HOTBACKUP_AUTOMATIC,
            max_stall_ms: 1000,
            keep_free: HOTBACKUP_AUTOMATIC,
            threads: 2,
            share_blocks: 0,
            manifest_place: HOTBACKUP_MANIFEST_IN_FIRST_DESTINATION,
            reserved: 0,
            manifest: ptr::null(),
            on_progress: None,
            before_cut: None,
            after_cut: None,
            on_warning: None,
            user_data: ptr::null_mut(),
            on_unseen_change: HOTBACKUP_UNSEEN_RETRY,
            reserved_too: 0,
        }
    }
}
