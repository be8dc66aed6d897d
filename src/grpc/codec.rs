//! Bounds the lists of a request while it is decoded, before memory is allocated for their entries.
//!
//! An empty entry takes two bytes on the wire and up to two hundred in memory, so a message of 1 MiB could
//! take more than 100 MiB. The lists are found by the descriptors of the requests.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::LazyLock;

use bytes::Buf;
use keyward_core::limits::{
    ANNOTATIONS_MAX, AUDIENCES_MAX, BATCH_ITEMS_MAX, CIDRS_MAX, LABELS_MAX, SCOPES_MAX, SELECTOR_KEY_IDS_MAX,
};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message, Name};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use super::pb;
use super::status::{Refusal, status};
use crate::authority::Violation;

/// Entries of a list that [`entries_max`] does not know.
const OTHERS_MAX: usize = 64;

/// A number that no field of a VerifyRequest has.
const UNUSED_NUMBER: u8 = 15;

/// Reads and writes messages as prost does, and bounds the lists of requests.
#[derive(Debug)]
pub struct Bounded<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for Bounded<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E, D> Codec for Bounded<E, D>
where
    E: Message + Send + 'static,
    D: Message + Name + Default + Send + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = ProstEncoder<E>;
    type Decoder = BoundedDecoder<D>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

/// See [`Bounded`].
#[derive(Debug)]
pub struct BoundedDecoder<D>(PhantomData<D>);

impl<D: Message + Name + Default> Decoder for BoundedDecoder<D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let message = from.copy_to_bytes(from.remaining());
        decode(&message).map(Some).map_err(status)
    }
}

/// Reads a message.
///
/// # Errors
/// When it is no such message, or a request with a list that is too long.
pub fn decode<M: Message + Name + Default>(message: &[u8]) -> Result<M, Refusal> {
    let read = match SHAPES.root(M::NAME) {
        None => M::decode(message),
        Some(shape) => {
            let mut walk = Walk { message, shortened: None };
            match walk.pass(shape, &mut Counts::default(), message, 0) {
                Err(Stop::TooMany(violation)) => return Err(Refusal::BadFields(vec![violation])),
                // prost comes to the same end.
                Ok(()) | Err(Stop::Malformed) => M::decode(walk.shortened.as_deref().unwrap_or(message)),
            }
        }
    };
    read.map_err(|_| Refusal::Unreadable("a message is not the protobuf that it should be"))
}

/// How many entries a list of this name may have.
fn entries_max(list: &str) -> usize {
    match list {
        "requests" => BATCH_ITEMS_MAX,
        "key_ids" => SELECTOR_KEY_IDS_MAX,
        "scopes" | "all_scopes" | "any_scopes" => SCOPES_MAX,
        "audiences" => AUDIENCES_MAX,
        "allowed_cidrs" => CIDRS_MAX,
        "labels" => LABELS_MAX,
        "annotations" => ANNOTATIONS_MAX,
        _ => OTHERS_MAX,
    }
}

static SHAPES: LazyLock<Shapes> = LazyLock::new(|| Shapes::of(pb::DESCRIPTORS).unwrap_or_default());

/// The fields of messages that are lists or messages, by the messages' full names.
#[derive(Debug, Default)]
struct Shapes {
    all: BTreeMap<String, Shape>,
    /// Those that calls begin with, without their package.
    requests: BTreeSet<String>,
}

type Shape = BTreeMap<u32, Field>;

#[derive(Debug)]
struct Field {
    name: String,
    /// For a list: how many entries it may have.
    max: Option<usize>,
    /// What becomes of those past it.
    beyond: Beyond,
    /// For a message that is no entry of a map: its full name.
    message: Option<String>,
    /// Whether entries are numbers, of which many may come in one piece.
    is_packed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beyond {
    /// The whole message is refused.
    Refused,
    /// All but one are not read: the service refuses the item that has so many, and no other of its batch or
    /// stream.
    Skipped,
}

impl Shapes {
    fn of(descriptors: &[u8]) -> Result<Self, DecodeError> {
        let mut shapes = Self::default();
        for file in FileDescriptorSet::decode(descriptors)?.file {
            for message in &file.message_type {
                let name = format!("{}.{}", file.package(), message.name());
                shapes.all.insert(name, shape_of(message));
            }
            for method in file.service.iter().flat_map(|service| &service.method) {
                let name = method.input_type().rsplit('.').next().unwrap_or_default();
                shapes.requests.insert(name.to_owned());
            }
        }
        Ok(shapes)
    }

