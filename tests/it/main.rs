//! One binary for everything that needs the real application or the real stand-ins.
#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod holder;
mod hurry;
mod postgres;
mod process;
mod support;

mod agent;
mod audit;
mod audit_commands;
mod audit_tail;
mod clients;
mod clouds;
mod command_line;
mod credential_commands;
mod doctor;
mod deployment;
mod doors;
mod exchange;
mod exec;
mod explain;
mod faults;
mod grpc;
mod health;
mod hostile;
mod issuer_keys;
mod killed;
mod lease;
mod lease_commands;
mod lifecycle;
mod negative_proof;
mod oauth;
mod outlets;
mod policy_commands;
mod readme;
mod replicas;
mod shadow;
mod rolling;
mod store;
mod subject;
mod subject_source;
mod tls;
mod trust;
