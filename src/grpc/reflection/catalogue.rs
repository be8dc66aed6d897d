//! What reflection can be asked for: files of descriptors, by their names and by what they define.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use prost::{DecodeError, Message};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};

/// A FileDescriptorSet whose files stay as they are encoded: decoding them drops the options that prost does
/// not know.
#[derive(Clone, PartialEq, Message)]
struct FileSet {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file: Vec<Bytes>,
}

/// All that is known.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    files: HashMap<String, Bytes>,
    /// By full name: what defines it.
    symbols: HashMap<String, Bytes>,
    messages: BTreeSet<String>,
    /// By the full name of the extended message and the number.
    extensions: BTreeMap<(String, i32), Bytes>,
    services: BTreeSet<String>,
}

impl Catalogue {
    /// Of these encoded FileDescriptorSets, without the files of services that are not served. The first of
    /// several files of one name counts.
    pub(super) fn of(sets: &[&[u8]], is_served: impl Fn(&str) -> bool) -> Result<Self, DecodeError> {
        let mut known = Self::default();
        for set in sets {
            for encoded in FileSet::decode(*set)?.file {
                known.add(encoded, &is_served)?;
            }
        }
        Ok(known)
    }

    pub(super) fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(AsRef::as_ref)
    }

    pub(super) fn file_of_symbol(&self, name: &str) -> Option<&[u8]> {
        self.symbols.get(name).map(AsRef::as_ref)
    }

    pub(super) fn file_of_extension(&self, message: &str, number: i32) -> Option<&[u8]> {
        self.extensions.get(&(message.to_owned(), number)).map(AsRef::as_ref)
    }

    /// The numbers of the extensions of a message. `None`: there is no such message.
    pub(super) fn extensions_of(&self, message: &str) -> Option<impl Iterator<Item = i32>> {
        let (first, last) = ((message.to_owned(), i32::MIN), (message.to_owned(), i32::MAX));
        self.messages.contains(message).then(|| self.extensions.range(first..=last).map(|((_, number), _)| *number))
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(String::as_str)
    }

    fn add(&mut self, encoded: Bytes, is_served: impl Fn(&str) -> bool) -> Result<(), DecodeError> {
        let file = FileDescriptorProto::decode(&*encoded)?;
        let is_left_out = |name: &str| !is_served(&format!("{}.{name}", file.package()));
        if self.files.contains_key(file.name()) || file.service.iter().any(|service| is_left_out(service.name())) {
            return Ok(());
        }
        self.files.insert(file.name().to_owned(), encoded.clone());
        let mut adding = Adding { known: self, encoded };
        let scope = file.package();
        file.message_type.iter().for_each(|message| adding.message(scope, message));
        file.enum_type.iter().for_each(|enumeration| adding.enumeration(scope, enumeration));
        file.extension.iter().for_each(|extension| adding.extension(scope, extension));
        for service in &file.service {
            let name = adding.symbol(scope, service.name());
            service.method.iter().for_each(|method| drop(adding.symbol(&name, method.name())));
            adding.known.services.insert(name);
        }
        Ok(())
    }
}

/// A file that is being added.
struct Adding<'a> {
    known: &'a mut Catalogue,
    encoded: Bytes,
}

impl Adding<'_> {
    /// Adds a symbol and gives its full name.
    fn symbol(&mut self, scope: &str, name: &str) -> String {
        let name = if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") };
        self.known.symbols.insert(name.clone(), self.encoded.clone());
        name
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto) {
        let name = self.symbol(scope, message.name());
        message.field.iter().for_each(|field| drop(self.symbol(&name, field.name())));
        message.oneof_decl.iter().for_each(|oneof| drop(self.symbol(&name, oneof.name())));
        message.nested_type.iter().for_each(|nested| self.message(&name, nested));
        message.enum_type.iter().for_each(|enumeration| self.enumeration(&name, enumeration));
        message.extension.iter().for_each(|extension| self.extension(&name, extension));
        self.known.messages.insert(name);
    }

    /// The values of an enum are named beside it, not in it.
    fn enumeration(&mut self, scope: &str, enumeration: &EnumDescriptorProto) {
        self.symbol(scope, enumeration.name());
        enumeration.value.iter().for_each(|value| drop(self.symbol(scope, value.name())));
    }

    fn extension(&mut self, scope: &str, extension: &FieldDescriptorProto) {
        self.symbol(scope, extension.name());
        let extended = extension.extendee().trim_start_matches('.').to_owned();
        self.known.extensions.insert((extended, extension.number()), self.encoded.clone());
    }
}

#[cfg(test)]
mod tests {
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn an_extension_is_found_by_what_it_extends() {
        let extension = |name: &str, number| FieldDescriptorProto {
            name: Some(name.into()),
            number: Some(number),
            extendee: Some(".a.Extended".into()),
            ..Default::default()
        };
        let message =
            |name: &str, extension| DescriptorProto { name: Some(name.into()), extension, ..Default::default() };
        let file = FileDescriptorProto {
            name: Some("a.proto".into()),
            package: Some("a".into()),
            message_type: vec![message("Extended", vec![]), message("Outer", vec![extension("inner", 1_001)])],
            extension: vec![extension("outer", 1_000)],
            ..Default::default()
        };
        let known = Catalogue::of(&[&FileDescriptorSet { file: vec![file] }.encode_to_vec()], |_| true).unwrap();
        let file = known.file("a.proto");
        assert!(file.is_some());
        assert_eq!(known.extensions_of("a.Extended").unwrap().collect::<Vec<_>>(), [1_000, 1_001]);
        assert_eq!(known.extensions_of("a.Outer").unwrap().count(), 0);
        assert!(known.extensions_of("a.outer").is_none(), "it is no message");
        assert_eq!(known.file_of_extension("a.Extended", 1_001), file);
        assert_eq!(known.file_of_extension("a.Extended", 1_002), None);
        assert_eq!(known.file_of_symbol("a.Outer.inner"), file);
    }
}
