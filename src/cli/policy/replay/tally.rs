//! What changed, counted by subject and target.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::app::rfc3339;
use crate::cli::table::table;
use crate::policy::Change;

/// Changes, and what could not be asked again. Its size is bounded by [`MOST_ROWS`].
#[derive(Debug, Default)]
pub(super) struct Tally {
    rows: BTreeMap<Key, Row>,
    /// Changes of more subjects, targets and rules than there are rows for.
    beyond: u64,
    same: u64,
    missed: BTreeMap<Missed, u64>,
}

/// One way in which decisions about one subject and target change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    change: Change,
    target: String,
    subject: String,
    /// The rule that allowed, or why it was denied.
    then: String,
}

#[derive(Debug)]
struct Row {
    count: u64,
    first: SystemTime,
    last: SystemTime,
    example: String,
}

/// Why a record was not asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Missed {
    /// It does not tell by what the rules decide: it is older than this program, or its facts are gone.
    WithoutFacts,
    /// What a rule asks of the token is not on record.
    ClaimsNotKept,
    /// The token, the form of the request or an age decided.
    NotByRules,
}

impl Missed {
    pub const ALL: [Self; 3] = [Self::WithoutFacts, Self::ClaimsNotKept, Self::NotByRules];

    const fn as_str(self) -> &'static str {
        match self {
            Self::WithoutFacts => "without_facts",
            Self::ClaimsNotKept => "claims_not_kept",
            Self::NotByRules => "not_by_rules",
        }
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::WithoutFacts => "whose records do not keep the facts that rules ask for",
            Self::ClaimsNotKept => "of targets whose rules read claims that records do not keep",
            Self::NotByRules => "on which not the rules decided",
        }
    }
}

/// One decision about one target.
#[derive(Debug)]
pub(super) struct Replayed {
    pub change: Change,
    pub target: String,
    pub subject: String,
    pub then: String,
    pub time: SystemTime,
    pub exchange_id: String,
}

impl Tally {
    pub fn add(&mut self, replayed: Replayed) {
        let Replayed { change, target, subject, then, time, exchange_id } = replayed;
        if change == Change::Same {
            self.same += 1;
            return;
        }
        let key = Key { change, target, subject, then };
        let room = self.rows.len() < MOST_ROWS;
        match self.rows.get_mut(&key) {
            Some(row) => {
                row.count += 1;
                row.first = row.first.min(time);
                if time > row.last {
                    (row.last, row.example) = (time, exchange_id);
                }
            }
            None if room => {
                self.rows.insert(key, Row { count: 1, first: time, last: time, example: exchange_id });
            }
            None => self.beyond += 1,
        }
    }

    pub fn miss(&mut self, why: Missed) {
        *self.missed.entry(why).or_default() += 1;
    }

    pub fn changes(&self) -> u64 {
        self.rows.values().map(|row| row.count).sum::<u64>() + self.beyond
    }

    pub fn table(&self) -> String {
        let head = ["CHANGE", "TARGET", "SUBJECT", "COUNT", "FIRST", "LAST", "THEN", "NOW", "EXAMPLE"];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(self.sorted().into_iter().map(|(key, row)| {
            let times = [row.first, row.last].map(rfc3339);
            let [first, last] = times;
            [
                key.change.kind().to_owned(),
                key.target.clone(),
                key.subject.clone(),
                row.count.to_string(),
                first,
                last,
                key.then.clone(),
                key.change.detail(),
                row.example.clone(),
            ]
        }));
        table(&rows)
    }

    /// In sentences.
    pub fn summary(&self) -> Vec<String> {
        let (changes, same) = (self.changes(), self.same);
        let mut lines =
            vec![format!("decisions asked again: {}, as they were: {same}, changed: {changes}", same + changes)];
        if self.beyond > 0 {
            lines.push(format!("changes that stand in no row, because there are so many: {}", self.beyond));
        }
        let missed = Missed::ALL.iter().filter_map(|why| Some((why, self.missed.get(why)?)));
        lines.extend(missed.map(|(why, count)| format!("not asked again: {count} {}", why.meaning())));
        lines
    }

