//! The egress role between the tunnel and control: fed with providers and credentials, heard by control.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use vector_proto::control::v1 as control;

use crate::{
    config::Config,
    control_plane::{ControlPlane, ProviderRow, Routes},
    egress::{self, Egress, Reports, provider},
    identity::Identity,
    telemetry::Telemetry,
    tunnel::ArrivalHandler,
};

/// Folder of kept answers, in the node's `state_dir`.
const ANSWERS: &str = "answers";

/// The egress role of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct EgressSide {
    role: Egress,
    /// For providers that say nothing themselves.
    times: Times,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    connect: Duration,
    first_byte: Duration,
    idle: Duration,
}

impl EgressSide {
    /// The role, if the node has it.
    pub(super) fn new(
        config: &Config,
        identity: &Identity,
        control: &ControlPlane,
        telemetry: &Telemetry,
    ) -> Result<Option<Self>, provider::TlsError> {
        let state_dir = &config.node.state_dir;
        let Some(config) = &config.egress else {
            return Ok(None);
        };
        let me = egress::Identity {
            node: identity.node().into(),
            epoch: identity.epoch(),
            answers: state_dir.join(ANSWERS),
            answers_bytes_max: config.kept_bytes_max,
            keys: identity.state_keys(),
        };
        control.show(telemetry);
        let reports = Arc::new(ToControl(control.clone()));
        let times = Times {
            connect: config.connect,
            first_byte: config.first_byte,
            idle: config.idle,
        };
        let role = Egress::new(me, config.tls_roots.as_deref(), telemetry, reports)?;
        Ok(Some(Self { role, times }))
    }

    pub(super) fn handler(&self) -> ArrivalHandler {
        self.role.handler()
    }

    pub(super) fn status(&self) -> Vec<control::CredentialStatus> {
        self.role.status()
    }

    pub(super) fn pools(&self) -> Vec<control::PoolStatus> {
        self.role.pools()
    }

    pub(super) fn exchanges(&self) -> usize {
        self.role.exchanges()
    }

    pub(super) fn set_draining(&self, on: bool) {
        self.role.set_draining(on);
    }

    pub(super) async fn drain(&self, grace: Duration) -> usize {
        self.role.drain(grace).await
    }

    /// Takes every change of providers and credentials, and keeps connections warm, until `stop`.
    pub(super) async fn follow(self, control: ControlPlane, stop: CancellationToken) {
        let mut routes = control.routes_changed();
        let mut credentials = control.credentials();
        let feed = async {
            loop {
                let rows = rows(&control.routes(), self.role.node(), self.times);
                self.role.take_providers(&rows);
                let sent = Arc::clone(&credentials.borrow_and_update());
                self.role.take_credentials(&sent);
                tokio::select! {
                    Ok(()) = routes.changed() => {}
                    Ok(()) = credentials.changed() => {}
                    else => return,
                }
            }
        };
        let tell = async {
            loop {
                self.role.news().await;
                control.report_soon();
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = feed => {}
            () = self.role.tend() => {}
            () = self.role.ask_for_balances() => {}
            () = self.role.probe() => {}
            () = tell => {}
        }
    }
}

/// The providers that this node may reach. No others are dialled, whoever asks.
fn rows(routes: &Routes, node: &str, times: Times) -> Vec<provider::Row> {
    routes
        .providers
        .values()
        .filter(|row| row.egress.iter().any(|egress| **egress == *node))
        .map(|row| provider_row(row, times))
        .collect()
}

fn provider_row(row: &ProviderRow, times: Times) -> provider::Row {
    provider::Row {
        name: Arc::clone(&row.name),
        kind: Arc::clone(&row.kind),
        base_url: row.base_url.clone(),
        allow_private: row.allow_private,
        connect: row.connect.unwrap_or(times.connect),
        first_byte: row.first_byte.unwrap_or(times.first_byte),
        idle: row.idle.unwrap_or(times.idle),
        connections_max: row.connections_max as usize,
        balance: row.balance.clone(),
        probe: row.probe,
    }
}

#[derive(Debug)]
struct ToControl(ControlPlane);

impl Reports for ToControl {
    fn record(&self, record: control::UsageRecord) {
        self.0.record(record);
    }

    fn object_made(&self, object: control::Object) {
        self.0.object_made(object);
    }
}
