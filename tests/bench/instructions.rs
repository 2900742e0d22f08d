//! What an exchange and the empty method cost in instructions: counts, which other work on the machine hardly changes.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::broker::Wire;
use crate::load::{self, Shape};
use crate::machine::{self, Core};
use crate::sides::{STREAMS, Side, Sides};
use crate::table::{Row, aside, row};

pub async fn run() -> Result<Vec<Row>> {
    let installed = Command::new("callgrind_control").arg("--version").stdout(Stdio::null()).status();
    if !installed.is_ok_and(|status| status.success()) {
        return Ok(vec![aside("instructions per call: not counted, valgrind is not installed", "")]);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let sides = Sides::start_as(Wire::Plain, |program| machine::counted(Core::Server, program, folder)).await?;
    let mut counts = Vec::new();
    for side in Side::BOTH {
        let process = sides.process(side).0.id();
        let shape = |calls| Shape::Counted { streams: STREAMS, calls };
        load::run(&sides.job(side, shape(WARMING_UP))).await?;
        control(&["--instr=on", &process.to_string()])?;
        // What was translated without counting is translated anew.
        load::run(&sides.job(side, shape(WARMING_UP))).await?;
        control(&["--zero", &process.to_string()])?;
        load::run(&sides.job(side, shape(CALLS))).await?;
        control(&["--dump=bench", &process.to_string()])?;
        control(&["--instr=off", &process.to_string()])?;
        counts.push(collected(folder, process)? / CALLS as f64);
    }
    let [empty, exchange] = counts[..] else { anyhow::bail!("two counts") };
    Ok(vec![
        row("instructions of an exchange / empty method's", format!("{:.2}×", exchange / empty), ""),
        aside("per call, the system's not counted: empty, exchange", format!("{empty:.0}, {exchange:.0}")),
    ])
}

fn control(arguments: &[&str]) -> Result<()> {
    let done = Command::new("callgrind_control").args(arguments).stdout(Stdio::null()).status()?;
    ensure!(done.success(), "callgrind_control {arguments:?}: {done}");
    Ok(())
}

/// In the first dump of the process.
fn collected(folder: &Path, process: u32) -> Result<f64> {
    let dump = std::fs::read_to_string(folder.join(format!("callgrind.{process}.1")))?;
    let totals = dump.lines().find_map(|line| line.strip_prefix("summary:").or_else(|| line.strip_prefix("totals:")));
    Ok(totals.context("a dump without totals")?.trim().parse()?)
}

const WARMING_UP: usize = 1_000;
const CALLS: usize = 10_000;
