//! How long a credential should live: as long as its job, within the least of all bounds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What set the lifetime, as the answer names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Nothing held it back.
    Requested,
    Rule,
    Target,
    /// The cloud's limit, above or below.
    Cloud,
    /// The subject token's expiry, where the cloud ties one to the other.
    SubjectToken,
    /// The lease's end, or the short life of tokens under a lease.
    Lease,
    /// Nothing held it back: earlier runs of the job's name have taken this long.
    Learned,
}

impl Bound {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Rule => "rule",
            Self::Target => "target",
            Self::Cloud => "cloud",
            Self::SubjectToken => "subject_token",
            Self::Lease => "lease",
            Self::Learned => "learned",
        }
    }
}

/// How long a caller wants a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The request's own `lifetime`: given as it is.
    Exactly(Duration),
    /// A job of this expected duration: given with headroom, and with room to spare for the next one like it.
    ForJob(Duration),
    /// As [`ForJob`](Self::ForJob), of a job that did not say it itself.
    Learned(Duration),
    /// Nobody said; the target's default.
    Default(Duration),
}

/// What a cloud makes of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudLimit {
    UpTo(Duration),
    /// The token's life is the platform's: it takes no wish.
    Fixed,
}

/// The decision before the cloud was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What the request or its job asked for.
    pub requested: Option<Duration>,
    /// What to ask the cloud for: never above the least bound, never below [`FLOOR`].
    pub lifetime: Duration,
    /// A credential with less left than this is not handed to this caller from the cache.
    pub least: Duration,
    bound: Bound,
    tightest: Bound,
}

/// A bound leaves less than clients regard as fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooShort(pub Bound);

impl Plan {
    /// `bounds`: each with its length, at least one.
    ///
    /// # Errors
    /// [`TooShort`] where a bound is below [`FLOOR`]: a credential that clients throw away at once helps nobody.
    pub fn new(wanted: Wanted, cloud: CloudLimit, bounds: &[(Bound, Duration)]) -> Result<Self, TooShort> {
        let cloud_bound = match cloud {
            CloudLimit::UpTo(limit) => Some((Bound::Cloud, limit)),
            CloudLimit::Fixed => None,
        };
        let least_bound = bounds.iter().copied().chain(cloud_bound).min_by_key(|(_bound, length)| *length);
        let (tightest, cap) = least_bound.unwrap_or((Bound::Cloud, FLOOR));
        if cap < FLOOR {
            return Err(TooShort(tightest));
        }
        let (requested, needed, lifetime) = match wanted {
            Wanted::Exactly(lifetime) => (Some(lifetime), lifetime, whole_seconds(lifetime)),
            Wanted::ForJob(duration) => (Some(duration), duration, class(with_headroom(duration))),
            Wanted::Learned(duration) => (None, duration, class(with_headroom(duration))),
            Wanted::Default(lifetime) => (None, FLOOR, lifetime),
        };
        let fits = needed <= cap;
        let bound = match requested {
            Some(requested) if requested < FLOOR => Bound::Cloud,
            Some(_) if fits => Bound::Requested,
            None if fits && matches!(wanted, Wanted::Learned(_)) => Bound::Learned,
            None if lifetime <= cap => Bound::Target,
            Some(_) | None => tightest,
        };
        // Who cannot be covered anyway has to come back: any fresh credential will do until then.
        let least = if fits { needed.min(cap - cap / 10) } else { FLOOR };
        let lifetime = match cloud {
            CloudLimit::UpTo(_) => lifetime.clamp(FLOOR, cap),
            // One credential serves every wish.
            CloudLimit::Fixed => cap,
        };
        Ok(Self { requested, lifetime, least: least.clamp(FLOOR, lifetime), bound, tightest })
    }

    /// The plan under a lease of which `remaining` is left. A credential that lasts to the lease's end is long enough,
    /// however short that is; and where only the shortest ones are left, one is used for half of its life rather than
    /// minted anew at each call.
    pub fn until_end_of_lease(self, remaining: Duration) -> Self {
        let least = if self.lifetime <= FLOOR { FLOOR / 2 } else { self.least };
        Self { least: least.min(remaining.saturating_sub(SLACK)), ..self }
    }

