//! Gets this node its certificate: once for an invite, and then again before each one ends.
//!
//! The first call is the only one without a client certificate; control is known by the pin in
//! the invite. A start after that needs no invite and no control. Renewal happens at a third of a
//! certificate's life, so that control may be away for the other two, and for a week beyond (`identity::grace`).

use std::{
    error::Error as _,
    fmt::Write as _,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use vector_proto::control::v1::{EnrollRequest, RenewRequest, node_client::NodeClient};

use super::{Replicas, channel::connect};
use crate::{
    config,
    identity::{self, GRACE, Identity, Pin, Request, pinned_client},
};

/// Time for one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// While control cannot be reached, a first start tries again this often: about 40 s in all.
const TRIES_MAX: u32 = 12;

/// Between tries of a first start, at most.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Between tries of a renewal, at most.
const RENEW_RETRY_MAX: Duration = Duration::from_secs(300);

/// The same once the certificate has ended: nothing but its renewal is open to this node then, so what it waits for is the
/// moment at which control is back.
const ENDED_RETRY_MAX: Duration = Duration::from_secs(10);

/// Where the root is replaced, nodes renew within this time, each at a moment of its own.
const LEAVE: Duration = Duration::from_secs(8);

/// The longest sleep without a look at the clock, which may have been set or have stood still.
const LOOK: Duration = Duration::from_secs(600);

/// While the disk refuses a renewed certificate, it is tried again this often.
const DISK_AGAIN: Duration = Duration::from_secs(60);

/// Why this node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Key and certificate themselves.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// A first start without an invite.
    #[error(
        "{0} holds no certificate yet: set control.invite or control.invite_file to what \
         `vectorctl node invite` prints"
    )]
    NoInvite(String),
    /// The certificate has ended, and there is no invite for another.
    #[error(
        "the certificate of {0} has ended: set control.invite or control.invite_file to what \
         `vectorctl node invite` prints"
    )]
    Ended(String),
    /// It was removed from its network, and there is no invite for another certificate.
    #[error(
        "{0} was removed from its network: set control.invite or control.invite_file to what \
         `vectorctl node invite` prints"
    )]
    Removed(String),
    /// Not what `vectorctl node invite` prints.
    #[error("control.invite: not of the form vinv_SECRET.PIN; copy the whole line")]
    BadInvite,
    /// Somebody else answers at control's address.
    #[error(
        "{0} does not have the root that the invite names: control.url leads to another network, \
         or somebody stands in between"
    )]
    WrongControl(http::Uri),
    /// Control says no.
    #[error("{url} refuses the invite: {why}; ask for a new one with `vectorctl node invite`")]
    Refused {
        /// Control's address.
        url: http::Uri,
        /// What it said.
        why: String,
    },
    /// No answer.
    #[error("control cannot be reached at {url}: {why}")]
    Unreachable {
        /// Control's address.
        url: http::Uri,
        /// The last try's fault.
        why: String,
    },
    /// The settings and the certificate disagree.
    #[error("{0}")]
    Mismatch(String),
}

/// The node's identity: from `state_dir`, or on a first start in trade for the invite.
///
/// # Errors
/// [`Error`], which says what to do.
pub async fn load_or_enroll(
    node: &config::Node,
    control: &config::Control,
) -> Result<Identity, Error> {
    let kept = Identity::load(&node.state_dir)?;
    let ends = kept.as_ref().map(|identity| identity.validity().1);
    let ended = ends.is_some_and(|ends| ends + GRACE <= now());
    if ends.is_some_and(|ends| ends <= now()) && !ended {
        tracing::warn!(
            "this node's certificate has ended: it counts for a while, until control gives another"
        );
    }
    let removed = kept.as_ref().is_some_and(Identity::was_removed);
    let identity = match (kept, &control.invite) {
        (Some(identity), _) if !ended && !removed => identity,
        (_, Some(invite)) => {
            enroll(node, &control.urls, invite.reveal()).await?;
            Identity::load(&node.state_dir)?
                .ok_or_else(|| Error::NoInvite(node.state_dir.display().to_string()))?
        }
        (Some(identity), None) if removed => {
            return Err(Error::Removed(identity.node().to_owned()));
        }
        (Some(identity), None) => return Err(Error::Ended(identity.node().to_owned())),
        (None, None) => return Err(Error::NoInvite(node.state_dir.display().to_string())),
    };
    check(node, &identity)?;
    Ok(identity)
}

