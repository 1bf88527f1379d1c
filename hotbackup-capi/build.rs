//! What the linker has to know about libHotBackup.so.

fn main() {
    // The name that programs linked against the library ask for; it changes when the interface breaks.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libHotBackup.so.0");
    // The hook table must hold the addresses of our own functions, also where another definition comes first: only
    // then can the proof of live hooks tell ours from theirs.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-Bsymbolic-functions");
    // Slots of the whole process, thread-local memory and fork handlers lead here: the library is never unloaded.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rerun-if-changed=build.rs");
}
