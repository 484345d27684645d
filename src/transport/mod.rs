//! stub
#![allow(missing_docs)]
use crate::error::Result;
#[derive(Debug)]
pub enum Source { Stdin, File(std::path::PathBuf), Directory(std::path::PathBuf) }
pub struct Bytes { pub reader: Box<dyn std::io::Read + Send>, pub length: Option<u64> }
impl Source { pub fn open(&self) -> Result<Bytes> { todo!() }  pub fn locate(_: &str) -> Result<Source> { todo!() } }
impl std::fmt::Display for Source { fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { todo!() } }
