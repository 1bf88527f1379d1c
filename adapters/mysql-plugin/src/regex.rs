//! POSIX extended regular expressions, as the C library understands them (regcomp(3)).

use std::ffi::{CStr, CString, c_char};

use crate::library::Failure;

/// A compiled expression.
pub(crate) struct Regex(Box<libc::regex_t>);

// SAFETY: looking for it changes nothing that a second thread could see: regexec may be called from several at once.
unsafe impl Sync for Regex {}

/// The deepest nesting of groups, and the longest expression once its repetitions are written out. The C library recurses as deep as
/// that, and takes memory for its square: without a bound a few thousand parentheses end the server.
const DEEPEST: usize = 64;
const LONGEST: usize = 4096;
/// What the C library needs for the worst of these, and more.
const STACK: usize = 16 << 20;

// SAFETY: it is a pointer to memory that belongs to no thread.
unsafe impl Send for Regex {}

impl Regex {
    /// Compiles; the failure says what is wrong.
    pub(crate) fn new(text: &[u8]) -> Result<Regex, Failure> {
        let refused = |why: &str| Failure::new(libc::EINVAL, why);
        let c_text = CString::new(text).map_err(|_| refused("a regular expression holds a NUL"))?;
        if depth(text) > DEEPEST || repetitions(text).saturating_mul(text.len()) > LONGEST {
            return Err(refused(
                "a regular expression may have 64 groups in each other, and 4096 bytes with its repetitions",
            ));
        }
        // The server's threads have small stacks.
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK);
            let thread = thread.spawn_scoped(scope, || Regex::compile(&c_text));
            let thread =
                thread.map_err(|e| Failure::new(libc::EAGAIN, format!("cannot start a thread: {e}")))?;
            thread.join().unwrap_or_else(|_| Err(refused("the plugin panicked: please report it")))
        })
    }

    fn compile(text: &CStr) -> Result<Regex, Failure> {
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

/// How deep groups lie in each other at the most; never less than that.
fn depth(text: &[u8]) -> usize {
    let mut depth = 0usize;
    let depths = text.iter().map(|byte| {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth
    });
    depths.max().unwrap_or(0)
}

/// What the greatest numbers of all intervals make when they are multiplied; never less than that.
fn repetitions(text: &[u8]) -> usize {
    let intervals = text.split(|&b| b == b'{').skip(1).map(|rest| {
        let numbers = rest.split(|byte| !byte.is_ascii_digit()).take(2);
        let value = |digits: &[u8]| {
            digits.iter().fold(0usize, |n, b| n.saturating_mul(10).saturating_add(usize::from(b - b'0')))
        };
        numbers.map(value).max().unwrap_or(1).max(1)
    });
    intervals.fold(1, usize::saturating_mul)
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
    #[test]
    fn expressions_that_would_end_the_server_are_refused() {
        let refused = |text: &[u8]| Regex::new(text).err().expect("too much").text;
        assert!(refused(&b"(".repeat(65)).contains("64 groups"));
        assert!(refused(b"((a{2}){20,30}){5}").contains("4096 bytes"));
        assert!(refused(b"a{99999999999999999999}").contains("4096 bytes"));
        assert!(refused(&b"a".repeat(4097)).contains("4096 bytes"));
        // The worst that are not.
        let deep = [b"(".repeat(64), b"a".to_vec(), b")*".repeat(64)].concat();
        assert!(Regex::new(&deep).expect("valid").is_in(c"a"));
        drop(Regex::new(&b"a?".repeat(2048)).expect("valid"));
        drop(Regex::new(&[&b"("[..], &b"a?".repeat(25), b"){70}"].concat()).expect("valid"));
    }
}
