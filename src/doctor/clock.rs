//! This machine's clock against those of the clouds.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;

use super::network::Ahead;
use super::{Examination, Finding, Severity};
use crate::target::Platform;

/// Hosts that do not answer are the other checks' to find.
pub(super) async fn examine(examination: &Examination<'_>) -> Vec<Finding> {
    let entra = &examination.config.entra;
    let mut urls = BTreeSet::new();
    urls.extend(
        entra
            .tenants
            .first()
            .map(|tenant| entra.authority.join(&format!("{tenant}/v2.0/.well-known/openid-configuration"))),
    );
    for target in examination.targets() {
        if let Platform::Google(google) = &target.platform {
            urls.insert(google.sts_endpoint.join("v1/token"));
        }
    }
    let answers = join_all(urls.iter().map(|url| examination.network.get(url))).await;
    let ahead = answers.into_iter().filter_map(|answer| answer.ok()?.ahead);
    let worst = ahead.max_by_key(|ahead| difference(*ahead));
    worst.map(judge).into_iter().collect()
}

fn difference(ahead: Ahead) -> Duration {
    match ahead {
        Ahead::Theirs(by) | Ahead::Ours(by) => by,
    }
}

fn judge(ahead: Ahead) -> Finding {
    let by = difference(ahead);
    let seen = match ahead {
        _ if by < FINE => "it agrees with the clouds'".to_owned(),
        Ahead::Theirs(by) => format!("this machine's clock is {}s behind the clouds'", by.as_secs()),
        Ahead::Ours(by) => format!("this machine's clock is {}s ahead of the clouds'", by.as_secs()),
    };
    let severity = match by {
        _ if by < FINE => Severity::Ok,
        _ if by < BAD => Severity::Warning,
        _ => Severity::Error,
    };
    let finding = Finding::new(severity, "clock", "clock", seen);
    if severity == Severity::Ok {
        return finding;
    }
    let advice = "assertions and tokens are judged by the time: Google takes hardly any difference, Entra five minutes";
    finding.repair(advice, &["timedatectl set-ntp true", "timedatectl timesync-status"])
}

/// Google refuses assertions from the future.
const FINE: Duration = Duration::from_secs(10);

/// Entra's own services take five minutes.
const BAD: Duration = Duration::from_secs(240);
