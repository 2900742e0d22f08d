//! What is deployed fits the program: the chart's schema and configuration, the metrics that alerts and dashboard name, and
//! a paragraph for every alert.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use carnet::config::{AgentConfig, Config};
use carnet::telemetry::{COUNTERS, GAUGES, HISTOGRAMS};
use serde_json::{Map, Value};

use crate::command_line::{carnet, run, text};
use crate::support::STORE_KEY;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/helm/carnet");

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}"))
}

/// The chart's file of this name.
fn of_chart(name: &str) -> String {
    read(Path::new(CHART).join(name))
}

/// Words of letters, digits and `_` that begin with `prefix`.
fn words<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with(prefix)).collect()
}

#[test]
fn every_metric_of_the_alerts_and_the_dashboard_is_one_that_the_broker_exposes() {
    let mut exposed: BTreeSet<String> =
        COUNTERS.iter().chain(&GAUGES).map(|(name, _meaning)| (*name).to_owned()).collect();
    for (name, _meaning) in HISTOGRAMS {
        exposed.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
    }
    for file in ["files/alerts.yaml", "files/dashboard.json"] {
        let text = of_chart(file);
        let named = words(&text, "carnet_");
        assert!(named.len() > 10, "{file} names {named:?} only");
        let unknown: Vec<_> = named.into_iter().filter(|name| !exposed.contains(*name)).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}, which the broker does not expose");
    }
}

#[test]
fn every_alert_has_its_paragraph_in_the_guide_and_its_test() {
    let alerts = yaml(&of_chart("files/alerts.yaml"));
    let rules = alerts["groups"][0]["rules"].as_array().expect("rules");
    let alerts: BTreeSet<&str> = rules.iter().map(|rule| rule["alert"].as_str().expect("a name")).collect();
    let guide = read(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/README.md"));
    let paragraphs = guide.lines().filter_map(|line| line.strip_prefix("**Carnet")?.split_once("**"));
    let paragraphs: BTreeSet<String> = paragraphs.map(|(name, _text)| format!("Carnet{name}")).collect();
    assert_eq!(paragraphs.iter().map(String::as_str).collect::<BTreeSet<_>>(), alerts);
    let tests = read(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/check/alerts_test.yaml"));
    let tested: BTreeSet<&str> = tests.lines().filter_map(|line| line.strip_prefix("      - alertname: ")).collect();
    assert_eq!(tested, alerts, "each has to be seen to fire");
}

/// The chart holds `config` and `agent.config` to the program's own schemas. `CARNET_WRITE_SCHEMA=1` writes them down.
#[test]
fn the_charts_schema_holds_the_configuration_to_what_the_program_takes() {
    let path = Path::new(CHART).join("values.schema.json");
    let mut schema: Map<String, Value> = serde_json::from_str(&read(&path)).expect("JSON");
    let mut definitions = Map::new();
    let theirs = [
        ("Config", Config::schema().to_value(), &["server", "store", "store_key", "shadow"][..]),
        ("AgentConfig", AgentConfig::schema().to_value(), &["listen"]),
    ];
    for (name, mut root, written_by_the_chart) in theirs {
        rename(&mut root, name);
        let root = root.as_object_mut().expect("an object");
        let inner = root.remove("$defs");
        ["$schema", "title"].iter().for_each(|key| drop(root.remove(*key)));
        for property in written_by_the_chart {
            root["properties"].as_object_mut().expect("properties").remove(*property).expect("a property");
        }
        if name == "AgentConfig" {
            // Whether it is there is the chart's to say, in words.
            root.remove("required");
        }
        definitions.insert(name.to_owned(), Value::Object(root.clone()));
        for (inner_name, definition) in inner.iter().flat_map(|inner| inner.as_object().expect("an object")) {
            definitions.insert(format!("{name}.{inner_name}"), definition.clone());
        }
    }
    if std::env::var_os("CARNET_WRITE_SCHEMA").is_some() {
        schema.insert("$defs".to_owned(), Value::Object(definitions.clone()));
        std::fs::write(&path, serde_json::to_string_pretty(&schema).expect("JSON") + "\n").expect("written");
    }
    let fits = schema["$defs"] == Value::Object(definitions);
    assert!(fits, "the configuration has changed: CARNET_WRITE_SCHEMA=1 cargo test --test it the_charts_schema");
}

/// References to definitions, for a document that has those of others, too.
fn rename(value: &mut Value, prefix: &str) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get_mut("$ref") {
                *reference = reference.replace("#/$defs/", &format!("#/$defs/{prefix}."));
            }
            fields.values_mut().for_each(|inner| rename(inner, prefix));
        }
        Value::Array(items) => items.iter_mut().for_each(|inner| rename(inner, prefix)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_value_of_the_chart_is_in_its_table() {
    fn leaves(value: &Value, path: String, table: &str, missing: &mut Vec<String>) {
        let documented = table.contains(&format!("\n| `{path}` | `"));
        match value.as_object() {
            Some(fields) if !documented && !fields.is_empty() => {
                let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                fields.iter().for_each(|(name, inner)| leaves(inner, below(name), table, missing));
            }
            _ if documented => {
                let row = format!("\n| `{path}` | `");
                let shown = table.split(&row).nth(1).and_then(|rest| rest.split("` |").next()).unwrap_or_default();
                if serde_json::from_str::<Value>(shown).ok().as_ref() != Some(value) {
                    missing.push(format!("{path} has another default than {shown}"));
                }
            }
            _ => missing.push(path),
        }
    }
    let mut missing = Vec::new();
    leaves(&yaml(&of_chart("values.yaml")), String::new(), &of_chart("README.md"), &mut missing);
    assert_eq!(missing, Vec::<String>::new(), "the chart's README.md has a table of all values");
}

/// The module's own tests expect this condition; the program prints it for the same configuration.
#[tokio::test(flavor = "multi_thread")]
async fn terraform_tells_google_the_same_as_the_program_does() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/carnet.yaml");
    let asked = ["trust", "google", "--config", example, "--target", "vertex-training", "--format", "terraform"];
    let mut command = carnet(&asked);
    command.env("CARNET_STORE_KEY", STORE_KEY);
    let printed = text(&run(command).await.stdout);
    let argument = |name: &str| {
        let found =
            printed.lines().find_map(|line| line.trim().strip_prefix(name)?.split_once('=').map(|(_, value)| value));
        found.unwrap_or_else(|| panic!("no {name} in {printed}")).trim().to_owned()
    };
    let module = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/terraform/google/condition");
    let tests = read(format!("{module}/tests/condition.tftest.hcl"));
    let (condition, audience) = (argument("attribute_condition"), argument("allowed_audiences"));
    assert!(tests.contains(&format!("== {condition}\n")), "{condition}");
    assert!(tests.contains(&format!("== {}\n", audience.trim_matches(['[', ']']))), "{audience}");
}

/// What deploy/check/run rendered; none where it did not run or had no Helm.
#[expect(clippy::print_stderr, reason = "says what was left out")]
fn rendered() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/target/deploy/rendered");
    let files = std::fs::read_dir(folder).into_iter().flatten();
    let files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    if files.is_empty() {
        eprintln!("left out: no case of the chart was rendered; deploy/check/run does it");
    }
    files
}

