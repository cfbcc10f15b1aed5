//! Reaches control, and says in plain words why it cannot.

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use vector_control::dial;
use vector_proto::control::v1::admin_client::AdminClient;

use crate::Failure;

/// Largest answer taken.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Every call carries the operator's token.
pub(crate) type Client = AdminClient<InterceptedService<Channel, Token>>;

#[derive(Clone)]
pub(crate) struct Token(MetadataValue<Ascii>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Dials control with `vadm_SECRET.PIN`: the first of these addresses, parted by commas, where one answers.
pub(crate) async fn connect(urls: &str, token: &str) -> Result<Client, Failure> {
    let token = token.trim();
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
    let channel = first(urls, pin).await?;
    Ok(AdminClient::with_interceptor(channel, Token(bearer))
        .max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Any replica does: they are equal. One that answers and is not ours is a fault, whatever the next one would be.
async fn first(urls: &str, pin: &str) -> Result<Channel, Failure> {
    let mut last = None;
    for url in urls.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        match dial::dial(url, pin, None).await {
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
