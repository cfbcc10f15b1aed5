//! The topology file: hosts with their addresses, and the lines between them. As written in TOML, checked into what
//! is meant; every fault is told at once, with the place it stands at.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use anyhow::{Context, bail};
use toml::{Table, Value};
use vector_wan::Conditions;

/// One /24 has 254 addresses; the last is the router's own.
const ADDRESSES_MAX: usize = 253;

/// What Ethernet and IPv4 allow.
const MTU: std::ops::RangeInclusive<i64> = 576..=9000;

/// A name becomes part of a namespace's, which is a file's.
const NAME_BYTES_MAX: usize = 60;

/// A machine of its own network.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    /// Its own name's address, and those of further names: another carrier of the same host.
    pub(crate) addresses: Vec<usize>,
    pub(crate) mtu: usize,
    pub(crate) sysctl: BTreeMap<String, String>,
}

/// One address, which is one end of lines.
#[derive(Debug)]
pub(crate) struct Address {
    pub(crate) name: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) host: usize,
    pub(crate) ip: Ipv4Addr,
}

/// One direction between two addresses.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) conditions: Conditions,
}

/// All of a lab.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) seed: u64,
    /// Where the router's own words about unreachable packets come from.
    pub(crate) router: Ipv4Addr,
    pub(crate) hosts: Vec<Host>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) ways: Vec<Way>,
}

/// Whether a name may stand in the name of a namespace.
pub(crate) fn is_name(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(legal) && !text.starts_with('-')
}

impl Topology {
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        Self::parse(&text).map_err(|error| error.context(format!("{shown} is no topology")))
    }

    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let top: Table = text.parse()?;
        let mut reader = Reader {
            faults: Vec::new(),
            topology: Self {
                seed: 1,
                router: Ipv4Addr::UNSPECIFIED,
                hosts: Vec::new(),
                addresses: Vec::new(),
                ways: Vec::new(),
            },
        };
        reader.read(&top);
        match reader.faults.as_slice() {
            [] => Ok(reader.topology),
            faults => bail!("{}", faults.join("\n  ")),
        }
    }

    /// Names for all hosts: `NAME`, `NAME.test` and aliases.
    pub(crate) fn hosts_file(&self) -> String {
        let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
        for address in &self.addresses {
            text += &format!("{} {} {1}.test", address.ip, address.name);
            for alias in &address.aliases {
                text += &format!(" {alias}");
            }
            text.push('\n');
        }
        text
    }
}

/// Reads on after a fault, so that all of them are told.
struct Reader {
    faults: Vec<String>,
    topology: Topology,
}

impl Reader {
    fn read(&mut self, top: &Table) {
        let known = ["subnet", "mtu", "seed", "sysctl", "host", "link"];
        self.only("the topology", top, &known);
        let base = self.subnet(top);
        self.topology.router = at(base, ADDRESSES_MAX + 1);
        let seed = self.integer("the topology", top, "seed", 1, &(0..=i64::MAX));
        self.topology.seed = seed.unsigned_abs();
        let mtu = self.integer("the topology", top, "mtu", 1500, &MTU);
        let sysctl = self.sysctl("[sysctl]", top);
        for table in self.tables(top, "host") {
            self.host(table, base, mtu, &sysctl);
        }
        for table in self.tables(top, "link") {
            self.link(table);
        }
    }

    fn fault(&mut self, text: String) {
        self.faults.push(text);
    }

    fn only(&mut self, place: &str, table: &Table, known: &[&str]) {
        for key in table.keys().filter(|key| !known.contains(&key.as_str())) {
            let known = known.join(" ");
            self.fault(format!("{place}: unknown key `{key}`; keys: {known}"));
        }
    }

    fn subnet(&mut self, top: &Table) -> Ipv4Addr {
        let default = Ipv4Addr::new(10, 77, 0, 0);
        let Some(given) = top.get("subnet") else {
            return default;
        };
        let base = given
            .as_str()
            .and_then(|text| text.strip_suffix("/24"))
            .and_then(|text| text.parse::<Ipv4Addr>().ok())
            .filter(|base| base.is_private() && base.octets()[3] == 0);
        base.unwrap_or_else(|| {
            self.fault(format!("subnet = {given}: must be a private a.b.c.0/24"));
            default
        })
    }