#[test]
fn what_the_chart_writes_is_a_configuration_that_the_program_takes() {
    let folder = tempfile::tempdir().expect("a folder");
    let etc = folder.path().display().to_string();
    let place = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    };
    place("postgres/url", "postgres://carnet:secret@db.example.com/carnet\n");
    for key in ["store-key", "store-key-2026", "store-key-2027"] {
        place(&format!("store-key/{key}"), STORE_KEY);
    }
    let (files, mut checked) = (rendered(), BTreeSet::new());
    for path in &files {
        let text = read(path);
        let case = path.file_stem().expect("a name").to_string_lossy().into_owned();
        for document in text.split("\n---") {
            for name in ["shadow.yaml", "carnet.yaml", "agent.yaml"] {
                let Some((_before, block)) = document.split_once(&format!("\n  {name}: |\n")) else { continue };
                let lines = block.lines().take_while(|line| line.starts_with("    ") || line.trim().is_empty());
                let own = lines.map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or_default()));
                let own = own.collect::<String>().replace("/etc/carnet/", &format!("{etc}/"));
                place(name, &own);
                let found = match name {
                    // Together with the file that names it.
                    "shadow.yaml" => continue,
                    "agent.yaml" => AgentConfig::load(&folder.path().join(name)).map(drop),
                    _ => Config::load(&folder.path().join(name)).and_then(|config| match config.shadow {
                        Some(shadow) => shadow.load().map(drop),
                        None => Ok(()),
                    }),
                };
                let complaints = found.err().map(|error| error.to_string()).unwrap_or_default();
                if case == "default" {
                    assert!(complaints.contains("entra.tenants: name at least one"), "{complaints}");
                    assert_eq!(complaints.lines().count(), 3, "and the audiences, no more: {complaints}");
                } else {
                    assert_eq!(complaints, "", "{case}\n{own}");
                }
                checked.insert((case.clone(), name));
            }
        }
    }
    assert!(files.is_empty() || checked.len() >= 9, "{checked:?}");
}
