//! What the doctor says of a program that links the crate and no preload library.
//!
//! Method: the process has what is asked about, and then has it no longer.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hotbackup::{Error, Finding, Kind, Verdict, doctor};

/// A child of one test has for a moment what another test has open.
static ALONE: Mutex<()> = Mutex::new(());

fn source() -> (MutexGuard<'static, ()>, tempfile::TempDir) {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let source = tempfile::tempdir().expect("a directory");
    fs::create_dir(source.path().join("below")).expect("a directory");
    fs::write(source.path().join("below/file"), [0; 8192]).expect("a file");
    (alone, source)
}

/// What is said of `below/file`.
fn said(source: &Path) -> Vec<(Kind, Verdict, String)> {
    let found = doctor([source]).expect("an answer").into_iter();
    let path = source.join("below/file").canonicalize().expect("the file");
    found.filter(|finding| finding.subject == path).map(|f| (f.kind, f.verdict, f.text)).collect()
}

fn of(kind: Kind, found: &[Finding]) -> Vec<Verdict> {
    found.iter().filter(|finding| finding.kind == kind).map(|finding| finding.verdict).collect()
}

#[test]
fn without_an_adapter_only_calls_of_the_crate_are_captured() {
    let found = doctor::<&Path>([]).expect("an answer");
    assert_eq!(of(Kind::Hooks, &found), [Verdict::CopiedAgain], "{found:?}");
    assert_eq!(of(Kind::Object, &found), [], "a program that is linked dynamically");
    let fence = found.iter().find(|finding| finding.subject == Path::new("membarrier(2)"));
    assert_eq!(fence.map(|finding| finding.verdict), Some(Verdict::Captured));
}

#[test]
fn a_mapped_file_is_named_as_long_as_it_is_mapped() {
    let (_alone, source) = source();
    let file =
        File::options().read(true).write(true).open(source.path().join("below/file")).expect("the file");
    assert_eq!(said(source.path()), []);
    let (rights, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping of a file that is long enough, which nobody uses.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, rights, shared, file.as_raw_fd(), 0) };
    assert_ne!(at, libc::MAP_FAILED);
    let found = said(source.path());
    assert_eq!(found.iter().map(|finding| finding.0).collect::<Vec<_>>(), [Kind::Mapping], "{found:?}");
    // SAFETY: the mapping from above.
    assert_eq!(unsafe { libc::munmap(at, 4096) }, 0);
    assert_eq!(said(source.path()), []);
}

#[test]
fn a_stream_is_named_as_long_as_it_is_open() {
    let (_alone, source) = source();
    let path =
        std::ffi::CString::new(source.path().join("below/file").to_str().expect("UTF-8")).expect("a path");
    // SAFETY: strings that end with NUL.
    let stream = unsafe { libc::fopen(path.as_ptr(), c"r+".as_ptr()) };
    assert!(!stream.is_null());
    let found = said(source.path());
    // SAFETY: the stream from above, closed once.
    assert_eq!(unsafe { libc::fclose(stream) }, 0);
    assert!(matches!(&found[..], [(Kind::Stream, Verdict::CopiedAgain, _)]), "{found:?}");
    assert_eq!(said(source.path()), []);
}

#[test]
fn another_process_is_named_as_long_as_it_writes() {
    let (_alone, source) = source();
    let file = File::options().append(true).open(source.path().join("below/file")).expect("the file");
    let mut other =
        Command::new("sleep").arg("60").stdout(file).stderr(Stdio::null()).spawn().expect("sleep");
    let found = said(source.path());
    other.kill().and_then(|()| other.wait()).expect("the end of it");
    let name = format!("process {} (sleep)", other.id());
    assert!(
        matches!(&found[..], [(Kind::Process, Verdict::CopiedAgain, text)] if text.contains(&name)),
        "{found:?}"
    );
    assert_eq!(said(source.path()), []);
}

#[test]
fn a_bad_source_is_one_clear_error() {
    let (_alone, source) = source();
    let nothing = source.path().join("nothing");
    let error = doctor([source.path(), &nothing]).expect_err("no such source");
    assert!(error.to_string().contains("nothing: No such file"), "{error}");
    let error = doctor([source.path().join("below/file")]).expect_err("no directory");
    assert!(matches!(error, Error::SourceNotDirectory { .. }), "{error}");
}
