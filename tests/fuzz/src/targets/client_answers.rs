//! What answers a client that looks for its own subject token. The first line names where it looks; after each line `---`
//! comes an answer, as for the clouds.

use std::sync::atomic::{AtomicUsize, Ordering};

use carnet::subject_source::{Environment, Settings, SourceName, SubjectSource};

use super::cloud_answers::{MARK, parsed};
use crate::world::{CLIENT, TENANT, answer, block_on, clock, scratch, show};

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split("\n---\n");
    let kind = parts.next().unwrap_or_default();
    let answers: Vec<_> = parts.map(parsed).collect();
    if answers.is_empty() {
        return;
    }
    let client_id = "33333333-3333-3333-3333-333333333333";
    let (source, variables) = match kind {
        "workload" => {
            let file = scratch("federated-token");
            std::fs::write(&file, "federated.token.of-a-cluster").expect("a scratch file");
            let file = file.display().to_string();
            let variables = [
                ("AZURE_FEDERATED_TOKEN_FILE", file),
                ("AZURE_CLIENT_ID", client_id.to_owned()),
                ("AZURE_TENANT_ID", TENANT.to_owned()),
            ];
            (SourceName::WorkloadIdentity, variables.to_vec())
        }
        "app-service" => {
            let variables = [
                ("IDENTITY_ENDPOINT", "http://127.0.0.1:1/msi/token".to_owned()),
                ("IDENTITY_HEADER", "header".to_owned()),
            ];
            (SourceName::ManagedIdentity, variables.to_vec())
        }
        "machine-learning" => {
            let variables =
                [("MSI_ENDPOINT", "http://127.0.0.1:1/msi".to_owned()), ("MSI_SECRET", "secret".to_owned())];
            (SourceName::ManagedIdentity, variables.to_vec())
        }
        _ => (SourceName::ManagedIdentity, Vec::new()),
    };
    let settings = Settings {
        source: Some(source),
        audience: Some("api://carnet".to_owned()),
        environment: Environment::of(variables),
        ..Settings::default()
    };
    let (calls, last) = (AtomicUsize::new(0), answers.len() - 1);
    let http = CLIENT.answered_by(move |_request| {
        let (status, headers, body) = &answers[calls.fetch_add(1, Ordering::Relaxed).min(last)];
        answer(*status, headers.clone(), body.clone())
    });
    let source = SubjectSource::over(settings, clock(), http);
    let answered = block_on(source.token());
    show(|| format!("{answered:?}"));
    match answered {
        Ok(token) => assert!(!token.is_empty() && token.expose().bytes().all(|byte| byte.is_ascii_graphic())),
        Err(error) => assert!(!error.to_string().contains(MARK), "{error}"),
    }
}
