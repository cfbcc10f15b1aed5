//! The root on its way to the place of the one that there is: in three steps, each put with a compare, and taken up by every
//! replica as soon as it is put.
//!
//! `/secrets/rotation` holds the new root and its intermediate, sealed, from the first step to the last, and from then on only
//! which root there is. The last step puts the new root where replicas find the one that they share; one that was alone with its
//! files has it there too from then on.

use std::time::Duration;

use prost::Message;
use zeroize::{Zeroize as _, Zeroizing};

use super::{Actor, Error, Registry, audit, sealed::CA, signing};
use crate::{
    coordinate::{Revision, Transaction},
    identity::{Authority, Intermediate, Root, Rotation},
};

/// Where it lies.
pub(super) const AT: &str = "/secrets/rotation";

/// Below this lies all that signs.
pub const SIGNING: &str = "/secrets/";

/// The CA that replicas share, as it is sealed.
#[derive(Clone, PartialEq, Message)]
pub struct Founded {
    /// Key of the root.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The root.
    #[prost(bytes = "vec", tag = "2")]
    pub root: Vec<u8>,
    /// What every name ends in.
    #[prost(string, tag = "3")]
    pub trust_domain: String,
    /// Pins of the roots that were in its place before.
    #[prost(string, repeated, tag = "4")]
    pub former: Vec<String>,
}

/// As it is sealed.
#[derive(Clone, PartialEq, Message)]
struct Kept {
    /// Pin of the root that there is.
    #[prost(string, tag = "1")]
    root: String,
    /// What takes its place; not there when nothing does.
    #[prost(message, optional, tag = "2")]
    next: Option<Next>,
    /// How the last one ended.
    #[prost(enumeration = "Ended", tag = "3")]
    ended: i32,
    /// Greater than that of every step before, of whichever store: when it was put, in ms since 1970. 0: as the store counts.
    #[prost(int64, tag = "4")]
    generation: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Next {
    #[prost(bytes = "vec", tag = "1")]
    root_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    root: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    intermediate_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    intermediate: Vec<u8>,
    /// The intermediate, signed by the root that is to go.
    #[prost(bytes = "vec", tag = "5")]
    cross: Vec<u8>,
    #[prost(bool, tag = "6")]
    switched: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, prost::Enumeration)]
#[repr(i32)]
enum Ended {
    Never = 0,
    Finished = 1,
    Aborted = 2,
}

impl Drop for Founded {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        self.root_key.zeroize();
        self.intermediate_key.zeroize();
    }
}

impl Kept {
    /// `changed`: when the store put it.
    const fn generation(&self, changed: Revision) -> i64 {
        match self.generation {
            0 => changed,
            generation => generation,
        }
    }
}

impl Next {
    fn of(rotation: &Rotation) -> Self {
        let (root_key, root) = rotation.root.export();
        let (intermediate_key, intermediate) = rotation.intermediate.export();
        let cross = rotation.intermediate.cross();
        Self {
            root_key: root_key.to_vec(),
            root,
            intermediate_key: intermediate_key.to_vec(),
            intermediate,
            cross: cross.map(|cross| cross.to_vec()).unwrap_or_default(),
            switched: rotation.switched,
        }
    }

    fn rotation(&self) -> Result<Rotation, Error> {
        let root = Root::import(&self.root_key, &self.root).map_err(|_| damaged())?;
        let intermediate = Intermediate::import(&self.intermediate_key, &self.intermediate)
            .map_err(|_| damaged())?;
        Ok(Rotation {
            root: root.into(),
            intermediate: intermediate.crossed(self.cross.clone().into()).into(),
            switched: self.switched,
        })
    }
}

fn damaged() -> Error {
    Error::Damaged(AT.to_owned())
}

fn refused(why: &str) -> Error {
    Error::Refused(why.to_owned())
}

const NOTHING: &str =
    "no rotation of the root is under way: begin one with `vectorctl ca rotate-root begin`";

