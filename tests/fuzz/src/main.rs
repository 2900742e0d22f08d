//! One program for all fuzz targets: `CARNET_FUZZ_TARGET` names the one that libFuzzer feeds.

#![no_main]

mod broker;
mod store;
mod targets;
mod world;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    expect_panics_of_the_parser();
    let name = std::env::var("CARNET_FUZZ_TARGET").unwrap_or_default();
    match targets::ALL.iter().find(|(known, _target)| *known == name) {
        Some((_name, target)) => *target,
        None => {
            let names: Vec<&str> = targets::ALL.iter().map(|(name, _target)| *name).collect();
            eprintln!("CARNET_FUZZ_TARGET names no target; there are {}", names.join(", "));
            std::process::exit(2);
        }
    }
});

fuzz_target!(|data: &[u8]| (*TARGET)(data));

/// The CEL parser panics on some texts, on a thread of its own where the panic ends as an error: no finding, unlike
/// every other panic, at which libFuzzer's hook stops.
fn expect_panics_of_the_parser() {
    let stop = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let file = panic.location().map(|location| location.file()).unwrap_or_default();
        let of_the_parser = file.contains("/antlr4rust-") || file.contains("/cel-");
        if !(of_the_parser && std::thread::current().name() == Some("cel-parser")) {
            stop(panic);
        }
    }));
}
