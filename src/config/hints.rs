//! What a mistake in the configuration says of what is meant.

use figment::error::{Actual, Kind};

use super::table::SETTINGS;

/// How similar a setting must be (by Jaro and Winkler, of 1) to be what a misspelt name means.
const SIMILAR: f64 = 0.85;

/// Why a value cannot be one of a setting.
pub(super) fn unsuitable(kind: &Kind) -> String {
    let (found, expected) = match kind {
        Kind::UnknownVariant(found, known) => return format!("is {found}, and must be {}", known.join(" or ")),
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => (found, expected),
        // What a type expects of which there are several forms.
        kind => return kind.to_string(),
    };
    let expected = match &**expected {
        "a boolean" => "true or false",
        "u32" | "u64" | "usize" => "a whole number",
        "a string" | "path string" => "a text",
        "a sequence" => "a list",
        other => other,
    };
    format!("is {}, and must be {expected}", told(found))
}

/// A value as a mistake tells it.
pub(super) fn told(found: &Actual) -> String {
    match found {
        Actual::Str(text) => text.clone(),
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(number) => number.to_string(),
        Actual::Signed(number) => number.to_string(),
        Actual::Float(number) => number.to_string(),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// What may be meant by a name that is not a setting.
pub(super) fn hint(name: &str, shown: impl Fn(&str) -> String) -> String {
    if name == "port" || name.ends_with("_port") {
        return format!("; a port is part of an address, as in {}", shown("listen"));
    }
    let similar = SETTINGS.iter().map(|setting| (strsim::jaro_winkler(name, setting.name), setting.name));
    match similar.max_by(|one, other| one.0.total_cmp(&other.0)) {
        Some((similarity, meant)) if similarity >= SIMILAR => format!("; did you mean {}?", shown(meant)),
        _ => String::new(),
    }
}
