//! The rules of request fields. Each field is checked once, and all violations are reported together.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use keyward_core::address::{parse_address, parse_cidr};
use keyward_core::clock::UnixMillis;
use keyward_core::id::InvalidName;
use keyward_core::leak::holds_secret;
use keyward_core::limits::{
    ANNOTATION_VALUE_BYTES_MAX, ANNOTATIONS_MAX, AUDIENCE_BYTES_MAX, AUDIENCES_MAX, CIDRS_MAX, DESCRIPTION_BYTES_MAX,
    LABEL_NAME_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, SCOPES_MAX,
};
use keyward_core::scope::{self, Scope};
use prost_types::{Duration, Timestamp};

use super::status::Refusal;
use super::text;
use crate::authority::{SoughtText, Violation};
use crate::util::hpke::PublicKey;

/// 9999-12-31T23:59:59.999Z, the last time that a Timestamp can name.
const TIME_MS_MAX: i64 = 253_402_300_799_999;

/// No text field takes more.
const TEXT_BYTES_MAX: usize =
    if ANNOTATION_VALUE_BYTES_MAX > DESCRIPTION_BYTES_MAX { ANNOTATION_VALUE_BYTES_MAX } else { DESCRIPTION_BYTES_MAX };

/// Reads fields and collects what is wrong with them. A reader returns `None`, or an empty value, for a field
/// that is wrong; [`Fields::finish`] then refuses the whole.
#[derive(Debug, Default)]
pub struct Fields {
    /// What stands before the names of fields, with its dot.
    within: &'static str,
    violations: Vec<Violation>,
    /// Further ones, which are only counted.
    more: usize,
}

/// Violations that are told. A refusal travels in headers, which clients bound, so it must be short.
const VIOLATIONS_TOLD_MAX: usize = 8;

impl Fields {
    /// Gives what was read, if nothing was wrong.
    ///
    /// # Errors
    /// With everything that was wrong.
    pub fn finish<T>(mut self, read: Option<T>) -> Result<T, Refusal> {
        match read {
            Some(read) if self.violations.is_empty() => Ok(read),
            _ => {
                if self.more > 0
                    && let Some(last) = self.violations.last_mut()
                {
                    last.rule = format!("{} (and {} more)", last.rule, self.more);
                }
                Err(Refusal::BadFields(self.violations))
            }
        }
    }

    /// Reads the fields of a message that is a field itself: `within` is its name, with a dot.
    pub fn within<T>(&mut self, within: &'static str, read: impl FnOnce(&mut Self) -> T) -> T {
        let outer = std::mem::replace(&mut self.within, within);
        let read = read(self);
        self.within = outer;
        read
    }

    /// Notes that a field breaks a rule.
    pub fn wrong(&mut self, field: impl Into<String>, rule: impl Into<String>) {
        if self.violations.len() < VIOLATIONS_TOLD_MAX {
            let field = format!("{}{}", self.within, field.into());
            self.violations.push(Violation { field, rule: rule.into() });
        } else {
            self.more += 1;
        }
    }

    /// A field that parses.
    pub fn parse<T>(&mut self, field: &str, value: &str, parse: impl Fn(&str) -> Result<T, InvalidName>) -> Option<T> {
        if value.is_empty() {
            self.wrong(field, "must be given");
            return None;
        }
        parse(value).map_err(|rule| self.wrong(field, rule.0)).ok()
    }

    /// A field that parses, or is empty and has a default.
    pub fn parse_or<T>(
        &mut self,
        field: &str,
        value: &str,
        parse: impl Fn(&str) -> Result<T, InvalidName>,
        default: impl FnOnce() -> T,
    ) -> Option<T> {
        if value.is_empty() { Some(default()) } else { self.parse(field, value, parse) }
    }

    /// A text that people read and compare, of at most `bytes_max` bytes: without characters that nobody
    /// sees, and in one form.
    pub fn text(&mut self, field: &str, value: String, bytes_max: usize) -> String {
        if !self.has_no_secret(|| field.to_owned(), &value) {
            return value;
        }
        if value.len() > bytes_max {
            self.wrong(field, format!("must be at most {bytes_max} bytes"));
            return value;
        }
        if let Some(rule) = text::broken_rule(&value) {
            self.wrong(field, rule);
        }
        let value = text::normalized(value);
        if value.len() > bytes_max {
            self.wrong(field, format!("must be at most {bytes_max} bytes in normalization form C"));
        }
        value
    }

    /// A text that must not be empty.
    pub fn required_text(&mut self, field: &str, value: String, bytes_max: usize) -> String {
        if value.is_empty() {
            self.wrong(field, "must not be empty");
        }
        self.text(field, value, bytes_max)
    }

    /// A text to be compared with stored ones, of at most `bytes_max` bytes. It need not keep the rules of
    /// [`Fields::text`], because old records do not. `None`: it is empty.
    pub fn sought_text(&mut self, field: &str, value: String, bytes_max: usize) -> Option<SoughtText> {
        let given = self.opaque_text(field, value, bytes_max);
        (!given.is_empty()).then(|| sought(given))
    }

