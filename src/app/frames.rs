//! What a peer says in HTTP/2, seen as it comes by: frames that ask for nothing are allowed in proportion to those that do.
//!
//! A PING is answered, a window update changes nothing, a reset undoes what was asked: each costs the broker more than its
//! sender. Servers were brought down with each kind (CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2024-27316).

use tokio::time::Instant;

/// Of one connection, in one direction. Anything but HTTP/2 passes uncounted.
#[derive(Debug)]
pub(super) struct Frames {
    at: At,
    /// Idle frames that may still come.
    credit: usize,
    earned_until: Option<Instant>,
}

#[derive(Debug)]
enum At {
    Preface(usize),
    Head { bytes: [u8; HEAD], read: usize },
    Payload(usize),
    AnotherProtocol,
}

/// Too many frames that ask for nothing.
#[derive(Debug, thiserror::Error)]
#[error("the peer sends frames without end that ask for nothing")]
pub(super) struct Idle;

impl Frames {
    pub fn new() -> Self {
        Self { at: At::Preface(0), credit: CREDIT, earned_until: None }
    }

    /// # Errors
    /// [`Idle`]: the connection is to be closed.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<(), Idle> {
        while !bytes.is_empty() {
            let taken = match &mut self.at {
                At::AnotherProtocol => return Ok(()),
                At::Preface(read) => {
                    let rest = PREFACE.get(*read..).unwrap_or_default();
                    let taken = rest.len().min(bytes.len());
                    if rest.get(..taken) != bytes.get(..taken) {
                        self.at = At::AnotherProtocol;
                        return Ok(());
                    }
                    *read += taken;
                    if *read == PREFACE.len() {
                        self.at = At::Head { bytes: [0; HEAD], read: 0 };
                    }
                    taken
                }
                At::Head { bytes: head, read } => {
                    let taken = (HEAD - *read).min(bytes.len());
                    for (place, byte) in head.iter_mut().skip(*read).zip(bytes) {
                        *place = *byte;
                    }
                    *read += taken;
                    if *read == HEAD {
                        let head = *head;
                        self.begin(head)?;
                    }
                    taken
                }
                At::Payload(left) => {
                    let taken = (*left).min(bytes.len());
                    *left -= taken;
                    if *left == 0 {
                        self.at = At::Head { bytes: [0; HEAD], read: 0 };
                    }
                    taken
                }
            };
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// RFC 9113 section 4.1: length, type, flags, stream.
    fn begin(&mut self, [a, b, c, kind, flags, ..]: [u8; HEAD]) -> Result<(), Idle> {
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.at = match length {
            0 => At::Head { bytes: [0; HEAD], read: 0 },
            length => At::Payload(length),
        };
        match kind {
            HEADERS => self.credit = (self.credit + PER_REQUEST).min(CREDIT),
            DATA if length >= LEAST_DATA || flags & END_STREAM != 0 => {}
            RST_STREAM => self.spend(PER_REQUEST + 1)?,
            _ => self.spend(1)?,
        }
        Ok(())
    }

    fn spend(&mut self, price: usize) -> Result<(), Idle> {
        if self.credit < price {
            // A clock is looked at only by those who have used up what they had.
            let now = Instant::now();
            let since = self.earned_until.replace(now).map_or(EARNED_BEFORE, |then| (now - then).as_millis());
            let earned = usize::try_from(since).unwrap_or(CREDIT) * PER_SECOND / 1000;
            self.credit = (self.credit + earned).min(CREDIT);
            if self.credit < price {
                return Err(Idle);
            }
        }
        self.credit -= price;
        Ok(())
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
/// Costs more than its request has brought in: what was asked for was not wanted.
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// Smaller pieces of a message are idle frames, but for its last.
const LEAST_DATA: usize = 16;

/// A listing of 32 MB moves windows 2,000 times.
const CREDIT: usize = 10_000;

/// Windows of request and connection, an estimate of the path, a cancellation.
const PER_REQUEST: usize = 8;

/// Keep-alive and the windows of watches take a few.
const PER_SECOND: usize = 100;

/// Milliseconds that count as passed when what was there at the beginning is used up.
const EARNED_BEFORE: u128 = 1000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_ask_for_nothing_are_cut_off_and_those_that_go_with_requests_are_not() {
        const PING: u8 = 6;
        type Said = Vec<Vec<u8>>;
        let cases: [(&str, Said, bool); 9] = [
            ("pings", vec![frame(PING, 0, &[0; 8])], false),
            ("settings", vec![frame(4, 0, &[])], false),
            ("priorities", vec![frame(2, 0, &[0; 5])], false),
            ("window updates", vec![frame(8, 0, &[0, 0, 0, 1])], false),
            ("empty data", vec![frame(DATA, 0, &[])], false),
            ("data byte by byte", vec![frame(DATA, 0, &[7])], false),
            ("an unknown type", vec![frame(0xfa, 0, &[1, 2, 3])], false),
            (
                "requests with all that goes with them",
                vec![
                    frame(HEADERS, 4, &[9; 60]),
                    frame(DATA, 0, &[1; 1500]),
                    frame(DATA, END_STREAM, &[]),
                    frame(8, 0, &[0, 0, 0, 1]),
                    frame(8, 0, &[0, 0, 0, 1]),
                    frame(PING, 0, &[0; 8]),
                ],
                true,
            ),
            ("requests that are taken back", vec![frame(HEADERS, 5, &[9; 60]), frame(RST_STREAM, 0, &[0; 4])], false),
        ];
        for (name, said, lives) in cases {
            for piece in [1, 7, 4096] {
                let mut frames = Frames::new();
                frames.read(PREFACE).expect("a beginning");
                let said = said.concat().repeat(20_000);
                let ended = said.chunks(piece).try_for_each(|bytes| frames.read(bytes));
                assert_eq!(ended.is_ok(), lives, "{name} in pieces of {piece}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_idle_frames_a_second_may_go_on_for_days() {
        let mut frames = Frames::new();
        frames.read(PREFACE).expect("a beginning");
        for _ in 0..100_000 {
            (0..20).for_each(|_| frames.read(&frame(6, 0, &[0; 8])).expect("few"));
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
        }
    }

    proptest! {
        #[test]
        fn in_whatever_pieces_bytes_come_they_are_the_same_frames(
            frames in prop::collection::vec((0u8..10, any::<u8>(), 0usize..20, 1usize..2000), 1..30),
            pieces in prop::collection::vec(1usize..50, 1..50),
        ) {
            let bytes = |(kind, flags, length, times): (u8, u8, usize, usize)| frame(kind, flags, &vec![0; length]).repeat(times);
            let said = [PREFACE.to_vec(), frames.into_iter().flat_map(bytes).collect()].concat();
            // No time passes.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            let (whole, cut) = runtime.expect("a runtime").block_on(async {
                let (mut frames, mut rest, mut is_fine) = (Frames::new(), said.as_slice(), true);
                let mut pieces = pieces.iter().cycle();
                while is_fine && !rest.is_empty() {
                    let (piece, others) = rest.split_at(rest.len().min(*pieces.next().expect("one at least")));
                    rest = others;
                    is_fine = frames.read(piece).is_ok();
                }
                (Frames::new().read(&said).is_ok(), is_fine)
            });
            prop_assert_eq!(whole, cut);
        }
    }

    #[test]
    fn what_is_not_http_2_passes() {
        let mut frames = Frames::new();
        let request = b"PRI /keys HTTP/1.1\r\n\r\n".repeat(10_000);
        assert!(frames.read(&request).is_ok());
    }
}
