//! A tail of a broker's log that outlives connections, brokers and tokens: nothing is shown twice, and nothing left out.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use tokio::time::sleep;
use tonic::Status;
use tonic_types::StatusExt as _;

use super::shown::Shown;
use super::{Each, Records, Unread, milliseconds, order};
use crate::cli::broker::{Bearer, no_subject_token, refusal};
use crate::cli::operator::Session;
use crate::cli::{Ended, Exit, remark};
use crate::clock::{Clock as _, SystemClock};
use crate::grpc::{BrokerClock, passes, retry_delay};
use crate::proto::{AuditRecord, SearchAuditRequest};
use crate::secret::Secret;
use crate::subject_source::Fault;

pub(super) struct Tail {
    session: Session,
    asked: SearchAuditRequest,
    last: usize,
    shown: Shown,
    clock: BrokerClock,
    /// By the broker's clock: from when on records may be new to this tail.
    begun_at: Option<SystemTime>,
    /// Since when nothing was heard, by the broker's clock.
    broken_at: Option<SystemTime>,
    /// Attempts in a row that led to nothing.
    attempts: u32,
    /// Told of the tail's end, for whoever goes on from there.
    newest: Option<Timestamp>,
    token: Option<Secret>,
    /// How often the source gave a token that has expired.
    stale: u32,
}

impl Tail {
    pub fn new(session: Session, asked: SearchAuditRequest, last: usize) -> Self {
        Self {
            session,
            asked,
            last,
            shown: Shown::default(),
            clock: BrokerClock::default(),
            begun_at: None,
            broken_at: None,
            attempts: 0,
            newest: None,
            token: None,
            stale: 0,
        }
    }

    /// # Errors
    /// Of `each`; a refusal that asking again does not mend; no token that has not expired.
    pub async fn run(mut self, each: Each<'_>) -> anyhow::Result<()> {
        loop {
            match self.listen(each).await {
                Unread::Failed(error) => return Err(error),
                Unread::Refused(status) => {
                    if self.begun_at.is_some() {
                        self.broken_at.get_or_insert_with(|| self.clock.now());
                    }
                    self.wait_after(&status).await?;
                }
            }
        }
    }

    /// Until it breaks off. The stream is opened first: what is recorded while the missed records are read is in it.
    async fn listen(&mut self, each: Each<'_>) -> Unread {
        let token = match self.next_token().await {
            Ok(token) => token,
            Err(unread) => return unread,
        };
        let heard = async {
            let request = Bearer::new(token.expose())?.show_for_long(self.request()?);
            let answer = self.session.client.search_audit(request).await?;
            self.clock = BrokerClock::of(answer.metadata());
            self.begun_at.get_or_insert_with(|| self.clock.now());
            let mut stream = answer.into_inner();
            self.catch_up(&mut *each).await?;
            (self.attempts, self.stale) = (0, 0);
            while let Some(record) = stream.message().await? {
                self.show(record, &mut *each)?;
            }
            Err::<(), Unread>(Status::unavailable("the broker ended the search").into())
        };
        match heard.await {
            Err(unread) => unread,
            Ok(()) => Unread::Refused(Box::new(Status::unavailable("the broker ended the search"))),
        }
    }

    fn request(&self) -> anyhow::Result<SearchAuditRequest> {
        let mut asked = SearchAuditRequest { follow: true, limit: i32::try_from(self.last)?, ..self.asked.clone() };
        if self.last == 0 {
            // 0 would be the broker's own number.
            let begun_at = self.begun_at.unwrap_or_else(|| SystemClock.now());
            (asked.after, asked.limit) = (later(asked.after, Some(begun_at)), 1);
        }
        if !self.shown.is_empty() {
            // What came meanwhile is caught up with, however much it is.
            asked.limit = 1;
        }
        Ok(asked)
    }

