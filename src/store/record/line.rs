//! Lines as bytes.

use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::record::{LineRecord, LogId};

use super::{DecodeError, Known, Version, envelope, open_second, pb};

const KNOWN: Known = Known { fields: &[1, 2, 3, 4], within: &[] };

/// A line as bytes.
#[must_use]
pub fn encode_line(line: &LineRecord) -> Vec<u8> {
    let LineRecord { log_id, ended, base, time } = line;
    let body = pb::LineRecord { log_id: log_id.0.to_vec(), ended: ended.0, base: base.0, time_ms: time.0 };
    envelope(Version::Two, &body)
}

/// A line from bytes.
///
/// # Errors
/// When the bytes are not what [`encode_line`] wrote.
pub fn decode_line(bytes: &[u8]) -> Result<LineRecord, DecodeError> {
    let pb: pb::LineRecord = open_second(bytes, &KNOWN)?;
    let log_id = <[u8; 16]>::try_from(pb.log_id).map_err(|_| DecodeError::Body("log_id"))?;
    let is_line = pb.base != 0 && pb.base.is_multiple_of(LineRecord::REVISIONS) && pb.ended < pb.base;
    if !is_line {
        return Err(DecodeError::Body("base"));
    }
    Ok(LineRecord {
        log_id: LogId(log_id),
        ended: Revision(pb.ended),
        base: Revision(pb.base),
        time: UnixMillis(pb.time_ms),
    })
}
