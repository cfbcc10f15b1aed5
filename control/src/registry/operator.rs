//! Operators: who may change what, by a token or by a certificate of their own.
//!
//! `root` has the token in a file that the first start makes (a new token is a new file and a restart), and is an admin. All others
//! are at `/operators/NAME`, with the hash of their token or certificate; they are looked up at every call, so one that is removed
//! is out at once, at every replica. Tokens are 256 random bits, so no slow hash is needed; they are compared in constant time.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use bytes::Bytes;
use prost::Message;
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;
use vector_proto::{control::v1::OperatorView, id::NodeId};
use zeroize::Zeroizing;

use super::{Actor, Error, Fault, Registry, audit::change, catalog::decode};
use crate::{
    coordinate::{self, Transaction},
    vault,
};

pub(super) const AT: &str = "/secrets/operator";
const OPERATORS: &str = "/operators/";

/// In front of every operator's token.
const PREFIX: &str = "vadm_";

/// Shortest secret a file may give.
const SECRET_BYTES_MIN: usize = 32;

/// Who has the token of the file.
const ROOT: &str = "root";

/// Operators there may be.
const OPERATORS_MAX: usize = 1_000;

/// Longest life of a certificate or token: 5 years.
const TTL_S_MAX: u64 = 5 * 365 * 86_400;

/// What an operator may do; each may do what the one before may.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum OperatorRole {
    /// Sees everything but secrets.
    Viewer,
    /// Changes what is routed and sold.
    Operator,
    /// Decides who belongs to the network.
    Admin,
}

impl OperatorRole {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for OperatorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not a role.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a role is `viewer`, `operator` or `admin`")]
pub struct UnknownOperatorRole;

impl FromStr for OperatorRole {
    type Err = UnknownOperatorRole;

    fn from_str(text: &str) -> Result<Self, UnknownOperatorRole> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "operator" => Ok(Self::Operator),
            "admin" => Ok(Self::Admin),
            _ => Err(UnknownOperatorRole),
        }
    }
}

/// Somebody who proved who they are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Operator {
    /// As it is known.
    pub name: String,
    /// What they may do.
    pub role: OperatorRole,
}

/// A new operator.
#[derive(Debug)]
pub struct NewOperator<'a> {
    /// Wanted name.
    pub name: &'a str,
    /// Wanted role.
    pub role: &'a str,
    /// SHA-256 of the certificate that was made for it; without one, a token is made.
    pub certificate: Option<Bytes>,
    /// Pin of the root that it comes from.
    pub root: &'a str,
    /// 0: no end.
    pub ttl_s: u64,
    /// Now.
    pub now_unix_ms: u64,
}

/// An operator at rest.
#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(string, tag = "1")]
    role: String,
    /// SHA-256 of the token's secret; empty with a certificate.
    #[prost(bytes = "bytes", tag = "2")]
    token: Bytes,
    /// SHA-256 of the certificate; empty with a token.
    #[prost(bytes = "bytes", tag = "3")]
    certificate: Bytes,
    #[prost(uint64, tag = "4")]
    created_unix_ms: u64,
    #[prost(string, tag = "5")]
    created_by: String,
    #[prost(uint64, tag = "6")]
    expires_unix_ms: u64,
    /// Pin of the root that the certificate comes from; empty: the network's first.
    #[prost(string, tag = "7")]
    root: String,
}

impl Stored {
    fn view(&self, name: &str) -> OperatorView {
        let by = if self.token.is_empty() {
            "certificate"
        } else {
            "token"
        };
        OperatorView {
            name: name.to_owned(),
            role: self.role.clone(),
            by: by.to_owned(),
            created_unix_ms: self.created_unix_ms,
            created_by: self.created_by.clone(),
            expires_unix_ms: self.expires_unix_ms,
        }
    }
}

/// The hash of `root`'s token.
#[derive(Debug, Default)]
pub(super) struct Root {
    hash: [u8; 32],
}

