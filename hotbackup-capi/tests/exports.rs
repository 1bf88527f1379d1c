//! The built library, the hook table and the C library agree about names.
//!
//! Method: read the names of the table out of `src/hooks.rs`, those of the built library and of the C library with
//! `nm -D`, those left out on purpose from `left_out.txt`, and those that change no file from `changes_no_file.txt`; then
//! compare in every direction. The original was once silently wrong for two years because one name was missing from its exports.

mod library;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

type Names = BTreeSet<String>;

/// Every spelling that begins a row of the table.
fn table() -> Names {
    let rows = include_str!("../src/hooks.rs").lines().map(str::trim_start);
    let heads =
        rows.filter(|row| !row.starts_with("//")).filter_map(|row| row.strip_prefix('[')?.split_once("]("));
    heads
        .flat_map(|(names, _)| names.split('|').map(|name| name.trim().to_owned()))
        .filter(|name| !name.is_empty() && !name.contains('$'))
        .collect()
}

/// Names that an object defines, each with the versions that it has.
fn defined(object: &Path) -> BTreeMap<String, usize> {
    let nm = Command::new("nm").args(["-D", "--defined-only"]).arg(object).output().expect("run nm");
    assert!(nm.status.success(), "nm {}", object.display());
    let mut names = BTreeMap::new();
    for line in String::from_utf8_lossy(&nm.stdout).lines() {
        let Some(name) = line.split_whitespace().last() else {
            continue;
        };
        *names.entry(name.split('@').next().unwrap_or(name).to_owned()).or_default() += 1;
    }
    names
}

/// The C library that this test runs with.
fn libc() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let line = maps.lines().find(|line| line.ends_with("/libc.so.6")).expect("glibc");
    line.split_whitespace().last().expect("a path").into()
}

/// What the libraries of asynchronous input and output define, which lie beside the C library.
fn asynchronous() -> BTreeMap<String, usize> {
    let beside = |name| libc().canonicalize().expect("glibc").with_file_name(name);
    ["libaio.so.1", "liburing.so.2"].into_iter().flat_map(|name| defined(&beside(name))).collect()
}

fn left_out() -> Names {
    listed(include_str!("../left_out.txt"))
}

fn changes_no_file() -> Names {
    listed(include_str!("../changes_no_file.txt"))
}

fn listed(text: &str) -> Names {
    text.lines()
        .filter(|line| !line.starts_with(['#', ':']))
        .flat_map(|line| line.split_whitespace().map(str::to_owned))
        .collect()
}

#[test]
fn the_library_exports_the_table_and_its_interface_and_nothing_else() {
    let exported: Names = defined(&library::built()).into_keys().collect();
    let (interface, hooks): (Names, Names) = exported
        .into_iter()
        .partition(|name| name.starts_with("hotbackup_") || name.starts_with("tokubackup_"));
    assert!(table().len() > 80, "the table could not be read");
    assert_eq!(hooks, table());
    for name in ["hotbackup_backup", "tokubackup_create_backup", "tokubackup_version_string"] {
        assert!(interface.contains(name), "{name}");
    }
}

/// Functions of later versions of liburing than the oldest one that the tests run with.
const LATER: [&str; 4] = [
    "io_uring_queue_init_mem",
    "io_uring_queue_init_try_nosqarr",
    "io_uring_submit_and_wait_min_timeout",
    "io_uring_submit_and_wait_reg",
];

#[test]
fn every_hooked_name_is_one_of_the_c_library() {
    let (libc, others) = (defined(&libc()), asynchronous());
    let is_unknown = |name: &String| {
        !libc.contains_key(name) && !others.contains_key(name) && !LATER.contains(&name.as_str())
    };
    let unknown: Vec<_> = table().into_iter().filter(is_unknown).collect();
    assert!(unknown.is_empty(), "not in this C library: {unknown:?}");
}

/// `dlsym(RTLD_NEXT)` picks the version that programs are linked with now. A name that has others, which are other functions, is
/// in docs/limits.md.
#[test]
fn every_hooked_name_has_one_version() {
    let nm = Command::new("nm").args(["-D", "--defined-only"]).arg(libc()).output().expect("run nm");
    let mut addresses = BTreeMap::<String, BTreeSet<String>>::new();
    for line in String::from_utf8_lossy(&nm.stdout).lines() {
        if let [address, _, name] = line.split_whitespace().collect::<Vec<_>>()[..] {
            let name = name.split('@').next().unwrap_or(name);
            addresses.entry(name.to_owned()).or_default().insert(address.to_owned());
        }
    }
    let several: Vec<_> =
        table().into_iter().filter(|name| addresses.get(name).is_some_and(|found| found.len() > 1)).collect();
    let known = if cfg!(target_arch = "x86_64") { vec!["lio_listio", "lio_listio64"] } else { vec![] };
    assert_eq!(several, known);
    for name in [c"lio_listio", c"lio_listio64"] {
        // SAFETY: the names end with NUL.
        let (ours, current) = unsafe {
            (
                libc::dlsym(libc::RTLD_NEXT, name.as_ptr()),
                dlvsym(libc::RTLD_NEXT, name.as_ptr(), c"GLIBC_2.34".as_ptr()),
            )
        };
        assert!(!ours.is_null() && (current.is_null() || ours == current), "{name:?}");
    }
}

unsafe extern "C" {
    fn dlvsym(
        library: *mut std::ffi::c_void,
        name: *const std::ffi::c_char,
        version: *const std::ffi::c_char,
    ) -> *mut std::ffi::c_void;
}

/// A name that came with a new C library is one that nobody has looked at.
#[test]
fn no_name_of_the_c_library_is_forgotten() {
    let lists = [table(), left_out(), changes_no_file()];
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        let both: Vec<_> = lists[one].intersection(&lists[other]).collect();
        assert!(both.is_empty(), "in two of the lists: {both:?}");
    }
    let is_forgotten = |name: &String| !lists.iter().any(|list| list.contains(name));
    let forgotten: Vec<_> = defined(&libc()).into_keys().filter(is_forgotten).collect();
    assert!(forgotten.is_empty(), "neither hooked nor in left_out.txt or changes_no_file.txt: {forgotten:?}");
}

/// All that these libraries export has to do with asynchronous writes.
#[test]
fn no_name_of_libaio_and_liburing_is_forgotten() {
    let (table, left_out) = (table(), left_out());
    let is_version = |name: &String| name.starts_with("LIBAIO_") || name.starts_with("LIBURING_");
    let names: Vec<_> = asynchronous().into_keys().filter(|name| !is_version(name)).collect();
    assert!(names.len() > 50, "the names could not be read: {names:?}");
    let forgotten: Vec<_> =
        names.into_iter().filter(|name| !table.contains(name) && !left_out.contains(name)).collect();
    assert!(forgotten.is_empty(), "neither hooked nor in left_out.txt: {forgotten:?}");
}
