//! The programs of `tests/clients`, each a process of its own that makes one call of a cloud's API for each line it reads.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::postgres::{say, say_skipped};

/// A program and the library that it shows.
#[derive(Clone, Copy)]
pub struct Program {
    pub language: &'static str,
    /// What the lock file calls the library that gets the credential.
    pub library: &'static str,
    command: &'static [&'static str],
}

const fn program(language: &'static str, library: &'static str, command: &'static [&'static str]) -> Program {
    Program { language, library, command }
}

const CLASSES: &str = ".installed/java/classes:.installed/java/dependency/*";

pub const GOOGLE: [Program; 5] = [
    program("python", "google-auth", &[".installed/python/bin/python", "python/storage.py"]),
    program("node", "google-auth-library", &["node", "node/storage.js"]),
    program("go", "cloud.google.com/go/auth", &[".installed/go/storage", "auth"]),
    program("go", "golang.org/x/oauth2", &[".installed/go/storage", "oauth2"]),
    program("java", "google-auth-library-oauth2-http", &["java", "-cp", CLASSES, "Storage"]),
];

/// Each takes the name of the credential, `default` or `managed-identity`, as its argument.
pub const AZURE: [Program; 4] = [
    program("python", "azure-identity", &[".installed/python/bin/python", "python/blobs.py"]),
    program("node", "@azure/identity", &["node", "node/blobs.js"]),
    program("go", "github.com/Azure/azure-sdk-for-go/sdk/azidentity", &[".installed/go/blobs"]),
    program("java", "azure-identity", &["java", "-cp", CLASSES, "Blobs"]),
];

impl Program {
    /// Whether `tests/clients/install` has put it there. With `CARNET_TEST_CLIENTS=required` only what that command
    /// itself has left out may be missing.
    pub fn is_installed(&self) -> bool {
        let of = |what: &str| clients().join(format!(".installed/{}.{what}", self.language));
        if of("of").exists() {
            return true;
        }
        let left_out = std::fs::read_to_string(of("left-out")).ok();
        let is_required = std::env::var("CARNET_TEST_CLIENTS").is_ok_and(|value| value == "required");
        assert!(!is_required || left_out.is_some(), "CARNET_TEST_CLIENTS is `required`, and {self} is not installed");
        let why = left_out.unwrap_or_else(|| "run tests/clients/install".to_owned());
        say_skipped(&format!("{self} is not installed: {}", why.trim()));
        false
    }

    /// For whoever keeps the list of what was run.
    pub fn say_run(&self, way: &str) {
        say(&format!("RAN {self} {}: {way}", self.version()));
    }

    /// As pinned.
    fn version(&self) -> String {
        let (file, before) = match self.language {
            "python" => ("python/requirements.txt", format!("{}==", self.library)),
            "node" => {
                ("node/package-lock.json", format!("\"node_modules/{}\": {{\n      \"version\": \"", self.library))
            }
            "go" => ("go/go.mod", format!("{} v", self.library)),
            _ => ("java/pom.xml", format!("<artifactId>{}</artifactId>\n      <version>", self.library)),
        };
        let text = std::fs::read_to_string(clients().join(file)).expect("a lock file");
        let (_before, rest) = text.split_once(&before).expect("a pinned version");
        rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '.').collect()
    }

    /// Starts it with nothing in its environment but what a process needs to run, and `environment`.
    pub fn start(&self, arguments: &[&str], home: &Path, environment: &[(&str, String)]) -> Client {
        let mut command = Command::new(self.command[0]);
        if self.language == "java" {
            // Starts in half the time; and the home of a Java program is not that of its environment.
            command
                .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
                .arg(format!("-Duser.home={}", home.display()));
        }
        command.args(&self.command[1..]).args(arguments);
        self.run(command, home, environment)
    }

    /// As `start`, behind another command.
    pub fn start_under(
        &self,
        mut command: Command,
        arguments: &[&str],
        home: &Path,
        environment: &[(&str, String)],
    ) -> Client {
        command.args(self.command).args(arguments);
        self.run(command, home, environment)
    }

    fn run(&self, mut command: Command, home: &Path, environment: &[(&str, String)]) -> Client {
        let errors = home.join(format!("{}.errors", self.to_string().replace('/', "-")));
        let to = std::fs::File::options().create(true).append(true).open(&errors).expect("a file");
        command
            .current_dir(clients())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").expect("a path"))
            .env("HOME", home);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(to);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{self}: {error}"));
        let (sender, answers) = channel();
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let input = child.stdin.take();
        Client { program: *self, child, input, answers, errors }
    }
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.language, self.library)
    }
}

/// A running program; it ends with its holder.
pub struct Client {
    pub program: Program,
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
    errors: PathBuf,
}

impl Client {
    /// One call of the API. The error is the one that its library gave, after its class.
    pub fn call(&mut self) -> Result<(), String> {
        self.ask();
        self.answer()
    }

    pub fn ask(&mut self) {
        writeln!(self.input.as_ref().expect("open"), "call").expect("the program reads");
    }

    pub fn answer(&mut self) -> Result<(), String> {
        let said = tokio::task::block_in_place(|| self.answers.recv_timeout(PATIENCE));
        let said = said.unwrap_or_else(|error| panic!("{}: {error}: {}", self.program, self.standard_error()));
        match said.split_once(' ') {
            Some(("ok", names)) => {
                assert_eq!(names, "images/0001.jpg labels.csv", "{}", self.program);
                Ok(())
            }
            Some(("error", error)) => Err(error.to_owned()),
            _ => panic!("{} said {said}", self.program),
        }
    }

    pub fn must_call(&mut self) {
        if let Err(error) = self.call() {
            panic!("{}: {error}\n{}", self.program, self.standard_error());
        }
    }

    /// It has nothing more to do: it ends by itself, as a success.
    pub fn end(mut self) {
        self.input.take();
        let ended = tokio::task::block_in_place(|| self.child.wait()).expect("an end");
        assert!(ended.success(), "{}: {ended}: {}", self.program, self.standard_error());
    }

    pub fn standard_error(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// For libraries that wait and ask again by themselves, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(120);
