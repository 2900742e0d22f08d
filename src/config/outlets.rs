//! `audit.sinks` as ways out of audit records.

use std::path::PathBuf;

use super::document::SinkDocument;
use crate::export::{Destination, OtlpSettings, OutletSettings};
use crate::policy::Mistake;
use crate::secret::Secret;

/// `ca_file`: trusted besides the system's authorities.
pub(super) fn compile(
    sinks: &[SinkDocument],
    ca_file: Option<&PathBuf>,
    mistakes: &mut Vec<Mistake>,
) -> Vec<OutletSettings> {
    let mut outlets: Vec<OutletSettings> = Vec::new();
    for (index, sink) in sinks.iter().enumerate() {
        let mut mistake = |field: &str, message: String| {
            mistakes.push(Mistake { at: format!("audit.sinks[{index}]{field}"), message });
        };
        let (kind, to) = match (&sink.stdout, &sink.otlp) {
            (Some(stdout), None) => ("stdout", Destination::Stdout(stdout.format)),
            (None, Some(otlp)) => {
                let settings = OtlpSettings {
                    endpoint: otlp.endpoint.clone(),
                    format: otlp.format,
                    headers: otlp.headers.clone(),
                    ca_file: ca_file.cloned(),
                };
                if let Err(error) = settings.check() {
                    mistake(".otlp.headers", error.to_string());
                }
                ("otlp", Destination::Otlp(settings))
            }
            (None, None) | (Some(_), Some(_)) => {
                mistake("", "is one of stdout and otlp".to_owned());
                continue;
            }
        };
        let name = sink.name.as_ref().map_or_else(|| kind.to_owned(), ToString::to_string);
        if outlets.iter().any(|outlet| outlet.name == name) {
            mistake("", format!("is the second with the name {name}: give one of them another `name`"));
        }
        let is_stdout = |to: &Destination| matches!(to, Destination::Stdout(_));
        if is_stdout(&to) && outlets.iter().any(|outlet| is_stdout(&outlet.to)) {
            mistake("", "is a second way to standard output: their lines would mix".to_owned());
        }
        outlets.push(OutletSettings { name, to });
    }
    outlets
}

/// What only a digest of the configuration may know.
pub(super) fn secrets(sinks: &[SinkDocument]) -> impl Iterator<Item = &Secret> {
    sinks.iter().filter_map(|sink| sink.otlp.as_ref()).flat_map(|otlp| otlp.headers.values())
}