    /// What was recorded since shortly before the stream broke off.
    async fn catch_up(&mut self, each: Each<'_>) -> Result<(), Unread> {
        let (Some(broken_at), Some(begun_at)) = (self.broken_at, self.begun_at) else { return Ok(()) };
        let since = |time: SystemTime, margin| time.checked_sub(margin).unwrap_or(SystemTime::UNIX_EPOCH);
        let begun_at = if self.last == 0 { begun_at } else { since(begun_at, LONGEST_EXCHANGE) };
        let from = since(broken_at, LOOK_BACK).max(begun_at);
        // By the broker's clock, and beyond it: what is recorded from now on is in the stream, too.
        let before = self.clock.now().checked_add(LOOK_BACK).map(Timestamp::from);
        let after = later(self.asked.after, Some(from));
        let missed = SearchAuditRequest { after, before, ..self.asked.clone() };
        let mut records = Records::Broker(Box::new(self.session.clone()));
        let mut show = |record: AuditRecord| match self.shown.is_older(&record) {
            true => Ok(()),
            false => self.show(record, &mut *each),
        };
        records.oldest_first(&missed, &mut show).await?;
        self.broken_at = None;
        Ok(())
    }

    fn show(&mut self, record: AuditRecord, each: Each<'_>) -> anyhow::Result<()> {
        if let (true, Some(time)) = (self.shown.is_empty(), record.time.and_then(|time| time.try_into().ok())) {
            // The oldest of those that were there at the beginning.
            self.begun_at = self.begun_at.map(|begun_at| begun_at.min(time));
        }
        if !self.shown.add(&record) {
            return Ok(());
        }
        self.newest = record.time.into_iter().chain(self.newest).max_by_key(|time| order(*time));
        each(record)
    }

    /// The source's own, as it is by now. One that has expired is asked for again a few times: whoever renews it may be a
    /// moment late.
    async fn next_token(&mut self) -> Result<Secret, Unread> {
        loop {
            let (stale, error) = match self.session.token().await {
                Ok(token) => {
                    let stale = self.stale > 0 && self.token.as_ref().is_some_and(|old| old.expose() == token.expose());
                    if !stale {
                        self.token = Some(token.clone());
                        return Ok(token);
                    }
                    (stale, None)
                }
                Err(error) if error.fault() == Fault::Unavailable => {
                    return Err(Status::unavailable(format!("no token: {error}")).into());
                }
                Err(error) => (self.stale > 0, Some(error)),
            };
            if !stale || self.stale >= STALE_MOST {
                return Err(Unread::Failed(error.map_or_else(|| self.expired(), no_subject_token)));
            }
            sleep(FIRST_WAIT * self.stale).await;
            self.stale += 1;
        }
    }

    fn expired(&self) -> anyhow::Error {
        let from = self.newest.map(|newest| milliseconds(Some(newest)));
        let go_on = from.map(|from| format!("; the newest record that was shown is of {from}")).unwrap_or_default();
        let message = format!(
            "the operator's token has expired, and its source has no newer one: renew it, or name a source that renews \
             it by itself (--subject-source workload-identity, login, managed-identity or azure-cli){go_on}"
        );
        Ended { exit: Exit::SubjectToken, message }.into()
    }

    /// # Errors
    /// The refusal, where asking again cannot help.
    async fn wait_after(&mut self, status: &Status) -> anyhow::Result<()> {
        let reason = status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default();
        let expired = reason == "SUBJECT_TOKEN_EXPIRED" && self.begun_at.is_some();
        if !expired && !passes(status) {
            return Err(refusal(status));
        }
        if expired {
            // A stream ends with its token. The next one is asked for at once.
            self.stale += 1;
        }
        if expired && self.stale == 1 {
            return Ok(());
        }
        let longest = (FIRST_WAIT * 2u32.saturating_pow(self.attempts.min(16))).min(LONGEST_WAIT);
        if self.attempts == 0 {
            remark(format_args!("{}; asking again", status.message()));
        }
        self.attempts = self.attempts.saturating_add(1);
        let wait = longest.mul_f64(rand::random_range(0.5..=1.0)).max(retry_delay(status).min(LONGEST_WAIT));
        sleep(wait).await;
        Ok(())
    }
}

/// The later of the two.
fn later(asked: Option<Timestamp>, from: Option<SystemTime>) -> Option<Timestamp> {
    asked.into_iter().chain(from.map(Timestamp::from)).max_by_key(|time| order(*time))
}

/// How far a tail that was cut off looks back: clocks differ, a connection may be gone for a while before that is
/// noticed, and a record has the time at which its exchange began.
const LOOK_BACK: Duration = Duration::from_secs(15 * 60);

/// From its beginning to its record.
const LONGEST_EXCHANGE: Duration = Duration::from_secs(60);

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How often a token that has expired is asked for again.
const STALE_MOST: u32 = 3;
