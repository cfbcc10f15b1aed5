//! Reaches control, and says in plain words why it cannot.

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use vector_control::dial;
use vector_proto::control::v1::admin_client::AdminClient;
use zeroize::Zeroizing;

use crate::Failure;

/// Largest answer taken.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Every call carries the operator's token, if it has one.
pub(crate) type Client = AdminClient<InterceptedService<Channel, Token>>;

#[derive(Clone)]
pub(crate) struct Token {
    bearer: Option<MetadataValue<Ascii>>,
    /// What control refuses as too large a loss is meant.
    force: bool,
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        if let Some(bearer) = &self.bearer {
            metadata.insert("authorization", bearer.clone());
        }
        if self.force {
            metadata.insert("vector-force", MetadataValue::from_static("true"));
        }
        Ok(request)
    }
}

/// What an operator proves itself with.
pub(crate) enum Proof {
    /// `vadm_SECRET.PIN`.
    Token(Zeroizing<String>),
    /// PEM of a key, its certificate, and the network's root.
    Certificate(Zeroizing<String>),
}

/// Dials control: the first of these addresses, parted by commas, where one answers.
pub(crate) async fn connect(urls: &str, proof: &Proof) -> Result<Client, Failure> {
    connect_to(urls, proof, false).await
}

/// The same; with `force`, each call says that losses are meant.
pub(crate) async fn connect_to(urls: &str, proof: &Proof, force: bool) -> Result<Client, Failure> {
    let (channel, bearer) = match proof {
        Proof::Token(token) => with_token(urls, token.trim()).await?,
        Proof::Certificate(pem) => (with_certificate(urls, pem).await?, None),
    };
    let client = AdminClient::with_interceptor(channel, Token { bearer, force });
    Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX))
}

async fn with_certificate(urls: &str, pem: &str) -> Result<Channel, Failure> {
    let wrong = |why: &str| {
        Failure::Usage(format!(
            "the certificate file is not what `vectorctl operator add --certificate-out` writes: {why}"
        ))
    };
    let key =
        PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| wrong(&error.to_string()))?;
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let mut chain = chain.map_err(|error| wrong(&error.to_string()))?;
    let root = chain.pop().filter(|_| !chain.is_empty());
    let root = root.ok_or_else(|| wrong("it needs a certificate and the root"))?;
    let pin = dial::pin_of(&root).ok_or_else(|| wrong("its root is no certificate"))?;
    first(urls, &pin, Some((chain, key))).await
}

/// Dials control with `vadm_SECRET.PIN`.
async fn with_token(
    urls: &str,
    token: &str,
) -> Result<(Channel, Option<MetadataValue<Ascii>>), Failure> {
    let no_token = || {
        Failure::Token(
            "this needs the operator's token, vadm_SECRET.PIN: set VECTOR_ADMIN_TOKEN, for instance\n  \
             export VECTOR_ADMIN_TOKEN=$(cat admin.token)\n\
             vector-control wrote it at its first start to the file it is told as control.admin_token_file"
                .to_owned(),
        )
    };
    let rest = token.strip_prefix("vadm_").ok_or_else(no_token)?;
    let (secret, pin) = rest.split_once('.').ok_or_else(no_token)?;
    let mut bearer: MetadataValue<Ascii> = format!("Bearer vadm_{secret}")
        .parse()
        .map_err(|_| no_token())?;
    bearer.set_sensitive(true);
    let channel = first(urls, pin, None).await?;
    Ok((channel, Some(bearer)))
}

/// Each of the addresses, which are parted by commas.
pub(crate) fn addresses(urls: &str) -> impl Iterator<Item = &str> {
    urls.split(',').map(str::trim).filter(|url| !url.is_empty())
}

/// Any replica does: they are equal. One that answers and is not ours is a fault, whatever the next one would be.
async fn first(
    urls: &str,
    pin: &str,
    certificate: Option<dial::ClientCertificate>,
) -> Result<Channel, Failure> {
    let mut last = None;
    for url in addresses(urls) {
        let own = certificate
            .as_ref()
            .map(|(chain, key)| (chain.clone(), key.clone_key()));
        match dial::dial(url, pin, own).await {
            Ok(channel) => return Ok(channel),
            Err(error @ dial::Error::Connect { .. }) => last = Some(unreachable(url, error)),
            Err(error) => return Err(unreachable(url, error)),
        }
    }
    Err(last.unwrap_or_else(|| unreachable(urls, dial::Error::Url(urls.to_owned()))))
}

fn unreachable(url: &str, error: dial::Error) -> Failure {
    let text = error.to_string();
    match error {
        dial::Error::Connect { .. } => Failure::Unreachable(format!(
            "{text}\nIs vector-control running, and is {url} where it listens? Say another place with --control or VECTOR_CONTROL."
        )),
        dial::Error::WrongPin { .. } => Failure::Token(format!(
            "{text}\nEither VECTOR_ADMIN_TOKEN belongs to another network, or VECTOR_CONTROL leads to another one, or somebody is in between."
        )),
        dial::Error::Pin => Failure::Token(text),
        dial::Error::Url(_) | dial::Error::Tls(_) => Failure::Usage(text),
    }
}
