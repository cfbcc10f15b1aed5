//! Idempotency keys, as control knows them. Nothing of it is remembered here: only control can say who has a key.

use vector_proto::{control::v1, id::ExchangeId, refusal::Refusal};

use super::{ASK_TIMEOUT, ControlPlane, unreachable};

impl ControlPlane {
    /// Takes a key, or learns who has it. Safe to ask twice: an exchange that already has the key is told that it has it.
    ///
    /// # Errors
    /// That control cannot be asked, and then the key may be taken or not.
    pub async fn claim(&self, claim: v1::ClaimRequest) -> Result<v1::ClaimResponse, Refusal> {
        let mut client = self.0.client.clone();
        let exchange = claim.exchange.clone();
        match tokio::time::timeout(ASK_TIMEOUT, client.claim(claim)).await {
            Ok(Ok(answer)) => {
                let mut answer = answer.into_inner();
                if answer.outcome() == v1::ClaimOutcome::Taken && answer.exchange == exchange {
                    // It took the key when it was asked before, and the answer was lost with its replica.
                    answer.set_outcome(v1::ClaimOutcome::Fresh);
                }
                Ok(answer)
            }
            Ok(Err(status)) => Err(unreachable(status.message())),
            Err(_) => Err(unreachable("no answer in time")),
        }
    }

    /// Tells what became of a claim. If control does not hear it, the key stays taken and its egress unknown.
    pub fn settle(&self, settled: v1::SettleRequest) -> impl Future<Output = ()> + Send + 'static {
        let mut client = self.0.client.clone();
        async move {
            let told = tokio::time::timeout(ASK_TIMEOUT, client.settle(settled)).await;
            if !matches!(told, Ok(Ok(_))) {
                tracing::warn!("control was not told what became of an idempotency key");
            }
        }
    }

    /// The egress that took an account's exchange, if control knows and can be asked.
    pub async fn recall(&self, account: &str, exchange: ExchangeId) -> Option<String> {
        let asked = v1::RecallRequest {
            account: account.to_owned(),
            exchange: exchange.to_bytes().to_vec().into(),
        };
        let mut client = self.0.client.clone();
        let told = tokio::time::timeout(ASK_TIMEOUT, client.recall(asked)).await;
        let told = told.ok()?.ok()?.into_inner();
        Some(told.egress).filter(|egress| told.found && !egress.is_empty())
    }
}