    /// The plan of a caller whose present credential has `left`: the same one again will not do.
    pub fn outlasting(self, left: Duration) -> Self {
        Self { least: self.least.max(left + Duration::from_secs(1)).min(self.lifetime), ..self }
    }

    /// What bounded a credential of which `remaining` is left, issued by a cloud that may have given another life.
    pub fn bound(&self, remaining: Duration, given: Given) -> Bound {
        let short = self.requested.is_some_and(|requested| remaining + SLACK < requested);
        if remaining > self.lifetime + SLACK || (given == Given::Less && (short || self.requested.is_none())) {
            Bound::Cloud
        } else if short && self.bound == Bound::Requested {
            self.tightest
        } else {
            self.bound
        }
    }
}

/// Whether the cloud gave the life that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Given {
    AsAsked,
    Less,
}

/// When to replace a credential with `lifetime` left: after seven tenths, less up to a tenth, so that those who got
/// one at the same time do not come back at the same time. `jitter` is between 0 and 1.
pub fn refresh_in(lifetime: Duration, jitter: f64) -> Duration {
    lifetime.mul_f64(0.7 - 0.1 * jitter.clamp(0.0, 1.0))
}

/// The longest life of a token under a lease of which `remaining` is left, where the rule allows tokens of
/// `token_lifetime`: one of few, so that calls near the end share credentials. Never below [`FLOOR`].
pub(super) fn under_lease(token_lifetime: Duration, remaining: Duration) -> Duration {
    if remaining >= token_lifetime {
        return token_lifetime;
    }
    let classes = CLASSES.iter().map(|minutes| Duration::from_secs(minutes * 60));
    classes.filter(|class| *class <= remaining).max().unwrap_or(FLOOR)
}

/// With a tenth to spare, and never less than two minutes.
pub fn with_headroom(duration: Duration) -> Duration {
    duration.saturating_add((duration / 10).max(HEADROOM_AT_LEAST))
}

/// The next class with a quarter to spare, so that the next job like this one finds the credential long enough.
fn class(wanted: Duration) -> Duration {
    let roomy = wanted.saturating_add(wanted / 4);
    CLASSES.iter().map(|minutes| Duration::from_secs(minutes * 60)).find(|class| *class >= roomy).unwrap_or(roomy)
}

fn whole_seconds(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs())
}

/// Google's and Azure's libraries call a token stale between 225 and 300 s before its end, and ask again at every call
/// from then on (clients of 2026): nothing shorter than this is worth having.
pub const FLOOR: Duration = Duration::from_secs(360);

const HEADROOM_AT_LEAST: Duration = Duration::from_secs(120);

/// Minutes: few, so that jobs of similar length share credentials.
const CLASSES: [u64; 16] = [10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 360, 420, 480, 600, 720];

