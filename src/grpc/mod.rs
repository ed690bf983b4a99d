//! Door 1: the gRPC API. See the map in `src/lib.rs`.

pub mod proto;
