//! Connections: made by the settings, checked for life by the system, kept in a pool.

use std::{fs, time::Duration};

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};

use super::{CALL_TIME_MAX, CONNECTIONS_MAX, tls::Tls};
use crate::{config, ledger::Error};

/// Time for a connection to one host, and for TLS and login over it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A silent server is asked whether it lives this often, and given up after so many times.
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVES_MAX: u32 = 3;

/// What was sent must be acknowledged by the other machine within this time.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);

/// The pool; connects to nothing yet.
pub(super) fn pool(settings: &config::Postgres) -> Result<Pool, Error> {
    let wrong = |error: String| Error::Settings(error);
    let mut target: tokio_postgres::Config = settings
        .url
        .parse()
        .map_err(|error| wrong(format!("postgres: {error}")))?;
    if let Some(file) = &settings.password_file {
        let read = fs::read_to_string(file).map_err(|error| {
            wrong(format!(
                "postgres_password_file: {}: {error}",
                file.display()
            ))
        })?;
        target.password(read.trim_end_matches(['\r', '\n']));
    } else if let Some(password) = &settings.password {
        target.password(password.reveal());
    }
    let options = format!(
        "{} -c search_path={} -c statement_timeout={} -c idle_in_transaction_session_timeout={}",
        target.get_options().unwrap_or_default(),
        settings.schema,
        CALL_TIME_MAX.as_millis(),
        CALL_TIME_MAX.as_millis(),
    );
    target
        .options(options.trim_start())
        .application_name("vector-control")
        .ssl_mode(if settings.tls {
            SslMode::Require
        } else {
            SslMode::Disable
        })
        // With several hosts: the one that takes writes, also after another was made the primary.
        .target_session_attrs(TargetSessionAttrs::ReadWrite)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_user_timeout(ACKNOWLEDGED_WITHIN)
        .keepalives_idle(KEEPALIVE)
        .keepalives_interval(KEEPALIVE)
        .keepalives_retries(KEEPALIVES_MAX);
    let tls = Tls::new(settings.ca_file.as_deref())
        .map_err(|error| wrong(format!("postgres_ca_file: {error}")))?;
    let manager = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    Pool::builder(Manager::from_config(target, tls, manager))
        .max_size(CONNECTIONS_MAX)
        .runtime(Runtime::Tokio1)
        .timeouts(Timeouts {
            wait: Some(CALL_TIME_MAX),
            create: Some(CONNECT_TIMEOUT),
            recycle: Some(CONNECT_TIMEOUT),
        })
        .build()
        .map_err(|error| wrong(error.to_string()))
}