    /// A text that is not kept, and stays as it is: of at most `bytes_max` bytes without control characters.
    pub fn opaque_text(&mut self, field: &str, value: String, bytes_max: usize) -> String {
        self.opaque(field, &value, bytes_max);
        value
    }

    /// The rules of [`Fields::opaque_text`], for a text that is borrowed.
    #[inline]
    pub fn opaque(&mut self, field: &str, value: &str, bytes_max: usize) {
        if !value.is_empty() {
            self.given_opaque(field, value, bytes_max);
        }
    }

    fn given_opaque(&mut self, field: &str, value: &str, bytes_max: usize) {
        if value.len() > bytes_max {
            self.wrong(field, format!("must be at most {bytes_max} bytes"));
        }
        if value.chars().any(char::is_control) {
            self.wrong(field, "must have no control characters");
        }
        self.has_no_secret(|| field.to_owned(), value);
    }

    /// Scopes to grant.
    pub fn scopes(&mut self, field: &str, values: &[String]) -> Vec<Scope> {
        self.list(field, values, SCOPES_MAX, |text| Scope::parse(text).map_err(|rule| rule.0))
    }

    /// Scopes to ask for.
    #[inline]
    pub fn required_scopes(&mut self, field: &str, values: &[&str]) {
        // Nearly all requests; a list of results costs a verdict 2 % of its time.
        let is_sound = |value: &&str| scope::check_required(value).is_ok() && !holds_secret(value);
        if values.len() <= SCOPES_MAX && values.iter().all(is_sound) {
            return;
        }
        self.list(field, values, SCOPES_MAX, |text| scope::check_required(text).map_err(|rule| rule.0));
    }

    /// Audiences of a key.
    pub fn audiences(&mut self, field: &str, values: &[String]) -> Vec<String> {
        self.list(field, values, AUDIENCES_MAX, |text| {
            if !(1..=AUDIENCE_BYTES_MAX).contains(&text.len()) {
                return Err(format!("must be 1 to {AUDIENCE_BYTES_MAX} bytes"));
            }
            text::broken_rule(text).map_or_else(|| Ok(text::normalized(text.to_owned())), Err)
        })
    }

    /// CIDR blocks.
    pub fn cidrs(&mut self, field: &str, values: &[String]) -> Vec<IpNet> {
        self.list(field, values, CIDRS_MAX, |text| parse_cidr(text).map_err(|bad| bad.to_string()))
    }

    /// An address.
    pub fn ip(&mut self, field: &str, value: &str) -> Option<IpAddr> {
        if value.is_empty() {
            return None;
        }
        let ip = parse_address(value);
        if ip.is_none() {
            self.wrong(field, "must be an IPv4 or IPv6 address, perhaps with a port or a zone");
        }
        ip
    }

    /// A key that a reply is to be sealed to. `None`: there is none.
    pub fn public_key(&mut self, field: &str, value: &[u8]) -> Option<PublicKey> {
        if value.is_empty() {
            return None;
        }
        let key = PublicKey::read(value);
        if key.is_none() {
            self.wrong(field, "must be an X25519 public key: 32 bytes, and no point of low order");
        }
        key
    }

    /// Labels of a key.
    pub fn labels(&mut self, field: &str, values: BTreeMap<String, String>) -> BTreeMap<String, String> {
        if !self.label_names(field, &values) {
            return values;
        }
        let one_form = |(name, value)| (name, text::normalized(value));
        let fits = |value: &String| value.len() <= LABEL_VALUE_BYTES_MAX;
        if !values.values().all(fits) {
            self.wrong(field, format!("values must be at most {LABEL_VALUE_BYTES_MAX} bytes"));
            return values;
        }
        if let Some(rule) = values.values().find_map(|value| text::broken_rule(value)) {
            self.wrong(field, format!("values {rule}"));
        }
        values.into_iter().map(one_form).collect()
    }

    /// Labels to be compared with those of keys; see [`Fields::sought_text`].
    pub fn sought_labels(&mut self, field: &str, values: BTreeMap<String, String>) -> BTreeMap<String, SoughtText> {
        if !self.label_names(field, &values) {
            return BTreeMap::new();
        }
        if values.values().any(|v| v.len() > LABEL_VALUE_BYTES_MAX || v.chars().any(char::is_control)) {
            self.wrong(
                field,
                format!("values must be at most {LABEL_VALUE_BYTES_MAX} bytes without control characters"),
            );
            return BTreeMap::new();
        }
        values.into_iter().map(|(name, value)| (name, sought(value))).collect()
    }

    fn label_names(&mut self, field: &str, values: &BTreeMap<String, String>) -> bool {
        self.map_names(field, values, LABELS_MAX, |name| {
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
        })
    }

