//! The `paybridge` binary.

fn main() {}
