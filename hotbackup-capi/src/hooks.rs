//! Every libc function that we replace: one row a call, with all its spellings, its prototype, and what it changes.
//!
//! A hook says what its call may change and makes the real call through `intercept`; it never touches the arguments
//! otherwise, so bad ones fail (or crash) as they would without us. A call that changes nothing goes straight through.
//! What is left out on purpose stands in `left_out.txt` with its reason; a test holds the table against the C library.
//!
//! `by SYS_x` says that the system call takes the same arguments, so that `syscall` by that number means the same. A row
//! without a name is a system call that the C library has no function for, or one with other arguments.
//!
//! `open` and `ioctl` are variadic in C. Their fixed definitions here pass the third argument on whether it was given or not,
//! which is right where variadic integers travel in registers (x86-64 and aarch64 Linux).

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};

use hotbackup::intercept::{At, Change, Entry, ErrorNumber};
use libc::{dev_t, gid_t, iovec, mode_t, off64_t, size_t, ssize_t, timespec, timeval, uid_t, utimbuf};

use crate::asynchronous::{
    Asks, ByNumber, Destroys, Enters, Leaves, MakesRing, Prepared, PreparedAndWaits, Queues, QueuesList,
    Reaps, Registers, SetsUp, Submits, Suspends,
};
use crate::control::Control;
use crate::meaning::{self, Ends, EndsMany, Maps, Meaning, Moves, Register, Unmaps};
use crate::real::{Real, Unavailable, get_errno, set_errno};
use crate::streams::{self, Closes, Reopens, Stream};

/// One replaced function.
pub(crate) struct Hook {
    pub(crate) name: &'static CStr,
    pub(crate) ours: unsafe extern "C-unwind" fn(),
    pub(crate) real: &'static Real,
}

/// Defines every hook and lists it in [`TABLE`], and what a call by number means.
macro_rules! hooks {
    ($(
        [$($name:ident)|*] $args:tt -> $result:ty => $meaning:expr
            $(, by $($number:ident)|+)? $(, or $syscall:ident $($negated:ident)?)?;
    )*) => {
        $( hooks!(@each [$($name)*] $args $result, $meaning, [$($syscall $($negated)?)?]); )*

        /// Every replaced function.
        pub(crate) static TABLE: &[Hook] = &[
            $( $( Hook {
                name: c_name(concat!(stringify!($name), "\0")),
                ours: $name::OURS,
                real: &$name::REAL,
            }, )* )*
        ];

        /// Whether the table says what the system call of this number changes.
        pub(crate) fn has_number(number: c_long) -> bool {
            [$( $( $(crate::numbers::$number,)+ )? )*].contains(&number)
        }

        /// Makes the system call `real`, of which the table says what it means.
        #[inline(always)]
        pub(crate) fn pass_by_number(
            number: c_long,
            registers: [usize; 6],
            real: impl FnOnce() -> c_long,
        ) -> c_long {
            match number {
                $( $( $(crate::numbers::$number)|+ => by_number!(registers, $args, $meaning, real), )? )*
                _ => real(),
            }
        }
    };
    (@each [$($name:ident)*] $args:tt $result:ty, $meaning:expr, $syscall:tt) => {
        $( hook!($name $args $result, $meaning, $syscall); )*
    };
}

/// The meaning of a system call, whose arguments come in registers.
macro_rules! by_number {
    ($registers:ident, ($($arg:ident: $type:ty),*), $meaning:expr, $real:ident) => {{
        let mut registers = $registers.into_iter();
        $(
            #[allow(unused_variables, reason = "most meanings need some of the arguments")]
            let $arg = <$type as Register>::read(registers.next().unwrap_or(0));
        )*
        Meaning::<c_long>::pass($meaning, $real)
    }};
}