/// The settings may ask for less than the certificate allows, never for something else.
fn check(node: &config::Node, identity: &Identity) -> Result<(), Error> {
    let dir = node.state_dir.display();
    if let Some(id) = node.id.as_ref().filter(|id| *id != identity.id()) {
        let is = identity.id();
        return Err(Error::Mismatch(format!(
            "node.id: {id}, but {dir} belongs to {is}; give each node a folder of its own"
        )));
    }
    let roles = &node.roles;
    let more: Vec<&str> = roles
        .iter()
        .filter(|role| !identity.roles().contains(role))
        .map(|role| role.as_str())
        .collect();
    if more.is_empty() {
        return Ok(());
    }
    Err(Error::Mismatch(format!(
        "node.roles: {} was invited without {}; invite it again with that role, and empty {dir}",
        identity.node(),
        more.join(", ")
    )))
}

async fn enroll(node: &config::Node, urls: &[http::Uri], invite: &str) -> Result<(), Error> {
    let (secret, pin) = invite
        .strip_prefix("vinv_")
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(secret, pin)| Some((secret, Pin::read(pin)?)))
        .ok_or(Error::BadInvite)?;
    let strange = Arc::new(AtomicBool::new(false));
    let config = pinned_client(pin, Arc::clone(&strange))?;
    let request = Request::kept(&node.state_dir)?;
    let asked = EnrollRequest {
        invite: secret.to_owned(),
        csr: request.csr().to_vec().into(),
        node: node
            .id
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
    };
    let mut pause = Duration::from_millis(200);
    for turn in 1.. {
        let mut last = None;
        for url in urls {
            let config = Arc::clone(&config);
            let mut client = NodeClient::new(connect(url.clone(), move || Arc::clone(&config)));
            let status = match timed(client.enroll(asked.clone())).await {
                Ok(issued) => {
                    Identity::enrolled(&node.state_dir, &request, &issued.into_inner())?;
                    return Ok(());
                }
                Err(status) => status,
            };
            let (url, why) = (url.clone(), story(&status));
            if strange.load(Ordering::Relaxed) {
                return Err(Error::WrongControl(url));
            }
            if !may_pass(status.code()) {
                return Err(Error::Refused { url, why });
            }
            tracing::warn!(control = %url, why, "control cannot be reached yet");
            last = Some(Error::Unreachable { url, why });
        }
        if let Some(error) = last.filter(|_| turn >= TRIES_MAX) {
            return Err(error);
        }
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
    Ok(())
}

/// Renews the certificate whenever a third of its life is over, until `stop`; one that is overdue as soon as control is
/// heard again, and one whose root is about to go soon after control has told so.
///
/// Cancel safety: dropping it renews nothing more; a certificate in use stays in use.
pub async fn keep_fresh(
    identity: Identity,
    replicas: Replicas,
    mut connected: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let mut client = NodeClient::new(replicas);
    let mut leaving = identity.leaving();
    let mut pause = Duration::ZERO;
    loop {
        let wait = if pause.is_zero() {
            let (begins, ends) = identity.validity();
            due(begins, ends).saturating_sub(now())
        } else {
            pause
        };
        let look = if identity.keep() { LOOK } else { DISK_AGAIN };
        let heard = async {
            loop {
                let heard = *connected.borrow_and_update();
                identity.control_heard(heard, now());
                if connected.changed().await.is_err() {
                    pending::<()>().await;
                }
                if *connected.borrow() && !pause.is_zero() {
                    return;
                }
            }
        };
        let left = async {
            // After a failure, the pause says when.
            if !pause.is_zero() || leaving.wait_for(|leaving| *leaving).await.is_err() {
                pending::<()>().await;
            }
            tokio::time::sleep(LEAVE.mul_f64(fastrand::f64())).await;
        };
        let looked = tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(jittered(wait.min(look))) => true,
            () = heard => false,
            () = left => false,
        };
        if looked && wait > look {
            continue;
        }
        match renew(&identity, &mut client).await {
            Ok(()) => {
                pause = Duration::ZERO;
                let ends = identity.validity().1.as_secs();
                tracing::info!(ends_unix_s = ends, "certificate renewed");
            }
            Err(why) => {
                let left = identity.validity().1.saturating_sub(now());
                pause = longer(pause, left);
                let left_s = left.as_secs();
                tracing::warn!(why, left_s, "certificate not renewed yet");
            }
        }
    }
}

