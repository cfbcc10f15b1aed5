//! `[ledger]`: which database holds usage, objects and claims, and how to log in there.

use std::{fmt, path::PathBuf};

use tokio_postgres::config::{Host, SslMode};
use zeroize::Zeroizing;

use super::source::Source;

/// The one place where a password may stand that is not a file.
const PASSWORD_VARIABLE: &str = "VECTOR_LEDGER_POSTGRES_PASSWORD";

/// Longest name of a schema that PostgreSQL does not cut.
const NAME_BYTES_MAX: usize = 63;

/// A PostgreSQL database, and how to log in there.
#[derive(Clone, Debug)]
pub struct Postgres {
    /// `postgres://USER@HOST:PORT/DATABASE`, without a password; several hosts are parted by commas.
    pub url: String,
    /// Where our tables are. Default `vector`.
    pub schema: String,
    /// From the environment.
    pub password: Option<Password>,
    /// From a file, read when control starts.
    pub password_file: Option<PathBuf>,
    /// PEM of what signs the server's certificate. Default: what this machine trusts.
    pub ca_file: Option<PathBuf>,
    /// TLS is spoken and verified. Off only for this machine, or by `sslmode=disable`.
    pub tls: bool,
}

/// Never shown.
#[derive(Clone)]
pub struct Password(pub(super) Zeroizing<String>);

impl Password {
    /// The text, for whoever it is meant for.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

pub(super) fn read(source: &mut Source<'_>) -> Option<Postgres> {
    let url = source.text("ledger", "postgres", "");
    let schema = source.text("ledger", "postgres_schema", "vector");
    let mut file = |key: &str| {
        let path = source.text("ledger", key, "");
        (!path.is_empty()).then(|| PathBuf::from(path))
    };
    let (password_file, ca_file) = (file("postgres_password_file"), file("postgres_ca_file"));
    let password = source.secret(PASSWORD_VARIABLE);
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if !(1..=NAME_BYTES_MAX).contains(&schema.len())
        || !schema.bytes().all(legal)
        || schema.starts_with(|first: char| first.is_ascii_digit())
        || schema.starts_with("pg_")
    {
        source.fault(
            "ledger.postgres_schema",
            "must be 1 to 63 of a-z, 0-9 and _, not begin with a digit, and not with pg_",
        );
    }
    if url.is_empty() {
        if password_file.is_some() || ca_file.is_some() {
            source.fault("ledger.postgres", "must be set when the other keys are");
        }
        return None;
    }
    if password.is_some() && password_file.is_some() {
        source.fault(
            "ledger.postgres_password_file",
            &format!("and {PASSWORD_VARIABLE} are both set: keep one"),
        );
    }
    let (url, tls) = check(source, &url)?;
    Some(Postgres {
        url,
        schema,
        password: password.map(|text| Password(Zeroizing::new(text))),
        password_file,
        ca_file,
        tls,
    })
}

/// The URL as the driver takes it, and whether TLS is spoken.
fn check(source: &mut Source<'_>, url: &str) -> Option<(String, bool)> {
    let mut fault = |why: &str| source.fault("ledger.postgres", why);
    if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
        fault("must look like postgres://USER@HOST:5432/DATABASE");
        return None;
    }
    // The driver knows `require` only, and we verify whenever there is TLS.
    let strict = ["sslmode=verify-full", "sslmode=verify-ca"];
    let told = strict.iter().fold(url.to_owned(), |url, mode| {
        url.replace(mode, "sslmode=require")
    });
    let parsed: tokio_postgres::Config = match told.parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            // The driver's texts name the parameter that is wrong and never its value.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            fault(&format!("{error}: {}", cause.unwrap_or_default()));
            return None;
        }
    };
    if parsed.get_password().is_some() {
        fault(&format!(
            "must not hold the password: put it into ledger.postgres_password_file or {PASSWORD_VARIABLE}"
        ));
        return None;
    }
    if parsed.get_user().is_none_or(str::is_empty) || parsed.get_dbname().is_none_or(str::is_empty)
    {
        fault("must name a user and a database: postgres://USER@HOST:5432/DATABASE");
        return None;
    }
    if parsed.get_hosts().is_empty() {
        fault("must name a host: postgres://USER@HOST:5432/DATABASE");
        return None;
    }
    let here = parsed.get_hosts().iter().all(is_here);
    let mode = told.contains("sslmode=").then(|| parsed.get_ssl_mode());
    match mode {
        None => Some((told, !here)),
        Some(SslMode::Disable) => Some((told, false)),
        Some(SslMode::Require) => Some((told, true)),
        Some(_) => {
            fault("sslmode must be `verify-full` or, for a network that you trust, `disable`");
            None
        }
    }
}

fn is_here(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            name == "localhost"
                || name
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        }
        Host::Unix(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Error};

    fn read(text: &str) -> Result<Option<Postgres>, String> {
        let env = |key: &str| {
            (key == PASSWORD_VARIABLE && text.contains("# env")).then(|| "hush".to_owned())
        };
        match Config::read(&format!("[ledger]\n{text}"), &env) {
            Ok(config) => Ok(config.ledger),
            Err(Error::Faults(faults)) => Err(faults.join("\n")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_database_elsewhere_is_spoken_to_by_tls_unless_somebody_says_otherwise() {
        let tls = |url: &str| read(&format!("postgres = {url:?}")).unwrap().unwrap().tls;
        assert!(tls("postgres://vector@db.example/vector"));
        assert!(tls(
            "postgres://vector@db-1:5432,db-2:5432/vector?sslmode=verify-full"
        ));
        assert!(tls("postgres://vector@localhost/vector?sslmode=require"));
        assert!(!tls("postgres://vector@db.example/vector?sslmode=disable"));
        assert!(!tls("postgres://vector@127.0.0.1:5433/vector"));
        assert!(!tls("postgres://vector@%2Frun%2Fpostgresql/vector"));
        assert!(read("").unwrap().is_none());
    }

    #[test]
    fn the_password_comes_from_one_place_and_is_never_shown() {
        let url = "postgres = \"postgres://vector@db/vector\"\n";
        let config = read(&format!("{url}# env")).unwrap().unwrap();
        assert_eq!(config.password.as_ref().unwrap().reveal(), "hush");
        assert!(!format!("{config:?}").contains("hush"));
        let both = read(&format!("{url}postgres_password_file = \"/p\" # env"));
        assert!(both.unwrap_err().contains("keep one"));
        let shown = read("postgres = \"postgres://vector:hush@db/vector\"").unwrap_err();
        assert!(
            shown.contains("postgres_password_file") && !shown.contains("hush"),
            "{shown}"
        );
    }

    #[test]
    fn what_cannot_be_used_is_told_by_its_key() {
        for (text, key) in [
            ("postgres = \"mysql://u@h/d\"", "ledger.postgres:"),
            ("postgres = \"postgres://u@h\"", "ledger.postgres:"),
            ("postgres = \"postgres://h/d\"", "ledger.postgres:"),
            ("postgres = \"postgres:///d?user=u\"", "ledger.postgres:"),
            (
                "postgres = \"postgres://u@h/d?sslmode=prefer\"",
                "ledger.postgres:",
            ),
            (
                "postgres = \"postgres://u@h/d?nonsense=1\"",
                "ledger.postgres:",
            ),
            ("postgres_ca_file = \"/x\"", "ledger.postgres:"),
            ("postgres_schema = \"x; drop\"", "ledger.postgres_schema:"),
            ("postgres_schema = \"pg_mine\"", "ledger.postgres_schema:"),
            ("postgress = \"\"", "ledger.postgress:"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(key), "{text}: {told}");
        }
    }
}
