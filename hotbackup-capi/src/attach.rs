//! Attaching to a process that runs already: every place through which it reaches a hooked function is led to ours.
//!
//! Invariant: while attached, [`keep`] has found before each session, and before and behind each try of its cut, that every
//! place of every loaded object leads to us, and that no thread is inside a call which it began by another way.
//!
//! The loader's functions are not hooked: dlopen(3) looks at who calls it, and nobody may stand between. Instead the loader's
//! count of the objects that it ever added tells that there may be new ones; what they did before they were found, the
//! session learns of by [`intercept::missed`].

use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hotbackup::{Error, Op, Result, intercept};

use crate::declarations::{Attachment, Way};
use crate::elf::Tables;
use crate::hooks::TABLE;
use crate::live;
use crate::objects::{self, look_up, owner};
use crate::settle::settle;
use crate::slots::{Memory, Obstacle, Places, Purpose, Tally};

/// What is known from one walk to the next.
struct State {
    attachment: Option<Attachment>,
    /// Places were changed, and threads may still be inside calls that they began before.
    unsettled: bool,
    /// Everything that is compared with, as long as no object is added, and how many were when it was made.
    places: Option<(Places, u64)>,
}

static STATE: Mutex<State> = Mutex::new(State { attachment: None, unsettled: false, places: None });
static ATTACHED: AtomicBool = AtomicBool::new(false);

/// How often a walk is begun anew because objects come and go.
const WALKS: u32 = 50;
/// How often places are led to us again that a thread had bound meanwhile.
const ROUNDS: u32 = 5;

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether calls of the program were led to us.
pub(crate) fn is_attached() -> bool {
    ATTACHED.load(Ordering::Acquire)
}

/// Leads all calls to us, or none.
pub(crate) fn attach() -> Result<Attachment> {
    let mut state = state();
    live::begin();
    if let Some(attachment) = state.attachment {
        return Ok(attachment);
    }
    if live::in_force().is_ok() {
        let way = if is_linked() { Way::Linked } else { Way::Preloaded };
        return Ok(attachment(way, Tally::default(), Instant::now()));
    }
    let begun = Instant::now();
    no_other()?;
    live::one_namespace()?;
    TABLE.iter().for_each(|hook| hook.real.aim_behind_all());
    state.walk(Purpose::Examine)?;
    let tally = state.walk(Purpose::Attach).inspect_err(|_| {
        let _ = state.walk(Purpose::Detach);
    })?;
    state.unsettled = true;
    let attachment = attachment(Way::Attached, tally, begun);
    state.attachment = Some(attachment);
    ATTACHED.store(true, Ordering::Release);
    Ok(attachment)
}

/// Leads all calls to the C library again.
pub(crate) fn detach() -> Result<()> {
    let mut state = state();
    if state.attachment.is_none() {
        return Ok(());
    }
    if hotbackup::current().is_some() {
        return Err(Error::Busy);
    }
    state.walk(Purpose::Detach)?;
    state.attachment = None;
    ATTACHED.store(false, Ordering::Release);
    Ok(())
}

/// Leads to us what has come since, and waits until nobody is inside a call that began before.
pub(crate) fn keep() -> Result<()> {
    let mut state = state();
    if state.attachment.is_none() {
        return live::in_force();
    }
    for _ in 0..ROUNDS {
        state.wait_for_new()?;
        live::one_namespace()?;
        TABLE.iter().filter(|hook| hook.real.known() == 0).for_each(|hook| hook.real.aim_behind_all());
        let tally = state.walk(Purpose::Attach)?;
        if let Some(attachment) = &mut state.attachment {
            attachment.count(&tally);
        }
        if tally.changed > 0 {
            intercept::missed();
            state.unsettled = true;
        }
        if !state.unsettled {
            return Ok(());
        }
        settle()?;
        // A thread that was binding a slot may have stored the C library's address meanwhile: look again.
        state.unsettled = false;
    }
    Err(Obstacle::Moving.into())
}