    pub fn json(&self) -> Value {
        let row = |(key, row): (&Key, &Row)| {
            json!({
                "change": key.change.kind(),
                "target": key.target,
                "subject": key.subject,
                "count": row.count,
                "first": rfc3339(row.first),
                "last": rfc3339(row.last),
                "then": key.then,
                "now": key.change.detail(),
                "exchange_id": row.example,
            })
        };
        let missed = Missed::ALL
            .map(|why| (why.as_str().to_owned(), Value::from(self.missed.get(&why).copied().unwrap_or_default())));
        json!({
            "asked_again": self.same + self.changes(),
            "same": self.same,
            "changed": self.changes(),
            "beyond_rows": self.beyond,
            "changes": self.sorted().into_iter().map(row).collect::<Vec<_>>(),
            "not_asked_again": missed.into_iter().collect::<serde_json::Map<_, _>>(),
        })
    }

    /// What somebody loses comes first, then what somebody wins; of each, the most frequent.
    fn sorted(&self) -> Vec<(&Key, &Row)> {
        let mut rows: Vec<(&Key, &Row)> = self.rows.iter().collect();
        rows.sort_by_key(|(key, row)| (weight(&key.change), std::cmp::Reverse(row.count)));
        rows
    }
}

fn weight(change: &Change) -> u8 {
    match change {
        Change::WouldDeny(_) => 0,
        Change::WouldAllow(_) => 1,
        Change::OtherRule(_) => 2,
        Change::OtherLifetime(_) => 3,
        Change::Failed | Change::Same => 4,
    }
}

/// Some 5 MB.
const MOST_ROWS: usize = 10_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn replayed(subject: &str, seconds: u64, change: Change) -> Replayed {
        Replayed {
            change,
            target: "vertex".to_owned(),
            subject: subject.to_owned(),
            then: "rule old".to_owned(),
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            exchange_id: format!("exchange-{seconds}"),
        }
    }

    fn allow() -> Change {
        Change::WouldAllow("new".parse().expect("a name"))
    }

    #[test]
    fn equal_changes_are_one_row_with_its_first_and_last_time() {
        let mut tally = Tally::default();
        for seconds in [20, 10, 30] {
            tally.add(replayed("a", seconds, allow()));
        }
        tally.add(replayed("a", 5, Change::WouldDeny("no rule allows it".to_owned())));
        tally.add(replayed("a", 6, Change::Same));
        tally.miss(Missed::WithoutFacts);
        let json = tally.json();
        assert_eq!((&json["asked_again"], &json["same"], &json["changed"]), (&5.into(), &1.into(), &4.into()));
        assert_eq!(json["changes"][0]["change"], "would_deny", "what somebody loses comes first");
        let row = &json["changes"][1];
        assert_eq!((&row["count"], &row["exchange_id"]), (&3.into(), &"exchange-30".into()));
        assert_eq!((&row["first"], &row["last"]), (&"1970-01-01T00:00:10Z".into(), &"1970-01-01T00:00:30Z".into()));
        assert_eq!((&row["then"], &row["now"]), (&"rule old".into(), &"rule new".into()));
        assert_eq!(json["not_asked_again"], json!({"without_facts": 1, "claims_not_kept": 0, "not_by_rules": 0}));
        assert_eq!(tally.summary()[0], "decisions asked again: 5, as they were: 1, changed: 4");
        assert!(tally.table().lines().nth(1).is_some_and(|line| line.starts_with("would_deny")));
    }

    #[test]
    fn any_number_of_subjects_takes_bounded_room_and_none_goes_uncounted() {
        let mut tally = Tally::default();
        for number in 0..MOST_ROWS + 7 {
            tally.add(replayed(&number.to_string(), 1, allow()));
        }
        assert_eq!((tally.rows.len(), tally.beyond), (MOST_ROWS, 7));
        assert_eq!(tally.changes(), u64::try_from(MOST_ROWS + 7).expect("small"));
        assert!(tally.summary()[1].ends_with(": 7"));
    }
}
