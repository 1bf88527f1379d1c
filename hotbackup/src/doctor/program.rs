//! What kind of program this is, told from its headers in memory: the loader may have been the one that was executed.

use super::{Finding, Kind, Verdict};
use crate::sys::program::Headers;

const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;

/// Adds what stands in the way of capturing a program's calls, whatever is loaded into it.
pub(super) fn examine(found: &mut Vec<Finding>) {
    let Some(headers) = Headers::read() else { return };
    let add = |verdict, text| Finding::new(Kind::Object, verdict, "the program", text);
    if headers.all().all(|header| header.kind != PT_INTERP) {
        found.push(add(
            Verdict::CopiedAgain,
            "it is linked statically, so that no library can be put before the C library in it: what its calls change is found \
             and copied again",
        ));
    }
    let mut notes = headers.all().filter(|header| header.kind == PT_NOTE);
    if notes.any(|note| headers.contents(note).is_some_and(|notes| is_of_go(&notes))) {
        found.push(add(
            Verdict::Untold,
            "it is written in Go, which makes its system calls itself: what they change is found and copied again, unless a \
             captured call changes the same file in between",
        ));
    }
}

/// Whether notes (elf(5)) hold the one that Go's linker makes: its name is Go, its type 4.
fn is_of_go(mut notes: &[u8]) -> bool {
    let word = |notes: &[u8], at: usize| {
        notes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes) as usize)
    };
    while let (Some(name), Some(contents), Some(kind)) = (word(notes, 0), word(notes, 4), word(notes, 8)) {
        if kind == 4 && notes.get(12..12 + name) == Some(b"Go\0\0") {
            return true;
        }
        let len = 12 + name.next_multiple_of(4) + contents.next_multiple_of(4);
        notes = notes.get(len..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_of_go_is_told_from_others() {
        let note = |name: &[u8; 4], kind: u32| {
            let words = [4, 8, kind].map(u32::to_ne_bytes);
            [&words.concat(), &name[..], &[7; 8]].concat()
        };
        let (gnu, go) = (note(b"GNU\0", 3), note(b"Go\0\0", 4));
        assert!(is_of_go(&go) && is_of_go(&[gnu.clone(), go.clone()].concat()));
        assert!(!is_of_go(&gnu) && !is_of_go(&go[..14]) && !is_of_go(b""));
    }

    #[test]
    fn this_program_is_linked_as_it_is() {
        let mut found = Vec::new();
        examine(&mut found);
        let is_static = cfg!(target_feature = "crt-static");
        assert_eq!(found.len(), usize::from(is_static), "{found:?}");
    }
}
