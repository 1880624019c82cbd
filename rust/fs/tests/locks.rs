//! Locks: between the processes of a guest, between guests, and with programs of the host.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(target_os = "linux")]

mod common;

use std::fs::File;

use common::{Client, SHARE, share};
use rustix::fs::FlockOperation;
use supermachine_fs::Served;
use supermachine_fs::abi::op;

const READ: i32 = libc::F_RDLCK;
const WRITE: i32 = libc::F_WRLCK;
const NONE: i32 = libc::F_UNLCK;
const END: u64 = i64::MAX as u64;
/// Two processes of a guest's.
const ONE: u64 = 0x1111;
const OTHER: u64 = 0x2222;

/// A guest that has a file of the share's open, for reading and writing.
struct Guest {
    client: Client,
    node: u64,
    handle: u64,
}

impl Guest {
    fn new(place: &tempfile::TempDir) -> Self {
        let mut client = Client::new(vec![share(place.path(), false)]);
        let node = client.lookup(SHARE, b"file").unwrap().0;
        let handle = client.open(node, 0o2).unwrap();
        Self { client, node, handle }
    }

    fn request(&self, owner: u64, (start, end): (u64, u64), kind: i32, flags: u32) -> Vec<u8> {
        args!(self.handle, owner, start, end, kind as u32, owner as u32, flags, 0_u32)
    }

    fn set(&mut self, owner: u64, range: (u64, u64), kind: i32) -> Result<(), i32> {
        let request = self.request(owner, range, kind, 0);
        self.client.call(op::SETLK, self.node, &request).map(drop)
    }

    /// Waits, under the number of a request; `None` while it does.
    fn wait(&mut self, unique: u64, owner: u64, range: (u64, u64), kind: i32) -> Option<Result<(), i32>> {
        let request = self.request(owner, range, kind, 0);
        self.client.unique = unique - 2;
        let answer = self.client.call(op::SETLKW, self.node, &request).map(drop);
        (self.client.served != Served::Later).then_some(answer)
    }

    /// What is in the way of a lock: kind and process.
    fn get(&mut self, owner: u64, range: (u64, u64), kind: i32) -> (u64, u64, i32, u32) {
        let request = self.request(owner, range, kind, 0);
        let answer = self.client.call(op::GETLK, self.node, &request).unwrap();
        let number = |at: usize| u64::from_le_bytes(answer[at..at + 8].try_into().unwrap());
        let word = |at: usize| u32::from_le_bytes(answer[at..at + 4].try_into().unwrap());
        (number(0), number(8), word(16) as i32, word(20))
    }

    fn flock(&mut self, kind: i32) -> Result<(), i32> {
        let request = self.request(7, (0, END), kind, 1);
        self.client.call(op::SETLK, self.node, &request).map(drop)
    }

    fn flush(&mut self, owner: u64) {
        self.client.call(op::FLUSH, self.node, &args!(self.handle, 0_u32, 0_u32, owner)).unwrap();
    }
}

fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("file"), "contents").unwrap();
    place
}

/// Locks all of it as another program of the host's does.
fn on_host(file: &File, how: FlockOperation) -> bool {
    rustix::fs::fcntl_lock(file, how).is_ok()
}

#[test]
fn processes_guests_and_the_host_exclude_each_other() {
    let place = place();
    let (mut one, mut two) = (Guest::new(&place), Guest::new(&place));
    let host = File::options().read(true).write(true).open(place.path().join("file")).unwrap();
    one.set(ONE, (0, 9), WRITE).unwrap();
    assert_eq!(one.set(OTHER, (9, 9), READ), Err(libc::EAGAIN));
    assert_eq!(two.set(ONE, (9, 9), READ), Err(libc::EAGAIN));
    assert!(!on_host(&host, FlockOperation::NonBlockingLockShared));
    assert_eq!(one.get(OTHER, (5, 20), READ), (0, 9, WRITE, ONE as u32));
    // The other guest's process has no number here.
    assert_eq!(two.get(ONE, (5, 20), READ), (0, 9, WRITE, 0));
    assert_eq!(two.get(ONE, (10, END), WRITE).2, NONE);
    // The middle is given up, and what is left holds.
    one.set(ONE, (4, 4), NONE).unwrap();
    two.set(ONE, (4, 4), WRITE).unwrap();
    assert_eq!(one.set(ONE, (4, 4), READ), Err(libc::EAGAIN));
    assert_eq!(two.set(ONE, (5, 5), READ), Err(libc::EAGAIN));
    two.set(ONE, (4, 4), NONE).unwrap();
    // Many read.
    one.set(ONE, (0, END), READ).unwrap();
    one.set(OTHER, (0, END), READ).unwrap();
    two.set(ONE, (0, END), READ).unwrap();
    assert!(on_host(&host, FlockOperation::NonBlockingLockShared));
    assert_eq!(one.set(ONE, (3, 3), WRITE), Err(libc::EAGAIN));
}

#[test]
fn who_closes_a_file_gives_its_locks_up() {
    let place = place();
    let (mut one, mut two) = (Guest::new(&place), Guest::new(&place));
    one.set(ONE, (0, 0), WRITE).unwrap();
    one.set(OTHER, (1, 1), WRITE).unwrap();
    one.flush(ONE);
    two.set(ONE, (0, 0), WRITE).unwrap();
    assert_eq!(two.set(ONE, (1, 1), WRITE), Err(libc::EAGAIN));
    one.client.release(one.node, one.handle);
    two.set(ONE, (1, 1), WRITE).unwrap();
    // So does a guest that starts over, or ends.
    assert_eq!(Guest::new(&place).set(ONE, (1, 1), WRITE), Err(libc::EAGAIN));
    two.client.init().unwrap();
    one = Guest::new(&place);
    one.set(ONE, (0, END), WRITE).unwrap();
    drop(one);
    Guest::new(&place).set(ONE, (0, END), WRITE).unwrap();
}

