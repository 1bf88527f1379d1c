//! Method: random ranges of files of several sizes are read in every way, on the filesystem of /var/tmp and on a tmpfs,
//! and compared with what was written.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::*;

/// The bytes of the tests' files: no two blocks are alike.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 4096 * 31 + i % 251) as u8).collect()
}

fn file_of(directory: &Path, bytes: &[u8]) -> File {
    let path = directory.join("file");
    std::fs::write(&path, bytes).expect("a file to read");
    File::open(path).expect("it can be opened")
}

fn places() -> impl Iterator<Item = tempfile::TempDir> {
    let there = ["/var/tmp", "/dev/shm"].into_iter().filter(|place| Path::new(place).is_dir());
    there.map(|place| tempfile::TempDir::new_in(place).expect("a directory"))
}

fn check(source: &Source, bytes: &[u8], at: usize, len: usize, buffer: &mut PageBuffer) {
    let got = source.read(at as u64, len, buffer).expect("it can be read");
    let rest = bytes.get(at..).unwrap_or_default();
    assert!(got.len() <= len && got.is_empty() == (rest.is_empty() || len == 0), "{at}+{len}: {}", got.len());
    assert!(got == &rest[..got.len()], "{at}+{len}: other bytes");
}

fn open(file: BorrowedFd<'_>, direct: bool) -> Result<Source, Errno> {
    Source::open(file, &statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::SIZE)?, direct)
}

#[test]
fn any_range_of_any_file_is_read_right_in_every_way() {
    let mut buffer = PageBuffer::new(256 << 10).expect("memory");
    let mut random = 1u64;
    let mut below = |limit: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % limit
    };
    for place in places() {
        for size in [1, 511, 4096, 4097, 70_000, 256 << 10, (1 << 20) + 123] {
            let bytes = pattern(size);
            let file = file_of(place.path(), &bytes);
            for way in Way::ALL {
                let source = open(file.as_fd(), way == Way::Direct).expect("it can be opened");
                source.way.fetch_max(way as u8, Ordering::Relaxed);
                for _ in 0..200 {
                    let (at, len) = (below(size + 5000), 1 + below(300 << 10));
                    check(&source, &bytes, at, len, &mut buffer);
                }
                check(&source, &bytes, size - 1, buffer.len(), &mut buffer);
            }
        }
    }
}

#[test]
fn a_file_is_read_with_o_direct_where_the_filesystem_lets_it() {
    for place in places() {
        let bytes = pattern(10_000);
        let file = file_of(place.path(), &bytes);
        let source = open(file.as_fd(), true).expect("it can be opened");
        let mut buffer = PageBuffer::new(64 << 10).expect("memory");
        assert_eq!(source.read(5000, 9000, &mut buffer).expect("it can be read"), &bytes[5000..]);
        let allowed = beneath::reopen(file.as_fd(), OFlags::DIRECT).is_ok();
        let is_direct = fcntl_getfl(&source).expect("flags").contains(OFlags::DIRECT);
        assert_eq!(
            (is_direct, source.way() == Way::Direct),
            (allowed, allowed),
            "{}",
            place.path().display()
        );
    }
}

/// What EINVAL from a filesystem that takes the flag at open and not at read comes to.
#[test]
fn a_refused_read_is_made_through_the_cache() {
    for place in places() {
        let bytes = pattern(20_000);
        let file = file_of(place.path(), &bytes);
        let mut source = open(file.as_fd(), true).expect("it can be opened");
        if source.way() != Way::Direct {
            continue;
        }
        // No disk has blocks of 3 bytes.
        source.alignment = 3;
        let mut buffer = PageBuffer::new(64 << 10).expect("memory");
        assert_eq!(source.read(7, 8000, &mut buffer).expect("it can be read"), &bytes[7..8007]);
        check(&source, &bytes, 19_999, 100, &mut buffer);
    }
}

#[test]
fn what_was_not_in_the_cache_is_let_go_and_what_was_stays() {
    let place = tempfile::TempDir::new_in("/var/tmp").expect("a directory");
    // Of the last piece, a page in the middle is in the cache.
    let bytes = pattern(4 << 20);
    let warm_at = (3 << 20) + (512 << 10);
    let file = file_of(place.path(), &bytes);
    file.sync_all().expect("it reaches the disk");
    let cached = |at, len| raw::cached_pages(file.as_fd(), at, len);
    let mut buffer = PageBuffer::new(1 << 20).expect("memory");
    for way in [Way::DontCache, Way::LetGo] {
        let_go(file.as_fd(), 0, bytes.len() as u64);
        let Ok(0) = cached(0, 4 << 20) else {
            return skip();
        };
        let _ = fadvise(&file, 0, None, Advice::Random);
        let mut warm = [0; 4096];
        pread(&file, &mut warm[..], warm_at).expect("it can be read");
        let source = open(file.as_fd(), false).expect("it can be opened");
        source.way.store(way as u8, Ordering::Relaxed);
        let mut at = 0;
        while at < bytes.len() {
            check(&source, &bytes, at, 1 << 20, &mut buffer);
            at += source.read(at as u64, 1 << 20, &mut buffer).expect("it can be read").len();
        }
        if source.way() != way {
            return skip();
        }
        assert_eq!(cached(0, warm_at), Ok(0), "{way:?}: pages that were not there before");
        assert_eq!(cached(warm_at, 4096), Ok(1), "{way:?}: a page that was there");
        let behind = warm_at + FINEST as u64;
        assert_eq!(cached(behind, (4 << 20) - behind), Ok(0), "{way:?}: pages behind one that was there");
    }
}

#[expect(clippy::print_stderr, reason = "says why a test has not been run")]
fn skip() {
    eprintln!("skipped: this kernel or the filesystem of /var/tmp does not tell or let go of cached pages");
}

#[test]
fn a_forked_child_does_not_get_the_buffers() {
    let buffer = PageBuffer::new(1 << 20).expect("memory");
    let from = format!("{:x}-", buffer.as_ptr() as usize);
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("the mappings");
    let flags =
        maps.lines().skip_while(|line| !line.starts_with(&from)).find(|line| line.starts_with("VmFlags:"));
    assert!(flags.is_some_and(|flags| flags.split(' ').any(|flag| flag == "dc")), "{flags:?}");
}
