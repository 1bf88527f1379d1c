//! Sessions under random changes, compared with what the sources were.
//!
//! Method: threads carry out a seeded mix of all captured operations in small trees whose names collide, while a
//! session runs.
//! - *parked*: at `before_cut` all threads are stopped, and the copy must equal the source in everything;
//! - *released*: at `before_cut` they are stopped, the source is read, at `after_cut` they go on; the copy must equal what
//!   was read;
//! - *through the cut*: nobody stops. Operations are logged in the order in which they took effect, one log for all threads
//!   or several with their own locks. The copy must equal the replay of a prefix of every log on a model in memory, the
//!   prefixes must belong to one instant, and that instant lies between `before_cut` and `after_cut`;
//! - *unseen*: one thread changes files of its own behind the engine's back; the copy must be right or the backup fail.
//!
//! `HOTBACKUP_SESSIONS` sets how many sessions each test runs, `HOTBACKUP_SEED` repeats one seed. The seed determines the
//! operations of each thread; the order of the threads is the machine's.

mod common;

use std::path::PathBuf;

use common::Scratch;
use common::load::{Lane, Mix};
use common::rng::Rng;
use common::sessions::{AtCut, Lanes, Outcome, Taker, Variant, report, stopped, through};
use common::tree::{Compare, Tree};

const EXCEPT_ALLOCATION: Compare = Compare { times: true, allocation: false };

/// The library that is linked to this program.
struct Linked;

impl Taker for Linked {
    const PROGRAM: &str = "-p hotbackup --test differential";
    const RINGS: bool = true;

    fn back_up(
        &self,
        mix: &Mix,
        from: &[PathBuf],
        to: &[PathBuf],
        before_cut: AtCut<'_>,
        after_cut: AtCut<'_>,
    ) -> Outcome {
        let backup = mix.backup(from, to).before_cut(before_cut).after_cut(after_cut);
        match backup.start().and_then(hotbackup::Session::finish) {
            Ok(session) => Outcome::Done(session.unseen.len(), format!("{session:?}")),
            Err(e @ hotbackup::Error::Unseen { .. }) => Outcome::Unseen(e.to_string()),
            Err(e) => Outcome::Failed(e.to_string()),
        }
    }
}

#[test]
fn a_copy_equals_the_source_that_stands_still() {
    let _alone = common::alone();
    for seed in common::seeds(50) {
        stopped(&Linked, seed, Variant::Parked, "stands_still");
    }
}

#[test]
fn a_copy_equals_the_source_as_it_was_at_the_cut() {
    let _alone = common::alone();
    for seed in common::seeds(60) {
        stopped(&Linked, seed, Variant::Released, "as_it_was_at_the_cut");
    }
}

#[test]
fn what_nobody_saw_is_copied_or_fails_the_backup() {
    let _alone = common::alone();
    for seed in common::seeds(30) {
        stopped(&Linked, seed, Variant::Unseen, "nobody_saw");
    }
}

#[test]
fn a_copy_is_a_prefix_of_what_happened() {
    let _alone = common::alone();
    for seed in common::seeds(40) {
        through(&Linked, seed, Lanes::One, "prefix_of_what_happened");
    }
}

#[test]
fn a_copy_shows_one_instant_of_all_threads() {
    let _alone = common::alone();
    for seed in common::seeds(30) {
        through(&Linked, seed, Lanes::Each, "one_instant_of_all_threads");
    }
}

/// The judge of the other tests: without it they could agree on a wrong thing.
#[test]
fn the_model_makes_of_a_log_what_the_kernel_made_of_it() {
    for seed in 1..=20 {
        let mix = Mix::of(seed, false);
        let scratch = Scratch::new(mix.in_memory);
        let (sources, _) = mix.directories(&scratch);
        let lane = Lane::new(sources, mix.shape, seed.is_multiple_of(2));
        let mut rng = Rng::new(seed);
        for id in 0..1500 {
            lane.step(&mut rng, id, id < mix.furniture);
        }
        let history = lane.into_history();
        let all = history.log.len();
        let mut last = None;
        history.replay((all, all), |_, model| {
            last = Some(model.clone());
            true
        });
        let model = last.expect("replayed");
        for (number, path) in history.paths.iter().enumerate() {
            let found = Tree::read(path).expect("the tree can be read");
            let differences = model.tree(number).differences(&found, EXCEPT_ALLOCATION, 20);
            if !differences.is_empty() {
                report(&Linked, "the_model", &mix, &differences.join("\n"));
            }
            assert!(model.equals(number, &found), "the two ways to compare disagree");
        }
    }
}
