//! What can be typed. Every flag that is also a setting can come from the environment.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

mod ca;
pub(crate) use ca::{Ca, RotateRoot};

mod routes;
pub(crate) use routes::{Explain, Routes};

/// Steers a Vector Engine network.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 refused by control, 2 wrong usage or file, 3 control cannot be reached, 4 the token is not good."
)]
pub(crate) struct Arguments {
    /// Where control listens: the first of these replicas, parted by commas, that answers.
    #[arg(
        long,
        global = true,
        env = "VECTOR_CONTROL",
        default_value = "https://127.0.0.1:7000",
        value_name = "URL"
    )]
    pub(crate) control: String,
    /// The operator's token: vadm_SECRET.PIN. Better given by the environment than typed.
    #[arg(
        long,
        global = true,
        env = "VECTOR_ADMIN_TOKEN",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) token: String,
    /// A file with the token, read when the token itself is not given.
    #[arg(
        long,
        global = true,
        env = "VECTOR_ADMIN_TOKEN_FILE",
        value_name = "FILE"
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// An operator's certificate instead of a token: the file that `operator add --certificate-out` wrote.
    #[arg(
        long,
        global = true,
        env = "VECTOR_ADMIN_CERTIFICATE",
        value_name = "FILE"
    )]
    pub(crate) certificate: Option<PathBuf>,
    /// Print JSON with stable field names instead of tables.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Do what control refuses as too large a loss: more than half of all models, upstreams or paths at once, for
    /// `restore` a network that is configured already, for `ca rotate-root` whoever is left out.
    #[arg(long, global = true)]
    pub(crate) force: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The network at a glance: nodes, paths, models, rates, and what is wrong.
    Status,
    /// Find the usual mistakes and say the cure. Ends with code 1 when something is broken.
    Doctor,
    /// Invite, list, drain and remove nodes.
    #[command(subcommand)]
    Node(Node),
    /// All nodes, as `node list`.
    Nodes,
    /// Upstream APIs.
    #[command(subcommand)]
    Provider(Provider),
    /// Keys for providers. A secret is never shown again.
    #[command(subcommand)]
    Credential(Credential),
    /// Public model names, and who serves them.
    #[command(subcommand)]
    Model(Model),
    /// Where calls go that name no model.
    #[command(subcommand)]
    DefaultRoute(DefaultRoute),
    /// Who pays.
    #[command(subcommand)]
    Account(Account),
    /// API keys of accounts.
    #[command(subcommand)]
    Key(Key),
    /// Who may call control, and what they may.
    #[command(subcommand)]
    Operator(Operator),
    /// Who changed what, and when.
    Audit(Audit),
    /// Which master key the secrets need, and the way to a new one.
    #[command(subcommand)]
    Secrets(Secrets),
    /// What signs the certificates of nodes and operators, and its replacement.
    #[command(subcommand)]
    Ca(Ca),
    /// Bring the configuration to what a file says, and show what changed.
    Apply(Apply),
    /// Show what `apply` would change.
    Diff(Diff),
    /// What was changed, and the way back.
    #[command(subcommand)]
    Rollout(Rollout),
    /// Where a request for a model would go now, and why.
    Explain(Explain),
    /// The same, by another name: `routes explain`.
    #[command(subcommand)]
    Routes(Routes),
    /// How each provider fares over each egress: credentials, successes, speed.
    Upstreams,
    /// Every link between nodes: its state, round trip and loss.
    Paths,
    /// The network, its upstreams and its paths, again and again.
    Watch(Watch),
    /// Ingress nodes as clients see them.
    #[command(subcommand)]
    Edges(Edges),
    /// What exchanges consumed.
    Usage(Usage),
    /// Write all that control's store holds to a file. Secrets in it stay sealed.
    Backup {
        /// The file; replaced if it is there.
        file: PathBuf,
    },
    /// Put a backup in the place of what control's store holds.
    Restore {
        /// The file. A network that is configured already is replaced only with --force.
        file: PathBuf,
    },
    /// A completion script for a shell, such as: source <(vectorctl completion bash)
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Secrets {
    /// How many secrets need which master key.
    Status,
    /// Put every secret under control's current master key; then the others may go. Twice is once.
    Rotate,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// A one-time token with which a node joins.
    Invite {
        /// ingress, relay, egress; several by commas.
        #[arg(long, required = true, value_delimiter = ',')]
        role: Vec<String>,
        /// Where it stands, such as us-west.
        #[arg(long)]
        region: String,
        /// Its name. Without it, the node says its own.
        #[arg(long, default_value = "")]
        node: String,
        /// Minutes until the invite is over.
        #[arg(long, default_value_t = 15)]
        minutes: u64,
    },
    /// All nodes.
    List,
    /// Give a node no new work.
    Drain { node: String },
    /// Give a node new work again.
    Undrain { node: String },
    /// Take a node out of the network for good.
    Remove { node: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Provider {
    /// Create or replace a provider.
    Put {
        name: String,
        /// openai, anthropic, gemini, midjourney or suno.
        #[arg(long, default_value = "openai")]
        kind: String,
        /// Such as `https://api.openai.com/v1`.
        #[arg(long)]
        base_url: String,
        /// It may be on this machine or a private network; http only to this machine.
        #[arg(long)]
        allow_private: bool,
        /// Regions or nodes that may call it; all when none is given.
        #[arg(long, value_delimiter = ',')]
        egress: Vec<String>,
        /// Pass on calls that name an object this network did not see being made.
        #[arg(long)]
        unknown_objects: bool,
        /// Whose API tells balances: deepseek, openrouter, siliconflow, billing, quota or none; by the host without it.
        #[arg(long, default_value = "")]
        balance: String,
        #[arg(long, default_value_t = 0)]
        connect_ms: u64,
        #[arg(long, default_value_t = 0)]
        first_byte_ms: u64,
        #[arg(long, default_value_t = 0)]
        idle_ms: u64,
        #[arg(long, default_value_t = 0)]
        connections_max: u32,
        /// An egress that has had no answer for so long asks for the list of models; 0: never.
        #[arg(long, default_value_t = 0)]
        probe_ms: u64,
    },
    /// All providers.
    List,
    /// Remove a provider that nothing uses.
    Remove { name: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Credential {
    /// Create or replace a credential. The secret is read from --secret-file, or from standard input with `-`;
    /// without it, an existing credential keeps its own.
    Put {
        name: String,
        #[arg(long)]
        provider: String,
        /// File with the secret; `-` for standard input.
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
        /// The secret itself. Others on this machine can see it: prefer --secret-file.
        #[arg(long, conflicts_with = "secret_file", hide = true)]
        secret: Option<String>,
        #[arg(long, default_value_t = 0)]
        requests_per_minute: u32,
        #[arg(long, default_value_t = 0)]
        tokens_per_minute: u64,
        #[arg(long, default_value_t = 0)]
        concurrency: u32,
        #[arg(long, default_value_t = 1)]
        weight: u32,
        #[arg(long)]
        disabled: bool,
        /// Extra header, NAME=VALUE, such as OpenAI-Organization=org-1; without a value it keeps the one that is stored.
        /// Others on this machine can see the value: give one that is a secret with --header-file.
        #[arg(long, value_name = "NAME=VALUE")]
        header: Vec<String>,
        /// Extra header with its value in a file; `-` for standard input, which only one option can read.
        #[arg(long, value_name = "NAME=FILE")]
        header_file: Vec<String>,
    },
    /// All credentials, without their secrets.
    List,
    /// Remove a credential.
    Remove { name: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Model {
    /// Create or replace a model.
    Put {
        /// What clients ask for; `*` for every other name.
        name: String,
        /// PROVIDER, PROVIDER/MODEL or PROVIDER/MODEL@PRIORITY; several are tried in order of priority.
        #[arg(long, required = true, value_name = "PROVIDER[/MODEL][@PRIORITY]")]
        upstream: Vec<String>,
        #[arg(long, default_value = "")]
        owned_by: String,
        /// Send small pieces of its answers over two paths at once: a cut is not even a pause, for their bytes twice.
        #[arg(long)]
        redundant: bool,
    },
    /// All models.
    List,
    /// Remove a model.
    Remove { name: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DefaultRoute {
    /// Create or replace a route.
    Put {
        /// An operation such as files.create, a family such as files.*, or `*`.
        operation: String,
        #[arg(long, required = true, value_name = "PROVIDER[/MODEL][@PRIORITY]")]
        upstream: Vec<String>,
        /// As for a model.
        #[arg(long)]
        redundant: bool,
    },
    /// All routes.
    List,
    /// Remove a route.
    Remove { operation: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Account {
    /// Create or replace an account. `--disabled` stops all its keys at once.
    Put {
        name: String,
        #[arg(long, default_value = "")]
        title: String,
        /// IANA name such as Asia/Shanghai; UTC without it.
        #[arg(long, default_value = "")]
        time_zone: String,
        #[arg(long)]
        disabled: bool,
    },
    /// All accounts.
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a key. Its text is shown this once.
    Create {
        #[arg(long)]
        account: String,
        /// What people call it.
        #[arg(long, default_value = "")]
        name: String,
        /// Models it may use, and no call whose model an ingress cannot see (batches, say); all without it.
        #[arg(long, value_delimiter = ',')]
        model: Vec<String>,
        /// Addresses or networks it may come from; all without it.
        #[arg(long, value_delimiter = ',')]
        address: Vec<String>,
        #[arg(long, default_value_t = 0)]
        requests_per_minute: u32,
        #[arg(long, default_value_t = 0)]
        tokens_per_minute: u64,
        #[arg(long, default_value_t = 0)]
        concurrency: u32,
        /// Days until it ends; never without it.
        #[arg(long)]
        days: Option<u64>,
    },
    /// All keys, or those of an account.
    List {
        #[arg(long, default_value = "")]
        account: String,
    },
    /// Stop a key at every edge, at once, and say which of them confirm it.
    Disable { id: String },
    /// Let a key work again.
    Enable { id: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Operator {
    /// Make an operator with a token, which is shown this once, or with a certificate.
    Add {
        /// 1 to 63 of a-z 0-9 -.
        name: String,
        /// viewer (sees), operator (changes what is routed and sold) or admin (decides who belongs to the network).
        #[arg(long)]
        role: String,
        /// Write a new key and its certificate to this file, instead of making a token. The key never leaves this machine.
        #[arg(long = "certificate-out", value_name = "FILE")]
        certificate_out: Option<PathBuf>,
        /// Days until it ends. Without it a token has no end, a certificate lives 90 days.
        #[arg(long, default_value_t = 0)]
        days: u64,
    },
    /// All operators but `root`, who has the token of control's file.
    List,
    /// Take an operator's token or certificate away, at once.
    Remove { name: String },
    /// Who I am.
    Me,
}

#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Check every entry that is kept against the next, and the last against control's secret. Ends with code 1 when
    /// somebody has altered the log.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Entries to show, newest last.
    #[arg(long, default_value_t = 20)]
    pub(crate) rows: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// The file; `-` for standard input.
    #[arg(short, long)]
    pub(crate) file: PathBuf,
    /// Remove providers, credentials, models and default routes that the file does not name.
    #[arg(long)]
    pub(crate) prune: bool,
    /// Only if the configuration still has this generation: else somebody else has changed it since. Without this, the one
    /// that `diff` of this file saw last counts, or the one that is there when this begins; 0 is whatever is there.
    #[arg(long, value_name = "GENERATION")]
    pub(crate) base: Option<u64>,
    /// Change nothing, only show.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The file; `-` for standard input.
    #[arg(short, long)]
    pub(crate) file: PathBuf,
    /// As in `apply`.
    #[arg(long)]
    pub(crate) prune: bool,
    /// End with code 1 when something would change.
    #[arg(long)]
    pub(crate) exit_code: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rollout {
    /// How far the last change has come: with its canaries, with everybody, or rolled back and why.
    Status,
    /// Hold a change with its canaries.
    Pause,
    /// Let it go on to everybody.
    Resume,
    /// The last changes of the configuration, newest first; 100 are kept.
    History {
        #[arg(long, default_value_t = 20)]
        rows: u32,
    },
    /// What is different between two generations.
    Diff {
        /// A generation, as `history` tells it; 0 is before the first change.
        from: u64,
        to: u64,
    },
    /// Bring the configuration back to what it was. No credential or account goes, comes, or is switched on or off by it, and
    /// secrets stay; what is left as it is for that is told.
    Undo {
        /// To what it was at this generation; before the last change without it.
        generation: Option<u64>,
        /// Only if the configuration still has this generation, as `history` tells it.
        #[arg(long, default_value_t = 0, value_name = "GENERATION")]
        base: u64,
        /// Change nothing, only show.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Edges {
    /// Measure every ingress from here, and name the nearest.
    Probe(Probe),
}

#[derive(Debug, Args)]
pub(crate) struct Probe {
    /// Any ingress, which tells of the others; then neither control nor a token is needed.
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<String>,
    /// Questions to each; the quickest answer counts.
    #[arg(long, default_value_t = 5)]
    pub(crate) times: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Milliseconds between two looks, at least 100.
    #[arg(long, default_value_t = 1_000)]
    pub(crate) every_ms: u64,
    /// Looks; without end when it is 0.
    #[arg(long, default_value_t = 0)]
    pub(crate) times: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Usage {
    #[arg(long, default_value = "")]
    pub(crate) account: String,
    /// Id of a key.
    #[arg(long, default_value = "")]
    pub(crate) key: String,
    /// Only the last hours.
    #[arg(long)]
    pub(crate) hours: Option<u64>,
    /// Rows to show; the sum is always of all.
    #[arg(long, default_value_t = 20)]
    pub(crate) rows: u32,
}

#[cfg(test)]
mod tests;
