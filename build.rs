//! Compiles the protos with protox, without protoc: Rust code for messages, services and clients, and the descriptor
//! set for reflection. The set keeps the comments, which `grpcurl describe` shows.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const SERVICES: [&str; 4] = ["integration", "customer", "payment", "event"];

/// Requests that contain a secret. `src/grpc/proto.rs` implements their `Debug` without it (P9).
const SECRET: [&str; 2] = [".paybridge.v1.CreateIntegrationRequest", ".paybridge.v1.RotateIntegrationKeyRequest"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true);
    for service in SERVICES {
        compiler.open_file(format!("proto/paybridge/v1/{service}_service.proto"))?;
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out_dir.join("paybridge.v1.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().skip_debug(SECRET).compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