    /// The shape of a request of this name.
    fn root(&self, name: &str) -> Option<&Shape> {
        self.requests.contains(name).then(|| self.all.get(&format!("keyward.v1.{name}"))).flatten()
    }
}

fn shape_of(message: &DescriptorProto) -> Shape {
    let field = |field: &FieldDescriptorProto| {
        let is_list = field.label() == Label::Repeated;
        let name = field.type_name().trim_start_matches('.').to_owned();
        let is_map = message.nested_type.iter().any(|nested| {
            nested.options.as_ref().is_some_and(|options| options.map_entry())
                && name.ends_with(&format!("{}.{}", message.name(), nested.name()))
        });
        let is_message = field.r#type() == Type::Message;
        let beyond = if message.name() == "VerifyRequest" { Beyond::Skipped } else { Beyond::Refused };
        let shape = Field {
            name: field.name().to_owned(),
            max: is_list.then(|| entries_max(field.name())),
            beyond,
            message: (is_message && !is_map).then_some(name),
            is_packed: is_list && !matches!(field.r#type(), Type::Message | Type::String | Type::Bytes),
        };
        (is_list || is_message).then(|| (u32::try_from(field.number()).unwrap_or_default(), shape))
    };
    message.field.iter().filter_map(field).collect()
}

/// How many entries the lists of one message have so far. A message that is given in pieces is one message.
#[derive(Debug, Default)]
struct Counts {
    entries: BTreeMap<u32, usize>,
    messages: BTreeMap<u32, Counts>,
}

enum Stop {
    Malformed,
    TooMany(Violation),
}

impl From<DecodeError> for Stop {
    fn from(_: DecodeError) -> Self {
        Self::Malformed
    }
}

/// One pass over the bytes of a message.
struct Walk<'a> {
    message: &'a [u8],
    /// The message as prost shall read it, if that is not as it came.
    shortened: Option<Vec<u8>>,
}

impl Walk<'_> {
    /// Counts the entries of the lists in `bytes`, which begin at `begin` in the message.
    fn pass(&mut self, shape: &Shape, counts: &mut Counts, bytes: &[u8], begin: usize) -> Result<(), Stop> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let tag_at = begin + bytes.len() - rest.len();
            let (number, wire_type) = decode_key(&mut rest)?;
            let before = rest;
            skip_field(wire_type, number, &mut rest, DecodeContext::default())?;
            let Some(field) = shape.get(&number) else { continue };
            let mut inside = &before[..before.len() - rest.len()];
            if wire_type == WireType::LengthDelimited {
                decode_varint(&mut inside)?;
            }
            let begin = begin + bytes.len() - rest.len() - inside.len();
            if let Some(max) = field.max {
                let count = counts.entries.entry(number).or_default();
                let is_run = field.is_packed && wire_type == WireType::LengthDelimited;
                *count += if is_run { inside.iter().filter(|byte| **byte < 0x80).count() } else { 1 };
                match field.beyond {
                    Beyond::Refused if *count > max => {
                        let rule = format!("must have at most {max} entries");
                        return Err(Stop::TooMany(Violation { field: field.name.clone(), rule }));
                    }
                    Beyond::Skipped if *count > max + 1 => self.skip(tag_at),
                    _ => {}
                }
            }
            if let Some(shape) = field.message.as_ref().and_then(|name| SHAPES.all.get(name)) {
                let (mut of_its_own, at) = (Counts::default(), counts.entries.get(&number).map(|count| count - 1));
                let counts = match at {
                    Some(_) => &mut of_its_own,
                    None => counts.messages.entry(number).or_default(),
                };
                self.pass(shape, counts, inside, begin).map_err(|stop| stop.within(&field.name, at))?;
            }
        }
        Ok(())
    }

    /// Gives the field at a place a number that nothing reads, so that no memory is taken for it.
    fn skip(&mut self, tag_at: usize) {
        let message = self.shortened.get_or_insert_with(|| self.message.to_vec());
        if let Some(tag) = message.get_mut(tag_at) {
            // What stays is its kind, and whether more bytes of it come. Numbers up to 15 have no more that
            // count.
            *tag = *tag & 0x87 | UNUSED_NUMBER << 3;
        }
    }
}

