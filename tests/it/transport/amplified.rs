//! What a message takes in memory is a small multiple of its bytes, whatever lists it has.
//!
//! The server is a process of its own, and the most that it ever had in memory is read from the kernel.

use std::fs;
use std::marker::PhantomData;

use bytes::{Buf, BufMut};
use keyward::grpc::{BATCH_REQUEST_BYTES_MAX, STREAM_MESSAGE_BYTES_MAX, pb};
use keyward_core::limits::{BATCH_ITEMS_MAX, SCOPES_MAX};
use prost::Message;
use prost::encoding::encode_varint;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use crate::support::harness::endpoint;
use crate::support::program::{Program, admin_of};

/// What a message of the longest kind may take: itself as it comes, whole, and as it is read, and what the
/// allocator takes at a time.
const GROWTH_MAX: u64 = 16 * BATCH_REQUEST_BYTES_MAX as u64;

/// Messages that are sent as they are.
struct Raw(PhantomData<()>);

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(PhantomData)
    }

    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        from.advance(from.remaining());
        Ok(Some(()))
    }
}

/// The services' files, in which messages are found by their full names.
struct Files(FileDescriptorSet);

impl Files {
    fn message(&self, name: &str) -> &DescriptorProto {
        let name = name.trim_start_matches('.');
        let found = self.0.file.iter().find_map(|file| {
            let name = name.strip_prefix(file.package())?.strip_prefix('.')?;
            file.message_type.iter().find(|message| message.name() == name)
        });
        found.unwrap_or_else(|| panic!("{name}"))
    }

    /// For each list in a message, or in those that are in it: its name, and the message filled with its
    /// entries.
    fn filled(&self, message: &DescriptorProto, bytes: usize) -> Vec<(String, Vec<u8>)> {
        let mut all = vec![];
        for field in &message.field {
            let (name, number) = (field.name().to_owned(), field.number() as u32);
            let nested = message.nested_type.iter().find(|nested| field.type_name().ends_with(nested.name()));
            if field.label() == Label::Repeated {
                all.push((name.clone(), full_list(field, nested.is_some(), bytes)));
            }
            if field.r#type() == Type::Message && nested.is_none() {
                for (inner, filled) in self.filled(self.message(field.type_name()), bytes - 8) {
                    all.push((format!("{name}.{inner}"), delimited(number, &filled)));
                }
            }
        }
        all
    }
}

fn delimited(number: u32, inside: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    encode_varint(u64::from(number << 3 | 2), &mut bytes);
    encode_varint(inside.len() as u64, &mut bytes);
    bytes.extend_from_slice(inside);
    bytes
}

/// As many of the smallest entries as there is room for.
fn full_list(field: &FieldDescriptorProto, is_map: bool, bytes: usize) -> Vec<u8> {
    let number = field.number() as u32;
    if field.r#type() == Type::Enum {
        return delimited(number, &vec![1; bytes - 8]);
    }
    let mut list = vec![];
    for at in 0_u32.. {
        let name = format!("{at:x}");
        let entry = if is_map { delimited(1, name.as_bytes()) } else { vec![] };
        let entry = delimited(number, &entry);
        if list.len() + entry.len() > bytes {
            break;
        }
        list.extend(entry);
    }
    list
}

/// A number of KiB in what the kernel says of a process.
pub(super) fn kibibytes(program: &Program, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let found = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
    found.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// How much more memory than before a call takes at its height, and what it is answered.
async fn growth(program: &Program, admin: &str, path: &str, message: Vec<u8>) -> (u64, Result<(), Status>) {
    let channel = endpoint(&program.addr).connect().await.unwrap();
    // The height is from now on.
    fs::write(format!("/proc/{}/clear_refs", program.pid()), "5").unwrap();
    let before = kibibytes(program, "VmRSS");
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {admin}").parse().unwrap());
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let answered = grpc.unary(request, path.parse().unwrap(), Raw(PhantomData)).await.map(drop);
    (kibibytes(program, "VmHWM").saturating_sub(before) * 1_024, answered)
}

#[tokio::test]
async fn a_message_full_of_empty_entries_takes_a_small_multiple_of_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &[]);
    let admin = admin_of(&dir);
    let files = Files(FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap());
    // Not counted: what the first message of this length has the server make once.
    let first = [0x0a, 0].repeat(BATCH_REQUEST_BYTES_MAX / 2 - 64);
    growth(&program, &admin, "/keyward.v1.KeyVerify/BatchVerify", first).await.1.unwrap_err();
    let mut seen = vec![];
    for file in &files.0.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let bytes_max =
                    if method.client_streaming() { STREAM_MESSAGE_BYTES_MAX } else { BATCH_REQUEST_BYTES_MAX };
                for (list, message) in files.filled(files.message(method.input_type()), bytes_max - 64) {
                    assert!(message.len() > bytes_max * 9 / 10, "{path} {list}");
                    let (growth, answered) = growth(&program, &admin, &path, message).await;
                    assert!(growth < GROWTH_MAX, "{path} {list}: {growth} bytes, {answered:?}");
                    let code = answered.err().map_or(Code::Ok, |status| status.code());
                    // The item of a batch or a stream is refused alone.
                    let is_item = list.ends_with("_scopes") && !path.ends_with("/Verify");
                    assert_eq!(code, if is_item { Code::Ok } else { Code::InvalidArgument }, "{path} {list}");
                    seen.push((path.clone(), list));
                }
            }
        }
    }
    assert_eq!(seen.len(), 23, "{seen:?}");
}

#[tokio::test]
async fn the_largest_batch_that_is_within_the_bounds_does_so_too() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &[]);
    let scopes = vec!["a".to_owned(); SCOPES_MAX];
    let item =
        pb::VerifyRequest { all_scopes: scopes.clone(), any_scopes: scopes, explain: true, ..Default::default() };
    let batch = pb::BatchVerifyRequest { requests: vec![item; BATCH_ITEMS_MAX] }.encode_to_vec();
    let path = "/keyward.v1.KeyVerify/BatchVerify";
    let (growth, answered) = growth(&program, &admin_of(&dir), path, batch).await;
    answered.unwrap();
    assert!(growth < 2 * GROWTH_MAX, "{growth} bytes");
}