/// Gets a new certificate now, and uses it from the next handshake on.
///
/// # Errors
/// What went wrong, for the log; the certificate in use stays in use.
pub async fn renew(identity: &Identity, client: &mut NodeClient<Replicas>) -> Result<(), String> {
    let request = identity.renewal().map_err(|error| error.to_string())?;
    let asked = RenewRequest {
        csr: request.csr().to_vec().into(),
    };
    let issued = timed(client.renew(asked))
        .await
        .map_err(|status| story(&status))?;
    identity
        .renewed(&request, &issued.into_inner())
        .map_err(|error| error.to_string())
}

async fn timed<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(CALL_TIMEOUT, call)
        .await
        .unwrap_or_else(|_| Err(Status::unavailable("no answer in time")))
}

/// A third into the life, as seen from 1970.
fn due(begins: Duration, ends: Duration) -> Duration {
    begins + ends.saturating_sub(begins) / 3
}

/// The pause after another try of a renewal that failed, of a certificate that has this long `left`.
fn longer(pause: Duration, left: Duration) -> Duration {
    // The end itself is not slept through.
    let most = RENEW_RETRY_MAX.min(left.max(ENDED_RETRY_MAX));
    (pause * 2).clamp(Duration::from_secs(1), most)
}

/// Whether the same call may succeed later.
fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::DeadlineExceeded
            | Code::Cancelled
    )
}

/// What was said, and the causes below it.
fn story(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(below) = cause {
        // Writing to a text cannot fail.
        let _infallible = write!(text, ": {below}");
        cause = below.source();
    }
    text
}

/// Between four and five fifths of it, so that nodes that started together part.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.8 + 0.2 * fastrand::f64())
}

fn now() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_of_the_life_comes_first() {
        let (begins, ends) = (Duration::from_secs(900), Duration::from_secs(1_800));
        assert_eq!(due(begins, ends), Duration::from_secs(1_200));
        assert_eq!(due(ends, begins), ends);
    }

    #[test]
    fn a_renewal_is_tried_often_once_the_certificate_has_ended() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3_600));
        let after = |left: Duration| {
            let first = longer(Duration::ZERO, left);
            let pauses = std::iter::successors(Some(first), |last| Some(longer(*last, left)));
            pauses.take(20).collect::<Vec<_>>()
        };
        assert_eq!(after(hour)[..3], [second, 2 * second, 4 * second]);
        assert_eq!(after(hour)[19], RENEW_RETRY_MAX);
        assert_eq!(after(60 * second)[19], 60 * second);
        assert_eq!(after(second)[19], ENDED_RETRY_MAX);
        assert_eq!(after(Duration::ZERO)[19], ENDED_RETRY_MAX);
        assert_eq!(longer(RENEW_RETRY_MAX, Duration::ZERO), ENDED_RETRY_MAX);
    }

    #[tokio::test]
    async fn a_first_start_says_what_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let node = config::Node {
            id: None,
            region: None,
            roles: vec![config::Role::Egress],
            state_dir: folder.path().to_owned(),
            workers: 1,
        };
        let start = async |invite: Option<&str>| {
            let control = config::Control {
                urls: vec![http::Uri::from_static("https://127.0.0.1:1")],
                invite: invite.map(|text| config::Secret::new(text.to_owned())),
            };
            load_or_enroll(&node, &control).await.unwrap_err()
        };
        assert!(matches!(start(None).await, Error::NoInvite(_)));
        for bad in [
            "x",
            "vinv_x",
            "vinv_secret.123",
            &format!("vinv_s.{}", "g".repeat(64)),
        ] {
            assert!(matches!(start(Some(bad)).await, Error::BadInvite), "{bad}");
        }
    }
}
