//! The targets by name.

mod audit_records;
mod client_answers;
mod cloud_answers;
mod condition;
mod configuration;
mod helper_protocols;
mod http_door;
mod key_documents;
mod metadata_requests;
mod requests;
mod subject_token;

pub const ALL: [(&str, fn(&[u8])); 11] = [
    ("audit_records", audit_records::run),
    ("client_answers", client_answers::run),
    ("cloud_answers", cloud_answers::run),
    ("condition", condition::run),
    ("configuration", configuration::run),
    ("helper_protocols", helper_protocols::run),
    ("http_door", http_door::run),
    ("key_documents", key_documents::run),
    ("metadata_requests", metadata_requests::run),
    ("requests", requests::run),
    ("subject_token", subject_token::run),
];
