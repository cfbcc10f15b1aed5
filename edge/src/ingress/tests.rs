//! The ingress over real sockets, in front of an egress that is made up and linked by memory.
//!
//! What the egress does is in the model's name, so that each test reads as one exchange.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use ring::digest;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vector_proto::{
    control::v1::KeyPolicy,
    id::ApiKey,
    tunnel::{VERSION, v1},
};

use super::{Handle, Ingress};
use crate::{
    config,
    limit::Limiter,
    telemetry::Telemetry,
    tunnel::{
        Arrival, ArrivalHandler, Credentials, Link, Peer, Tunnel,
        accept::Acceptor,
        transport::{Connection, memory},
    },
};

mod answers;

mod acme;

mod versions;

mod renewal;

mod bad_input;

mod control;

mod egress;

mod uploads;

mod ahead;

mod again;

mod places;

mod objects;

mod names;

mod world;
