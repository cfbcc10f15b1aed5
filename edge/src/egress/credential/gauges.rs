//! What is shown of credentials to whoever watches metrics: an alert for one that is out, and for one that runs dry.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
};
use vector_proto::control::v1;

use crate::telemetry::Telemetry;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    provider: String,
    credential: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct BalanceLabels {
    provider: String,
    credential: String,
    currency: String,
}

/// The gauges of all credentials.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    out: Family<Labels, Gauge>,
    resting: Family<Labels, Gauge>,
    in_flight: Family<Labels, Gauge>,
    balance: Family<BalanceLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
}

impl Gauges {
    /// Makes them visible.
    pub fn register(&self, telemetry: &Telemetry) {
        telemetry.register(
            "credential_out",
            "1 while a provider refuses a credential or its balance is used up",
            self.out.clone(),
        );
        telemetry.register(
            "credential_resting",
            "1 while a credential is at its limit",
            self.resting.clone(),
        );
        telemetry.register(
            "credential_in_flight",
            "Calls that run with a credential",
            self.in_flight.clone(),
        );
        telemetry.register(
            "credential_balance",
            "What is left of a credential's balance, in units of its currency",
            self.balance.clone(),
        );
    }

    /// Shows the credentials that there are, and no others.
    pub fn tell(&self, all: &[v1::CredentialStatus]) {
        self.out.clear();
        self.resting.clear();
        self.in_flight.clear();
        self.balance.clear();
        for one in all {
            let labels = Labels {
                provider: one.provider.clone(),
                credential: one.credential.clone(),
            };
            let is = |state| i64::from(one.state() == state);
            let out = is(v1::CredentialState::Out);
            self.out.get_or_create(&labels).set(out);
            let resting = is(v1::CredentialState::Resting);
            self.resting.get_or_create(&labels).set(resting);
            let in_flight = i64::try_from(one.in_flight).unwrap_or(i64::MAX);
            self.in_flight.get_or_create(&labels).set(in_flight);
            if let Some(balance) = &one.balance {
                let labels = BalanceLabels {
                    provider: labels.provider,
                    credential: labels.credential,
                    currency: balance.currency.clone(),
                };
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "a gauge may round above 9 thousand million"
                )]
                let units = balance.micros as f64 / 1e6;
                self.balance.get_or_create(&labels).set(units);
            }
        }
    }
}
