//! Generates the wire code with a protobuf compiler in Rust, so that building needs no `protoc`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;

/// Messages that carry a secret do not derive Debug; src/grpc/pb.rs gives them one that leaves it out.
const SECRET_MESSAGES: [&str; 3] =
    ["keyward.v1.VerifyRequest", "keyward.v1.CreateKeyResponse", "keyward.v1.RotateKeyResponse"];

/// Files of protobuf's own. Reflection shows them, because the services' files may import them.
const WELL_KNOWN: [&str; 11] = [
    "google/protobuf/any.proto",
    "google/protobuf/api.proto",
    "google/protobuf/descriptor.proto",
    "google/protobuf/duration.proto",
    "google/protobuf/empty.proto",
    "google/protobuf/field_mask.proto",
    "google/protobuf/source_context.proto",
    "google/protobuf/struct.proto",
    "google/protobuf/timestamp.proto",
    "google/protobuf/type.proto",
    "google/protobuf/wrappers.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let service = compile(&["keyward/v1/admin.proto", "keyward/v1/audit.proto", "keyward/v1/verify.proto"])?;
    fs::write(out.join("keyward_v1.bin"), service.encode_to_vec())?;
    let builder = tonic_prost_build::configure().btree_map(".").skip_debug(SECRET_MESSAGES);
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    builder.codec_path("crate::grpc::codec::Bounded").compile_fds_with_config(service, config)?;

    let health = compile(&["grpc/health/v1/health.proto"])?;
    fs::write(out.join("grpc_health_v1.bin"), health.encode_to_vec())?;
    tonic_prost_build::configure().btree_map(".").compile_fds(health)?;
    fs::write(out.join("well_known.bin"), compile(&WELL_KNOWN)?.encode_to_vec())?;

    let storage = compile(&["keyward/storage/v1/storage.proto"])?;
    tonic_prost_build::configure().build_client(false).build_server(false).btree_map(".").compile_fds(storage)?;
    Ok(())
}

/// Compiles files with their imports and their comments, which reflection shows.
fn compile(files: &[&str]) -> Result<prost_types::FileDescriptorSet, Box<dyn Error>> {
    let mut compiler = protox::Compiler::new([Path::new("proto")])?;
    compiler.include_source_info(true).include_imports(true).open_files(files)?;
    Ok(compiler.file_descriptor_set())
}
