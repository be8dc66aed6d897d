//! What is read of certificates besides what rustls checks.

use keyward_core::clock::UnixMillis;
use keyward_core::identity::IdentityName;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// Until when a certificate is valid.
///
/// # Errors
/// With what is wrong when it cannot be read.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Result<UnixMillis, String> {
    let (_, read) = parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    Ok(UnixMillis(read.validity().not_after.timestamp().saturating_mul(1_000)))
}

/// The identity of a client certificate: its SPIFFE id, which must be its only URI (X509-SVID, section 2), or
/// without a URI its only DNS name. The common name never counts. `None`: there is none, there are several,
/// or it is not in the form of one.
pub(super) fn identity_of(certificate: &CertificateDer<'_>) -> Option<IdentityName> {
    let (_, read) = parse_x509_certificate(certificate).ok()?;
    let names = &read.subject_alternative_name().ok()??.value.general_names;
    let uris: Vec<&str> = names.iter().filter_map(|name| of_uri(name)).collect();
    let hosts: Vec<&str> = names.iter().filter_map(|name| of_host(name)).collect();
    let text = match (uris.as_slice(), hosts.as_slice()) {
        ([uri], _) if uri.starts_with("spiffe://") => (*uri).to_owned(),
        ([], [host]) => format!("dns:{}", host.to_ascii_lowercase()),
        _ => return None,
    };
    IdentityName::parse(&text).ok()
}

fn of_uri<'n>(name: &'n GeneralName<'_>) -> Option<&'n str> {
    let GeneralName::URI(uri) = name else { return None };
    Some(uri)
}

fn of_host<'n>(name: &'n GeneralName<'_>) -> Option<&'n str> {
    let GeneralName::DNSName(host) = name else { return None };
    Some(host)
}
