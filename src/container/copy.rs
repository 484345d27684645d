//! `cp`: files between a container and the host, another container, or an archive (podman-cp(1)).
//!
//! A container's files are those of its snapshot and its volumes, whether it runs or not: they are reached by descriptor
//! from there, never through its processes, and links in them lead nowhere else (CVE-2018-15664, CVE-2019-14271). Nothing of
//! it is executed or loaded. What travels is an archive, packed and unpacked by threads that have no root but the directory
//! at their end.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Container, State};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::resolve::{self, Spot};
use crate::kernel::{fs, node};
use crate::layer::{self, Among, Limits, Packed, Piece};
use crate::rootfs::Rootfs;
use crate::sandbox;
use crate::store::{Shelf, Store};

/// What is always in memory while a container runs.
const MEMORY: [&str; 3] = ["/proc", "/sys", "/dev"];

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A path of the host.
    Host(PathBuf),
    /// A path in a container.
    Container {
        /// Its name or id.
        container: String,
        /// The path, as if its root were `/`.
        path: PathBuf,
    },
}

/// How files are copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct Copying {
    /// They stay whose they are; else they are the container's user's, or on the host root's.
    pub keep_owners: bool,
    /// A directory may take the place of something else, and something else that of a directory.
    pub overwrite: bool,
}

/// Copies what is at one end to the other, by the rules of cp(1): into a directory that is there, or to a new name; a
/// source that ends in `/.` is what is in the directory.
pub fn copy(store: &Store, from: &End, to: &End, copying: &Copying) -> Result<()> {
    let doing = || format!("copy {from} to {to}");
    let source = Source::find(store, from).context(doing)?;
    let goal = Goal::find(store, to).context(doing)?;
    let (into, called) = goal.for_source(&source).context(doing)?;
    let archive = source.pack(called).context(doing)?;
    goal.unpack(into, Box::new(archive), copying).context(doing)
}

/// Writes what is at `from` as an archive.
pub fn copy_out(store: &Store, from: &End, out: &mut dyn Write) -> Result<()> {
    let doing = || format!("copy {from} to an archive");
    let source = Source::find(store, from).context(doing)?;
    let called = if source.contents { Vec::new() } else { source.name().to_vec() };
    let mut archive = source.pack(called).context(doing)?;
    std::io::copy(&mut archive, out).and_then(|_| out.flush()).context(doing)
}

/// Unpacks an archive into the directory at `to`.
pub fn copy_in(store: &Store, archive: Box<dyn Read + Send>, to: &End, copying: &Copying) -> Result<()> {
    let doing = || format!("copy an archive to {to}");
    let goal = Goal::find(store, to).context(doing)?;
    let into = goal.directory().context(doing)?.ok_or_else(|| Error::new(Kind::NotFound, "no such directory"));
    goal.unpack(into.context(doing)?, archive, copying).context(doing)
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Host(path) => write!(f, "{}", path.display()),
            End::Container { container, path } => write!(f, "{container}:{}", path.display()),
        }
    }
}

/// What is copied.
struct Source {
    spot: Spot,
    directory: bool,
    /// Only what is in the directory.
    contents: bool,
}

impl Source {
    fn find(store: &Store, end: &End) -> Result<Source> {
        let (spot, path) = match end {
            End::Host(path) => (host_spot(path)?, path),
            End::Container { container, path } => (Files::of(store, container)?.look_up(path)?, path),
        };
        let missing = || Error::new(Kind::NotFound, format!("{}: no such file or directory", spot.path.display()));
        let directory = is_directory(spot.found.as_ref().ok_or_else(missing)?)?;
        let text = path.as_os_str().as_bytes();
        let contents = text == b"." || text.ends_with(b"/.") || spot.path == Path::new("/");
        if !directory && (contents || text.ends_with(b"/")) {
            return Err(Error::new(Kind::Invalid, format!("{}: no directory", spot.path.display())));
        }
        if !directory && spot.name.is_none() {
            let message = format!("{}: a file that is mounted there", spot.path.display());
            return Err(Error::new(Kind::Unsupported, message).with_hint("copy the file of the host"));
        }
        Ok(Source { spot, directory, contents })
    }

    fn name(&self) -> &[u8] {
        self.spot.path.file_name().unwrap_or_default().as_bytes()
    }

    /// As an archive in which it is `called` so.
    fn pack(self, called: Vec<u8>) -> Result<Packed> {
        let Spot { parent, name, found, .. } = self.spot;
        layer::pack_piece(match (self.directory, found) {
            (true, Some(directory)) => Piece { directory, name: None, called },
            _ => Piece { directory: parent, name, called },
        })
    }
}

/// Where it is copied to.
struct Goal {
    spot: Spot,
    /// It has to be a directory.
    slash: bool,
    /// Whose it becomes, unless its owners are kept.
    owner: (u32, u32),
    /// It is the host's, where root is root.
    host: bool,
}

impl Goal {
    fn find(store: &Store, end: &End) -> Result<Goal> {
        let slash = |path: &Path| path.as_os_str().as_bytes().ends_with(b"/") || path.ends_with(".");
        match end {
            End::Host(path) => Ok(Goal { spot: host_spot(path)?, slash: slash(path), owner: (0, 0), host: true }),
            End::Container { container, path } => {
                let files = Files::of(store, container)?;
                let spot = files.look_up(path)?;
                files.require_writable(&spot.path)?;
                Ok(Goal { spot, slash: slash(path), owner: files.owner()?, host: false })
            }
        }
    }