    fn integer(
        &mut self,
        place: &str,
        table: &Table,
        key: &str,
        default: i64,
        range: &std::ops::RangeInclusive<i64>,
    ) -> i64 {
        let Some(given) = table.get(key) else {
            return default;
        };
        match given.as_integer().filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                self.fault(format!(
                    "{place}: {key} = {given}: must be a whole number in {range:?}"
                ));
                default
            }
        }
    }

    fn names(&mut self, place: &str, table: &Table, key: &str) -> Vec<String> {
        let list = match table.get(key) {
            None => return Vec::new(),
            Some(Value::Array(list)) => list.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let names = list.iter().map(|name| name.as_str().map(str::to_owned));
        names.collect::<Option<Vec<_>>>().unwrap_or_else(|| {
            self.fault(format!("{place}: {key}: must be a name or a list of names"));
            Vec::new()
        })
    }

    fn sysctl(&mut self, place: &str, table: &Table) -> BTreeMap<String, String> {
        match table.get("sysctl") {
            None => BTreeMap::new(),
            Some(Value::Table(settings)) => settings
                .iter()
                .map(|(key, value)| (key.clone(), plain(value)))
                .collect(),
            Some(_) => {
                self.fault(format!("{place}: sysctl must be a table"));
                BTreeMap::new()
            }
        }
    }

    fn tables<'t>(&mut self, top: &'t Table, key: &str) -> Vec<&'t Table> {
        let list = top.get(key).and_then(Value::as_array);
        let tables = list.and_then(|list| list.iter().map(Value::as_table).collect());
        tables.unwrap_or_else(|| {
            self.fault(format!("no [[{key}]]"));
            Vec::new()
        })
    }

    fn host(&mut self, table: &Table, base: Ipv4Addr, mtu: i64, sysctl: &BTreeMap<String, String>) {
        let name = table.get("name").and_then(Value::as_str).unwrap_or("");
        let place = format!("[[host]] `{name}`");
        let known = ["name", "addresses", "aliases", "mtu", "sysctl"];
        self.only(&place, table, &known);
        let host = self.topology.hosts.len();
        let mut own = Vec::new();
        let mut aliases = self.names(&place, table, "aliases");
        let further = self.names(&place, table, "addresses");
        for name in std::iter::once(name.to_owned()).chain(further) {
            let mut used = self.topology.addresses.iter();
            let taken = used.any(|address| address.name == name);
            if taken || !is_name(&name) {
                self.fault(format!(
                    "{place}: name `{name}`: empty, too long, taken, or not of A-Z a-z 0-9 - _"
                ));
            }
            let number = self.topology.addresses.len() + 1;
            if number > ADDRESSES_MAX {
                self.fault(format!("{place}: more than {ADDRESSES_MAX} addresses"));
                return;
            }
            own.push(number - 1);
            self.topology.addresses.push(Address {
                name,
                aliases: std::mem::take(&mut aliases),
                host,
                ip: at(base, number),
            });
        }
        let mut all = sysctl.clone();
        all.extend(self.sysctl(&place, table));
        let mtu = self.integer(&place, table, "mtu", mtu, &MTU);
        self.topology.hosts.push(Host {
            name: name.to_owned(),
            addresses: own,
            mtu: usize::try_from(mtu).unwrap_or(1500),
            sysctl: all,
        });
    }

    fn link(&mut self, table: &Table) {
        let (a, b) = (
            self.names("[[link]]", table, "a"),
            self.names("[[link]]", table, "b"),
        );
        let place = format!("[[link]] {} to {}", a.join(","), b.join(","));
        if a.is_empty() || b.is_empty() {
            self.fault(format!("{place}: needs a and b"));
        }
        let both = self.conditions(&place, Conditions::default(), table);
        let mut one_way = |key: &str| match table.get(key) {
            None => both.clone(),
            Some(Value::Table(changes)) => self.conditions(&place, both.clone(), changes),
            Some(_) => {
                self.fault(format!("{place}: {key} must be a table of conditions"));
                both.clone()
            }
        };
        let (there, back) = (one_way("ab"), one_way("ba"));
        for x in &a {
            for y in &b {
                let (Some(x), Some(y)) = (self.index(&place, x), self.index(&place, y)) else {
                    continue;
                };
                let ways = &self.topology.ways;
                let twice = ways.iter().any(|way| (way.from, way.to) == (x, y));
                let addresses = &self.topology.addresses;
                if twice || addresses[x].host == addresses[y].host {
                    self.fault(format!("{place}: within one host, or given twice"));
                    continue;
                }
                for (from, to, conditions) in [(x, y, &there), (y, x, &back)] {
                    self.topology.ways.push(Way {
                        from,
                        to,
                        conditions: conditions.clone(),
                    });
                }
            }
        }
    }

    fn conditions(&mut self, place: &str, mut start: Conditions, table: &Table) -> Conditions {
        let ends = ["a", "b", "ab", "ba"];
        for (key, value) in table {
            if ends.contains(&key.as_str()) {
                continue;
            }
            if let Err(error) = start.set(key, &plain(value)) {
                self.fault(format!("{place}: {error}"));
            }
        }
        if let Err(error) = start.check() {
            self.fault(format!("{place}: {error}"));
        }
        start
    }

    fn index(&mut self, place: &str, name: &str) -> Option<usize> {
        let mut addresses = self.topology.addresses.iter();
        let found = addresses.position(|address| address.name == name);
        if found.is_none() {
            self.fault(format!("{place}: no host or address is called `{name}`"));
        }
        found
    }
}

