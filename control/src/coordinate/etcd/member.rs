//! Calls to the members of an etcd cluster: each with its own deadline, again at the next member where that is safe.
//!
//! One client per member instead of the crate's balanced channel, which goes on asking a dead member. What is asked may be
//! asked again: reads always, transactions because of the mark that `etcd` puts into them.

use std::{
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use etcd_client::{Client, ConnectOptions, Error as EtcdError};
use parking_lot::Mutex;
use tonic::Code;

use crate::coordinate::Error;

/// Time for one try. A member that answers at all does so in milliseconds; one that waits for a leader is left early,
/// since a call that reaches the new leader is answered at once.
const TRY_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for a call with all its tries. A cluster elects a leader in less than two seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// First pause after every member has failed in turn. Doubles, with jitter, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Longest pause between two rounds.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// The members, one of which is asked at a time.
pub(super) struct Members {
    endpoints: Vec<String>,
    options: ConnectOptions,
    /// Made when first asked, by index of the endpoint.
    clients: Mutex<Vec<Option<Client>>>,
    /// Counts up when a member fails; the member asked is this one, modulo their number.
    turn: AtomicUsize,
}

impl Members {
    pub(super) fn new(endpoints: Vec<String>, options: ConnectOptions) -> Self {
        Self {
            clients: Mutex::new(vec![None; endpoints.len()]),
            endpoints,
            options,
            turn: AtomicUsize::new(0),
        }
    }

    /// Asks until a member answers.
    ///
    /// Cancel safety: as that of what is asked; whether a dropped call was done is not known.
    pub(super) async fn call<T, F, Asked>(&self, ask: F) -> Result<T, Error>
    where
        F: Fn(Client) -> Asked,
        Asked: Future<Output = Result<T, EtcdError>>,
    {
        let deadline = Instant::now() + CALL_TIMEOUT;
        let mut pause = PAUSE_MIN;
        let mut failed = 0;
        loop {
            let turn = self.turn.load(Ordering::Relaxed);
            let tried =
                tokio::time::timeout(TRY_TIMEOUT, async { ask(self.client(turn).await?).await });
            let why = match tried.await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => match verdict(&error) {
                    Some(told) => return Err(told),
                    None => error.to_string(),
                },
                Err(_) => format!("no answer within {TRY_TIMEOUT:?}"),
            };
            let at = &self.endpoints[turn % self.endpoints.len()];
            tracing::debug!(member = %at, why, "etcd does not answer as it should");
            self.leave(turn);
            if Instant::now() + pause >= deadline {
                return Err(Error::Unavailable(format!(
                    "etcd: {why} (last asked: {at})"
                )));
            }
            failed += 1;
            if failed % self.endpoints.len() == 0 {
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// Asks the next member from now on, unless somebody else has found out before. When the turn comes round, this one
    /// gets a new connection: a channel that has failed may not recover with its member, and a login may have ended.
    fn leave(&self, turn: usize) {
        self.clients.lock()[turn % self.endpoints.len()] = None;
        let next = turn.wrapping_add(1);
        // Lost: then somebody else has moved on, which serves as well.
        let _ = self
            .turn
            .compare_exchange(turn, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn client(&self, turn: usize) -> Result<Client, EtcdError> {
        let index = turn % self.endpoints.len();
        if let Some(client) = &self.clients.lock()[index] {
            return Ok(client.clone());
        }
        let endpoint = [self.endpoints[index].as_str()];
        let client = Client::connect(endpoint, Some(self.options.clone())).await?;
        self.clients.lock()[index] = Some(client.clone());
        Ok(client)
    }
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.endpoints).finish()
    }
}

/// Whether the answer is larger than we take: asked again, it is as large. etcd itself says this code only of revisions.
pub(super) fn is_too_large(error: &EtcdError) -> bool {
    matches!(error, EtcdError::GRpcStatus(status)
        if status.code() == Code::OutOfRange && status.message().contains("message length too large"))
}

/// What the caller is told; `None` where another member, or this one with a new login, may know better.
fn verdict(error: &EtcdError) -> Option<Error> {
    let EtcdError::GRpcStatus(status) = error else {
        return match error {
            EtcdError::LeaseKeepAliveError(_) => Some(Error::SessionEnded),
            EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_) => {
                Some(Error::Unavailable(error.to_string()))
            }
            _ => None,
        };
    };
    let said = status.message();
    match status.code() {
        Code::NotFound if said.contains("lease not found") => Some(Error::SessionEnded),
        Code::OutOfRange if said.contains("compacted") => Some(Error::Compacted),
        Code::InvalidArgument if said.contains("too many operations") => Some(Error::Refused(
            "too many writes in one transaction for this etcd; raise its --max-txn-ops",
        )),
        Code::InvalidArgument if said.contains("too large") => Some(Error::Refused(
            "the transaction is too large for this etcd; raise its --max-request-bytes",
        )),
        Code::InvalidArgument if said.contains("auth token") => None,
        Code::InvalidArgument | Code::PermissionDenied | Code::FailedPrecondition => {
            Some(Error::Unavailable(format!("etcd: {said}")))
        }
        Code::ResourceExhausted if said.contains("space exceeded") => Some(Error::Unavailable(
            "etcd: its database is full; compact, defragment and disarm the alarm".to_owned(),
        )),
        _ => None,
    }
}