impl Registry {
    /// Takes up the token of `root`, making one at the first start. True when it was made now.
    ///
    /// What lies in the file is an operator's word and goes before what is stored. So a new token lies beside the file until
    /// it is stored: a start that is overtaken or killed before puts no token over another's, and one that is killed after
    /// leaves it to the next.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds no good token.
    pub async fn open_operator(&self, file: &Path, pin: &str) -> Result<bool, Error> {
        let told = |error: io::Error| Error::Refused(format!("{}: {error}", file.display()));
        let stored = self.store.get(AT).await?;
        let before = stored.as_ref().map_or(0, |entry| entry.changed);
        let text = match fs::read_to_string(file) {
            Ok(text) => Some(Zeroizing::new(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(told(error)),
        };
        let is_there = text.is_some();
        let (hash, is_new) = match (text, stored) {
            (Some(text), _) => {
                let secret = secret_of(&text).filter(|secret| secret.len() >= SECRET_BYTES_MIN);
                let secret = secret.ok_or_else(|| {
                    Error::Refused(format!(
                        "{}: holds no token such as vadm_...",
                        file.display()
                    ))
                })?;
                (sha256(secret), false)
            }
            (None, Some(entry)) => {
                let kept = <[u8; 32]>::try_from(&entry.value[..]);
                (kept.map_err(|_| Error::Damaged(AT.to_owned()))?, false)
            }
            (None, None) => (lay_new(file, pin)?, true),
        };
        let put = Transaction::new().when(AT, before).put(AT, hash.to_vec());
        if let Err(error) = self.store.commit(put).await {
            // Another start was first. After any other error this token may be the network's.
            if is_new && matches!(error, coordinate::Error::Conflict(_)) {
                fs::remove_file(beside(file, &hash)).map_err(told)?;
            }
            return Err(error.into());
        }
        let made = !is_there && give_out(file, &hash).map_err(told)?;
        self.root.write().hash = hash;
        Ok(made)
    }

    /// Whose token this is, with or without the pin behind it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn operator_by_token(
        &self,
        token: &str,
        now_unix_ms: u64,
    ) -> Result<Option<Operator>, Error> {
        let secret = secret_of(token).unwrap_or_default();
        let presented = sha256(secret);
        if bool::from(presented.ct_eq(&self.root.read().hash)) {
            return Ok(Some(Operator {
                name: ROOT.to_owned(),
                role: OperatorRole::Admin,
            }));
        }
        let Some((name, _)) = secret.rsplit_once('-') else {
            return Ok(None);
        };
        self.operator(name, now_unix_ms, |stored| {
            stored.token.len() == presented.len() && bool::from(presented.ct_eq(&stored.token))
        })
        .await
    }

    /// Whose certificate this is, which rustls has verified and names `name`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn operator_by_certificate(
        &self,
        name: &str,
        leaf_sha256: &[u8],
        now_unix_ms: u64,
    ) -> Result<Option<Operator>, Error> {
        self.operator(name, now_unix_ms, |stored| {
            stored.certificate == leaf_sha256
        })
        .await
    }

    async fn operator(
        &self,
        name: &str,
        now_unix_ms: u64,
        proves: impl FnOnce(&Stored) -> bool,
    ) -> Result<Option<Operator>, Error> {
        if name.parse::<NodeId>().is_err() {
            return Ok(None);
        }
        let Some(entry) = self.store.get(&format!("{OPERATORS}{name}")).await? else {
            return Ok(None);
        };
        let stored: Stored = decode(&entry.value)?;
        let over = stored.expires_unix_ms != 0 && stored.expires_unix_ms <= now_unix_ms;
        let role = stored.role.parse();
        if over || !proves(&stored) {
            return Ok(None);
        }
        Ok(role.ok().map(|role| Operator {
            name: name.to_owned(),
            role,
        }))
    }

    /// Makes an operator. Answers it, and the secret of its token when it has one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bad name or role; [`Error::Refused`] when the name is taken.
    pub async fn add_operator(
        &self,
        by: &Actor,
        new: NewOperator<'_>,
    ) -> Result<(OperatorView, Option<Zeroizing<String>>), Error> {
        let role = check(&new)?;
        let taken = || Error::Refused(format!("there is an operator `{}` already", new.name));
        let listing = self.store.list(OPERATORS).await?;
        if listing.entries.len() >= OPERATORS_MAX {
            return Err(Error::Refused(format!(
                "there are {OPERATORS_MAX} operators already"
            )));
        }
        let at = format!("{OPERATORS}{}", new.name);
        if listing.entries.iter().any(|entry| entry.key == at) {
            return Err(taken());
        }
        let mut stored = Stored {
            role: role.as_str().to_owned(),
            created_unix_ms: new.now_unix_ms,
            created_by: by.name.clone(),
            ..Stored::default()
        };
        if new.ttl_s > 0 {
            stored.expires_unix_ms = new.now_unix_ms + new.ttl_s * 1_000;
        }
        let secret = match new.certificate {
            Some(certificate) => {
                stored.certificate = certificate;
                new.root.clone_into(&mut stored.root);
                None
            }
            None => {
                let letters = Zeroizing::new(vault::hex(&vault::random::<32>()?));
                let secret = Zeroizing::new(format!("{}-{}", new.name, *letters));
                stored.token = Bytes::copy_from_slice(&sha256(&secret));
                Some(secret)
            }
        };
        let view = stored.view(new.name);
        let details = vec![format!("role: {}", view.role), format!("by: {}", view.by)];
        let what = change("create", "operator", new.name, details);
        let put = Transaction::new()
            .when(at.clone(), 0)
            .put(at, stored.encode_to_vec());
        match self.commit(by, &[what], put).await {
            Ok(_) => Ok((view, secret)),
            Err(Error::Conflict(_)) => Err(taken()),
            Err(error) => Err(error),
        }
    }

