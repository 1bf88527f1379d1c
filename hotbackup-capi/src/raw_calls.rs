//! Instructions in the text of loaded objects that look like system calls of their own, which no hook sees.
//!
//! It is a hint. Without taking instructions apart nobody can tell where one begins, and the two bytes of x86-64's `syscall` come up in
//! the middle of others and in data (165 times in a server that makes no such call). So only those count where the call's number is
//! put in place just before, or the kernel's error numbers are asked for just behind; with a number, only if the call may change files.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use hotbackup::{Finding, Kind, Verdict};

use crate::hooks::{self, TABLE};
use crate::numbers;
use crate::objects::look_up;

/// How much is read at a time.
const PIECE: usize = 1 << 20;
/// Further around an instruction than what is looked at.
const AROUND: usize = 64;

/// A piece of the process's memory that can be executed.
struct Text {
    range: Range<u64>,
    /// Where in its file it begins.
    offset: u64,
    object: String,
}

/// One finding for each object. It is read by way of the kernel: an object may be unloaded meanwhile.
pub(crate) fn examine() -> Vec<Finding> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let texts: Vec<Text> = maps.lines().filter_map(Text::parse).collect();
    let ours = excepted(&texts);
    let Ok(memory) = File::open("/proc/self/mem") else { return Vec::new() };
    let mut found: Vec<(&str, u64, u64)> = Vec::new();
    for text in texts.iter().filter(|text| !ours.contains(&text.object.as_str())) {
        let (mut count, mut first) = (0, None);
        text.each_call(&memory, |at| {
            count += 1;
            first.get_or_insert(at);
        });
        match (first, found.iter_mut().find(|known| known.0 == text.object)) {
            (Some(_), Some(known)) => known.2 += count,
            (Some(first), None) => found.push((&text.object, first, count)),
            (None, _) => {}
        }
    }
    let finding = |(object, first, count): (&str, u64, u64)| {
        let text = format!(
            "its text holds what looks like system calls of its own that may change files ({count}, the first at {first:#x} in the \
             file): a hint, for data can look like it. What such a call changes is found and copied again, unless a captured call \
             changes the same file in between"
        );
        Finding::new(Kind::RawCalls, Verdict::Untold, object, text)
    };
    found.into_iter().map(finding).collect()
}

/// The objects whose own calls are no loss: the libraries whose functions are hooked, the loader, the kernel's, and ourselves.
fn excepted(texts: &[Text]) -> Vec<&str> {
    let ours = TABLE.first().map_or(0, |hook| hook.ours as usize);
    let real = TABLE.iter().map(|hook| hook.real.known());
    let known: Vec<usize> = real.chain([ours, look_up(c"__tls_get_addr")]).collect();
    let is_excepted = |text: &&Text| {
        let holds = |&address: &usize| text.range.contains(&(address as u64));
        let name = text.object.rsplit('/').next().unwrap_or_default();
        // The second was a library of its own before glibc 2.34.
        known.iter().any(holds) || name.starts_with('[') || name.starts_with("libpthread")
    };
    texts.iter().filter(is_excepted).map(|text| text.object.as_str()).collect()
}

impl Text {
    /// `BEGIN-END r-xp OFFSET DEVICE INODE PATH`
    fn parse(line: &str) -> Option<Text> {
        let mut words = line.splitn(6, ' ');
        let (begin, end) = words.next()?.split_once('-')?;
        let rights = words.next()?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (range, offset) = (number(begin)?..number(end)?, number(words.next()?)?);
        let path = words.nth(2).unwrap_or_default().trim_start();
        let object = if path.is_empty() { format!("memory at {:#x}", range.start) } else { path.into() };
        (rights.as_bytes().get(2) == Some(&b'x')).then_some(Text { range, offset, object })
    }

    /// Tells where in the file each thing is that looks like a call.
    fn each_call(&self, memory: &File, mut visit: impl FnMut(u64)) {
        let mut buffer = vec![0; PIECE + 2 * AROUND];
        let mut at = self.range.start;
        while at < self.range.end {
            // What is read around a piece only helps to judge it.
            let from = at.saturating_sub(AROUND as u64).max(self.range.start);
            let end = (at + PIECE as u64).min(self.range.end);
            let len = (end + AROUND as u64).min(self.range.end) - from;
            let Some(bytes) = buffer.get_mut(..len as usize) else { return };
            if memory.read_exact_at(bytes, from).is_ok() {
                for place in calls(bytes) {
                    let address = from + place as u64;
                    if (at..end).contains(&address) {
                        visit(address - self.range.start + self.offset);
                    }
                }
            }
            at = end;
        }
    }
}

/// Where in a text there seem to be calls that may change files.
fn calls(text: &[u8]) -> impl Iterator<Item = usize> {
    let places = text.windows(INSTRUCTION.len()).enumerate();
    places.filter(|(_, bytes)| *bytes == INSTRUCTION).map(|(at, _)| at).filter(|&at| {
        let before = &text[at.saturating_sub(BEFORE)..at];
        match number_before(before) {
            Some(number) => may_change_files(number),
            None => comes_from_elsewhere(before, &text[at + INSTRUCTION.len()..]),
        }
    })
}

