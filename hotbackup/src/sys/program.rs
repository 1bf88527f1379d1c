//! The program's own headers, where the kernel or the loader has put them.

use super::raw::read_memory;

/// `PT_PHDR`: the headers themselves.
const OWN: u32 = 6;
const HEADER_SIZE: usize = 56;
/// More than any program has, and than notes are long.
const MOST: usize = 1 << 16;

/// One of them (`Elf64_Phdr`).
pub(crate) struct Header {
    pub(crate) kind: u32,
    address: u64,
    len: u64,
}

/// All of them.
pub(crate) struct Headers {
    text: Vec<u8>,
    /// What the addresses in them count from.
    base: u64,
}

impl Headers {
    /// Copies them by way of the kernel. `None` if it does not say where they are.
    pub(crate) fn read() -> Option<Headers> {
        // SAFETY: it reads numbers that the kernel gave the process.
        let (at, count) = unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
        let mut text = vec![0; (count as usize).checked_mul(HEADER_SIZE).filter(|&len| len <= MOST)?];
        read_memory(at, &mut text).ok()?;
        let mut headers = Headers { text, base: 0 };
        let own = headers.all().find(|header| header.kind == OWN);
        // A program without has no notes of Go either.
        headers.base = own.map_or(0, |own| at.wrapping_sub(own.address));
        Some(headers)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = Header> {
        self.text.chunks_exact(HEADER_SIZE).map(|header| {
            let word = |at: usize| {
                header[at..].first_chunk().map_or(0, |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes))
            };
            Header { kind: word(0) as u32, address: word(16), len: word(40) }
        })
    }

    /// What a header is about.
    pub(crate) fn contents(&self, header: Header) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(header.len).ok().filter(|&len| len <= MOST)?];
        read_memory(self.base.wrapping_add(header.address), &mut bytes).ok()?;
        Some(bytes)
    }
}
