//! See the map in `src/lib.rs`.
