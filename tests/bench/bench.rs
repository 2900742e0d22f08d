//! What the broker costs, as ratios and counts measured in one run: `cargo bench --bench broker`, with a part's name
//! after `--` for that part alone. Nothing here is asserted but that the answers are right.

mod agent;
mod broker;
mod cold;
mod empty;
mod flood;
mod herd;
mod idle;
mod inside;
mod instructions;
mod leases;
mod load;
mod machine;
mod memory;
mod sides;
mod sight;
mod storm;
mod table;
mod warm;
mod watches;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::table::Row;

/// As in the real binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        // Processes of the bench's own.
        [empty::ROLE, answer] => empty::serve(answer),
        [agent::EMPTY, address] => agent::serve_empty(address),
        [agent::LOAD, address] => agent::load(address),
        [load::ROLE, job] => load::child(job),
        [sight::ROLE] => sight::child(),
        [inside::ROLE, measure] => inside::child(measure),
        [memory::ROLE] => memory::child(),
        [cold::ROLE] => cold::child(),
        // `cargo test --all-targets` starts benches too, without this word.
        words if words.contains(&"--bench") => {
            let chosen: Vec<&str> = words.iter().copied().filter(|word| !word.starts_with('-')).collect();
            run(&chosen)
        }
        _ => Ok(()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(chosen: &[&str]) -> Result<()> {
    // One TLS and crypto provider for the whole process, as in the real binary.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    anyhow::ensure!(
        chosen.iter().all(|name| PARTS.iter().any(|(part, _run)| part == name)),
        "the parts are {}",
        PARTS.map(|(part, _run)| part).join(", ")
    );
    table::head()?;
    for (name, part) in PARTS {
        if chosen.is_empty() || chosen.contains(&name) {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let rows = runtime.block_on(part()).with_context(|| format!("part `{name}`"))?;
            runtime.shutdown_background();
            table::print(name, &rows);
        }
    }
    Ok(())
}

type Part = fn() -> std::pin::Pin<Box<dyn Future<Output = Result<Vec<Row>>>>>;

const PARTS: [(&str, Part); 16] = [
    ("warm", || Box::pin(warm::run())),
    ("instructions", || Box::pin(instructions::run())),
    ("tls", || Box::pin(warm::over_tls())),
    ("cores", || Box::pin(warm::on_cores())),
    ("sight", || Box::pin(sight::run())),
    ("audit", || Box::pin(inside::audit())),
    ("growth", || Box::pin(inside::growth())),
    ("cold", || Box::pin(cold::run())),
    ("herd", || Box::pin(herd::run())),
    ("memory", || Box::pin(memory::run())),
    ("idle", || Box::pin(idle::run())),
    ("leases", || Box::pin(leases::run())),
    ("watches", || Box::pin(watches::run())),
    ("agent", || Box::pin(agent::run())),
    ("flood", || Box::pin(flood::run())),
    ("storm", || Box::pin(storm::run())),
];

#[expect(clippy::print_stderr, reason = "the bench's own voice")]
fn complain(error: &anyhow::Error) {
    eprintln!("bench: {error:#}");
}
