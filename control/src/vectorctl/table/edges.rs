//! Ingress nodes by their distance from here.

use std::time::Duration;

use super::{dash, table};
use crate::command::edges::Edge;

pub(crate) fn edges(edges: &[Edge]) -> String {
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    let rows = edges.iter().map(|edge| {
        let (distance, first) = match &edge.found {
            Ok((distance, first)) => (ms(*distance), ms(*first)),
            Err(why) => ("-".to_owned(), why.clone()),
        };
        vec![
            edge.url.clone(),
            dash(edge.region.clone()),
            distance,
            first,
            edge.load.map_or("-".to_owned(), |load| load.to_string()),
        ]
    });
    table(&["url", "region", "distance", "first answer", "load"], rows)
}