fn may_change_files(number: i64) -> bool {
    use numbers::{SYS_close, SYS_close_range, SYS_dup3, SYS_ioctl, SYS_lseek};
    let asynchronous = [libc::SYS_io_submit, libc::SYS_io_uring_enter];
    let harmless = [SYS_close, SYS_close_range, SYS_dup3, SYS_ioctl, SYS_lseek];
    asynchronous.contains(&number) || hooks::has_number(number) && !harmless.contains(&number)
}

/// How far before the instruction its number is looked for.
const BEFORE: usize = 24;

#[cfg(target_arch = "x86_64")]
const INSTRUCTION: &[u8] = &[0x0f, 0x05];
#[cfg(target_arch = "aarch64")]
const INSTRUCTION: &[u8] = &0xd400_0001_u32.to_le_bytes();

/// The number that is put in place last: `mov eax, N` in its two forms.
#[cfg(target_arch = "x86_64")]
fn number_before(before: &[u8]) -> Option<i64> {
    (0..before.len().saturating_sub(4)).rev().find_map(|at| {
        let is_move = before[at] == 0xb8 || before[at] == 0xc0 && at > 0 && before[at - 1] == 0xc7;
        let number = i32::from_le_bytes(*before[at + 1..].first_chunk()?);
        (is_move && (0..0x400).contains(&number)).then_some(number.into())
    })
}

/// A number that comes from elsewhere: `mov rax, rdi`, as functions like syscall(2) begin; or the result is compared with the
/// kernel's error numbers: `cmp rax, -4095` and `-4096`.
#[cfg(target_arch = "x86_64")]
fn comes_from_elsewhere(before: &[u8], behind: &[u8]) -> bool {
    let is_compared = behind.starts_with(&[0x48, 0x3d, 1, 0xf0, 0xff, 0xff])
        || behind.starts_with(&[0x48, 0x3d, 0, 0xf0, 0xff, 0xff]);
    is_compared || before.windows(3).any(|bytes| bytes == [0x48, 0x89, 0xf8])
}

/// The number that is put in place last: `mov w8, N` or `mov x8, N`.
#[cfg(target_arch = "aarch64")]
fn number_before(before: &[u8]) -> Option<i64> {
    before.rchunks_exact(4).find_map(|bytes| {
        let word = u32::from_le_bytes(*bytes.first_chunk()?);
        (word & 0x7fe0_001f == 0x5280_0008).then_some((word >> 5 & 0xffff).into())
    })
}

/// Four aligned bytes hardly come up by chance.
#[cfg(target_arch = "aarch64")]
fn comes_from_elsewhere(_before: &[u8], _behind: &[u8]) -> bool {
    true
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use super::*;

    fn count(text: &[u8]) -> usize {
        calls(text).count()
    }

    #[test]
    fn calls_are_told_by_their_number_or_by_what_is_done_with_the_result() {
        let write = [0xb8, 1, 0, 0, 0, 0x0f, 0x05];
        assert_eq!(count(&write), 1);
        assert_eq!(
            count(&[0x48, 0xc7, 0xc0, 18, 0, 0, 0, 0x48, 0x89, 0xd2, 0x0f, 0x05, 0xc3]),
            1,
            "pwrite64"
        );
        assert_eq!(count(&[0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0x0f, 0x05, 0xc3]), 1, "any number");
        assert_eq!(count(&[0x0f, 0x05, 0x48, 0x3d, 1, 0xf0, 0xff, 0xff]), 1, "a result that is asked about");
        // futex, getrandom, and no number that there is.
        assert_eq!(count(&[0xb8, 202, 0, 0, 0, 0x0f, 0x05]), 0);
        assert_eq!(count(&[0xb8, 0x3e, 1, 0, 0, 0x0f, 0x05]), 0);
        assert_eq!(count(&[0xb8, 1, 0, 0, 7, 0x0f, 0x05]), 0);
        assert_eq!(count(&[0x48, 0x8d, 0x0f, 0x05, 0, 0, 0, 0]), 0, "some bytes");
        assert_eq!(count(&[&[0x90; 100][..], &write, &[0x90; 30], &[0x0f, 0x05]].concat()), 1);
    }

    #[test]
    fn lines_of_maps_are_read() {
        let text = Text::parse("1000-3000 r-xp 00000200 08:01 17          /a b/c.so").expect("a text");
        assert_eq!((text.range, text.offset, text.object.as_str()), (0x1000..0x3000, 0x200, "/a b/c.so"));
        assert!(Text::parse("1000-3000 r--p 00000000 08:01 17 /a").is_none());
        let own = Text::parse("1000-3000 rwxp 00000000 00:00 0 ").expect("a text");
        assert_eq!(own.object, "memory at 0x1000");
    }
}
