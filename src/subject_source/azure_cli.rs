//! The person who is signed in to the Azure command line.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::held::Fetched;
use super::{Audience, Environment, SourceError, SourceName};
use crate::answer;
use crate::clock::from_unix_seconds;
use crate::line::one_line;
use crate::secret::Secret;

#[derive(Debug, Clone)]
pub(super) struct AzureCli {
    program: PathBuf,
    scope: String,
}

/// `expires_on` is of newer versions only; the older `expiresOn` is local time without a zone.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "accessToken", deserialize_with = "answer::token")]
    access_token: Secret,
    #[serde(default, deserialize_with = "seconds")]
    expires_on: Option<u64>,
}

fn seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    answer::seconds(deserializer).map(Some)
}

impl AzureCli {
    /// `None` where az is not on the PATH.
    pub fn configured(environment: &Environment, audience: Option<&Audience>) -> Result<Option<Self>, SourceError> {
        let path = environment.text("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path).map(|folder| folder.join("az")).find(|program| program.is_file());
        let Some(program) = program else { return Ok(None) };
        let scope = audience.ok_or(SourceError::NoAudience(SourceName::AzureCli))?.scope();
        Ok(Some(Self { program, scope }))
    }

    pub async fn fetch(&self) -> Result<Fetched, SourceError> {
        let mut command = Command::new(&self.program);
        command
            .args(["account", "get-access-token", "--scope", &self.scope, "--output", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // az is a script around an interpreter: whoever ends it ends them all.
            .process_group(0);
        let failed = |error: std::io::Error| SourceError::AzureCli(format!("it could not be run: {error}"));
        let mut running = Group(command.spawn().map_err(failed)?);
        let ended = tokio::time::timeout(DEADLINE, running.outcome()).await.map_err(|_elapsed| {
            SourceError::AzureCli(format!("no token within {}s; try `az account get-access-token`", DEADLINE.as_secs()))
        })?;
        let (success, stdout, stderr) = ended.map_err(failed)?;
        if !success {
            return Err(SourceError::AzureCli(summary(&stderr)));
        }
        let answer: Option<Answer> = serde_json::from_slice(&stdout).ok();
        let fetched = answer.and_then(|answer| {
            let said = answer.expires_on.and_then(from_unix_seconds);
            Fetched::new(answer.access_token, said)
        });
        fetched.ok_or(SourceError::Malformed { name: SourceName::AzureCli })
    }
}

/// A process and all that it started; they end with this value.
struct Group(Child);

impl Group {
    async fn outcome(&mut self) -> std::io::Result<(bool, zeroize::Zeroizing<Vec<u8>>, Vec<u8>)> {
        let (stdout, stderr) = (self.0.stdout.take(), self.0.stderr.take());
        let (stdout, stderr) = tokio::try_join!(bounded(stdout), bounded(stderr))?;
        let status = self.0.wait().await?;
        Ok((status.success(), zeroize::Zeroizing::new(stdout), stderr))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let id = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(id) = id {
            // It may have ended by itself.
            let _ = rustix::process::kill_process_group(id, rustix::process::Signal::KILL);
        }
    }
}

async fn bounded(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MAX_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// The first line that says something, cut short, without what might be a token.
fn summary(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().find(|line| line.starts_with("ERROR")).or_else(|| lines().next()).unwrap_or("no message");
    let words = line.split_whitespace().map(|word| if word.len() > LONGEST_WORD { "[...]" } else { word });
    let line = one_line(&words.collect::<Vec<_>>().join(" "), 300);
    format!("{line} (it may help to run `az login`)")
}

/// Tokens are longer; GUIDs, AADSTS codes and most addresses are not.
const LONGEST_WORD: usize = 80;

/// az starts an interpreter and may ask Entra; the Azure libraries allow it 10 to 13 seconds.
const DEADLINE: Duration = Duration::from_secs(20);

const MAX_BYTES: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn az(folder: &tempfile::TempDir, script: &str) -> AzureCli {
        let program = folder.path().join("az");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("changed");
        let environment = Environment::of([("PATH", folder.path().to_str().expect("text"))]);
        let audience = Audience::of("api://carnet");
        AzureCli::configured(&environment, audience.as_ref()).expect("whole").expect("configured")
    }

    #[tokio::test]
    async fn the_expiry_is_taken_from_newer_and_older_versions() {
        let folder = tempfile::tempdir().expect("a folder");
        for expires_on in ["1767229200", r#""1767229200""#] {
            let answer = format!(r#"echo '{{"accessToken":"opaque","expires_on":{expires_on}}}'"#);
            let fetched = az(&folder, &answer).fetch().await.expect("a token");
            assert_eq!(Some(fetched.expires_at), from_unix_seconds(1_767_229_200));
        }
        let older = r#"echo '{"accessToken":"e30.eyJleHAiOjE3NjcyMjkyMDB9.s","expiresOn":"2026-01-01 01:00:00.0"}'"#;
        let fetched = az(&folder, older).fetch().await.expect("a token");
        assert_eq!(Some(fetched.expires_at), from_unix_seconds(1_767_229_200));
        for useless in [r#"echo '{"accessToken":"opaque"}'"#, "echo", r#"echo '{"accessToken":"two words"}'"#] {
            assert!(matches!(az(&folder, useless).fetch().await, Err(SourceError::Malformed { .. })), "{useless}");
        }
    }

    #[tokio::test]
    async fn whatever_az_started_ends_with_the_call() {
        let folder = tempfile::tempdir().expect("a folder");
        let started = folder.path().join("started");
        let script = format!("/bin/sleep 1000 & echo $! > '{}.new'; /bin/mv '{0}.new' '{0}'; wait", started.display());
        let az = az(&folder, &script);
        let mut call = Box::pin(az.fetch());
        let id = loop {
            tokio::select! {
                _ = &mut call => panic!("it ended by itself"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
            if let Ok(id) = std::fs::read_to_string(&started) {
                break id.trim().to_owned();
            }
        };
        drop(call);
        // A process that nobody has waited for yet shows as a zombie.
        let lives = || {
            let status = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            status.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
        };
        while lives() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn what_az_says_is_cut_short_and_without_tokens() {
        let token = "x".repeat(200);
        let said = format!("WARNING: noise\nERROR: AADSTS50173: {token} {}\nmore", "word ".repeat(200));
        let summary = summary(said.as_bytes());
        assert!(summary.starts_with("ERROR: AADSTS50173: [...] word"), "{summary}");
        assert!(summary.len() < 350 && !summary.contains(&token[..81]), "{summary}");
    }
}
