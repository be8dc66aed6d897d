//! The arguments by which a client encrypts.

use std::path::PathBuf;

use clap::Args;

use crate::remote::ClientTls;

#[derive(Debug, Args)]
pub(super) struct TlsArgs {
    /// Encrypt, and trust the authorities that this machine trusts
    #[arg(long, global = true)]
    tls: bool,
    /// Encrypt, and trust the authorities in this PEM file alone
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// The PEM file of the certificate to show, where the server demands one
    #[arg(long, value_name = "FILE", requires = "key", global = true)]
    cert: Option<PathBuf>,
    /// The PEM file of its private key
    #[arg(long, value_name = "FILE", requires = "cert", global = true)]
    key: Option<PathBuf>,
    /// The name that the server's certificate must have [default: the host of its address]
    #[arg(long, value_name = "NAME", global = true)]
    server_name: Option<String>,
}

impl TlsArgs {
    /// How to encrypt. `None`: not at all.
    pub(super) fn read(self) -> Option<ClientTls> {
        let Self { tls, ca, cert, key, server_name } = self;
        let identity = cert.zip(key);
        let is_wanted = tls || ca.is_some() || identity.is_some() || server_name.is_some();
        is_wanted.then_some(ClientTls { ca, identity, server_name })
    }

    /// The same, above what a context says.
    pub(super) fn read_over(self, context: Option<ClientTls>) -> Option<ClientTls> {
        match (self.read(), context) {
            (Some(flags), Some(context)) => Some(ClientTls {
                ca: flags.ca.or(context.ca),
                identity: flags.identity.or(context.identity),
                server_name: flags.server_name.or(context.server_name),
            }),
            (flags, context) => flags.or(context),
        }
    }
}
