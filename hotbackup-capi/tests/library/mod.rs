//! The library as a file.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the library beside this test, because Cargo builds no cdylib for a test.
pub fn built() -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "hotbackup-capi"]).env_remove("RUSTFLAGS");
    if profile.ends_with("release") {
        build.arg("--release");
    }
    let target = profile.parent().expect("target");
    let built = build.arg("--target-dir").arg(target).status().expect("run cargo");
    assert!(built.success(), "cargo build -p hotbackup-capi");
    profile.join("libHotBackup.so")
}
