//! Directories and files of the host that the guest may mount: opened before the process is confined, and served to the
//! guest by the machine's file device.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use supermachine_machine::{Machine, Server};
use supermachine_proto::worker::{Event, Share};
use supermachine_support::lock;

use crate::confine::Beneath;
use crate::ended::Ended;

/// What a worker has open for its shares.
pub(crate) struct Shares {
    #[cfg(target_os = "linux")]
    session: supermachine_fs::Session,
    #[cfg(target_os = "linux")]
    waits: Arc<Waits>,
}

/// Between two attempts at a lock that somebody else has: the host tells of none that is given up. The first, and the
/// longest.
const ATTEMPTS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// What is to be done beside the vCPU that asks for a file.
#[derive(Default)]
pub(crate) struct Waits {
    due: Mutex<Due>,
    told: Condvar,
}

#[derive(Default)]
struct Due {
    /// Whether a process of the guest's waits for a lock that another guest or the host has.
    somebody: bool,
    /// What the API is to hear of: it may not be listening at the moment.
    events: Vec<Event>,
    /// Whether there may be something later.
    later: bool,
}

impl Waits {
    #[cfg(target_os = "linux")]
    fn tell(&self, change: impl FnOnce(&mut Due)) {
        change(&mut lock(&self.due));
        self.told.notify_one();
    }

    /// Whether nothing is to be done, now or later.
    pub(crate) fn is_idle(&self) -> bool {
        let due = lock(&self.due);
        !due.later && due.events.is_empty()
    }

    /// Has locks that are waited for be tried again, and says what is to be said, as long as the process lives.
    pub(crate) fn serve(&self, machine: &Machine, say: impl Fn(&Event)) {
        loop {
            let nothing = |due: &mut Due| !due.somebody && due.events.is_empty();
            let due = self.told.wait_while(lock(&self.due), nothing);
            let mut due = due.unwrap_or_else(PoisonError::into_inner);
            let (somebody, later) = (std::mem::take(&mut due.somebody), due.later);
            let events = std::mem::take(&mut due.events);
            drop(due);
            events.iter().for_each(&say);
            if !later {
                return;
            }
            if !somebody {
                continue;
            }
            let mut pause = ATTEMPTS.0;
            while machine.retry_files() {
                thread::sleep(pause);
                pause = (2 * pause).min(ATTEMPTS.1);
            }
        }
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::OsString;
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStringExt;

    use supermachine_fs::{Cache, Session, Share as Open, Stale, Why};
    use supermachine_machine::Served;
    use supermachine_proto::worker::{ShareCache, ShareOwner, StaleReason};
    use supermachine_support::entropy;
    use vm_memory::VolatileSlice;

    use super::*;

    /// Descriptors that the server may have of the worker's.
    const DESCRIPTORS: u64 = 4096;

    impl Shares {
        pub(crate) fn open(shares: &[Share]) -> Result<Self, Ended> {
            let open = |share: &Share| {
                let cache = match share.cache {
                    ShareCache::Auto => Cache::Auto,
                    ShareCache::None => Cache::None,
                    ShareCache::Always => Cache::Always,
                };
                let opened =
                    Open::open(&share.path, share.read_only, cache).and_then(|opened| match share.owner {
                        ShareOwner::Map => Ok(opened),
                        ShareOwner::Virtual => opened.with_owners_of_its_own(),
                    });
                opened
                    .map(|opened| match share.quota_bytes {
                        Some(bytes) => opened.with_quota(bytes),
                        None => opened,
                    })
                    .map(|opened| if share.watch { opened.watched() } else { opened })
                    .map_err(|e| Ended::bad(format!("{} cannot be shared: {e}", share.path.display())))
            };
            let shares = shares.iter().map(open).collect::<Result<Vec<_>, _>>()?;
            let mut first = [0; 8];
            entropy(&mut first).map_err(|e| Ended::bad(e.to_string()))?;
            let session = Session::new(shares, DESCRIPTORS, u64::from_le_bytes(first));
            let session = session.map_err(|e| Ended::bad(e.to_string()))?;
            Ok(Self { session, waits: Arc::default() })
        }

        /// Where there is something to be done beside: at any time where there are shares, else at once or never.
        pub(crate) fn waits(&self) -> Option<Arc<Waits>> {
            let waits = self.waits.clone();
            lock(&waits.due).later = !self.session.shares().is_empty();
            Some(waits)
        }

        /// Has the API be told of what is stale.
        fn tell_of_stale(&mut self) {
            let stale = self.session.stale();
            if !stale.is_empty() {
                self.waits.tell(|due| due.events.extend(stale.into_iter().map(said)));
            }
        }

        /// What the process needs to reach of the file system when it is confined.
        pub(crate) fn reached(&self) -> Vec<Beneath<'_>> {
            let shares = self.session.shares().iter();
            let reached = shares.map(|share| Beneath {
                top: share.descriptor().as_fd(),
                directory: share.is_directory(),
                read_only: share.is_read_only(),
            });
            reached.collect()
        }

        pub(crate) fn server(self) -> Option<Box<dyn Server>> {
            Some(Box::new(self))
        }
    }

    fn said(Stale { share, path, why }: Stale) -> Event {
        let why = match why {
            Why::Changed => StaleReason::Changed,
            Why::ReadOnly => StaleReason::ReadOnly,
            Why::OtherShare => StaleReason::OtherShare,
            Why::Refused => StaleReason::Refused,
        };
        Event::Stale { share: share.into(), path: OsString::from_vec(path).into(), why }
    }

    impl Server for Shares {
        fn serve(&mut self, request: &[VolatileSlice<'_>], answer: &[VolatileSlice<'_>]) -> Served {
            let served = self.session.serve(request, answer);
            self.tell_of_stale();
            match served {
                supermachine_fs::Served::Answered(written) => Served::Answered(written),
                supermachine_fs::Served::Unawaited => Served::Unawaited,
                supermachine_fs::Served::Later => {
                    self.waits.tell(|due| due.somebody = true);
                    Served::Later
                }
            }
        }

        fn has_news(&mut self) -> bool {
            self.session.has_news()
        }

        fn save(&self) -> Vec<u8> {
            self.session.save()
        }

        fn restore(&mut self, saved: Vec<u8>) {
            self.session.restore(saved);
            self.tell_of_stale();
        }

        fn reset(&mut self) {
            self.session.clear();
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Shares {
    /// There is a file server for Linux hosts alone.
    pub(crate) fn open(shares: &[Share]) -> Result<Self, Ended> {
        match shares {
            [] => Ok(Self {}),
            [share, ..] => {
                let path = share.path.display();
                Err(Ended::bad(format!(
                    "{path} cannot be shared: that needs a Linux host; copy the files in instead"
                )))
            }
        }
    }

    pub(crate) fn waits(&self) -> Option<Arc<Waits>> {
        None
    }

    pub(crate) fn reached(&self) -> Vec<Beneath<'_>> {
        Vec::new()
    }

    pub(crate) fn server(self) -> Option<Box<dyn Server>> {
        None
    }
}
