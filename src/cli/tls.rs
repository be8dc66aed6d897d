//! The arguments by which a client encrypts.

use std::path::PathBuf;

use clap::Args;

use crate::remote::ClientTls;

#[derive(Debug, Args)]
pub(super) struct TlsArgs {
    /// Encrypt, and trust the authorities that this machine trusts
    #[arg(long)]
    tls: bool,
    /// Encrypt, and trust the authorities in this PEM file alone
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The PEM file of the certificate to show, where the server demands one
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The PEM file of its private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The name that the server's certificate must have [default: the host of its address]
    #[arg(long, value_name = "NAME")]
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
}