    /// All operators but `root`, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn operators(&self) -> Result<Vec<OperatorView>, Error> {
        let entries = self.store.list(OPERATORS).await?.entries;
        let view = |entry: &coordinate::Entry| {
            let name = entry.key.get(OPERATORS.len()..).unwrap_or_default();
            Ok(decode::<Stored>(&entry.value)?.view(name))
        };
        entries.iter().map(view).collect()
    }

    /// Names of the operators whose certificates are good until now, but do not come from this root.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn operators_not_of(
        &self,
        root: &str,
        now_unix_ms: u64,
    ) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for entry in self.store.list(OPERATORS).await?.entries {
            let stored: Stored = decode(&entry.value)?;
            let good = stored.expires_unix_ms == 0 || stored.expires_unix_ms > now_unix_ms;
            if good && !stored.certificate.is_empty() && stored.root != root {
                names.push(entry.key[OPERATORS.len()..].to_owned());
            }
        }
        Ok(names)
    }

    /// Takes an operator away. False when there was none.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn remove_operator(&self, by: &Actor, name: &str) -> Result<bool, Error> {
        if name == ROOT {
            return Err(Error::Refused(
                "`root` has the token in control.admin_token_file: put another token there and restart control".to_owned(),
            ));
        }
        let at = format!("{OPERATORS}{name}");
        let Some(entry) = self.store.get(&at).await? else {
            return Ok(false);
        };
        let gone = Transaction::new()
            .when(at.clone(), entry.changed)
            .delete(at);
        self.commit(by, &[change("remove", "operator", name, Vec::new())], gone)
            .await?;
        Ok(true)
    }
}

fn check(new: &NewOperator<'_>) -> Result<OperatorRole, Error> {
    let mut faults = Vec::new();
    let mut fault = |field: &str, why: String| {
        faults.push(Fault {
            field: field.to_owned(),
            why,
        });
    };
    if let Err(error) = new.name.parse::<NodeId>() {
        fault("name", error.to_string());
    } else if new.name == ROOT {
        fault(
            "name",
            "`root` is the operator of the token file".to_owned(),
        );
    }
    if new.ttl_s > TTL_S_MAX {
        fault("ttl_s", format!("at most {TTL_S_MAX}, five years"));
    }
    let role = new.role.parse();
    if let Err(error) = &role {
        fault("role", UnknownOperatorRole::to_string(error));
    }
    match role {
        Ok(role) if faults.is_empty() => Ok(role),
        _ => Err(Error::Invalid(faults)),
    }
}

/// Lays a new token beside the file.
fn lay_new(file: &Path, pin: &str) -> Result<[u8; 32], Error> {
    let secret = Zeroizing::new(vault::hex(&vault::random::<32>()?));
    let text = Zeroizing::new(format!("{PREFIX}{}.{pin}\n", *secret));
    let hash = sha256(&secret);
    let path = beside(file, &hash);
    vault::write_private(&path, text.as_bytes())
        .map_err(|error| Error::Refused(format!("{}: {error}", path.display())))?;
    Ok(hash)
}

/// Puts the token of this hash, if it lies beside the file, in its place.
fn give_out(file: &Path, hash: &[u8; 32]) -> io::Result<bool> {
    match fs::rename(beside(file, hash), file) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let folder = file.parent().filter(|folder| *folder != Path::new(""));
    fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(true)
}

/// Where a token lies until its hash is stored. Named by that, since replicas may be given one file between them.
fn beside(file: &Path, hash: &[u8; 32]) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(format!(".{}", vault::hex(&hash[..8])));
    path.into()
}

/// The secret in `vadm_SECRET` or `vadm_SECRET.PIN`.
fn secret_of(token: &str) -> Option<&str> {
    let rest = token.trim().strip_prefix(PREFIX)?;
    Some(rest.split_once('.').map_or(rest, |(secret, _)| secret))
}

