use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::{Crew, Disk, LARGE, Trail};

/// As if the last look were a second ago, and the disk had been waited for so much of it.
fn look(trail: &mut Trail<'_>, waited: Duration) -> Crew {
    trail.looked = Instant::now() - Duration::from_secs(1);
    trail.waited = waited;
    trail.look()
}

#[test]
fn the_first_copier_of_a_large_file_finds_out_whether_more_are_of_use() {
    let file = tempfile::tempfile().expect("a file");
    let disk = Disk::new(1);
    assert!(!disk.is_busy(), "nobody is there");
    let mut small = Trail::behind(file.as_fd(), LARGE, &disk);
    assert!(!disk.is_busy(), "only at a small file");
    let mut first = Trail::behind(file.as_fd(), LARGE + 1, &disk);
    assert!(disk.is_busy(), "one is trying");
    assert_eq!(look(&mut first, Duration::from_millis(900)), Crew::Right);
    assert!(disk.is_busy(), "the disk is waited for");
    assert_eq!(look(&mut small, Duration::ZERO), Crew::Right, "which says nothing");
    assert!(disk.is_busy());
    assert_eq!(look(&mut first, Duration::ZERO), Crew::TooSmall);
    assert!(!disk.is_busy(), "more are welcome");
    assert_eq!(look(&mut first, Duration::ZERO), Crew::Right, "and were called already");
    drop(first);
    assert!(!disk.is_busy());
}

#[test]
fn of_two_copiers_that_wait_for_the_disk_half_of_the_time_one_goes() {
    let file = tempfile::tempfile().expect("a file");
    let disk = Disk::new(1);
    let mut first = Trail::behind(file.as_fd(), LARGE + 1, &disk);
    let mut second = Trail::behind(file.as_fd(), LARGE + 1, &disk);
    assert_eq!(look(&mut first, Duration::from_millis(900)), Crew::Right, "one has come since its last look");
    assert_eq!(look(&mut first, Duration::from_millis(300)), Crew::Right, "together they do more than one");
    assert_eq!(look(&mut second, Duration::from_millis(900)), Crew::TooLarge);
    drop(second);
    assert_eq!(look(&mut first, Duration::from_millis(900)), Crew::Right, "and has gone");
    assert_eq!(look(&mut first, Duration::from_millis(900)), Crew::Right, "one is never too many");
    assert!(disk.is_busy(), "who has gone stays away");
}

#[test]
fn copiers_take_turns_at_the_disk() {
    let file: File = tempfile::tempfile().expect("a file");
    let disk = Disk::new(1);
    let (begun, held) = (Instant::now(), disk.turn.lock());
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let mut trail = Trail::behind(file.as_fd(), LARGE + 1, &disk);
            trail.wrote(0..super::STEP).expect("nothing is wrong with it");
            (trail.waited, begun.elapsed())
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waiter.is_finished(), "it is another's turn");
        drop(held);
        let (waited, took) = waiter.join().expect("no panic");
        assert!(!waited.is_zero() && waited <= took, "{waited:?} of {took:?}");
    });
}