/// Defines one hook in a module of its own name.
macro_rules! hook {
    ($name:ident ($($arg:ident: $type:ty),*) $result:ty, $meaning:expr, $syscall:tt) => {
        mod $name {
            use super::*;

            type Call = unsafe extern "C-unwind" fn($($type),*) -> $result;

            pub(super) static REAL: Real = Real::new(
                c_name(concat!(stringify!($name), "\0")),
                // SAFETY: whoever calls them turns them back into their own type.
                unsafe { std::mem::transmute::<Call, unsafe extern "C-unwind" fn()>(unknown) },
                // SAFETY: as above.
                unsafe { std::mem::transmute::<Call, unsafe extern "C-unwind" fn()>(missing) },
            );

            pub(super) const OURS: unsafe extern "C-unwind" fn() =
                // SAFETY: it is only compared, never called.
                unsafe { std::mem::transmute::<Call, unsafe extern "C-unwind" fn()>($name) };

            #[allow(unused_variables, reason = "most functions have no system call to fall back on")]
            unsafe extern "C-unwind" fn missing($($arg: $type),*) -> $result {
                missing!($syscall $result, $($arg),*)
            }

            #[cold]
            unsafe extern "C-unwind" fn unknown($($arg: $type),*) -> $result {
                // SAFETY: the address is the C library's function of this name, or `missing`: both have this type.
                let real = unsafe { std::mem::transmute::<*mut c_void, Call>(REAL.look_up()) };
                // SAFETY: the caller keeps the function's contract; its arguments are passed on as they are.
                unsafe { real($($arg),*) }
            }

            #[cfg_attr(not(test), unsafe(no_mangle))]
            unsafe extern "C-unwind" fn $name($($arg: $type),*) -> $result {
                // SAFETY: the address is the C library's function of this name, or one of the stand-ins above: all have this type.
                let real = unsafe { std::mem::transmute::<*mut c_void, Call>(REAL.address()) };
                // SAFETY: the caller keeps the function's contract; its arguments are passed on as they are.
                Meaning::pass($meaning, move || unsafe { real($($arg),*) })
            }
        }
    };
}

/// The body of a stand-in: the system call if the row names one, else `ENOSYS`. Functions of libaio return a negated error
/// number and leave errno alone.
macro_rules! missing {
    ([] $result:ty, $($arg:ident),*) => {
        <$result as Unavailable>::unavailable()
    };
    ([$syscall:ident negated] $result:ty, $($arg:ident),*) => {{
        let errno = get_errno();
        // SAFETY: the system call takes the function's arguments, which the kernel checks.
        let mut result = unsafe { libc::syscall(libc::$syscall, $($arg),*) };
        if result == -1 {
            result = -i64::from(get_errno());
            set_errno(errno);
        }
        result as $result
    }};
    ([$syscall:ident] $result:ty, $($arg:ident),*) => {{
        // SAFETY: the system call takes the function's arguments, which the kernel checks.
        let result = unsafe { libc::syscall(libc::$syscall, $($arg),*) };
        result as $result
    }};
}

