//! Closed loop: a number of connections, each asking again as soon as it has its answer.
//!
//! Tells how much can pass, and what a request costs when the processors are busy. All connections share one
//! thread, so that the generator leaves the rest of the machine to what is measured.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::{JoinSet, LocalSet};

use crate::ask::{Tail, Target};
use crate::line::Line;
use crate::tally::Tally;
use crate::watch::Watch;
use crate::wire::Fault;

/// Pause of a connection after an error, so that a dead target is not hammered.
const AFTER_ERROR: Duration = Duration::from_millis(10);

/// What to run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) connections: usize,
    pub(crate) time: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) request: Rc<[u8]>,
    pub(crate) stream: bool,
}

/// Runs the plan. `watch` starts the measurement of processes when warm-up is over.
pub(crate) fn run(
    target: &Target,
    plan: &Plan,
    watch: impl Fn() -> anyhow::Result<Watch>,
) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tally = Rc::new(RefCell::new(Tally::new()?));
    LocalSet::new().block_on(&runtime, async {
        let mut clients = JoinSet::new();
        for _ in 0..plan.connections {
            let client = Client {
                request: Rc::clone(&plan.request),
                stream: plan.stream,
                tally: Rc::clone(&tally),
            };
            clients.spawn_local(client.run(target.address));
        }
        tokio::time::sleep(plan.warm_up).await;
        let watch = watch()?;
        *tally.borrow_mut() = Tally::new()?;
        let began = Instant::now();
        tokio::time::sleep(plan.time).await;
        let took = began.elapsed();
        let tally = tally.borrow();
        let count = tally.delays.count();
        #[expect(clippy::cast_precision_loss, reason = "a count of seconds' work")]
        let rate = count as f64 / took.as_secs_f64();
        let shown = [
            json!({"connections": plan.connections, "seconds": took.as_secs_f64(), "requests_per_second": rate.round()}),
            json!({"latency": tally.delays.show()}),
            tally.errors(),
            watch.show(count, None)?,
        ];
        Ok(crate::report::join(shown))
    })
}

/// One connection's work.
struct Client {
    request: Rc<[u8]>,
    stream: bool,
    tally: Rc<RefCell<Tally>>,
}

impl Client {
    async fn run(self, address: std::net::SocketAddr) {
        let mut line = None;
        loop {
            let open = match line.take() {
                Some(open) => Ok(open),
                None => Line::open(address).await,
            };
            let began = Instant::now();
            match self.ask(open).await {
                Ok(kept) => {
                    line = kept;
                    self.tally.borrow_mut().answer(began.elapsed());
                }
                Err(fault) => {
                    self.tally.borrow_mut().error(&fault);
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
    }

    /// One request; gives the connection back if it can be used again.
    async fn ask(&self, line: Result<Line, Fault>) -> Result<Option<Line>, Fault> {
        let mut line = line?;
        let mut tail = Tail::default();
        let again = line
            .exchange(&self.request, &mut |part: &[u8]| tail.push(part))
            .await?;
        if !tail.is_whole(self.stream) {
            return Err(Fault::Incomplete("the answer lacks its end"));
        }
        Ok(again.then_some(line))
    }
}
