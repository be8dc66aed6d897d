//! What is read of certificates besides what rustls checks.

use keyward_core::clock::UnixMillis;
use rustls::pki_types::CertificateDer;
use x509_parser::parse_x509_certificate;

/// Until when a certificate is valid.
///
/// # Errors
/// With what is wrong when it cannot be read.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Result<UnixMillis, String> {
    let (_, read) = parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    Ok(UnixMillis(read.validity().not_after.timestamp().saturating_mul(1_000)))
}
