//! A tree outside the store that nothing may touch: what a hostile archive or container aims at.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::tree::Tree;

/// A directory with a file, a link and a directory in it, remembered as it was: content, modes, owners, attributes, times.
pub struct Canary {
    dir: TempDir,
    before: Tree,
}

impl Canary {
    pub fn new() -> Canary {
        let dir = tempfile::Builder::new().prefix("tupper-canary-").tempdir().expect("a scratch directory");
        std::fs::create_dir(dir.path().join("etc")).expect("a directory");
        std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0:::\n").expect("a file");
        let file = dir.path().join("etc/passwd");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o640)).expect("chmod");
        std::os::unix::fs::chown(&file, Some(7), Some(8)).expect("chown");
        for path in [&file, &dir.path().join("etc")] {
            rustix::fs::setxattr(path, "user.canary", b"1", rustix::fs::XattrFlags::empty()).expect("an attribute");
        }
        std::os::unix::fs::symlink("etc/passwd", dir.path().join("link")).expect("a link");
        let before = Tree::read(dir.path());
        Canary { dir, before }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path of something that does not exist in it and must not come to be.
    pub fn missing(&self) -> PathBuf {
        self.dir.path().join("etc/escaped")
    }

    /// Fails the test if anything in it changed.
    #[track_caller]
    pub fn assert_untouched(&self) {
        self.before.assert_same(&Tree::read(self.dir.path()));
    }
}
