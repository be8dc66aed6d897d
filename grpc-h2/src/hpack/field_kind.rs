//! What a header field means to the server, and whether a request may have it.

/// The kind of a header field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldKind {
    /// `:method`
    Method,
    /// `:scheme`
    Scheme,
    /// `:path`
    Path,
    /// `:authority`
    Authority,
    /// `authorization`
    Authorization,
    /// `content-type`
    ContentType,
    /// `content-length`
    ContentLength,
    /// `grpc-encoding`
    GrpcEncoding,
    /// `grpc-timeout`
    GrpcTimeout,
    /// `te: trailers`
    Te,
    /// Any other field.
    Other,
    /// A field that makes a request malformed: see [`FieldKind::of`].
    Forbidden,
}

impl FieldKind {
    /// The kind of a field. Forbidden are names and values with invalid characters, unknown pseudo-headers,
    /// and fields of the connection (RFC 9113, sections 8.2.1, 8.2.2 and 8.3).
    ///
    /// Spaces around a value are accepted, as in HTTP/1: no decision depends on them.
    pub(crate) fn of(name: &[u8], value: &[u8]) -> Self {
        if !is_value(value) {
            return Self::Forbidden;
        }
        match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":path" => Self::Path,
            b":authority" => Self::Authority,
            b"authorization" => Self::Authorization,
            b"content-type" => Self::ContentType,
            b"content-length" => Self::ContentLength,
            b"grpc-encoding" => Self::GrpcEncoding,
            b"grpc-timeout" => Self::GrpcTimeout,
            b"te" if value == b"trailers" => Self::Te,
            b"te" | b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" | b"" => {
                Self::Forbidden
            }
            _ if name.iter().all(|byte| NAME_BYTES[usize::from(*byte)]) => Self::Other,
            _ => Self::Forbidden,
        }
    }

    /// Whether a field of this name has this kind with any valid value.
    pub(super) fn allows_any_value(self) -> bool {
        !matches!(self, Self::Te | Self::Forbidden)
    }

    /// Whether it is a pseudo-header. They all come before the other fields.
    pub(crate) fn is_pseudo(self) -> bool {
        matches!(self, Self::Method | Self::Scheme | Self::Path | Self::Authority)
    }
}

/// Whether a value has only valid characters.
pub(super) fn is_value(value: &[u8]) -> bool {
    value.iter().all(|byte| VALUE_BYTES[usize::from(*byte)])
}

/// The bytes of names: tokens (RFC 9110, section 5.6.2) in lower case.
const NAME_BYTES: [bool; 256] = {
    let mut bytes = [false; 256];
    let marks = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz";
    let mut at = 0;
    while at < marks.len() {
        bytes[marks[at] as usize] = true;
        at += 1;
    }
    bytes
};

/// The bytes of values: all but control characters, except tab. Slightly stricter than RFC 9113, and the same
/// as the crate `http`.
const VALUE_BYTES: [bool; 256] = {
    let mut bytes = [true; 256];
    let mut at = 0;
    while at < 0x20 {
        bytes[at] = at == b'\t' as usize;
        at += 1;
    }
    bytes[0x7f] = false;
    bytes
};
