//! What can be said of hooks and loaded objects without making a backup, for [`hotbackup::doctor()`].

use hotbackup::{Error, Finding, Kind, Verdict};

use crate::hooks::TABLE;
use crate::{attach, live, objects, raw_calls};

/// Looks at everything and changes nothing. On a thread of the engine's.
pub(crate) fn examine() -> Vec<Finding> {
    // Everything below asks the loader, which a library that is being loaded may hold up for as long as it likes.
    if !objects::wait_for_loader() {
        let text = "a library is still being loaded, so that nothing is known of its calls: sessions are refused until it is";
        return vec![Finding::new(Kind::Hooks, Verdict::Refuses, "the program", text)];
    }
    let mut found = hooks();
    found.extend(raw_calls::examine());
    found
}

/// How the hooks are in force, and what goes by them.
fn hooks() -> Vec<Finding> {
    match attach::examine() {
        Ok(Some(tally)) => {
            let mut text = format!(
                "all {} hooks are live: attached, {} slots and {} addresses in {} objects lead here",
                TABLE.len(),
                tally.slots,
                tally.pointers,
                tally.objects
            );
            if tally.changed > 0 {
                text += "; what has been loaded since will when a session begins";
            }
            vec![Finding::new(Kind::Hooks, Verdict::Captured, "the program", text)]
        }
        Ok(None) => from_the_start(),
        Err(error) => refused(format!("attached, but: {error}"), vec![error]),
    }
}

/// The same if the loader itself has bound calls to ours.
fn from_the_start() -> Vec<Finding> {
    let (live, all) = live::count_hooks();
    let way = if attach::is_linked() { "linked with the program" } else { "preloaded" };
    match live::all_bypasses() {
        Ok(_) if live == 0 => {
            let text = format!(
                "no function of a C library is behind the {all} hooks: a program cannot be linked statically with them"
            );
            vec![Finding::new(Kind::Hooks, Verdict::Untold, "the program", text)]
        }
        Ok(bypasses) if bypasses.is_empty() => {
            let text = format!("all {all} hooks are live: the library is {way}");
            vec![Finding::new(Kind::Hooks, Verdict::Captured, "the program", text)]
        }
        Ok(bypasses) => {
            let text = format!(
                "the library is {way}, but {} objects bypass its hooks: sessions are refused",
                bypasses.len()
            );
            refused(text, bypasses)
        }
        Err(error) => {
            refused(format!("{live} of {all} hooks are live: {error}; sessions are refused"), Vec::new())
        }
    }
}

/// That there would be no session, and the objects because of which.
fn refused(text: String, objects: Vec<Error>) -> Vec<Finding> {
    let hooks = Finding::new(Kind::Hooks, Verdict::Refuses, "the program", text);
    let of_object = |error: Error| match error {
        Error::HookNotLive { object, symbol, reason } => {
            let text = format!("its calls to {symbol} are not captured: {reason}");
            Some(Finding::new(Kind::Object, Verdict::Refuses, object, text))
        }
        _ => None,
    };
    [hooks].into_iter().chain(objects.into_iter().filter_map(of_object)).collect()
}
