//! What the issuer says of a chain: that its record at this position has this hash, and so all before it theirs.

use std::time::SystemTime;

use aws_lc_rs::error::Unspecified;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Head, Reach, chain};
use crate::clock::{from_unix_seconds, unix_milliseconds, unix_seconds};
use crate::issuer::{Issuer, Statement, unsigned_statement};

/// A checkpoint as a store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub chain: Uuid,
    pub position: u64,
    /// When it was made, or the time of the newest record that it covers if that is later: milliseconds since 1970.
    pub at_ms: i64,
    /// Since when nothing before it is kept.
    pub anchor_ms: Option<i64>,
    /// A JSON Web Signature of the type [`TYPE`].
    pub statement: String,
}

/// What a checkpoint's statement says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    pub head: Head,
    pub at: SystemTime,
}

impl Checkpoint {
    /// Of `reach`, signed by `issuer`; where there is none, by nobody.
    pub fn make(reach: &Reach, issuer: Option<&Issuer>, now: SystemTime) -> Result<Self, Unspecified> {
        let Head { chain, position, hash } = reach.head;
        let mut claims = Map::from_iter([
            ("chain".to_owned(), json!(chain)),
            ("sequence".to_owned(), json!(position)),
            ("hash".to_owned(), json!(chain::shown(&hash))),
        ]);
        let statement = match issuer {
            Some(issuer) => issuer.state(TYPE, claims)?,
            None => {
                claims.insert("iat".to_owned(), json!(unix_seconds(now)));
                unsigned_statement(TYPE, claims)
            }
        };
        let at_ms = unix_milliseconds(now).max(reach.newest_ms);
        Ok(Self { chain, position, at_ms, anchor_ms: None, statement })
    }

    /// The statement; `None` where the store has something else in its place.
    pub fn statement(&self) -> Option<(Said, Statement<'_>)> {
        let statement = Statement::read(&self.statement, TYPE)?;
        let text = |name: &str| statement.claims.get(name).and_then(Value::as_str);
        let number = |name: &str| statement.claims.get(name).and_then(Value::as_u64);
        let head = format!("{}:{}:{}", text("chain")?, number("sequence")?, text("hash")?).parse().ok()?;
        Some((Said { head, at: from_unix_seconds(number("iat")?)? }, statement))
    }
}

/// The `typ` of a checkpoint's header.
const TYPE: &str = "carnet-audit-checkpoint+jwt";