impl Registry {
    /// Takes up all that signs as the store has it: the root, the one that is to take its place, and the intermediate.
    ///
    /// # Errors
    /// When the store fails, or what it holds cannot be read.
    pub async fn take_up_signing(&self, authority: &Authority, now: Duration) -> Result<(), Error> {
        let (kept, changed) = self.stored_rotation().await?;
        // What is known already is not read again, and never what is older.
        let known = authority.signing().generation;
        if let Some(kept) = kept.filter(|kept| kept.generation(changed) > known) {
            let rotation = kept.next.as_ref().map(Next::rotation).transpose()?;
            if kept.root == authority.pin() {
                authority.take_up_rotation(kept.generation(changed), rotation);
            } else {
                self.succeed(authority, &kept, changed, rotation).await?;
            }
        }
        self.take_up_intermediate(authority, now).await
    }

    /// The root was replaced while this replica was not looking.
    async fn succeed(
        &self,
        authority: &Authority,
        kept: &Kept,
        changed: Revision,
        rotation: Option<Rotation>,
    ) -> Result<(), Error> {
        let pin = &kept.root;
        let Some((founded, _)) = self.founded().await? else {
            // No root was ever replaced here: somebody has made `ca/` anew since a rotation began.
            return Ok(());
        };
        let root = Root::import(&founded.key, &founded.root);
        let root = root.map_err(|_| Error::Damaged(CA.to_owned()))?;
        if root.facts().pin != *pin {
            return Err(Error::Conflict("the root is being replaced".to_owned()));
        }
        let (intermediate, _) = self.intermediate().await?;
        tracing::info!(
            pin,
            "another root is trusted, and no longer the one of before"
        );
        authority.succeed(kept.generation(changed), root, intermediate, rotation);
        Ok(())
    }

