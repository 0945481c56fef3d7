//! The memory that all clients share for what they have sent and what waits for them: one budget of bytes. Past it those who
//! hold more than their part are read no more until there is room; each part is equal, so whoever holds little goes on.

mod metrics;

pub(crate) use metrics::MemoryMetrics;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Bytes past the budget up to which one at a time may go on at once: a body, as large as RabbitMQ takes one, can't be kept
/// by the store before all of it is there.
const OVERDRAFT_BYTES: u64 = 128 << 20;
/// How long one waits that may go on, when even those are used up: see [`Turn::Overdrawn`].
const OVERDRAWN_WAIT: Duration = Duration::from_secs(10);
/// How long one may go on before it is another's turn,
pub const OVERDRAFT_FOR: Duration = Duration::from_secs(1);
/// unless it has sent so much meanwhile: turns among many bodies would end none of them.
pub const OVERDRAFT_BYTES_MIN: usize = 1 << 20;
/// The part of the machine's, or the container's, memory that is the budget if nobody says another.
const SHARE: u64 = 2;
/// The budget where nothing tells how much memory there is.
const UNKNOWN: u64 = 512 << 20;

/// The budget. Shared by `Arc`.
#[derive(Debug)]
pub struct Memory {
    max: u64,
    used: AtomicU64,
    holders: AtomicU64,
    room: Notify,
    overdraft: Arc<Semaphore>,
}

/// What one holds of it, until it is dropped.
#[derive(Debug)]
pub struct Held {
    memory: Arc<Memory>,
    bytes: u64,
}

/// Leave to go on although memory is short.
pub type Overdraft = OwnedSemaphorePermit;

/// What came of waiting.
#[derive(Debug)]
pub enum Turn {
    /// There is room.
    Room,
    /// There is none, and whoever waited goes on without.
    Overdraft(Option<Overdraft>),
    /// As well, but more is overdrawn than may be, and has been for a while: those who hold it don't come to an end. Whoever
    /// waited has to give something up; who can't may go on, for a wait that can't end helps nobody.
    Overdrawn(Option<Overdraft>),
}

impl Memory {
    /// With so many bytes.
    pub fn new(max: u64) -> Arc<Self> {
        let (used, holders) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { max, used, holders, room: Notify::new(), overdraft: Arc::new(Semaphore::new(1)) })
    }

    /// Bytes that are held.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that may be held.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Whether more is held than may be.
    pub fn is_short(&self) -> bool {
        self.used() > self.max
    }

    fn is_overdrawn(&self) -> bool {
        self.used() > self.max.saturating_add(OVERDRAFT_BYTES)
    }

    /// For one client, which holds nothing yet.
    pub fn part(self: &Arc<Self>) -> Held {
        Held { memory: Arc::clone(self), bytes: 0 }
    }

    /// Waits until there is room, or it is the caller's turn to go on without, for [`OVERDRAFT_FOR`].
    pub async fn turn(self: Arc<Self>) -> Turn {
        let leave = tokio::select! {
            () = self.until(|| !self.is_short()) => return Turn::Room,
            leave = Arc::clone(&self.overdraft).acquire_owned() => leave.ok(),
        };
        match timeout(OVERDRAWN_WAIT, self.until(|| !self.is_overdrawn())).await {
            Ok(()) => Turn::Overdraft(leave),
            Err(_) => Turn::Overdrawn(leave),
        }
    }

    async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            let room = self.room.notified();
            if holds() {
                return;
            }
            room.await;
        }
    }
}

