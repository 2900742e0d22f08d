//! carnet trades a verified Microsoft Entra ID token for short-lived Google Cloud and Azure credentials.
//!
//! ```text
//!  subject_token ─▶ subject     verified? signature, issuer, tenant, audience, time, kind of caller
//!  identity      ─▶ policy      which rule allows this identity this target, for how long? none: denied
//!  grant         ─▶ credential  cached? else one upstream call for everyone who waits for the same thing
//!  credential    ─▶ audit       recorded durably before the reply leaves
//!                ─▶ reply
//! ```
//!
//! A request meets the modules in the order in which they stand here, and a module uses only modules above it
//! (`tests/architecture.rs` decides). Start with [`exchange`].

// Leaves: know nothing of ours.
pub mod clock;
pub mod http;
pub mod json;
pub mod private_file;
pub mod reason;
pub mod secret;
pub mod socket;
pub mod line;
pub mod answer;
pub mod step;
pub mod entra;
pub mod target;
pub mod telemetry;
pub mod limit;
#[cfg(test)]
mod vectors;

/// The contract's messages and services, from `proto/`.
#[expect(missing_debug_implementations, reason = "a derived Debug would print the tokens that the messages carry")]
#[expect(clippy::allow_attributes, reason = "generated")]
pub mod proto {
    tonic::include_proto!("carnet.v1");

    /// All of `proto/`, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/carnet.descriptors"));
}

// Stages: left to right, this is the product.
pub mod subject;
pub mod policy;
pub mod issuer;
pub mod credential;
pub mod audit;
pub mod exchange;
pub mod lease;
pub mod trust;
pub mod operator;

// Edges: carry requests in, carry state out.
pub mod store;
pub mod export;
pub mod grpc;
pub mod oauth;
pub mod subject_source;
pub mod agent;
pub mod sandbox;
pub mod prober;

// Assembly.
pub mod config;
pub mod app;
pub mod doctor;
pub mod cli;
