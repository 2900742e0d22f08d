//! argv in, exit code out.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One TLS and crypto provider for the whole process, before anything can choose another.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    carnet::cli::run(carnet::cli::Cli::of_this_process())
}
