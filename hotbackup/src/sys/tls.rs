//! What every thread has of its own that hooks read: its slot, whether it is one of ours, and two words for an adapter.
//!
//! A variable of `thread_local!` in a library that was loaded late is made when a thread first uses it, by the host's
//! allocator; where that fails, the C library ends the process. A hook may do neither. So the variable is declared in
//! assembly, in the model "initial-exec": the loader gives it a place in the memory that every thread has from its
//! beginning, and threads that run already get it while the library is loaded. The C library keeps some 1.6 KiB for this;
//! without room loading the library fails, and that is said.

use std::cell::Cell;

use crate::gate::Slot;

/// One thread's own; zeros in a new thread.
pub(crate) struct Own {
    pub(crate) slot: Cell<Option<&'static Slot>>,
    pub(crate) is_engine: Cell<bool>,
    pub(crate) adapter: Cell<(usize, usize)>,
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(loom)))]
mod place {
    use super::Own;

    /// Two versions of this crate in one program must not share the variable.
    macro_rules! name {
        ($before:literal, $after:literal) => {
            concat!($before, "hotbackup_own.", env!("CARGO_PKG_VERSION"), $after)
        };
    }

    const _: () = assert!(size_of::<Own>() == 32 && align_of::<Own>() == 8);

    core::arch::global_asm!(
        name!(".pushsection .tbss.", ",\"awT\",@nobits"),
        name!(".globl ", ""),
        name!(".hidden ", ""),
        name!(".type ", ",@object"),
        name!(".size ", ",32"),
        ".balign 8",
        name!("", ":"),
        ".zero 32",
        ".popsection",
    );

    #[inline(always)]
    pub(super) fn own() -> *const Own {
        let own: *const Own;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: reads where the thread's block begins and how far from there the variable lies, neither of which ever changes.
        unsafe {
            core::arch::asm!(
                name!("mov {own}, qword ptr [rip + ", "@GOTTPOFF]"),
                "add {own}, qword ptr fs:[0]",
                own = out(reg) own,
                options(pure, readonly, nostack),
            );
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            core::arch::asm!(
                name!("adrp {own}, :gottprel:", ""),
                name!("ldr {own}, [{own}, :gottprel_lo12:", "]"),
                "mrs {block}, tpidr_el0",
                "add {own}, {own}, {block}",
                own = out(reg) own,
                block = out(reg) _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        own
    }
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(loom))))]
mod place {
    use std::cell::Cell;

    use super::Own;

    thread_local! {
        static OWN: Own = const {
            Own { slot: Cell::new(None), is_engine: Cell::new(false), adapter: Cell::new((0, 0)) }
        };
    }

    #[inline(always)]
    pub(super) fn own() -> *const Own {
        OWN.with(std::ptr::from_ref)
    }
}

/// Works with what the calling thread has of its own.
#[inline(always)]
pub(crate) fn with<T>(work: impl FnOnce(&Own) -> T) -> T {
    // SAFETY: the calling thread's own variable, which lives as long as the thread, and of which zeros are a value. It is
    // only ever accessed by its own thread, and through cells.
    work(unsafe { &*place::own() })
}
