//! Objects as protobuf's JSON: names in camel case, numbers of 64 bits and times as text, defaults left out.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::super::when;
use super::fields::{Fields, Value, json_name};

/// An object over several lines.
pub(super) fn pretty(object: &Fields) -> String {
    serde_json::to_string_pretty(object).unwrap_or_default() + "\n"
}

/// An object in one line.
pub(super) fn line(object: &Fields) -> String {
    serde_json::to_string(object).unwrap_or_default()
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.iter() {
            map.serialize_entry(&json_name(name), value)?;
        }
        map.end()
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => text.serialize(serializer),
            Self::Word(name, _) => name.serialize(serializer),
            Self::Texts(texts) => texts.serialize(serializer),
            Self::Pairs(pairs) => pairs.serialize(serializer),
            Self::Time(time) => when::exact(time).serialize(serializer),
            Self::Span(span) => when::exact_span(span).serialize(serializer),
            Self::Flag(is_set) => is_set.serialize(serializer),
            Self::Number(number) => number.serialize(serializer),
            Self::Long(number) => number.to_string().serialize(serializer),
            Self::Object(fields) => fields.serialize(serializer),
            Self::Objects(objects) => objects.serialize(serializer),
        }
    }
}
