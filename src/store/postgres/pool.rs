//! Connections that are kept, each statement with a deadline: a database that does not answer is an error, not a hang.

use std::fmt;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Row};
use tokio_util::task::AbortOnDropHandle;

use super::settings::{PostgresSettings, Transport};
use super::tls::Tls;
use crate::http::ClientError;
use crate::telemetry::Causes;

/// Connections are made when they are needed and given back when their statement succeeded. Where one broke, or did not
/// answer in time, all that are idle are dropped with it: after a partition the others are no better. Whoever leaves
/// before the answer costs the one connection.
pub(super) struct Pool {
    config: Config,
    tls: Option<Tls>,
    idle: Mutex<Vec<Session>>,
    places: Semaphore,
}

/// Why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum StatementError {
    #[error("PostgreSQL did not answer within {}s", .0.as_secs())]
    Deadline(Duration),
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    #[error("the pool of connections is closed")]
    Closed,
}

/// A parameter and the type that it has in the statement.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// One connection.
struct Session {
    client: Client,
    _connection: AbortOnDropHandle<()>,
}

/// A connection that its holder has for itself. It goes back to the pool when it is given back, and only then: whoever
/// is cut off in the middle of a transaction leaves nothing behind.
pub(super) struct Lent<'a> {
    session: Session,
    pool: &'a Pool,
    _place: SemaphorePermit<'a>,
}

impl Pool {
    pub fn new(settings: &PostgresSettings, connections: usize) -> Result<Self, ClientError> {
        let tls = match &settings.transport {
            Transport::Plain => None,
            Transport::Tls(authorities) => Some(Tls::new(authorities)?),
        };
        let config = settings.connection.clone();
        Ok(Self { config, tls, idle: Mutex::default(), places: Semaphore::new(connections) })
    }

    /// Another pool to the same database.
    pub fn beside(&self, connections: usize) -> Self {
        let (config, tls) = (self.config.clone(), self.tls.clone());
        Self { config, tls, idle: Mutex::default(), places: Semaphore::new(connections) }
    }

    /// Runs one statement, which is a transaction of its own, in one round trip.
    pub async fn query(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, StatementError> {
        self.in_time(DEADLINE, async {
            let lent = self.lend().await?;
            let rows = lent.client().query_typed(sql, parameters).await?;
            lent.give_back();
            Ok(rows)
        })
        .await
    }

    /// Runs several statements without parameters, as one transaction.
    pub async fn execute(&self, sql: &str) -> Result<(), StatementError> {
        self.in_time(DEADLINE, async {
            let lent = self.lend().await?;
            lent.client().batch_execute(sql).await?;
            lent.give_back();
            Ok(())
        })
        .await
    }

    /// `work`, unless it takes longer.
    pub async fn in_time<T, E: From<StatementError>>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let done = timeout(deadline, work).await;
        let done = done.unwrap_or_else(|_elapsed| Err(StatementError::Deadline(deadline).into()));
        if done.is_err() {
            self.idle().clear();
        }
        done
    }

    /// For work that is done [in time](Self::in_time).
    pub async fn lend(&self) -> Result<Lent<'_>, StatementError> {
        let place = self.places.acquire().await.map_err(|_closed| StatementError::Closed)?;
        let session = match self.idle_session() {
            Some(session) => session,
            None => self.connect().await?,
        };
        Ok(Lent { session, pool: self, _place: place })
    }

    fn idle_session(&self) -> Option<Session> {
        let mut idle = self.idle();
        // After a restart of the server, all of them are gone.
        idle.retain(|session| !session.client.is_closed());
        idle.pop()
    }

    async fn connect(&self) -> Result<Session, StatementError> {
        let session = match &self.tls {
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                Session::start(client, connection)
            }
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                Session::start(client, connection)
            }
        };
        session.client.batch_execute(SESSION).await?;
        Ok(session)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn start<C>(client: Client, connection: C) -> Self
    where
        C: Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
    {
        let driving = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(error = %Causes(&error), "a connection to PostgreSQL was lost");
            }
        });
        Self { client, _connection: AbortOnDropHandle::new(driving) }
    }
}

impl Lent<'_> {
    pub fn give_back(self) {
        self.pool.idle().push(self.session);
    }

    pub fn client(&self) -> &Client {
        &self.session.client
    }

    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.session.client
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} idle)", self.idle().len())
    }
}

/// A commit is on the disk of the primary, and of its synchronous standbys, before it is answered; a stronger setting of
/// the server stays. What nobody waits for any more is not run to its end.
const SESSION: &str = "
    SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write');
    SET statement_timeout = '5s';
    SET idle_in_transaction_session_timeout = '30s';
";

/// A statement with everything before it: a place in the pool, a connection. Below the time that an exchange waits for
/// its audit record.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
