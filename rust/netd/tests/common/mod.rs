//! What tests of the policy process share.

use std::thread;
use std::time::{Duration, Instant};

use supermachine_netd::channel::Channel;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The next message.
pub(crate) fn receive<T: serde::de::DeserializeOwned>(channel: &mut Channel) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        assert!(channel.receive().unwrap(), "the policy process is gone");
        if let Some(message) = channel.take().unwrap() {
            return message;
        }
        assert!(Instant::now() < end, "nothing was said");
        thread::sleep(Duration::from_millis(1));
    }
}
