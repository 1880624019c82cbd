//! As much of a 16550 UART as the kernel's earlycon driver writes to.

use supermachine_devices::tail::Tail;

/// Transmit holding register, and line status (16550D data sheet, table II).
const THR: u16 = 0;
const LSR: u16 = 5;
/// Ports that it has.
pub const PORTS: u16 = 8;
/// Transmitter and its register empty.
const IDLE: u8 = 0x60;

/// An output-only UART.
pub struct Serial(pub Tail);

impl Serial {
    /// Fills `data` from a port, counted from the first: LSR says that all is sent and nothing has come, others are
    /// zero.
    pub fn read(&self, register: u16, data: &mut [u8]) {
        data.fill(if register == LSR { IDLE } else { 0 });
    }

    /// Takes characters that are written to THR into the tail; other ports take anything.
    pub fn write(&self, register: u16, data: &[u8]) {
        if register == THR {
            self.0.push(data);
        }
    }
}
