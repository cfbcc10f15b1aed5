//! What the emulated lines allow at best: a first token cannot come sooner, whoever carries it.
//!
//! A cold client pays a round trip of the near hop for TCP and one for TLS 1.3. Its prompt climbs out of TCP's slow start
//! on the near hop (ten segments, doubling each round trip: RFC 6928, RFC 5681), is passed on as it comes, and leaves over
//! the long line at that line's rate. Then the way there, the provider, and the way back. What the provider takes to read such
//! a prompt and to begin its answer is measured beside it, and told.
//!
//! A warm client's prompt climbs too: its connection has rested for longer than the near hop's retransmission time-out when it
//! asks again, after which slow start begins anew (RFC 5681, 4.1). Linux restarts from half its window for each time-out, so a
//! warm client may be faster by some ms than this says; a direct one, whose time-out is longer than its rest, does not restart.

/// RFC 6928's initial window, in bytes of 1,448-byte segments.
const WINDOW_BYTES: f64 = 14_480.0;

/// Lines between a client and its first token, in ms and Mbit/s.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct Lines {
    /// Round trip of the near hop, in ms.
    #[arg(long, default_value_t = 8.0)]
    near_ms: f64,
    /// Round trip of the long line, in ms.
    #[arg(long, default_value_t = 150.0)]
    far_ms: f64,
    /// Round trip between egress and provider, in ms.
    #[arg(long, default_value_t = 2.0)]
    last_ms: f64,
    /// Rate of the long line.
    #[arg(long, default_value_t = 100.0)]
    rate_mbit: f64,
    /// The provider's own time for such a prompt, in ms.
    #[arg(long, default_value_t = 0.0)]
    provider_ms: f64,
}

impl Lines {
    /// The earliest first token, in ms from the client's first packet.
    pub(crate) fn first_token_ms(self, cold: bool, prompt_bytes: usize) -> f64 {
        let hands_ms = if cold { 2.0 * self.near_ms } else { 0.0 };
        let lines_ms = self.near_ms + self.upload_ms(prompt_bytes) + self.far_ms + self.last_ms;
        hands_ms + lines_ms + self.provider_ms
    }

    /// From the first prompt byte at the ingress until the last is on the long line.
    #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53")]
    fn upload_ms(self, prompt_bytes: usize) -> f64 {
        let (mut left, mut flight, mut came_ms, mut sent_ms) =
            (prompt_bytes as f64, WINDOW_BYTES, 0.0, 0.0_f64);
        while left > 0.0 {
            let now = left.min(flight);
            sent_ms = sent_ms.max(came_ms) + now * 8.0 / (self.rate_mbit * 1e3);
            left -= now;
            flight *= 2.0;
            came_ms += self.near_ms;
        }
        sent_ms
    }
}

#[cfg(test)]
mod tests {
    use super::Lines;

    const LINES: Lines = Lines {
        near_ms: 8.0,
        far_ms: 150.0,
        last_ms: 2.0,
        rate_mbit: 100.0,
        provider_ms: 0.0,
    };

    #[test]
    fn a_small_prompt_pays_round_trips_and_little_else() {
        let warm = LINES.first_token_ms(false, 2048);
        assert!((warm - 160.16).abs() < 0.01, "{warm}");
        let cold = LINES.first_token_ms(true, 2048);
        assert!((cold - warm - 16.0).abs() < 1e-9, "{cold}");
        let slow = Lines {
            provider_ms: 1.5,
            ..LINES
        };
        let slower = slow.first_token_ms(false, 2048) - warm;
        assert!((slower - 1.5).abs() < 1e-9, "{slower}");
    }

    #[test]
    fn a_large_prompt_climbs_out_of_slow_start() {
        // Flights of 14.5, 29 and 22 KB, 8 ms apart; the last takes 1.8 ms of the long line.
        let added = LINES.first_token_ms(false, 65_536) - LINES.first_token_ms(false, 0);
        assert!((added - 17.77).abs() < 0.05, "{added}");
    }
}
