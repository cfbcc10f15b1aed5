//! Catches what a node would write of its exchanges, for tests.

use std::{io, sync::Arc};

use parking_lot::Mutex;

use super::{Flush, Inner, Metrics, Telemetry, Writer};

/// The lines that were written.
pub(crate) struct Caught {
    text: Text,
    flush: Flush,
}

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Telemetry {
    /// Counts, and catches the lines of exchanges.
    pub(crate) fn caught() -> (Self, Caught) {
        let (metrics, text) = (Metrics::new(), Text::default());
        let writer = Writer::start(Box::new(text.clone()), metrics.lines_dropped.clone());
        let telemetry = Self(Arc::new(Inner {
            metrics,
            writer: writer.unwrap(),
            by_hand: true,
            lines: true,
            traces: None,
        }));
        let flush = Flush(telemetry.clone());
        (telemetry, Caught { text, flush })
    }
}

impl Caught {
    /// All of them. What comes later is lost.
    pub(crate) fn lines(self) -> Vec<serde_json::Value> {
        drop(self.flush);
        let text = String::from_utf8(self.text.0.lock().clone()).unwrap();
        let read = |line| serde_json::from_str(line).unwrap();
        text.lines().map(read).collect()
    }
}
