//! What a guest can make the host keep for it.

use std::time::Duration;

/// Flows at once, pending ones included. A further one is refused.
pub const FLOWS: usize = 16 * 1024;
/// UDP flows among them; the one that was idle the longest makes room.
pub const UDP_FLOWS: usize = 4 * 1024;
/// Bytes of one flow that wait in each direction.
pub const RING: usize = 512 * 1024;
/// Bytes of all flows that wait. Beyond it bytes from the guest are taken only as far as the socket takes them, and
/// bytes for the guest are read only when none wait.
pub const RINGS: usize = 64 << 20;
/// Datagrams that wait for the broker's answer, for each flow.
pub const WAITING_DATAGRAMS: usize = 4;
/// Bytes of a datagram.
pub const DATAGRAM: usize = 65_507;
/// Answers of the stack's own (ARP, ICMP, resets) that wait for the guest's buffers; further ones are lost, as they may
/// be on any network.
pub const ANSWERS: usize = 256;
/// Fragmented datagrams that are put together at once, and how long one may take.
pub const REASSEMBLIES: usize = 16;
/// How long one of them may take.
pub const REASSEMBLY: Duration = Duration::from_secs(10);
/// How long a broker may take for an answer. It has its own deadline, which is shorter.
pub const ANSWER: Duration = Duration::from_secs(90);
/// How long a UDP flow lives without a datagram.
pub const UDP_IDLE: Duration = Duration::from_secs(120);
/// First wait for an acknowledgement, doubled each time; and how many times something is sent again.
pub const RETRANSMISSION: Duration = Duration::from_secs(1);
/// The longest wait for an acknowledgement.
pub const MAX_WAIT: Duration = Duration::from_secs(30);
/// How often something is sent again before the connection is given up.
pub const RETRANSMISSIONS: u8 = 12;
/// The same of a connection to a guest that has never spoken by IPv6, over which it would come: three seconds.
pub const SILENT: u8 = 2;
