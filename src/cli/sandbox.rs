//! `carnet sandbox`: the stand-ins, a real broker beside them, one exchange to look at, and what to try next.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;

use super::broker::{Broker, SubjectToken};
use super::credentials::{bound, rfc3339};
use super::exchange::exchange;
use super::print;
use super::private_file::PrivateFile;
use super::table::table;
use crate::app::{App, StartError};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::proto;
use crate::sandbox::{
    AssignedIdentity, AzureStorage, Entra, FederatedCredential, Google, Identity, ManagedIdentity, Person, PoolProvider,
};
use crate::telemetry::{self, LogFormat};

/// Everything listens on 127.0.0.1 and ends with the command; nothing of it is a real cloud's.
#[derive(Debug, Args)]
pub(super) struct Sandbox {
    /// End after the first exchange
    #[arg(long)]
    once: bool,
}

impl Sandbox {
    pub async fn run(self) -> anyhow::Result<()> {
        let _telemetry = telemetry::install(&telemetry::Settings { otlp: None, log: LogFormat::Text })?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let folder = Folder::make()?;
        let clouds = Clouds::start(clock.clone()).await?;
        // Where another sandbox starts at the same moment, one of them takes other ports.
        let (app, grpc, issuer, config_path) = match clouds.broker([7443, 7080], &folder.0, clock.clone()).await {
            Err(error) if matches!(error.downcast_ref(), Some(StartError::Listen { .. })) => {
                let anew = folder.0.join("again");
                fs::create_dir(&anew)?;
                clouds.broker([0, 0], &anew, clock).await?
            }
            started => started?,
        };
        clouds.trust(&issuer).await?;
        app.until_ready().await;
        let token_path = folder.0.join("subject-token");
        let tokens = Tokens {
            runner: token_path.clone(),
            reader: folder.0.join("reader-token"),
            operator: folder.0.join("operator-token"),
        };
        clouds.write(&tokens)?;

        let (broker, token) = (Broker::at(format!("http://{grpc}")), SubjectToken::in_file(token_path.clone()));
        let answer = exchange(&broker, &token, first_exchange()).await?;
        print(shown(&answer));
        if !self.once {
            print(next_steps(&grpc, &issuer, &tokens, &config_path, &clouds));
            clouds.serve_until_interrupted(&tokens).await?;
        }
        app.drain().await;
        Ok(())
    }
}

/// Where the Entra tokens of the sandbox's people and workloads are.
struct Tokens {
    /// May have what the rules give.
    runner: PathBuf,
    /// May not.
    reader: PathBuf,
    operator: PathBuf,
}

/// The stand-ins, set up as one company's clouds.
struct Clouds {
    entra: Entra,
    google: Google,
    managed_identity: ManagedIdentity,
    storage: AzureStorage,
}

impl Clouds {
    async fn start(clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let entra = Entra::start(clock.clone(), [TENANT]).await?;
        entra.set_default_audience(AUDIENCE);
        // The pipeline runner: it gets tokens for the broker with its secret.
        let runner = Identity::app(TENANT, RUNNER, RUNNER_OBJECT).secret(RUNNER_SECRET).roles(["Training.Submit"]);
        entra.register(runner);
        entra.register(Identity::managed_identity(TENANT, ML_IDENTITY, ML_OBJECT));
        // Where people sign in.
        entra.register(Identity::app(TENANT, LOGIN, LOGIN_OBJECT).public_client().may_call(AUDIENCE));
        entra.add_person(Person::new(TENANT, PERSON, "ada@sandbox.example").roles(["Training.Submit"]));
        let google = Google::start(clock).await?;
        google.add_service_account(TRAINER);
        let managed_identity = ManagedIdentity::start(&entra, TENANT).await?;
        managed_identity.assign(AssignedIdentity {
            client_id: ML_IDENTITY.to_owned(),
            object_id: ML_OBJECT.to_owned(),
            resource_id: ML_RESOURCE.to_owned(),
        });
        let storage = AzureStorage::start(&entra, "mlsandbox").await?;
        for object in ["images/0001.jpg", "labels.csv"] {
            google.add_object(BUCKET, object);
            storage.add_blob(BUCKET, object);
        }
        google.let_read(BUCKET, &format!("serviceAccount:{TRAINER}"));
        storage.let_read(BUCKET, ML_OBJECT);
        Ok(Self { entra, google, managed_identity, storage })
    }

