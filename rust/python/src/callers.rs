//! Who comes to a published port, and for how long it is there.

use std::io::PipeReader;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use supermachine_proto::agent::Network;

use crate::sys::{self, Interest};

/// Whether neither has closed.
pub(crate) fn goes_on(stop: &PipeReader, ended: &PipeReader) -> bool {
    let interests = [Interest::when(true, stop, libc::POLLIN), Interest::when(true, ended, libc::POLLIN)];
    matches!(sys::poll(interests, Some(Duration::ZERO)), Ok([0, 0]))
}

/// A client as the guest sees it: by its own address, or as the gateway where that is the host's, is none of IPv4, or
/// is one of the guest's own network.
pub(crate) fn seen_as(client: SocketAddr, at: IpAddr) -> SocketAddr {
    let own = Network::default();
    let subnet = |address: Ipv4Addr| address.to_bits() >> (32 - u32::from(own.prefix));
    let address = match client.ip().to_canonical() {
        IpAddr::V4(address)
            if !address.is_loopback()
                && IpAddr::V4(address) != at.to_canonical()
                && subnet(address) != subnet(own.gateway) =>
        {
            address
        }
        _ => own.gateway,
    };
    (address, client.port()).into()
}
