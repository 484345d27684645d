//! stub
#![allow(missing_docs)]
pub mod spec;
use crate::{error::Result, rootfs::Rootfs};
pub use spec::*;
pub struct Plan;
pub struct Step;
pub struct Facts;
pub struct Running;
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Code(u8),
    Signal(i32),
}
pub struct Exit {
    pub status: Status,
    pub oom_killed: bool,
}
impl Facts {
    pub fn gather(_: &Spec, _: &Rootfs, _: &str) -> Result<Facts> {
        todo!()
    }
}
pub fn plan(_: &Spec, _: &Facts) -> Result<Plan> {
    todo!()
}
impl Plan {
    pub fn steps(&self) -> &[Step] {
        todo!()
    }
}
impl Step {
    pub fn words(&self) -> String {
        todo!()
    }
    pub fn command(&self) -> String {
        todo!()
    }
}
pub fn start(_: &Plan, _: Rootfs, _: &dyn Fn(&Step)) -> Result<Running> {
    todo!()
}
impl Running {
    pub fn pid(&self) -> i32 {
        0
    }
    pub fn supervise(self) -> Result<Exit> {
        todo!()
    }
}
