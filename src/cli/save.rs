//! `tupper image save`, `tupper image export`

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use tupper::error::{Error, Kind};
use tupper::image::{self, Place};
use tupper::interrupt;
use tupper::snapshot;
use tupper::transport::{Compression, Format, Output, Shape};

use super::output;
use super::progress::Bar;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kept {
    /// What `docker save` writes
    DockerArchive,
    /// An OCI layout in an archive
    OciArchive,
    /// An OCI layout in a directory
    OciDir,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples: tupper save debian:12 | docker load ; tupper save --format oci-archive -o d.tar debian:12"
)]
pub(super) struct Save {
    /// Names or ids; an image has the name by which it is asked for
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Where to; standard output without it
    #[arg(long, short, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    /// The shape of it
    #[arg(long, value_enum, default_value_t = Kept::DockerArchive)]
    format: Kept,
    /// What compresses the layers of an OCI archive or layout; those of a docker archive are not compressed
    #[arg(long, value_name = "gzip|zstd", conflicts_with = "uncompressed")]
    compression_format: Option<Format>,
    /// How well: gzip 1 to 9, zstd 1 to 20
    #[arg(long, value_name = "LEVEL", conflicts_with = "uncompressed")]
    compression_level: Option<u32>,
    /// Do not compress the layers
    #[arg(long)]
    uncompressed: bool,
    /// Several images: they always may be
    #[arg(long, short, hide = true)]
    multi_image_archive: bool,
    /// No progress bar
    #[arg(long, short)]
    quiet: bool,
}

impl Save {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let shape = self.shape()?;
        let directory = self.format == Kept::OciDir;
        let mut output = match (&self.output, directory) {
            (None, true) => {
                return Err(Error::new(Kind::Invalid, "an oci-dir is a directory: name it with -o").into());
            }
            (Some(_), true) => None,
            (output, false) => Some(archive(output.as_deref())?),
        };
        interrupt::catch()?;
        let store = super::open_existing(root)?;
        let bar = Bar::new(&output::one_line(format_args!("saving {}", self.images.join(", "))), self.quiet);
        let written = std::sync::atomic::AtomicU64::new(0);
        let callback = bar.callback();
        let progress = move |more| {
            let before = written.fetch_add(more, std::sync::atomic::Ordering::Relaxed);

            callback(before + more, None);
        };
        let place = match (&mut output, &self.output) {
            (Some(output), _) => Place::Archive(output),
            (None, path) => Place::Directory(path.as_deref().unwrap_or(Path::new("."))),
        };
        image::save(&store, &self.images, shape, place, &progress)?;
        drop(bar);
        Ok(output.map_or(Ok(()), Output::finish)?)
    }

    fn shape(&self) -> Result<Shape> {
        let format = self.compression_format;
        if self.format == Kept::DockerArchive {
            if format.is_some() || self.compression_level.is_some() {
                let error = Error::new(Kind::Invalid, "the layers of a docker archive are not compressed");
                return Err(error.with_hint("--format oci-archive compresses them").into());
            }
            return Ok(Shape::Docker);
        }
        let compression = || Compression::new(format.unwrap_or_default(), self.compression_level);
        Ok(Shape::Oci((!self.uncompressed).then(compression).transpose()?))
    }
}

/// The file, or standard output, which is no terminal.
fn archive(path: Option<&Path>) -> Result<Output> {
    match path {
        Some(path) if path != Path::new("-") => Ok(Output::file(path)?),
        _ if std::io::stdout().is_terminal() => Err(Error::new(Kind::Invalid, "standard output: it is a terminal")
            .with_hint("name a file with -o, or redirect it")
            .into()),
        _ => Ok(Output::stream(Box::new(std::io::stdout()), "standard output")),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper export web | tar -t")]
pub(super) struct Export {
    /// An image, a snapshot or a container
    source: String,
    /// Where to; standard output without it
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Export {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let mut output = archive(self.output.as_deref())?;
        interrupt::catch()?;
        let store = super::open_existing(root)?;
        snapshot::export(&store, &self.source, &mut output)?;
        output.flush()?;
        Ok(output.finish()?)
    }
}
