//! Compiles the contract's .proto files in Rust, so that a build needs no protoc; says what is built.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/carnet/v1/exchange.proto", "proto/carnet/v1/leases.proto", "proto/carnet/v1/operator.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("carnet.descriptors"), descriptors.encode_to_vec())?;
    // A derived Debug would print the tokens that these messages carry.
    tonic_prost_build::configure().skip_debug(["."]).btree_map(".").compile_fds(descriptors)?;
    println!("cargo:rustc-env=CARNET_COMMIT={}", commit());
    println!("cargo:rustc-env=CARNET_FEATURES={}", features());
    Ok(())
}

/// From `CARNET_COMMIT`, else from git. Debug builds do not ask git, or every commit would compile everything anew.
fn commit() -> String {
    println!("cargo:rerun-if-env-changed=CARNET_COMMIT");
    if let Some(given) = env::var("CARNET_COMMIT").ok().filter(|given| !given.is_empty()) {
        return given;
    }
    let unknown = || "unknown".to_owned();
    if env::var("PROFILE").as_deref() != Ok("release") {
        return unknown();
    }
    // Whatever could make the checkout another one than its commit.
    for path in [".git/logs/HEAD", "src", "Cargo.toml", "Cargo.lock", ".cargo"] {
        if Path::new(path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let described =
        Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]).output();
    match described {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        // No git, or no checkout: a source archive.
        Ok(_) | Err(_) => unknown(),
    }
}

fn features() -> String {
    let enabled = env::vars().filter_map(|(name, _)| Some(name.strip_prefix("CARGO_FEATURE_")?.to_lowercase()));
    let mut enabled: Vec<String> = enabled.collect();
    enabled.sort();
    if enabled.is_empty() { "none".to_owned() } else { enabled.join("+") }
}
