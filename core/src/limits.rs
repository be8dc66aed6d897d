//! The bounds of the domain. Each has its unit in its name.

/// A longer secret is refused before it is read.
pub const SECRET_BYTES_MAX: usize = 256;
/// Verifications in one batch at most.
pub const BATCH_ITEMS_MAX: usize = 1_000;
/// An id that comes back with the answer, so that the caller can match them.
pub const CORRELATION_ID_BYTES_MAX: usize = 64;
/// The shortest secret: a prefix and an environment of one letter each, two underscores, 43 digits and 6 of
/// the checksum.
pub const SECRET_BYTES_MIN: usize = 53;

/// The first part of a secret.
pub const SECRET_PREFIX_BYTES_MAX: usize = 20;
/// The middle part of a secret.
pub const ENVIRONMENT_BYTES_MAX: usize = 16;

/// The longest name that a caller gives a request.
pub const REQUEST_ID_BYTES_MAX: usize = 64;

/// The author of a change.
pub const ACTOR_BYTES_MAX: usize = 256;

/// A key as it is created or updated, with the envelope in which it is stored.
pub const RECORD_BYTES_ISSUED_MAX: usize = 3_584;
/// A stored record, with its envelope. What is past [`RECORD_BYTES_ISSUED_MAX`] is reserved for what comes
/// later: a reason, three secrets with their authors, and the authors of the last changes. By arithmetic that
/// is at most some 1,900 bytes; so the longest key can always be rotated, disabled and revoked.
pub const RECORD_BYTES_MAX: usize = 6_144;

/// The label that people see.
pub const DISPLAY_NAME_BYTES_MAX: usize = 128;
/// A longer note for operators.
pub const DESCRIPTION_BYTES_MAX: usize = 512;
/// The holder of a key.
pub const OWNER_BYTES_MAX: usize = 128;
/// Why a key was disabled, enabled, revoked, deleted or given back.
pub const STATE_REASON_BYTES_MAX: usize = 256;

/// How far ahead the end of a suspension may lie: ten years.
pub const SUSPENSION_SECONDS_MAX: i64 = 3_653 * 24 * 60 * 60;
/// The shortest time for which a deleted key is kept, in milliseconds: a minute.
pub const DELETED_KEPT_MS_MIN: u64 = 60 * 1_000;
/// The longest one: ten years.
pub const DELETED_KEPT_MS_MAX: u64 = 3_653 * 24 * 60 * 60 * 1_000;
/// How long a deleted key is kept, unless the request says otherwise: 30 days.
pub const DELETED_KEPT_MS_DEFAULT: u64 = 30 * 24 * 60 * 60 * 1_000;

/// Scopes of one key, or in one request of Verify.
pub const SCOPES_MAX: usize = 64;
/// One scope.
pub const SCOPE_BYTES_MAX: usize = 128;

/// Audiences of one key.
pub const AUDIENCES_MAX: usize = 32;
/// One audience.
pub const AUDIENCE_BYTES_MAX: usize = 128;

/// CIDR blocks of one key.
pub const CIDRS_MAX: usize = 32;

/// Labels of one key.
pub const LABELS_MAX: usize = 32;
/// The name of a label or an annotation.
pub const LABEL_NAME_BYTES_MAX: usize = 63;
/// The value of a label.
pub const LABEL_VALUE_BYTES_MAX: usize = 128;

/// Annotations of one key.
pub const ANNOTATIONS_MAX: usize = 32;
/// The value of an annotation.
pub const ANNOTATION_VALUE_BYTES_MAX: usize = 512;

/// How long the secret before a new one may work beside it, in milliseconds: 365 days.
pub const OVERLAP_MS_MAX: u64 = 365 * 24 * 60 * 60 * 1_000;

/// Peppers in use: the current one, and the retired ones that old digests still need.
pub const PEPPERS_MAX: usize = 4;

/// Keys in one selector.
pub const SELECTOR_KEY_IDS_MAX: usize = 1_000;
/// Keys or tenants in one page.
pub const PAGE_SIZE_MAX: usize = 1_000;
/// Keys or tenants in one page, unless the request says otherwise.
pub const PAGE_SIZE_DEFAULT: usize = 50;