/// How calls of the program reach us, and what the next session would have to lead here first. Changes nothing. `None` if they
/// are not led here. Fails with the first object that stands in the way of a session.
pub(crate) fn examine() -> Result<Option<Tally>> {
    let mut state = state();
    let Some(Attachment { objects, slots, pointers, .. }) = state.attachment else { return Ok(None) };
    state.wait_for_new()?;
    live::one_namespace()?;
    let walked = state.walk(Purpose::Examine);
    state.places = None;
    match walked {
        // It has come with a library since: a session looks it up first, which keeps that library loaded.
        Err(Error::HookNotLive { ref symbol, .. }) if is_unknown(symbol) => {
            Ok(Some(Tally { objects, slots, pointers, changed: 1 }))
        }
        walked => walked.map(Some),
    }
}

/// Whether it has not been looked up yet which function a hook replaces.
fn is_unknown(symbol: &str) -> bool {
    TABLE.iter().any(|hook| hook.real.known() == 0 && hook.name.to_bytes() == symbol.as_bytes())
}

/// Waits until every object that has been added is ready for use.
pub(crate) fn wait_for_loader() -> Result<()> {
    if objects::wait_for_loader() {
        return Ok(());
    }
    let reason = "it is still being loaded, so that nothing is known of its calls".into();
    Err(Error::HookNotLive { object: "a library".into(), symbol: "the C library".into(), reason })
}

impl State {
    /// Waits until objects that are not known yet are ready for use, and forgets what the known ones are compared with. Returns how
    /// many were ever added. To be called before the loader is asked anything: who loads a library may hold it for ever.
    fn wait_for_new(&mut self) -> Result<u64> {
        let added = objects::count_added();
        if self.places.as_ref().is_none_or(|&(_, known)| known != added) {
            self.places = None;
            wait_for_loader()?;
        }
        Ok(added)
    }

    /// Walks through all objects at a moment at which none is being loaded.
    fn walk(&mut self, purpose: Purpose) -> Result<Tally> {
        for _ in 0..WALKS {
            let added = self.wait_for_new()?;
            // What the program does with its memory is not counted.
            let memory = Memory::read().map_err(|source| Error::Io {
                op: Op::Read,
                path: "/proc/self/maps".into(),
                source,
            })?;
            let places = match self.places.take() {
                Some((places, _)) => places.with(memory),
                None => Places::new(memory),
            };
            let walked = places.walk(purpose, added);
            self.places = Some((places, added));
            match walked {
                Err(Obstacle::Moving) => self.places = None,
                done => return Ok(done?),
            }
        }
        Err(Obstacle::Moving.into())
    }
}

fn attachment(way: Way, tally: Tally, begun: Instant) -> Attachment {
    let took_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut attachment =
        Attachment { size: size_of::<Attachment>(), way, objects: 0, slots: 0, pointers: 0, took_ns };
    attachment.count(&tally);
    attachment
}

impl Attachment {
    fn count(&mut self, tally: &Tally) {
        (self.objects, self.slots, self.pointers) = (tally.objects, tally.slots, tally.pointers);
    }
}

/// Fails if another copy of the library is in force: two of them would see different worlds.
fn no_other() -> Result<()> {
    let first = look_up(c"hotbackup_attach");
    if first == 0 || first == crate::api::hotbackup_attach as *const () as usize {
        return Ok(());
    }
    Err(Error::HookNotLive {
        object: "the program".into(),
        symbol: "hotbackup_attach".into(),
        reason: format!("another copy of the library is loaded already: {}", owner(first)),
    })
}

/// Whether the hooks came with the program: they are in it, or it names the library.
pub(crate) fn is_linked() -> bool {
    let ours = TABLE.first().map_or(0, |hook| hook.ours as usize);
    let mut linked = false;
    objects::for_each(|object| {
        // The program is the first.
        let needs = |tables: Tables| tables.needed().any(is_our_name);
        linked = object.contains(ours) || object.tables().is_some_and(needs);
        false
    });
    linked
}

fn is_our_name(name: &CStr) -> bool {
    name.to_bytes()
        .rsplit(|&byte| byte == b'/')
        .next()
        .is_some_and(|name| name.starts_with(b"libHotBackup.so"))
}
