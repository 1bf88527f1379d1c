//! libHotBackup: the preload library and C interface of [`hotbackup`].
//!
//! `hooks` is the table of replaced libc functions, `meaning` and `asynchronous` say what the unusual ones among them change, `real` finds
//! the functions that they replace, `live` proves at the start of every session that the hooks are in force. `attach` puts them in force
//! in a process that runs already (`slots` is where, `settle` waits for calls that began before). `doctor` says of both, and of what
//! `raw_calls` finds in the text of objects, what it means for a backup. `api` and
//! `tokubackup` are what C programs call; the header `include/hotbackup.h` is generated from them and is their manual.
#![allow(non_snake_case, reason = "the library is called libHotBackup.so, as the original was")]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("the hooks know the spellings and the ABI of 64-bit Linux only");

pub mod api;
mod asynchronous;
mod attach;
mod control;
pub mod declarations;
mod doctor;
mod elf;
mod guard;
mod hooks;
mod live;
mod meaning;
mod numbers;
mod objects;
mod options;
mod raw_calls;
mod real;
mod reports;
mod scope;
mod settle;
mod slots;
mod streams;
pub mod tokubackup;
