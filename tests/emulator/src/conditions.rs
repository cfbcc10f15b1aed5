//! What a line does to the packets of one direction, as people write it: `rtt_ms=150 loss=0.1% rate_mbit=100`.
//!
//! The only ways in are [`FromStr`] and [`Conditions::set`], so conditions in hand are always possible. Shares are
//! written as fractions or in percent. The default is a perfect line.

use std::{fmt, str::FromStr, time::Duration};

/// Every key, for the text of a refusal.
pub const KEYS: &str = "delay_ms rtt_ms jitter_ms jitter_dist=normal|uniform jitter_corr_ms keep_order=on|off \
    loss burst_loss burst_ms burst_density rate_mbit queue_ms blackhole=on|drain|off duplicate reorder reorder_ms";

/// Longest delay, jitter, queue or burst, in milliseconds: an hour is no line any more.
const MS_MAX: f64 = 3_600_000.0;

/// Fastest line, in Mbit/s: a thousand times what one router carries.
const MBIT_MAX: f64 = 1e6;

/// How delays spread around the mean.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Spread {
    /// `jitter_ms` is the standard deviation; cut at three of them.
    Normal,
    /// `jitter_ms` is half the width.
    Uniform,
}

/// Whether anything comes out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hole {
    /// It does.
    Off,
    /// Nothing any more, packets in flight included.
    On,
    /// New packets vanish; those in flight still arrive.
    Drain,
}

/// What one direction does to packets.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditions {
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    pub(crate) spread: Spread,
    /// Delays of packets this far apart correlate by 1/e. At zero each packet draws its own, which under
    /// `keep_order` makes dense traffic wait for the latest and so raises its mean delay.
    pub(crate) jitter_lasts: Duration,
    pub(crate) keep_order: bool,
    pub(crate) loss: f64,
    /// Long-run share lost in bursts of time, mean length of one, and loss within one.
    pub(crate) burst_loss: f64,
    pub(crate) burst: Duration,
    pub(crate) burst_density: f64,
    /// Bits a second of whole IP packets (of UDP payloads in a detour); 0 is without limit.
    pub(crate) rate: f64,
    pub(crate) queue: Duration,
    pub(crate) hole: Hole,
    pub(crate) duplicate: f64,
    pub(crate) reorder: f64,
    pub(crate) reorder_by: Duration,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            spread: Spread::Normal,
            jitter_lasts: Duration::from_millis(50),
            keep_order: true,
            loss: 0.0,
            burst_loss: 0.0,
            burst: Duration::from_millis(20),
            burst_density: 1.0,
            rate: 0.0,
            queue: Duration::from_millis(50),
            hole: Hole::Off,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(5),
        }
    }
}

/// Why conditions were refused.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadConditions {
    /// No key of that name.
    #[error("unknown key `{0}`; keys: {KEYS}")]
    Key(String),
    /// The key takes other values.
    #[error("{key}={value}: must be {wanted}")]
    Value {
        /// The key.
        key: String,
        /// What was given.
        value: String,
        /// What it takes.
        wanted: &'static str,
    },
    /// Not `key=value`.
    #[error("`{0}`: write key=value")]
    Form(String),
    /// Two keys that cannot both be so.
    #[error("burst_loss must be smaller than burst_density: a burst cannot last for ever")]
    EndlessBurst,
}

impl Conditions {
    /// Whether nothing comes out now.
    pub fn is_hole(&self) -> bool {
        self.hole == Hole::On
    }

    /// The mean one-way delay.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// These conditions with some of them changed, as in `loss=1% delay_ms=20`.
    pub fn with(&self, changes: &str) -> Result<Self, BadConditions> {
        let mut changed = self.clone();
        for change in changes.split_ascii_whitespace() {
            let (key, value) = change
                .split_once('=')
                .ok_or_else(|| BadConditions::Form(change.to_owned()))?;
            changed.set(key, value)?;
        }
        changed.check()?;
        Ok(changed)
    }

    /// Changes one key. Whether all of them go together is for [`Self::check`] to say.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), BadConditions> {
        let given = Given {
            key,
            value: value.trim(),
        };
        match key {
            "delay_ms" => self.delay = given.time()?,
            "rtt_ms" => self.delay = given.time()? / 2,
            "jitter_ms" => self.jitter = given.time()?,
            "jitter_dist" => self.spread = given.spread()?,
            "jitter_corr_ms" => self.jitter_lasts = given.time()?,
            "keep_order" => self.keep_order = given.flag()?,
            "loss" => self.loss = given.share()?,
            "burst_loss" => self.burst_loss = given.share()?,
            "burst_ms" => self.burst = given.time()?.max(Duration::from_micros(1)),
            "burst_density" => self.burst_density = given.share()?,
            "rate_mbit" => {
                self.rate = given.number(MBIT_MAX, "a rate in Mbit/s, 0 to 1000000")? * 1e6;
            }
            "queue_ms" => self.queue = given.time()?,
            "blackhole" => self.hole = given.hole()?,
            "duplicate" => self.duplicate = given.share()?,
            "reorder" => self.reorder = given.share()?,
            "reorder_ms" => self.reorder_by = given.time()?,
            _ => return Err(BadConditions::Key(key.to_owned())),
        }
        Ok(())
    }

    /// Whether the keys go together.
    pub fn check(&self) -> Result<(), BadConditions> {
        if self.burst_loss > 0.0 && self.burst_loss >= self.burst_density {
            return Err(BadConditions::EndlessBurst);
        }
        Ok(())
    }
}