    /// What an operator does at both clouds: a provider and a binding, and a federated identity credential.
    async fn trust(&self, issuer: &str) -> anyhow::Result<()> {
        let provider = PoolProvider::new(PROVIDER, issuer)
            .map("google.subject", "assertion.sub")
            .map("attribute.tid", "assertion.tid")
            .condition(|claims| claims.get("tid").and_then(|tid| tid.as_str()) == Some(TENANT));
        self.google.register_provider(provider)?;
        let pool = PROVIDER.split("/providers/").next().unwrap_or_default();
        self.google.bind(TRAINER, &format!("principalSet:{pool}/attribute.tid/{TENANT}"));
        self.entra.trust(ML_IDENTITY, FederatedCredential::new(issuer, "carnet:azure-ml"))?;
        Ok(())
    }

    /// A real broker on these ports, or on any where they are taken; with its address, its issuer's URL and its file.
    async fn broker(
        &self,
        ports: [u16; 2],
        folder: &Path,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<(App, String, String, PathBuf)> {
        let [grpc, http] = ports.map(address);
        let (grpc, issuer) = (grpc?, format!("http://{}", http?));
        let path = folder.join("carnet.yaml");
        fs::write(&path, self.configuration(&grpc, &issuer, folder)?)?;
        let app = App::start(Config::load(&path)?, Some(path.clone()), clock).await?;
        Ok((app, grpc, issuer, path))
    }

    fn configuration(&self, grpc: &str, issuer: &str, folder: &Path) -> anyhow::Result<String> {
        let mut key = [0; 32];
        rand::fill(&mut key);
        let key_path = folder.join("store.key");
        write_private(&key_path, &BASE64_STANDARD.encode(key))?;
        let http = issuer.trim_start_matches("http://");
        Ok(format!(
            "\
server: {{ grpc: '{grpc}', http: '{http}' }}
entra:
  authority: {authority}
  tenants: [{TENANT}]
  audiences: ['{AUDIENCE}']
issuer: {{ url: '{issuer}' }}
targets:
  vertex-training:
    google:
      audience: {PROVIDER}
      service_account: {TRAINER}
      hand_out_assertion: true
      max_lifetime: 1h
      sts_endpoint: {sts}
      iam_credentials_endpoint: {iam}
  azure-ml:
    azure:
      tenant: {TENANT}
      client_id: {ML_IDENTITY}
      source: issuer
      scopes: [https://ml.azure.com/.default]
  aks:
    azure:
      tenant: {TENANT}
      client_id: {ML_IDENTITY}
      source: issuer
      subject: carnet:azure-ml
      scopes: [6dae42f8-4368-4678-94ff-3960e28e3630/.default]
  azure-devops:
    azure:
      tenant: {TENANT}
      client_id: {ML_IDENTITY}
      source: issuer
      subject: carnet:azure-ml
      scopes: [499b84ac-1321-427f-aa17-267ca6975798/.default]
  azure-storage:
    azure:
      tenant: {TENANT}
      client_id: {ML_IDENTITY}
      source: issuer
      subject: carnet:azure-ml
      scopes: [https://storage.azure.com/.default]
  azure-ml-on-this-machine:
    azure:
      tenant: {TENANT}
      client_id: {ML_IDENTITY}
      source: managed_identity
      endpoint: {imds}
      scopes: [https://ml.azure.com/.default]
rules:
  - name: vision-training
    targets: [vertex-training, azure-ml, aks, azure-devops, azure-storage, azure-ml-on-this-machine]
    subject: {{ tenants: [{TENANT}], roles: [Training.Submit] }}
    when: '!has(job.expected_duration) || job.expected_duration <= duration(\"72h\")'
    max_lifetime: 1h
    lease: {{ max_duration: 72h, heartbeat: 5m }}
operators:
  - permissions: [explain, audit.read, leases.read, leases.revoke]
    subject: {{ roles: [Carnet.Operator] }}
store: sqlite:{store}
store_key: ${{file:{key}}}
telemetry: {{ log: text }}
",
            authority = self.entra.authority(),
            sts = self.google.sts_endpoint(),
            iam = self.google.iam_credentials_endpoint(),
            imds = self.managed_identity.imds_endpoint(),
            store = folder.join("carnet.db").display(),
            key = key_path.display(),
        ))
    }

    fn write(&self, tokens: &Tokens) -> anyhow::Result<()> {
        let runner = self.entra.app_token(TENANT, RUNNER_OBJECT).client(RUNNER).roles(["Training.Submit"]);
        write_private(&tokens.runner, &runner.sign())?;
        let reader = self.entra.app_token(TENANT, READER_OBJECT).client(READER).roles(["Training.Read"]);
        write_private(&tokens.reader, &reader.sign())?;
        let operator = self.entra.user_token(TENANT, OPERATOR).roles(["Carnet.Operator"]);
        write_private(&tokens.operator, &operator.sign())
    }

    /// Keeps the Entra tokens fresh, as the platform that issues them would.
    async fn serve_until_interrupted(&self, tokens: &Tokens) -> anyhow::Result<()> {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut tick = tokio::time::interval(FRESH_TOKEN_EVERY);
        loop {
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
                _ = terminate.recv() => return Ok(()),
                _ = tick.tick() => self.write(tokens)?,
            }
        }
    }
}

fn first_exchange() -> proto::ExchangeRequest {
    let target = |name: &str| proto::TargetRequest { target: name.to_owned(), ..Default::default() };
    proto::ExchangeRequest {
        targets: ["vertex-training", "azure-ml"].map(target).into(),
        job: Some(proto::Job {
            id: "run-1".to_owned(),
            name: "vision".to_owned(),
            expected_duration: Some(prost_types::Duration { seconds: 40 * 60, nanos: 0 }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn shown(answer: &proto::ExchangeResponse) -> String {
    let mut rows = vec![["TARGET", "ACTS AS", "EXPIRES AT", "LEFT", "BOUND", "TOKEN"].map(str::to_owned)];
    rows.extend(answer.credentials.iter().map(|credential| {
        let acts_as = match &credential.identity {
            Some(proto::credential::Identity::Google(google)) => google.service_account.clone(),
            Some(proto::credential::Identity::Azure(azure)) => azure.client_id.clone(),
            None => String::new(),
        };
        let left = credential.lifetime.and_then(|lifetime| lifetime.granted).map_or(0, |granted| granted.seconds);
        let token =
            format!("{}... ({} bytes)", credential.token.chars().take(10).collect::<String>(), credential.token.len());
        [
            credential.target.clone(),
            acts_as,
            rfc3339(credential.expires_at).unwrap_or_default(),
            format!("{} min", left / 60),
            bound(credential),
            token,
        ]
    }));
    format!("exchange {}\n\n{}\n", answer.exchange_id, table(&rows))
}

fn next_steps(grpc: &str, issuer: &str, tokens: &Tokens, config: &Path, clouds: &Clouds) -> String {
    format!(
        "\
The broker and the stand-ins run until you press Ctrl-C. In another terminal:

  alias carnet={program}
  export CARNET_ADDRESS=http://{grpc} CARNET_HTTP_ADDRESS={issuer} CARNET_SUBJECT_TOKEN_FILE={token} OPERATOR_TOKEN_FILE={operator} READER_TOKEN_FILE={reader} CARNET_CONFIG={config}

  # one target, the token alone
  carnet exchange --target vertex-training --job-id run-2 --duration 40m --output token

  # a job too long for one token: see `bound` and `refresh_after`
  carnet exchange --target vertex-training --duration 9h

  # what a token is good for: a bucket of Google's and a container of Azure's
  curl -s {google}/storage/v1/b/{BUCKET}/o \\
    -H \"authorization: Bearer $(carnet exchange --target vertex-training --output token)\"
  curl -s '{storage}/{BUCKET}?restype=container&comp=list' -H 'x-ms-version: 2025-11-05' \\
    -H \"authorization: Bearer $(carnet exchange --target azure-storage --output token)\"

  # an Azure token that nobody can shorten
  carnet exchange --target azure-ml-on-this-machine

  # a lease: fresh credentials until the job ends; see Leases in the README
  export CARNET_LEASE_TOKEN_FILE={lease}
  carnet lease open --target vertex-training --job-id run-3 --duration 9h
  carnet lease credentials --output env
  carnet lease list --subject-token-file {operator}
  carnet lease close

  # a command whose cloud SDKs get their credentials from the broker: see In a job in the README
  carnet exec --target vertex-training --target azure-ml -- sh -c \\
    'curl -s -H \"Metadata-Flavor: Google\" $GCE_METADATA_HOST/computeMetadata/v1/project/project-id'

  # a refusal: exit code 3, and one line in the broker's log
  carnet exchange --target no-such-target

  # why another caller is denied, and what would mend it: see When a request is denied in the README
  carnet explain --target vertex-training --subject-token-file {reader} --operator-token-file {operator}

  # what was recorded, who used what, and where the clouds' own logs show it: see Audit in the README
  carnet audit search --subject-token-file {operator}
  carnet audit trace --subject-token-file {operator} EXCHANGE   # an id that the search shows
  carnet report access --subject-token-file {operator}

  # for tools that run a program to get credentials; see the README for docker, kubectl and Google's libraries
  printf 'protocol=https\\nhost=dev.azure.com\\n\\n' | carnet credential git get --host dev.azure.com=azure-devops

  # the same exchange as RFC 8693, with any HTTP client
  curl -s {issuer}/v1/token -d grant_type=urn:ietf:params:oauth:grant-type:token-exchange \\
    -d audience=vertex-training -d subject_token_type=urn:ietf:params:oauth:token-type:jwt \\
    --data-urlencode subject_token@{token}

  # a subject token of your own from the stand-in of Entra
  curl -s {authority}/{TENANT}/oauth2/v2.0/token -d grant_type=client_credentials \\
    -d client_id={RUNNER} -d client_secret={RUNNER_SECRET} --data-urlencode scope={AUDIENCE}/.default

  # sign in as a person: type the code at the page, or send it as the second line does
  carnet login --authority {authority} --tenant {TENANT} \\
    --client-id {LOGIN} --audience {AUDIENCE}
  curl -s {authority}/devicelogin -d user_code=THE_CODE
  carnet exchange --target vertex-training --subject-source login
  carnet logout

  # change the rules while it runs
  $EDITOR {config}

  # is everything set up, at the clouds too? And what would have to be run there
  carnet doctor --config {config}
  carnet trust google --config {config} --target vertex-training
  carnet trust azure --config {config} --target azure-ml

  # what the broker counts, and what the clouds are told to trust
  curl -s {issuer}/metrics; curl -s {issuer}/.well-known/openid-configuration
",
        program = std::env::current_exe().unwrap_or_else(|_unknown| PathBuf::from("carnet")).display(),
        token = tokens.runner.display(),
        reader = tokens.reader.display(),
        operator = tokens.operator.display(),
        lease = config.with_file_name("lease-token").display(),
        authority = clouds.entra.authority(),
        google = clouds.google.storage_endpoint(),
        storage = clouds.storage.endpoint(),
        config = config.display(),
    )
}

/// The port that the documentation names, or any where it is taken.
fn address(preferred: u16) -> anyhow::Result<String> {
    let listener = TcpListener::bind(("127.0.0.1", preferred)).or_else(|_taken| TcpListener::bind(("127.0.0.1", 0)))?;
    Ok(listener.local_addr()?.to_string())
}

/// A folder that only its owner can read, gone with the command.
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("carnet-sandbox-{}", uuid::Uuid::now_v7().simple()));
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = |file: PrivateFile| file.write(text);
    PrivateFile::prepare(path).and_then(write).with_context(|| format!("cannot write {}", path.display()))
}

const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const AUDIENCE: &str = "api://carnet";
const RUNNER: &str = "55555555-5555-5555-5555-555555555555";
const RUNNER_OBJECT: &str = "66666666-6666-6666-6666-666666666666";
const RUNNER_SECRET: &str = "sandbox-secret";
const READER: &str = "15151515-1515-1515-1515-151515151515";
const READER_OBJECT: &str = "16161616-1616-1616-1616-161616161616";
const LOGIN: &str = "12121212-1212-1212-1212-121212121212";
const LOGIN_OBJECT: &str = "13131313-1313-1313-1313-131313131313";
const PERSON: &str = "14141414-1414-1414-1414-141414141414";
const OPERATOR: &str = "99999999-9999-9999-9999-999999999999";
const BUCKET: &str = "training-data";
const ML_IDENTITY: &str = "33333333-3333-3333-3333-333333333333";
const ML_OBJECT: &str = "77777777-7777-7777-7777-777777777777";
const ML_RESOURCE: &str = "/subscriptions/88888888-8888-8888-8888-888888888888/resourcegroups/ml/providers/Microsoft.ManagedIdentity/userAssignedIdentities/ml";
const TRAINER: &str = "trainer@ml-sandbox.iam.gserviceaccount.com";
const PROVIDER: &str =
    "//iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/providers/carnet";

/// Half of its life.
const FRESH_TOKEN_EVERY: Duration = Duration::from_secs(1800);
