//! The loaded objects of our own namespace, as the dynamic loader shows them.

use std::ffi::{CStr, c_int, c_void};
use std::ops::Range;
use std::sync::mpsc;
use std::time::Duration;

use hotbackup::intercept;

use crate::elf::{DynamicEntry, Tables};
use crate::hooks::TABLE;

/// A loaded object.
pub(crate) struct Object<'a> {
    info: &'a libc::dl_phdr_info,
    pub(crate) is_program: bool,
}

impl Object<'_> {
    fn headers(&self) -> &[libc::Elf64_Phdr] {
        // SAFETY: the loader describes its own table.
        unsafe { std::slice::from_raw_parts(self.info.dlpi_phdr, self.info.dlpi_phnum.into()) }
    }

    pub(crate) fn base(&self) -> usize {
        self.info.dlpi_addr as usize
    }

    fn range(&self, header: &libc::Elf64_Phdr) -> Range<usize> {
        let begin = self.base() + header.p_vaddr as usize;
        begin..begin + header.p_memsz as usize
    }

    fn segments(&self, kind: u32) -> impl Iterator<Item = &libc::Elf64_Phdr> {
        self.headers().iter().filter(move |header| header.p_type == kind)
    }

    pub(crate) fn contains(&self, address: usize) -> bool {
        self.segments(libc::PT_LOAD).any(|header| self.range(header).contains(&address))
    }

    /// Its data.
    pub(crate) fn data(&self) -> impl Iterator<Item = Range<usize>> {
        self.segments(libc::PT_LOAD)
            .filter(|header| header.p_flags & libc::PF_W != 0)
            .map(|header| self.range(header))
    }

    /// The part of its data that only the loader writes.
    pub(crate) fn constant_data(&self) -> Range<usize> {
        self.segments(libc::PT_GNU_RELRO).next().map_or(0..0, |header| self.range(header))
    }

    pub(crate) fn dynamic(&self) -> Option<*const DynamicEntry> {
        let header = self.segments(libc::PT_DYNAMIC).next()?;
        Some((self.base() + header.p_vaddr as usize) as *const DynamicEntry)
    }

    pub(crate) fn tables(&self) -> Option<Tables> {
        // SAFETY: the object stays loaded while the loader shows it to us.
        unsafe { Tables::read(self.base(), self.dynamic()?) }
    }

    pub(crate) fn name(&self) -> String {
        if self.is_program {
            return "the program".into();
        }
        // SAFETY: the loader's names end with NUL.
        text(unsafe { CStr::from_ptr(self.info.dlpi_name) })
    }
}

/// Objects whose own calls are not ours to capture: the C library, the loader, ourselves, the kernel's.
pub(crate) struct Excepted([usize; 4]);

impl Excepted {
    pub(crate) fn new() -> Excepted {
        let ours = TABLE.first().map_or(0, |hook| hook.ours as usize);
        // SAFETY: it reads a number that the kernel gave the process.
        let vdso = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
        Excepted([ours, look_up(c"gnu_get_libc_version"), look_up(c"__tls_get_addr"), vdso])
    }

    pub(crate) fn has(&self, object: &Object<'_>) -> bool {
        !object.is_program && self.0.iter().any(|&address| address != 0 && object.contains(address))
    }
}

/// Shows every object to `visit` until that says stop by returning false. The loader adds and removes none meanwhile.
/// Returns how many objects were ever added before.
///
/// What `visit` allocates, it allocates with a lock of the loader's held: it should do so only when it gives up.
pub(crate) fn for_each(visit: impl FnMut(&Object<'_>) -> bool) -> u64 {
    struct Walk<F> {
        visit: F,
        added: u64,
    }
    unsafe extern "C" fn step<F: FnMut(&Object<'_>) -> bool>(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        walk: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader hands us a description, and the call below its walk.
        let (info, walk) = unsafe { (&*info, &mut *walk.cast::<Walk<F>>()) };
        walk.added = info.dlpi_adds;
        let is_program = std::ptr::addr_eq(info.dlpi_phdr, program_header() as *const libc::Elf64_Phdr);
        c_int::from(!(walk.visit)(&Object { info, is_program }))
    }
    fn walk_with<F: FnMut(&Object<'_>) -> bool>(walk: &mut Walk<F>) {
        // SAFETY: `step` has the type that is asked for and takes the pointer for what it is.
        unsafe { libc::dl_iterate_phdr(Some(step::<F>), std::ptr::from_mut(walk).cast()) };
    }
    let mut walk = Walk { visit, added: 0 };
    walk_with(&mut walk);
    walk.added
}

/// How many objects were ever loaded.
pub(crate) fn count_added() -> u64 {
    for_each(|_| false)
}

/// How long a library may take to be loaded, its constructors included.
const LOADING: Duration = Duration::from_secs(5);

/// Waits until every object that has been added by now is ready for use, that is until whoever loads one gives the loader's
/// lock back. False if that does not come.
///
/// Another thread takes the lock: it may never be had where a constructor does not return.
pub(crate) fn wait_for_loader() -> bool {
    let (tell, told) = mpsc::channel();
    let waits = intercept::aside(move || {
        owner_base(0);
        let _ = tell.send(());
    });
    waits.is_ok() && told.recv_timeout(LOADING).is_ok()
}

/// Where the program's own headers lie.
pub(crate) fn program_header() -> usize {
    // SAFETY: it reads a number that the kernel gave the process.
    unsafe { libc::getauxval(libc::AT_PHDR) as usize }
}

/// Where the symbol is found by a search that begins with the program.
pub(crate) fn look_up(name: &CStr) -> usize {
    // SAFETY: the name ends with NUL.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) as usize }
}

fn dladdr(address: usize) -> Option<libc::Dl_info> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: any address may be asked for; the answer is only read if there is one.
    unsafe { (libc::dladdr(address as *const c_void, info.as_mut_ptr()) != 0).then(|| info.assume_init()) }
}

pub(crate) fn owner_base(address: usize) -> Option<usize> {
    dladdr(address).map(|info| info.dli_fbase as usize)
}

/// The object that an address lies in, for a person to read.
pub(crate) fn owner(address: usize) -> String {
    match dladdr(address) {
        // SAFETY: the loader's names end with NUL.
        Some(info) if !info.dli_fname.is_null() => text(unsafe { CStr::from_ptr(info.dli_fname) }),
        _ if address == 0 => "no definition".into(),
        _ => "an unknown place".into(),
    }
}

pub(crate) fn text(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}
