//! Hot backup of any running program's files: one exact instant of whole directory trees, without stopping the program.
//!
//! # How it works
//! Calls of the program that change files are *captured* (by a preload library, by an adapter, or by [`fs`]): each
//! marks what it changed. A [`Backup`] copies the trees, copies what was marked meanwhile until little is left, closes
//! the door for a millisecond to copy the rest (the *cut*), and publishes the result with a manifest that
//! [`verify`](verify()) checks. What nobody captured is detected and copied again, or the backup fails and names the file.
//!
//! No libc symbol is defined here: a program that links this crate is not hijacked. The preload library is the crate
//! `hotbackup-capi`.
#![deny(unsafe_code)]
// Under loom only the gate and the marks are built, to be model-checked (docs/testing.md).
#![cfg_attr(loom, allow(dead_code, missing_docs))]

#[cfg(not(loom))]
mod async_io;
#[cfg(not(loom))]
mod attributes;
#[cfg(not(loom))]
mod audit;
#[cfg(not(loom))]
mod backup;
#[cfg(not(loom))]
mod beneath;
#[cfg(not(loom))]
mod change;
#[cfg(not(loom))]
mod conductor;
#[cfg(not(loom))]
mod converge;
#[cfg(not(loom))]
mod copier;
#[cfg(not(loom))]
mod crossings;
#[cfg(not(loom))]
mod cut;
#[cfg(not(loom))]
mod destination;
#[cfg(not(loom))]
mod digests;
#[cfg(not(loom))]
mod direct;
#[cfg(not(loom))]
mod doctor;
#[cfg(not(loom))]
mod durable;
#[cfg(not(loom))]
mod error;
mod extents;
#[cfg(not(loom))]
mod finish;
#[cfg_attr(loom, allow(dead_code))]
mod flights;
#[cfg(not(loom))]
pub mod fs;
mod gate;
#[cfg(not(loom))]
pub mod intercept;
#[cfg(not(loom))]
mod manifest;
#[cfg(not(loom))]
mod mappings;
#[cfg(loom)]
mod model;
#[cfg(not(loom))]
mod progress;
#[cfg(not(loom))]
mod publish;
#[cfg(not(loom))]
mod reconcile;
#[cfg(not(loom))]
mod registry;
#[cfg(not(loom))]
mod session;
#[cfg(not(loom))]
mod source;
#[cfg(not(loom))]
mod streams;
#[cfg(not(loom))]
mod suspects;
#[allow(unsafe_code)]
mod sys;
#[cfg(not(loom))]
mod throttle;
#[cfg(not(loom))]
mod tree;
#[cfg(not(loom))]
mod verify;
#[cfg(not(loom))]
mod walk;
#[cfg(not(loom))]
mod writeout;

#[cfg(not(loom))]
pub use backup::{Backup, KeepFree, ManifestPlace, OnUnseenChange, PhaseTimes, Report, Source, Warning};
#[cfg(not(loom))]
pub use doctor::{Finding, Kind, Verdict, doctor};
#[cfg(not(loom))]
pub use error::{Error, Op, Result};
#[cfg(not(loom))]
pub use manifest::{INCOMPLETE_MARK, MANIFEST_NAME};
#[cfg(not(loom))]
pub use progress::{Phase, Progress};
#[cfg(not(loom))]
pub use session::{Session, SessionHandle, current};
#[cfg(not(loom))]
pub use throttle::Throttle;
#[cfg(not(loom))]
pub use verify::{Difference, Verification, verify, verify_with};

/// The examples of the two pages that show this crate to the world.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../README.md")]
struct Examples;
