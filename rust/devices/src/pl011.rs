//! As much of a PL011 UART (Arm DDI 0183) as the kernel's earlycon driver writes to.

use crate::tail::Tail;

const UARTDR: u64 = 0x00;
const UARTFR: u64 = 0x18;
/// Transmit FIFO empty, receive FIFO empty.
const IDLE: u32 = 1 << 7 | 1 << 4;

/// An output-only UART.
pub struct Pl011(pub Tail);

impl Pl011 {
    /// Fills `data` from the register at `offset`: UARTFR says that all is sent and nothing has come, others are zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = if offset == UARTFR { IDLE } else { 0 };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// Takes a character that is written to UARTDR into the tail; other registers take anything.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let (UARTDR, Some(byte)) = (offset, data.first()) {
            self.0.push(&[*byte]);
        }
    }
}