#[test]
fn who_waits_is_not_answered_until_it_has_the_lock() {
    let place = place();
    let (mut one, mut two) = (Guest::new(&place), Guest::new(&place));
    one.set(ONE, (0, 9), WRITE).unwrap();
    assert_eq!(one.wait(100, OTHER, (9, 9), READ), None);
    assert_eq!(two.wait(100, ONE, (0, 0), WRITE), None);
    one.client.session.has_news();
    assert!(one.client.session.has_waiting());
    assert_eq!(one.wait(100, OTHER, (9, 9), READ), None);
    one.set(ONE, (0, END), NONE).unwrap();
    assert!(one.client.session.has_news());
    assert_eq!(one.wait(100, OTHER, (9, 9), READ), Some(Ok(())));
    assert!(!one.client.session.has_waiting());
    assert_eq!(two.wait(100, ONE, (0, 0), WRITE), Some(Ok(())));
}

#[test]
fn who_waits_can_be_interrupted() {
    let place = place();
    let mut one = Guest::new(&place);
    one.set(ONE, (0, 9), WRITE).unwrap();
    assert_eq!(one.wait(100, OTHER, (0, 0), READ), None);
    one.client.session.has_news();
    assert_eq!(one.client.lookup(1, b"interrupt"), Err(libc::ENOENT));
    assert!(one.client.session.has_news());
    assert_eq!(one.wait(100, OTHER, (0, 0), READ), Some(Err(libc::EINTR)));
    // It may wait anew.
    assert_eq!(one.wait(102, OTHER, (0, 0), READ), None);
}

#[test]
fn two_that_wait_for_each_other_are_told() {
    let place = place();
    let mut one = Guest::new(&place);
    one.set(ONE, (0, 0), WRITE).unwrap();
    one.set(OTHER, (1, 1), WRITE).unwrap();
    one.set(3, (2, 2), WRITE).unwrap();
    assert_eq!(one.wait(100, ONE, (1, 1), READ), None);
    // No circle yet: the third is waited for by nobody.
    assert_eq!(one.wait(102, 3, (0, 0), WRITE), None);
    assert_eq!(one.wait(104, OTHER, (0, 0), READ), Some(Err(libc::EDEADLK)));
    // By way of the third.
    assert_eq!(one.wait(106, OTHER, (2, 2), READ), Some(Err(libc::EDEADLK)));
    one.set(4, (3, 3), WRITE).unwrap();
    assert_eq!(one.wait(108, OTHER, (3, 3), READ), None);
}

#[test]
fn whole_files_are_locked_by_open_file() {
    let place = place();
    let (mut one, mut two) = (Guest::new(&place), Guest::new(&place));
    let host = File::open(place.path().join("file")).unwrap();
    one.flock(WRITE).unwrap();
    assert_eq!(two.flock(READ), Err(libc::EAGAIN));
    assert!(host.try_lock_shared().is_err());
    one.flock(READ).unwrap();
    two.flock(READ).unwrap();
    host.try_lock_shared().unwrap();
    assert_eq!(one.flock(WRITE), Err(libc::EAGAIN));
    two.client.release(two.node, two.handle);
    host.unlock().unwrap();
    one.flock(WRITE).unwrap();
}

/// A guest cannot have more descriptors of the worker's by way of locks.
#[test]
fn locks_are_counted() {
    let place = place();
    let mut one = Guest::new(&place);
    let taken = (0..10_000).take_while(|owner| one.set(*owner, (*owner, *owner), WRITE).is_ok()).count();
    assert!((1000..4096).contains(&taken), "{taken}");
    assert_eq!(one.set(20_000, (20_000, 20_000), WRITE), Err(libc::ENOLCK));
    // Nor more memory.
    let single = (0..10_000_u64).take_while(|n| one.set(0, (3 * n + 100_000, 3 * n + 100_000), READ).is_ok());
    assert!(single.count() < 5000);
    let request = one.request(1, (5, 4), WRITE, 0);
    assert_eq!(one.client.call(op::SETLK, one.node, &request), Err(libc::EINVAL));
}

/// One user's locks, and its processes that wait for some, leave the others as many.
#[test]
fn one_user_does_not_take_the_locks_of_all() {
    let place = place();
    let mut one = Guest::new(&place);
    one.client.user = 1000;
    let taken =
        (0..10_000).take_while(|owner| one.set(*owner, (*owner, *owner), WRITE).is_ok()).count() as u64;
    assert_eq!(one.set(20_000, (20_000, 20_000), WRITE), Err(libc::ENOLCK));
    one.client.user = 1001;
    assert_eq!(one.set(20_000, (20_000, 20_000), WRITE), Ok(()));
    // What is given up can be had again.
    one.client.user = 1000;
    one.flush(taken - 1);
    assert_eq!(one.set(20_001, (30_000, 30_000), WRITE), Ok(()));
    one.flush(taken - 2);
    let mut waits = |n: u64| one.wait(2 * n, 30_000 + n, (0, 0), WRITE);
    let waiting = (100..10_000).take_while(|n| waits(*n).is_none()).count();
    assert!(waiting >= 100, "{waiting}");
    assert_eq!(waits(20_000), Some(Err(libc::ENOLCK)));
    one.client.user = 1001;
    assert_eq!(one.wait(60_000, 60_000, (0, 0), WRITE), None);
}
