//! stub
#![allow(missing_docs)]
use crate::error::Result;
#[derive(Debug)]
pub enum Source {
    Stdin,
    File(std::path::PathBuf),
    Directory(std::path::PathBuf),
}
pub struct Bytes {
    pub reader: Box<dyn std::io::Read + Send>,
    pub length: Option<u64>,
}
impl Source {
    pub fn open(&self) -> Result<Bytes> {
        match self {
            Source::File(p) => Ok(Bytes { reader: Box::new(std::fs::File::open(p)?), length: None }),
            _ => todo!(),
        }
    }
    pub fn locate(s: &str) -> Result<Source> {
        Ok(Source::File(s.into()))
    }
}
impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}