impl Stop {
    /// Names a field from further out.
    fn within(self, name: &str, at: Option<usize>) -> Self {
        match self {
            Self::Malformed => Self::Malformed,
            Self::TooMany(Violation { field, rule }) => {
                let at = at.map(|at| format!("[{at}]")).unwrap_or_default();
                Self::TooMany(Violation { field: format!("{name}{at}.{field}"), rule })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(count: usize) -> Vec<String> {
        vec![String::new(); count]
    }

    fn refused<M: Message + Name + Default>(message: &[u8]) -> Violation {
        let Err(Refusal::BadFields(violations)) = decode::<M>(message) else { panic!("it is refused") };
        violations[0].clone()
    }

    /// Of a list or a message that the walk does not know, it would not see what is in it.
    #[test]
    fn the_walk_knows_every_list_of_every_request() {
        let mut names: BTreeSet<String> = SHAPES.requests.iter().map(|name| format!("keyward.v1.{name}")).collect();
        let mut known = BTreeSet::new();
        let mut lists = 0;
        while let Some(name) = names.pop_first() {
            let shape = SHAPES.all.get(&name).unwrap_or_else(|| panic!("{name}"));
            lists += shape.values().filter(|field| field.max.is_some()).count();
            known.insert(name);
            names.extend(shape.values().filter_map(|field| field.message.clone()).filter(|name| !known.contains(name)));
        }
        assert!(known.contains("google.protobuf.FieldMask") && known.contains("keyward.v1.Key"), "{known:?}");
        assert_eq!(lists, 18, "those of CreateKey, Key, KeySelector, FieldMask, VerifyRequest and BatchVerify");
        let verify = FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap().file;
        let verify = verify.iter().flat_map(|file| &file.message_type).find(|m| m.name() == "VerifyRequest").unwrap();
        assert!(verify.field.iter().all(|field| field.number() < i32::from(UNUSED_NUMBER)), "the number is unused");
    }

    #[test]
    fn what_is_within_the_bounds_is_read_as_prost_reads_it() {
        let request = pb::VerifyRequest { all_scopes: texts(SCOPES_MAX), any_scopes: texts(3), ..Default::default() };
        let batch = pb::BatchVerifyRequest { requests: vec![request; BATCH_ITEMS_MAX] };
        assert!(decode::<pb::BatchVerifyRequest>(&batch.encode_to_vec()).unwrap() == batch);
        let selector = pb::KeySelector { states: vec![300; OTHERS_MAX], ..Default::default() };
        let list = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
        assert_eq!(decode::<pb::ListKeysRequest>(&list.encode_to_vec()).unwrap(), list);
        assert!(matches!(decode::<pb::ListKeysRequest>(&[0x0a, 5, 1]), Err(Refusal::Unreadable(_))));
    }

    #[test]
    fn a_list_that_is_too_long_is_named() {
        let items = pb::BatchVerifyRequest { requests: vec![Default::default(); BATCH_ITEMS_MAX + 1] };
        assert_eq!(refused::<pb::BatchVerifyRequest>(&items.encode_to_vec()).field, "requests");
        let key = pb::Key { audiences: texts(AUDIENCES_MAX + 1), ..Default::default() };
        let update = pb::UpdateKeyRequest { key: Some(key), ..Default::default() };
        let told = refused::<pb::UpdateKeyRequest>(&update.encode_to_vec());
        assert_eq!((&*told.field, &*told.rule), ("key.audiences", "must have at most 32 entries"));
        let selector = pb::KeySelector { states: vec![1; OTHERS_MAX + 1], ..Default::default() };
        let list = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
        assert_eq!(refused::<pb::ListKeysRequest>(&list.encode_to_vec()).field, "selector.states");
    }

    /// protobuf merges the pieces of a message, and so their lists.
    #[test]
    fn a_message_in_pieces_has_one_list() {
        let key = pb::Key { scopes: texts(1), ..Default::default() };
        let piece = pb::UpdateKeyRequest { key: Some(key), ..Default::default() }.encode_to_vec();
        assert!(decode::<pb::UpdateKeyRequest>(&piece.repeat(SCOPES_MAX)).is_ok());
        assert_eq!(refused::<pb::UpdateKeyRequest>(&piece.repeat(SCOPES_MAX + 1)).field, "key.scopes");
    }

    #[test]
    fn of_an_item_with_too_many_scopes_one_too_many_is_read() {
        let many = pb::VerifyRequest { all_scopes: texts(10_000), audience: "a".into(), ..Default::default() };
        let good = pb::VerifyRequest { any_scopes: texts(2), ..Default::default() };
        let batch = pb::BatchVerifyRequest { requests: vec![many, good.clone()] }.encode_to_vec();
        let read = decode::<pb::BatchVerifyRequest>(&batch).unwrap().requests;
        assert_eq!((read[0].all_scopes.len(), &*read[0].audience), (SCOPES_MAX + 1, "a"));
        assert!(read[1] == good);
        // A tag may be longer than it need be; and what is no message is none however much was left out.
        let padded = [0xfa_u8 & 0x80 | 0x1a, 0, 0].repeat(SCOPES_MAX + 5);
        assert_eq!(decode::<pb::VerifyRequest>(&padded).unwrap().all_scopes.len(), SCOPES_MAX + 1);
        assert!(matches!(decode::<pb::VerifyRequest>(&[&*padded, &[0x1a, 9]].concat()), Err(Refusal::Unreadable(_))));
    }
}