hooks! {
    // Opening: only what creates or empties a file changes anything.
    [open | open64 | __open | __open64](path: *const c_char, flags: c_int, mode: mode_t) -> c_int
        => meaning::opening(At::cwd(path), flags), by SYS_open;
    [__open_2 | __open64_2](path: *const c_char, flags: c_int) -> c_int
        => meaning::opening(At::cwd(path), flags);
    [openat | openat64](dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int
        => meaning::opening(At::new(dir, path), flags), by SYS_openat;
    [__openat_2 | __openat64_2](dir: c_int, path: *const c_char, flags: c_int) -> c_int
        => meaning::opening(At::new(dir, path), flags);
    [creat | creat64](path: *const c_char, mode: mode_t) -> c_int
        => Change::Open { file: At::cwd(path), flags: libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC }, by SYS_creat;
    [open_by_handle_at](mount: c_int, handle: *mut c_void, flags: c_int) -> c_int
        => meaning::opening_by_handle(mount, flags), by SYS_open_by_handle_at;

    [](dir: c_int, path: *const c_char, how: *const u64, len: size_t) -> c_long
        => meaning::opening_how(dir, path, how), by SYS_openat2;

    // Descriptors that end or come to stand for another file.
    [close | __close](fd: c_int) -> c_int => Ends(fd), by SYS_close;
    [dup2 | __dup2](old: c_int, new: c_int) -> c_int => Ends(new), by SYS_dup2;
    [dup3](old: c_int, new: c_int, flags: c_int) -> c_int => Ends(new), by SYS_dup3;
    [close_range](first: c_uint, last: c_uint, flags: c_int) -> c_int
        => EndsMany, by SYS_close_range, or SYS_close_range;
    [closefrom](first: c_int) -> () => EndsMany;
    [lseek | lseek64 | __lseek](fd: c_int, offset: off64_t, whence: c_int) -> off64_t
        => Moves(fd), by SYS_lseek, or SYS_lseek;

    // Bytes.
    [write | __write](fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t => Change::Write { fd }, by SYS_write;
    [writev](fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t => Change::Write { fd }, by SYS_writev;
    [pwrite | pwrite64 | __pwrite64](fd: c_int, bytes: *const c_void, len: size_t, at: off64_t) -> ssize_t
        => Change::WriteAt { fd, at }, by SYS_pwrite64;
    [pwritev | pwritev64](fd: c_int, pieces: *const iovec, count: c_int, at: off64_t) -> ssize_t
        => Change::WriteAt { fd, at }, by SYS_pwritev;
    [pwritev2 | pwritev64v2](fd: c_int, pieces: *const iovec, count: c_int, at: off64_t, flags: c_int) -> ssize_t
        => meaning::writing(fd, at, flags);
    [](fd: c_int, pieces: *const iovec, count: c_int, at: off64_t, high: usize, flags: c_int) -> c_long
        => meaning::writing(fd, at, flags), by SYS_pwritev2;
    [copy_file_range](from: c_int, from_at: *mut off64_t, fd: c_int, at: *mut off64_t, len: size_t, flags: c_uint)
        -> ssize_t => meaning::writing_at_pointer(fd, at), by SYS_copy_file_range, or SYS_copy_file_range;
    // The kernel takes no input from which it would have to wait (splice_direct_to_actor refuses what cannot seek).
    [sendfile | sendfile64](fd: c_int, from: c_int, at: *mut off64_t, len: size_t) -> ssize_t
        => Change::Write { fd }, by SYS_sendfile;
    [splice](from: c_int, from_at: *mut off64_t, fd: c_int, at: *mut off64_t, len: size_t, flags: c_uint) -> ssize_t
        => meaning::Splice { from, from_at, fd, at, len, flags }, by SYS_splice;

    // Streams: what they write leaves inside the C library, so the engine looks for those that are open.
    [fopen | fopen64 | _IO_fopen](path: *const c_char, mode: *const c_char) -> Stream
        => streams::opening(path, mode);
    [freopen | freopen64](path: *const c_char, mode: *const c_char, stream: Stream) -> Stream
        => Reopens { path, mode, stream };
    [fclose | _IO_fclose](stream: Stream) -> c_int => Closes(stream);

    // Writes that go on behind the call: through libaio,
    [io_submit](ring: *mut c_void, count: c_long, requests: *mut *mut c_void) -> c_int
        => Submits { ring: ring as usize, count: count as usize, requests: requests as usize }, or SYS_io_submit negated;
    [io_getevents](ring: *mut c_void, least: c_long, most: c_long, events: *mut c_void, timeout: *mut timespec) -> c_int
        => Reaps { ring: ring as usize, events: events as usize }, or SYS_io_getevents negated;
    [io_pgetevents](ring: *mut c_void, least: c_long, most: c_long, events: *mut c_void, timeout: *mut timespec,
        signals: *mut c_void) -> c_int
        => Reaps { ring: ring as usize, events: events as usize };
    [io_destroy](ring: *mut c_void) -> c_int => Destroys { ring: ring as usize }, or SYS_io_destroy negated;
    // through the C library's own threads,
    [aio_write | aio_write64](request: *mut c_void) -> c_int => Queues { request: request as usize };
    [lio_listio | lio_listio64](mode: c_int, requests: *const *mut c_void, count: c_int, event: *mut c_void) -> c_int
        => QueuesList { requests: requests as usize, count };
    [aio_error | aio_error64](request: *const c_void) -> c_int
        => Asks { request: request as usize, for_good: false };
    [aio_return | aio_return64](request: *mut c_void) -> ssize_t
        => Asks { request: request as usize, for_good: true };
    [aio_suspend | aio_suspend64](requests: *const *const c_void, count: c_int, timeout: *const timespec) -> c_int
        => Suspends { requests: requests as usize, count };
    // through liburing,
    [io_uring_submit | io_uring_submit_and_get_events](ring: *mut c_void) -> c_int
        => Prepared { handle: ring as usize };
    [io_uring_submit_and_wait](ring: *mut c_void, least: c_uint) -> c_int
        => PreparedAndWaits { handle: ring, least };
    [io_uring_submit_and_wait_timeout](ring: *mut c_void, end: *mut *mut c_void, least: c_uint, timeout: *mut c_void,
        signals: *mut c_void) -> c_int => Prepared { handle: ring as usize };
    [io_uring_submit_and_wait_min_timeout](ring: *mut c_void, end: *mut *mut c_void, least: c_uint,
        timeout: *mut c_void, least_wait: c_uint, signals: *mut c_void) -> c_int => Prepared { handle: ring as usize };
    [io_uring_submit_and_wait_reg](ring: *mut c_void, end: *mut *mut c_void, least: c_uint, index: c_int) -> c_int
        => Prepared { handle: ring as usize };
    [io_uring_queue_init](entries: c_uint, ring: *mut c_void, flags: c_uint) -> c_int => MakesRing;
    [io_uring_queue_init_params | io_uring_queue_init_try_nosqarr](entries: c_uint, ring: *mut c_void,
        parameters: *mut c_void) -> c_int => MakesRing;
    [io_uring_queue_init_mem](entries: c_uint, ring: *mut c_void, parameters: *mut c_void, memory: *mut c_void,
        size: size_t) -> c_int => MakesRing;
    [io_uring_get_probe]() -> *mut c_char => MakesRing;
    [io_uring_queue_exit](ring: *mut c_void) -> () => Leaves { handle: ring as usize };
    [io_uring_setup](entries: c_uint, parameters: *mut c_void) -> c_int => SetsUp { parameters };
    [io_uring_enter](ring: c_int, to_submit: c_uint, least: c_uint, flags: c_uint, signals: *mut c_void) -> c_int
        => Enters(Entry { fd: ring, to_submit, least, flags, argument: signals as usize, size: KERNEL_SIGNALS });
    [io_uring_enter2](ring: c_int, to_submit: c_uint, least: c_uint, flags: c_uint, argument: *mut c_void,
        size: size_t) -> c_int => Enters(Entry { fd: ring, to_submit, least, flags, argument: argument as usize, size });
    [io_uring_register](ring: c_int, what: c_uint, argument: *const c_void, count: c_uint) -> c_int => Registers;
    [io_uring_register_files](ring: *mut c_void, files: *const c_int, count: c_uint) -> c_int => Registers;
    [io_uring_register_files_tags](ring: *mut c_void, files: *const c_int, tags: *const c_void, count: c_uint) -> c_int
        => Registers;
    [io_uring_register_files_update](ring: *mut c_void, at: c_uint, files: *const c_int, count: c_uint) -> c_int
        => Registers;
    [io_uring_register_files_update_tag](ring: *mut c_void, at: c_uint, files: *const c_int, tags: *const c_void,
        count: c_uint) -> c_int => Registers;
    [io_uring_unregister_files](ring: *mut c_void) -> c_int => Registers;
    // and by number.
    [syscall](number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long
        => ByNumber { number, registers: [a, b, c, d, e, f] };

    // Bytes, flags and names by what each filesystem has of its own. The function is variadic, as `open` is.
    [ioctl](fd: c_int, request: c_ulong, argument: usize) -> c_int
        => Control { fd, request, argument }, by SYS_ioctl;

    // Mappings: stores to them are no calls, but that there is one has to be known before the first.
    [mmap | mmap64](place: *mut c_void, len: size_t, protection: c_int, flags: c_int, fd: c_int, at: off64_t)
        -> *mut c_void => Maps { len, flags, fd, at }, or SYS_mmap;
    // A ring of io_uring that is unmapped is seen for the last time.
    [munmap](place: usize, len: size_t) -> c_int => Unmaps { place, len }, by SYS_munmap, or SYS_munmap;

    // Sizes.
    [ftruncate | ftruncate64](fd: c_int, len: off64_t) -> c_int => Change::Resize { fd, len }, by SYS_ftruncate;
    [truncate | truncate64](path: *const c_char, len: off64_t) -> c_int
        => Change::ResizePath { file: At::cwd(path), len }, by SYS_truncate;
    [fallocate | fallocate64](fd: c_int, mode: c_int, at: off64_t, len: off64_t) -> c_int
        => Change::Allocate { fd, mode, at, len }, by SYS_fallocate;
    [posix_fallocate | posix_fallocate64](fd: c_int, at: off64_t, len: off64_t) -> ErrorNumber
        => Change::Allocate { fd, mode: 0, at, len };

    // Names that move or go.
    [rename](from: *const c_char, to: *const c_char) -> c_int
        => Change::Rename { from: At::cwd(from), to: At::cwd(to) }, by SYS_rename;
    [renameat](from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char) -> c_int
        => Change::Rename { from: At::new(from_dir, from), to: At::new(to_dir, to) }, by SYS_renameat;
    [renameat2](from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_uint) -> c_int
        => Change::Rename { from: At::new(from_dir, from), to: At::new(to_dir, to) }, by SYS_renameat2, or SYS_renameat2;
    [unlink | remove | rmdir](path: *const c_char) -> c_int => Change::Remove { name: At::cwd(path) }, by SYS_unlink | SYS_rmdir;
    [unlinkat](dir: c_int, path: *const c_char, flags: c_int) -> c_int
        => Change::Remove { name: At::new(dir, path) }, by SYS_unlinkat;

    // Names that come.
    [link](from: *const c_char, to: *const c_char) -> c_int
        => Change::Link { from: At::cwd(from), to: At::cwd(to), follow: false }, by SYS_link;
    [linkat](from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_int) -> c_int
        => Change::Link {
            from: At::new(from_dir, from),
            to: At::new(to_dir, to),
            follow: flags & libc::AT_SYMLINK_FOLLOW != 0,
        }, by SYS_linkat;
    [symlink](target: *const c_char, path: *const c_char) -> c_int => Change::Create { name: At::cwd(path) }, by SYS_symlink;
    [symlinkat](target: *const c_char, dir: c_int, path: *const c_char) -> c_int
        => Change::Create { name: At::new(dir, path) }, by SYS_symlinkat;
    [mkdir | mkfifo](path: *const c_char, mode: mode_t) -> c_int => Change::Create { name: At::cwd(path) }, by SYS_mkdir;
    [mkdirat | mkfifoat](dir: c_int, path: *const c_char, mode: mode_t) -> c_int
        => Change::Create { name: At::new(dir, path) }, by SYS_mkdirat;
    [mknod](path: *const c_char, mode: mode_t, device: dev_t) -> c_int
        => Change::Create { name: At::cwd(path) }, by SYS_mknod;
    [mknodat](dir: c_int, path: *const c_char, mode: mode_t, device: dev_t) -> c_int
        => Change::Create { name: At::new(dir, path) }, by SYS_mknodat, or SYS_mknodat;
    [__xmknod](version: c_int, path: *const c_char, mode: mode_t, device: *mut dev_t) -> c_int
        => Change::Create { name: At::cwd(path) };
    [__xmknodat](version: c_int, dir: c_int, path: *const c_char, mode: mode_t, device: *mut dev_t) -> c_int
        => Change::Create { name: At::new(dir, path) };
    [mkstemp | mkstemp64](template: *mut c_char) -> c_int => Change::Create { name: At::cwd(template) };
    [mkostemp | mkostemp64 | mkstemps | mkstemps64](template: *mut c_char, flags_or_suffix: c_int) -> c_int
        => Change::Create { name: At::cwd(template) };
    [mkostemps | mkostemps64](template: *mut c_char, suffix: c_int, flags: c_int) -> c_int
        => Change::Create { name: At::cwd(template) };
    [mkdtemp](template: *mut c_char) -> *mut c_char => Change::Create { name: At::cwd(template) };

    // Modes and owners.
    [chmod](path: *const c_char, mode: mode_t) -> c_int => meaning::attributes(At::cwd(path), true), by SYS_chmod;
    [lchmod](path: *const c_char, mode: mode_t) -> c_int => meaning::attributes(At::cwd(path), false);
    [fchmod](fd: c_int, mode: mode_t) -> c_int => Change::Attributes { fd }, by SYS_fchmod;
    [fchmodat](dir: c_int, path: *const c_char, mode: mode_t, flags: c_int) -> c_int
        => meaning::attributes_at(dir, path, flags), by SYS_fchmodat2;
    [](dir: c_int, path: *const c_char, mode: mode_t) -> c_long
        => meaning::attributes_at(dir, path, 0), by SYS_fchmodat;
    [chown](path: *const c_char, owner: uid_t, group: gid_t) -> c_int
        => meaning::attributes(At::cwd(path), true), by SYS_chown;
    [lchown](path: *const c_char, owner: uid_t, group: gid_t) -> c_int
        => meaning::attributes(At::cwd(path), false), by SYS_lchown;
    [fchown](fd: c_int, owner: uid_t, group: gid_t) -> c_int => Change::Attributes { fd }, by SYS_fchown;
    [fchownat](dir: c_int, path: *const c_char, owner: uid_t, group: gid_t, flags: c_int) -> c_int
        => meaning::attributes_at(dir, path, flags), by SYS_fchownat;

    // Times.
    [utime](path: *const c_char, times: *const utimbuf) -> c_int => meaning::attributes(At::cwd(path), true), by SYS_utime;
    [utimes](path: *const c_char, times: *const timeval) -> c_int => meaning::attributes(At::cwd(path), true), by SYS_utimes;
    [lutimes](path: *const c_char, times: *const timeval) -> c_int
        => meaning::attributes(At::cwd(path), false);
    [futimes](fd: c_int, times: *const timeval) -> c_int => Change::Attributes { fd };
    [futimens](fd: c_int, times: *const timespec) -> c_int => Change::Attributes { fd };
    [futimesat](dir: c_int, path: *const c_char, times: *const timeval) -> c_int
        => meaning::attributes_at(dir, path, 0), by SYS_futimesat;
    [utimensat](dir: c_int, path: *const c_char, times: *const timespec, flags: c_int) -> c_int
        => meaning::attributes_at(dir, path, flags), by SYS_utimensat;

    // Extended attributes, and with them ACLs and capabilities.
    [setxattr](path: *const c_char, name: *const c_char, value: *const c_void, len: size_t, flags: c_int) -> c_int
        => meaning::attributes(At::cwd(path), true), by SYS_setxattr;
    [lsetxattr](path: *const c_char, name: *const c_char, value: *const c_void, len: size_t, flags: c_int) -> c_int
        => meaning::attributes(At::cwd(path), false), by SYS_lsetxattr;
    [fsetxattr](fd: c_int, name: *const c_char, value: *const c_void, len: size_t, flags: c_int) -> c_int
        => Change::Attributes { fd }, by SYS_fsetxattr;
    [removexattr](path: *const c_char, name: *const c_char) -> c_int => meaning::attributes(At::cwd(path), true), by SYS_removexattr;
    [lremovexattr](path: *const c_char, name: *const c_char) -> c_int
        => meaning::attributes(At::cwd(path), false), by SYS_lremovexattr;
    [fremovexattr](fd: c_int, name: *const c_char) -> c_int => Change::Attributes { fd }, by SYS_fremovexattr;
    [](dir: c_int, path: *const c_char, flags: c_int, name: *const c_char, value: *const c_void, len: size_t) -> c_long
        => meaning::attributes_at(dir, path, flags), by SYS_setxattrat | SYS_removexattrat;
    [](dir: c_int, path: *const c_char, attributes: *const c_void, len: size_t, flags: c_int) -> c_long
        => meaning::attributes_at(dir, path, flags), by SYS_file_setattr;
}

/// The size of the kernel's signal sets.
const KERNEL_SIGNALS: size_t = 8;

/// liburing's `io_uring_submit`, which is its `io_uring_submit_and_wait` without the wait.
///
/// # Safety
/// As for that function.
pub(crate) unsafe fn submit_only(ring: *mut c_void) -> c_int {
    type Call = unsafe extern "C-unwind" fn(*mut c_void) -> c_int;
    // SAFETY: the address is liburing's function of this name, or a stand-in: all have this type.
    let real = unsafe { std::mem::transmute::<*mut c_void, Call>(io_uring_submit::REAL.address()) };
    // SAFETY: the caller says so.
    unsafe { real(ring) }
}

const fn c_name(name: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a hooked name ends in its only NUL"),
    }
}

/// Looks every real function up that is not known yet, so that no hook has to do so later in a place where the loader must not
/// be entered.
pub(crate) fn look_up_all() {
    for hook in TABLE.iter().filter(|hook| hook.real.known() == 0) {
        hook.real.look_up();
    }
}