/// Clouds count whole seconds, and the answer took a while to arrive.
const SLACK: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    fn plan(wanted: Wanted, bounds: &[(Bound, Duration)]) -> Plan {
        Plan::new(wanted, CloudLimit::UpTo(12 * HOUR), bounds).expect("no bound is below the floor")
    }

    #[test]
    fn a_request_is_granted_as_it_is_where_nothing_holds_it_back() {
        let plan = plan(Wanted::Exactly(minutes(20)), &[(Bound::Rule, HOUR)]);
        assert_eq!((plan.lifetime, plan.bound(minutes(20), Given::AsAsked)), (minutes(20), Bound::Requested));
    }

    #[test]
    fn c11_the_answer_names_the_bound_that_applied() {
        let asked = Wanted::Exactly(9 * HOUR);
        let bound = |bounds: &[(Bound, Duration)]| plan(asked, bounds).bound(HOUR, Given::AsAsked);
        assert_eq!(bound(&[(Bound::Rule, HOUR), (Bound::Target, 2 * HOUR)]), Bound::Rule);
        assert_eq!(bound(&[(Bound::Rule, 2 * HOUR), (Bound::Target, HOUR)]), Bound::Target);
        assert_eq!(bound(&[(Bound::Rule, 2 * HOUR), (Bound::SubjectToken, HOUR)]), Bound::SubjectToken);
        let short_cloud = Plan::new(asked, CloudLimit::UpTo(HOUR), &[(Bound::Rule, 2 * HOUR)]).expect("a plan");
        assert_eq!(short_cloud.bound(HOUR, Given::AsAsked), Bound::Cloud);
    }

    #[test]
    fn a_job_gets_headroom_and_the_next_one_like_it_finds_the_credential_long_enough() {
        let plan = plan(Wanted::ForJob(minutes(40)), &[(Bound::Rule, 12 * HOUR)]);
        assert_eq!((plan.requested, plan.lifetime, plan.least), (Some(minutes(40)), minutes(60), minutes(40)));
    }

    #[test]
    fn a_job_that_fits_into_no_token_takes_any_fresh_one() {
        let plan = plan(Wanted::ForJob(9 * HOUR), &[(Bound::Rule, HOUR)]);
        assert_eq!((plan.lifetime, plan.least, plan.bound(HOUR, Given::AsAsked)), (HOUR, FLOOR, Bound::Rule));
    }

    #[test]
    fn a_platform_that_takes_no_wish_is_named_as_the_bound() {
        let plan = Plan::new(Wanted::Exactly(HOUR), CloudLimit::Fixed, &[(Bound::Rule, HOUR)]).expect("a plan");
        assert_eq!(plan.bound(24 * HOUR, Given::AsAsked), Bound::Cloud);
    }

    #[test]
    fn a_cloud_that_gives_less_than_was_asked_is_named_as_the_bound() {
        let plan = plan(Wanted::Exactly(9 * HOUR), &[(Bound::Rule, 12 * HOUR)]);
        assert_eq!(plan.bound(HOUR, Given::Less), Bound::Cloud);
    }

    #[test]
    fn a_bound_below_the_floor_is_an_error_that_names_it() {
        let short = Plan::new(Wanted::Default(HOUR), CloudLimit::UpTo(HOUR), &[(Bound::SubjectToken, minutes(5))]);
        assert_eq!(short, Err(TooShort(Bound::SubjectToken)));
    }

    proptest! {
        #[test]
        fn i25_a_lifetime_is_never_above_the_least_bound_nor_below_the_floor(
            kind in 0..3, seconds in 0u64..2_000_000, rule in 360u64..100_000, target in 360u64..100_000,
            cloud in 360u64..100_000, subject in proptest::option::of(360u64..100_000), fixed in any::<bool>(),
        ) {
            let length = Duration::from_secs(seconds);
            let wanted = match kind { 0 => Wanted::Exactly(length), 1 => Wanted::ForJob(length), _ => Wanted::Default(length) };
            let mut bounds = vec![(Bound::Rule, Duration::from_secs(rule)), (Bound::Target, Duration::from_secs(target))];
            bounds.extend(subject.map(|subject| (Bound::SubjectToken, Duration::from_secs(subject))));
            let limit = if fixed { CloudLimit::Fixed } else { CloudLimit::UpTo(Duration::from_secs(cloud)) };
            let plan = Plan::new(wanted, limit, &bounds).expect("every bound is above the floor");
            let least = bounds.iter().map(|(_bound, length)| *length).chain((!fixed).then_some(Duration::from_secs(cloud))).min().expect("bounds");
            prop_assert!(plan.lifetime <= least);
            prop_assert!(plan.lifetime >= FLOOR);
            prop_assert!((FLOOR..=plan.lifetime).contains(&plan.least));
            // What fits is covered, but for the tenth that lets neighbours share.
            if length >= FLOOR && length <= least && !matches!(wanted, Wanted::Default(_)) {
                prop_assert!(plan.lifetime >= length);
                prop_assert!(plan.least >= length.min(least - least / 10));
                prop_assert_eq!(plan.bound(plan.lifetime, Given::AsAsked), Bound::Requested);
            }
        }

        #[test]
        fn a_refresh_comes_between_six_and_seven_tenths(seconds in 1u64..100_000, jitter in 0.0f64..=1.0) {
            let lifetime = Duration::from_secs(seconds);
            let at = refresh_in(lifetime, jitter);
            prop_assert!(at <= lifetime.mul_f64(0.7001) && at >= lifetime.mul_f64(0.5999));
        }
    }
}