impl FromStr for Conditions {
    type Err = BadConditions;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::default().with(text)
    }
}

/// One key and its value as written.
struct Given<'a> {
    key: &'a str,
    value: &'a str,
}

impl Given<'_> {
    fn bad(&self, wanted: &'static str) -> BadConditions {
        BadConditions::Value {
            key: self.key.to_owned(),
            value: self.value.to_owned(),
            wanted,
        }
    }

    fn number(&self, max: f64, wanted: &'static str) -> Result<f64, BadConditions> {
        let number = self.value.parse::<f64>().map_err(|_| self.bad(wanted))?;
        let possible = (0.0..=max).contains(&number);
        possible.then_some(number).ok_or_else(|| self.bad(wanted))
    }

    fn time(&self) -> Result<Duration, BadConditions> {
        let ms = self.number(MS_MAX, "a time in ms, 0 to 3600000")?;
        Ok(Duration::from_secs_f64(ms / 1e3))
    }

    fn share(&self) -> Result<f64, BadConditions> {
        let wanted = "a share, 0 to 1 or 0% to 100%";
        let (text, whole) = match self.value.strip_suffix('%') {
            Some(text) => (text.trim_end(), 100.0),
            None => (self.value, 1.0),
        };
        let number = text.parse::<f64>().map_err(|_| self.bad(wanted))?;
        let possible = (0.0..=whole).contains(&number);
        possible
            .then_some(number / whole)
            .ok_or_else(|| self.bad(wanted))
    }

    fn flag(&self) -> Result<bool, BadConditions> {
        match self.value {
            "on" | "true" => Ok(true),
            "off" | "false" => Ok(false),
            _ => Err(self.bad("on or off")),
        }
    }

    fn spread(&self) -> Result<Spread, BadConditions> {
        match self.value {
            "normal" => Ok(Spread::Normal),
            "uniform" => Ok(Spread::Uniform),
            _ => Err(self.bad("normal or uniform")),
        }
    }

    fn hole(&self) -> Result<Hole, BadConditions> {
        match self.value {
            "on" | "true" => Ok(Hole::On),
            "drain" => Ok(Hole::Drain),
            "off" | "false" => Ok(Hole::Off),
            _ => Err(self.bad("on, drain or off")),
        }
    }
}

/// As [`FromStr`] reads it, without what is as it is by default.
impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = Self::default();
        write!(f, "delay_ms={}", ms(self.delay))?;
        if self.jitter > Duration::ZERO {
            write!(f, " jitter_ms={}", ms(self.jitter))?;
            if self.spread == Spread::Uniform {
                write!(f, " jitter_dist=uniform")?;
            }
            if self.jitter_lasts != plain.jitter_lasts {
                write!(f, " jitter_corr_ms={}", ms(self.jitter_lasts))?;
            }
        }
        if !self.keep_order {
            write!(f, " keep_order=off")?;
        }
        for (key, share) in [
            ("loss", self.loss),
            ("burst_loss", self.burst_loss),
            ("duplicate", self.duplicate),
            ("reorder", self.reorder),
        ] {
            if share > 0.0 {
                write!(f, " {key}={share}")?;
            }
        }
        if self.burst_loss > 0.0 {
            write!(f, " burst_ms={}", ms(self.burst))?;
            write!(f, " burst_density={}", self.burst_density)?;
        }
        if self.reorder > 0.0 {
            write!(f, " reorder_ms={}", ms(self.reorder_by))?;
        }
        if self.rate > 0.0 {
            write!(
                f,
                " rate_mbit={} queue_ms={}",
                self.rate / 1e6,
                ms(self.queue)
            )?;
        }
        match self.hole {
            Hole::Off => Ok(()),
            Hole::On => write!(f, " blackhole=on"),
            Hole::Drain => write!(f, " blackhole=drain"),
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::{BadConditions, Conditions};

    #[test]
    fn what_is_shown_reads_back_as_the_same() {
        for text in [
            "",
            "rtt_ms=150 loss=0.1%",
            "delay_ms=75.25 jitter_ms=2 jitter_dist=uniform jitter_corr_ms=0 keep_order=off",
            "burst_loss=2% burst_ms=20 burst_density=0.5 rate_mbit=100 queue_ms=30 blackhole=drain",
            "duplicate=1% reorder=0.5 reorder_ms=3 blackhole=on",
        ] {
            let meant: Conditions = text.parse().unwrap();
            assert_eq!(meant.to_string().parse(), Ok(meant), "{text}");
        }
        assert_eq!(
            "rtt_ms=150".parse::<Conditions>().unwrap().to_string(),
            "delay_ms=75"
        );
    }

    #[test]
    fn impossible_conditions_are_refused() {
        for text in [
            "loss=1.5",
            "loss=101%",
            "loss=x",
            "delay_ms=-1",
            "delay_ms=NaN",
            "delay_ms=inf",
            "nope=1",
            "blackhole=maybe",
            "loss",
            "rate_mbit=1e9",
            "burst_loss=0.6 burst_density=0.5",
        ] {
            assert!(text.parse::<Conditions>().is_err(), "{text}");
        }
        let refused = "rtt=5".parse::<Conditions>().unwrap_err();
        assert_eq!(refused, BadConditions::Key("rtt".to_owned()));
        assert!(refused.to_string().contains("rtt_ms"));
    }

    #[test]
    fn a_refused_change_changes_nothing() {
        let plain = Conditions::default();
        assert!(plain.with("delay_ms=5 loss=2").is_err());
        assert_eq!(plain.with("delay_ms=5").unwrap().to_string(), "delay_ms=5");
    }
}