impl Held {
    /// It is so many bytes now.
    pub fn set(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        let Memory { used, holders, room, .. } = &*self.memory;
        if bytes > self.bytes {
            used.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else if bytes < self.bytes {
            used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            room.notify_waiters();
        }
        match (self.bytes, bytes) {
            (0, 1..) => drop(holders.fetch_add(1, Ordering::Relaxed)),
            (1.., 0) => drop(holders.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }
        self.bytes = bytes;
    }

    /// How many bytes it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether its holder has to wait: memory is short, and this is more than an equal part of it.
    pub fn is_too_much(&self) -> bool {
        let holders = self.memory.holders.load(Ordering::Relaxed).max(1);
        self.memory.is_short() && self.bytes > self.memory.max / holders
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The budget if nobody says another: a part of what the container may use, or the machine has.
pub fn by_default() -> u64 {
    let total = available(Path::new("/"));
    total.map_or(UNKNOWN, |total| total / SHARE)
}

/// Bytes of memory: of the container, by cgroups of either version, or of the machine.
fn available(root: &Path) -> Option<u64> {
    let number = |path: &str| fs::read_to_string(root.join(path)).ok()?.trim().parse::<u64>().ok();
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    });
    let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let of_version_1 = own.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path));
    let of_version_2 = own.lines().find_map(|line| line.strip_prefix("0::"));
    let limits = [
        of_version_2.and_then(|path| number(&format!("sys/fs/cgroup{path}/memory.max"))),
        number("sys/fs/cgroup/memory.max"),
        of_version_1.and_then(|path| number(&format!("sys/fs/cgroup/memory{path}/memory.limit_in_bytes"))),
        number("sys/fs/cgroup/memory/memory.limit_in_bytes"),
        machine,
    ];
    limits.into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn the_heaviest_wait_until_there_is_room_and_the_others_do_not() {
        let memory = Memory::new(100);
        let (mut light, mut heavy) = (memory.part(), memory.part());
        light.set(10);
        heavy.set(90);
        assert!(!heavy.is_too_much());
        light.set(20);
        assert!(heavy.is_too_much() && !light.is_too_much());
        let waiting = tokio::spawn(Arc::clone(&memory).turn());
        let first = waiting.await.expect("no panic");
        assert!(matches!(first, Turn::Overdraft(Some(_))), "one may go on");
        let second = tokio::spawn(Arc::clone(&memory).turn());
        tokio::task::yield_now().await;
        assert!(!second.is_finished(), "one at a time");
        heavy.set(0);
        assert!(matches!(second.await.expect("no panic"), Turn::Room));
        drop(first);
        assert_eq!(memory.used(), 20);
        drop((light, heavy));
        assert_eq!((memory.used(), memory.holders.load(Ordering::Relaxed)), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_on_beyond_the_overdraft_waits_first_and_not_for_ever() {
        let memory = Memory::new(100);
        let mut heavy = memory.part();
        heavy.set(101 + OVERDRAFT_BYTES as usize);
        let waiting = tokio::spawn(Arc::clone(&memory).turn());
        sleep(OVERDRAWN_WAIT - Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        heavy.set(101);
        assert!(
            matches!(waiting.await.expect("no panic"), Turn::Overdraft(Some(_))),
            "there is some to overdraw again"
        );
        heavy.set(101 + OVERDRAFT_BYTES as usize);
        assert!(matches!(Arc::clone(&memory).turn().await, Turn::Overdrawn(Some(_))), "after a while");
    }

    #[test]
    fn a_containers_limit_counts_before_the_machines() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        };
        assert_eq!(available(root.path()), None);
        write("proc/meminfo", "MemTotal:        2048 kB\nMemFree: 1 kB\n");
        assert_eq!(available(root.path()), Some(2 << 20));
        write("sys/fs/cgroup/memory.max", "max\n");
        assert_eq!(available(root.path()), Some(2 << 20));
        write("proc/self/cgroup", "0::/pod\n");
        write("sys/fs/cgroup/pod/memory.max", "1048576\n");
        assert_eq!(available(root.path()), Some(1 << 20));
        write("proc/self/cgroup", "5:memory:/docker/x\n");
        write("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "4096\n");
        assert_eq!(available(root.path()), Some(4096));
    }
}
