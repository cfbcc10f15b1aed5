//! Reads single settings out of TOML and the environment, and keeps every fault with its key.

use std::{collections::BTreeSet, net::SocketAddr};

/// Stands in for an address that could not be read; it never leaves `Config::read`.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

pub(super) struct Source<'a> {
    table: toml::Table,
    env: &'a dyn Fn(&str) -> Option<String>,
    known: BTreeSet<(String, String)>,
    faults: Vec<String>,
}

impl<'a> Source<'a> {
    pub(super) fn parse(
        text: &str,
        env: &'a dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        Ok(Self {
            table: text
                .parse()
                .map_err(|error: toml::de::Error| error.to_string())?,
            env,
            known: BTreeSet::new(),
            faults: Vec::new(),
        })
    }

    pub(super) fn fault(&mut self, key: &str, why: &str) {
        self.faults.push(format!("{key}: {why}"));
    }

    pub(super) fn text(&mut self, section: &str, key: &str, default: &str) -> String {
        match self.value(section, key) {
            None => default.to_owned(),
            Some(toml::Value::String(text)) => text,
            Some(_) => {
                self.fault(&format!("{section}.{key}"), "must be a text in quotes");
                default.to_owned()
            }
        }
    }

    pub(super) fn number(
        &mut self,
        section: &str,
        key: &str,
        default: u64,
        within: std::ops::RangeInclusive<u64>,
    ) -> u64 {
        let read = match self.value(section, key) {
            None => return default,
            Some(toml::Value::Integer(number)) => u64::try_from(number).ok(),
            // From the environment.
            Some(toml::Value::String(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        read.filter(|number| within.contains(number))
            .unwrap_or_else(|| {
                let (from, to) = (within.start(), within.end());
                self.fault(
                    &format!("{section}.{key}"),
                    &format!("must be a number from {from} to {to}"),
                );
                default
            })
    }

    /// What may stand in the environment only; empty is none.
    pub(super) fn secret(&self, variable: &str) -> Option<String> {
        (self.env)(variable).filter(|text| !text.is_empty())
    }

    pub(super) fn address(&mut self, section: &str, key: &str, default: &str) -> SocketAddr {
        let text = self.text(section, key, default);
        text.parse().unwrap_or_else(|_| {
            self.fault(
                &format!("{section}.{key}"),
                &format!("`{text}` is not an address and port, such as {default}"),
            );
            NOWHERE
        })
    }

    pub(super) fn list(&mut self, section: &str, key: &str, default: &[&str]) -> Vec<String> {
        let texts = |values: Vec<toml::Value>| -> Option<Vec<String>> {
            values
                .into_iter()
                .map(|value| match value {
                    toml::Value::String(text) => Some(text),
                    _ => None,
                })
                .collect()
        };
        let read = match self.value(section, key) {
            None => return default.iter().map(|&text| text.to_owned()).collect(),
            // From the environment: parted by commas.
            Some(toml::Value::String(text)) => Some(
                text.split(',')
                    .map(|part| part.trim().to_owned())
                    .filter(|part| !part.is_empty())
                    .collect(),
            ),
            Some(toml::Value::Array(values)) => texts(values),
            Some(_) => None,
        };
        read.unwrap_or_else(|| {
            self.fault(&format!("{section}.{key}"), "must be a list of texts");
            Vec::new()
        })
    }

    /// Tells every fault, those of unknown keys included.
    pub(super) fn finish(mut self) -> Result<(), Vec<String>> {
        for (section, value) in &self.table {
            let toml::Value::Table(keys) = value else {
                self.faults.push(format!("{section}: unknown key"));
                continue;
            };
            if !self.known.iter().any(|(known, _)| known == section) {
                self.faults.push(format!("[{section}]: unknown section"));
                continue;
            }
            for key in keys.keys() {
                if !self.known.contains(&(section.clone(), key.clone())) {
                    self.faults.push(format!("{section}.{key}: unknown key"));
                }
            }
        }
        if self.faults.is_empty() {
            Ok(())
        } else {
            Err(self.faults)
        }
    }

    fn value(&mut self, section: &str, key: &str) -> Option<toml::Value> {
        self.known.insert((section.to_owned(), key.to_owned()));
        let name = format!("VECTOR_{}_{}", section.to_uppercase(), key.to_uppercase());
        if let Some(text) = (self.env)(&name) {
            return Some(toml::Value::String(text));
        }
        self.table.get(section)?.get(key).cloned()
    }
}
