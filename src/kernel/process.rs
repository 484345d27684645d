//! stub
use crate::error::Result;
pub(crate) fn require_single_thread() -> Result<()> {
    Ok(())
}
pub(crate) fn kill(_pid: i32) -> Result<()> {
    Ok(())
}
