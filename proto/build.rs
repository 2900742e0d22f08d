//! Compiles the contract's .proto files in Rust, so that a build needs no protoc.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/carnet/v1/exchange.proto", "proto/carnet/v1/leases.proto", "proto/carnet/v1/operator.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("carnet.descriptors"), descriptors.encode_to_vec())?;
    // A derived Debug would print the tokens that these messages carry.
    tonic_prost_build::configure().skip_debug(["."]).btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