fn at(base: Ipv4Addr, number: usize) -> Ipv4Addr {
    let [a, b, c, _] = base.octets();
    Ipv4Addr::new(a, b, c, u8::try_from(number).unwrap_or(u8::MAX))
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Topology;

    const TEXT: &str = r#"
        mtu = 1400
        [sysctl]
        "net.ipv4.tcp_congestion_control" = "cubic"
        [[host]]
        name = "a"
        [[host]]
        name = "b1"
        addresses = ["b1-too"]
        aliases = ["provider.test"]
        mtu = 1280
        [[host]]
        name = "b2"
        [[link]]
        a = "a"
        b = ["b1", "b2"]
        rtt_ms = 150
        loss = "0.1%"
        ba = { loss = 0.0, rate_mbit = 50 }
        [[link]]
        a = "a"
        b = "b1-too"
    "#;

    #[test]
    fn hosts_addresses_links_and_one_way_changes_are_read() {
        let topology = Topology::parse(TEXT).unwrap();
        let shown = |at: usize| topology.ways[at].conditions.to_string();
        assert_eq!(topology.ways.len(), 6);
        assert_eq!(shown(0), "delay_ms=75 loss=0.001");
        assert_eq!(shown(1), "delay_ms=75 rate_mbit=50 queue_ms=50");
        assert_eq!(topology.hosts[1].addresses, [1, 2]);
        assert_eq!((topology.hosts[0].mtu, topology.hosts[1].mtu), (1400, 1280));
        let sysctl = &topology.hosts[2].sysctl;
        assert_eq!(sysctl["net.ipv4.tcp_congestion_control"], "cubic");
        let hosts = topology.hosts_file();
        assert!(
            hosts.contains("10.77.0.2 b1 b1.test provider.test\n10.77.0.3 b1-too b1-too.test\n")
        );
    }

    #[test]
    fn mistakes_are_told_where_they_stand() {
        for (from, to, told) in [
            ("b = [\"b1\", \"b2\"]", "b = \"zz\"", "`zz`"),
            ("b = [\"b1\", \"b2\"]", "b = \"a\"", "within one host"),
            ("b = \"b1-too\"", "b = \"b1\"", "twice"),
            ("rtt_ms", "rtt", "unknown key `rtt`"),
            ("name = \"b2\"", "name = \"a\"", "taken"),
            ("mtu = 1400", "mtu = 100", "576..=9000"),
            ("mtu = 1400", "subnet = \"8.8.8.0/24\"", "private"),
            ("mtu = 1400", "oops = 1", "unknown key `oops`"),
            ("loss = \"0.1%\"", "loss = \"200%\"", "loss=200%"),
        ] {
            let error = Topology::parse(&TEXT.replace(from, to)).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(told), "{to}: {error}");
        }
        let two = TEXT
            .replace("mtu = 1400", "mtu = 1")
            .replace("rtt_ms", "rtt");
        let error = format!("{:#}", Topology::parse(&two).unwrap_err());
        assert!(
            error.contains("mtu") && error.contains("`rtt`"),
            "all at once: {error}"
        );
    }

    #[test]
    fn the_topologies_that_come_along_are_right() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/topologies"));
        let mut seen = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            Topology::load(&file.unwrap().path()).unwrap();
            seen += 1;
        }
        assert!(seen >= 2);
    }
}
