//! The streams of the C library (FILE), read out of its list of them.
//!
//! The library's own lock on that list may be held by a thread that waits for a pipe, or at the gate, for as long as it
//! likes: so the list is read without it, by way of the kernel. A stream goes out of the list before its memory is freed,
//! its own link stays behind until that memory is used again, and new ones come in at the head. So whoever follows the links
//! passes every stream that is in the list all the while, unless it gets into memory that is something else by now; that is
//! told by the mark that every stream begins with, and then the list is read anew.

use std::os::fd::RawFd;

use crate::sys::raw::read_memory;

/// What a stream begins with: its mark and its flags (`struct _IO_FILE`, the same on all 64-bit machines). Then come pointers
/// into its buffer, the link, and the descriptor.
const BYTES: usize = 120;
const LINK: usize = 104;
const DESCRIPTOR: usize = 112;
const MARK: u32 = 0xfbad_0000;
const MARK_BITS: u32 = 0xffff_0000;
const NOT_WRITABLE: u32 = 8;

/// How often the list is read until it is the same all the while.
const READS: u32 = 20;
/// More streams than a process has descriptors: a list that goes round in a circle.
const MOST: u32 = 1 << 20;

/// Where the C library has the head of its list.
#[derive(Clone, Copy)]
pub(crate) struct Streams {
    head: u64,
}

impl Streams {
    /// Finds the list. `None` with a C library that has no such list.
    pub(crate) fn find() -> Option<Streams> {
        // SAFETY: the name ends with NUL; nothing is loaded.
        let head = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_IO_list_all".as_ptr()) };
        (!head.is_null()).then_some(Streams { head: head as u64 })
    }

    /// Hands on the descriptor of every stream that can be written to; some may come twice. False if the list did not keep still.
    /// Allocates nothing.
    pub(crate) fn writable(self, mut each: impl FnMut(RawFd)) -> bool {
        (0..READS).any(|_| self.walk(&mut each).is_some())
    }

    fn walk(self, each: &mut impl FnMut(RawFd)) -> Option<()> {
        let mut head = [0; 8];
        read_memory(self.head, &mut head).ok()?;
        let mut at = u64::from_ne_bytes(head);
        for _ in 0..MOST {
            if at == 0 {
                return Some(());
            }
            let mut stream = [0; BYTES];
            read_memory(at, &mut stream).ok()?;
            let flags = u32::from_ne_bytes(*stream.first_chunk()?);
            if flags & MARK_BITS != MARK {
                return None;
            }
            if flags & NOT_WRITABLE == 0 {
                each(RawFd::from_ne_bytes(*stream[DESCRIPTOR..].first_chunk()?));
            }
            at = u64::from_ne_bytes(*stream[LINK..].first_chunk()?);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_found_by_their_descriptors_as_long_as_they_are_open() {
        let streams = Streams::find().expect("glibc");
        let has = |fd| {
            let mut found = false;
            assert!(streams.writable(|other| found |= other == fd), "the list did not keep still");
            found
        };
        // SAFETY: the strings end with NUL, and each stream is closed once.
        unsafe {
            let written = libc::fopen(c"/dev/null".as_ptr(), c"w".as_ptr());
            let read = libc::fopen(c"/dev/null".as_ptr(), c"r".as_ptr());
            let (fd, not) = (libc::fileno(written), libc::fileno(read));
            assert!(has(1) && has(2) && has(fd) && !has(not));
            assert_eq!((libc::fclose(written), libc::fclose(read)), (0, 0));
            assert!(!has(fd));
        }
    }
}