    /// A new root is trusted beside the one that there is, which goes on signing. Twice is once.
    ///
    /// # Errors
    /// [`Error::Refused`] when the new one signs already; [`Error::Conflict`] when somebody else was first.
    pub async fn begin_rotation(
        &self,
        authority: &Authority,
        by: &Actor,
        now: Duration,
    ) -> Result<(), Error> {
        self.take_up_signing(authority, now).await?;
        let (kept, changed) = self.rotation(authority).await?;
        match kept.and_then(|kept| kept.next.clone()) {
            Some(next) if next.switched => {
                return Err(refused(
                    "the new root signs already: finish this rotation first",
                ));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        let rotation = authority
            .new_rotation(now)
            .map_err(|error| Error::Refused(error.to_string()))?;
        let kept = Kept {
            root: authority.pin(),
            next: Some(Next::of(&rotation)),
            ended: Ended::Never.into(),
            generation: authority.next_generation(now),
        };
        let pin = rotation.root.facts().pin.clone();
        let put = self.put_rotation(changed, &kept)?;
        self.step(by, "begin", vec![format!("pin: {pin}")], put)
            .await?;
        self.take_up_signing(authority, now).await
    }

    /// The new root signs from now on. Twice is once.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is none; [`Error::Conflict`] when somebody else was first.
    pub async fn switch_rotation(
        &self,
        authority: &Authority,
        (by, force): (&Actor, bool),
        now: Duration,
    ) -> Result<(), Error> {
        self.take_up_signing(authority, now).await?;
        let (kept, changed) = self.rotation(authority).await?;
        let Some(mut kept) = kept else {
            return Err(refused(NOTHING));
        };
        let Some(next) = kept.next.as_mut() else {
            return Err(refused(NOTHING));
        };
        if !next.switched {
            next.switched = true;
            kept.generation = authority.next_generation(now);
            let put = self.put_rotation(changed, &kept)?;
            self.step(by, "switch", vec![format!("force: {force}")], put)
                .await?;
        }
        self.take_up_signing(authority, now).await
    }

    /// The old root is not trusted any more. Twice is once.
    ///
    /// # Errors
    /// [`Error::Refused`] when the new one does not sign yet; [`Error::Conflict`] when somebody else was first.
    pub async fn finish_rotation(
        &self,
        authority: &Authority,
        (by, force): (&Actor, bool),
        now: Duration,
    ) -> Result<(), Error> {
        self.take_up_signing(authority, now).await?;
        let (kept, changed) = self.rotation(authority).await?;
        let kept = kept.ok_or_else(|| refused(NOTHING))?;
        let Some(next) = &kept.next else {
            if kept.ended() == Ended::Finished {
                return Ok(());
            }
            return Err(refused(NOTHING));
        };
        if !next.switched {
            return Err(refused(
                "the old root still signs: `vectorctl ca rotate-root switch` comes first",
            ));
        }
        let rotation = next.rotation()?;
        let (before, founded_at) = match self.founded().await? {
            Some((founded, at)) => (founded.former.clone(), at),
            None => (Vec::new(), 0),
        };
        let founded = Founded {
            key: next.root_key.clone(),
            root: next.root.clone(),
            trust_domain: authority.trust_domain().to_owned(),
            former: before.into_iter().chain([kept.root.clone()]).collect(),
        };
        let clear = Zeroizing::new(founded.encode_to_vec());
        let pin = rotation.root.facts().pin.clone();
        let after = Kept {
            root: pin.clone(),
            next: None,
            ended: Ended::Finished.into(),
            generation: authority.next_generation(now),
        };
        let put = self
            .put_rotation(changed, &after)?
            .when(CA, founded_at)
            .put(CA, self.vault.seal(CA, &clear)?)
            .put(
                signing::AT,
                self.sealed_intermediate(&rotation.intermediate)?,
            );
        let details = vec![
            format!("pin: {pin}"),
            format!("gone: {}", kept.root),
            format!("force: {force}"),
        ];
        self.step(by, "finish", details, put).await?;
        self.take_up_signing(authority, now).await
    }

    /// The new root is given up. Twice is once.
    ///
    /// # Errors
    /// [`Error::Refused`] when it signs already; [`Error::Conflict`] when somebody else was first.
    pub async fn abort_rotation(
        &self,
        authority: &Authority,
        by: &Actor,
        now: Duration,
    ) -> Result<(), Error> {
        self.take_up_signing(authority, now).await?;
        let (kept, changed) = self.rotation(authority).await?;
        let kept = kept.ok_or_else(|| refused(NOTHING))?;
        match &kept.next {
            None if kept.ended() == Ended::Aborted => {}
            None => return Err(refused(NOTHING)),
            Some(next) if next.switched => {
                return Err(refused(
                    "the new root signs already, and who has a certificate by it would be out: finish this rotation, and begin \
                     another",
                ));
            }
            Some(_) => {
                let after = Kept {
                    root: kept.root.clone(),
                    next: None,
                    ended: Ended::Aborted.into(),
                    generation: authority.next_generation(now),
                };
                let put = self.put_rotation(changed, &after)?;
                self.step(by, "abort", Vec::new(), put).await?;
            }
        }
        self.take_up_signing(authority, now).await
    }

    /// Commits one step, with its entry in the log.
    async fn step(
        &self,
        by: &Actor,
        step: &str,
        mut details: Vec<String>,
        put: Transaction,
    ) -> Result<(), Error> {
        details.insert(0, format!("step: {step}"));
        let what = audit::change("rotate", "root", "", details);
        self.commit(by, &[what], put).await?;
        Ok(())
    }

    fn put_rotation(&self, changed: Revision, kept: &Kept) -> Result<Transaction, Error> {
        let clear = Zeroizing::new(kept.encode_to_vec());
        Ok(Transaction::new()
            .when(AT, changed)
            .put(AT, self.vault.seal(AT, &clear)?))
    }

    /// That of this root, and when it was put; 0: never.
    async fn rotation(&self, authority: &Authority) -> Result<(Option<Kept>, Revision), Error> {
        let (kept, changed) = self.stored_rotation().await?;
        let pin = authority.pin();
        Ok((kept.filter(|kept| kept.root == pin), changed))
    }

    /// The stored one, and when it was put; 0: never.
    async fn stored_rotation(&self) -> Result<(Option<Kept>, Revision), Error> {
        let Some(entry) = self.store.get(AT).await? else {
            return Ok((None, 0));
        };
        let clear = self.vault.open_sealed(AT, &entry.value)?;
        let kept = Kept::decode(&clear[..]).map_err(|_| damaged())?;
        Ok((Some(kept), entry.changed))
    }

    /// The CA in the store, and when it was put.
    async fn founded(&self) -> Result<Option<(Founded, Revision)>, Error> {
        let Some(entry) = self.store.get(CA).await? else {
            return Ok(None);
        };
        let clear = self.vault.open_sealed(CA, &entry.value)?;
        let founded = Founded::decode(&clear[..]).map_err(|_| Error::Damaged(CA.to_owned()))?;
        Ok(Some((founded, entry.changed)))
    }
}
