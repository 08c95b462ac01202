//! What is in a capture, counted as it comes.

use super::pcapng::{BYTE_ORDER, PACKET, STATISTICS, STATISTICS_DROPPED};

/// The longest block that is believed: a packet and what is said of it.
const LONGEST_BLOCK: usize = 1 << 20;

/// Counts what [`Writer`](super::Writer) wrote.
#[derive(Debug, Default)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Packets that the file lacks, because whoever read was too slow.
    pub lost: u64,
    /// Interfaces whose last word was seen.
    pub finished: usize,
    partial: Vec<u8>,
}

impl Tally {
    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// It is no such file.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        self.partial.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(kind) = word(&self.partial, at)
            && let Some(length) = word(&self.partial, at + 4)
        {
            let length = length as usize;
            if !(12..=LONGEST_BLOCK).contains(&length) || !length.is_multiple_of(4) {
                return Err("this is no capture");
            }
            let Some(block) = self.partial.get(at..at + length) else {
                break;
            };
            match kind {
                PACKET => self.packets += 1,
                STATISTICS => {
                    self.lost += dropped(block);
                    self.finished += 1;
                }
                0x0A0D_0D0A if word(block, 8) != Some(BYTE_ORDER) => {
                    return Err("this is no capture");
                }
                _ => {}
            }
            at += length;
        }
        self.partial.drain(..at);
        Ok(())
    }

    /// Bytes at the end of what came that are no whole block yet.
    pub const fn unfinished(&self) -> usize {
        self.partial.len()
    }
}

/// What an Interface Statistics block says about packets that were lost.
fn dropped(block: &[u8]) -> u64 {
    let mut at = 20;
    while let Some(option) = word(block, at) {
        let (code, length) = (option as u16, (option >> 16) as usize);
        at += 4;
        if code == STATISTICS_DROPPED
            && let Some(value) = block.get(at..at + 8)
        {
            return value
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        }
        at += length.next_multiple_of(4);
        if code == 0 {
            break;
        }
    }
    0
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}
