//! stub
#![allow(missing_docs)]
use crate::error::Result;
#[derive(Debug, Default)]
pub struct Limits;
pub struct Unpacked {
    pub diff_id: crate::name::Digest,
    pub entries: u64,
    pub bytes: u64,
}
pub fn unpack(mut r: Box<dyn std::io::Read + Send>, d: std::os::fd::BorrowedFd<'_>, _: &Limits) -> Result<Unpacked> {
    use std::os::fd::AsRawFd;
    let mut c = std::process::Command::new("tar")
        .arg("-C")
        .arg(format!("/proc/{}/fd/{}", std::process::id(), d.as_raw_fd()))
        .arg("-xf")
        .arg("-")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::copy(&mut r, c.stdin.as_mut().unwrap()).unwrap();
    drop(c.stdin.take());
    c.wait().unwrap();
    Ok(Unpacked { diff_id: crate::name::Digest::from_bytes([9; 32]), entries: 1, bytes: 77777777 })
}
pub fn pack(_: &std::path::Path) -> Result<std::fs::File> {
    todo!()
}
