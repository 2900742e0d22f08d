//! What operators see of the audit log: a search, newest first, and a tail that follows what is recorded.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use tokio::time::sleep;

use super::searches::Place;
use super::{Delivery, FILTER_CHARACTERS, Operator};
use crate::audit::{AuditError, Cursors, Filter, KnownFacts, Search};
use crate::exchange::{Caller, ExchangeError};
use crate::lease::Failed;
use crate::line::one_line;
use crate::policy::{Denial, Permission, Refusal};
use crate::proto;
use crate::secret::Secret;
use crate::subject::{SubjectError, VerifiedIdentity};

/// What to show of the log.
#[derive(Debug)]
pub struct AuditQuery {
    pub filter: Filter,
    /// Of the records that are there.
    pub most: usize,
    pub follow: Follow,
    pub facts: ShowFacts,
}

/// Whether records come with what was decided about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShowFacts {
    No,
    Yes,
}

/// Whether what is recorded later is shown, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    No,
    /// Then what is there comes oldest first.
    Yes,
}

/// Records on their way to an operator: read as they are taken, a page at a time.
pub struct AuditRecords {
    operator: Arc<Operator>,
    identity: Arc<VerifiedIdentity>,
    filter: Filter,
    stage: Stage,
    ready: VecDeque<proto::AuditRecord>,
    /// Where facts are shown.
    known: Option<KnownFacts>,
    _place: Place,
}

enum Stage {
    /// So many more, newest first.
    Newest(Box<Search>, usize),
    /// The newest of what was there when it began, to be turned round.
    Before(Box<Search>, usize, Cursors),
    Following(Cursors),
    Over,
}

impl Operator {
    /// # Errors
    /// As [`list_leases`](Self::list_leases); those that come later come from [`AuditRecords::next`].
    pub async fn search_audit(
        self: &Arc<Self>,
        token: Secret,
        query: AuditQuery,
        caller: &Caller,
    ) -> Result<AuditRecords, Failed> {
        let AuditQuery { filter, most, follow, facts } = query;
        let mut details =
            vec![("filter", one_line(&filter.to_string(), FILTER_CHARACTERS)), ("limit", most.to_string())];
        if follow == Follow::Yes {
            details.push(("follow", "true".to_owned()));
        }
        if facts == ShowFacts::Yes {
            details.push(("facts", "true".to_owned()));
        }
        let identity = self.authorized(token, Permission::AuditRead, caller, details).await?;
        let place = self.searches.place(identity.subject()).map_err(Failed::new)?;
        let search = Box::new(self.records.search(filter.clone()));
        let stage = match follow {
            Follow::No => Stage::Newest(search, most),
            Follow::Yes => Stage::Before(search, most, self.records.end().await.map_err(unread)?),
        };
        let (operator, ready) = (self.clone(), VecDeque::new());
        let known = (facts == ShowFacts::Yes).then(KnownFacts::default);
        Ok(AuditRecords { operator, identity, filter, stage, ready, known, _place: place })
    }
}

impl AuditRecords {
    /// To a reader who may be slow, or gone: the place is free soon after they have stopped to read.
    pub fn deliver(self) -> Delivery {
        Delivery::of(stream::unfold(self, |mut records| async move {
            let next = records.next().await?;
            Some((next, records))
        }))
    }

    /// `None` at the end of a search; whoever follows waits.
    ///
    /// # Errors
    /// The last that is heard: the log cannot be read, or the operator's permission is gone.
    pub async fn next(&mut self) -> Option<Result<proto::AuditRecord, Failed>> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Some(Ok(record));
            }
            if matches!(self.stage, Stage::Over) {
                return None;
            }
            if let Err(failed) = self.read().await {
                self.stage = Stage::Over;
                return Some(Err(failed));
            }
        }
    }

    async fn read(&mut self) -> Result<(), Failed> {
        self.still_permitted()?;
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Newest(mut search, most) => {
                if let Some(page) = search.page().await.map_err(unread)? {
                    self.ready.extend(page.into_iter().take(most));
                    let left = most - self.ready.len();
                    self.stage = if left > 0 { Stage::Newest(search, left) } else { Stage::Over };
                }
            }
            Stage::Before(mut search, most, cursors) => {
                let mut newest = Vec::new();
                while newest.len() < most
                    && let Some(page) = search.page().await.map_err(unread)?
                {
                    newest.extend(page.into_iter().filter(|record| cursors.passed(record)).take(most - newest.len()));
                }
                self.ready.extend(newest.into_iter().rev());
                self.stage = Stage::Following(cursors);
            }
            Stage::Following(mut cursors) => {
                let now = self.operator.clock.now();
                let new = self.operator.records.read_on(&mut cursors, now).await.map_err(unread)?.records;
                if new.is_empty() {
                    sleep(LOOK_EVERY).await;
                }
                self.ready.extend(new.into_iter().filter(|record| self.filter.takes(record)));
                self.stage = Stage::Following(cursors);
            }
            Stage::Over => {}
        }
        if let Some(known) = &mut self.known {
            self.operator.records.show_facts(self.ready.make_contiguous(), known).await.map_err(unread)?;
        }
        Ok(())
    }

    /// The configuration may have changed since, and no token is good for longer than it says: roles and groups may have
    /// been taken away, of which only a new one tells.
    fn still_permitted(&self) -> Result<(), Failed> {
        if let Ok(late) = self.operator.clock.now().duration_since(self.identity.expires_at()) {
            return Err(Failed::new(ExchangeError::Subject(SubjectError::Expired(late))));
        }
        let accepted = self.operator.verifier.still_accepts(&self.identity);
        accepted.map_err(|refused| Failed::new(ExchangeError::Subject(refused)))?;
        match self.operator.operators.load().permit(&self.identity, Permission::AuditRead) {
            true => Ok(()),
            false => Err(Failed::new(ExchangeError::Policy(Refusal::Denied(Denial::NoRule)))),
        }
    }
}

fn unread(error: AuditError) -> Failed {
    Failed::new(ExchangeError::Audit(error))
}

impl fmt::Debug for AuditRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditRecords({})", self.filter)
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(500);
