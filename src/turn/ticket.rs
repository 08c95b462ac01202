//! MOBILITY-TICKET (RFC 8016 §3): what it says is for this server alone.
//!
//! A ticket names an allocation and how often it has moved. It is encrypted and authenticated in one, by AES-256-GCM-SIV
//! under a key that all shards share, and 32 letters long: old clients keep it in a string of no more. Its nonce is
//! always the same, which SIV allows for: equal tickets are equal, and that is all they tell.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::allocation::AllocationId;

/// Length of a ticket on the wire, in bytes.
pub(super) const TICKET_LENGTH: usize = 32;

const BODY: usize = 8;
const TAG: usize = 16;

/// Bits of [`Ticket::bits`], from the lowest: how often it moved, generation, slot; shard has the rest.
const MOVES_BITS: u32 = 16;
const GENERATION_BITS: u32 = 17;
const SLOT_BITS: u32 = 24;

/// What a ticket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    /// The shard that has the allocation.
    pub shard: u8,
    /// The allocation's slot there.
    pub slot: u32,
    /// The lower bits of its generation: see [`Ticket::names`].
    generation: u32,
    /// How often the allocation had moved when the ticket was made.
    pub moves: u16,
}

impl Ticket {
    /// Whether it was made for `id`. Generations that are 2^17 apart are not told apart; whoever has such a ticket has to
    /// be the owner of the allocation all the same.
    pub const fn names(&self, id: AllocationId) -> bool {
        self.slot == id.slot && self.generation == id.generation % (1 << GENERATION_BITS)
    }

    const fn bits(self) -> u64 {
        let mut bits = self.shard as u64;
        bits = (bits << SLOT_BITS) | self.slot as u64;
        bits = (bits << GENERATION_BITS) | self.generation as u64;
        (bits << MOVES_BITS) | self.moves as u64
    }

    const fn from_bits(bits: u64) -> Self {
        let generation = bits >> MOVES_BITS;
        let slot = generation >> GENERATION_BITS;
        Self {
            shard: (slot >> SLOT_BITS) as u8,
            slot: (slot % (1 << SLOT_BITS)) as u32,
            generation: (generation % (1 << GENERATION_BITS)) as u32,
            moves: bits as u16,
        }
    }
}

/// Makes the tickets of one shard, and reads those of all.
pub(super) struct Tickets {
    key: LessSafeKey,
    /// Whose tickets are made.
    pub shard: u8,
}

impl Tickets {
    /// For shard 0. The key is derived from that of nonces, which shards share and processes hand on.
    pub fn new(nonce_key: &[u8; 32]) -> Self {
        let mut derive = Hmac::<Sha256>::new_from_slice(nonce_key)
            .unwrap_or_else(|_| unreachable!("HMAC accepts every key length"));
        derive.update(b"MOBILITY-TICKET");
        let key = UnboundKey::new(&AES_256_GCM_SIV, &derive.finalize().into_bytes())
            .unwrap_or_else(|_| unreachable!("the key has the length of the cipher's"));
        Self {
            key: LessSafeKey::new(key),
            shard: 0,
        }
    }

    /// A ticket for the allocation `id` that has moved `moves` times; `None` if no ticket can name it, which has more than
    /// sixteen million beside it.
    pub fn seal(&self, id: AllocationId, moves: u16) -> Option<[u8; TICKET_LENGTH]> {
        if self.shard >= 1 << (64 - SLOT_BITS - GENERATION_BITS - MOVES_BITS)
            || id.slot >= 1 << SLOT_BITS
        {
            return None;
        }
        let ticket = Ticket {
            shard: self.shard,
            slot: id.slot,
            generation: id.generation % (1 << GENERATION_BITS),
            moves,
        };
        let mut sealed = [0; BODY + TAG];
        let (body, tag) = sealed.split_at_mut(BODY);
        body.copy_from_slice(&ticket.bits().to_be_bytes());
        let made = (self.key).seal_in_place_separate_tag(nonce(), Aad::empty(), body);
        tag.copy_from_slice(made.ok()?.as_ref());
        let mut letters = [0; TICKET_LENGTH];
        BASE64.encode_slice(sealed, &mut letters).ok()?;
        Some(letters)
    }

    /// What `ticket` says, if a shard of this server made it.
    pub fn open(&self, ticket: &[u8]) -> Option<Ticket> {
        let mut sealed = [0; BODY + TAG];
        if ticket.len() != TICKET_LENGTH || BASE64.decode_slice(ticket, &mut sealed).is_err() {
            return None;
        }
        let body = (self.key).open_in_place(nonce(), Aad::empty(), &mut sealed);
        let body = body.ok()?.first_chunk()?;
        Some(Ticket::from_bits(u64::from_be_bytes(*body)))
    }
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32, generation: u32) -> AllocationId {
        AllocationId { slot, generation }
    }

    #[test]
    fn tickets_say_what_they_were_made_for_and_nothing_to_others() {
        let mut tickets = Tickets::new(&[7; 32]);
        for (shard, id, moves) in [
            (0, id(0, 0), 0),
            (127, id((1 << 24) - 1, u32::MAX >> 1), u16::MAX),
            (1, id(2, 3), 4),
        ] {
            tickets.shard = shard;
            let sealed = tickets.seal(id, moves).unwrap();
            assert!(sealed.iter().all(u8::is_ascii_graphic));
            let open = tickets.open(&sealed).unwrap();
            assert_eq!((open.shard, open.slot, open.moves), (shard, id.slot, moves));
            assert!(open.names(id));
            assert!(!open.names(AllocationId {
                generation: id.generation ^ 1,
                ..id
            }));
            assert_eq!(Tickets::new(&[8; 32]).open(&sealed), None);
            for index in 0..TICKET_LENGTH {
                let mut forged = sealed;
                forged[index] = if forged[index] == b'A' { b'B' } else { b'A' };
                assert_eq!(tickets.open(&forged), None, "{index}");
                assert_eq!(tickets.open(&sealed[..index]), None);
            }
        }
        assert_eq!(tickets.seal(id(1 << 24, 0), 0), None);
    }
}