    /// It, if it is a directory.
    fn directory(&self) -> Result<Option<OwnedFd>> {
        match &self.spot.found {
            Some(found) if is_directory(found)? => Ok(Some(fs::duplicate(found.as_fd())?)),
            _ => Ok(None),
        }
    }

    /// The directory that it comes to lie in, and what it is called there; nothing where it is the contents of one.
    fn for_source(&self, source: &Source) -> Result<(OwnedFd, Vec<u8>)> {
        let shown = self.spot.path.display();
        if let Some(directory) = self.directory()? {
            return Ok((directory, if source.contents { Vec::new() } else { source.name().to_vec() }));
        }
        let called = self.spot.name.as_deref().map(|name| OsStr::as_bytes(name).to_vec());
        match (&self.spot.found, called) {
            (Some(_), _) if source.directory => {
                Err(Error::new(Kind::Invalid, format!("{shown}: no directory, and what is copied is one")))
            }
            (Some(_), _) if self.slash => Err(Error::new(Kind::Invalid, format!("{shown}: no directory"))),
            (None, _) if self.slash && !source.directory => {
                Err(Error::new(Kind::NotFound, format!("{shown}: no such directory")))
            }
            (Some(_), None) => Err(Error::new(Kind::Unsupported, format!("{shown}: a file that is mounted there"))),
            (_, Some(called)) => Ok((fs::duplicate(self.spot.parent.as_fd())?, called)),
            (None, None) => Err(Error::new(Kind::NotFound, format!("{shown}: no such directory"))),
        }
    }

    fn unpack(&self, into: OwnedFd, archive: Box<dyn Read + Send>, copying: &Copying) -> Result<()> {
        let among = Among {
            owner: (!copying.keep_owners).then_some(self.owner),
            overwrite: copying.overwrite,
            harmless: self.host,
        };
        layer::unpack_among(archive, into.as_fd(), &Limits::default(), &among).map(drop)
    }
}

fn host_spot(path: &Path) -> Result<Spot> {
    let path = std::path::absolute(path).context(|| format!("find {}", path.display()))?;
    let root = fs::open_directory_follow(Path::new("/"))?;
    resolve::look_up(root.as_fd(), &path, true, |_| Ok(None))
}

fn is_directory(found: &OwnedFd) -> Result<bool> {
    Ok(node::is_directory(&fs::metadata(found.as_fd())?))
}

/// A container's files, as it has them.
struct Files {
    container: Container,
    root: OwnedFd,
    root_path: PathBuf,
    mounts: Vec<Mount>,
}

/// What a container has at a place of its own.
struct Mount {
    /// Where, without links.
    at: PathBuf,
    /// What; nothing where it is in the memory of the running container.
    what: Option<OwnedFd>,
    read_only: bool,
}

impl Files {
    fn of(store: &Store, text: &str) -> Result<Files> {
        let container = super::find(store, text)?;
        let dir = store.open_object(Shelf::Containers, &container.id)?;
        let root = fs::open_directory(dir.as_fd(), "rootfs")?;
        let root_path = store.rootfs_path(Shelf::Containers, &container.id);
        let mut files = Files { container, root, root_path, mounts: Vec::new() };
        files.mounts = files.find_mounts()?;
        Ok(files)
    }

    fn find_mounts(&self) -> Result<Vec<Mount>> {
        let spec = &self.container.spec;
        let mut mounts = Vec::new();
        for volume in &spec.volumes {
            let what = resolve::open_place(&volume.source).context(|| format!("volume {}", volume.source.display()))?;
            mounts.extend(self.mount(&volume.destination, Some(what), volume.read_only)?);
        }
        if matches!(self.container.state, State::Running(_)) {
            let places = spec.tmpfs.iter().map(|tmpfs| tmpfs.destination.as_path()).chain(MEMORY.map(Path::new));
            for place in places {
                mounts.extend(self.mount(place, None, false)?);
            }
        }
        Ok(mounts)
    }

    /// A place that is not there, or behind what is no directory, nobody can come by.
    fn mount(&self, at: &Path, what: Option<OwnedFd>, read_only: bool) -> Result<Option<Mount>> {
        match resolve::look_up(self.root.as_fd(), at, true, |_| Ok(None)) {
            Ok(spot) => Ok(Some(Mount { at: spot.path, what, read_only })),
            Err(e) if e.kind() == Kind::NotFound || fs::is_other_now(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn look_up(&self, path: &Path) -> Result<Spot> {
        resolve::look_up(self.root.as_fd(), path, true, |path| {
            let Some(mount) = self.mounts.iter().rev().find(|mount| mount.at == path) else { return Ok(None) };
            match &mount.what {
                Some(what) => fs::duplicate(what.as_fd()).map(Some),
                None => {
                    let message = format!("{}: in the memory of the running container", path.display());
                    let error = Error::new(Kind::Unsupported, message);
                    Err(error.with_hint("`tupper exec CONTAINER tar …` gets at it"))
                }
            }
        })
    }

    fn require_writable(&self, path: &Path) -> Result<()> {
        let on = self
            .mounts
            .iter()
            .filter(|mount| path.starts_with(&mount.at))
            .max_by_key(|mount| mount.at.as_os_str().len());
        match on.map_or(self.container.spec.read_only, |mount| mount.read_only) {
            true => Err(Error::new(Kind::Invalid, format!("{}: it is read-only in the container", path.display()))),
            false => Ok(()),
        }
    }

    /// The user that the container's command runs as.
    fn owner(&self) -> Result<(u32, u32)> {
        let dir = fs::duplicate(self.root.as_fd())?;
        sandbox::owner(&self.container.spec, &Rootfs { dir, path: self.root_path.clone(), read_only: true })
    }
}
