//! Data through the relay: sent at a steady pace, counted and timed where it comes out again.
//!
//! Both ends are here, on one clock. What one client sends goes to the server, out of its relayed address, into that of
//! the other client, and back here; its time is that of one round trip.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::facts::{Rtt, Traffic, Trouble};
use super::path::Leg;
use crate::base::Clock;
use crate::client::Input;

/// How long the last packets have to arrive.
const TAIL: Duration = Duration::from_millis(1500);

/// Bytes in front of every packet: which run it belongs to, and its number.
const TAG: usize = 8;

/// What is to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many packets.
    pub packets: u32,
    /// Bytes of application data in each.
    pub bytes: usize,
    /// Time between two of them.
    pub every: Duration,
}

/// Sends what `plan` says, in turn from each of `legs` to its peer, and says how much arrived; `tell` hears of progress.
///
/// # Errors
/// A path is gone, or takes nothing for `patience`.
pub async fn run(
    legs: &mut [Leg],
    plan: Plan,
    patience: Duration,
    mut tell: impl FnMut(u32, u32),
) -> Result<Traffic, Trouble> {
    let run: [u8; 4] = rand::random();
    let begun = Instant::now();
    // Whatever comes: a server that floods does not keep this going.
    let end = begun + plan.every * plan.packets + TAIL + patience;
    let mut sent_at: Vec<Instant> = Vec::new();
    let mut times: Vec<Option<Duration>> = vec![None; plan.packets as usize];
    let mut arrivals: Option<(Instant, Instant)> = None;
    let mut received = 0;
    while Instant::now() < end {
        let sent = u32::try_from(sent_at.len()).unwrap_or(u32::MAX);
        let next = if sent < plan.packets {
            begun + plan.every * sent
        } else if received == plan.packets {
            break;
        } else {
            sent_at.last().copied().unwrap_or(begun) + TAIL
        };
        match until(legs, next).await? {
            Some((leg, message)) => {
                let Some(leg) = legs.get_mut(leg) else {
                    continue;
                };
                let (Input::Channel(_, data) | Input::Data(_, data)) =
                    leg.client.handle_input(Clock.now(), &message)
                else {
                    continue;
                };
                let Some(number) = number_of(data, run, plan.bytes) else {
                    continue;
                };
                let now = Instant::now();
                if let (Some(time @ None), Some(sent)) =
                    (times.get_mut(number), sent_at.get(number))
                {
                    *time = Some(now - *sent);
                    received += 1;
                    arrivals = Some((arrivals.map_or(now, |(first, _)| first), now));
                    tell(sent_at.len() as u32, received);
                }
            }
            None if sent < plan.packets => {
                let index = sent as usize % legs.len().max(1);
                let Some(leg) = legs.get_mut(index) else {
                    break;
                };
                sent_at.push(Instant::now());
                let packet = packet(run, sent, plan.bytes);
                match timeout(patience, leg.send(&packet)).await {
                    Ok(sent) => sent?,
                    Err(_) => return Err(Trouble::Silence),
                }
                tell(sent + 1, received);
            }
            None => break,
        }
    }
    let span = |first: Instant, last: Instant| last.saturating_duration_since(first);
    let times: Vec<Duration> = times.into_iter().flatten().collect();
    Ok(Traffic {
        bytes: plan.bytes,
        sent: u32::try_from(sent_at.len()).unwrap_or(u32::MAX),
        received,
        sending: (sent_at.first().zip(sent_at.last()))
            .map_or(Duration::ZERO, |(first, last)| span(*first, *last)),
        receiving: arrivals.map_or(Duration::ZERO, |(first, last)| span(first, last)),
        rtt: Rtt::of(&times),
    })
}

/// The next message on any of `legs` and which of them it is, or `None` at `end`.
async fn until(legs: &mut [Leg], end: Instant) -> Result<Option<(usize, Vec<u8>)>, Trouble> {
    tokio::select! {
        // What arrived is read first: a host that is too slow sends less, and does not lose what came back.
        biased;
        received = any(legs) => received.map(Some),
        () = sleep_until(end) => Ok(None),
    }
}

async fn any(legs: &mut [Leg]) -> Result<(usize, Vec<u8>), Trouble> {
    match legs {
        [one, other] => tokio::select! {
            received = one.path.receive() => Ok((0, received?)),
            received = other.path.receive() => Ok((1, received?)),
        },
        [one, ..] => Ok((0, one.path.receive().await?)),
        [] => std::future::pending().await,
    }
}

/// Packet `number` of a run; what follows the tag differs from packet to packet.
fn packet(run: [u8; 4], number: u32, bytes: usize) -> Vec<u8> {
    let mut packet = vec![number as u8; bytes.max(TAG)];
    if let Some(tag) = packet.first_chunk_mut::<TAG>() {
        let [a, b, c, d] = run;
        let [e, f, g, h] = number.to_be_bytes();
        *tag = [a, b, c, d, e, f, g, h];
    }
    packet
}

/// Which packet of a run `data` is, unchanged; `None` if it is none of them.
fn number_of(data: &[u8], run: [u8; 4], bytes: usize) -> Option<usize> {
    let [_, _, _, _, number @ ..] = data.first_chunk::<TAG>()?;
    let number = u32::from_be_bytes(*number);
    (data == packet(run, number, bytes)).then_some(number as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_told_from_others_and_from_damage() {
        let run = [1, 2, 3, 4];
        let mut data = packet(run, 7, 100);
        assert_eq!((data.len(), number_of(&data, run, 100)), (100, Some(7)));
        assert_eq!(number_of(&data, [1, 2, 3, 5], 100), None);
        assert_eq!(number_of(&data, run, 101), None);
        data[50] ^= 1;
        assert_eq!(number_of(&data, run, 100), None);
        assert_eq!(number_of(&[], run, 0), None);
    }
}
