//! POSIX extended regular expressions, as the C library understands them (regcomp(3)).

use std::ffi::{CStr, CString, c_char};

use crate::library::Failure;

/// A compiled expression.
pub(crate) struct Regex(Box<libc::regex_t>);

// SAFETY: looking for it changes nothing that a second thread could see: regexec may be called from several at once.
unsafe impl Sync for Regex {}

impl Regex {
    /// Compiles; the failure says what is wrong.
    pub(crate) fn new(text: &[u8]) -> Result<Regex, Failure> {
        let text =
            CString::new(text).map_err(|_| Failure::new(libc::EINVAL, "a regular expression holds a NUL"))?;
        // SAFETY: zeros are a valid struct, which regcomp fills; it is moved only as a box.
        unsafe {
            let mut compiled: Box<libc::regex_t> = Box::new(std::mem::zeroed());
            match libc::regcomp(&raw mut *compiled, text.as_ptr(), libc::REG_EXTENDED | libc::REG_NOSUB) {
                0 => Ok(Regex(compiled)),
                number => {
                    let mut why = [0 as c_char; 200];
                    libc::regerror(number, &raw const *compiled, why.as_mut_ptr(), why.len());
                    let why = CStr::from_ptr(why.as_ptr()).to_string_lossy();
                    let text = format!("it is not a POSIX extended regular expression: {why}");
                    Err(Failure::new(libc::EINVAL, text))
                }
            }
        }
    }

    /// Whether it is found in `text`.
    pub(crate) fn is_in(&self, text: &CStr) -> bool {
        // SAFETY: the expression was compiled, and no places of matches are asked for.
        unsafe { libc::regexec(&raw const *self.0, text.as_ptr(), 0, std::ptr::null_mut(), 0) == 0 }
    }
}

impl Drop for Regex {
    fn drop(&mut self) {
        // SAFETY: it was compiled, and nobody uses it any more.
        unsafe { libc::regfree(&raw mut *self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_posix_extended() {
        let found = |expression: &[u8], text| Regex::new(expression).expect("valid").is_in(text);
        assert!(found(b"/lost\\+found($|/)", c"/data/lost+found/x"));
        assert!(!found(b"/lost\\+found($|/)", c"/data/lost+foundry"));
        assert!(found(b"(mysqld_safe\\.pid)+", c"/data/mysqld_safe.pid"));
        let failure = Regex::new(b"(").err().expect("it is not closed");
        assert!(failure.text.contains("not a POSIX extended regular expression"), "{failure:?}");
    }
}