    /// Annotations.
    pub fn annotations(&mut self, field: &str, values: BTreeMap<String, String>) -> BTreeMap<String, String> {
        self.map_names(field, &values, ANNOTATIONS_MAX, |name| !name.chars().any(char::is_control));
        let fits = |c: char| !c.is_control() || c == '\n' || c == '\t';
        if values.values().any(|v| v.len() > ANNOTATION_VALUE_BYTES_MAX || !v.chars().all(fits)) {
            self.wrong(
                field,
                format!(
                    "values must be at most {ANNOTATION_VALUE_BYTES_MAX} bytes without control characters but line feeds \
                     and tabs"
                ),
            );
        }
        values
    }

    /// A time after 1970, to the millisecond.
    pub fn time(&mut self, field: &str, value: Option<Timestamp>) -> Option<UnixMillis> {
        let value = value?;
        let millis = value.seconds.checked_mul(1_000).and_then(|ms| ms.checked_add(i64::from(value.nanos / 1_000_000)));
        match millis {
            Some(ms @ 1..=TIME_MS_MAX) if (0..1_000_000_000).contains(&value.nanos) => Some(UnixMillis(ms)),
            _ => {
                self.wrong(field, "must be a time after 1970-01-01T00:00:00Z and before the year 10000");
                None
            }
        }
    }

    /// A length of time within bounds, in milliseconds, rounded up; `default` if it is not given.
    pub fn duration_ms(
        &mut self,
        field: &str,
        value: Option<Duration>,
        bounds: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        let Some(Duration { seconds, nanos }) = value else { return default };
        let parts = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok());
        let parts = parts.filter(|(_, nanos)| *nanos < 1_000_000_000);
        let ms = parts
            .and_then(|(seconds, nanos)| seconds.checked_mul(1_000)?.checked_add(u64::from(nanos.div_ceil(1_000_000))));
        ms.filter(|ms| bounds.contains(ms)).unwrap_or_else(|| {
            let [min, max] = [*bounds.start(), *bounds.end()].map(in_words);
            self.wrong(field, format!("must be {min} to {max}"));
            default
        })
    }

    /// The size of a page.
    pub fn page_size(&mut self, field: &str, value: i32) -> usize {
        match usize::try_from(value) {
            Ok(0) => PAGE_SIZE_DEFAULT,
            Ok(size) if size <= PAGE_SIZE_MAX => size,
            _ => {
                self.wrong(field, format!("must be 1 to {PAGE_SIZE_MAX}, or 0 for {PAGE_SIZE_DEFAULT}"));
                0
            }
        }
    }

    /// A list of at most `count_max` values that all parse.
    pub fn list<T, E: Into<String>>(
        &mut self,
        field: &str,
        values: &[impl AsRef<str>],
        count_max: usize,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<T> {
        if values.len() > count_max {
            self.wrong(field, format!("must have at most {count_max} entries"));
            return vec![];
        }
        let parsed = values.iter().map(AsRef::as_ref).enumerate().filter_map(|(at, value)| {
            let entry = || format!("{field}[{at}]");
            if !self.has_no_secret(entry, value) {
                return None;
            }
            parse(value).map_err(|rule| self.wrong(entry(), rule)).ok()
        });
        parsed.collect()
    }

    /// People paste secrets where labels belong. What is written there is kept and shown, so it must not be
    /// one, however it is written.
    fn has_no_secret(&mut self, field: impl Fn() -> String, value: &str) -> bool {
        // A text past every limit is refused for its length.
        let holds_one = value.len() <= TEXT_BYTES_MAX && holds_secret(value);
        if holds_one {
            self.wrong(field(), "must not contain the secret of a key");
        }
        !holds_one
    }

    fn map_names(
        &mut self,
        field: &str,
        values: &BTreeMap<String, String>,
        count_max: usize,
        valid: impl Fn(&str) -> bool,
    ) -> bool {
        if values.len() > count_max {
            self.wrong(field, format!("must have at most {count_max} entries"));
            return false;
        }
        if !values
            .iter()
            .flat_map(|(name, value)| [name, value])
            .all(|text| self.has_no_secret(|| field.to_owned(), text))
        {
            return false;
        }
        if !values.keys().all(|name| (1..=LABEL_NAME_BYTES_MAX).contains(&name.len()) && valid(name)) {
            let rule = "names must be 1 to 63 bytes; of labels: letters, digits, '-', '_', '.' and '/'";
            self.wrong(field, rule);
            return false;
        }
        true
    }
}

/// A length of time for people, in the largest unit that divides it.
fn in_words(ms: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("day", 24 * 60 * 60 * 1_000), ("minute", 60 * 1_000), ("second", 1_000)];
    match UNITS.into_iter().find(|(_, unit)| ms > 0 && ms.is_multiple_of(*unit)) {
        Some((name, unit)) if ms == unit => format!("1 {name}"),
        Some((name, unit)) => format!("{} {name}s", ms / unit),
        None => ms.to_string(),
    }
}

fn sought(given: String) -> SoughtText {
    let stored = text::normalized(given.clone());
    SoughtText::new(given, stored)
}
