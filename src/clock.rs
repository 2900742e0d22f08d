//! Time as an argument: the wall clock that every decision about expiry reads.

use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Tells the wall-clock time. Waiting goes through `tokio::time`; this is for comparing with timestamps.
pub trait Clock: Debug + Send + Sync + 'static {
    fn now(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A moment by the wall clock and by the steady one, which nobody sets: what is good for an hour from then is good for no
/// longer, although the wall clock is set back meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    wall: SystemTime,
    steady: Instant,
}

impl Moment {
    /// `now` is what a [`Clock`] says.
    pub fn at(now: SystemTime) -> Self {
        Self { wall: now, steady: Instant::now() }
    }

    /// `now`, or what it would be had the wall clock not been set back since.
    pub fn no_earlier(&self, now: SystemTime) -> SystemTime {
        self.wall.checked_add(self.steady.elapsed()).map_or(now, |steady| steady.max(now))
    }
}

/// Whole seconds since 1970, the `NumericDate` of RFC 7519 section 2. Before 1970 is 0.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `time` without what is below a millisecond, as stores keep it. Before 1970 is 1970.
pub fn whole_milliseconds(time: SystemTime) -> SystemTime {
    from_unix_milliseconds(unix_milliseconds(time))
}

/// Whole milliseconds since 1970; before 1970 is 0.
pub fn unix_milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub fn from_unix_milliseconds(milliseconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds.unsigned_abs())
}

/// The time of a `NumericDate` in seconds; `None` where the platform cannot represent it.
pub fn from_unix_seconds(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// A clock that moves only when told to.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Clone)]
pub struct ManualClock(std::sync::Arc<std::sync::Mutex<SystemTime>>);

#[cfg(any(test, feature = "testing"))]
impl ManualClock {
    pub fn at(now: SystemTime) -> Self {
        Self(std::sync::Arc::new(std::sync::Mutex::new(now)))
    }

    /// Starts at 2026-01-01T00:00:00Z.
    pub fn start() -> Self {
        Self::at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600))
    }

    pub fn advance(&self, by: Duration) {
        *self.locked() += by;
    }

    pub fn rewind(&self, by: Duration) {
        *self.locked() -= by;
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, SystemTime> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(any(test, feature = "testing"))]
impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.locked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn from_a_moment_on_time_goes_forward_whatever_the_wall_clock_does() {
        let (clock, hour) = (ManualClock::start(), Duration::from_secs(3600));
        let (start, moment) = (clock.now(), Moment::at(clock.now()));
        clock.advance(hour);
        assert_eq!(moment.no_earlier(clock.now()), start + hour);
        clock.rewind(2 * hour);
        assert_eq!(moment.no_earlier(clock.now()), start);
        tokio::time::advance(hour).await;
        assert_eq!(moment.no_earlier(clock.now()), start + hour);
    }
}