fn sha256(secret: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{super::fixture, *};
    use crate::{
        coordinate::{Embedded, Gate, Store},
        vault::Vault,
    };

    #[tokio::test]
    async fn an_operator_whose_time_is_over_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let registry = fixture::registry(dir.path()).await;
        let made = 1_800_000_000_000;
        let new = |name, certificate, ttl_s| NewOperator {
            name,
            role: "viewer",
            certificate,
            root: "",
            ttl_s,
            now_unix_ms: made,
        };
        let add = async |new| registry.add_operator(&fixture::by(), new).await.unwrap().1;
        let leaf = Bytes::from_static(&[7; 32]);
        let token = async |name, ttl_s| {
            let secret = add(new(name, None, ttl_s)).await.unwrap();
            format!("{PREFIX}{}", *secret)
        };
        let (ends, stays) = (token("otto", 60).await, token("vera", 0).await);
        add(new("cleo", Some(leaf.clone()), 60)).await;
        let known = async |at| {
            let by_token = async |token| {
                let found = registry.operator_by_token(token, at).await.unwrap();
                found.is_some()
            };
            let cleo = registry.operator_by_certificate("cleo", &leaf, at).await;
            let certified = cleo.unwrap().is_some();
            [by_token(&ends).await, by_token(&stays).await, certified]
        };
        assert_eq!(known(made).await, [true, true, true]);
        assert_eq!(known(made + 59_999).await, [true, true, true]);
        assert_eq!(known(made + 60_000).await, [false, true, false]);
        assert_eq!(known(u64::MAX).await, [false, true, false]);
    }

    /// A replica's registry, and its token's file in a folder of its own.
    async fn replica(store: Arc<dyn Store>, dir: &Path, name: &str) -> (Registry, PathBuf) {
        let folder = dir.join(name);
        fs::create_dir_all(&folder).unwrap();
        let vault = Vault::open(&dir.join("master.key")).unwrap();
        let registry = Registry::open(store, vault).await.unwrap();
        (registry, folder.join("admin.token"))
    }

    async fn is_known(registry: &Registry, token: &str) -> bool {
        let found = registry.operator_by_token(token.trim(), 1).await;
        found.unwrap().is_some()
    }

    #[tokio::test]
    async fn a_first_start_that_another_one_overtakes_puts_no_token_over_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> =
            Arc::new(Embedded::open(&dir.path().join("store")).await.unwrap());
        let gate = Arc::new(Gate::before(&store));
        let (winner, token) = replica(Arc::clone(&store), dir.path(), "winner").await;
        let (loser, own) = replica(Arc::clone(&gate) as _, dir.path(), "loser").await;
        let (lost, won) = tokio::join!(loser.open_operator(&own, "pin"), async {
            gate.reached().await;
            let won = winner.open_operator(&token, "pin").await;
            gate.open();
            won
        });
        assert!(won.unwrap());
        assert!(matches!(lost, Err(Error::Conflict(_))), "{lost:?}");
        let left = fs::read_dir(own.parent().unwrap()).unwrap().count();
        assert_eq!(left, 0, "files of the start that was overtaken");

        let (again, own) = replica(store, dir.path(), "loser").await;
        assert!(!again.open_operator(&own, "pin").await.unwrap());
        let token = fs::read_to_string(&token).unwrap();
        assert!(is_known(&again, &token).await);
        assert!(!own.exists());
    }

    #[tokio::test]
    async fn a_first_start_that_is_killed_leaves_its_token_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> =
            Arc::new(Embedded::open(&dir.path().join("store")).await.unwrap());
        // Before the gate: the first to open a registry writes to it.
        let (next, file) = replica(Arc::clone(&store), dir.path(), "one").await;
        let gate = Arc::new(Gate::before(&store));
        let (killed, _) = replica(Arc::clone(&gate) as _, dir.path(), "one").await;
        tokio::select! {
            biased;
            _ = killed.open_operator(&file, "pin") => unreachable!("the gate is shut"),
            () = gate.reached() => {}
        }
        // What was laid there before its hash was stored is nobody's token.
        assert!(next.open_operator(&file, "pin").await.unwrap());
        let files = fs::read_dir(file.parent().unwrap()).unwrap().count();
        assert_eq!(files, 2, "the token, and the one that was left");

        // Stored, but not given out yet.
        let token = fs::read_to_string(&file).unwrap();
        fs::rename(&file, beside(&file, &sha256(secret_of(&token).unwrap()))).unwrap();
        let (next, _) = replica(store, dir.path(), "one").await;
        assert!(next.open_operator(&file, "pin").await.unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), token);
        assert!(is_known(&next, &token).await);
    }
}
